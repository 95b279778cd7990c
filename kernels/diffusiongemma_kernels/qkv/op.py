"""A fused projection's heads, normed and turned to their positions."""

import triton
from torch import Tensor

from diffusiongemma_kernels.paged import PagedKV
from diffusiongemma_kernels.qkv import _kernel, reference

# Half a head's numbers in a program of four warps: eight a thread, as many as a load takes.
NUMBERS = 1024


def normed_and_turned(
    qkv: Tensor, angles: Tensor, q_weight: Tensor, k_weight: Tensor, kv_heads: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """q = turn(rms(q, q_weight)), k = turn(rms(k, k_weight)), v = rms(v) a head of D, on a CPU

    qkv [T, (Hq + 2 Hkv) * D], q's heads first; angles [T, 2, D / 2] cosines then sines, by which
    the two halves of a head are turned; weights [D].  -> q [T, Hq * D], k and v [T, Hkv * D].
    fp32 until the end.
    """
    _check(qkv, angles, q_weight, k_weight)
    return reference.normed_and_turned(qkv, angles, q_weight, k_weight, kv_heads, eps)


def turned_into_cache(
    qkv: Tensor, angles: Tensor, q_weight: Tensor, k_weight: Tensor, kv: PagedKV,
    slot_mapping: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """The same on a GPU in one launch, whose k and v go into their cache slots as by ``kv_write``

    slot_mapping [S] integers with S <= T; k and v of a row at -1, or from S on, are not kept.
    -> q [T, Hq * D] of all rows.
    """
    _check(qkv, angles, q_weight, k_weight)
    kv.check(qkv.dtype)
    (T, width), D = qkv.shape, 2 * angles.shape[2]
    heads, kv_heads = width // D, kv.key.shape[2]
    S = slot_mapping.shape[0]
    assert kv.key.shape[3] == D and heads > 2 * kv_heads, f"{kv.key.shape=} {qkv.shape=} {D=}"
    assert slot_mapping.ndim == 1 and S <= T and slot_mapping.is_contiguous(), (
        f"{slot_mapping.shape=} {T=}"
    )
    q = qkv.new_empty(T, (heads - 2 * kv_heads) * D)
    half = max(32, triton.next_power_of_2(D // 2))
    block = max(1, NUMBERS // half)
    parts = -(-heads // block)
    if T:
        _kernel.turned_into_cache[(T * parts,)](
            qkv, angles, q_weight, k_weight, q, kv.key, kv.value, slot_mapping,
            float(kv.k_scale), float(kv.v_scale), S, qkv.stride(0),
            *angles.stride()[:2], *kv.key.stride()[:3], *kv.value.stride()[:3], eps,
            Q=heads - 2 * kv_heads, KV=kv_heads, D=D, PAGE=kv.key.shape[1],
            BLOCK=block, PARTS=parts, LEVELS=(half // 32).bit_length() - 1, num_warps=4,
        )  # fmt: skip
    return q


def _check(qkv: Tensor, angles: Tensor, q_weight: Tensor, k_weight: Tensor) -> None:
    T, D = len(angles), 2 * angles.shape[2]
    assert angles.shape == (T, 2, D // 2), f"{angles.shape=}"
    assert qkv.shape[0] == T and qkv.shape[1] % D == 0, f"{qkv.shape=} {angles.shape=}"
    assert qkv.stride(1) == 1 == angles.stride(2), f"{qkv.stride()=} {angles.stride()=}"
    assert q_weight.shape == k_weight.shape == (D,), f"{q_weight.shape=} {k_weight.shape=}"
