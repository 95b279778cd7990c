"""What one of several ranks holds of a layer's experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from vllm.config import get_current_vllm_config

from diffusiongemma_kernels.formats import shards
from diffusiongemma_vllm.model.ranks import Ranks


@dataclass(frozen=True)
class Share:
    """By experts: some experts whole.  By tensor: the same columns of h of every expert.

    experts: of E.  columns: of F, in whole blocks of 16.  The ranks' results add up.
    """

    ranks: Ranks
    experts: slice
    columns: slice

    @classmethod
    def of(cls, config: Any, ranks: Ranks, *, by_experts: bool = False) -> Share:
        """config: a text config.  Raises ValueError where there are fewer parts than ranks."""
        experts, columns = slice(0, config.num_experts), slice(0, config.moe_intermediate_size)
        if ranks.count > 1 and by_experts:
            experts = shards.share(experts.stop, ranks.rank, ranks.count)
        elif ranks.count > 1:
            columns = shards.columns(columns.stop, ranks.rank, ranks.count)
        return cls(ranks, experts, columns)

    @classmethod
    def here(cls, config: Any) -> Share:
        """This process's, as the engine is configured."""
        parallel = get_current_vllm_config().parallel_config
        return cls.of(config, Ranks.here(), by_experts=parallel.enable_expert_parallel)

    @property
    def count(self) -> int:
        return self.experts.stop - self.experts.start

    @property
    def width(self) -> int:
        return self.columns.stop - self.columns.start

    def local_ids(self, ids: Tensor) -> Tensor:
        """Expert ids as this rank numbers them, outside 0 .. count - 1 for others.   [T, K] i32"""
        return ids - self.experts.start if self.experts.start else ids
