from typing import NamedTuple

from torch import Tensor


class Fp4(NamedTuple):
    """One GEMM's expert weights as a checkpoint has them, and its activations' scale."""

    codes: Tensor  # [E, R, C / 2] u8, low nibble first
    scales: Tensor  # [E, R, C / 16] e4m3
    global_scale: Tensor  # [E] f32
    input_scale: Tensor  # [E] f32


class Rows(NamedTuple):
    """Quantised activations by expert."""

    codes: Tensor  # [T * K, C / 2] u8
    scales: Tensor  # [T * K, C / 16] u8, the bits of e4m3
