import triton
import triton.language as tl

from diffusiongemma_kernels.moe_decode._kernel import decode, gated

ROWS = tl.constexpr(128)  # of weights a program: 64 of the gate and 64 of up, or 128 of down


@triton.jit
def nvfp4_step(acc, x_ptrs, live, codes_ptr, scales_ptr, KB: tl.constexpr):
    """acc [ROWS, N] plus KB * 64 columns of weights, which lie in one piece, times x."""
    unit = tl.arange(0, 8)[:, None, None, None]
    block = tl.arange(0, KB)[None, :, None, None]
    lane = tl.arange(0, 32)[None, None, :, None]
    half = tl.arange(0, 8)[None, None, None, :]
    codes = tl.load(codes_ptr + block * 2048 + unit * 256 + lane * 8 + half)
    block = tl.arange(0, KB)[:, None, None, None]
    unit = tl.arange(0, 4)[None, :, None, None]
    lane = tl.arange(0, 32)[None, None, :, None]
    scales = tl.load(
        scales_ptr + block * 512 + unit * 128 + lane * 4 + tl.arange(0, 4)[None, None, None, :]
    )
    x = tl.load(x_ptrs, mask=live[:, None], other=0.0)  # last: where x lies is known last
    # half of the rows before the unit
    scales = scales.reshape(KB, 4, 32, 2, 2).permute(3, 1, 0, 2, 4).reshape(8, KB, 32, 2)
    w = decode(codes, scales, 8, KB, x_ptrs.dtype.element_ty)
    return tl.dot(w, tl.trans(x), acc, input_precision="ieee")


@triton.jit
def dense_step(acc, x_ptrs, live, w_ptrs, inside, left, BLOCK_K: tl.constexpr, EVEN: tl.constexpr):
    """acc [ROWS, N] plus BLOCK_K columns of weights, `left` of which are there, times x."""
    k = tl.arange(0, BLOCK_K)[None, :]
    if EVEN:
        x = tl.load(x_ptrs, mask=live[:, None], other=0.0)
        w = tl.load(w_ptrs, mask=inside[:, None], other=0.0)
    else:
        x = tl.load(x_ptrs, mask=live[:, None] & (k < left), other=0.0)
        w = tl.load(w_ptrs, mask=inside[:, None] & (k < left), other=0.0)
    return tl.dot(w, tl.trans(x), acc, input_precision="ieee")


