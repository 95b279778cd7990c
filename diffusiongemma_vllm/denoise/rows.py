"""Operations on rows of logits, the one way a request bends its distribution.

A row is one canvas position of one request.  Operations run in order on the model's logits and
return new logits; -inf forbids a token.
"""

from __future__ import annotations

import math
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
    """Keep each row's tokens that are at least p times as likely as its likeliest."""

    p: float

    def __call__(self, logits: Tensor) -> Tensor:
        least = logits.amax(dim=-1, keepdim=True) + math.log(self.p)
        return logits.masked_fill(logits < least, float("-inf"))


@dataclass(frozen=True)
class TopK:
    """Keep each row's k most likely tokens, k > 0, ties with the last of them included."""

    k: int

    def __call__(self, logits: Tensor) -> Tensor:
        best = logits.topk(min(self.k, logits.shape[-1]), dim=-1).values
        return logits.masked_fill(logits < best[:, -1:], float("-inf"))


@dataclass(frozen=True)
class TopP:
    """Keep each row's smallest set of most likely tokens whose probability reaches p."""

    p: float

    def __call__(self, logits: Tensor) -> Tensor:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probs = ordered.softmax(dim=-1)
        drop = probs.cumsum(dim=-1) - probs >= self.p
        drop[:, 0] = False
        return logits.masked_fill(drop.scatter(-1, order, drop), float("-inf"))


def run(ops: Sequence[RowOp], logits: Tensor) -> Tensor:
    for op in ops:
        logits = op(logits)
    return logits
