"""The server's end, by its own hand and by others': no client waits for ever, and it says why."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable
from threading import Thread

import load
import server as served
from load import Pool
from record import Outcome, Record

from diffusiongemma_vllm.cli.server import Server

STOPS = 120.0  # seconds within which a server has to be gone
Check = tuple[str, bool, str]  # what was looked at, whether it was so, what was seen


def spoilt(server: Server, pool: Pool) -> list[Check]:
    """NaN in the KV pages of running requests, six times: they end with an error, others do not.

    Whoever finds such a page in the prefix cache ends with an error too, and takes it out of there.
    """
    pages = []

    def spoil() -> None:
        until = time.monotonic() + 60
        while sum(map(bool, pages)) < 6 and time.monotonic() < until:
            pages.extend(served.inside(server, "spoil"))
            time.sleep(0.3)

    records = _while_asked(server, pool, spoil)
    lost = [one for one in records if one.outcome is Outcome.LOST]
    wrong = [one for one in records if one.outcome is Outcome.WRONG]
    began = time.monotonic()
    after = asyncio.run(
        load.run(server.url, pool, served.SEQUENCES, lambda: time.monotonic() < began + 3)
    )
    bad = [one for one in after if one.outcome in (Outcome.WRONG, Outcome.LOST)]
    left = served.at_rest(server)
    return [
        ("NaN in KV pages: pages were spoilt", any(pages), str(pages)),
        ("NaN in KV pages: a request ends with HTTP 500",
         bool(lost) and all("HTTP 500" in one.detail for one in lost), str(lost[:1])),
        ("NaN in KV pages: no wrong answer", not wrong, str(wrong[:1])),
        ("NaN in KV pages: nothing is wrong afterwards", not bad, str(bad[:1])),
        ("NaN in KV pages: nothing is left over", not left, str(left)),
    ]


def terminated(server: Server, pool: Pool) -> list[Check]:
    """SIGTERM while requests run: each is answered rightly or gets an error, and nothing hangs."""
    records = _while_asked(server, pool, lambda: server.process.send_signal(signal.SIGTERM))
    code, seconds = _gone(server)
    wrong = [one for one in records if one.outcome is Outcome.WRONG]
    return [
        ("SIGTERM under load: the server stops", code is not None, f"{seconds:.0f} s"),
        ("SIGTERM under load: exit code", code in (0, -signal.SIGTERM), str(code)),
        ("SIGTERM under load: no wrong answer", not wrong, str(wrong[:1])),
        ("SIGTERM under load: no process is left", not _left(server), ""),
    ]


def engine_killed(server: Server, pool: Pool) -> list[Check]:
    """SIGKILL to the engine's process: the server ends with an error and says so in its log."""
    engine = served.engine(server)
    records = _while_asked(server, pool, engine.kill)
    code, seconds = _gone(server)
    said = server.log.read_text(errors="replace")
    why = [line for line in said.splitlines() if "the engine died (SIGKILL" in line]
    lost = [one for one in records if one.outcome is Outcome.LOST]
    return [
        ("engine killed: the server stops", code is not None, f"{seconds:.0f} s"),
        ("engine killed: exit code is not zero", bool(code), str(code)),
        ("engine killed: the log says why", bool(why), why[0] if why else said[-300:]),
        ("engine killed: its clients get an error", bool(lost), str(records[-1:])),
        ("engine killed: no process is left", not _left(server), ""),
    ]


def _while_asked(server: Server, pool: Pool, fault: Callable[[], object]) -> list[Record]:
    """Ask, cause the fault two seconds later, and stop asking soon after.

    Who asks waits a moment: a server that is gone answers at once.
    """
    began = time.monotonic()

    def strike() -> None:
        time.sleep(2)
        fault()

    thread = Thread(target=strike)
    thread.start()
    records = asyncio.run(load.run(
        server.url, pool, served.SEQUENCES,
        lambda: thread.is_alive() or time.monotonic() < began + 4, every=0.2,
    ))
    thread.join()
    return records


def _gone(server: Server) -> tuple[int | None, float]:
    """Exit code of the server, or None where it does not stop; and the seconds it took."""
    began = time.monotonic()
    try:
        code: int | None = server.process.wait(timeout=STOPS)
    except subprocess.TimeoutExpired:
        code = None
    return code, time.monotonic() - began


def _left(server: Server, seconds: float = 20.0) -> bool:
    """Whether a process of the server's group still lives after a while."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.killpg(server.process.pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.2)
    return True
