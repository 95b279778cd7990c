"""What a request does that a plain one does not, with its tokens on the device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from diffusiongemma_vllm.config import DenoiseConfig
from diffusiongemma_vllm.denoise.edits import Edit, Pin
from diffusiongemma_vllm.denoise.reroll import Reroll
from diffusiongemma_vllm.knobs import CanvasOptions
from diffusiongemma_vllm.request import RequestOptions
from diffusiongemma_vllm.runner.constraint import GrammarConstraint
from diffusiongemma_vllm.runner.edits import ThoughtMarks, build


@dataclass(frozen=True)
class Special:
    """A request that does more than denoise: what its slot needs of it, on the device.

    start: [C] i64, what its first canvas starts from, if not from noise.
    score_ids: [S] i64, tokens whose log-probabilities are told.
    """

    options: RequestOptions
    rules: DenoiseConfig
    edits: tuple[Edit, ...]
    pin: Pin | None
    start: Tensor | None
    score_ids: Tensor | None
    constraint: GrammarConstraint | None
    reroll: Reroll | None

    @property
    def bends(self) -> bool:
        """Whether tokens are drawn from other distributions than the model's."""
        return self.options.filtered or bool(self.edits) or self.constraint is not None

    @property
    def any(self) -> bool:
        more = (self.start, self.options.scores, self.reroll)
        return self.bends or any(one is not None for one in more)


def special_of(
    options: RequestOptions, asked: CanvasOptions, constraint: GrammarConstraint | None,
    marks: ThoughtMarks | None, length: int, device: torch.device, last: Edit | None = None,
) -> Special:
    """length: of the server's canvas, which ``start`` is padded to.  last: after other edits."""

    def tokens(ids: tuple[int, ...]) -> Tensor | None:
        return torch.tensor(ids, device=device) if ids else None

    if asked.constrained:
        options = replace(options, only=options.score_ids)
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
    )
