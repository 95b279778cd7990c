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
    BINS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows and tiles of one expert.  Every program counts all experts: no program waits."""
    lane = tl.arange(0, BLOCK)
    counts = tl.zeros([BINS], tl.int32)
    for begin in range(0, n, BLOCK):
        ids = tl.load(ids_ptr + begin + lane, mask=begin + lane < n, other=E)
        ids = tl.where((ids >= 0) & (ids < E), ids, E)
        counts += tl.histogram(ids, BINS)
    bins = tl.arange(0, BINS)
    tiles = tl.where(bins < E, tl.cdiv(counts, TILE), 0)  # [BINS]
    count = tl.sum(tl.where(bins == expert, counts, 0))
    start = tl.sum(tl.where(bins < expert, counts, 0))
    first = tl.sum(tl.where(bins < expert, tiles, 0))

    if expert == 0:  # the table's unused end
        used = tl.sum(tiles)
        for begin in range(used, TILES, BINS):
            at = begin + bins
            for plane in tl.static_range(3):
                tl.store(tiles_ptr + plane * TILES + at, tl.zeros([BINS], tl.int32), at < TILES)
    for begin in range(0, tl.cdiv(count, TILE), BINS):
        i = begin + bins
        mine = i < tl.cdiv(count, TILE)
        at = tiles_ptr + first + i
        tl.store(at, tl.zeros([BINS], tl.int32) + expert, mine)
        tl.store(at + TILES, start + i * TILE, mine)
        tl.store(at + 2 * TILES, tl.minimum(count - i * TILE, TILE), mine)

    for begin in range(0, n, BLOCK):
        ids = tl.load(ids_ptr + begin + lane, mask=begin + lane < n, other=E)
        mine = ids == expert
        place = start + tl.cumsum(mine.to(tl.int32), 0) - 1
        tl.store(rows_ptr + place, begin + lane, mask=mine)
        start += tl.sum(mine.to(tl.int32))


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
    p = tl.arange(0, BLOCK_H)
    # Place 4 LANE s + LANE q + i has column 16 q + LANE s + i.
    step, quad, i = p % 64 // (4 * LANE), p // LANE % 4, p % LANE
    column = p // 64 * 64 + quad * 16 + step * LANE + i
    for begin in range(0, stride_s, BLOCK_H):
        h = begin + column
        there = t[:, None] < T
        x = tl.load(
            x_ptr + t[:, None].to(tl.int64) * stride_x + h[None, :],
            mask=there & (h < H)[None, :],
            other=0.0,
        )
        ptrs = stored_ptr + t[:, None].to(tl.int64) * stride_s + (begin + p)[None, :]
        tl.store(ptrs, x, mask=there & (begin + p < stride_s)[None, :])


@triton.jit
def sort(
    x_ptr,  # [T, H]
    ids_ptr,  # [n] i32, numbers outside 0 .. E - 1 belong to nobody
    rows_ptr,  # [n] i32
    tiles_ptr,  # [3, TILES] i32
    stored_ptr,  # [T, stride_s]
    n,
    TILES,
    T,
    H,
    stride_x,
    stride_s,
    E: tl.constexpr,
    BINS: tl.constexpr,  # a power of two above E
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    LANE: tl.constexpr,
):
    program = tl.program_id(0)
    if program < E:
        place_expert(program, ids_ptr, rows_ptr, tiles_ptr, n, TILES, E, BINS, TILE, BLOCK)
    else:
        store_rows(program - E, x_ptr, stored_ptr, T, H, stride_x, stride_s, BLOCK_T, BLOCK_H, LANE)
