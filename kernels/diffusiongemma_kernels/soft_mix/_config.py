"""What a row may leave out, and how its product is shared.  Nothing here depends on the batch."""

from typing import NamedTuple

from diffusiongemma_kernels.target import ByGpu

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


TABLE = ByGpu(
    hopper=Config(128, 256, 64, 6, 8, 3), blackwell=Config(128, 128, 64, 6, 8, 4),
    ampere=Config(128, 128, 32, 6, 8, 4), small=Config(128, 128, 32, 6, 8, 3),
)


def choose(capability: tuple[int, int]) -> Config:
    return TABLE.at(capability)
