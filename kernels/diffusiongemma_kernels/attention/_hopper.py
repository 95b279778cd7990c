"""Attention for sm_90, in Gluon: four warps fetch keys and values, two groups of four attend.

Each group has 64 rows of the program's 128, and 256 value columns of one head.  Keys and values
come through one ring of pieces of 64 keys times 256 columns.  A tile's logits are multiplied beside
the values of the tile before, and its exponentials run beside those.  A cache in fp8 is widened to
f16 by the warps that fetch.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from diffusiongemma_kernels.attention import hopper
from diffusiongemma_kernels.attention._hopper_fetch import (
    KEYS,
    STAGE,
    STAGED,
    UNIT,
    WIDTH,
    fetch,
)

LOWEST = gl.constexpr(-1.0e30)  # a finite start: exp2(LOWEST - LOWEST) is 1, never NaN
SEARCH = gl.constexpr(128)
ROWS = gl.constexpr(hopper.ROWS)
PIECE = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))
LOGITS = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))
SUMS = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 256, 16]))
WEIGHTS = gl.constexpr(gl.DotOperandLayout(0, SUMS.value, 2))
IN_FOURS = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))
Q_LOAD = gl.constexpr(gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0]))


@gluon.jit
def find_request(query_start_loc_ptr, block, N, GROUP: gl.constexpr):
    """The request of row tile `block`: request i owns tiles from start_i * GROUP // 128 + i."""
    begun = 0
    for first in range(0, N, SEARCH):
        ids = first + gl.arange(0, SEARCH, IN_FOURS)
        start = gl.load(query_start_loc_ptr + ids, mask=ids < N, other=0)
        begun += gl.sum(((start * GROUP // (2 * ROWS) + ids <= block) & (ids < N)).to(gl.int32), 0)
    return begun - 1


@gluon.jit
def await_piece(ring, it, STAGES: gl.constexpr):
    pieces, full, _ = ring
    mbarrier.wait(full.index(it % STAGES), (it // STAGES) & 1)
    if pieces.dtype == gl.bfloat16:
        fence_async_shared()  # what came as it is came by ordinary stores
    return pieces.index(it % STAGES)


@gluon.jit
def give_back(ring, it, STAGES: gl.constexpr):
    mbarrier.arrive(ring[2].index(it % STAGES), count=1)


@gluon.jit
def multiply_keys(
    q_pieces, ring, it, FIRST: gl.constexpr, COUNT: gl.constexpr, STAGES: gl.constexpr
):
    """A tile's logits, in flight; all of its pieces but the last are given back."""
    logits = gl.full([ROWS, KEYS], 0.0, gl.float32, LOGITS)
    for j in gl.static_range(COUNT):
        k = await_piece(ring, it + j, STAGES).permute((1, 0))
        q = q_pieces.index(FIRST + j)
        logits = warpgroup_mma(q, k, logits, use_acc=j > 0, is_async=True)
        if j > 0:
            logits = warpgroup_mma_wait(1, deps=[logits])
            give_back(ring, it + j - 1, STAGES)
    return logits


@gluon.jit
def below_top(logits, top, logit_scale, KIND: gl.constexpr):
    new_top = gl.maximum(top, gl.max(logits, 1) * logit_scale)
    p = gl.exp2(logits * logit_scale - new_top[:, None])
    sums = gl.sum(p, 1)
    return gl.convert_layout(p.to(KIND), WEIGHTS, assert_trivial=True), new_top, sums


@gluon.jit
def soften(logits, top, tile, low, high, all_low, all_high, logit_scale, KIND: gl.constexpr):
    """exp2 of a tile's logits below their new maximum, as the next product's left operand.

    All of it is in branches: ptxas would put what follows them before the exponentials, and that
    is the wait for a product that they should run beside.
    """
    key0 = tile * KEYS
    if (key0 < all_low) | (key0 + KEYS > all_high):
        key = key0 + gl.arange(0, KEYS, gl.SliceLayout(0, LOGITS))
        visible = (key[None, :] >= low[:, None]) & (key[None, :] < high[:, None])
        logits = gl.where(visible, logits, float("-inf"))
        p, new_top, sums = below_top(logits, top, logit_scale, KIND)
    else:
        p, new_top, sums = below_top(logits, top, logit_scale, KIND)
    return p, new_top, sums


@gluon.jit
def attend_rows(
    tensors, rows, keys, strides, scales, q_pieces, ring,
    WHICH: gl.constexpr, HQ: gl.constexpr, GROUP: gl.constexpr, WINDOW: gl.constexpr,
    IMAGES: gl.constexpr, D: gl.constexpr, SPLIT: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    q_ptr, out_ptr, partial_ptr, stats_ptr, images_ptr = tensors
    row0, row_end, start, head, chunk, cell0, canvas, prefix, seq_len = rows
    begin, end = keys
    stride_qt, stride_qh, stride_ot, stride_oh = strides
    logit_scale, v_scale = scales
    KIND: gl.constexpr = ring[0].dtype
    COUNT: gl.constexpr = D // WIDTH
    row0 += WHICH * ROWS

    top = gl.full([ROWS], LOWEST, gl.float32, gl.SliceLayout(1, LOGITS))
    total = gl.full([ROWS], 0.0, gl.float32, gl.SliceLayout(1, LOGITS))
    acc = gl.full([ROWS, WIDTH], 0.0, gl.float32, SUMS)
    if begin < end:
        i = row0 + gl.arange(0, ROWS, gl.SliceLayout(1, Q_LOAD))
        column = gl.arange(0, WIDTH, gl.SliceLayout(0, Q_LOAD))
        token = (start + i // GROUP).to(gl.int64)
        q_rows = token * stride_qt + (head * GROUP + i % GROUP) * stride_qh
        q_ptrs = q_ptr + (q_rows[:, None] + column[None, :])
        for j in gl.static_range(COUNT):
            q = gl.load(q_ptrs + j * WIDTH, mask=(i < row_end)[:, None], other=0.0)
            q_pieces.index(WHICH * COUNT + j).store(q.to(KIND))
        fence_async_shared()

        # Row r sees keys low[r] <= key < high[r]; on a canvas all see what its first row sees.
        query = (row0 + gl.arange(0, ROWS, gl.SliceLayout(1, LOGITS))) // GROUP
        first, last = prefix + row0 // GROUP, prefix + (row0 + ROWS - 1) // GROUP
        high = prefix + query + 1
        all_high = first + 1
        if canvas:
            high = high * 0 + seq_len
            all_high = seq_len
        low = query * 0
        all_low = 0
        if WINDOW > 0:
            low = prefix + query - (WINDOW - 1)
            all_low = last - (WINDOW - 1)
            if canvas:
                low = query * 0 + prefix - (WINDOW - 1)
                all_low = prefix - (WINDOW - 1)
        if IMAGES:
            # An image's row sees it whole: what it sees stays one range.
            of_image = (start + query).to(gl.int64) * 2
            live = query * GROUP < row_end
            low = gl.minimum(low, gl.load(images_ptr + of_image, mask=live, other=2147483647))
            high = gl.maximum(high, gl.load(images_ptr + of_image + 1, mask=live, other=0))
            all_low = 2147483647  # no tile is seen by all

        logits = multiply_keys(q_pieces, ring, 0, WHICH * COUNT, COUNT, STAGES)
        logits = warpgroup_mma_wait(0, deps=[logits])
        it = COUNT
        give_back(ring, it - 1, STAGES)
        p, top, total = soften(logits, top, begin, low, high, all_low, all_high, logit_scale, KIND)
        for tile in range(begin + 1, end):
            logits = multiply_keys(q_pieces, ring, it, WHICH * COUNT, COUNT, STAGES)
            it += COUNT
            acc = warpgroup_mma(p, await_piece(ring, it, STAGES), acc, is_async=True)
            logits = warpgroup_mma_wait(1, deps=[logits])
            give_back(ring, it - 1, STAGES)
            new_p, new_top, sums = soften(
                logits, top, tile, low, high, all_low, all_high, logit_scale, KIND
            )
            shrink = gl.exp2(top - new_top)
            total = total * shrink + sums
            top = new_top
            acc, p = warpgroup_mma_wait(0, deps=[acc, p])
            give_back(ring, it, STAGES)
            it += 1
            p = new_p
            shrink = gl.convert_layout(shrink, gl.SliceLayout(1, SUMS), assert_trivial=True)
            acc = acc * shrink[:, None]
        acc = warpgroup_mma(p, await_piece(ring, it, STAGES), acc, is_async=True)
        acc, p = warpgroup_mma_wait(0, deps=[acc, p])

    i = row0 + gl.arange(0, ROWS, gl.SliceLayout(1, SUMS))
    token = (start + i // GROUP).to(gl.int64)
    live = i < row_end
    column = chunk * WIDTH + gl.arange(0, WIDTH, gl.SliceLayout(0, SUMS))
    if SPLIT:
        # An idle split leaves a sum of zero, and `combine` reads no more of it than that.
        cell = (cell0 + token) * HQ + head * GROUP + i % GROUP
        if begin < end:
            gl.store(partial_ptr + cell[:, None] * D + column[None, :], acc, mask=live[:, None])
        if chunk == 0:
            stats_ptrs = stats_ptr + cell * 2
            top_out = gl.convert_layout(top, gl.SliceLayout(1, SUMS), assert_trivial=True)
            total_out = gl.convert_layout(total, gl.SliceLayout(1, SUMS), assert_trivial=True)
            gl.store(stats_ptrs, top_out, mask=live)
            gl.store(stats_ptrs + 1, total_out, mask=live)
    elif begin < end:
        share = gl.convert_layout(v_scale / total, gl.SliceLayout(1, SUMS), assert_trivial=True)
        out_rows = token * stride_ot + (head * GROUP + i % GROUP) * stride_oh
        out_ptrs = out_ptr + out_rows[:, None] + column[None, :]
        gl.store(out_ptrs, (acc * share[:, None]).to(gl.bfloat16), mask=live[:, None])


@gluon.jit(do_not_specialize=["N", "T"])  # one compilation for every batch
def attend(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [pages, PAGE, Hkv, D]
    v_ptr,  # [pages, PAGE, Hkv, D], strides as of the keys
    out_ptr,  # [T, Hq, D]
    partial_ptr,  # [splits, T, Hq, D] f32, sums not yet divided; unused unless SPLIT
    stats_ptr,  # [splits, T, Hq, 2] f32, running maximum and sum
    query_start_loc_ptr,  # [N + 1]
    seq_lens_ptr,  # [N]
    block_table_ptr,  # [N / PARTS, max_blocks]
    canvas_ptr,  # [N]
    images_ptr,  # [T, 2] i32, unused unless IMAGES
    N,
    T,
    logit_scale,  # scale * k_scale * log2(e)
    v_scale,
    stride_qt,
    stride_qh,
    stride_ot,
    stride_oh,
    stride_b,
    stride_s,
    stride_h,
    stride_table,
    WINDOW: gl.constexpr,
    IMAGES: gl.constexpr,
    HQ: gl.constexpr,
    GROUP: gl.constexpr,
    D: gl.constexpr,
    PAGE: gl.constexpr,
    PARTS: gl.constexpr,
    SPLIT: gl.constexpr,  # whether several programs share a row tile's keys
    MIN_TILES: gl.constexpr,
    NARROW: gl.constexpr,  # whether the cache is fp8
    STAGES: gl.constexpr,
    FETCHING: gl.constexpr,  # warps
    ATTENDING_REGISTERS: gl.constexpr,
    FETCHING_REGISTERS: gl.constexpr,
):
    block = gl.num_programs(0) - 1 - gl.program_id(0)  # the rows with most keys first
    head = gl.program_id(1) // (D // WIDTH)
    chunk = gl.program_id(1) % (D // WIDTH)
    split = gl.program_id(2)

    request = find_request(query_start_loc_ptr, block, N, GROUP)
    start = gl.load(query_start_loc_ptr + request)
    query_len = gl.load(query_start_loc_ptr + request + 1) - start
    seq_len = gl.load(seq_lens_ptr + request)
    canvas = gl.load(canvas_ptr + request) != 0
    row0 = (block - start * GROUP // (2 * ROWS) - request) * (2 * ROWS)
    row_end = query_len * GROUP
    if row0 < row_end:
        prefix = seq_len - query_len
        last_row = gl.minimum(row0 + 2 * ROWS, row_end) - 1
        key_low = 0
        key_high = prefix + last_row // GROUP + 1
        if WINDOW > 0:
            key_low = prefix + row0 // GROUP - (WINDOW - 1)
        if canvas:
            key_high = seq_len
            if WINDOW > 0:
                key_low = prefix - (WINDOW - 1)
        key_low = gl.maximum(key_low, 0)
        if IMAGES:
            i = row0 + gl.arange(0, 2 * ROWS, IN_FOURS)
            token = (start + i // GROUP).to(gl.int64)
            image = gl.load(images_ptr + token * 2, mask=i < row_end, other=2147483647)
            behind = gl.load(images_ptr + token * 2 + 1, mask=i < row_end, other=0)
            key_low = gl.minimum(key_low, gl.min(image, 0))
            key_high = gl.maximum(key_high, gl.max(behind, 0))

        first_tile = key_low // KEYS
        last_tile = gl.cdiv(key_high, KEYS)
        begin = first_tile
        end = last_tile
        if SPLIT:
            share = gl.maximum(gl.cdiv(last_tile - first_tile, gl.num_programs(2)), MIN_TILES)
            begin = gl.minimum(first_tile + split * share, last_tile)
            end = gl.minimum(begin + share, last_tile)

        KIND: gl.constexpr = gl.float16 if NARROW else gl.bfloat16
        pieces = gl.allocate_shared_memory(KIND, [STAGES, KEYS, WIDTH], PIECE)
        q_pieces = gl.allocate_shared_memory(KIND, [2 * D // WIDTH, ROWS, WIDTH], PIECE)
        staged = pieces
        if NARROW:
            staged = gl.allocate_shared_memory(gl.int32, [STAGED, KEYS, WIDTH // 4], STAGE)
        full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        for i in gl.static_range(STAGES):
            mbarrier.init(full.index(i), count=1 if NARROW else FETCHING * 32)
            mbarrier.init(empty.index(i), count=2)
        ring = (pieces, full, empty)
        table_ptr = block_table_ptr + (request // PARTS).to(gl.int64) * stride_table
        ELEMENTS: gl.constexpr = UNIT // 4 if NARROW else UNIT
        source = (
            table_ptr, begin, end, key_low, key_high, stride_b // ELEMENTS, stride_s // ELEMENTS,
        )  # fmt: skip
        k_ptr += head * stride_h
        v_ptr += head * stride_h + chunk * (WIDTH // 4 if NARROW else WIDTH)
        rows = (row0, row_end, start, head, chunk, split * T, canvas, prefix, seq_len)
        keys = (begin, end)
        strides = (stride_qt, stride_qh, stride_ot, stride_oh)
        scales = (logit_scale, v_scale)
        tensors = (q_ptr, out_ptr, partial_ptr, stats_ptr, images_ptr)
        gl.warp_specialize(
            [
                (
                    attend_rows,
                    (tensors, rows, keys, strides, scales, q_pieces, ring, 0,
                     HQ, GROUP, WINDOW, IMAGES, D, SPLIT, STAGES),
                ),
                (
                    attend_rows,
                    (tensors, rows, keys, strides, scales, q_pieces, ring, 1,
                     HQ, GROUP, WINDOW, IMAGES, D, SPLIT, STAGES),
                ),
                (fetch, (k_ptr, v_ptr, source, ring, staged, D, PAGE, NARROW, STAGES)),
            ],
            [4, FETCHING],
            [ATTENDING_REGISTERS, FETCHING_REGISTERS],
        )
