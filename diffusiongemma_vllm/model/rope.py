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
    """Angles of every layer kind at once, as a step has few rows and many launches.

    kinds: name -> ``rope_parameters`` and width D of a head.
    """

    frequencies: Tensor

    def __init__(self, kinds: dict[str, tuple[dict[str, Any], int]]) -> None:
        super().__init__()
        halves = {kind: inverse_frequencies(*of) for kind, of in kinds.items()}
        self.widths = {kind: len(half) for kind, half in halves.items()}
        self.register_buffer("frequencies", torch.cat([*halves.values()]), persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """positions: [T] i64  ->  of each kind [T, 2, D / 2]: cosines, then sines"""
        angles = positions[:, None] * self.frequencies
        both = angles.new_empty(len(angles), 2, angles.shape[1], dtype=dtype)
        torch.cos(angles, out=both[:, 0])  # computed in f32 and rounded, in one launch
        torch.sin(angles, out=both[:, 1])
        return dict(zip(self.widths, both.split([*self.widths.values()], dim=2), strict=True))
