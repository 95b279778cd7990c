import torch
from torch import Tensor

from diffusiongemma_kernels.moe_sort.types import Sorted


def max_tiles(rows: int, experts: int, block: int) -> int:
    return rows // block + experts if rows else 0


def moe_sort(
    topk_ids: Tensor, *, experts: int, block: int, fullest_first: bool = False
) -> Sorted:
    device = topk_ids.device
    flat = topk_ids.flatten()
    rows: list[int] = []
    tiles: list[tuple[int, int, int]] = []
    for e in range(experts):
        mine = (flat == e).nonzero()[:, 0].tolist()
        for i in range(0, len(mine), block):
            tiles.append((e, len(rows) + i, min(block, len(mine) - i)))
        rows += mine
    if fullest_first:  # whole ones first, an expert's first before any expert's second
        nth = {tile: sum(t[0] == tile[0] for t in tiles[:i]) for i, tile in enumerate(tiles)}
        tiles.sort(key=lambda t: (0, nth[t]) if t[2] == block else (1, -((t[2] + 31) // 32)))
    table = torch.zeros(3, max_tiles(flat.numel(), experts, block), dtype=torch.int32)
    if tiles:
        table[:, : len(tiles)] = torch.tensor(tiles).T
    return Sorted(
        torch.tensor(rows, dtype=torch.int32, device=device),
        table.to(device),
        torch.tensor([len(tiles)], dtype=torch.int32, device=device),
        torch.zeros(1 + table.shape[1], dtype=torch.int32, device=device),
    )
