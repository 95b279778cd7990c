"""Where one tensor of a checkpoint is kept, or the part of it that this rank holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Place(NamedTuple):
    """tensor: to be filled; None where other ranks hold it.  cut: the part that goes there.

    shape and dtype: of the checkpoint's tensor, whole.
    """

    tensor: Tensor | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    cut: Callable[[Tensor], Tensor] = lambda whole: whole

    def fill(self, whole: Tensor) -> None:
        if self.tensor is not None:
            self.tensor.copy_(self.cut(whole))
