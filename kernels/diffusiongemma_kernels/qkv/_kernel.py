import triton
import triton.language as tl

FP8_MAX = tl.constexpr(448.0)
FP8_NAN = tl.constexpr(0x7F)


@triton.jit
def halved(x, LEVELS: tl.constexpr):
    """x [M, 2 ** LEVELS]  ->  [M], its second half added to its first until one number is left"""
    for _ in tl.static_range(LEVELS):
        x = tl.sum(x.reshape(x.shape[0], 2, x.shape[1] // 2), 1)
    return x.reshape(x.shape[0])


@triton.jit
def total(x, LEVELS: tl.constexpr):
    """x [BLOCK, 32 << LEVELS]  ->  [BLOCK, 1], in one order whatever threads hold it"""
    BLOCK: tl.constexpr = x.shape[0]
    parts = halved(x.reshape(BLOCK << LEVELS, 32), 5)
    return halved(parts.reshape(BLOCK, 1 << LEVELS), LEVELS)[:, None]


@triton.jit
def kept(row, scale, kind: tl.constexpr):
    """row as a cache of such numbers holds it; only fp8 is scaled"""
    if kind == tl.float8e4nv:
        row = tl.div_rn(row.to(tl.float32), scale)
        bits = tl.clamp(row, -FP8_MAX, FP8_MAX).to(kind).to(tl.uint8, bitcast=True)
        # A request ends by the NaN or Inf in its cache, which clamping would hide.
        return tl.where(tl.abs(row) < float("inf"), bits, FP8_NAN).to(kind, bitcast=True)
    else:
        return row.to(kind)


@triton.jit
def weights(q_ptrs, k_ptrs, is_q, is_k, mask):
    """[BLOCK, D / 2], of q's norm, of k's, or ones for v's"""
    q = tl.load(q_ptrs, mask=mask & is_q, other=1.0).to(tl.float32)
    return tl.where(is_q, q, tl.load(k_ptrs, mask=mask & is_k, other=1.0).to(tl.float32))


@triton.jit(do_not_specialize=["S"])  # one compilation for every batch
def turned_into_cache(
    qkv_ptr,  # [T, (Q + 2 KV) * D]
    angles_ptr,  # [T, 2, D / 2], cosines and sines
    q_weight_ptr,  # [D]
    k_weight_ptr,  # [D]
    q_ptr,  # [T, Q * D]
    k_cache_ptr,  # [pages, PAGE, KV, D]
    v_cache_ptr,  # [pages, PAGE, KV, D]
    slot_mapping_ptr,  # [S]
    k_scale,
    v_scale,
    S,
    stride_t,
    stride_at,
    stride_sin,
    stride_kb,
    stride_ks,
    stride_kh,
    stride_vb,
    stride_vs,
    stride_vh,
    eps,
    Q: tl.constexpr,
    KV: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,  # heads a program
    PARTS: tl.constexpr,  # programs a row
    LEVELS: tl.constexpr,  # 32 << LEVELS is half of D, rounded up
):
    t = (tl.program_id(0) // PARTS).to(tl.int64)
    first = tl.program_id(0) % PARTS * BLOCK
    head = first + tl.arange(0, BLOCK)[:, None]
    d = tl.arange(0, 32 << LEVELS)[None, :]
    mask = (head < Q + 2 * KV) & (d < D // 2)
    is_q, is_v = head < Q, head >= Q + KV
    is_k = (head >= Q) & (head < Q + KV)

    # All loads before the first sum, and all as wide as a: none waits or moves between threads.
    slot = tl.load(slot_mapping_ptr + t, mask=t < S, other=-1).to(tl.int64)
    at = qkv_ptr + t * stride_t + head * D + d
    a = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(at + D // 2, mask=mask, other=0.0).to(tl.float32)
    a_weight = weights(q_weight_ptr + d, k_weight_ptr + d, is_q, is_k, mask)
    q_weight_ptr += D // 2
    k_weight_ptr += D // 2
    b_weight = weights(q_weight_ptr + d, k_weight_ptr + d, is_q, is_k, mask)
    angles_ptr += t * stride_at
    turned = mask & (head < Q + KV)
    cos = tl.load(angles_ptr + d, mask=turned, other=1.0).to(tl.float32)
    sin = tl.load(angles_ptr + stride_sin + d, mask=turned, other=0.0).to(tl.float32)

    # Written out, since compilers choose which product is not rounded; -x would be 0 - x to them.
    scale = tl.rsqrt(total(tl.fma(a, a, b * b), LEVELS) / D + eps)
    a *= a_weight * scale
    b *= b_weight * scale
    left = tl.fma(a, cos, b * sin * -1.0).to(q_ptr.dtype.element_ty)
    right = tl.fma(a, sin, b * cos).to(q_ptr.dtype.element_ty)

    q_ptrs = q_ptr + (t * Q + head) * D + d
    tl.store(q_ptrs, left, mask=mask & is_q)
    tl.store(q_ptrs + D // 2, right, mask=mask & is_q)
    if (slot >= 0) & (first + BLOCK > Q):
        page, place = slot // PAGE, slot % PAGE
        kind: tl.constexpr = k_cache_ptr.dtype.element_ty
        cache_scale = tl.where(is_v, v_scale, k_scale)
        kept_left = kept(left, cache_scale, kind)
        kept_right = kept(right, cache_scale, kind)
        k_row = k_cache_ptr + page * stride_kb + place * stride_ks
        k_ptrs = k_row + (head - Q) * stride_kh + d
        tl.store(k_ptrs, kept_left, mask=mask & is_k)
        tl.store(k_ptrs + D // 2, kept_right, mask=mask & is_k)
        v_row = v_cache_ptr + page * stride_vb + place * stride_vs
        v_ptrs = v_row + (head - Q - KV) * stride_vh + d
        tl.store(v_ptrs, kept_left, mask=mask & is_v)
        tl.store(v_ptrs + D // 2, kept_right, mask=mask & is_v)
