"""Triton kernels for DiffusionGemma, each beside a reference in plain torch; never imports vLLM."""

from diffusiongemma_kernels.attention.op import paged_attention
from diffusiongemma_kernels.kv_write.op import kv_write
from diffusiongemma_kernels.moe_gemm.op import moe
from diffusiongemma_kernels.moe_gemm.types import Dense, Nvfp4
from diffusiongemma_kernels.paged import Batch, PagedKV
from diffusiongemma_kernels.row_stats.op import hash_uniform_tokens, row_stats
from diffusiongemma_kernels.row_stats.types import RowStats

__all__ = [
    "Batch",
    "Dense",
    "Nvfp4",
    "PagedKV",
    "RowStats",
    "hash_uniform_tokens",
    "kv_write",
    "moe",
    "paged_attention",
    "row_stats",
]
