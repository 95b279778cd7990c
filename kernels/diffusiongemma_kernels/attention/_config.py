"""(shape, GPU) -> tile sizes.  A reviewed table: nothing is tuned while serving."""

from typing import NamedTuple


class Shape(NamedTuple):
    tokens: int  # T, padded
    requests: int  # N, padded
    kv_heads: int
    group: int  # query heads per KV head
    head_dim: int  # D
    element: int  # bytes of one query element
    keys: int  # most keys that one row tile can see


class Config(NamedTuple):
    block_m: int  # rows of a tile: (query, head of the group) pairs
    block_n: int  # keys of a tile
    block_dv: int  # value columns of a program; D // block_dv programs repeat the logits
    warps: int
    stages: int
    splits: int  # programs that share one row tile's keys, a power of two
    min_tiles: int  # key tiles below which a split is not worth it


LARGEST = 227 * 1024  # bytes of shared memory of sm_90 and sm_100
HEAD_DIMS = (32, 64, 128, 256, 512)
MAX_SPLITS = 16


class Tile(NamedTuple):
    block_m: int
    block_n: int
    block_dv: int
    warps: int
    stages: int


# Shared memory needs about (block_m * D + stages * block_n * (D + block_dv)) elements.
BIG = {  # 227 KB: sm_90
    32: Tile(128, 64, 32, 4, 3),
    64: Tile(128, 64, 64, 4, 3),
    128: Tile(128, 64, 128, 8, 2),
    256: Tile(64, 32, 256, 4, 2),
    512: Tile(64, 32, 256, 4, 2),
}
BLACKWELL = BIG | {512: Tile(64, 32, 256, 8, 2)}  # sm_100: four warps spill there
MEDIUM = {  # 163 KB: sm_80
    32: Tile(64, 64, 32, 4, 2),
    64: Tile(64, 64, 64, 4, 2),
    128: Tile(64, 32, 128, 4, 2),
    256: Tile(64, 32, 256, 8, 2),
    512: Tile(32, 32, 256, 4, 2),
}
SMALL = {  # 99 KB: sm_86, sm_89, sm_120
    32: Tile(64, 64, 32, 4, 2),
    64: Tile(64, 64, 64, 4, 2),
    128: Tile(64, 32, 128, 4, 2),
    256: Tile(64, 32, 256, 8, 1),
    512: Tile(32, 32, 256, 4, 1),
}
# f32 has no tensor cores at full precision: small tiles, no pipeline.
PLAIN = {
    32: Tile(32, 32, 32, 4, 1),
    64: Tile(32, 32, 64, 4, 1),
    128: Tile(16, 32, 128, 4, 1),
    256: Tile(16, 16, 256, 4, 1),
    512: Tile(16, 16, 256, 4, 1),
}


def tile(head_dim: int, element: int, capability: tuple[int, int]) -> Tile:
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"head_dim must be one of {HEAD_DIMS}, got {head_dim}")
    if element == 4:
        return PLAIN[head_dim]
    if capability[0] == 9:
        return BIG[head_dim]
    if capability[0] == 10:
        return BLACKWELL[head_dim]
    if capability == (8, 0):
        return MEDIUM[head_dim]
    if capability[0] >= 8:
        return SMALL[head_dim]
    raise ValueError(f"attention needs compute capability 8.0 or newer, got {capability}")


def row_tiles(tokens: int, requests: int, group: int, block_m: int) -> int:
    """An upper bound on the row tiles of any batch of this padded size."""
    return tokens * group // block_m + requests


def together(chosen: Tile, head_dim: int, element: int, capability: tuple[int, int]) -> int:
    """Programs that a processor runs at once, one or two, by their shared memory."""
    columns = chosen.block_m * head_dim + chosen.stages * chosen.block_n * (
        head_dim + chosen.block_dv
    )
    return 2 if capability[0] in (9, 10) and 2 * columns * element <= LARGEST else 1


def splits(shape: Shape, chosen: Tile, tiles: int, room: int, min_tiles: int) -> int:
    """Up to 5/4 programs a place, as long as each keeps `min_tiles` key tiles.

    tiles: of rows.  room: programs that run at once.
    """
    programs = tiles * shape.kv_heads * (shape.head_dim // chosen.block_dv)
    most = min(MAX_SPLITS, shape.keys // (chosen.block_n * min_tiles))
    count = 1
    while count * 2 <= most and programs * count * 2 * 4 <= room * 5:
        count *= 2
    return count


def choose(
    shape: Shape, capability: tuple[int, int], processors: int, batch_invariant: bool = False
) -> Config:
    """A batch-invariant choice depends on nothing that a batch changes: one program a row tile."""
    chosen = tile(shape.head_dim, shape.element, capability)
    if batch_invariant:
        return Config(*chosen, splits=1, min_tiles=1)
    min_tiles = 4
    room = processors * together(chosen, shape.head_dim, shape.element, capability)
    tiles = row_tiles(shape.tokens, shape.requests, shape.group, chosen.block_m)
    return Config(*chosen, splits(shape, chosen, tiles, room, min_tiles), min_tiles)


def constants(shape: Shape, config: Config) -> dict[str, int]:
    """What both kernels have compiled in of these."""
    return {
        "HQ": shape.kv_heads * shape.group,
        "GROUP": shape.group,
        "D": shape.head_dim,
        "SPLIT": config.splits > 1,
        "MIN_TILES": config.min_tiles,
    }
