"""Benchmarks against a server, or the miniature against itself and transformers."""

from __future__ import annotations

import json
import platform
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from diffusiongemma_vllm.evaluation.seven import BY_NAME

NEEDED = ("lm_eval", "datasets", "langdetect", "nltk")
# On a GPU both servers are in memory at once.
MINIATURE_FLAGS = (
    "--dtype", "float32", "--max-model-len", "4096", "--gpu-memory-utilization", "0.3",
)


@dataclass(frozen=True)
class Options:
    """benchmarks: names, or ``miniature`` alone.  data, beside: folders, or None.

    key: the server's --api-key, or None.
    """

    benchmarks: list[str]
    url: str
    model: str | None
    data: Path | None
    out: Path
    limit: int | None
    concurrency: int
    seed: int
    max_tokens: int | None
    sandbox: str
    beside: Path | None
    key: str | None = None


def evaluate(options: Options) -> int:
    """Ask, score, print a table and leave it in ``out``.

    Raises:
        ValueError: for an option, data set or server that cannot be used.
    """
    _check(options)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {options.out} is no folder to write to: {error}") from None
    made = _miniature(options) if options.benchmarks == ["miniature"] else _served(options)
    (options.out / "table.md").write_text(made, encoding="utf-8")
    Console(highlight=False).print(made, markup=False, soft_wrap=True)
    return 0


def _check(options: Options) -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"eval needs {', '.join(missing)}: pip install 'diffusiongemma-vllm[eval]'"
        )
    for name, value in (("--limit", options.limit), ("--concurrency", options.concurrency),
                        ("--max-tokens", options.max_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if options.benchmarks == ["miniature"]:
        return
    unknown = [name for name in options.benchmarks if name not in BY_NAME]
    if unknown:
        raise ValueError(
            f"no benchmark {', '.join(unknown)}: there are {', '.join(BY_NAME)}, and miniature, "
            "which runs alone"
        )
    code = [name for name in options.benchmarks if BY_NAME[name].runs_code]
    if code and options.sandbox == "none":
        raise ValueError(
            f"{', '.join(code)} runs code that the model writes: --sandbox bwrap runs it apart "
            "from this machine; or name the benchmarks without it"
        )


def _served(options: Options) -> str:
    """The benchmarks against the server at ``url``."""
    from diffusiongemma_vllm.evaluation import instructions, programs, result, run, sandbox, table
    from diffusiongemma_vllm.evaluation.answers import Answers
    from diffusiongemma_vllm.evaluation.served import Endpoint, Served, Settings

    named = [BY_NAME[name] for name in options.benchmarks]
    others = {
        name: result.load(options.beside, name) for name in options.benchmarks
        if options.beside is not None
    }
    if any(benchmark.name == "ifeval" for benchmark in named):
        instructions.prepare(options.data)
    run_code = (
        programs.InSandbox(sandbox.bubblewrap())
        if any(benchmark.runs_code for benchmark in named) else None
    )
    tasks = [
        benchmark.task(options.data, run_code if benchmark.runs_code else None)
        for benchmark in named
    ]
    for benchmark, task in zip(named, tasks, strict=True):
        if benchmark.name in others:
            asked = run.questions(task, benchmark.draws, options.limit)
            table.check_paired(benchmark, asked, others[benchmark.name])
    endpoint = Endpoint(Settings(
        options.url, options.model, options.concurrency, options.seed, options.max_tokens,
        options.key,
    ))
    about = {
        "checkpoint": endpoint.checkpoint, "url": options.url, "seed": options.seed,
        "limit": options.limit, "max_tokens": options.max_tokens,
    }
    rows = []
    for benchmark, task in zip(named, tasks, strict=True):
        answers = Answers(options.out / f"{benchmark.name}.answers.jsonl")
        try:
            model = Served(endpoint, benchmark, answers)
            found = run.run(task, model, benchmark.draws, options.limit, about)
        finally:
            answers.close()
        found.save(options.out)
        rows.append((benchmark, found))
    source = f"{endpoint.checkpoint} at {options.url}, asked by {_versions(rows[0][1].about)}."
    return (
        f"{table.card(rows, others)}\n\n{source}\n"
        "95 % intervals, of our sampling alone: the card gives none for its numbers.\n"
    )


def _miniature(options: Options) -> str:
    """The miniature's held-out chats: transformers, our server, and our server with NVFP4."""
    from diffusiongemma_vllm.cli.main import MINIATURE
    from diffusiongemma_vllm.cli.server import CARD_FLAGS, Server
    from diffusiongemma_vllm.evaluation import run, table
    from diffusiongemma_vllm.evaluation.answers import Answers
    from diffusiongemma_vllm.evaluation.generated import Generated
    from diffusiongemma_vllm.evaluation.heldout import DATA, HELDOUT
    from diffusiongemma_vllm.evaluation.served import Endpoint, Served, Settings

    folders = {"BF16": MINIATURE, "NVFP4": _quantised(MINIATURE, options.out / "nvfp4")}
    task = HELDOUT.task(DATA)
    with ExitStack() as stack:
        servers = {  # they start while transformers answers
            name: stack.enter_context(Server(str(folder), (*CARD_FLAGS, *MINIATURE_FLAGS)))
            for name, folder in folders.items()
        }
        generated = Generated(MINIATURE, HELDOUT, options.seed)
        results = {"transformers": run.run(task, generated, 1, options.limit, {})}
        for name, server in servers.items():
            for _ in server.wait():
                pass
            answers = Answers(options.out / f"{name}.answers.jsonl")
            stack.callback(answers.close)
            endpoint = Endpoint(Settings(
                server.url, None, options.concurrency, options.seed, options.max_tokens
            ))
            results[name] = run.run(
                task, Served(endpoint, HELDOUT, answers), 1, options.limit, {}
            )
            server.stop()
    asked = [task.eval_docs[i]["task"] for i in results["BF16"].questions]
    pairs = [("BF16", "transformers"), ("NVFP4", "BF16")]
    made = table.beside(asked, results, pairs)
    return f"{made}\n\n{processor()}, FP32; {_versions(results['BF16'].about)}.\n"


def _quantised(source: Path, folder: Path) -> Path:
    """The miniature in NVFP4, made by ``diffusiongemma-vllm quantize``."""
    from diffusiongemma_vllm.cli import quantize
    from diffusiongemma_vllm.evaluation.heldout import CALIBRATION

    folder.parent.mkdir(parents=True, exist_ok=True)
    chats = folder.parent / "calibration.jsonl"
    chats.write_text("".join(
        json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n"
        for text in CALIBRATION
    ), encoding="utf-8")
    quantize.quantize(quantize.Options(
        str(source), folder, str(chats), len(CALIBRATION), "cpu"
    ))
    return folder


def _versions(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return f"{versions}, Python {about['python']}"


def processor() -> str:
    """Name of the GPU, or of the CPU and how many cores it has."""
    from torch import cuda

    if cuda.is_available():
        return cuda.get_device_name()
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ] if Path("/proc/cpuinfo").exists() else []
    return f"{names[0] if names else platform.machine()}, {len(names)} cores"
