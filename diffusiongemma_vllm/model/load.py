"""How evenly the experts are used: counted in a few forwards, for the metrics.

A replayed CUDA graph runs no Python, so a forward that is counted runs outside of graphs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusiongemma_vllm.model.moe import Router

EVERY = 32  # forwards that could be counted, to one that is


class ExpertLoad:
    """Counts the rows of every expert in every layer of ``model``."""

    def __init__(self, model: nn.Module) -> None:
        self.routers = [one for one in model.modules() if isinstance(one, Router)]
        self.turn = 0

    def prepare(self, tokens: int) -> bool:
        """Before a forward of so many tokens: whether it is its turn to be counted.

        Fewer tokens than experts say nothing about how even the experts are used.
        """
        self.take()
        if not self.routers or tokens < self.routers[0].per_expert_scale.numel():
            return False
        counted = self.turn == 0
        self.turn = (self.turn + 1) % EVERY
        if counted:
            for router in self.routers:
                router.load = torch.zeros_like(router.per_expert_scale, dtype=torch.int64)
        return counted

    def take(self) -> Tensor | None:
        """The counts [L, E] i64 of the forward before; None where it was not counted."""
        loads = [router.load for router in self.routers if router.load is not None]
        if not loads:
            return None
        for router in self.routers:
            router.load = None
        return torch.stack(loads)
