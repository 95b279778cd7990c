"""Operations on rows of logits, the one way a request bends its distribution.

A row is one canvas position of one request.  Operations run in order on the model's logits and
return new logits; -inf forbids a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class RowOp(Protocol):
    def __call__(self, logits: Tensor) -> Tensor:
        """logits: [R, V] f32  ->  [R, V] f32"""


@dataclass(frozen=True)
class Softcap:
    """cap * tanh(logits / cap)."""

    cap: float

    def __call__(self, logits: Tensor) -> Tensor:
        return torch.tanh(logits / self.cap) * self.cap


@dataclass(frozen=True)
class Temperature:
    """Divide each row by its temperature [R] f32."""

    temperature: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        return logits / self.temperature[:, None]


@dataclass(frozen=True)
class MinP:
    """Keep each row's tokens that are at least p [R] f32 times as likely as its likeliest."""

    p: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        least = logits.amax(dim=-1) + self.p.log()
        return logits.masked_fill(logits < least[:, None], float("-inf"))


@dataclass(frozen=True)
class TopK:
    """Keep each row's k most likely tokens, ties with the last of them included.

    k: [R] i64; 0 keeps the row whole.
    """

    k: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        vocab = logits.shape[-1]
        k = torch.where(self.k > 0, self.k, vocab).clamp(max=vocab)
        ordered = logits.sort(dim=-1, descending=True).values
        least = ordered.gather(-1, (k - 1)[:, None])
        return logits.masked_fill(logits < least, float("-inf"))


@dataclass(frozen=True)
class TopP:
    """Keep each row's smallest set of most likely tokens whose probability reaches p [R] f32."""

    p: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probs = ordered.softmax(dim=-1)
        before = probs.cumsum(dim=-1) - probs
        drop = (before >= self.p[:, None]) & (self.p[:, None] < 1.0)
        drop[:, 0] = False
        return logits.masked_fill(drop.scatter(-1, order, drop), float("-inf"))


def run(ops: Sequence[RowOp], logits: Tensor) -> Tensor:
    for op in ops:
        logits = op(logits)
    return logits