@triton.jit
def by_lane(x, LANE: tl.constexpr):
    """x [N, 64] in the order `order.ORDERS[LANE]`"""
    N: tl.constexpr = x.shape[0]
    return x.reshape(N, 4, 16 // LANE, LANE).permute(0, 2, 1, 3).reshape(N, 64)


@triton.jit
def gate_up_tile(
    x_ptr, w_ptr, scales_ptr, global_ptr, rows_ptr, h_ptr,
    expert, start, count, block, columns, F, stride_x, stride_h,
    K: tl.constexpr, N: tl.constexpr, BLOCK_K: tl.constexpr, FOUR_BITS: tl.constexpr,
    EVEN_K: tl.constexpr,
):  # fmt: skip
    """h[start + n, f] = gelu(gate . x) * (up . x) for n < N and the 64 f of `block`."""
    n = tl.arange(0, N)
    live = n < count
    token = tl.load(rows_ptr + start + n, mask=live, other=0) // K
    x_ptrs = x_ptr + token[:, None].to(tl.int64) * stride_x + tl.arange(0, BLOCK_K)[None, :]
    acc = tl.zeros([ROWS, N], tl.float32)
    if FOUR_BITS:
        at = (expert * tl.cdiv(F, 64) + block) * columns  # in sixteenths of ROWS rows
        w_ptr += at * 32
        scales_ptr += at * 8
        for _ in range(0, columns, BLOCK_K):
            acc = nvfp4_step(acc, x_ptrs, live, w_ptr, scales_ptr, BLOCK_K // 64)
            x_ptrs += BLOCK_K
            w_ptr += BLOCK_K * 32
            scales_ptr += BLOCK_K * 8
        acc *= tl.load(global_ptr + expert) * 256.0
    else:
        m = tl.arange(0, ROWS)
        f = block * 64 + m % 64
        row = expert * 2 * F + f + (m // 64) * F
        w_ptrs = w_ptr + row[:, None] * columns + tl.arange(0, BLOCK_K)[None, :]
        for at in range(0, columns, BLOCK_K):
            acc = dense_step(acc, x_ptrs, live, w_ptrs, f < F, columns - at, BLOCK_K, EVEN_K)
            x_ptrs += BLOCK_K
            w_ptrs += BLOCK_K
    h = tl.trans(gated(acc, ROWS, N)).to(h_ptr.dtype.element_ty)  # [N, 64]
    if FOUR_BITS:  # arranged, as `down` reads it
        h = by_lane(h, 8)
    f = block * 64 + tl.arange(0, 64)
    h_ptrs = h_ptr + (start + n)[:, None].to(tl.int64) * stride_h + f[None, :]
    tl.store(h_ptrs, h, mask=live[:, None])


@triton.jit(do_not_specialize=["TILES"])  # one compilation for every batch
def gate_up(
    x_ptr,  # [T, columns], `arranged` where the weights are NVFP4
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
    BLOCK_K: tl.constexpr,
    FOUR_BITS: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    block, i = tl.program_id(0), tl.program_id(1)
    expert = tl.load(tiles_ptr + i).to(tl.int64)
    start = tl.load(tiles_ptr + TILES + i)
    count = tl.load(tiles_ptr + 2 * TILES + i)
    if count == 0:
        return
    if TAIL_N < BLOCK_N and count <= TAIL_N:
        gate_up_tile(
            x_ptr, w_ptr, scales_ptr, global_ptr, rows_ptr, h_ptr, expert, start, count, block,
            columns, F, stride_x, stride_h, K, TAIL_N, BLOCK_K, FOUR_BITS, EVEN_K,
        )  # fmt: skip
    else:
        gate_up_tile(
            x_ptr, w_ptr, scales_ptr, global_ptr, rows_ptr, h_ptr, expert, start, count, block,
            columns, F, stride_x, stride_h, K, BLOCK_N, BLOCK_K, FOUR_BITS, EVEN_K,
        )  # fmt: skip


@triton.jit
def down_tile(
    h_ptr, w_ptr, scales_ptr, global_ptr, rows_ptr, weight_ptr, slots_ptr,
    expert, start, count, block, columns, H, stride_h,
    N: tl.constexpr, BLOCK_K: tl.constexpr, FOUR_BITS: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """slots[row, m] = weight[row] * (down . h) for N rows and the 128 m of `block`."""
    n = tl.arange(0, N)
    live = n < count
    x_ptrs = h_ptr + (start + n)[:, None].to(tl.int64) * stride_h + tl.arange(0, BLOCK_K)[None, :]
    m = block * 128 + tl.arange(0, ROWS)
    acc = tl.zeros([ROWS, N], tl.float32)
    if FOUR_BITS:
        at = (expert * tl.cdiv(H, 128) + block) * columns
        w_ptr += at * 32
        scales_ptr += at * 8
        for _ in range(0, columns, BLOCK_K):
            acc = nvfp4_step(acc, x_ptrs, live, w_ptr, scales_ptr, BLOCK_K // 64)
            x_ptrs += BLOCK_K
            w_ptr += BLOCK_K * 32
            scales_ptr += BLOCK_K * 8
    else:
        w_ptrs = w_ptr + (expert * H + m)[:, None] * columns + tl.arange(0, BLOCK_K)[None, :]
        for at in range(0, columns, BLOCK_K):
            acc = dense_step(acc, x_ptrs, live, w_ptrs, m < H, columns - at, BLOCK_K, EVEN_K)
            x_ptrs += BLOCK_K
            w_ptrs += BLOCK_K
    row = tl.load(rows_ptr + start + n, mask=live, other=0)
    weight = tl.load(weight_ptr + row, mask=live, other=0.0)
    if FOUR_BITS:
        weight *= tl.load(global_ptr + expert) * 256.0
    y = tl.trans((acc * weight[None, :]).to(slots_ptr.dtype.element_ty))
    slots_ptrs = slots_ptr + row[:, None].to(tl.int64) * H + m[None, :]
    tl.store(slots_ptrs, y, mask=live[:, None] & (m < H)[None, :])


@triton.jit(do_not_specialize=["TILES"])
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
    BLOCK_K: tl.constexpr,
    FOUR_BITS: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    block, i = tl.program_id(0), tl.program_id(1)
    expert = tl.load(tiles_ptr + i).to(tl.int64)
    start = tl.load(tiles_ptr + TILES + i)
    count = tl.load(tiles_ptr + 2 * TILES + i)
    if count == 0:
        return
    if TAIL_N < BLOCK_N and count <= TAIL_N:
        down_tile(
            h_ptr, w_ptr, scales_ptr, global_ptr, rows_ptr, weight_ptr, slots_ptr, expert, start,
            count, block, columns, H, stride_h, TAIL_N, BLOCK_K, FOUR_BITS, EVEN_K,
        )  # fmt: skip
    else:
        down_tile(
            h_ptr, w_ptr, scales_ptr, global_ptr, rows_ptr, weight_ptr, slots_ptr, expert, start,
            count, block, columns, H, stride_h, BLOCK_N, BLOCK_K, FOUR_BITS, EVEN_K,
        )  # fmt: skip


@triton.jit
def slot_sum(slots_ptr, ids_ptr, t, h, H, E, K: tl.constexpr):
    """A row's slots of experts 0 .. E - 1 in their order.   h [BLOCK]  ->  [BLOCK] f32"""
    total = tl.zeros(h.shape, tl.float32)
    for k in tl.static_range(K):
        expert = tl.load(ids_ptr + t * K + k)
        written = tl.where((expert >= 0) & (expert < E), H, 0)
        part = tl.load(slots_ptr + (t * K + k) * H + h, mask=h < written, other=0.0)
        total += part.to(tl.float32)
    return total


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
    total = slot_sum(slots_ptr, ids_ptr, t, h, H, E, K)
    tl.store(y_ptr + t * H + h, total.to(y_ptr.dtype.element_ty), mask=h < H)
