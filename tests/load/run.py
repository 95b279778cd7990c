"""Load and faults against `vllm serve` on the miniature, FP32 on CPU.

    python tests/load/run.py --minutes 60

Asks every request once alone, then all kinds at once for the time given, with clients that vanish,
hostile requests and preemption; looks for what is left over; spoils KV pages; stops the server
under load; kills another one's engine.  Ends with 1 where anything was wrong, lost or left.
"""

import argparse
import asyncio
import platform
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from threading import Event, Thread

import faults
import load
import server as served
from report import Report

from diffusiongemma_vllm.cli.eval import processor
from diffusiongemma_vllm.cli.server import Server

CLIENTS = 8  # twice as many as run at a time: requests wait, too
VERSIONS = ("diffusiongemma-vllm", "transformers", "torch")


class MemoryLog:
    """Notes the server's memory every few seconds."""

    def __init__(self, server: Server, every: float = 2.0) -> None:
        self.server, self.every = server, every
        self.samples: list[tuple[float, int]] = []
        self._stop = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        began = time.monotonic()
        while not self._stop.wait(self.every):
            self.samples.append((time.monotonic() - began, served.memory(self.server)))

    def __enter__(self) -> "MemoryLog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def where(args: argparse.Namespace, server: Server) -> str:
    """The machine, the versions and the settings of a run."""
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    pace = f" at once every {args.every:g} s" if args.every else ""
    return (
        f"{processor()}, FP32; vLLM {served.vllm_version(server)}, {versions}, Python "
        f"{platform.python_version()}; {CLIENTS} clients{pace}, {args.pool} different requests of "
        f"a kind, seed {args.seed}; server: `{shlex.join(served.OWN)}`"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=0.0, metavar="SECONDS",
                        help="a request of every client at once, so often; 0: without pause")
    parser.add_argument("--pool", type=int, default=6, help="different requests of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the report there too")
    args = parser.parse_args()
    pool = load.draw(args.seed, args.pool)
    began = time.monotonic()
    victim = served.start()  # starts while the other one works
    with victim, served.running() as server:
        print(f"serving, log {server.log}", flush=True)
        here = where(args, server)
        asyncio.run(load.ask_alone(server.url, pool))
        print(f"every request has been asked alone, {time.monotonic() - began:.0f} s", flush=True)
        began = time.monotonic()
        with MemoryLog(server) as memory:
            until = began + 60 * args.minutes
            records = asyncio.run(
                load.run(server.url, pool, CLIENTS, lambda: time.monotonic() < until, args.every)
            )
        seconds = time.monotonic() - began
        left = served.at_rest(server)
        preemptions = server.metrics()["vllm:num_preemptions_total"]
        checks = faults.spoilt(server, pool)
        checks += faults.terminated(server, pool)
        for _ in victim.wait():
            pass
        checks += faults.engine_killed(victim, pool)
    report = Report(here, records, seconds, memory.samples, left, preemptions, checks)
    print(report)
    if args.out is not None:
        args.out.write_text(f"{report}\n", encoding="utf-8")
    failures = report.failures()
    for line in failures[:20]:
        print(f"FAILED {line}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
