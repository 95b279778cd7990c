"""The tied embedding, divided over ranks by tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from diffusiongemma_vllm.model.ranks import Ranks
from diffusiongemma_vllm.model.rowwise import rowwise


class Vocabulary(VocabParallelEmbedding):
    """Looks tokens up and projects onto them.

    A rank holds the tokens first .. first + V' - 1; V: of all ranks.
    """

    def __init__(self, vocab_size: int, hidden: int, prefix: str) -> None:
        super().__init__(vocab_size, hidden, prefix=prefix)
        self.ranks = Ranks.here()
        self.first: int = self.shard_indices.org_vocab_start_index

    @property
    def part(self) -> Tensor:
        """[V', H], without vLLM's padding"""
        weight: Tensor = self.weight  # type: ignore[assignment]
        return weight[: self.num_org_embeddings_per_partition]

    def forward(self, input_: Tensor) -> Tensor:
        """[T] i64  ->  [T, H]"""
        if self.ranks.count == 1 or self.use_fused_embedding:
            return super().forward(input_)
        # As vLLM does it, which on CPU would compile C++ first.
        place = input_.long() - self.first
        mine = (place >= 0) & (place < len(self.part))
        rows = self.part[torch.where(mine, place, 0)]
        return self.ranks.sum(rows.masked_fill_(~mine[:, None], 0.0))

    def project(self, hidden: Tensor) -> Tensor:
        """[R, H]  ->  [R, V'], the product with this rank's tokens"""
        weight = self.part
        return rowwise(lambda rows: rows @ weight.T, hidden)

    def project_all(self, hidden: Tensor) -> Tensor:
        """[R, H]  ->  [R, V], the product with all tokens, on every rank"""
        if self.ranks.count == 1:
            return self.project(hidden)
        weight: Tensor = self.weight  # type: ignore[assignment]
        # Padding is behind the last token, on whichever ranks it lies.
        padded = rowwise(lambda rows: rows @ weight.T, hidden)
        return self.ranks.join(padded)[:, : self.org_vocab_size]
