"""Which plan `_hopper` runs by."""

from typing import NamedTuple

import torch
from torch import Tensor

from diffusiongemma_kernels.attention import _config
from diffusiongemma_kernels.attention._config import Config, Shape, Tile
from diffusiongemma_kernels.paged import Batch, PagedKV

# Eight warps attend and four fetch; the stages, of 64 keys times 128 columns, fill shared memory.
TILES = {256: Tile(128, 64, 256, 12, 8), 512: Tile(128, 64, 256, 12, 6)}
FETCHING = 4
LAUNCH = 168  # registers a thread, before the warps divide them


class Registers(NamedTuple):
    attending: int
    fetching: int


REGISTERS = {False: Registers(224, 56), True: Registers(216, 72)}  # by whether the cache is fp8


def runs(capability: tuple[int, int], q: Tensor, kv: PagedKV, batch: Batch) -> bool:
    """Whether it does these; rows that show images it does not."""
    return (
        capability[0] == 9
        and q.dtype == torch.bfloat16
        and q.shape[2] in TILES
        and batch.images is None
        and kv.key.stride() == kv.value.stride()
    )


def choose(shape: Shape, processors: int, batch_invariant: bool = False) -> Config:
    """A program takes a whole processor.  Rows count as if tiles were full, as canvases' are."""
    tile = TILES[shape.head_dim]
    if batch_invariant:
        return Config(*tile, splits=1, min_tiles=1)
    row_tiles = -(-shape.tokens * shape.group // tile.block_m)
    min_tiles = 2
    return Config(*tile, _config.splits(shape, tile, row_tiles, processors, min_tiles), min_tiles)


def constants(shape: Shape, config: Config, narrow: bool) -> dict[str, int]:
    """What is compiled in, beside what the cache and the step look like."""
    return {
        "HQ": shape.kv_heads * shape.group,
        "GROUP": shape.group,
        "D": shape.head_dim,
        "DV": config.block_dv,
        "SPLIT": config.splits > 1,
        "MIN_TILES": config.min_tiles,
        "NARROW": narrow,
        "STAGES": config.stages,
        "FETCHING": FETCHING,
        "ATTENDING_REGISTERS": REGISTERS[narrow].attending,
        "FETCHING_REGISTERS": REGISTERS[narrow].fetching,
    }
