import triton
import triton.language as tl

from diffusiongemma_kernels.moe_decode._kernel import decode, gated


@triton.jit
def nvfp4_product(
    x_ptrs,  # [N, KB * 64] rows of activations
    live,  # [N]
    codes_ptr,  # of an expert: [rows / 64, blocks, 4, 32, 8] i16
    scales_ptr,  # of an expert: [rows / 128, blocks, 4, 32, 2, 2] u8
    first,  # of the rows of weights, in blocks of 128
    blocks,  # of 64 columns
    N: tl.constexpr,
    U: tl.constexpr,
    KB: tl.constexpr,
    LANE: tl.constexpr,
):
    """Weights of U * 16 rows times N rows of activations.  [U * 16, N] f32"""
    BLOCKS_M: tl.constexpr = U // 8
    unit = tl.arange(0, U)[:, None, None, None]
    kb = tl.arange(0, KB)[None, :, None, None]
    lane = tl.arange(0, 32)[None, None, :, None]
    half = tl.arange(0, 8)[None, None, None, :]
    code = ((unit // 4) * blocks + kb) * 1024 + (unit % 4) * 256 + lane * 8 + half
    codes_ptr += first.to(tl.int64) * blocks * 2048

    m = tl.arange(0, BLOCKS_M)[:, None, None, None, None]
    sb = tl.arange(0, KB)[None, :, None, None, None]
    su = tl.arange(0, 4)[None, None, :, None, None]
    sl = tl.arange(0, 32)[None, None, None, :, None]
    scale = (m * blocks + sb) * 512 + su * 128 + sl * 4 + tl.arange(0, 4)
    scales_ptr += first.to(tl.int64) * blocks * 512

    acc = tl.zeros([U * 16, N], tl.float32)
    for _ in range(0, blocks, KB):
        x = tl.load(x_ptrs, mask=live[:, None], other=0.0)
        codes = tl.load(codes_ptr + code)
        s = tl.load(scales_ptr + scale).reshape(BLOCKS_M, KB, 4, 32, 2, 2)
        s = s.permute(0, 4, 2, 1, 3, 5).reshape(U, KB, 32, 2)  # half of a block before the unit
        w = decode(codes, s, U, KB, LANE, x_ptrs.dtype.element_ty)
        acc = tl.dot(w, tl.trans(x), acc, input_precision="ieee")
        x_ptrs += KB * 64
        codes_ptr += KB * 1024
        scales_ptr += KB * 512
    return acc


@triton.jit
def dense_product(
    x_ptrs,  # [N, BLOCK_K]
    live,  # [N]
    w_ptrs,  # [M, BLOCK_K]
    inside,  # [M]
    columns,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """Dense weights of M rows times N rows of activations.  [M, N] f32"""
    k = tl.arange(0, BLOCK_K)[None, :]
    acc = tl.zeros([M, N], tl.float32)
    for start in range(0, columns, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptrs, mask=live[:, None], other=0.0)
            w = tl.load(w_ptrs, mask=inside[:, None], other=0.0)
        else:
            x = tl.load(x_ptrs, mask=live[:, None] & (start + k < columns), other=0.0)
            w = tl.load(w_ptrs, mask=inside[:, None] & (start + k < columns), other=0.0)
        acc = tl.dot(w, tl.trans(x), acc, input_precision="ieee")
        x_ptrs += BLOCK_K
        w_ptrs += BLOCK_K
    return acc


@triton.jit
def gate_up_tile(
    x_ptr,
    w_ptr,
    scales_ptr,
    global_ptr,
    rows_ptr,
    h_ptr,
    expert,
    start,
    count,
    first,
    columns,
    F,
    stride_x,
    stride_h,
    K: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LANE: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """h[start + n] = gelu(gate . x) * (up . x) for M / 2 columns of h and N rows."""
    n = tl.arange(0, N)
    live = n < count
    token = tl.load(rows_ptr + start + n, mask=live, other=0) // K
    x_ptrs = x_ptr + token[:, None].to(tl.int64) * stride_x + tl.arange(0, BLOCK_K)[None, :]
    # Rows come as blocks of 64 for the gate and 64 of the same columns of h for up.
    if LANE > 0:
        per_expert = tl.cdiv(F, 64) * columns  # in sixteenths of a row of 128
        product = nvfp4_product(
            x_ptrs, live, w_ptr + expert * per_expert * 32, scales_ptr + expert * per_expert * 8,
            first, columns // 64, N, M // 16, BLOCK_K // 64, LANE,
        )  # fmt: skip
        product *= tl.load(global_ptr + expert) * 256.0
    else:
        m = tl.arange(0, M)
        f = (first + m // 128) * 64 + m % 64
        row = f + (m // 64 % 2) * F  # [M]
        w_ptrs = w_ptr + (expert * 2 * F + row)[:, None] * columns + tl.arange(0, BLOCK_K)[None, :]
        product = dense_product(x_ptrs, live, w_ptrs, f < F, columns, M, N, BLOCK_K, EVEN_K)
    h = gated(product, M, N)  # [M / 2, N]
    f = first * 64 + tl.arange(0, M // 2)
    ptrs = h_ptr + (start + n)[:, None].to(tl.int64) * stride_h + f[None, :]
    mask = live[:, None] & (f < stride_h)[None, :]
    h = tl.trans(h).to(h_ptr.dtype.element_ty)  # [N, M / 2]
    if LANE > 0:  # `moe_sort`'s order, in which `down` reads it
        h = h.reshape(N, M // 128, 4, 16 // LANE, LANE).permute(0, 1, 3, 2, 4).reshape(N, M // 2)
    tl.store(ptrs, h, mask=mask)


@triton.jit
def gate_up_rows(
    x_ptr,
    w_ptr,
    scales_ptr,
    global_ptr,
    rows_ptr,
    h_ptr,
    expert,
    start,
    count,
    columns,
    F,
    stride_x,
    stride_h,
    K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LANE: tl.constexpr,
    HALF_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """A whole tile, or the half that is left of an odd number of blocks."""
    first = tl.program_id(0) * (BLOCK_M // 128)
    if HALF_K > 0 and (first + 1) * 64 >= F:
        gate_up_tile(
            x_ptr, w_ptr, scales_ptr, global_ptr, rows_ptr, h_ptr, expert, start, count, first,
            columns, F, stride_x, stride_h, K, N, BLOCK_M // 2, HALF_K, LANE, EVEN_K,
        )  # fmt: skip
    else:
        gate_up_tile(
            x_ptr, w_ptr, scales_ptr, global_ptr, rows_ptr, h_ptr, expert, start, count, first,
            columns, F, stride_x, stride_h, K, N, BLOCK_M, BLOCK_K, LANE, EVEN_K,
        )  # fmt: skip


@triton.jit
def gate_up(
    x_ptr,  # [T, columns], in the order of `moe_sort` where the weights are NVFP4
    w_ptr,  # [E, 2 F, columns], or codes
    scales_ptr,
    global_ptr,  # [E] f32
    rows_ptr,  # [T * K] i32, token * K + slot by expert
    tiles_ptr,  # [3, TILES] i32: expert, start, count
    h_ptr,  # [T * K, F rounded up to 64]
    columns,
    F,
    TILES,
    stride_x,
    stride_h,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LANE: tl.constexpr,
    HALF_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    i = tl.program_id(1)
    expert = tl.load(tiles_ptr + i).to(tl.int64)
    start = tl.load(tiles_ptr + TILES + i)
    count = tl.load(tiles_ptr + 2 * TILES + i)
    if count == 0:
        return
    if TAIL_N < BLOCK_N and count <= TAIL_N:
        gate_up_rows(
            x_ptr, w_ptr, scales_ptr, global_ptr, rows_ptr, h_ptr, expert, start, count, columns,
            F, stride_x, stride_h, K, TAIL_N, BLOCK_M, BLOCK_K, LANE, HALF_K, EVEN_K,
        )  # fmt: skip
    else:
        gate_up_rows(
            x_ptr, w_ptr, scales_ptr, global_ptr, rows_ptr, h_ptr, expert, start, count, columns,
            F, stride_x, stride_h, K, BLOCK_N, BLOCK_M, BLOCK_K, LANE, HALF_K, EVEN_K,
        )  # fmt: skip


@triton.jit
def down_tile(
    h_ptr,
    w_ptr,
    scales_ptr,
    global_ptr,
    rows_ptr,
    weight_ptr,
    slots_ptr,
    expert,
    start,
    count,
    first,
    columns,
    H,
    stride_h,
    N: tl.constexpr,
    M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LANE: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """slots[row] = weight[row] * (down . h) for M columns of it and N rows."""
    n = tl.arange(0, N)
    live = n < count
    row = tl.load(rows_ptr + start + n, mask=live, other=0)
    x_ptrs = h_ptr + (start + n)[:, None].to(tl.int64) * stride_h + tl.arange(0, BLOCK_K)[None, :]
    weight = tl.load(weight_ptr + row, mask=live, other=0.0)
    m = first * 128 + tl.arange(0, M)
    if LANE > 0:
        per_expert = tl.cdiv(H, 128) * columns
        product = nvfp4_product(
            x_ptrs, live, w_ptr + expert * per_expert * 32, scales_ptr + expert * per_expert * 8,
            first, columns // 64, N, M // 16, BLOCK_K // 64, LANE,
        )  # fmt: skip
        weight *= tl.load(global_ptr + expert) * 256.0
    else:
        w_ptrs = w_ptr + (expert * H + m)[:, None] * columns + tl.arange(0, BLOCK_K)[None, :]
        product = dense_product(x_ptrs, live, w_ptrs, m < H, columns, M, N, BLOCK_K, EVEN_K)
    y = (product * weight[None, :]).to(slots_ptr.dtype.element_ty)
    ptrs = slots_ptr + row[:, None].to(tl.int64) * H + m[None, :]
    tl.store(ptrs, tl.trans(y), mask=live[:, None] & (m < H)[None, :])


@triton.jit
def down_rows(
    h_ptr,
    w_ptr,
    scales_ptr,
    global_ptr,
    rows_ptr,
    weight_ptr,
    slots_ptr,
    expert,
    start,
    count,
    columns,
    H,
    stride_h,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LANE: tl.constexpr,
    HALF_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    first = tl.program_id(0) * (BLOCK_M // 128)
    if HALF_K > 0 and (first + 1) * 128 >= H:
        down_tile(
            h_ptr, w_ptr, scales_ptr, global_ptr, rows_ptr, weight_ptr, slots_ptr, expert, start,
            count, first, columns, H, stride_h, N, BLOCK_M // 2, HALF_K, LANE, EVEN_K,
        )  # fmt: skip
    else:
        down_tile(
            h_ptr, w_ptr, scales_ptr, global_ptr, rows_ptr, weight_ptr, slots_ptr, expert, start,
            count, first, columns, H, stride_h, N, BLOCK_M, BLOCK_K, LANE, EVEN_K,
        )  # fmt: skip


@triton.jit
def down(
    h_ptr,  # [T * K, F rounded up to 64]
    w_ptr,  # [E, H, columns], or codes
    scales_ptr,
    global_ptr,  # [E] f32
    rows_ptr,  # [T * K] i32
    tiles_ptr,  # [3, TILES] i32
    weight_ptr,  # [T * K] f32
    slots_ptr,  # [T * K, H]
    columns,
    H,
    TILES,
    stride_h,
    BLOCK_N: tl.constexpr,
    TAIL_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LANE: tl.constexpr,
    HALF_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    i = tl.program_id(1)
    expert = tl.load(tiles_ptr + i).to(tl.int64)
    start = tl.load(tiles_ptr + TILES + i)
    count = tl.load(tiles_ptr + 2 * TILES + i)
    if count == 0:
        return
    if TAIL_N < BLOCK_N and count <= TAIL_N:
        down_rows(
            h_ptr, w_ptr, scales_ptr, global_ptr, rows_ptr, weight_ptr, slots_ptr, expert, start,
            count, columns, H, stride_h, TAIL_N, BLOCK_M, BLOCK_K, LANE, HALF_K, EVEN_K,
        )  # fmt: skip
    else:
        down_rows(
            h_ptr, w_ptr, scales_ptr, global_ptr, rows_ptr, weight_ptr, slots_ptr, expert, start,
            count, columns, H, stride_h, BLOCK_N, BLOCK_M, BLOCK_K, LANE, HALF_K, EVEN_K,
        )  # fmt: skip


@triton.jit
def add_slots(
    slots_ptr,  # [T, K, H]
    ids_ptr,  # [T, K] i32
    y_ptr,  # [T, H]
    H,
    E,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    total = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(K):
        expert = tl.load(ids_ptr + t * K + k)
        written = tl.where((expert >= 0) & (expert < E), H, 0)
        part = tl.load(slots_ptr + (t * K + k) * H + h, mask=h < written, other=0.0)
        total += part.to(tl.float32)
    tl.store(y_ptr + t * H + h, total.to(y_ptr.dtype.element_ty), mask=h < H)
