"""What a row may leave out, and how its product is shared.  Nothing here depends on the batch."""

from typing import NamedTuple

LEAST = 2.0**-20  # probability below which a token is always left out
DROPPED = 2.0**-9  # probability that a row may lose, all its tokens left out together
LIMIT = 1024  # tokens of a row; one that needs more takes the product over the whole vocabulary
LEVELS = 10  # LEAST * 4^i, of which the highest that loses no more than DROPPED is taken


class Config(NamedTuple):
    """The product over the whole vocabulary."""

    block_m: int  # rows of a program
    block_h: int  # columns
    block_k: int  # tokens a step
    splits: int  # programs that share the tokens
    warps: int
    stages: int


HOPPER = Config(128, 256, 64, 6, 8, 3)
BLACKWELL = Config(128, 128, 64, 6, 8, 4)
AMPERE = Config(128, 128, 32, 6, 8, 4)
SMALL = Config(128, 128, 32, 6, 8, 3)  # 99 KB of shared memory: sm_86, sm_89, sm_120


def choose(capability: tuple[int, int]) -> Config:
    if capability[0] == 9:
        return HOPPER
    if capability[0] == 10:
        return BLACKWELL
    return AMPERE if capability == (8, 0) else SMALL
