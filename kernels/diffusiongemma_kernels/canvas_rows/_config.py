"""(row width) -> launch shape."""

from typing import NamedTuple

REQUESTS = 128  # of one program


class Config(NamedTuple):
    block: int  # elements of one row, padded to a power of two
    warps: int


def choose(hidden: int) -> Config:
    block = 1 << (hidden - 1).bit_length()
    return Config(block, max(1, min(8, block // 512)))
