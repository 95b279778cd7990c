"""Which plan `_hopper` runs by."""

from typing import NamedTuple

import torch
from torch import Tensor

from diffusiongemma_kernels.attention import _config
from diffusiongemma_kernels.attention._config import Config, Shape, Tile
from diffusiongemma_kernels.paged import FP8, PagedKV

HEAD_DIMS = (256, 512)
ROWS = 64  # of either group of a program that attends
KEYS = 64  # of a tile
WIDTH = 256  # columns of a piece, and of a program's values
UNIT = 128  # elements of the cache, of which every row's place is a multiple
FETCHING = 4  # warps, beside eight that attend
LAUNCH = 168  # registers a thread, before the warps divide them


class Plan(NamedTuple):
    stages: int  # of KEYS times WIDTH; with the queries they fill shared memory
    attending: int  # registers a thread
    fetching: int


PLANS = {  # by head_dim and whether the cache is fp8
    (256, False): Plan(4, 216, 72),
    (512, False): Plan(3, 224, 56),
    (256, True): Plan(4, 224, 56),
    (512, True): Plan(2, 216, 72),
}


def runs_on(capability: tuple[int, int]) -> bool:
    return capability[0] == 9


def runs(capability: tuple[int, int], q: Tensor, kv: PagedKV) -> bool:
    """Whether it does these.  No batch changes that: `batch_invariant` needs one kernel."""
    return (
        runs_on(capability)
        and q.dtype == torch.bfloat16
        and q.shape[2] in HEAD_DIMS
        and kv.key.stride() == kv.value.stride()
        and all(stride % UNIT == 0 for stride in kv.key.stride()[:3])
    )


def choose(
    shape: Shape, kv_dtype: torch.dtype, processors: int, batch_invariant: bool = False
) -> Config:
    """A program takes a whole processor.  Rows count as if tiles were full, as canvases' are."""
    stages = PLANS[shape.head_dim, kv_dtype == FP8].stages
    tile = Tile(2 * ROWS, KEYS, block_dv=WIDTH, warps=4, stages=stages)
    if batch_invariant:
        return Config(*tile, splits=1, min_tiles=1)
    row_tiles = -(-shape.tokens * shape.group // tile.block_m)
    min_tiles = 2
    return Config(*tile, _config.splits(shape, tile, row_tiles, processors, min_tiles), min_tiles)


def constants(head_dim: int, kv_dtype: torch.dtype) -> dict[str, int]:
    """What is compiled in beside `_config.constants`."""
    narrow = kv_dtype == FP8
    plan = PLANS[head_dim, narrow]
    return {
        "NARROW": narrow,
        "STAGES": plan.stages,
        "FETCHING": FETCHING,
        "ATTENDING_REGISTERS": plan.attending,
        "FETCHING_REGISTERS": plan.fetching,
    }
