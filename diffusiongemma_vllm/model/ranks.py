"""The processes that hold one model together, each on its own GPU, and what they tell each other.

What is summed or gathered has the same bits on every rank, so ranks that start alike decide alike:
nothing may be decided from anything else that differs, such as free memory or the clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
    tensor_model_parallel_all_reduce,
)


@dataclass(frozen=True)
class Ranks:
    """This process among those of vLLM's tensor-parallel group."""

    rank: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Ranks:
        return cls(get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size())

    def sum(self, x: Tensor) -> Tensor:
        """Every rank's x added up; x may be written."""
        return tensor_model_parallel_all_reduce(x) if self.count > 1 else x

    def gather(self, x: Tensor) -> Tensor:
        """[N, ...]  ->  [count, N, ...], x of rank 0 first"""
        if self.count == 1:
            return x[None]
        return tensor_model_parallel_all_gather(x, 0).unflatten(0, (self.count, -1))

    def join(self, x: Tensor) -> Tensor:
        """[..., N]  ->  [..., count * N], x of rank 0 first"""
        return tensor_model_parallel_all_gather(x, -1) if self.count > 1 else x
