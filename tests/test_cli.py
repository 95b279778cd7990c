"""What the command says when something is wrong, and how its own server starts."""

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("openai")

import httpx

from diffusiongemma_vllm.cli import server
from diffusiongemma_vllm.cli.main import main
from diffusiongemma_vllm.cli.server import _free_port
from diffusiongemma_vllm.evaluation.threads import at_once


def test_the_own_server_takes_no_key(monkeypatch):
    """Of ``demo`` and ``eval miniature``, whose clients have none."""
    started = {}
    monkeypatch.setattr(server.subprocess, "Popen", lambda *_, **options: started.update(options))
    monkeypatch.setenv("VLLM_API_KEY", "sk-1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    server.Server("model").log.unlink()
    assert "VLLM_API_KEY" not in started["env"]
    assert started["env"]["VLLM_LOGGING_LEVEL"] == "INFO"


def test_chat_without_a_server(capsys):
    assert main(["chat", "--url", "http://127.0.0.1:9"]) == 1
    assert "chat: no server answers at http://127.0.0.1:9" in capsys.readouterr().err


class Slow(BaseHTTPRequestHandler):
    """A server that lists a model and answers nothing before the end of the test."""

    ended = threading.Event()

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._say(b'{"data": [{"id": "slow"}]}', "application/json")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.ended.wait(60)

    def _say(self, sent, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)


@pytest.fixture
def slow():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    made.daemon_threads = True
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    Slow.ended.set()
    made.shutdown()
    made.server_close()
    Slow.ended.clear()


RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from diffusiongemma_vllm.cli.main import main
sys.exit(main())
"""


def interrupted(arguments, until, *, feed=""):
    """Ctrl-C once ``until`` says so; exit status, seconds it took, and what was printed."""
    with subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    ) as process:
        process.stdin.write(feed)
        process.stdin.flush()
        try:
            until(process)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            status = process.wait(30)
            return status, time.monotonic() - began, process.stdout.read()
        finally:
            process.kill()


def test_interrupted_chat(slow):
    status, seconds, said = interrupted(
        ["chat", "--url", slow], lambda process: process.stdout.read(len("slow (")))
    assert status == 130 and seconds < 10 and said.endswith("stopped.\n")
    assert "Traceback" not in said


def test_interrupted_watch(slow):
    """With a stream open, which is cut off."""
    port = _free_port()
    stream = ThreadPoolExecutor(1)

    def until(process):
        assert process.stdout.readline().startswith("watching")
        asked = stream.submit(httpx.post, f"http://127.0.0.1:{port}/v1/completions", json={},
                              timeout=60)
        time.sleep(1)
        assert not asked.done()

    status, seconds, said = interrupted(
        ["watch", "--url", slow, "--port", str(port)], until)
    assert (status, said) == (130, "\nstopped.\n") and seconds < 10
    stream.shutdown()


def test_interrupted_eval(slow, tmp_path):
    """Questions are in flight; nobody waits for them."""
    pytest.importorskip("lm_eval")
    from made_up import aime25

    aime25(tmp_path / "data")

    def until(process):
        line = ""
        while "AIME 2025" not in line:
            line += process.stdout.read(1)
        time.sleep(1)

    status, seconds, said = interrupted(
        ["eval", "aime25", "--url", slow, "--data", str(tmp_path / "data"), "--out",
         str(tmp_path / "out")], until)
    assert status == 130 and seconds < 10
    assert said.endswith("the same command goes on where it was.\n") and "Traceback" not in said


def test_work_at_once():
    """So many at a time; after an error nothing is begun, and what is in work is kept."""
    done = []

    def work(item):
        if item == 2:
            raise KeyError(item)
        time.sleep(0.05 * item)
        done.append(item)

    with pytest.raises(KeyError):
        for _ in at_once(work, [1, 2, 3, 4, 5, 6], 3):
            pass
    assert 3 in done and 5 not in done and 6 not in done
    done.clear()
    assert len(list(at_once(done.append, range(50), 4))) == 50 and sorted(done) == [*range(50)]
    assert list(at_once(done.append, [], 4)) == []


@pytest.mark.parametrize("arguments, said", [
    (["watch", "--url", "http://127.0.0.1:abc"], "is no address of a server"),
    (["watch", "--api-key", "k\xe9"], "beyond plain ASCII"),
    (["watch", "--url", "127.0.0.1:8000"], "is no address of a server"),
    (["chat", "--url", "http://127.0.0.1:abc"], "is no address of a server"),
    (["chat", "--url", "http://"], "is no address of a server"),
    (["chat", "--api-key", "k\xe9"], "beyond plain ASCII"),
    (["demo", "--model", "/nonexistent"], "--model /nonexistent is no folder"),
], ids=" ".join)
def test_refused(arguments, said, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"diffusiongemma-vllm {arguments[0]}: ") and error.count("\n") == 1
    assert said in error


def test_no_port(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["watch", "--port", "99999"])
    assert ended.value.code == 2 and "99999 is no port: 1 to 65535" in capsys.readouterr().err


def test_a_server_that_does_not_start(monkeypatch, capsys):
    def broken(*_, **__):
        raise server.NotStarted("vllm serve did not start")

    monkeypatch.setattr("diffusiongemma_vllm.cli.demo.Server", broken)
    assert main(["demo"]) == 1
    assert "demo: vllm serve did not start" in capsys.readouterr().err
