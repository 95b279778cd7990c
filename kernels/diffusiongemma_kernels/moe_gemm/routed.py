"""What every op on routed rows begins and ends with."""

import torch
from torch import Tensor

from diffusiongemma_kernels.moe_gemm import _kernel
from diffusiongemma_kernels.moe_gemm.types import Unsummed


def check(x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> None:
    """Assert x [T, H] with contiguous rows, topk_ids [T, K] i32 and topk_weights [T, K] f32."""
    T, K = topk_ids.shape
    assert x.shape[0] == T and topk_weights.shape == (T, K), f"{x.shape=} {topk_ids.shape=}"
    assert topk_ids.dtype == torch.int32 and topk_weights.dtype == torch.float32
    assert topk_ids.is_contiguous() and topk_weights.is_contiguous() and x.stride(1) == 1


def summed(found: Tensor | Unsummed) -> Tensor:
    """y[t] = sum_k slots[t * K + k] in fp32, rounded.  [T, H]; a tensor is summed already"""
    if isinstance(found, Tensor):
        return found
    slots, ids, experts = found
    (T, K), H, block = ids.shape, slots.shape[1], 1024
    y = slots.new_empty(T, H)
    if T:
        grid = (T, -(-H // block))
        _kernel.add_slots[grid](slots, ids, y, H, experts, K=K, BLOCK=block, num_warps=4)
    return y
