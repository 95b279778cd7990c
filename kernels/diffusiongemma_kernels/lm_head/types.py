from typing import NamedTuple

from torch import Tensor

from diffusiongemma_kernels.row_stats.types import RowStats


class Reading(NamedTuple):
    """Rows of logits, and what is known of them."""

    logits: Tensor  # [R, V]
    tops: Tensor  # [R, ceil(V / strip)] f32, the highest logit of every `strip` tokens
    strip: int
    stats: RowStats
