"""From a settled canvas to text that a constraint allows, left to right.

At each position the best allowed token of the canvas's own distribution is taken.  Where the canvas
gives what is allowed too little probability, the text before stands and the rest is denoised again
behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

LIKELY = 64  # tokens of each position that are looked at first


class Constraint(Protocol):
    def allowed(self) -> Callable[[int], bool]:
        """Whether a token may come next."""

    def allowed_mask(self, vocab: int) -> Tensor:
        """The same of all tokens.   ->  [vocab] bool, on the CPU"""

    def accept(self, token: int) -> None:
        """``token``, which is allowed, comes next."""

    def over(self) -> bool:
        """Whether the text has ended."""


@dataclass(frozen=True)
class Walk:
    """threshold: share of a position's probability that what is allowed must have."""

    threshold: float

    def __call__(
        self, constraint: Constraint, logits: Tensor, width: int, ease: float = 1.0
    ) -> list[int]:
        """logits: [C, V] f32 of a settled canvas of ``width`` tokens.   ->  at least one token

        ease: factor on the threshold.
        """
        threshold = self.threshold * ease
        log_probs = logits[:width].log_softmax(dim=-1)
        values, tokens = log_probs.topk(min(LIKELY, logits.shape[-1]), dim=-1)
        likely, probs = tokens.tolist(), values.exp().tolist()
        text: list[int] = []
        for place in range(width):
            allowed = constraint.allowed()
            first, share = -1, 0.0
            for i, candidate in enumerate(likely[place]):
                if allowed(candidate):
                    first = i if first < 0 else first
                    share += probs[place][i]
                    if share >= threshold:
                        break
            if text and share < threshold:
                break
            if share > 0:
                token = likely[place][first]
            else:
                token = _best(log_probs[place], constraint.allowed_mask(logits.shape[-1]))
            constraint.accept(token)
            text.append(token)
            if constraint.over():
                break
        return text


@dataclass(frozen=True)
class Patience:
    """What a canvas gets behind others that a constraint left little text of.

    Half as many steps for every such canvas in a row; and behind ``lost`` of them, where the model
    does not find into the constraint, half the threshold for each.

    text: tokens that are more than little.  least: steps that any canvas gets.
    """

    text: int
    least: int
    lost: int

    def __call__(self, most: int, shorts: int) -> int:
        """most: steps of a canvas.  shorts: canvases in a row with little text."""
        return max(min(most, self.least), most >> min(shorts, 16))

    def ease(self, shorts: int) -> float:
        """Factor on a walk's threshold."""
        return 0.5 ** max(0, shorts - self.lost)

    def count(self, shorts: int, tokens: int) -> int:
        """``shorts`` behind one more canvas, which gave so many tokens."""
        return shorts + 1 if tokens < self.text else 0


PATIENCE = Patience(text=4, least=2, lost=4)


def _best(log_probs: Tensor, allowed: Tensor) -> int:
    """The likeliest allowed token, even of those that cannot be."""
    choice = allowed.to(log_probs.device)
    rank = torch.where(choice, log_probs.clamp(min=-1e30), -torch.inf)
    return int(rank.argmax())
