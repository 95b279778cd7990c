"""Attention for sm_90, in Gluon: four warps fetch keys and values, two groups of four attend.

Each group has 64 rows of the program's 128 and `DV` value columns of one head.  Keys and values
come through one ring of pieces of 64 keys times 128 columns: a key tile's D / 128 pieces, then its
values' DV / 128.  A cache in fp8 is widened by the warps that fetch.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

# Its name before Triton 3.7 or so.
load_async = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared

LOWEST = gl.constexpr(-1.0e30)  # a finite start: exp2(LOWEST - LOWEST) is 1, never NaN
SEARCH = gl.constexpr(128)
ROWS = gl.constexpr(64)  # of a group
KEYS = gl.constexpr(64)  # of a tile
WIDTH = gl.constexpr(128)  # columns of a piece
HALF = gl.constexpr(64)  # of them
PIECE = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))
PIECE_WORDS = gl.constexpr(gl.NVMMASharedLayout(128, 32, 2))
LOGITS = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))
SUMS = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16]))
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
def key_rows(source, tile, LAYOUT: gl.constexpr, PAGE: gl.constexpr):
    """Where the keys of a tile lie in the cache, and which of them anyone may read.  [64] each"""
    table_ptr, _, end, key_low, key_high, stride_b, stride_s = source
    keys = tile * KEYS + gl.arange(0, KEYS, gl.SliceLayout(1, LAYOUT))
    # Outside this range a page may be foreign or hold NaN.
    seen = (keys >= key_low) & (keys < key_high) & (tile < end)
    page = gl.load(table_ptr + keys // PAGE, mask=seen, other=0).to(gl.int64)
    return page * stride_b + (keys % PAGE) * stride_s, seen


@gluon.jit
def fetch(
    k_ptr, v_ptr, source, ring,
    D: gl.constexpr, DV: gl.constexpr, PAGE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    pieces, full, empty = ring
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [gl.num_warps(), 1], [1, 0])
    column = gl.arange(0, WIDTH, gl.SliceLayout(0, LAYOUT))
    it = 0
    for tile in range(source[1], source[2]):
        row, seen = key_rows(source, tile, LAYOUT, PAGE)
        offset = row[:, None] + column[None, :]
        for j in gl.static_range((D + DV) // WIDTH):
            slot = it % STAGES
            mbarrier.wait(empty.index(slot), ((it // STAGES) & 1) ^ 1)
            if j < D // WIDTH:
                here = k_ptr + j * WIDTH
            else:
                here = v_ptr + (j - D // WIDTH) * WIDTH
            load_async(pieces.index(slot), here + offset, mask=seen[:, None])
            async_copy.mbarrier_arrive(full.index(slot), increment_count=False)
            it += 1


@gluon.jit
def load_half(k_ptr, v_ptr, row, seen, J: gl.constexpr, D: gl.constexpr, LAYOUT: gl.constexpr):
    """The `J`th 64 columns of a tile's keys and, behind them, values, four numbers a word."""
    if J < D // HALF:
        here = k_ptr + J * (HALF // 4)
    else:
        here = v_ptr + (J - D // HALF) * (HALF // 4)
    word = gl.arange(0, HALF // 4, gl.SliceLayout(0, LAYOUT))
    return gl.load(here + (row[:, None] + word[None, :]), mask=seen[:, None], other=0)


@gluon.jit
def widen(words):
    """[64, N] words of four e4m3 -> [64, 2 N] of two f16."""
    low, high = gl.inline_asm_elementwise(
        "{.reg .b16 a, b; mov.b32 {a, b}, $2;"
        "cvt.rn.f16x2.e4m3x2 $0, a; cvt.rn.f16x2.e4m3x2 $1, b;}",
        "=r,=r,r",
        [words],
        dtype=(gl.int32, gl.int32),
        is_pure=True,
        pack=1,
    )
    return gl.reshape(gl.join(low, high), [KEYS, 2 * words.shape[1]])


@gluon.jit
def fetch_narrow(
    k_ptr, v_ptr, source, ring,
    D: gl.constexpr, DV: gl.constexpr, PAGE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The same from fp8 to f16, half a piece at a time, three ahead of the one that is stored."""
    pieces, full, empty = ring
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 4], [8, 4], [gl.num_warps(), 1], [1, 0])
    COUNT: gl.constexpr = (D + DV) // HALF
    it = 0
    row, seen = key_rows(source, source[1], LAYOUT, PAGE)
    half0 = load_half(k_ptr, v_ptr, row, seen, 0, D, LAYOUT)
    half1 = load_half(k_ptr, v_ptr, row, seen, 1, D, LAYOUT)
    half2 = load_half(k_ptr, v_ptr, row, seen, 2, D, LAYOUT)
    for tile in range(source[1], source[2]):
        next_row, next_seen = key_rows(source, tile + 1, LAYOUT, PAGE)
        for j in gl.static_range(COUNT):
            if j + 3 == COUNT:
                row, seen = next_row, next_seen
            half3 = load_half(k_ptr, v_ptr, row, seen, (j + 3) % COUNT, D, LAYOUT)
            slot = it % STAGES
            if j % 2 == 0:
                mbarrier.wait(empty.index(slot), ((it // STAGES) & 1) ^ 1)
            words = pieces.index(slot)._reinterpret(gl.int32, [KEYS, WIDTH // 2], PIECE_WORDS)
            words.slice(j % 2 * (HALF // 2), HALF // 2, dim=1).store(widen(half0))
            if j % 2 == 1:
                fence_async_shared()
                mbarrier.arrive(full.index(slot), count=1)
                it += 1
            half0, half1, half2 = half1, half2, half3


@gluon.jit
def attend_rows(
    tensors, rows, keys, strides, scales, q_pieces, ring,
    WHICH: gl.constexpr, HQ: gl.constexpr, GROUP: gl.constexpr, WINDOW: gl.constexpr,
    D: gl.constexpr, DV: gl.constexpr, SPLIT: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    q_ptr, out_ptr, partial_ptr, stats_ptr = tensors
    row0, row_end, start, head, chunk, cell0, canvas, prefix, seq_len = rows
    begin, end = keys
    stride_qt, stride_qh, stride_ot, stride_oh = strides
    logit_scale, v_scale = scales
    pieces, full, empty = ring
    row0 += WHICH * ROWS

    i = row0 + gl.arange(0, ROWS, gl.SliceLayout(1, Q_LOAD))
    column = gl.arange(0, WIDTH, gl.SliceLayout(0, Q_LOAD))
    q_rows = (start + i // GROUP).to(gl.int64) * stride_qt + (head * GROUP + i % GROUP) * stride_qh
    q_ptrs = q_ptr + (q_rows[:, None] + column[None, :])
    for j in gl.static_range(D // WIDTH):
        q = gl.load(q_ptrs + j * WIDTH, mask=(i < row_end)[:, None], other=0.0)
        q_pieces.index(WHICH * (D // WIDTH) + j).store(q.to(pieces.dtype))
    fence_async_shared()

    # Row r sees keys low[r] <= key < high[r]; on a canvas all rows see what its first row sees.
    query = (row0 + gl.arange(0, ROWS, gl.SliceLayout(1, LOGITS))) // GROUP
    first, last = row0 // GROUP, (row0 + ROWS - 1) // GROUP
    position, first, last = prefix + query, prefix + first, prefix + last
    if canvas:
        position, first, last = position * 0 + seq_len - 1, seq_len - 1, seq_len - 1
    high = position + 1
    low = high * 0
    all_low = 0
    if WINDOW > 0:
        behind = position - (WINDOW - 1)
        all_low = last - (WINDOW - 1)
        if canvas:
            behind = behind * 0 + prefix - (WINDOW - 1)
            all_low = prefix - (WINDOW - 1)
        low = gl.maximum(behind, 0)
        all_low = gl.maximum(all_low, 0)
    all_high = first + 1

    top = gl.full([ROWS], LOWEST, gl.float32, gl.SliceLayout(1, LOGITS))
    total = gl.full([ROWS], 0.0, gl.float32, gl.SliceLayout(1, LOGITS))
    acc0 = gl.full([ROWS, WIDTH], 0.0, gl.float32, SUMS)
    acc1 = gl.full([ROWS, WIDTH], 0.0, gl.float32, SUMS)
    it = 0
    for tile in range(begin, end):
        logits = gl.full([ROWS, KEYS], 0.0, gl.float32, LOGITS)
        for j in gl.static_range(D // WIDTH):
            slot = it % STAGES
            mbarrier.wait(full.index(slot), (it // STAGES) & 1)
            fence_async_shared()
            k = pieces.index(slot).permute((1, 0))
            left = q_pieces.index(WHICH * (D // WIDTH) + j)
            logits = warpgroup_mma(left, k, logits, use_acc=j > 0, is_async=True)
            if j > 0:
                logits = warpgroup_mma_wait(1, deps=[logits])
                mbarrier.arrive(empty.index((it - 1) % STAGES), count=1)
            it += 1
        logits = warpgroup_mma_wait(0, deps=[logits])
        mbarrier.arrive(empty.index((it - 1) % STAGES), count=1)

        key0 = tile * KEYS
        if (key0 < all_low) | (key0 + KEYS > all_high):
            key = key0 + gl.arange(0, KEYS, gl.SliceLayout(0, LOGITS))
            visible = (key[None, :] >= low[:, None]) & (key[None, :] < high[:, None])
            logits = gl.where(visible, logits, float("-inf"))
        new_top = gl.maximum(top, gl.max(logits, 1) * logit_scale)
        shrink = gl.exp2(top - new_top)
        p = gl.exp2(logits * logit_scale - new_top[:, None])
        total = total * shrink + gl.sum(p, 1)
        top = new_top
        shrink = gl.convert_layout(shrink, gl.SliceLayout(1, SUMS), assert_trivial=True)
        acc0 = acc0 * shrink[:, None]
        acc1 = acc1 * shrink[:, None]
        p = gl.convert_layout(p.to(pieces.dtype), WEIGHTS, assert_trivial=True)

        slot = it % STAGES
        mbarrier.wait(full.index(slot), (it // STAGES) & 1)
        fence_async_shared()
        acc0 = warpgroup_mma(p, pieces.index(slot), acc0, is_async=True)
        slot1 = (it + 1) % STAGES
        mbarrier.wait(full.index(slot1), ((it + 1) // STAGES) & 1)
        fence_async_shared()
        acc1 = warpgroup_mma(p, pieces.index(slot1), acc1, is_async=True)
        acc0, acc1, p = warpgroup_mma_wait(0, deps=[acc0, acc1, p])
        mbarrier.arrive(empty.index(slot), count=1)
        mbarrier.arrive(empty.index(slot1), count=1)
        it += 2

    i = row0 + gl.arange(0, ROWS, gl.SliceLayout(1, SUMS))
    token = (start + i // GROUP).to(gl.int64)
    live = i < row_end
    column = chunk * DV + gl.arange(0, WIDTH, gl.SliceLayout(0, SUMS))
    if SPLIT:
        # An idle split leaves a sum of zero, and `combine` reads no more of it than that.
        cell = (cell0 + token) * HQ + head * GROUP + i % GROUP
        if begin < end:
            part_ptrs = partial_ptr + cell[:, None] * D + column[None, :]
            gl.store(part_ptrs, acc0, mask=live[:, None])
            gl.store(part_ptrs + WIDTH, acc1, mask=live[:, None])
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
        gl.store(out_ptrs, (acc0 * share[:, None]).to(gl.bfloat16), mask=live[:, None])
        gl.store(out_ptrs + WIDTH, (acc1 * share[:, None]).to(gl.bfloat16), mask=live[:, None])


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
    HQ: gl.constexpr,
    GROUP: gl.constexpr,
    D: gl.constexpr,
    DV: gl.constexpr,
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
    head = gl.program_id(1) // (D // DV)
    chunk = gl.program_id(1) % (D // DV)
    split = gl.program_id(2)

    request = find_request(query_start_loc_ptr, block, N, GROUP)
    start = gl.load(query_start_loc_ptr + request)
    query_len = gl.load(query_start_loc_ptr + request + 1) - start
    row0 = (block - start * GROUP // (2 * ROWS) - request) * (2 * ROWS)
    row_end = query_len * GROUP
    if row0 < row_end:
        seq_len = gl.load(seq_lens_ptr + request)
        canvas = gl.load(canvas_ptr + request) != 0
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
        full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        for i in gl.static_range(STAGES):
            mbarrier.init(full.index(i), count=1 if NARROW else FETCHING * 32)
            mbarrier.init(empty.index(i), count=2)
        ring = (pieces, full, empty)
        table_ptr = block_table_ptr + (request // PARTS).to(gl.int64) * stride_table
        source = (table_ptr, begin, end, key_low, key_high, stride_b, stride_s)
        k_ptr += head * stride_h
        v_ptr += head * stride_h + chunk * (DV // 4 if NARROW else DV)
        rows = (row0, row_end, start, head, chunk, split * T, canvas, prefix, seq_len)
        keys = (begin, end)
        strides = (stride_qt, stride_qh, stride_ot, stride_oh)
        scales = (logit_scale, v_scale)
        tensors = (q_ptr, out_ptr, partial_ptr, stats_ptr)
        gl.warp_specialize(
            [
                (
                    attend_rows,
                    (tensors, rows, keys, strides, scales, q_pieces, ring, 0, HQ, GROUP, WINDOW,
                     D, DV, SPLIT, STAGES),
                ),
                (
                    attend_rows,
                    (tensors, rows, keys, strides, scales, q_pieces, ring, 1, HQ, GROUP, WINDOW,
                     D, DV, SPLIT, STAGES),
                ),
                (
                    fetch_narrow if NARROW else fetch,
                    (k_ptr, v_ptr, source, ring, D, DV, PAGE, STAGES),
                ),
            ],
            [4, FETCHING],
            [ATTENDING_REGISTERS, FETCHING_REGISTERS],
        )
