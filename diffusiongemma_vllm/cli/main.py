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
    args = parser.parse_args(argv)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
