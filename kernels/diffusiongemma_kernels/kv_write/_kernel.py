import triton
import triton.language as tl

FP8_MAX = tl.constexpr(448.0)
FP8_NAN = tl.constexpr(0x7F)


@triton.jit
def store_row(row, scale, cache_ptrs, mask, FP8: tl.constexpr):
    kind = cache_ptrs.dtype.element_ty
    if FP8:
        row = tl.div_rn(row.to(tl.float32), scale)
        bits = tl.clamp(row, -FP8_MAX, FP8_MAX).to(kind).to(tl.uint8, bitcast=True)
        # A request ends by the NaN or Inf in its cache, which clamping would hide.
        bits = tl.where(tl.abs(row) < float("inf"), bits, FP8_NAN)
        tl.store(cache_ptrs, bits.to(kind, bitcast=True), mask=mask)
    else:
        tl.store(cache_ptrs, row.to(kind), mask=mask)


@triton.jit
def write(
    key_ptr,  # [T, Hkv, D]
    value_ptr,  # [T, Hkv, D]
    k_cache_ptr,  # [pages, PAGE, Hkv, D]
    v_cache_ptr,  # [pages, PAGE, Hkv, D]
    slot_mapping_ptr,  # [T]
    k_scale,
    v_scale,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    stride_kcb,
    stride_kcs,
    stride_kch,
    stride_vcb,
    stride_vcs,
    stride_vch,
    WIDTH: tl.constexpr,  # Hkv * D
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    FP8: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping_ptr + token).to(tl.int64)
    if slot < 0:
        return
    page = slot // PAGE
    place = slot % PAGE
    element = tl.arange(0, BLOCK)  # [BLOCK]
    mask = element < WIDTH
    head = element // D
    column = element % D

    k = tl.load(key_ptr + token * stride_kt + head * stride_kh + column, mask=mask, other=0.0)
    v = tl.load(value_ptr + token * stride_vt + head * stride_vh + column, mask=mask, other=0.0)
    k_row = k_cache_ptr + page * stride_kcb + place * stride_kcs
    v_row = v_cache_ptr + page * stride_vcb + place * stride_vcs
    store_row(k, k_scale, k_row + head * stride_kch + column, mask, FP8)
    store_row(v, v_scale, v_row + head * stride_vch + column, mask, FP8)
