"""The mixture of experts that runs beside the dense MLP of every layer, in plain torch.

Source: transformers' ``DiffusionGemmaTextRouter`` and ``DiffusionGemmaTextExperts``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.model_executor.layers.linear import ReplicatedLinear

from diffusiongemma_kernels.route.op import route
from diffusiongemma_vllm.model.place import Place
from diffusiongemma_vllm.model.share import Share

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


@dataclass(frozen=True)
class Routing:
    """How rows find their experts.  share: the experts that are here."""

    top_k: int
    router: Router
    share: Share

    def __call__(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """[T, E]  ->  weights [T, K] f32, ids [T, K] i32 as this rank numbers experts"""
        weights, ids = route(scores, self.top_k, self.router.per_expert_scale)
        return weights, self.share.local_ids(ids)


class TorchExperts(nn.Module):
    """The experts in plain torch, whose result for a row does not depend on the other rows.

    gate_up_proj: [E, 2F, H], gate rows first.  down_proj: [E, H, F].  E and F: of ``share``, whose
    part of the sum over experts comes out.
    """

    def __init__(
        self, config: Any, router: Router, share: Share, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        experts, hidden, width = share.count, config.hidden_size, share.width
        self.whole = (config.num_experts, config.moe_intermediate_size, hidden)
        self.routing = Routing(config.top_k_experts, router, share)
        self.gate_up_proj = nn.Parameter(
            torch.empty(experts, 2 * width, hidden, dtype=dtype), requires_grad=False
        )
        self.down_proj = nn.Parameter(
            torch.empty(experts, hidden, width, dtype=dtype), requires_grad=False
        )

    def places(self) -> dict[str, Place]:
        """The checkpoint's names below ``experts.`` -> where they are loaded."""
        E, F, H = self.whole
        experts, columns = self.routing.share.experts, self.routing.share.columns
        return {
            "gate_up_proj": Place(
                self.gate_up_proj.data, (E, 2 * F, H), self.gate_up_proj.dtype,
                lambda whole: whole.unflatten(1, (2, F))[experts, :, columns].flatten(1, 2),
            ),
            "down_proj": Place(
                self.down_proj.data, (E, H, F), self.down_proj.dtype,
                lambda whole: whole[experts, :, columns],
            ),
        }

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        """x: [T, H]  scores: [T, E]  ->  [T, H]

        A product's rounding depends on its number of rows, so it is always EXPERT_TILE; a row's
        sum is in the order of its experts.
        """
        weights, ids = self.routing(scores)
        absent = self.routing.share.count
        here = (ids >= 0) & (ids < absent)
        ids, order = torch.where(here, ids, absent).sort(dim=1)
        experts, source, place = tiled(ids, absent)
        rows = torch.cat([x, x.new_zeros(1, x.shape[1])])[source]
        for i, expert in enumerate(experts):
            tile = rows[i * EXPERT_TILE : (i + 1) * EXPERT_TILE]
            gate, up = F.linear(tile, self.gate_up_proj[expert]).chunk(2, dim=-1)
            tile[:] = F.linear(F.gelu(gate, approximate="tanh") * up, self.down_proj[expert])
        total = torch.zeros_like(x)
        for at, weight in zip(place.unbind(1), weights.gather(1, order).unbind(1), strict=True):
            total += (rows[at] * weight[:, None]).to(x.dtype)
        return total


def tiled(ids: Tensor, absent: int) -> tuple[list[int], Tensor, Tensor]:
    """Each expert's rows in tiles of their own.  ids: [T, K] below ``absent``, or that

    ->  the experts of the tiles; which row is at each place of the tiles, T for none, and none at
    one place more; the place of each entry [T, K], the last where it is absent.
    """
    (rows, top_k), flat = ids.shape, ids.flatten()
    counts = flat.bincount(minlength=absent + 1)[:absent]
    tiles = -(-counts // EXPERT_TILE)
    experts = torch.arange(absent, device=ids.device).repeat_interleave(tiles).tolist()
    by_expert = flat.argsort(stable=True)[: int(counts.sum())]
    shifts = (tiles.cumsum(0) - tiles) * EXPERT_TILE - (counts.cumsum(0) - counts)
    places = torch.arange(len(by_expert), device=ids.device) + shifts.repeat_interleave(counts)
    source = by_expert.new_full((len(experts) * EXPERT_TILE + 1,), rows)
    source[places] = by_expert // top_k
    place = torch.full_like(flat, len(source) - 1, dtype=torch.int64)
    place[by_expert] = places
    return experts, source, place.view_as(ids)
