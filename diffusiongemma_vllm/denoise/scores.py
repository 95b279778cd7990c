"""How likely the model held the tokens of a canvas, and which others it held likely."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Of R positions: ``tokens`` [R, 1 + K] i64, the written one first; ``values`` [R, 1 + K] f32;
    ``ranks`` [R] i64, 1 for the likeliest token.
    """

    tokens: Tensor
    values: Tensor
    ranks: Tensor


def score(
    logits: Tensor, written: Tensor, *, likely: int, ids: Tensor | None, normalized: bool
) -> Scores:
    """logits: [R, V] f32, softcapped and neither tempered nor edited.  written: [R] i64.

    likely: how many of the likeliest tokens to name; -1 names all.  ids: [K] i64, tokens to name
    instead.  normalized: log-probabilities, else logits.
    """
    count = logits.shape[-1] if likely < 0 else likely
    if ids is not None:
        others = ids.expand(len(logits), -1)
    else:
        others = logits.topk(count, dim=-1).indices
    tokens = torch.cat([written[:, None], others], dim=1)
    values = logits.gather(1, tokens)
    ranks = (logits >= values[:, :1]).sum(dim=-1)
    if normalized:
        values = values - logits.logsumexp(dim=-1, keepdim=True)
    return Scores(tokens, values, ranks)
