from typing import NamedTuple

from torch import Tensor


class Part(NamedTuple):
    """What rows of one of several parts of a vocabulary have to know of the others."""

    logsumexp: Tensor  # [R] f32, of the whole vocabulary
    parts: int
