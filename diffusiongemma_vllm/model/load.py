"""How evenly the experts are used: counted in a few forwards, for the metrics.

A replayed CUDA graph runs no Python, so only forwards outside of graphs can be looked at: now and
then a prompt is read outside for that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusiongemma_vllm.model.moe import Router

EVERY = 8  # forwards outside of graphs, to one that is counted
PROMPTS = 32  # forwards with a prompt that a graph could replay, to one that runs outside


class ExpertLoad:
    """Counts the rows of every expert in every layer of ``model``."""

    def __init__(self, model: nn.Module) -> None:
        self.routers = [one for one in model.modules() if isinstance(one, Router)]
        self.turn = self.prompt = 0

    def due(self, tokens: int) -> bool:
        """Whether a forward of so many tokens that a graph could replay should be counted."""
        if not self.says(tokens):
            return False
        due = self.prompt == 0
        self.prompt = (self.prompt + 1) % PROMPTS
        if due:
            self.turn = 0
        return due

    def prepare(self, tokens: int) -> None:
        """Before a forward of so many tokens outside of graphs: count it, if it is its turn."""
        self.take()
        if not self.says(tokens):
            return
        if self.turn == 0:
            for router in self.routers:
                router.load = torch.zeros_like(router.per_expert_scale, dtype=torch.int64)
        self.turn = (self.turn + 1) % EVERY

    def says(self, tokens: int) -> bool:
        """Fewer tokens than experts say nothing about how even the experts are used."""
        return bool(self.routers) and tokens >= self.routers[0].per_expert_scale.numel()

    def take(self) -> Tensor | None:
        """The counts [L, E] i64 of the forward before; None where it was not counted."""
        loads = [router.load for router in self.routers if router.load is not None]
        if not loads:
            return None
        for router in self.routers:
            router.load = None
        return torch.stack(loads)
