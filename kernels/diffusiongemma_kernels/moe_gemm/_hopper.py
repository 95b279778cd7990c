"""The NVFP4 experts for sm_90, in Gluon: some warps fetch, the others decode and multiply.

A program stays on its processor and draws one item after another: a tile of tokens and C
neighbouring blocks of 128 packed rows of weights, one for each consumer of four warps.  First come
all items of `gate_up`, then those of `down`, which read what the former wrote: an item of `down`
waits until its tile's rows of h are there.  Nobody waits for an item that nobody has drawn.
The warps that fetch run ahead through a ring of STAGES times 128 columns, over the ends of items
and from one product to the other as well.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from diffusiongemma_kernels.gluon_names import load_async, load_tile, reinterpret, thread_barrier
from diffusiongemma_kernels.moe_gemm._hopper_item import one_item, skip

EXTRA = gl.constexpr(32)  # tokens of a tile beyond a power of two
CODES_STAGE = gl.constexpr(gl.NVMMASharedLayout(0, 16, 4))
SCALES_STAGE = gl.constexpr(gl.NVMMASharedLayout(0, 8, 4))
FOURS = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
X_STAGE = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))


@gluon.jit
def tell(item, turn, turns):
    """Write down the item of a turn for those who `hear` it."""
    queue, told, heard = turns
    mbarrier.wait(heard.index(turn % 2), ((turn // 2) & 1) ^ 1)
    one = gl.full([1], item, gl.int32, gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
    queue.index(turn % 2).store(one)
    mbarrier.arrive(told.index(turn % 2), count=1)


@gluon.jit
def hear(turn, turns):
    queue, told, heard = turns
    mbarrier.wait(told.index(turn % 2), (turn // 2) & 1)
    one = queue.index(turn % 2).load(gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
    mbarrier.arrive(heard.index(turn % 2), count=1)
    return gl.max(one, 0)


@gluon.jit
def place(item, work, C: gl.constexpr):
    """Whether an item is of `gate_up`, its tile, its first block, and its weights' columns."""
    _, _, _, total, up_columns, up_blocks, down_columns, down_blocks = work
    up_groups = gl.cdiv(up_blocks, C)
    down_groups = gl.cdiv(down_blocks, C)
    is_up = item < total * up_groups
    item = gl.where(is_up, item, item - total * up_groups)
    groups = gl.where(is_up, up_groups, down_groups)
    return is_up, item // groups, item % groups * C, gl.where(is_up, up_columns, down_columns)


