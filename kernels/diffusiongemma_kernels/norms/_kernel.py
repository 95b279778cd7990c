import triton
import triton.language as tl

from diffusiongemma_kernels.moe_gemm._kernel import by_lane, slot_sum


@triton.jit
def load_row(ptr, t, stride, h, mask):
    return tl.load(ptr + t * stride + h, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def rms(x, H, eps):
    """x [BLOCK] f32, zeros beyond H"""
    return x * tl.rsqrt(tl.sum(x * x) / H + eps)


@triton.jit
def enter(
    x_ptr,  # [T, H]
    mixed_ptr,  # [T, H]
    post_ptr,  # [H]
    mlp_ptr,  # [H]
    experts_ptr,  # [H]
    router_ptr,  # [H]
    after_ptr,  # [4, T, H]: the sum, and what the MLP, the experts and the router read
    H,
    plane,  # T * H
    stride_x,
    stride_mixed,
    eps,
    BLOCK: tl.constexpr,
    LANE: tl.constexpr,  # what the experts read is arranged for lanes of so many columns, or 0
):
    t = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, BLOCK)
    mask = h < H
    kind = after_ptr.dtype.element_ty
    mixed = rms(load_row(mixed_ptr, t, stride_mixed, h, mask), H, eps)
    mixed *= load_row(post_ptr, 0, 0, h, mask)
    after = (load_row(x_ptr, t, stride_x, h, mask) + mixed).to(kind)
    out = after_ptr + t * H + h
    tl.store(out, after, mask=mask)
    normed = rms(after.to(tl.float32), H, eps)
    tl.store(out + plane, (normed * load_row(mlp_ptr, 0, 0, h, mask)).to(kind), mask=mask)
    experts = (normed * load_row(experts_ptr, 0, 0, h, mask)).to(kind)
    if LANE > 0:
        experts = by_lane(experts.reshape(BLOCK // 64, 64), LANE).reshape(BLOCK)
    tl.store(out + plane + plane, experts, mask=mask)
    router = normed * load_row(router_ptr, 0, 0, h, mask) * tl.rsqrt(H.to(tl.float32))
    tl.store(out + plane + plane + plane, router.to(kind), mask=mask)


@triton.jit
def leave(
    x_ptr,  # [T, H]
    dense_ptr,  # [T, H]
    moe_ptr,  # [T, H], or [T, K, H] to be added up
    ids_ptr,  # [T, K] i32
    mlp_ptr,  # [H]
    experts_ptr,  # [H]
    both_ptr,  # [H]
    following_ptr,  # [H]
    scalar_ptr,  # [T] or [1]
    after_ptr,  # [2, T, H]: the sum, and what the next layer reads
    H,
    plane,  # T * H
    E,
    stride_x,
    stride_dense,
    stride_moe,
    stride_scalar,
    eps,
    K: tl.constexpr,  # 0 where moe is added up
    BLOCK: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, BLOCK)
    mask = h < H
    kind = after_ptr.dtype.element_ty
    # Every load stands before the first norm, at whose barriers the rest would wait for it.
    x = load_row(x_ptr, t, stride_x, h, mask)
    dense = load_row(dense_ptr, t, stride_dense, h, mask)
    if K:
        moe = slot_sum(moe_ptr, ids_ptr, t, h, H, E, K).to(kind).to(tl.float32)
    else:
        moe = load_row(moe_ptr, t, stride_moe, h, mask)
    mlp = load_row(mlp_ptr, 0, 0, h, mask)
    experts = load_row(experts_ptr, 0, 0, h, mask)
    both_weight = load_row(both_ptr, 0, 0, h, mask)
    following = load_row(following_ptr, 0, 0, h, mask)
    scalar = tl.load(scalar_ptr + t * stride_scalar).to(tl.float32)

    both = rms(dense, H, eps) * mlp + rms(moe, H, eps) * experts
    after = ((x + rms(both, H, eps) * both_weight) * scalar).to(kind)
    out = after_ptr + t * H + h
    tl.store(out, after, mask=mask)
    tl.store(out + plane, (rms(after.to(tl.float32), H, eps) * following).to(kind), mask=mask)
