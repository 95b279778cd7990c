"""The command ``diffusiongemma-vllm``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

MINIATURE = Path(__file__).parents[1] / "miniature"


def _miniature(args: argparse.Namespace) -> int:
    print(MINIATURE)
    return 0


def _demo(args: argparse.Namespace) -> int:
    from diffusiongemma_vllm.cli.demo import demo

    return demo(args.model, verbose=args.verbose)


def _doctor(args: argparse.Namespace) -> int:
    from diffusiongemma_vllm.cli.doctor import doctor

    return doctor()


def _quantize(args: argparse.Namespace) -> int:
    from diffusiongemma_vllm.cli.quantize import Options, quantize

    try:
        return quantize(
            Options(args.src, Path(args.dst), args.calibration, args.samples, args.device)
        )
    except ValueError as error:
        print(f"diffusiongemma-vllm quantize: {error}", file=sys.stderr)
        return 1


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
    args = parser.parse_args(argv)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
