"""(rows an expert, weights, GPU) -> Triton's tiles.  NVFP4 on Hopper goes by `hopper`."""

from typing import NamedTuple

LANE = 8  # columns that a lane reads together, see `order`


class Schedule(NamedTuple):
    block_k: int  # columns of weights a step: 64 or 128
    warps: int
    stages: int


class Config(NamedTuple):
    block_n: int  # rows of activations a program
    tail_n: int  # the same for an expert's last rows, if that few
    gate_up: Schedule
    down: Schedule


class Table(NamedTuple):
    """Up to `most` rows an expert on average."""

    most: float
    config: Config


DENSE = (
    Table(24, Config(32, 32, Schedule(64, 4, 4), Schedule(64, 4, 4))),
    Table(48, Config(64, 32, Schedule(64, 4, 4), Schedule(64, 4, 4))),
    Table(float("inf"), Config(128, 32, Schedule(64, 8, 3), Schedule(64, 8, 3))),
)
SMALL = Schedule(64, 4, 3)
OLDER = (
    Table(24, Config(32, 32, SMALL, SMALL)),
    # With 3 stages `down` keeps 8 bytes of stack on sm_80.
    Table(float("inf"), Config(64, 32, SMALL, Schedule(64, 4, 2))),
)


def table(nvfp4: bool, capability: tuple[int, int]) -> tuple[Table, ...]:
    return DENSE if capability[0] == 9 and not nvfp4 else OLDER


def shipped(nvfp4: bool, capability: tuple[int, int]) -> list[Config]:
    return [row.config for row in table(nvfp4, capability)]


def choose(
    rows: float, nvfp4: bool, capability: tuple[int, int], batch_invariant: bool = False
) -> Config:
    """`rows` is T * K / E.  A batch-invariant choice depends on nothing that a batch changes."""
    choices = table(nvfp4, capability)
    if batch_invariant:
        config = next(row.config for row in choices if row.config.block_n == 32)
        return config._replace(tail_n=config.block_n)
    return next(row.config for row in choices if rows <= row.most)


def fit(schedule: Schedule, columns: int) -> Schedule:
    """A step never passes the end of the padded columns."""
    return schedule if columns % schedule.block_k == 0 else schedule._replace(block_k=64)
