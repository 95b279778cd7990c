from typing import NamedTuple

import torch
from torch import Tensor


class Guess(NamedTuple):
    """What the logits say of N canvases."""

    best: Tensor  # [N, C] i64
    sample: Tensor  # [N, C] i64
    entropy: Tensor  # [N, C] f32, nats

    def check(self) -> None:
        shape = self.best.shape
        for x, dtype in zip(self, (torch.int64, torch.int64, torch.float32), strict=True):
            assert x.shape == shape and x.dtype == dtype, f"{x.shape=} {x.dtype=} {shape=}"
            assert x.is_contiguous(), "guesses must be contiguous"


class Rules(NamedTuple):
    """When a canvas keeps a token, and when it ends: a number for each of S slots."""

    canvas_length: Tensor  # [S] i64
    last_step: Tensor  # [S] i64
    stability_steps: Tensor  # [S] i64
    entropy_bound: Tensor  # [S] f32
    confidence: Tensor  # [S] f32

    def check(self, S: int) -> None:
        for x, dtype in zip(self, [torch.int64] * 3 + [torch.float32] * 2, strict=True):
            assert x.shape == (S,) and x.dtype == dtype, f"{x.shape=} {x.dtype=}"
            assert x.is_contiguous(), "rules must be contiguous"


class Outcome(NamedTuple):
    text: Tensor  # [N, C] i32, the best guesses; 0 where nothing was denoised
    length: Tensor  # [N] i32, tokens of it that go out: 0 until a canvas settles
    rejected: Tensor  # [N] i32, rows that add nothing to what is computed
