"""(canvas length) -> launch shape."""

from typing import NamedTuple


class Config(NamedTuple):
    block: int  # positions of a canvas, padded to a power of two
    chunk: int  # positions that all are compared with at a time
    warps: int


def choose(canvas: int) -> Config:
    block = max(16, 1 << (canvas - 1).bit_length())
    return Config(block, 16, max(1, min(8, block // 64)))
