"""From hidden states to what a step needs of every row: its statistics and its mean embedding."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffusiongemma_kernels.lm_head.op import lm_head
from diffusiongemma_kernels.row_probs.op import row_probs
from diffusiongemma_kernels.row_stats.op import row_stats
from diffusiongemma_kernels.row_stats.types import RowStats
from diffusiongemma_kernels.soft_mix.op import soft_mix
from diffusiongemma_vllm.denoise.soft_embed import soft_embed
from diffusiongemma_vllm.model.rowwise import rowwise


def fuses(weight: Tensor) -> bool:
    """Whether the kernels read ``weight`` [V, H]: on a GPU, and of two bytes a number."""
    return weight.is_cuda and weight.element_size() == 2


def believe(
    model: Any, hidden: Tensor, logits: Tensor | None, temperature: Tensor, seed: Tensor,
    counter: Tensor, softcap: float | None,
) -> tuple[RowStats, Tensor]:
    """hidden: [R, H]  temperature: [R] f32  seed, counter: [R] i64  ->  statistics, [R, H]

    logits: [R, V] that a request has bent; None for those that ``hidden`` has.
    """
    weight, scale = model.embedding, model.model.embed_scale
    if logits is None and fuses(weight):
        reading = lm_head(hidden, weight, temperature, seed, counter, softcap=softcap)
        return reading.stats, soft_mix(reading, temperature, weight, softcap=softcap, scale=scale)
    if logits is None:
        logits = model.project(hidden)
    stats = row_stats(logits, temperature, seed, counter, softcap=softcap)
    probs = row_probs(logits, temperature, stats.logsumexp, softcap=softcap, dtype=weight.dtype)
    return stats, rowwise(lambda p: soft_embed(p, weight, scale), probs)
