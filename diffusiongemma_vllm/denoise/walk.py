"""From a settled canvas to text that a constraint allows, left to right.

At each position the best allowed token of the canvas's own distribution is taken.  Where the canvas
gives what is allowed too little probability, the text before stands and the rest is denoised again
behind it.  A model that does not find into its constraint would so be asked for every token: it is
made to write more at a time, and where it wants to end, it is led to an end.
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

    def is_text(self, token: int) -> bool:
        """Whether ``token`` may be part of a text, not its end or a marker."""

    def closing(self) -> int | None:
        """An allowed token that closes what is open, if one is found."""


@dataclass(frozen=True)
class Walk:
    """threshold: share of a position's probability that what is allowed must have."""

    threshold: float

    def __call__(
        self, constraint: Constraint, logits: Tensor, width: int, least: int = 1,
        close: bool = False,
    ) -> list[int]:
        """logits: [C, V] f32 of a settled canvas of ``width`` tokens.   ->  ``least`` or more

        Fewer where the text ends or the canvas does.  close: the last that it must give closes what
        is open, if it is doubtful.
        """
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
                    if share >= self.threshold:
                        break
            doubtful = share < self.threshold
            if doubtful and len(text) >= least:
                break
            closing = None
            over = not constraint.is_text(likely[place][0]) or (close and len(text) == least - 1)
            if doubtful and least > 1 and over:
                closing = constraint.closing()
            if closing is not None:
                token = closing
            elif share > 0:
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
    does not find into the constraint, twice as much text whether it is likely or not.

    text: tokens that are more than little.  steps: what any canvas gets.  most: tokens that any
    canvas must give.
    """

    text: int
    steps: int
    lost: int
    most: int

    def __call__(self, most: int, shorts: int) -> int:
        """most: steps of a canvas.  shorts: canvases in a row with little text."""
        return max(min(most, self.steps), most >> min(shorts, 16))

    def least(self, shorts: int) -> int:
        """Tokens that a canvas must give."""
        return min(self.most, 1 << min(max(0, shorts - self.lost), 16))

    def close(self, shorts: int) -> bool:
        """Whether the text is led to an end though the model does not want one."""
        return self.least(shorts) == self.most

    def count(self, shorts: int, tokens: int) -> int:
        """``shorts`` behind one more canvas, which gave so many tokens.

        One that gives more than it had to halves them: the next may need help again.
        """
        little = tokens < self.text or tokens <= self.least(shorts)
        return shorts + 1 if little else shorts // 2


PATIENCE = Patience(text=4, steps=2, lost=4, most=16)


def _best(log_probs: Tensor, allowed: Tensor) -> int:
    """The likeliest allowed token, even of those that cannot be."""
    choice = allowed.to(log_probs.device)
    rank = torch.where(choice, log_probs.clamp(min=-1e30), -torch.inf)
    return int(rank.argmax())
