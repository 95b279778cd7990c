import triton
import triton.language as tl

LOWEST = tl.constexpr(-1.0e30)  # a finite start: exp2(LOWEST - LOWEST) is 1, never NaN
SEARCH = tl.constexpr(128)


@triton.jit
def find_request(query_start_loc_ptr, block, N, GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    """The request of row tile `block`: request i owns tiles from start_i * GROUP // BLOCK_M + i."""
    begun = 0
    for first in range(0, N, SEARCH):
        ids = first + tl.arange(0, SEARCH)  # [SEARCH]
        start = tl.load(query_start_loc_ptr + ids, mask=ids < N, other=0)
        begun += tl.sum(((start * GROUP // BLOCK_M + ids <= block) & (ids < N)).to(tl.int32))
    return begun - 1


@triton.jit(do_not_specialize=["N", "T"])  # one compilation for every batch
def attend(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [pages, PAGE, Hkv, D]
    v_ptr,  # [pages, PAGE, Hkv, D]
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
    stride_kb,
    stride_ks,
    stride_kh,
    stride_vb,
    stride_vs,
    stride_vh,
    stride_table,
    WINDOW: tl.constexpr,
    IMAGES: tl.constexpr,
    HQ: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    SPLIT: tl.constexpr,  # whether several programs share a row tile's keys
    MIN_TILES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    block = tl.program_id(0)
    head = tl.program_id(1) // (D // BLOCK_DV)
    chunk = tl.program_id(1) % (D // BLOCK_DV)
    split = tl.program_id(2)

    request = find_request(query_start_loc_ptr, block, N, GROUP, BLOCK_M)
    start = tl.load(query_start_loc_ptr + request)
    query_len = tl.load(query_start_loc_ptr + request + 1) - start
    row0 = (block - start * GROUP // BLOCK_M - request) * BLOCK_M
    if row0 >= query_len * GROUP:
        return
    seq_len = tl.load(seq_lens_ptr + request)
    canvas = tl.load(canvas_ptr + request) != 0
    prefix = seq_len - query_len

    rows = row0 + tl.arange(0, BLOCK_M)  # [BLOCK_M], row = query * GROUP + head of the group
    live = rows < query_len * GROUP
    query = rows // GROUP
    heads = head * GROUP + rows % GROUP
    token = (start + query).to(tl.int64)

    # Row r sees keys low[r] <= key < high[r]; on a canvas all rows see what its first row sees.
    low = tl.where(canvas, prefix, prefix + query)
    high = tl.where(canvas, seq_len, prefix + query + 1)
    first_query = row0 // GROUP
    last_query = tl.minimum((row0 + BLOCK_M - 1) // GROUP, query_len - 1)
    key_low = 0
    key_high = tl.where(canvas, seq_len, prefix + last_query + 1)
    if WINDOW > 0:
        low = tl.maximum(low - (WINDOW - 1), 0)
        key_low = tl.maximum(tl.where(canvas, prefix, prefix + first_query) - (WINDOW - 1), 0)
    else:
        low = tl.zeros_like(low)
    if IMAGES:
        # An image's row sees it whole: what it sees stays one range.
        first = tl.load(images_ptr + token * 2, mask=live, other=2147483647)
        behind = tl.load(images_ptr + token * 2 + 1, mask=live, other=0)
        low = tl.minimum(low, first)
        high = tl.maximum(high, behind)
        key_low = tl.minimum(key_low, tl.min(first, 0))
        key_high = tl.maximum(key_high, tl.max(behind, 0))

    first_tile = key_low // BLOCK_N
    last_tile = tl.cdiv(key_high, BLOCK_N)
    share = tl.maximum(tl.cdiv(last_tile - first_tile, tl.num_programs(2)), MIN_TILES)
    begin = first_tile + split * share
    end = tl.minimum(begin + share, last_tile)
    if not SPLIT:
        begin = first_tile
        end = last_tile
        if begin >= end:
            return

    columns = tl.arange(0, D)  # [D]
    value_columns = chunk * BLOCK_DV + tl.arange(0, BLOCK_DV)  # [BLOCK_DV]
    q_rows = q_ptr + token * stride_qt + heads * stride_qh
    q = tl.load(q_rows[:, None] + columns[None, :], mask=live[:, None], other=0.0)  # [BLOCK_M, D]

    table_ptr = block_table_ptr + (request // PARTS).to(tl.int64) * stride_table
    k_ptr += head * stride_kh
    v_ptr += head * stride_vh
    top = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for tile in range(begin, end):
        key0 = tile * BLOCK_N
        keys = key0 + tl.arange(0, BLOCK_N)  # [BLOCK_N]
        # Outside this range a page may be foreign or hold NaN: never read it.
        seen = (keys >= key_low) & (keys < key_high)
        if PAGE % BLOCK_N == 0:
            page = tl.load(table_ptr + key0 // PAGE).to(tl.int64)
            k_page = k_ptr + page * stride_kb
            v_page = v_ptr + page * stride_vb
            slot = key0 % PAGE + tl.arange(0, BLOCK_N)  # [BLOCK_N]
            k_rows = k_page + slot * stride_ks
            v_rows = v_page + slot * stride_vs
        else:
            page = tl.load(table_ptr + keys // PAGE, mask=seen, other=0).to(tl.int64)  # [BLOCK_N]
            k_rows = k_ptr + page * stride_kb + (keys % PAGE) * stride_ks
            v_rows = v_ptr + page * stride_vb + (keys % PAGE) * stride_vs

        k = tl.load(k_rows[:, None] + columns[None, :], mask=seen[:, None], other=0.0)
        k = k.to(q.dtype)  # [BLOCK_N, D]
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        visible = (keys[None, :] >= low[:, None]) & (keys[None, :] < high[:, None])
        logits = tl.where(visible, logits, float("-inf"))

        new_top = tl.maximum(top, tl.max(logits, 1) * logit_scale)  # [BLOCK_M]
        shrink = tl.exp2(top - new_top)
        p = tl.exp2(logits * logit_scale - new_top[:, None])  # [BLOCK_M, BLOCK_N]
        total = total * shrink + tl.sum(p, 1)
        top = new_top

        v = tl.load(v_rows[:, None] + value_columns[None, :], mask=seen[:, None], other=0.0)
        v = v.to(q.dtype)  # [BLOCK_N, BLOCK_DV]
        acc = acc * shrink[:, None]
        acc = tl.dot(p.to(q.dtype), v, acc, input_precision=PRECISION)  # [BLOCK_M, BLOCK_DV]

    if not SPLIT:
        acc = acc * (v_scale / total)[:, None]
        out_rows = out_ptr + token * stride_ot + heads * stride_oh
        out = acc.to(out_ptr.dtype.element_ty)
        tl.store(out_rows[:, None] + value_columns[None, :], out, mask=live[:, None])
    else:
        # An idle split leaves a sum of zero, and `combine` reads no more of it than that.
        cell = (split * T + token) * HQ + heads  # [BLOCK_M]
        if chunk == 0:
            tl.store(stats_ptr + cell * 2, top, mask=live)
            tl.store(stats_ptr + cell * 2 + 1, total, mask=live)
        if begin < end:
            part_rows = partial_ptr + cell * D
            tl.store(part_rows[:, None] + value_columns[None, :], acc, mask=live[:, None])


@triton.jit(do_not_specialize=["N", "T"])
def combine(
    partial_ptr,  # [SPLITS, T, Hq, D] f32
    stats_ptr,  # [SPLITS, T, Hq, 2] f32
    out_ptr,  # [T, Hq, D]
    query_start_loc_ptr,  # [N + 1]
    N,
    T,
    v_scale,
    stride_ot,
    stride_oh,
    HQ: tl.constexpr,
    D: tl.constexpr,
    SPLITS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    if token >= tl.load(query_start_loc_ptr + N):
        return
    cell = (tl.arange(0, SPLITS) * tl.cast(T, tl.int64) + token) * HQ + head  # [SPLITS]
    top = tl.load(stats_ptr + cell * 2)
    total = tl.load(stats_ptr + cell * 2 + 1)
    weight = tl.exp2(top - tl.max(top, 0))  # [SPLITS]
    total_all = tl.sum(total * weight, 0)

    columns = tl.arange(0, D)  # [D]
    part = tl.load(  # [SPLITS, D]
        partial_ptr + cell[:, None] * D + columns[None, :], mask=total[:, None] > 0.0, other=0.0
    )
    out = tl.sum(part * weight[:, None], 0) * (v_scale / total_all)
    if total_all > 0.0:
        out_row = out_ptr + token * stride_ot + head * stride_oh
        tl.store(out_row + columns, out.to(out_ptr.dtype.element_ty))
