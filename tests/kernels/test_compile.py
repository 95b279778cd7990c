"""The shipped configurations compile for GPUs that are not here, within their shared memory.

In another process: this one may hold the interpreter's kernels.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

SCRIPT = Path(__file__).with_name("compile_shipped.py")


class Limit(NamedTuple):
    capability: int
    shared: int


# Products that run as warp-group products on Hopper.
WGMMA = (
    *("attention", "attention_hopper", "lm_head", "lm_head_in_gluon"),
    *("moe_gemm", "moe_hopper", "soft_mix_all"),
)

GPUS = [Limit(80, 163 * 1024), Limit(90, 227 * 1024), Limit(100, 227 * 1024), Limit(120, 99 * 1024)]


@pytest.mark.parametrize("gpu", GPUS, ids=lambda g: f"sm_{g.capability}")
def test_shipped_configurations_compile(gpu: Limit) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, str(gpu.capability)],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) >= 5
    for line in lines:
        assert line["shared"] <= gpu.shared, line
        assert line["spills"] == 0, f"spills where it multiplies: {line}"
        if not line["op"].endswith("_hopper"):  # there the warps that fetch may, and fp8's few
            assert line["stack"] == 0, f"spills: {line}"
        assert not line["too_early"], f"a product's registers before it is done: {line}"
        if gpu.capability == 90 and line["op"] in WGMMA:
            assert line["wgmma"], line
        if line["op"] == "qkv":
            assert line["shared"] == 0, f"numbers move between threads: {line}"
        if line["op"] == "moe_gemm_fp4":
            assert line["moves"] == 0, f"a load waits: {line}"
        if line["op"] in ("moe_gemm", "moe_hopper") and gpu.capability != 100:
            # There they go to its own memory.
            assert line["moves"] == 0, f"weights move between threads: {line}"
        if line["op"] == "attention" or "nvfp4" in line["case"]:
            # The left operand is in registers, which ptxas before CUDA 13.3 gives away too early.
            assert line["in_flight"] == 0, f"products may read what a later step writes: {line}"
        assert line["fp4"] == (line["op"] == "moe_gemm_fp4"), line
    if gpu.capability >= 100:
        assert any(line["fp4"] for line in lines)
