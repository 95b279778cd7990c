"""The miniature in an engine of this process: BF16 with CUDA graphs on a GPU, elsewhere FP32."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from data import CHECKPOINT

if TYPE_CHECKING:
    from vllm import LLM


def start(**settings: Any) -> LLM:
    """settings: of ``vllm.LLM``, in place of those here."""
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # or ranks could not be forked after a look
    import torch

    gpu = torch.cuda.is_available()
    if not gpu:  # before vLLM looks for Triton
        os.environ.setdefault("DIFFUSIONGEMMA_VLLM_INTERPRETER", "1")
    from vllm import LLM

    own: dict[str, Any] = dict(
        model=str(CHECKPOINT), trust_remote_code=True, dtype="bfloat16" if gpu else "float32",
        attention_backend="TRITON_ATTN",
    )  # fmt: skip
    if gpu:
        own["gpu_memory_utilization"] = 0.5
    return LLM(**own | settings)