@gluon.jit
def fetch_weights(up, down, work, ring, turns, C: gl.constexpr, STAGES: gl.constexpr):
    """Draws this program's items, tells the others, and fetches codes and scales of every stage."""
    codes, scales, _, _, full, empty = ring
    tiles_ptr, progress_ptr, _, total, _, up_blocks, _, down_blocks = work
    items = total * (gl.cdiv(up_blocks, C) + gl.cdiv(down_blocks, C))
    item = gl.atomic_add(progress_ptr, 1)
    turn = 0
    it = 0
    while item < items:
        tell(item, turn, turns)
        turn += 1
        drawn = gl.atomic_add(progress_ptr, 1)
        is_up, tile, block, columns = place(item, work, C)
        expert = gl.load(tiles_ptr + tile)
        for at in range(0, columns // 64, 2):
            slot = it % STAGES
            mbarrier.wait(empty.index(slot), ((it // STAGES) & 1) ^ 1)
            ready = full.index(slot)
            mbarrier.expect(ready, C * 2 * (4096 + 512))
            for j in gl.static_range(C):  # zeros beyond the last block and the last column
                here = slot * C + j
                if is_up:
                    load_tile(up[0], [expert, block + j, at * 8, 0], ready, codes.index(here))
                    load_tile(up[1], [expert, block + j, at * 2, 0], ready, scales.index(here))
                else:
                    load_tile(down[0], [expert, block + j, at * 8, 0], ready, codes.index(here))
                    load_tile(down[1], [expert, block + j, at * 2, 0], ready, scales.index(here))
            it += 1
        item = drawn
    tell(-1, turn, turns)


@gluon.jit
def await_rows(done_ptr, blocks):
    """Wait until all blocks of a tile's h were stored."""
    done = gl.atomic_add(done_ptr, 0, sem="acquire")
    while done < blocks:
        done = gl.atomic_add(done_ptr, 0, sem="acquire")


@gluon.jit
def fetch_tokens(
    tokens, work, ring, turns,
    K: gl.constexpr, N: gl.constexpr, MORE: gl.constexpr, C: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Tokens of every stage of this program's items: gathered from x, or as they lie in h."""
    x_ptr, h_ptr, rows_ptr, stride_x, stride_h = tokens
    _, _, xa, xb, full, empty = ring
    tiles_ptr, progress_ptr, TILES, _, _, up_blocks, _, _ = work
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [gl.num_warps(), 1], [1, 0])
    n = gl.arange(0, N, gl.SliceLayout(1, COPY))
    more = N + gl.arange(0, EXTRA, gl.SliceLayout(1, COPY))
    k = gl.arange(0, 64, gl.SliceLayout(0, COPY))
    it = 0
    turn = 0
    item = hear(turn, turns)
    while item >= 0:
        is_up, tile, block, columns = place(item, work, C)
        start = gl.load(tiles_ptr + TILES + tile)
        count = gl.load(tiles_ptr + 2 * TILES + tile)
        live, live_more = (n < count)[:, None], (more < count)[:, None]
        if is_up:
            row = gl.load(rows_ptr + start + n, mask=n < count, other=0) // K
            row_more = gl.load(rows_ptr + start + more, mask=more < count, other=0) // K
            x = x_ptr + (row[:, None] * stride_x + k[None, :])
            x_more = x_ptr + (row_more[:, None] * stride_x + k[None, :])
        else:
            await_rows(progress_ptr + 1 + tile, up_blocks)
            x = h_ptr + ((start + n)[:, None] * stride_h + k[None, :])
            x_more = h_ptr + ((start + more)[:, None] * stride_h + k[None, :])
        for at in range(0, columns // 64, 2):
            slot = it % STAGES
            mbarrier.wait(empty.index(slot), ((it // STAGES) & 1) ^ 1)
            for j in gl.static_range(2):
                there = at + j < columns // 64
                here = (at + j) * 64
                load_async(xa.index(slot * 2 + j), x + here, mask=live & there)
                if MORE:
                    load_async(xb.index(slot * 2 + j), x_more + here, mask=live_more & there)
            async_copy.mbarrier_arrive(full.index(slot), increment_count=False)
            it += 1
        turn += 1
        item = hear(turn, turns)


@gluon.jit
def consume(
    out, work, ring, turns,
    WHICH: gl.constexpr, N: gl.constexpr, MORE: gl.constexpr, LEAST: gl.constexpr,
    C: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """This consumer's block of every item, at the least width that holds the item's tokens."""
    tiles_ptr, progress_ptr, TILES, _, _, up_blocks, _, down_blocks = work
    it = 0
    turn = 0
    item = hear(turn, turns)
    while item >= 0:
        is_up, tile, block, columns = place(item, work, C)
        block += WHICH
        expert = gl.load(tiles_ptr + tile)
        start = gl.load(tiles_ptr + TILES + tile)
        count = gl.load(tiles_ptr + 2 * TILES + tile)
        item_at = is_up, expert, start, count, block
        if block >= gl.where(is_up, up_blocks, down_blocks):
            it = skip(ring, it, columns, STAGES)
        elif LEAST == 16 and count <= 16:
            it = one_item(item_at, out, ring, it, columns, WHICH, 16, 0, C, STAGES)
        elif N > 32 and count <= 32:
            it = one_item(item_at, out, ring, it, columns, WHICH, 32, 0, C, STAGES)
        elif N + MORE > 64 and count <= 64:
            it = one_item(item_at, out, ring, it, columns, WHICH, 64, 0, C, STAGES)
        elif N > 64 and count <= 96:
            it = one_item(item_at, out, ring, it, columns, WHICH, 64, 32, C, STAGES)
        elif N > 64 and count <= 128:
            it = one_item(item_at, out, ring, it, columns, WHICH, 128, 0, C, STAGES)
        else:
            it = one_item(item_at, out, ring, it, columns, WHICH, N, MORE, C, STAGES)
        if is_up & (block < up_blocks):
            thread_barrier()
            gl.atomic_add(progress_ptr + 1 + tile, 1, sem="release")
        turn += 1
        item = hear(turn, turns)


@gluon.jit(do_not_specialize=["TILES"])  # one compilation for every batch
def experts(
    x_ptr,  # [T, up_columns], `arranged`
    up_codes,  # [E, up_blocks, up_columns / 8, 256] i16 in pieces of [1, 1, 16, 256]
    up_scales,  # [E, up_blocks, up_columns / 32, 256] u8 in pieces of [1, 1, 4, 256]
    up_global_ptr,  # [E] f32
    h_ptr,  # [T * K, stride_h] by expert
    down_codes,
    down_scales,
    down_global_ptr,
    rows_ptr,  # [T * K] i32, token * K + slot by expert
    tiles_ptr,  # [3, TILES] i32: expert, start, count
    total_ptr,  # [1] i32: how many of them there are
    progress_ptr,  # [1 + TILES] i32, zeros: items drawn, and blocks done of each tile's h
    weight_ptr,  # [T * K] f32
    out_ptr,  # [T * K, H] by row
    up_columns,
    up_blocks,
    down_columns,
    down_blocks,
    TILES,
    stride_x,
    stride_h,
    H,
    K: gl.constexpr,  # slots a token
    N: gl.constexpr,
    MORE: gl.constexpr,
    LEAST: gl.constexpr,
    C: gl.constexpr,
    STAGES: gl.constexpr,
    COPYING: gl.constexpr,
    CONSUMING: gl.constexpr,  # registers
    FETCHING: gl.constexpr,
):
    codes = gl.allocate_shared_memory(gl.int16, [STAGES * C, 1, 1, 16, 256], CODES_STAGE)
    scales = gl.allocate_shared_memory(gl.uint8, [STAGES * C, 1, 1, 4, 256], SCALES_STAGE)
    xa = gl.allocate_shared_memory(x_ptr.dtype.element_ty, [STAGES * 2, N, 64], X_STAGE)
    xb = xa
    if MORE > 0:
        xb = gl.allocate_shared_memory(x_ptr.dtype.element_ty, [STAGES * 2, EXTRA, 64], X_STAGE)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    queue = gl.allocate_shared_memory(gl.int32, [2, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    told = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    heard = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(told.index(i), count=1)
        mbarrier.init(heard.index(i), count=C + 1)
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=COPYING * 32 + 1)
        mbarrier.init(empty.index(i), count=C)
    # By 64 columns, and scales by four.
    halves = reinterpret(codes, gl.int16, [STAGES * C * 2, 1, 1, 8, 256], CODES_STAGE)
    fours = reinterpret(scales, gl.int32, [STAGES * C * 2, 4, 32], FOURS)
    ring = (codes, scales, xa, xb, full, empty)
    read = (halves, fours, xa, xb, full, empty)
    turns = (queue, told, heard)
    work = (
        tiles_ptr, progress_ptr, TILES, gl.load(total_ptr),
        up_columns, up_blocks, down_columns, down_blocks,
    )  # fmt: skip
    up = (up_codes, up_scales)
    down = (down_codes, down_scales)
    tokens = (x_ptr, h_ptr, rows_ptr, stride_x, stride_h)
    out = (up_global_ptr, h_ptr, stride_h, down_global_ptr, rows_ptr, weight_ptr, out_ptr, H)
    if C == 2:
        gl.warp_specialize(
            [
                (consume, (out, work, read, turns, 0, N, MORE, LEAST, C, STAGES)),
                (consume, (out, work, read, turns, 1, N, MORE, LEAST, C, STAGES)),
                (fetch_weights, (up, down, work, ring, turns, C, STAGES)),
                (fetch_tokens, (tokens, work, ring, turns, K, N, MORE, C, STAGES)),
            ],
            [4, 1, COPYING],
            [CONSUMING, FETCHING, FETCHING],
        )
    else:
        gl.warp_specialize(
            [
                (consume, (out, work, read, turns, 0, N, MORE, LEAST, C, STAGES)),
                (consume, (out, work, read, turns, 1, N, MORE, LEAST, C, STAGES)),
                (consume, (out, work, read, turns, 2, N, MORE, LEAST, C, STAGES)),
                (fetch_weights, (up, down, work, ring, turns, C, STAGES)),
                (fetch_tokens, (tokens, work, ring, turns, K, N, MORE, C, STAGES)),
            ],
            [4, 4, 1, COPYING],
            [CONSUMING, CONSUMING, FETCHING, FETCHING],
        )
