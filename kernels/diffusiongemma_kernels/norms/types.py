from typing import NamedTuple

from torch import Tensor


class Entry(NamedTuple):
    """Weights [H] of the norms between attention and the two halves of the feed-forward part."""

    post_attention: Tensor
    mlp: Tensor
    experts: Tensor
    router: Tensor


class Exit(NamedTuple):
    """Weights [H] of the norms behind them, and of the one that reads the layer's output."""

    mlp: Tensor
    experts: Tensor
    both: Tensor
    following: Tensor
