"""What a request does that a plain one does not, with its tokens on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from diffusiongemma_vllm.config import DenoiseConfig
from diffusiongemma_vllm.denoise import rows
from diffusiongemma_vllm.denoise.edits import Edit, Pin
from diffusiongemma_vllm.denoise.reroll import Reroll
from diffusiongemma_vllm.knobs import CanvasOptions
from diffusiongemma_vllm.request import RequestOptions, only, request_options
from diffusiongemma_vllm.runner.constraint import SHORTS, GrammarConstraint
from diffusiongemma_vllm.runner.edits import ThoughtMarks, build
from diffusiongemma_vllm.runner.processors import Processors

ROWS = 64  # that are sorted at a time, which takes nine times the memory of their logits


@dataclass(frozen=True)
class Special:
    """A request that does more than denoise: what its slot needs of it, on the device.

    start: [C] i64, what its first canvas starts from, if not from noise.
    score_ids: [S] i64, tokens whose log-probabilities are told.
    drafts: steps from one draft to the next; 0 tells none.
    """

    options: RequestOptions
    rules: DenoiseConfig
    edits: tuple[Edit, ...]
    pin: Pin | None
    start: Tensor | None
    score_ids: Tensor | None
    constraint: GrammarConstraint | None
    reroll: Reroll | None
    drafts: int

    @property
    def bends(self) -> bool:
        """Whether tokens are drawn from other distributions than the model's."""
        return self.options.filtered or bool(self.edits) or self.constraint is not None

    @property
    def steered(self) -> bool:
        """Whether canvases begin from more than noise, or end otherwise than by the rules."""
        return any(one is not None for one in (self.pin, self.start, self.constraint, self.reroll))

    @property
    def stuck(self) -> bool:
        return self.constraint is not None and self.constraint.stuck

    @property
    def any(self) -> bool:
        told = self.options.scores is not None or self.drafts > 0
        return self.bends or self.steered or told


@dataclass(frozen=True)
class Serving:
    """What a server does for the requests that ask.

    marks: how thoughts are closed.  constrain: makes the constraint that a request's parameters ask
    for.  processors: the users' own.
    """

    marks: ThoughtMarks | None = None
    constrain: Callable[[Any], GrammarConstraint | None] = lambda params: None
    processors: Processors = field(default_factory=lambda: Processors(()))

    def special(
        self, slot: int, params: Any, asked: CanvasOptions, length: int, device: torch.device
    ) -> Special:
        """Of vLLM's ``SamplingParams`` for ``slot``; length: as in ``special_of``."""
        constraint = self.constrain(params)
        if constraint is not None:
            constraint.shorts = int((params.extra_args or {}).get(SHORTS, 0))
        last = self.processors.add_request(slot, params)
        return special_of(
            request_options(params), asked, constraint, self.marks, length, device, last
        )


def special_of(
    options: RequestOptions, asked: CanvasOptions, constraint: GrammarConstraint | None,
    marks: ThoughtMarks | None, length: int, device: torch.device, last: Edit | None = None,
) -> Special:
    """length: of the server's canvas, which ``start`` is padded to.  last: after other edits."""

    def tokens(ids: tuple[int, ...]) -> Tensor | None:
        return torch.tensor(ids, device=device) if ids else None

    if asked.constrained:
        options = replace(options, only=only(options.score_ids, options.only))
    template = tokens(asked.template)
    pin = None if template is None else Pin(template)
    own = build(options, device, marks, last)
    start = tokens(asked.seed_canvas)
    if start is not None:
        start = pad(start, (0, length - len(start)))
    ends = tokens(options.ends)
    return Special(
        options, asked.rules, own if pin is None else (*own, pin), pin, start,
        tokens(options.score_ids), constraint,
        Reroll(asked.rerolls, ends) if asked.rerolls and ends is not None else None,
        asked.drafts,
    )


def filtered(logits: Tensor, temperature: Tensor, options: RequestOptions) -> Tensor:
    """Temperature, min-p, top-k and top-p of one request, a few rows at a time.

    logits: [R, V] f32  temperature: [R] f32  ->  [R, V] f32
    """

    def part(few: Tensor, heat: Tensor) -> Tensor:
        ops: list[rows.RowOp] = [rows.Temperature(heat)]
        if options.min_p:
            ops.append(rows.MinP(options.min_p))
        if options.top_k:
            ops.append(rows.TopK(options.top_k))
        if options.top_p < 1.0:
            ops.append(rows.TopP(options.top_p))
        return rows.run(ops, few)

    parts = zip(logits.split(ROWS), temperature.split(ROWS), strict=True)
    return torch.cat([part(few, heat) for few, heat in parts])
