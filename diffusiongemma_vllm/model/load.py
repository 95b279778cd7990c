"""How evenly the experts are used: counted in a few forwards, for the metrics.

Only forwards that run outside of CUDA graphs can be looked at, those with a prompt in them; a
replayed graph runs no Python and pays nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusiongemma_vllm.model.moe import Router

EVERY = 8  # forwards that could be counted, to one that is


class ExpertLoad:
    """Counts the rows of every expert in every layer of ``model``."""

    def __init__(self, model: nn.Module) -> None:
        self.routers = [one for one in model.modules() if isinstance(one, Router)]
        self.turn = 0

    def prepare(self, tokens: int) -> None:
        """Before a forward of so many tokens: count it, if it is its turn.

        Fewer tokens than experts say nothing about how even the experts are used.
        """
        self.take()
        if not self.routers or tokens < self.routers[0].per_expert_scale.numel():
            return
        if self.turn == 0:
            for router in self.routers:
                router.load = torch.zeros_like(router.per_expert_scale, dtype=torch.int64)
        self.turn = (self.turn + 1) % EVERY

    def take(self) -> Tensor | None:
        """The counts [L, E] i64 of the forward before; None where it was not counted."""
        loads = [router.load for router in self.routers if router.load is not None]
        if not loads:
            return None
        for router in self.routers:
            router.load = None
        return torch.stack(loads)
