"""Finds canvases whose numbers are none any more."""

from __future__ import annotations

import torch
from torch import Tensor


def health(hidden: Tensor) -> Tensor:
    """0 for a canvas that is well, NaN for one that has NaN or Inf in it.

    Logits are products of these rows, which the last norm has bounded, and finite weights: where
    the rows are numbers, the logits are.  [N, C, H]  ->  [N] f32
    """
    return hidden.flatten(1).sum(1, dtype=torch.float32) * 0.0
