"""The mixture of experts that runs beside the dense MLP of every layer, in plain torch.

Source: transformers' ``DiffusionGemmaTextRouter`` and ``DiffusionGemmaTextExperts``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.model_executor.layers.linear import ReplicatedLinear

from diffusiongemma_kernels.route.op import route

EXPERT_TILE = 32


class Router(nn.Module):
    """Scores the experts from the residual stream, normed with its own ``scale``."""

    def __init__(self, config: Any, prefix: str) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.scale = nn.Parameter(torch.ones(hidden), requires_grad=False)
        self.per_expert_scale = nn.Parameter(torch.ones(config.num_experts), requires_grad=False)
        self.proj = ReplicatedLinear(
            hidden, config.num_experts, bias=False, quant_config=None, prefix=f"{prefix}.proj",
            return_bias=False,
        )
        self.top_k = config.top_k_experts
        self.load: Tensor | None = None  # [E] i64, rows of each expert, while they are counted

    def forward(self, x: Tensor) -> Tensor:
        """x: [T, H] normed by ``scale`` and divided by sqrt(H)  ->  [T, E] scores"""
        scores: Tensor = self.proj(x)
        if self.load is not None:
            chosen = scores.topk(self.top_k).indices.flatten()
            self.load.scatter_add_(0, chosen, torch.ones_like(chosen))
        return scores

    def route(
        self, hidden_states: Tensor, gating_output: Tensor, topk: int, renormalize: bool
    ) -> tuple[Tensor, Tensor]:
        """``route`` in the form that vLLM's fused experts call."""
        return route(gating_output, topk, self.per_expert_scale)


class TorchExperts(nn.Module):
    """The experts in plain torch, whose result for a row does not depend on the other rows.

    gate_up_proj: [E, 2F, H], gate rows first.  down_proj: [E, H, F].
    """

    def __init__(
        self, config: Any, router: Router, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        experts, hidden = config.num_experts, config.hidden_size
        width = config.moe_intermediate_size
        self.top_k = config.top_k_experts
        self.router = [router]  # in a list: not a submodule of this one
        self.gate_up_proj = nn.Parameter(
            torch.empty(experts, 2 * width, hidden, dtype=dtype), requires_grad=False
        )
        self.down_proj = nn.Parameter(
            torch.empty(experts, hidden, width, dtype=dtype), requires_grad=False
        )

    def places(self) -> dict[str, Tensor]:
        """The checkpoint's names below ``experts.`` -> where they are loaded."""
        return {"gate_up_proj": self.gate_up_proj.data, "down_proj": self.down_proj.data}

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        """x: [T, H]  scores: [T, E]  ->  [T, H]"""
        weights, ids = route(scores, self.top_k, self.router[0].per_expert_scale)
        out = torch.zeros_like(x)
        for expert in ids.unique().tolist():
            rows, place = torch.where(ids == expert)
            for part, slot in zip(
                rows.split(EXPERT_TILE), place.split(EXPERT_TILE), strict=True
            ):
                tile = F.pad(x[part], (0, 0, 0, EXPERT_TILE - part.numel()))
                gate, up = F.linear(tile, self.gate_up_proj[expert]).chunk(2, dim=-1)
                y = F.linear(F.gelu(gate, approximate="tanh") * up, self.down_proj[expert])
                weighted = y[: part.numel()] * weights[part, slot, None]
                out.index_add_(0, part, weighted.to(out.dtype))
        return out
