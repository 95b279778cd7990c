"""From what a request asks to the edits of its logits, with tokens on the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffusiongemma_vllm.denoise.edits import (
    BadWords,
    Bias,
    Edit,
    NotBefore,
    Only,
    Penalties,
    ThoughtEnds,
)
from diffusiongemma_vllm.request import RequestOptions


class ThoughtMarks(NamedTuple):
    """The tokens that open and close a thought, and those that close it when its budget is used."""

    opens: int
    closes: int
    ends: tuple[int, ...]


def build(
    options: RequestOptions, device: torch.device, marks: ThoughtMarks | None,
    last: Edit | None = None,
) -> tuple[Edit, ...]:
    """Empty for a request that leaves the model's distributions alone.

    last: what follows all but the end of a thought, which nothing may weaken.
    """

    def tokens(ids: tuple[int, ...]) -> Tensor:
        return torch.tensor(ids, dtype=torch.int64, device=device)

    edits: list[Edit] = []
    if options.only:
        edits.append(Only(tokens(tuple(sorted(set(options.only))))))
    if options.bias:
        value = torch.tensor(list(options.bias.values()), dtype=torch.float32, device=device)
        edits.append(Bias(tokens(tuple(options.bias)), value))
    if options.penalized:
        edits.append(
            Penalties(
                options.repetition, options.frequency, options.presence, tokens(options.ends)
            )
        )
    if options.bad_words:
        edits.append(BadWords(tuple(tokens(word) for word in options.bad_words)))
    if options.min_tokens and options.stops:
        edits.append(NotBefore(tokens(options.stops), options.min_tokens))
    if last is not None:
        edits.append(last)
    if options.thinking_budget is not None and marks is not None:
        edits.append(
            ThoughtEnds(options.thinking_budget, marks.opens, marks.closes, tokens(marks.ends))
        )
    return tuple(edits)
