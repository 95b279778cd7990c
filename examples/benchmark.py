"""Time DiffusionGemma on this machine: milliseconds a canvas, tokens a second, load of many users.

  python examples/benchmark.py MODEL --batches 1,4,8,32 --json mine.jsonl --plot mine.png
  python examples/benchmark.py MODEL --native --json mine.jsonl     vLLM's own implementation
  python examples/benchmark.py MODEL --random ...    a folder with config.json alone: random weights
  python examples/benchmark.py MODEL --serve 1,4,16  so many users, each asking again when answered
  python examples/benchmark.py --json mine.jsonl --plot mine.png    only draw

Every batch is timed with one and with three canvases a request; the difference leaves prompts out.
Random weights are seeded, spread tokens over the experts and never settle: --steps a canvas.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

PAIRS = 7  # short and long answers whose medians are compared, at most


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?")
    parser.add_argument("--native", action="store_true", help="without plugins: vLLM's own")
    parser.add_argument("--random", action="store_true", help="seeded random weights")
    parser.add_argument("--batches", default="1,4,8", help="canvases at once; empty for none")
    parser.add_argument("--serve", default="", help="users at once")
    parser.add_argument("--requests", type=int, default=4, help="of each user")
    parser.add_argument("--steps", type=int, default=16, help="denoise steps a canvas, at most")
    parser.add_argument("--prompt", default="512", help="tokens; several lengths with commas")
    parser.add_argument("--kw", default="{}", help="further arguments of vllm.LLM, as JSON")
    parser.add_argument("--json", type=Path, help="append a line a measurement")
    parser.add_argument("--plot", type=Path, help="draw the lines of --json")
    args = parser.parse_args()
    if args.model is None and not (args.plot and args.json):
        parser.error("name a MODEL, or --json and --plot to draw what was measured")
    if args.plot and not args.json:
        parser.error("--plot draws the lines of --json: name that file too")
    if args.plot and not drawable():
        parser.error("--plot draws by matplotlib, which is not here: pip install matplotlib")
    return args


def drawable() -> bool:
    """Whether matplotlib can be imported, which is asked before anything is timed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def prepare(native: bool) -> None:
    """What vLLM reads while it is imported."""
    if native:
        os.environ["VLLM_PLUGINS"] = ""
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "1")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # forwards are counted in this process
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # or ranks could not be forked after a look
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DIFFUSIONGEMMA_VLLM_INTERPRETER", "1")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # vLLM's own takes all


