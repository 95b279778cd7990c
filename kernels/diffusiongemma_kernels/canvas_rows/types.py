from typing import NamedTuple

import torch
from torch import Tensor


class Heat(NamedTuple):
    """How hot the canvases of S slots are: from t_max at the first step in a line towards t_min."""

    t_min: Tensor  # [S] f64
    t_max: Tensor  # [S] f64
    max_steps: Tensor  # [S] i64
    temperature: Tensor  # [S] f32, by which the line is multiplied

    def check(self, S: int) -> None:
        kinds = (torch.float64, torch.float64, torch.int64, torch.float32)
        for x, dtype in zip(self, kinds, strict=True):
            assert x.shape == (S,) and x.dtype == dtype, f"{x.shape=} {x.dtype=}"
            assert x.is_contiguous(), "heats must be contiguous"


class Draws(NamedTuple):
    """How each row of canvases is drawn from its logits."""

    temperature: Tensor  # [R] f32
    seed: Tensor  # [R] i64
    counter: Tensor  # [R] i64
