from typing import NamedTuple

from torch import Tensor

STRIP = 64  # tokens whose highest logit is told


class RowStats(NamedTuple):
    """What the sampler needs of each row; nothing here is as wide as the vocabulary."""

    argmax: Tensor  # [R] i64, the lowest index on ties
    sample: Tensor  # [R] i64
    entropy: Tensor  # [R] f32, nats
    max: Tensor  # [R] f32, of y
    logsumexp: Tensor  # [R] f32, of y
    score: Tensor  # [R] f32, of the sample: y and its noise; max where temperature is 0