def fill(loader: Any, model: Any, model_config: Any) -> None:
    """Seeded weights before they are repacked: what ``load_format=dummy`` leaves is zeros."""
    import torch

    device = next(model.parameters()).device
    make = torch.Generator(device).manual_seed(0)
    transient = {
        f"{name}.{buffer}".lstrip(".")
        for name, layer in model.named_modules()
        for buffer in layer._non_persistent_buffers_set
    }

    def draw(x: torch.Tensor, name: str) -> torch.Tensor:
        if x.dtype == torch.uint8:
            return torch.randint(0, 256, x.shape, generator=make, device=device, dtype=x.dtype)
        if x.dtype == torch.float8_e4m3fn:
            return torch.rand(x.shape, generator=make, device=device) * 1.5 + 0.5
        if "scale_2" in name or "input_scale" in name:
            return torch.full_like(x, 0.008 if "scale_2" in name else 0.01)
        if x.dim() < 2 or any(part in name for part in ("norm", "scale", "scalar")):
            return torch.ones_like(x)
        return torch.randn(x.shape, generator=make, device=device) * 0.02

    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        numbers = tensor.is_floating_point() or tensor.dtype == torch.uint8
        fixed = any(part in name for part in ("rotary", "cos_sin", "normalizer"))
        if name in transient or not numbers or fixed:
            continue
        rows = max(1, 2**28 // max(1, tensor[0].numel())) if tensor.dim() else 1
        for part in tensor.data.split(rows) if tensor.dim() else (tensor.data,):
            part.copy_(draw(part, name))


class Bench:
    """An engine in this process, and what was measured of it."""

    def __init__(self, args: argparse.Namespace, batches: list[int], users: list[int]) -> None:
        import torch
        import vllm
        from vllm.transformers_utils.config import get_config

        self.args, self.forwards, self.length = args, 0, 0
        self.make = torch.Generator().manual_seed(1)
        if args.random:
            from vllm.model_executor.model_loader import dummy_loader

            dummy_loader.DummyModelLoader.load_weights = fill
        gpu = torch.cuda.is_available()
        self.canvas = get_config(args.model, trust_remote_code=True).canvas_length
        settings = dict(
            model=args.model, skip_tokenizer_init=True, max_model_len=8192, trust_remote_code=True,
            dtype="bfloat16" if gpu else "float32", max_num_seqs=max([*batches, *users]),
            enable_prefix_caching=False, max_num_batched_tokens=16384,
            load_format="dummy" if args.random else "auto",
            limit_mm_per_prompt={"image": 0, "video": 0},
            diffusion_config={
                "canvas_length": self.canvas, "max_denoising_steps": args.steps
            },
        )
        if gpu:
            settings |= {"attention_backend": "TRITON_ATTN", "gpu_memory_utilization": 0.8}
        begun = time.time()
        self.llm = vllm.LLM(**settings | json.loads(args.kw))
        start = round(time.time() - begun, 1)
        print(f"start-up {start} s", flush=True)
        core = self.llm.llm_engine.engine_core.engine_core
        self.worker = getattr(core.model_executor, "driver_worker", None)  # none of several ranks
        schedule = core.scheduler.schedule

        def counted(*given: Any, **named: Any) -> Any:
            scheduled = schedule(*given, **named)
            self.forwards += bool(scheduled.total_num_scheduled_tokens)
            return scheduled

        core.scheduler.schedule = counted
        config = self.llm.llm_engine.vllm_config
        hf = config.model_config.hf_config
        self.vocab = config.model_config.get_vocab_size()
        plugins = entry_points(group="vllm.general_plugins")
        ours = any("diffusiongemma" in plugin.value for plugin in plugins)
        self.about = {
            "implementation": "native" if args.native or not ours else "ours",
            "precision": "nvfp4" if getattr(hf, "quantization_config", None) else "bf16",
        }
        if not gpu:
            self.about["precision"] = "fp32"
        self.where = {
            "gpu": torch.cuda.get_device_name() if gpu else "none, on CPU",
            "versions": {"vllm": vllm.__version__, "torch": torch.__version__},
            "start_s": start,
            "settings": {
                "steps": args.steps, "random": args.random, **json.loads(args.kw)
            },
        }
        if vllm.envs.VLLM_BATCH_INVARIANT:
            self.where["settings"]["batch_invariant"] = True

    def said(self) -> dict[str, Any]:
        """Where and how a line was measured, by an engine that took so many seconds to start."""
        settings = {"prompt": self.length, **self.where["settings"]}
        return {**self.where, "settings": settings}

    def prompt(self) -> dict[str, list[int]]:
        import torch

        low, high = min(1000, self.vocab // 4), min(4000, self.vocab)
        ids = torch.randint(low, high, (self.length,), generator=self.make)
        return {"prompt_token_ids": ids.tolist()}

    def params(self, canvases: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=self.canvas * canvases, ignore_eos=True, detokenize=False,
            output_kind=RequestOutputKind.CUMULATIVE,
        )

    def timed(self, batch: int, canvases: int) -> tuple[float, int]:
        """Seconds and forwards of a batch of prompts answered with so many canvases each."""
        prompts = [self.prompt() for _ in range(batch)]
        begun, before = time.time(), self.forwards
        replies = self.llm.generate(prompts, self.params(canvases), use_tqdm=False)
        seconds = time.time() - begun
        if any(len(reply.outputs[0].token_ids) != self.canvas * canvases for reply in replies):
            raise RuntimeError("a canvas ended early: this model stops although it should not")
        return seconds, self.forwards - before

    def pairs(self, batch: int) -> tuple[int, int, float, float]:
        """Forwards and seconds of one canvas and of three: medians of as many as fit ten seconds.

        A request's first milliseconds on the host vary by as much as two forwards of one canvas.
        """
        short, long, begun = [], [], time.time()
        while not long or (len(long) < PAIRS and time.time() - begun + long[-1] < 10):
            (seconds, few), (more, many) = self.timed(batch, 1), self.timed(batch, 3)
            short.append(seconds)
            long.append(more)
        return few, many, statistics.median(short), statistics.median(long)

    def step(self, batch: int) -> dict[str, Any]:
        self.timed(batch, 1)
        few, many, short, long = self.pairs(batch)
        return {
            "what": "step", **self.about, "canvases": batch,
            "ms_a_canvas": round((long - short) / 2 * 1e3, 2),
            "forwards_a_canvas": (many - few) / 2,
            "ms": round((long - short) / max(1, many - few) * 1e3, 3),
            "tokens_per_second": round(2 * self.canvas * batch / (long - short)),
            "prompt_ms": round((short - (long - short) / 2) * 1e3, 1), **self.memory(),
            **self.said(),
        }  # fmt: skip

    def memory(self) -> dict[str, Any]:
        """GiB of the GPU: weights, pages, and all else that torch has held at once till now."""
        import torch

        if self.worker is None or not torch.cuda.is_available():
            return {}
        runner = self.worker.worker.model_runner
        weights = runner.model_memory_usage
        stores = [cache.untyped_storage() for cache in runner.kv_caches]  # layers share some
        pages = sum({store.data_ptr(): store.nbytes() for store in stores}.values())
        parts = {"weights": weights, "pages": pages}
        parts["else"] = torch.cuda.max_memory_reserved() - weights - pages
        return {"gib": {name: round(size / 2**30, 2) for name, size in parts.items()}}

    def load(self, users: int) -> dict[str, Any]:
        """Users who ask for two canvases, and again as soon as they have them."""
        from tqdm import tqdm

        engine, total = self.llm.llm_engine, users * self.args.requests
        asked: dict[str, float] = {}
        first: dict[str, float] = {}
        ended: dict[str, float] = {}
        begun = time.time()
        with tqdm(total=total, desc=f"{users} users", unit="answer") as bar:
            while len(ended) < total:
                while len(asked) < total and len(asked) - len(ended) < users:
                    name = f"{users}-{len(asked)}"
                    asked[name] = time.time()
                    engine.add_request(name, self.prompt(), self.params(2))
                for reply in engine.step():
                    if reply.outputs[0].token_ids:
                        first.setdefault(reply.request_id, time.time())
                    if reply.finished:
                        ended[reply.request_id] = time.time()
                        bar.update()
        seconds = time.time() - begun

        def milliseconds(times: dict[str, float]) -> dict[str, float]:
            waits = sorted((times[name] - asked[name]) * 1e3 for name in asked)
            worst = waits[min(len(waits) - 1, round(0.99 * len(waits)))]
            return {"median": round(statistics.median(waits), 1), "p99": round(worst, 1)}

        return {
            "what": "serve", **self.about, "users": users, "requests": total,
            "tokens_per_second": round(2 * self.canvas * total / seconds),
            "first_token_ms": milliseconds(first), "answer_ms": milliseconds(ended), **self.said(),
        }  # fmt: skip


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Milliseconds a canvas and tokens a second over the batch, a curve an implementation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    curves: dict[str, dict[int, dict[str, Any]]] = {}
    for line in lines:
        if line["what"] == "step":
            name = f"{line['implementation']}, {line['precision']}, {line['gpu']}"
            for key in sorted(line["settings"].keys() - {"prompt", "steps", "random"}):
                name += f", {key} {line['settings'][key]}"
            curves.setdefault(name, {})[line["canvases"]] = line
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    labels = {"ms_a_canvas": "ms a canvas", "tokens_per_second": "tokens a second"}
    for panel, (key, label) in zip(panels, labels.items(), strict=True):
        for name, points in curves.items():
            batches = sorted(points)
            panel.plot(batches, [points[b][key] for b in batches], marker="o", label=name)
        panel.set(xlabel="canvases at once", ylabel=label, xscale="log", yscale="log")
        panel.set_xticks(*[sorted({b for points in curves.values() for b in points})] * 2)
        panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=150)
    print(f"drawn: {path}")


def main() -> None:
    args = arguments()
    if args.model is not None:
        prepare(args.native)
        batches = [int(part) for part in args.batches.split(",") if part]
        users = [int(part) for part in args.serve.split(",") if part]
        bench = Bench(args, batches, users)
        work = [(bench.step, batch) for batch in batches] + [(bench.load, n) for n in users]
        lengths = [int(part) for part in args.prompt.split(",")]
        work = [(length, *one) for length in lengths for one in work]
        for place, (bench.length, measure, size) in enumerate(work, 1):
            line = json.dumps(measure(size))
            print(f"[{place}/{len(work)}] {line}", flush=True)
            if args.json:
                with args.json.open("a") as file:
                    file.write(line + "\n")
    if args.plot:
        draw([json.loads(line) for line in args.json.read_text().splitlines()], args.plot)


if __name__ == "__main__":
    main()
