import torch
from torch import Tensor

from diffusiongemma_kernels.kv_write.reference import kv_write
from diffusiongemma_kernels.norms.reference import rms
from diffusiongemma_kernels.paged import PagedKV


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """x [T, heads, D], angles [T, 2, D / 2]; channels d and D / 2 + d pair up"""
    cos, sin = angles.to(x.dtype)[:, None].unbind(2)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def normed_and_turned(
    qkv: Tensor, angles: Tensor, q_weight: Tensor, k_weight: Tensor, kv_heads: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    D = 2 * angles.shape[2]
    heads = qkv.shape[1] // D
    q, k, v = qkv.unflatten(1, (-1, D)).split([heads - 2 * kv_heads, kv_heads, kv_heads], 1)
    q, k = turned(rms(q, q_weight, eps), angles), turned(rms(k, k_weight, eps), angles)
    parts = (q, k, rms(v, None, eps))
    q, k, v = (part.to(qkv.dtype).flatten(1) for part in parts)
    return q, k, v


def turned_into_cache(
    qkv: Tensor, angles: Tensor, q_weight: Tensor, k_weight: Tensor, kv: PagedKV,
    slot_mapping: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    D, kv_heads = 2 * angles.shape[2], kv.key.shape[2]
    q, k, v = normed_and_turned(qkv, angles, q_weight, k_weight, kv_heads, eps)
    kv_write(k.unflatten(1, (-1, D)), v.unflatten(1, (-1, D)), kv, slot_mapping)
    return q
