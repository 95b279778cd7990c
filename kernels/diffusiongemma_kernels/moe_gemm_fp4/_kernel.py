import triton
import triton.language as tl

from diffusiongemma_kernels.moe_decode._kernel import as_float, field, gated


@triton.jit
def e4m3_bits(x):
    """Nearest e4m3 of numbers in 0 .. 448, ties to even, as i32 (the interpreter's cast is off)."""
    small = (x * 512.0 + 12582912.0) - 12582912.0  # a sum of 2^23 and more rounds to whole numbers
    bits = x.to(tl.int32, bitcast=True)
    large = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - ((127 - 7) << 3)
    return tl.where(x < 0.015625, small.to(tl.int32), large)


@triton.jit
def e4m3_value(bits):
    """Bits of an e4m3 without a sign, i32 -> f32."""
    return (bits << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120


@triton.jit(do_not_specialize=["TILES"])  # one compilation for every batch
def quantise(
    x_ptr,  # [., C]
    rows_ptr,  # [T * K] i32
    tiles_ptr,  # [3, TILES] i32
    input_scale_ptr,  # [E] f32
    codes_ptr,  # [T * K, C / 2] u8
    scales_ptr,  # [T * K, C / 16] u8
    C,
    TILES,
    stride_x,
    K: tl.constexpr,  # 0: x is by expert already
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    i = tl.program_id(1)
    expert = tl.load(tiles_ptr + i)
    start = tl.load(tiles_ptr + TILES + i)
    count = tl.load(tiles_ptr + 2 * TILES + i)
    if count == 0:
        return
    n = tl.arange(0, BLOCK_N)
    at = (start + n).to(tl.int64)[:, None]
    if K > 0:
        source = (tl.load(rows_ptr + start + n, mask=n < count, other=0) // K).to(tl.int64)[:, None]
    else:
        source = at
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    live = (n < count)[:, None]
    x = tl.load(x_ptr + source * stride_x + c, mask=live & (c < C), other=0.0).to(tl.float32)
    blocks = x.reshape(BLOCK_N, BLOCK_C // 16, 16)
    size = tl.abs(blocks)
    factor = tl.load(input_scale_ptr + expert)
    scale = e4m3_bits(tl.minimum(tl.div_rn(tl.max(size, 2), 6.0 * factor), 448.0))
    step = (e4m3_value(scale) * factor)[:, :, None]  # [N, C / 16, 1]
    v = tl.where(step > 0.0, tl.div_rn(size, tl.where(step > 0.0, step, 1.0)), 0.0)
    code = (v > 0.25).to(tl.int32) + (v >= 0.75).to(tl.int32) + (v > 1.25).to(tl.int32)
    code += (v >= 1.75).to(tl.int32) + (v > 2.5).to(tl.int32) + (v >= 3.5).to(tl.int32)
    code += (v > 5.0).to(tl.int32) + (blocks < 0.0).to(tl.int32) * 8
    low, high = tl.split(code.reshape(BLOCK_N, BLOCK_C // 2, 2))
    b = tl.program_id(0) * (BLOCK_C // 2) + tl.arange(0, BLOCK_C // 2)[None, :]
    both = (low | (high << 4)).to(tl.uint8)
    tl.store(codes_ptr + at * (C // 2) + b, both, mask=live & (b < C // 2))
    s = tl.program_id(0) * (BLOCK_C // 16) + tl.arange(0, BLOCK_C // 16)[None, :]
    tl.store(scales_ptr + at * (C // 16) + s, scale.to(tl.uint8), mask=live & (s < C // 16))


@triton.jit
def numbers(codes, scales, R: tl.constexpr, BLOCK_K: tl.constexpr):
    """codes [R, BLOCK_K / 2] u8, scales [R, BLOCK_K / 16] u8 -> [R, BLOCK_K] f32"""
    c = codes.to(tl.int32)
    both = tl.join(field(c & 15, 6, 12), field(c >> 4, 6, 12))
    values = as_float(both.reshape(R, BLOCK_K // 16, 16), tl.float32) * 8.507059173023462e37
    return (values * e4m3_value(scales.to(tl.int32))[:, :, None]).reshape(R, BLOCK_K)


@triton.jit
def fp4_product(
    x_ptr,  # [rows, C / 2] u8
    xs_ptr,  # [rows, C / 16] u8
    at,  # [N]
    live,  # [N]
    w_ptr,  # of an expert: [R, C / 2] u8
    ws_ptr,  # of an expert: [R, C / 16] u8
    row,  # [M]
    inside,  # [M]
    C,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    ALIGN: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """Weights of M rows times N rows of activations, without the factors of either.  [M, N] f32"""
    byte = tl.arange(0, BLOCK_K // 2)[None, :]
    block = tl.arange(0, BLOCK_K // 16)[None, :]
    codes, scales = tl.multiple_of(C // 2, 8 * ALIGN), tl.multiple_of(C // 16, ALIGN)  # a row
    w_ptrs = w_ptr + row[:, None].to(tl.int64) * codes + byte
    ws_ptrs = ws_ptr + row[:, None].to(tl.int64) * scales + block
    x_ptrs = x_ptr + at[:, None].to(tl.int64) * codes + byte
    xs_ptrs = xs_ptr + at[:, None].to(tl.int64) * scales + block
    acc = tl.zeros([M, N], tl.float32)
    for start in range(0, C, BLOCK_K):
        if EVEN_K:
            w = tl.load(w_ptrs, mask=inside[:, None], other=0)
            ws = tl.load(ws_ptrs, mask=inside[:, None], other=0)
            x = tl.load(x_ptrs, mask=live[:, None], other=0)
            xs = tl.load(xs_ptrs, mask=live[:, None], other=0)
        else:
            k, s = start // 2 + byte < codes, start // 16 + block < scales
            w = tl.load(w_ptrs, mask=inside[:, None] & k, other=0)
            ws = tl.load(ws_ptrs, mask=inside[:, None] & s, other=0)
            x = tl.load(x_ptrs, mask=live[:, None] & k, other=0)
            xs = tl.load(xs_ptrs, mask=live[:, None] & s, other=0)
        if NATIVE:
            acc = tl.dot_scaled(
                w, ws.to(tl.float8e4nv, bitcast=True), "e2m1",
                tl.trans(x), xs.to(tl.float8e4nv, bitcast=True), "e2m1", acc,
            )  # fmt: skip
        else:
            left, right = numbers(w, ws, M, BLOCK_K), numbers(x, xs, N, BLOCK_K)
            acc = tl.dot(left, tl.trans(right), acc, input_precision="ieee")
        w_ptrs += BLOCK_K // 2
        ws_ptrs += BLOCK_K // 16
        x_ptrs += BLOCK_K // 2
        xs_ptrs += BLOCK_K // 16
    return acc


@triton.jit(do_not_specialize=["TILES"])
def gate_up(
    x_ptr,  # [T * K, C / 2] u8
    xs_ptr,  # [T * K, C / 16] u8
    w_ptr,  # [E, 2 F, C / 2] u8
    ws_ptr,  # [E, 2 F, C / 16] u8
    global_ptr,  # [E] f32
    input_ptr,  # [E] f32
    tiles_ptr,  # [3, TILES] i32
    h_ptr,  # [T * K, F]
    C,
    F,
    TILES,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    ALIGN: tl.constexpr,
    NATIVE: tl.constexpr,
):
    i = tl.program_id(1)
    expert = tl.load(tiles_ptr + i).to(tl.int64)
    start = tl.load(tiles_ptr + TILES + i)
    count = tl.load(tiles_ptr + 2 * TILES + i)
    if count == 0:
        return
    n = tl.arange(0, BLOCK_N)
    live = n < count
    m = tl.arange(0, BLOCK_M)
    f = tl.program_id(0) * (BLOCK_M // 2) + m // 128 * 64 + m % 64
    row = f + (m // 64 % 2) * F
    product = fp4_product(
        x_ptr, xs_ptr, start + n, live, w_ptr + expert * F * C, ws_ptr + expert * F * (C // 8), row,
        f < F, C, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, ALIGN, NATIVE,
    )  # fmt: skip
    product *= tl.load(global_ptr + expert) * tl.load(input_ptr + expert)
    h = gated(product, BLOCK_M, BLOCK_N)
    f = tl.program_id(0) * (BLOCK_M // 2) + tl.arange(0, BLOCK_M // 2)
    ptrs = h_ptr + (start + n)[:, None].to(tl.int64) * F + f[None, :]
    mask = live[:, None] & (f < F)[None, :]
    tl.store(ptrs, tl.trans(h).to(h_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["TILES"])
def down(
    x_ptr,  # [T * K, C / 2] u8
    xs_ptr,  # [T * K, C / 16] u8
    w_ptr,  # [E, H, C / 2] u8
    ws_ptr,  # [E, H, C / 16] u8
    global_ptr,  # [E] f32
    input_ptr,  # [E] f32
    rows_ptr,  # [T * K] i32
    tiles_ptr,  # [3, TILES] i32
    weight_ptr,  # [T * K] f32
    slots_ptr,  # [T * K, H]
    C,
    H,
    TILES,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    ALIGN: tl.constexpr,
    NATIVE: tl.constexpr,
):
    i = tl.program_id(1)
    expert = tl.load(tiles_ptr + i).to(tl.int64)
    start = tl.load(tiles_ptr + TILES + i)
    count = tl.load(tiles_ptr + 2 * TILES + i)
    if count == 0:
        return
    n = tl.arange(0, BLOCK_N)
    live = n < count
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    product = fp4_product(
        x_ptr, xs_ptr, start + n, live, w_ptr + expert * H * (C // 2),
        ws_ptr + expert * H * (C // 16), m, m < H, C, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, ALIGN,
        NATIVE,
    )  # fmt: skip
    row = tl.load(rows_ptr + start + n, mask=live, other=0)
    weight = tl.load(weight_ptr + row, mask=live, other=0.0)
    weight *= tl.load(global_ptr + expert) * tl.load(input_ptr + expert)
    y = (product * weight[None, :]).to(slots_ptr.dtype.element_ty)
    ptrs = slots_ptr + row[:, None].to(tl.int64) * H + m[None, :]
    tl.store(ptrs, tl.trans(y), mask=live[:, None] & (m < H)[None, :])
