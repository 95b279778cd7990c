"""Rows by expert, in one launch."""

import torch
import triton
from torch import Tensor

from diffusiongemma_kernels.moe_sort import _kernel
from diffusiongemma_kernels.moe_sort.reference import max_tiles
from diffusiongemma_kernels.moe_sort.types import Sorted


def moe_sort(
    topk_ids: Tensor, *, experts: int, block: int, fullest_first: bool = False
) -> Sorted:
    """rows = the pairs (token, slot) ordered by (topk_ids[token, slot], token, slot)

    topk_ids [T, K] i32, of which numbers outside 0 .. experts - 1 are left out: then the end of
    `rows` is unwritten.  An expert with n rows has ceil(n / block) tiles, which lie together, so
    that its weights are read once, or `fullest_first` in steps of 32 rows, so that few programs
    that stay end together.  Nothing is read on the host.
    """
    T, K = topk_ids.shape
    assert topk_ids.dtype == torch.int32 and topk_ids.is_contiguous(), f"{topk_ids.dtype=}"
    n, device = T * K, topk_ids.device
    TILES = max_tiles(n, experts, block)
    rows = torch.empty(n, dtype=torch.int32, device=device)
    tiles = torch.empty((3, TILES), dtype=torch.int32, device=device)
    total = torch.empty(2 + TILES, dtype=torch.int32, device=device)
    if n:
        block_ids = min(8192, max(2048, triton.next_power_of_2(n)))
        _kernel.sort[(1 + experts,)](
            topk_ids,
            rows,
            tiles,
            total,
            T,
            TILES,
            K=K,
            E=experts,
            TILE=block,
            FULLEST_FIRST=fullest_first,
            BLOCK=block_ids,
            BLOCK_E=max(32, triton.next_power_of_2(experts)),
            num_warps=8,
        )
    return Sorted(rows, tiles, total[:1], total[1:])
