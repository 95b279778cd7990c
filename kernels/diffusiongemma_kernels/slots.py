"""What the canvas ops are handed: the state of every request slot, and the requests of one step."""

from typing import NamedTuple

import torch
from torch import Tensor

PREFILL, DENOISE = 0, 1  # phases of a slot


class Slots(NamedTuple):
    """S slots.  `text` holds `pending` tokens that no forward has computed; `tokens` is the canvas
    behind them.
    """

    phase: Tensor  # [S] i32
    text: Tensor  # [S, C] i64
    pending: Tensor  # [S] i64
    tokens: Tensor  # [S, C] i64
    best: Tensor  # [S, C] i64, the last argmax, -1 before any
    base: Tensor  # [S] i64, position of the first canvas token
    width: Tensor  # [S] i64, canvas tokens that exist
    step: Tensor  # [S] i64, denoise steps done
    held: Tensor  # [S] i64, steps in a row that kept `best`
    roll: Tensor  # [S] i64, how often the canvas was drawn again
    seed: Tensor  # [S] i64

    def check(self) -> None:
        S, C = self.tokens.shape
        assert self.phase.shape == (S,) and self.phase.dtype == torch.int32, f"{self.phase.shape=}"
        for name, x in zip(self._fields[1:], self[1:], strict=True):
            shape = (S, C) if name in ("text", "tokens", "best") else (S,)
            assert x.shape == shape and x.dtype == torch.int64, f"{name}: {x.shape=} {x.dtype=}"
            assert x.is_contiguous(), f"{name} must be contiguous"


class Rows(NamedTuple):
    """The rows of N requests in one step."""

    slots: Tensor  # [N] i64
    starts: Tensor  # [N + 1] i32, first row of each request
    ends: Tensor  # [N] i32, position behind its last row

    def check(self) -> None:
        N = self.slots.shape[0]
        assert self.slots.dtype == torch.int64, f"{self.slots.dtype=}"
        assert self.starts.shape == (N + 1,) and self.starts.dtype == torch.int32, (
            f"{self.starts.shape=} {self.starts.dtype=}"
        )
        assert self.ends.shape == (N,) and self.ends.dtype == torch.int32, f"{self.ends.shape=}"
        for x in self:
            assert x.is_contiguous(), "the requests' numbers must be contiguous"
