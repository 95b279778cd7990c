"""Which sampled tokens a step keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EntropyBound:
    """Keep the surest positions while the entropy of all but the last of them stays in a bound.

    Sorted by entropy, the k surest are kept with ``sum_i H_i - max_i H_i <= bound`` (nats), which
    bounds what the kept tokens could tell about each other.  The bound is a number, or one of every
    canvas: [N, 1].
    Source: arXiv 2505.24857; transformers' ``EntropyBoundSampler.accept_canvas``.
    """

    bound: float | Tensor

    def __call__(self, entropy: Tensor) -> Tensor:
        """entropy: [N, C] f32, +inf at positions that do not exist  ->  [N, C] bool"""
        ordered, order = torch.sort(entropy, dim=-1)
        keep = torch.cumsum(ordered, dim=-1) - ordered <= self.bound
        return torch.zeros_like(keep).scatter(-1, order, keep)
