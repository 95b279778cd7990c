"""run.py OP [--out FILE] [--sweep]: test OP on this GPU, then time it; one JSON line per case.

`us` is a median with a cold L2, `us_warm` the mean inside a CUDA graph.  --sweep times other
configurations of the table instead of other shapes.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "kernels"), str(ROOT / "kernels/bench")]

import torch  # noqa: E402
import triton  # noqa: E402
from cases import OPS, Timed  # noqa: E402

# (GB/s, dense bf16 TFLOP/s) seen on the GPU by plain copies and products, not the data sheet's.
CEILINGS = {"H200": (4300, 790), "H100": (2900, 700)}

# Further tests of an op, by file.
BESIDE = {"row_stats": "noise", "attention": "attention_hopper", "moe_gemm": "moe_hopper"}


def tests_pass(op: str) -> bool:
    names = [op, *([BESIDE[op]] if op in BESIDE else [])]
    paths = [f"tests/kernels/test_{name}.py" for name in names]
    marked = any("mark.gpu" in (ROOT / path).read_text() for path in paths)
    # A file without that mark runs all its tests on the GPU that is there.
    command = [sys.executable, "-m", "pytest", "-q", *(["-m", "gpu"] if marked else []), *paths]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "kernels")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout[-4000:], file=sys.stderr)
    return done.returncode == 0 and " passed" in done.stdout and "skipped" not in done.stdout


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def line(op: str, timed: Timed, facts: dict) -> dict:
    us = triton.testing.do_bench(timed.run, return_mode="median") * 1e3
    warm = triton.testing.do_bench_cudagraph(timed.run) * 1e3
    result = {"op": op, "case": timed.case, **facts, "us": round(us, 2), "us_warm": round(warm, 2)}
    result |= timed.facts or {}
    ceiling = next((c for name, c in CEILINGS.items() if name in facts["gpu"]), None)
    if timed.bytes:
        result["GB/s"] = round(timed.bytes / us / 1e3, 1)
        share = ceiling and result["GB/s"] / ceiling[0]
    else:
        result["TFLOP/s"] = round(timed.flops / us / 1e6, 1)
        share = ceiling and result["TFLOP/s"] / ceiling[1]
    result["% of ceiling"] = share and round(100 * share, 1)
    if timed.baseline:
        try:
            baseline = triton.testing.do_bench(timed.baseline, return_mode="median") * 1e3
            result["baseline us"] = round(baseline, 2)
        except Exception as error:  # someone else's kernel: ours is timed all the same
            result["baseline error"] = f"{type(error).__name__}: {error}"[:200]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("op", choices=OPS)
    parser.add_argument("--only", default="", help="cases whose name has this")
    parser.add_argument("--out", type=Path, help="append the lines to this file too")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--tested", action="store_true", help="its tests have run on this GPU")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("run.py needs a CUDA device", file=sys.stderr)
        return 1
    if not (args.tested or tests_pass(args.op)):
        print(f"{args.op}: its GPU tests failed, so no numbers", file=sys.stderr)
        return 1
    versions = (
        f"torch {torch.__version__} triton {triton.__version__} py {platform.python_version()}"
    )
    facts = {"gpu": torch.cuda.get_device_name(), "versions": versions, "git": commit()}
    for timed in OPS[args.op](args.sweep):
        if args.only not in timed.case:
            continue
        try:
            text = json.dumps(line(args.op, timed, facts))
        except triton.runtime.errors.OutOfResources as error:
            if not args.sweep:
                raise
            text = json.dumps({"op": args.op, "case": timed.case, "error": str(error)})
        print(text, flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.write(text + "\n")
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
