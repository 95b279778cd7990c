"""GPU -> tiles.  The same for any number of rows, so that a row's bits do not depend on it."""

from typing import NamedTuple

from diffusiongemma_kernels.target import ByGpu

GROUP, CALLS = 4096, 1024  # tokens that share calls of Philox, and the calls


class Config(NamedTuple):
    block_r: int  # rows of a program
    strip: int  # a quarter of its tokens
    block_k: int
    warps: int
    stages: int


TABLE = ByGpu(
    hopper=Config(128, 64, 64, 8, 4), blackwell=Config(128, 32, 64, 4, 4),
    ampere=Config(128, 32, 32, 8, 4), small=Config(128, 32, 32, 8, 3),
)


def choose(capability: tuple[int, int]) -> Config:
    return TABLE.at(capability)


def tiles(vocab: int, strip: int) -> int:
    """Tiles that have a token: those of a group of GROUP tokens go on by strips."""
    left = min(vocab % GROUP, CALLS)
    return vocab // GROUP * (CALLS // strip) + -(-left // strip)
