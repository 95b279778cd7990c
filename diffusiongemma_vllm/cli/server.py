"""A vLLM server as a child process, for as long as a ``with`` block lasts."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

STARTED = 600.0  # seconds until a start is given up
CARD_FLAGS = (
    "--trust-remote-code", "--max-num-seqs", "4", "--attention-backend", "TRITON_ATTN",
    "--enable-auto-tool-choice", "--tool-call-parser", "gemma4", "--reasoning-parser", "gemma4",
    "--override-generation-config", '{"max_new_tokens": null}',
    "--default-chat-template-kwargs", '{"enable_thinking": true}',
)


class NotStarted(RuntimeError):
    """The server ended, or does not answer."""


class Server:
    """``vllm serve MODEL`` on a free port of this machine; logs go to a file."""

    def __init__(self, model: str, flags: Sequence[str] = CARD_FLAGS) -> None:
        self.model = model
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model]
        command += ["--host", "127.0.0.1", "--port", str(self.port), *flags]
        with tempfile.NamedTemporaryFile(
            prefix="diffusiongemma-", suffix=".log", delete=False
        ) as log:
            self.log = Path(log.name)
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={"HF_HUB_OFFLINE": "1"} | _environment(),
            )

    def wait(self) -> Iterator[float]:
        """Yields seconds waited until the server answers.

        Raises:
            NotStarted: with the end of the log, when it exits or takes too long.
        """
        began = time.monotonic()
        while True:
            waited = time.monotonic() - began
            if self.process.poll() is not None or waited > STARTED:
                raise NotStarted(
                    f"vllm serve did not start (exit {self.process.poll()}):\n{self.tail()}"
                )
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                yield waited
                time.sleep(0.5)

    def metrics(self) -> dict[str, float]:
        """Prometheus counters by name, summed over their labels."""
        totals: dict[str, float] = {}
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=120) as page:
            for line in page.read().decode().splitlines():
                if not line.startswith("#"):
                    name, _, value = line.rpartition(" ")
                    key = name.partition("{")[0]
                    totals[key] = totals.get(key, 0.0) + float(value)
        return totals

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """End the server and its engine, by force if it takes more than half a minute."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)  # the engine's process too
                self.process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _environment() -> dict[str, str]:
    """Without the key of another server: this one is asked by its parent alone."""
    return {name: value for name, value in os.environ.items() if name != "VLLM_API_KEY"}


@contextmanager
def serving(model: str, flags: Sequence[str] = CARD_FLAGS) -> Iterator[Server]:
    """A server that answers."""
    with Server(model, flags) as server:
        for _ in server.wait():
            pass
        yield server


def _free_port() -> int:
    """Below the ports that Linux gives to connections: vLLM binds it only seconds later."""
    for port in random.sample(range(20_000, 32_768), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port between 20000 and 32767")
