"""(rows an expert, GPU) -> tiles of the GEMMs whose both operands are NVFP4."""

from typing import NamedTuple


class Config(NamedTuple):
    block_n: int  # rows of activations a program
    block_m: int  # rows of weights a program: 128, what tcgen05 multiplies at once
    block_k: int  # columns a step: a multiple of 64
    warps: int
    stages: int

    @property
    def quantised(self) -> int:
        """Columns of activations that a program quantises, a share of 8,192 numbers."""
        return 8192 // self.block_n


class Table(NamedTuple):
    """Up to `most` rows an expert on average."""

    most: float
    config: Config


# A thread loads at least four bytes of scales: copies of fewer would not be asynchronous.
DATACENTER = (  # sm_100: accumulators in tensor memory
    Table(48, Config(64, 128, 256, 4, 3)),
    Table(float("inf"), Config(128, 128, 256, 8, 3)),
)
CONSUMER = (  # sm_120: accumulators in registers, 99 KB of shared memory
    Table(24, Config(32, 128, 256, 4, 3)),
    Table(float("inf"), Config(64, 128, 256, 8, 3)),
)


def table(capability: tuple[int, int]) -> tuple[Table, ...]:
    """Raises ValueError where no tensor core multiplies FP4."""
    if capability[0] == 10:
        return DATACENTER
    if capability[0] == 12:
        return CONSUMER
    raise ValueError(f"FP4 products need sm_100 or sm_120, not sm_{capability[0]}{capability[1]}")


def choose(rows: float, capability: tuple[int, int], batch_invariant: bool = False) -> Config:
    """`rows` is T * K / E.  A batch-invariant choice depends on nothing that a batch changes."""
    choices = table(capability)
    if batch_invariant:
        return choices[0].config
    return next(row.config for row in choices if rows <= row.most)


def alignment(columns: int) -> int:
    """The bytes, at most 16, of which a row of scales is a multiple."""
    scales = columns // 16
    return min(16, scales & -scales)
