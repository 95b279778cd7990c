import triton
import triton.language as tl


@triton.jit
def place_expert(
    expert,
    ids_ptr,
    rows_ptr,
    tiles_ptr,
    n,
    TILES,
    E: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows and tiles of one expert.  Every program reads all ids: no program waits."""
    lane = tl.arange(0, BLOCK)
    before, equal = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    for begin in range(0, n, BLOCK):
        ids = tl.load(ids_ptr + begin + lane, mask=begin + lane < n, other=E)
        before += ((ids >= 0) & (ids < expert)).to(tl.int32)
        equal += (ids == expert).to(tl.int32)
    start, count = tl.sum(before), tl.sum(equal)

    first = start // TILE + expert  # no expert's tiles reach the next one's first
    end = tl.where(expert == E - 1, TILES, (start + count) // TILE + expert + 1)
    tile = tl.arange(0, 64)
    for begin in range(0, end - first, 64):
        i = begin + tile
        rows = tl.minimum(tl.maximum(count - i * TILE, 0), TILE)
        there = rows > 0
        ptrs = tiles_ptr + first + i
        tl.store(ptrs, tl.where(there, expert, 0), i < end - first)
        tl.store(ptrs + TILES, tl.where(there, start + i * TILE, 0), i < end - first)
        tl.store(ptrs + 2 * TILES, rows, i < end - first)

    if count == 0:
        return
    for begin in range(0, n, BLOCK):
        ids = tl.load(ids_ptr + begin + lane, mask=begin + lane < n, other=E)
        mine = (ids == expert).to(tl.int32)
        place = start + tl.cumsum(mine, 0) - 1
        tl.store(rows_ptr + place, begin + lane, mask=mine > 0)
        start += tl.sum(mine)


@triton.jit
def store_rows(
    block,
    x_ptr,
    stored_ptr,
    T,
    H,
    stride_x,
    stride_s,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    LANE: tl.constexpr,
):
    """Some rows of x with each 64 columns in stored order, zeros beyond H."""
    t = block * BLOCK_T + tl.arange(0, BLOCK_T)
    there = t[:, None] < T
    for begin in range(0, stride_s, BLOCK_H):
        h = begin + tl.arange(0, BLOCK_H)[None, :]
        x_ptrs = x_ptr + t[:, None].to(tl.int64) * stride_x + h
        x = tl.load(x_ptrs, mask=there & (h < H), other=0.0)
        # Place 4 LANE s + LANE q + i has column 16 q + LANE s + i.
        x = x.reshape(BLOCK_T, BLOCK_H // 64, 4, 16 // LANE, LANE).permute(0, 1, 3, 2, 4)
        stored_ptrs = stored_ptr + t[:, None].to(tl.int64) * stride_s + h
        tl.store(stored_ptrs, x.reshape(BLOCK_T, BLOCK_H), mask=there & (h < stride_s))


@triton.jit(do_not_specialize=["T", "TILES"])  # one compilation for every batch
def sort(
    x_ptr,  # [T, H]
    ids_ptr,  # [T * K] i32, numbers outside 0 .. E - 1 belong to nobody
    rows_ptr,  # [T * K] i32
    tiles_ptr,  # [3, TILES] i32
    stored_ptr,  # [T, stride_s]
    T,
    TILES,
    H,
    stride_x,
    stride_s,
    K: tl.constexpr,
    E: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    LANE: tl.constexpr,
):
    program = tl.program_id(0)
    if program < E:
        place_expert(program, ids_ptr, rows_ptr, tiles_ptr, T * K, TILES, E, TILE, BLOCK)
    elif LANE > 0:
        store_rows(program - E, x_ptr, stored_ptr, T, H, stride_x, stride_s, BLOCK_T, BLOCK_H, LANE)
