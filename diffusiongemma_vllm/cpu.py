"""Serving on vLLM's CPU build, whose V2 model runner is written in Triton.

Triton has no CPU backend, but its interpreter runs on CPU tensors.  vLLM decides at import whether
Triton works, so the interpreter has to be turned on, and a CPU backend presented, before vLLM looks.
Only processes that serve DiffusionGemma do so.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

SWITCH = "DIFFUSIONGEMMA_VLLM_INTERPRETER"


def prepare() -> None:
    """In a process started by one that serves DiffusionGemma on CPU: turn the interpreter on."""
    if os.environ.get(SWITCH) == "1":
        _interpret()


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
        raise RuntimeError("serving on CPU needs Triton's interpreter: pip install triton") from error
    if "cpu" not in backends.backends:
        backends.backends["cpu"] = SimpleNamespace(compiler=None, driver=_CpuDriver)


class _CpuDriver:
    """What vLLM asks of a driver when it looks for one; the interpreter needs none."""

    @staticmethod
    def is_active() -> bool:
        return True


def _show_triton() -> None:
    """Give vLLM the real Triton where it has already settled on a placeholder."""
    utils: Any = sys.modules.get("vllm.triton_utils")
    if utils is None or utils.HAS_TRITON:
        return
    import triton
    import triton.language as tl

    for module in (utils, sys.modules["vllm.triton_utils.importing"]):
        module.HAS_TRITON = True
    utils.triton, utils.tl = triton, tl
