"""GPU -> tiles.  The same for any number of rows, so that a row's bits do not depend on it."""

from typing import NamedTuple

GROUP, CALLS = 4096, 1024  # tokens that share calls of Philox, and the calls


class Config(NamedTuple):
    block_r: int  # rows of a program
    strip: int  # a quarter of its tokens
    block_k: int
    warps: int
    stages: int


HOPPER = Config(128, 64, 64, 8, 4)
BLACKWELL = Config(128, 32, 64, 4, 4)
AMPERE = Config(128, 32, 32, 8, 4)
SMALL = Config(128, 32, 32, 8, 3)  # 99 KB of shared memory: sm_86, sm_89, sm_120


def choose(capability: tuple[int, int]) -> Config:
    if capability[0] == 9:
        return HOPPER
    if capability[0] == 10:
        return BLACKWELL
    return AMPERE if capability == (8, 0) else SMALL


def tiles(vocab: int, strip: int) -> int:
    """Tiles that have a token: those of a group of GROUP tokens go on by strips."""
    left = min(vocab % GROUP, CALLS)
    return vocab // GROUP * (CALLS // strip) + -(-left // strip)
