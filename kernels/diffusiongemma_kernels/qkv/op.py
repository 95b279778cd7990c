"""A fused projection's heads, normed and turned to their positions, in one launch."""

import torch
import triton
from torch import Tensor

from diffusiongemma_kernels.qkv import _kernel, reference

HEADS = 8  # a program


def normed_and_turned(
    qkv: Tensor, angles: Tensor, q_weight: Tensor, k_weight: Tensor, kv_heads: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """q = turn(rms(q, q_weight)), k = turn(rms(k, k_weight)), v = rms(v) a head of D

    qkv [T, (Hq + 2 Hkv) * D], q's heads first; angles [T, D] cosines then sines, by which the two
    halves of a head are turned; weights [D].  -> q [T, Hq * D], k and v [T, Hkv * D].  fp32 until
    the end.
    """
    run = normed_and_turned_triton if qkv.is_cuda else normed_and_turned_torch
    return run(qkv, angles, q_weight, k_weight, kv_heads, eps)


def normed_and_turned_torch(
    qkv: Tensor, angles: Tensor, q_weight: Tensor, k_weight: Tensor, kv_heads: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same on a CPU."""
    _check(qkv, angles, q_weight, k_weight)
    return reference.normed_and_turned(qkv, angles, q_weight, k_weight, kv_heads, eps)


def normed_and_turned_triton(
    qkv: Tensor, angles: Tensor, q_weight: Tensor, k_weight: Tensor, kv_heads: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by Triton, a row's next heads a program."""
    _check(qkv, angles, q_weight, k_weight)
    (T, width), D = qkv.shape, angles.shape[1]
    heads = width // D
    q = qkv.new_empty(T, (heads - 2 * kv_heads) * D)
    k, v = torch.empty(2, T, kv_heads * D, dtype=qkv.dtype, device=qkv.device)
    if T:
        block = triton.next_power_of_2(D // 2)
        _kernel.normed_and_turned[(T, -(-heads // HEADS))](
            qkv, angles, q_weight, k_weight, q, k, v, qkv.stride(0), eps,
            HEADS=heads, KV=kv_heads, D=D, BLOCK_D=block, BLOCK=HEADS,
            num_warps=4 if block <= 128 else 8,
        )  # fmt: skip
    return q, k, v


def _check(qkv: Tensor, angles: Tensor, q_weight: Tensor, k_weight: Tensor) -> None:
    T, D = angles.shape
    assert qkv.shape[0] == T and qkv.shape[1] % D == 0, f"{qkv.shape=} {angles.shape=}"
    assert qkv.stride(1) == 1 and angles.is_contiguous(), f"{qkv.stride()=} {angles.stride()=}"
    assert q_weight.shape == k_weight.shape == (D,), f"{q_weight.shape=} {k_weight.shape=}"
