"""What one step tells the next: the mean embedding of every position's distribution."""

from __future__ import annotations

from torch import Tensor


def soft_embed(probs: Tensor, weight: Tensor, scale: float) -> Tensor:
    """probs @ weight * scale.   probs: [R, V]  weight: [V, H], both of one dtype  ->  [R, H]

    Source: transformers' ``DiffusionGemmaDecoderModel.forward``.
    """
    return (probs @ weight) * scale
