import torch
from torch import Tensor

from diffusiongemma_kernels.moe_sort.types import Sorted

# Lane q of four reads this many neighbouring columns and skips the other lanes'. In stored order
# they are 16 q .. 16 q + 15 of each 64, which share a scale.
STORED = {
    2: torch.arange(64).view(4, 8, 2).permute(1, 0, 2).flatten(),
    8: torch.arange(64).view(4, 2, 8).permute(1, 0, 2).flatten(),
}


def store_columns(x: Tensor, lane: int) -> Tensor:
    """[T, H] -> [T, H rounded up to 64], in stored order."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % 64))
    return padded.unflatten(1, (-1, 64))[:, :, STORED[lane].to(x.device)].flatten(1)


def max_tiles(rows: int, experts: int, block: int) -> int:
    return rows // block + experts if rows else 0


def moe_sort(x: Tensor, topk_ids: Tensor, *, experts: int, block: int, lane: int) -> Sorted:
    flat = topk_ids.flatten()
    rows: list[int] = []
    whole: list[tuple[int, int, int]] = []  # (round, expert, start)
    rest: list[tuple[int, int, int, int]] = []  # (-steps of 32 rows, expert, start, count)
    for e in range(experts):
        mine = (flat == e).nonzero()[:, 0].tolist()
        full, left = divmod(len(mine), block)
        whole += [(i, e, len(rows) + i * block) for i in range(full)]
        if left:
            rest.append((-((left + 31) // 32), e, len(rows) + full * block, left))
        rows += mine
    listed = [(e, start, block) for _, e, start in sorted(whole)]
    listed += [(e, start, count) for _, e, start, count in sorted(rest)]
    tiles = torch.zeros(3, max_tiles(flat.numel(), experts, block), dtype=torch.int32)
    if listed:
        tiles[:, : len(listed)] = torch.tensor(listed).T
    return Sorted(
        torch.tensor(rows, dtype=torch.int32, device=x.device),
        tiles.to(x.device),
        torch.tensor([len(listed)], dtype=torch.int32, device=x.device),
        torch.zeros(2, dtype=torch.int32, device=x.device),
        store_columns(x, lane) if lane else x,
    )
