"""What this machine has, which code would run on it, and what is missing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, entry_points, version

from rich.console import Console
from rich.table import Table

PACKAGES = ("torch", "triton", "transformers", "safetensors", "openai")
OLDEST = (8, 0)  # compute capability that our kernels are written for
TRITON, GLUON = "our Triton kernels", "our Gluon kernels"
GROUPS = ("vllm.general_plugins", "vllm.platform_plugins")


def doctor() -> int:
    """Print the findings; returns 1 when something needed is missing."""
    from diffusiongemma_vllm import __version__, compat

    console = Console()
    rows: list[tuple[str, str]] = [
        ("diffusiongemma-vllm", __version__),
        ("Python", f"{platform.python_version()} on {platform.machine()}"),
    ]
    missing = []
    try:
        compat.check_version()
        rows.append(("vLLM", compat.vllm_version()))
    except RuntimeError as error:
        missing.append(str(error))
    for package in PACKAGES:
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            missing.append(f"{package} is not installed: pip install {package}")
    for group in GROUPS:
        if not any("diffusiongemma" in entry.value for entry in entry_points(group=group)):
            missing.append(f"no entry point in {group}: install the package again (pip install .)")
    if os.environ.get("VLLM_PLUGINS") == "":
        missing.append("VLLM_PLUGINS is empty, which turns every plugin off: unset it")
    if not missing:
        rows += _device()
    table = Table(show_header=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for line in missing:
        console.print(f"missing: {line}", style="bold red", soft_wrap=True)
    return 1 if missing else 0


def _device() -> list[tuple[str, str]]:
    """The platform and what each part of a step runs on."""
    import torch

    if not torch.cuda.is_available():
        return [
            ("device", f"CPU, {os.cpu_count()} cores (no CUDA device found)"),
            ("attention, sampler", "plain torch"),
            ("experts", "plain torch, BF16, FP32 and NVFP4 checkpoints"),
            ("vLLM's runner", "Triton's interpreter"),
        ]
    rows = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = properties.major, properties.minor
        gib = properties.total_memory / 2**30
        name = f"{properties.name}, {_architecture(capability)}, {gib:.0f} GiB"
        rows += [(f"device {index}", name), *_kernels(capability)]
    return [*rows, ("CUDA graphs", "whole canvases, FULL_DECODE_ONLY")]


def _kernels(capability: tuple[int, int]) -> list[tuple[str, str]]:
    """What each part of a step runs on, on a GPU."""
    from diffusiongemma_kernels.attention import hopper as attention
    from diffusiongemma_kernels.lm_head import hopper as lm_head
    from diffusiongemma_kernels.moe_gemm import hopper as experts
    from diffusiongemma_kernels.moe_gemm_fp4.op import multiplies_fp4

    if capability < OLDEST:
        return [("its kernels", f"none: {_architecture(OLDEST)} or newer is needed")]
    attend = nvfp4 = TRITON
    if attention.runs_on(capability):
        dims = " and ".join(map(str, attention.HEAD_DIMS))
        attend = f"{GLUON} for heads of {dims} in BF16, else {TRITON}"
    if experts.runs_on(capability):
        nvfp4 = GLUON
    elif multiplies_fp4(capability):
        nvfp4 = f"{TRITON}, as FP4 products where the checkpoint has input scales"
    return [
        ("attention", attend),
        ("experts in NVFP4", nvfp4),
        ("experts in BF16", TRITON),
        ("experts in other formats", "vLLM's kernels"),
        ("lm_head", f"{GLUON} in BF16, else {TRITON}" if lm_head.runs_on(capability) else TRITON),
        ("KV write, sampler", TRITON),
    ]


def _architecture(capability: tuple[int, int]) -> str:
    return f"sm_{capability[0]}{capability[1]}"
