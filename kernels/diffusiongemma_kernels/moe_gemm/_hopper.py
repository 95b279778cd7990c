"""The NVFP4 expert GEMMs for sm_90, in Gluon: some warps fetch, the others decode and multiply.

A program stays on its processor and draws one item after another: a tile of tokens and C
neighbouring blocks of 128 packed rows of weights, one for each consumer of four warps.  The warps
that fetch run ahead through a ring of STAGES times KB * 64 columns, over the ends of items as well.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from diffusiongemma_kernels.gluon_names import load_async, load_tile
from diffusiongemma_kernels.moe_gemm._hopper_item import one_item, skip

EXTRA = gl.constexpr(32)  # tokens of a tile beyond a power of two
CODES_STAGE = gl.constexpr(gl.NVMMASharedLayout(0, 16, 4))
SCALES_STAGE = gl.constexpr(gl.NVMMASharedLayout(0, 8, 4))
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
def fetch_weights(
    weights, ring, turns, C: gl.constexpr, KB: gl.constexpr, STAGES: gl.constexpr
):
    """Draws this program's items, tells the others, and fetches codes and scales of every step."""
    codes_desc, scales_desc, tiles_ptr, total_ptr, tickets_ptr, columns, blocks = weights
    codes, scales, _, _, full, empty = ring
    groups = gl.cdiv(blocks, C)
    items = groups * gl.load(total_ptr)
    item = gl.program_id(0)
    turn = 0
    it = 0
    while item < items:
        tell(item, turn, turns)
        turn += 1
        drawn = gl.atomic_add(tickets_ptr, 1) + gl.num_programs(0)
        block = (item % groups) * C
        expert = gl.load(tiles_ptr + item // groups)
        for at in range(0, columns // 64, KB):
            slot = it % STAGES
            mbarrier.wait(empty.index(slot), ((it // STAGES) & 1) ^ 1)
            ready = full.index(slot)
            mbarrier.expect(ready, C * KB * (4096 + 512))
            for j in gl.static_range(C):  # zeros beyond the last block
                here = slot * C + j
                load_tile(codes_desc, [expert, block + j, at * 8, 0], ready, codes.index(here))
                load_tile(scales_desc, [expert, block + j, at * 2, 0], ready, scales.index(here))
            it += 1
        item = drawn
    tell(-1, turn, turns)


@gluon.jit
def fetch_tokens(
    tokens, ring, turns,
    K: gl.constexpr, N: gl.constexpr, MORE: gl.constexpr,
    C: gl.constexpr, KB: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Tokens of every step of this program's items.  K: slots a token, 0 if x is by expert."""
    x_ptr, rows_ptr, tiles_ptr, columns, blocks, TILES, stride_x = tokens
    _, _, xa, xb, full, empty = ring
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [gl.num_warps(), 1], [1, 0])
    n = gl.arange(0, N, gl.SliceLayout(1, COPY))
    more = N + gl.arange(0, EXTRA, gl.SliceLayout(1, COPY))
    k = gl.arange(0, 64, gl.SliceLayout(0, COPY))
    groups = gl.cdiv(blocks, C)
    it = 0
    turn = 0
    item = hear(turn, turns)
    while item >= 0:
        start = gl.load(tiles_ptr + TILES + item // groups)
        count = gl.load(tiles_ptr + 2 * TILES + item // groups)
        if K > 0:
            row = gl.load(rows_ptr + start + n, mask=n < count, other=0) // K
            row_more = gl.load(rows_ptr + start + more, mask=more < count, other=0) // K
        else:
            row = start + n
            row_more = start + more
        offset = row[:, None] * stride_x + k[None, :]
        offset_more = row_more[:, None] * stride_x + k[None, :]
        live, live_more = (n < count)[:, None], (more < count)[:, None]
        for at in range(0, columns // 64, KB):
            slot = it % STAGES
            mbarrier.wait(empty.index(slot), ((it // STAGES) & 1) ^ 1)
            for j in gl.static_range(KB):
                x = x_ptr + (at + j) * 64
                load_async(xa.index(slot * KB + j), x + offset, mask=live)
                if MORE:
                    load_async(xb.index(slot * KB + j), x + offset_more, mask=live_more)
            async_copy.mbarrier_arrive(full.index(slot), increment_count=False)
            it += 1
        turn += 1
        item = hear(turn, turns)


@gluon.jit
def consume(
    work, ring, turns,
    WHICH: gl.constexpr, UP: gl.constexpr, N: gl.constexpr, MORE: gl.constexpr,
    LEAST: gl.constexpr, C: gl.constexpr, KB: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """This consumer's block of every item, at the least width that holds the item's tokens."""
    global_ptr, rows_ptr, tiles_ptr, weight_ptr, out_ptr, columns, blocks, TILES, stride_out = work
    groups = gl.cdiv(blocks, C)
    it = 0
    turn = 0
    item = hear(turn, turns)
    while item >= 0:
        i = item // groups
        block = (item % groups) * C + WHICH
        scale = gl.load(global_ptr + gl.load(tiles_ptr + i)) * 256.0
        start = gl.load(tiles_ptr + TILES + i)
        count = gl.load(tiles_ptr + 2 * TILES + i)
        if block >= blocks:
            it = skip(ring, it, columns, KB, STAGES)
        elif LEAST == 16 and count <= 16:
            it = one_item(
                scale, rows_ptr, weight_ptr, out_ptr, ring, it, columns, stride_out, start, count,
                block, UP, WHICH, 16, 0, C, KB, STAGES,
            )  # fmt: skip
        elif N > 32 and count <= 32:
            it = one_item(
                scale, rows_ptr, weight_ptr, out_ptr, ring, it, columns, stride_out, start, count,
                block, UP, WHICH, 32, 0, C, KB, STAGES,
            )  # fmt: skip
        elif N + MORE > 64 and count <= 64:
            it = one_item(
                scale, rows_ptr, weight_ptr, out_ptr, ring, it, columns, stride_out, start, count,
                block, UP, WHICH, 64, 0, C, KB, STAGES,
            )  # fmt: skip
        elif N > 64 and count <= 96:
            it = one_item(
                scale, rows_ptr, weight_ptr, out_ptr, ring, it, columns, stride_out, start, count,
                block, UP, WHICH, 64, 32, C, KB, STAGES,
            )  # fmt: skip
        elif N > 64 and count <= 128:
            it = one_item(
                scale, rows_ptr, weight_ptr, out_ptr, ring, it, columns, stride_out, start, count,
                block, UP, WHICH, 128, 0, C, KB, STAGES,
            )  # fmt: skip
        else:
            it = one_item(
                scale, rows_ptr, weight_ptr, out_ptr, ring, it, columns, stride_out, start, count,
                block, UP, WHICH, N, MORE, C, KB, STAGES,
            )  # fmt: skip
        turn += 1
        item = hear(turn, turns)


@gluon.jit(do_not_specialize=["blocks", "TILES"])  # one compilation for every batch
def experts(
    x_ptr,  # [T, columns] in the order of `moe_sort`, or [T * K, columns] by expert
    codes_desc,  # [E, blocks, columns / 8, 256] i16 in pieces of [1, 1, KB * 8, 256]
    scales_desc,  # [E, blocks, columns / 32, 256] u8 in pieces of [1, 1, KB * 2, 256]
    global_ptr,  # [E] f32
    rows_ptr,  # [T * K] i32, token * K + slot by expert
    tiles_ptr,  # [3, TILES] i32: expert, start, count
    total_ptr,  # [1] i32: how many of them there are
    tickets_ptr,  # [1] i32, zero
    weight_ptr,  # [T * K] f32, of `down` alone
    out_ptr,  # [T * K, stride_out] by expert, or by row of `down`
    columns,
    blocks,
    TILES,
    stride_x,
    stride_out,
    K: gl.constexpr,  # slots a token for `gate_up`, 0 for `down`, whose x is by expert
    N: gl.constexpr,
    MORE: gl.constexpr,
    LEAST: gl.constexpr,
    C: gl.constexpr,
    KB: gl.constexpr,
    STAGES: gl.constexpr,
    COPYING: gl.constexpr,
    CONSUMING: gl.constexpr,  # registers
    FETCHING: gl.constexpr,
):
    codes = gl.allocate_shared_memory(gl.int16, [STAGES * C, 1, 1, KB * 8, 256], CODES_STAGE)
    scales = gl.allocate_shared_memory(gl.uint8, [STAGES * C, 1, 1, KB * 2, 256], SCALES_STAGE)
    xa = gl.allocate_shared_memory(x_ptr.dtype.element_ty, [STAGES * KB, N, 64], X_STAGE)
    xb = xa
    if MORE > 0:
        xb = gl.allocate_shared_memory(x_ptr.dtype.element_ty, [STAGES * KB, EXTRA, 64], X_STAGE)
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
    ring = (codes, scales, xa, xb, full, empty)
    turns = (queue, told, heard)
    weights = (codes_desc, scales_desc, tiles_ptr, total_ptr, tickets_ptr, columns, blocks)
    tokens = (x_ptr, rows_ptr, tiles_ptr, columns, blocks, TILES, stride_x)
    work = (
        global_ptr, rows_ptr, tiles_ptr, weight_ptr, out_ptr, columns, blocks, TILES, stride_out,
    )  # fmt: skip
    if C == 2:
        gl.warp_specialize(
            [
                (consume, (work, ring, turns, 0, K > 0, N, MORE, LEAST, C, KB, STAGES)),
                (consume, (work, ring, turns, 1, K > 0, N, MORE, LEAST, C, KB, STAGES)),
                (fetch_weights, (weights, ring, turns, C, KB, STAGES)),
                (fetch_tokens, (tokens, ring, turns, K, N, MORE, C, KB, STAGES)),
            ],
            [4, 1, COPYING],
            [CONSUMING, FETCHING, FETCHING],
        )
    else:
        gl.warp_specialize(
            [
                (consume, (work, ring, turns, 0, K > 0, N, MORE, LEAST, C, KB, STAGES)),
                (consume, (work, ring, turns, 1, K > 0, N, MORE, LEAST, C, KB, STAGES)),
                (consume, (work, ring, turns, 2, K > 0, N, MORE, LEAST, C, KB, STAGES)),
                (fetch_weights, (weights, ring, turns, C, KB, STAGES)),
                (fetch_tokens, (tokens, ring, turns, K, N, MORE, C, KB, STAGES)),
            ],
            [4, 4, 1, COPYING],
            [CONSUMING, CONSUMING, FETCHING, FETCHING],
        )
