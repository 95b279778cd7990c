"""A layer's NVFP4 experts divided over any number of GPUs, as pure functions of (rank, ranks).

By experts: each rank holds some experts whole, and rows are routed to it.  By tensor: each rank
holds the same columns of h of every expert, that is rows of gate and up and columns of down, in
whole blocks of 16, and the ranks' outputs are summed.  Shares differ by one at most.
"""

from __future__ import annotations

from torch import Tensor, cat

from diffusiongemma_kernels.formats.nvfp4 import BLOCK, NVFP4


def share(count: int, rank: int, ranks: int) -> slice:
    """What one rank holds of ``count`` things in order.

    Raises:
        ValueError: for a rank that is none, or more ranks than things.
    """
    if not 0 <= rank < ranks:
        raise ValueError(f"rank must be 0..{ranks - 1} of {ranks} ranks, got {rank}")
    if ranks > count:
        raise ValueError(f"{count} things cannot be divided over {ranks} ranks; use fewer")
    return slice(rank * count // ranks, (rank + 1) * count // ranks)


def experts(q: NVFP4, rank: int, ranks: int) -> NVFP4:
    """One rank's experts, whole.  q: [E, R, K]"""
    mine = share(len(q.codes), rank, ranks)
    return NVFP4(*(part[mine].contiguous() for part in q))


def local_ids(ids: Tensor, count: int, rank: int, ranks: int) -> Tensor:
    """Expert ids as the rank that holds ``experts`` numbers them; -1 for other ranks' experts.

    ids: [T, K] i32, of ``count`` experts.
    """
    mine = share(count, rank, ranks)
    return (ids - mine.start).masked_fill((ids < mine.start) | (ids >= mine.stop), -1)


def gate_up(q: NVFP4, rank: int, ranks: int) -> NVFP4:
    """One rank's rows of gate, then the same of up.  q: [E, 2 F, H]  ->  [E, 2 F', H]"""
    F = q.codes.shape[1] // 2
    mine = columns(F, rank, ranks)

    def rows(part: Tensor) -> Tensor:
        gate, up = part.split(F, dim=1)
        return cat((gate[:, mine], up[:, mine]), dim=1)

    return NVFP4(rows(q.codes), rows(q.scales), q.global_scale)


def down(q: NVFP4, rank: int, ranks: int) -> NVFP4:
    """One rank's columns of down.  q: [E, H, F]  ->  [E, H, F']"""
    mine = columns(q.codes.shape[2] * 2, rank, ranks)
    codes = q.codes[..., mine.start // 2 : mine.stop // 2]
    scales = q.scales[..., mine.start // BLOCK : mine.stop // BLOCK]
    return NVFP4(codes.contiguous(), scales.contiguous(), q.global_scale)


def columns(F: int, rank: int, ranks: int) -> slice:
    """One rank's columns of h, in whole blocks."""
    blocks = share(F // BLOCK, rank, ranks)
    return slice(blocks.start * BLOCK, blocks.stop * BLOCK)
