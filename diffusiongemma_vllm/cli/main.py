"""The command ``diffusiongemma-vllm``."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusiongemma_vllm.cli.server import NotStarted

MINIATURE = Path(__file__).parents[1] / "miniature"

INTERRUPTED = {  # what is left to say
    "eval": "interrupted; what was answered is kept: the same command goes on where it was.",
    "quantize": "interrupted; what was written is kept: the same command goes on where it was.",
}


def _miniature(args: argparse.Namespace) -> int:
    print(MINIATURE)
    return 0


def _demo(args: argparse.Namespace) -> int:
    from diffusiongemma_vllm.cli.demo import demo

    return demo(args.model, verbose=args.verbose)


def _doctor(args: argparse.Namespace) -> int:
    from diffusiongemma_vllm.cli.doctor import doctor

    return doctor()


def _watch(args: argparse.Namespace) -> int:
    from diffusiongemma_vllm.client import check
    from diffusiongemma_vllm.watch.server import Options, watch

    check(args.url, args.api_key)
    return watch(Options(args.url.rstrip("/"), args.host, args.port, args.api_key))


def _chat(args: argparse.Namespace) -> int:
    from diffusiongemma_vllm.cli.chat import Options, chat

    return chat(Options(
        args.url.rstrip("/"), args.api_key, args.every, args.thinking, args.temperature,
    ))


def _quantize(args: argparse.Namespace) -> int:
    from diffusiongemma_vllm.cli.quantize import Options, quantize

    return quantize(
        Options(args.src, Path(args.dst), args.calibration, args.samples, args.device)
    )


def _eval(args: argparse.Namespace) -> int:
    from diffusiongemma_vllm.cli.eval import Options, evaluate
    from diffusiongemma_vllm.evaluation.seven import BY_NAME

    return evaluate(Options(
        args.benchmarks or list(BY_NAME), args.url, args.model, args.data, args.out,
        args.limit, args.concurrency, args.seed, args.max_tokens, args.sandbox, args.beside,
        args.api_key,
    ))


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 65536:
        raise argparse.ArgumentTypeError(f"{text} is no port: 1 to 65535")
    return port


def _add_key(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--api-key", default=os.environ.get("VLLM_API_KEY") or None,
        help="the vLLM server's; or set VLLM_API_KEY",
    )


def _add_eval(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "benchmarks", nargs="*", metavar="BENCHMARK",
        help="gpqa_diamond, aime25, gsm8k, ifeval, humaneval, mmmlu, mmlu_pro (all seven without "
        "one), or miniature: the shipped checkpoint, BF16 and NVFP4 and by transformers",
    )
    command.add_argument("--url", default="http://127.0.0.1:8000", help="the server, without /v1")
    command.add_argument("--model", help="the model's name at that server, if it has several")
    command.add_argument(
        "--data", type=Path,
        help="folder of data sets, each as hf download writes it in DATA/OWNER/NAME; the hub else",
    )
    command.add_argument(
        "--out", type=Path, default=Path("eval-results"),
        help="answers, scores and the table; an interrupted run goes on in it",
    )
    command.add_argument("--limit", type=int, help="so many questions, evenly spread")
    command.add_argument("--concurrency", type=int, default=4, help="requests at a time")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--max-tokens", type=int, help="of an answer; what fits, without it")
    command.add_argument(
        "--sandbox", choices=["none", "bwrap"], default="none",
        help="what humaneval runs the model's code in",
    )
    command.add_argument("--beside", type=Path, help="OUT of another run, to compare with")
    _add_key(command)
    command.set_defaults(run=_eval)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="diffusiongemma-vllm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("demo", help="serve the miniature and ask it three questions")
    command.add_argument("--model", default=str(MINIATURE), help="another checkpoint to serve")
    command.add_argument("--verbose", action="store_true", help="show the server's log")
    command.set_defaults(run=_demo)
    command = commands.add_parser("doctor", help="what this machine has, would run, and lacks")
    command.set_defaults(run=_doctor)
    command = commands.add_parser("miniature", help="print the path of the shipped checkpoint")
    command.set_defaults(run=_miniature)
    command = commands.add_parser("watch", help="a web page that shows a server denoise")
    command.add_argument("--url", default="http://127.0.0.1:8000", help="of the vLLM server")
    command.add_argument("--host", default="127.0.0.1", help="address to serve the page on")
    command.add_argument("--port", type=_port, default=8600, help="port to serve the page on")
    _add_key(command)
    command.set_defaults(run=_watch)
    command = commands.add_parser("chat", help="talk to a server, and see it denoise")
    command.add_argument("--url", default="http://127.0.0.1:8000", help="of the vLLM server")
    command.add_argument("--every", type=int, default=1, help="denoise steps between two drafts")
    command.add_argument("--thinking", action="store_true", help="let the model think first")
    command.add_argument("--temperature", type=float, default=1.0)
    _add_key(command)
    command.set_defaults(run=_chat)
    command = commands.add_parser(
        "quantize", help="write a BF16 checkpoint's experts in NVFP4, in NVIDIA's layout"
    )
    command.add_argument("src", help="folder of the BF16 checkpoint, or its name on the hub")
    command.add_argument("dst", help="folder for the result; an interrupted run goes on in it")
    command.add_argument(
        "--calibration", default="datasets",
        help="datasets (cnn_dailymail and Nemotron-Post-Training-Dataset-v2, the default), a "
        ".jsonl file with 'text' or 'messages' in every line, or none (weights only)",
    )
    command.add_argument("--samples", type=int, default=512, help="texts to calibrate with")
    command.add_argument("--device", default="cpu", help="cpu, or cuda to be faster")
    command.set_defaults(run=_quantize)
    _add_eval(commands.add_parser("eval", help="score a server on the model card's benchmarks"))
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (OSError, ValueError, NotStarted) as error:
        print(f"diffusiongemma-vllm {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{INTERRUPTED.get(args.command, 'stopped.')}", file=sys.stderr)
        gc.freeze()  # or Python looks through all that was imported, for seconds
        return 130


if __name__ == "__main__":
    sys.exit(main())
