"""The order in which the packed NVFP4 weights meet the columns of activations."""

import torch
from torch import Tensor

from diffusiongemma_kernels.moe_gemm.types import Arranged

# Lane q of four reads this many neighbouring columns and skips the other lanes'. Arranged, they
# are 16 q .. 16 q + 15 of each 64, which share a scale.  Kernels do it by `_kernel.by_lane`.
ORDERS = {
    2: torch.arange(64).view(4, 8, 2).permute(1, 0, 2).flatten(),
    8: torch.arange(64).view(4, 2, 8).permute(1, 0, 2).flatten(),
}


def tensor_of(x: Tensor | Arranged) -> Tensor:
    return x.x if isinstance(x, Arranged) else x


def arranged(x: Tensor | Arranged, lane: int) -> Tensor:
    """x [T, H] -> [T, H rounded up to 64], each 64 columns in the order of `lane`, zeros beyond H

    In a step `norms.enter` has written them so, which is checked.
    """
    if isinstance(x, Arranged):
        assert x.lane == lane, f"arranged for lanes of {x.lane} columns, not {lane}"
        return x.x
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % 64))
    return padded.unflatten(1, (-1, 64))[:, :, ORDERS[lane].to(x.device)].flatten(1)
