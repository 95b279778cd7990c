import triton
import triton.language as tl

WIDTH = tl.constexpr(32)  # tiles as full as each other, of tokens


@triton.jit
def store_tiles(ptrs, TILES, expert, start, count, mask):
    tl.store(ptrs, expert, mask)
    tl.store(ptrs + TILES, start, mask)
    tl.store(ptrs + 2 * TILES, count, mask)


@triton.jit
def list_tiles(
    ids_ptr,
    tiles_ptr,
    total_ptr,
    n,
    TILES,
    E: tl.constexpr,
    TILE: tl.constexpr,
    FULLEST_FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """The tiles, by expert or the fullest first, then zeros."""
    lane = tl.arange(0, BLOCK)
    count = tl.zeros([BLOCK_E], tl.int32)
    for begin in range(0, n, BLOCK):
        ids = tl.load(ids_ptr + begin + lane, mask=begin + lane < n, other=-1)
        there = (ids >= 0) & (ids < E)
        count += tl.histogram(tl.where(there, ids, 0), BLOCK_E, mask=there)
    expert = tl.arange(0, BLOCK_E)
    start = tl.cumsum(count, 0) - count
    whole = count // TILE
    rest = count % TILE
    total = 0
    if FULLEST_FIRST:
        for i in range(0, tl.max(whole)):
            mine = whole > i
            place = total + tl.cumsum(mine.to(tl.int32), 0) - 1
            store_tiles(tiles_ptr + place, TILES, expert, start + i * TILE, TILE, mine)
            total += tl.sum(mine.to(tl.int32))
        for part in tl.static_range((TILE - 1) // WIDTH, -1, -1):
            mine = (rest > part * WIDTH) & (rest <= (part + 1) * WIDTH)
            place = total + tl.cumsum(mine.to(tl.int32), 0) - 1
            store_tiles(tiles_ptr + place, TILES, expert, start + whole * TILE, rest, mine)
            total += tl.sum(mine.to(tl.int32))
    else:
        tiles = whole + (rest > 0).to(tl.int32)
        place = tl.cumsum(tiles, 0) - tiles
        for i in range(0, tl.max(tiles)):
            size = tl.minimum(count - i * TILE, TILE)
            ptrs = tiles_ptr + place + i
            store_tiles(ptrs, TILES, expert, start + i * TILE, size, tiles > i)
        total = tl.sum(tiles)
    tl.store(total_ptr, total)
    for begin in range(0, 1 + TILES, BLOCK_E):
        tl.store(total_ptr + 1 + begin + expert, 0, mask=begin + expert < 1 + TILES)
    for begin in range(total, TILES, BLOCK_E):
        ptrs = tiles_ptr + begin + expert
        store_tiles(ptrs, TILES, 0, 0, 0, begin + expert < TILES)


@triton.jit
def place_expert(expert, ids_ptr, rows_ptr, n, E: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of one expert.  Every program reads all ids: no program waits."""
    lane = tl.arange(0, BLOCK)
    before, equal = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    for begin in range(0, n, BLOCK):
        ids = tl.load(ids_ptr + begin + lane, mask=begin + lane < n, other=E)
        before += ((ids >= 0) & (ids < expert)).to(tl.int32)
        equal += (ids == expert).to(tl.int32)
    start, count = tl.sum(before), tl.sum(equal)
    if count == 0:
        return
    for begin in range(0, n, BLOCK):
        ids = tl.load(ids_ptr + begin + lane, mask=begin + lane < n, other=E)
        mine = (ids == expert).to(tl.int32)
        place = start + tl.cumsum(mine, 0) - 1
        tl.store(rows_ptr + place, begin + lane, mask=mine > 0)
        start += tl.sum(mine)


@triton.jit(do_not_specialize=["T", "TILES"])  # one compilation for every batch
def sort(
    ids_ptr,  # [T * K] i32, numbers outside 0 .. E - 1 belong to nobody
    rows_ptr,  # [T * K] i32
    tiles_ptr,  # [3, TILES] i32
    total_ptr,  # [2 + TILES] i32: how many tiles, then zeros
    T,
    TILES,
    K: tl.constexpr,
    E: tl.constexpr,
    TILE: tl.constexpr,
    FULLEST_FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    program = tl.program_id(0)
    if program == 0:
        list_tiles(
            ids_ptr, tiles_ptr, total_ptr, T * K, TILES, E, TILE, FULLEST_FIRST, BLOCK, BLOCK_E
        )  # fmt: skip
    else:
        place_expert(program - 1, ids_ptr, rows_ptr, T * K, E, BLOCK)
