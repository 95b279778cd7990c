from typing import NamedTuple

from torch import Tensor


class Nvfp4(NamedTuple):
    """One GEMM's expert weights in the order in which the kernel reads them; see `pack`."""

    codes: Tensor  # [E, rows / 128, columns / 64, 8, 32, 8] i16, four e2m1 numbers each
    scales: Tensor  # [E, rows / 128, columns / 64, 4, 32, 2, 2] u8, five exponent bits, three more
    global_scale: Tensor  # [E] f32
    rows: int  # before padding: 2 F or H
    columns: int  # before padding: H or F


class Dense(NamedTuple):
    """One GEMM's expert weights as a checkpoint has them."""

    weight: Tensor  # [E, 2 F, H], gate rows first, or [E, H, F]

    @property
    def rows(self) -> int:
        return self.weight.shape[1]

    @property
    def columns(self) -> int:
        return self.weight.shape[2]


class Arranged(NamedTuple):
    """Activations for NVFP4 weights, from `norms.enter`."""

    x: Tensor  # [T, H], each 64 columns in the order `order.ORDERS[lane]`
    lane: int


class Unsummed(NamedTuple):
    """What each of a row's experts gives; those of ids 0 .. experts - 1 make up its sum."""

    slots: Tensor  # [T * K, H], weighted, unwritten for other ids
    ids: Tensor  # [T, K] i32
    experts: int


Experts = Nvfp4 | Dense
