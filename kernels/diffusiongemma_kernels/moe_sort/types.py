from typing import NamedTuple

from torch import Tensor


class Sorted(NamedTuple):
    """The T * K chosen (token, slot) pairs by expert, in tiles that one program multiplies."""

    rows: Tensor  # [T * K] i32, token * K + slot; an expert's rows keep their order
    tiles: Tensor  # [3, tiles] i32: expert, first place in rows, number of rows; then zeros
    total: Tensor  # [1] i32: how many tiles there are, unwritten where T * K is 0
    progress: Tensor  # [1 + tiles] i32, zeros: for programs that draw tiles, and tell what is done
