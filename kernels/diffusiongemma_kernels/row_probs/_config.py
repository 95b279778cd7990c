"""vocabulary -> how a row is shared."""

from typing import NamedTuple


class Config(NamedTuple):
    block: int  # tokens of one program
    warps: int


def choose(vocab: int) -> Config:
    """16 KB of bf16 logits a program keeps enough loads in flight on every GPU."""
    return Config(8192, 8) if vocab >= 8192 else Config(1024, 4)
