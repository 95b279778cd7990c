"""Rotary positions of the two layer kinds, computed for the rows at hand.

Angles are computed from the positions of a step, once for all layers: a table of 262,144 positions
would cost 400 MB.  Source: transformers' ``DiffusionGemmaTextRotaryEmbedding``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def inverse_frequencies(rope: dict[str, Any], head_dim: int) -> Tensor:
    """[head_dim / 2] f32; "proportional" turns the first share of the pairs, the rest stand still.

    Raises:
        ValueError: for a rope type that the architecture does not have.
    """
    kind, theta = rope["rope_type"], rope["rope_theta"]
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (theta**exponents)
    if kind == "default":
        return frequencies
    if kind != "proportional":
        raise ValueError(f"rope_type must be 'default' or 'proportional', config.json has {kind!r}")
    turning = int(rope.get("partial_rotary_factor", 1.0) * head_dim // 2)
    frequencies[turning:] = 0.0
    return frequencies


class Rope(nn.Module):
    """Angles for one layer kind.   positions: [T] i64  ->  [T, D]: cosines, then sines"""

    frequencies: Tensor

    def __init__(self, rope: dict[str, Any], head_dim: int) -> None:
        super().__init__()
        frequencies = inverse_frequencies(rope, head_dim)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        angles = positions.float()[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)
