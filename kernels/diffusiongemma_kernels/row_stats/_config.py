"""(rows, vocabulary, GPU) -> how a row is shared."""

from typing import NamedTuple

TILE = 4096  # tokens a step of a program: four words of noise for 1,024 lanes
MAX_SPLITS = 64


class Config(NamedTuple):
    tiles: int  # tiles of one program
    splits: int  # programs of one row, a power of two
    warps: int


def choose(rows: int, vocab: int, processors: int) -> Config:
    """About eight programs a processor: its warps then hide each other's loads."""
    tiles = -(-vocab // TILE)
    splits = 1
    while splits < min(MAX_SPLITS, tiles) and splits * 2 * rows <= processors * 8:
        splits *= 2
    return Config(-(-tiles // splits), splits, 8)
