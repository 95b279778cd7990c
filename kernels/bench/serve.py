"""serve.py MODEL [--native] [--random] [--users 1,4,16]: `vllm serve` under `vllm bench serve`.

Options that are not its own go to `vllm serve`.

Users send prompts of random words and ask for two canvases, end tokens ignored.  A JSON line for
each number of users: tokens a second, and milliseconds to the first token and to the whole answer.
--random fills weights as examples/benchmark.py does, in every process of the server.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tqdm import tqdm

from diffusiongemma_vllm import compat
from diffusiongemma_vllm.cli.server import Server, serving

ROOT = Path(__file__).resolve().parents[2]
VLLM = [sys.executable, "-m", "vllm.entrypoints.cli.main"]
FILL = "fill_with_random_weights"
PLUGIN = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("benchmark", {str(ROOT / "examples/benchmark.py")!r})
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)

def register():
    from vllm.model_executor.model_loader import dummy_loader
    dummy_loader.DummyModelLoader.load_weights = benchmark.fill
"""
KEPT = {  # of what `vllm bench serve` found
    "output_throughput": "tokens_per_second", "median_ttft_ms": "first_token_ms",
    "p99_ttft_ms": "first_token_ms_p99", "median_e2el_ms": "answer_ms",
    "p99_e2el_ms": "answer_ms_p99",
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--native", action="store_true", help="vLLM's own implementation")
    parser.add_argument("--random", action="store_true", help="seeded random weights")
    parser.add_argument("--users", default="1,4,16,32,64")
    parser.add_argument("--requests", type=int, default=2, help="of each user")
    parser.add_argument("--steps", type=int, default=16, help="denoise steps a canvas, at most")
    parser.add_argument("--words", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--json", type=Path, help="append a line a measurement")
    args, args.server = parser.parse_known_args()
    users = [int(part) for part in args.users.split(",")]
    with TemporaryDirectory() as folder:
        prepare(args, Path(folder))
        begun = time.time()
        with serving(args.model, flags(args, max(users))) as server:
            print(f"start-up {time.time() - begun:.1f} s, log {server.log}", flush=True)
            for count in tqdm(users, desc="users"):
                line = json.dumps(load(args, count, server, Path(folder)))
                print(line, flush=True)
                if args.json:
                    with args.json.open("a") as file:
                        file.write(line + "\n")
    return 0


def flags(args: argparse.Namespace, users: int) -> list[str]:
    diffusion = {"canvas_length": 256, "max_denoising_steps": args.steps}
    return [
        "--trust-remote-code", "--attention-backend", "TRITON_ATTN", "--max-model-len", "8192",
        "--max-num-seqs", str(users), "--diffusion-config", json.dumps(diffusion),
        *(["--load-format", "dummy"] if args.random else []), *args.server,
    ]  # fmt: skip


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """A plugin in ``folder`` that fills weights, for all that starts; native: no other plugin."""
    about = folder / "fill-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fill\nVersion: 0\n")
    entry = f"[vllm.general_plugins]\n{FILL} = fill_plugin:register\n"
    (about / "entry_points.txt").write_text(entry if args.random else "")
    (folder / "fill_plugin.py").write_text(PLUGIN)
    os.environ["PYTHONPATH"] = f"{folder}:{os.environ.get('PYTHONPATH', '')}"
    os.environ.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    if args.native:
        os.environ["VLLM_PLUGINS"] = FILL


def load(args: argparse.Namespace, users: int, server: Server, folder: Path) -> dict:
    total = users * args.requests
    found = folder / f"{users}.json"
    subprocess.run(
        [
            *VLLM, "bench", "serve", "--backend", "openai", "--model", args.model,
            "--base-url", server.url, "--dataset-name", "random",
            "--random-input-len", str(args.words), "--random-output-len", "512", "--ignore-eos",
            "--num-prompts", str(total), "--max-concurrency", str(users), "--seed", str(users),
            "--percentile-metrics", "ttft,e2el", "--metric-percentiles", "99",
            "--save-result", "--result-dir", str(folder), "--result-filename", found.name,
            "--disable-tqdm",
        ],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    result = json.loads(found.read_text())
    if result["completed"] != total or result["total_output_tokens"] != 512 * total:
        raise RuntimeError(f"{result['completed']} of {total} answers, "
                           f"{result['total_output_tokens']} tokens")  # fmt: skip
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none, on CPU"
    return {
        "what": "serve", "implementation": "native" if args.native else "ours",
        "model": Path(args.model).name, "users": users, "requests": total,
        **{name: round(result[key], 1) for key, name in KEPT.items()},
        "gpu": gpu, "versions": {"vllm": compat.vllm_version(), "torch": torch.__version__},
        "settings": {"steps": args.steps, "prompt": args.words, "random": args.random,
                     "server": args.server},
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
