import triton
import triton.language as tl


@triton.jit
def weight(q_ptrs, k_ptrs, is_q, mask):
    """[1, D / 2] of q's norm or of k's  ->  [BLOCK, D / 2]"""
    q = tl.load(q_ptrs, mask=mask, other=0.0).to(tl.float32)
    return tl.where(is_q, q, tl.load(k_ptrs, mask=mask, other=0.0).to(tl.float32))


@triton.jit
def normed_and_turned(
    qkv_ptr,  # [T, HEADS * D]
    angles_ptr,  # [T, D], cosines and sines
    q_weight_ptr,  # [D]
    k_weight_ptr,  # [D]
    q_ptr,  # [T, (HEADS - 2 KV) * D]
    k_ptr,  # [T, KV * D]
    v_ptr,  # [T, KV * D]
    stride_t,
    eps,
    HEADS: tl.constexpr,
    KV: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,  # half of D, rounded up
    BLOCK: tl.constexpr,  # heads a program
):
    t = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    mask = (head < HEADS) & (d < D // 2)
    at = qkv_ptr + t * stride_t + head * D + d
    a = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(at + D // 2, mask=mask, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(a * a + b * b, 1)[:, None] / D + eps)

    Q: tl.constexpr = HEADS - 2 * KV
    is_q, is_v = head < Q, head >= Q + KV
    is_k = (head >= Q) & (head < Q + KV)
    half = d < D // 2
    a *= tl.where(is_v, 1.0, weight(q_weight_ptr + d, k_weight_ptr + d, is_q, half)) * scale
    q_weight_ptr += D // 2
    k_weight_ptr += D // 2
    b *= tl.where(is_v, 1.0, weight(q_weight_ptr + d, k_weight_ptr + d, is_q, half)) * scale

    angles_ptr += t * D
    cos = tl.load(angles_ptr + d, mask=half, other=0.0).to(tl.float32)
    sin = tl.load(angles_ptr + D // 2 + d, mask=half, other=0.0).to(tl.float32)
    cos, sin = tl.where(is_v, 1.0, cos), tl.where(is_v, 0.0, sin)
    left = (a * cos - b * sin).to(q_ptr.dtype.element_ty)
    right = (b * cos + a * sin).to(q_ptr.dtype.element_ty)

    q_ptrs = q_ptr + (t * Q + head) * D + d
    k_ptrs = k_ptr + (t * KV + head - Q) * D + d
    v_ptrs = v_ptr + (t * KV + head - Q - KV) * D + d
    tl.store(q_ptrs, left, mask=mask & is_q)
    tl.store(q_ptrs + D // 2, right, mask=mask & is_q)
    tl.store(k_ptrs, left, mask=mask & is_k)
    tl.store(k_ptrs + D // 2, right, mask=mask & is_k)
    tl.store(v_ptrs, left, mask=mask & is_v)
    tl.store(v_ptrs + D // 2, right, mask=mask & is_v)
