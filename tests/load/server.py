"""The server under load: the miniature, FP32, with so few KV blocks that requests are preempted."""

import json
import os
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from diffusiongemma_vllm.cli.main import MINIATURE
from diffusiongemma_vllm.cli.server import CARD_FLAGS, Server

SEQUENCES, CONTEXT = 4, 1280
# Pages of 128 tokens in three groups of layers: a request of CONTEXT tokens fits, two do not.
BLOCKS = 40
OWN = (
    "--dtype", "float32", "--max-num-seqs", str(SEQUENCES),
    "--max-model-len", str(CONTEXT), "--num-gpu-blocks-override", str(BLOCKS),
    "--worker-extension-cls", "inside.Inside",
)
FLAGS = (*CARD_FLAGS, *OWN)
AT_REST = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")


def start() -> Server:
    """Not waited for yet."""
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # /collective_rpc, to ask the worker for its slots
    here = str(Path(__file__).parent)
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = here if not known else f"{here}{os.pathsep}{known}"
    return Server(str(MINIATURE), FLAGS)


@contextmanager
def running() -> Iterator[Server]:
    with start() as server:
        for _ in server.wait():
            pass
        yield server


def at_rest(server: Server, seconds: float = 60.0) -> dict[str, float]:
    """Whatever of ``AT_REST`` is not zero once the server had time; and slots that are not free,
    and pictures of requests that are gone."""
    until = time.monotonic() + seconds
    while True:
        metrics = server.metrics()
        free, total = inside(server, "slots")
        (pictures,) = inside(server, "pictures")
        held = {name: metrics[name] for name in AT_REST}
        held |= {"slots": total - free, "pictures": pictures}
        left = {name: count for name, count in held.items() if count}
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.5)


def inside(server: Server, method: str) -> Any:
    """What a method of ``inside.Inside`` returns in the worker."""
    request = urllib.request.Request(
        f"{server.url}/collective_rpc", json.dumps({"method": method}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        (result,) = json.loads(reply.read())["results"]
    return result


def vllm_version(server: Server) -> str:
    """Asked of the server: to import vLLM takes ten seconds."""
    with urllib.request.urlopen(f"{server.url}/version", timeout=60) as reply:
        return str(json.loads(reply.read())["version"])


def processes(server: Server) -> list[psutil.Process]:
    """The API server and every process below it."""
    parent = psutil.Process(server.process.pid)
    return [parent, *parent.children(recursive=True)]


def memory(server: Server) -> int:
    """Bytes resident, of all its processes."""
    total = 0
    for process in processes(server):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def engine(server: Server) -> psutil.Process:
    """The process of the engine."""
    found = [p for p in processes(server) if "EngineCore" in p.name() or
             "EngineCore" in " ".join(p.cmdline())]
    if len(found) != 1:
        raise RuntimeError(f"no one engine process among {processes(server)}")
    return found[0]
