"""What one request does to the distributions of its own canvas.

An edit takes the softcapped logits [C, V] of one canvas and returns new ones; -inf forbids a token.
It may look at the text that is committed and at the canvas's current guess, never at another
request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

NEVER = float("-inf")


@dataclass(frozen=True)
class Scene:
    """One canvas and the text before it.

    text: [L] integers, the prompt and the committed output; what lies behind ``base`` is not read.
    base: [] i64, tokens before the canvas.  prompt: how many of them are the prompt's.
    guess: [C] i64, the last step's best token of every position, -1 before there is one.
    width: [] i64, positions of the canvas that exist.
    """

    text: Tensor
    base: Tensor
    prompt: int
    guess: Tensor
    width: Tensor

    def index(self) -> Tensor:
        """Which token of the output each position is.   ->  [C] i64"""
        return self.base - self.prompt + torch.arange(len(self.guess), device=self.guess.device)


class Edit(Protocol):
    def __call__(self, logits: Tensor, scene: Scene) -> Tensor:
        """logits: [C, V] f32  ->  [C, V] f32"""


@dataclass(frozen=True)
class Bias:
    """Add ``value`` [n] f32 to the logits of ``tokens`` [n] i64."""

    tokens: Tensor
    value: Tensor

    def __call__(self, logits: Tensor, scene: Scene) -> Tensor:
        return logits.index_add(1, self.tokens, self.value.expand(len(logits), -1))


@dataclass(frozen=True)
class Only:
    """Forbid every token but ``tokens`` [n] i64."""

    tokens: Tensor

    def __call__(self, logits: Tensor, scene: Scene) -> Tensor:
        kept = torch.full_like(logits, NEVER)
        kept[:, self.tokens] = logits[:, self.tokens]
        return kept


@dataclass(frozen=True)
class NotBefore:
    """Forbid ``tokens`` [n] i64 among the first ``count`` tokens of the output."""

    tokens: Tensor
    count: int

    def __call__(self, logits: Tensor, scene: Scene) -> Tensor:
        early = scene.index() < self.count
        forbidden = torch.where(early[:, None], NEVER, logits[:, self.tokens])
        return logits.index_copy(1, self.tokens, forbidden)


@dataclass(frozen=True)
class Penalties:
    """Make tokens that are there already less likely (or, below 0 and 1, more).

    Counted are the committed output and the canvas's guesses of the positions before, up to the
    first of ``ends`` [n] i64, where the text would stop.  ``repetition`` also looks at the prompt.
    (Positions behind would make all places of a token leave it at once, and return at once.)
    With a count c of a token:  logit / repetition where it is positive, else logit * repetition,
    once the token is there;  - frequency * c;  - presence where c > 0.
    """

    repetition: float
    frequency: float
    presence: float
    ends: Tensor

    def __call__(self, logits: Tensor, scene: Scene) -> Tensor:
        vocab = logits.shape[-1]
        where = torch.arange(len(scene.text), device=logits.device)
        before = where < scene.base
        text = scene.text.long()
        output = _count(text, before & (where >= scene.prompt), vocab)
        counts = self.add_guesses(output.repeat(len(logits), 1), scene)
        there = counts > 0
        if self.repetition != 1.0:
            known = there | (_count(text, before & (where < scene.prompt), vocab) > 0)
            scaled = torch.where(logits > 0, logits / self.repetition, logits * self.repetition)
            logits = torch.where(known, scaled, logits)
        return logits - self.frequency * counts - self.presence * there

    def add_guesses(self, counts: Tensor, scene: Scene) -> Tensor:
        """counts: [C, V] f32, of the output  ->  the guesses of earlier positions counted too"""
        tokens = scene.guess.clamp(min=0)
        same = ((tokens[:, None] == tokens) & self.guessed(scene)[:, None]).float()  # [C, C]
        earlier = same.cumsum(0) - same
        column = tokens.expand(len(counts), -1)
        return counts.scatter(1, column, counts.gather(1, column) + earlier)

    def guessed(self, scene: Scene) -> Tensor:
        """The positions whose guess is text.   ->  [C] bool"""
        column = torch.arange(len(scene.guess), device=scene.guess.device)
        over = torch.isin(scene.guess, self.ends).cumsum(0) > 0
        return (scene.guess >= 0) & ~over & (column < scene.width)


def _count(tokens: Tensor, where: Tensor, vocab: int) -> Tensor:
    """How often each token stands ``where`` it counts.   [n] i64, [n] bool  ->  [vocab] f32"""
    zero = torch.zeros(vocab, device=tokens.device)
    return zero.scatter_add(0, tokens.clamp(0, vocab - 1), where.float())


@dataclass(frozen=True)
class BadWords:
    """Forbid a token that would complete one of ``words``, each [n] i64, n tokens in a row.

    What stands before a position is committed text, and inside the canvas the current guess.
    """

    words: tuple[Tensor, ...]

    def __call__(self, logits: Tensor, scene: Scene) -> Tensor:
        logits = logits.clone()
        longest = max(len(word) for word in self.words)
        size = len(scene.guess)
        place = scene.base + torch.arange(-longest, 0, device=logits.device)
        text = scene.text[place.clamp(min=0)].long()
        seen = torch.cat([torch.where(place >= 0, text, -1), scene.guess])
        for word in self.words:
            match = torch.ones(size, dtype=torch.bool, device=logits.device)
            for back in range(1, len(word)):
                match &= seen[longest - back : longest - back + size] == word[-1 - back]
            last = word[-1:]
            forbidden = torch.where(match[:, None], NEVER, logits[:, last])
            logits.index_copy_(1, last, forbidden)
        return logits


@dataclass(frozen=True)
class Pin:
    """Hold the output's tokens where ``template`` [n] i64 is not -1."""

    template: Tensor

    def at(self, scene: Scene) -> Tensor:
        """The token each position is held to, or -1.   ->  [C] i64"""
        index = scene.index()
        known = self.template[index.clamp(0, len(self.template) - 1)]
        return torch.where((index >= 0) & (index < len(self.template)), known, -1)

    def __call__(self, logits: Tensor, scene: Scene) -> Tensor:
        return hold(logits, self.at(scene))


@dataclass(frozen=True)
class ThoughtEnds:
    """Close a thought that has used up its ``budget`` of tokens, with ``ends`` [m] i64.

    The thought runs from the last ``opens`` of prompt and output on, as long as no ``closes``
    follows; inside the canvas the current guess tells.  The position that would be token number
    ``budget`` of the thought is held to the first of ``ends``, and so on.
    """

    budget: int
    opens: int
    closes: int
    ends: Tensor

    def __call__(self, logits: Tensor, scene: Scene) -> Tensor:
        size = len(logits)
        before = torch.arange(len(scene.text), device=logits.device) < scene.base
        opened = _last((scene.text == self.opens) & before)
        open_before = opened > _last((scene.text == self.closes) & before)
        opens_here = _first(scene.guess == self.opens)
        start = torch.where(open_before, opened, scene.base + opens_here)
        position = scene.base + torch.arange(size, device=logits.device)
        limit = start + 1 + self.budget
        # The prompt may have used up more of it already.
        passed = open_before & (limit + len(self.ends) <= scene.base)
        limit = torch.where(passed, scene.base, limit)
        shut = scene.base + _first((scene.guess == self.closes) & (position > start))
        due = position - limit
        forced = (due >= 0) & (due < len(self.ends)) & (shut >= limit)
        forced &= open_before | (opens_here < size)
        return hold(logits, torch.where(forced, self.ends[due.clamp(0, len(self.ends) - 1)], -1))


def _last(match: Tensor) -> Tensor:
    """Index of the last match, -1 without one.   [n] bool  ->  [] i64"""
    return torch.where(match, torch.arange(len(match), device=match.device), -1).max()


def _first(match: Tensor) -> Tensor:
    """Index of the first match, n without one.   [n] bool  ->  [] i64"""
    return torch.where(match, torch.arange(len(match), device=match.device), len(match)).min()


def hold(logits: Tensor, tokens: Tensor) -> Tensor:
    """Forbid every token but ``tokens`` [C] i64, in the rows where it is not -1."""
    own = tokens.clamp(min=0)[:, None]
    only = torch.full_like(logits, NEVER).scatter(1, own, logits.gather(1, own).clamp(min=-1e4))
    return torch.where((tokens >= 0)[:, None], only, logits)


def run(edits: Sequence[Edit], logits: Tensor, scene: Scene) -> Tensor:
    for edit in edits:
        logits = edit(logits, scene)
    return logits


@dataclass(frozen=True)
class Known:
    """What a constraint says of a canvas before it is written.

    held: [k] i64, tokens that its beginning can only be.  then: [V] bool, what may follow them.
    """

    held: Tensor
    then: Tensor

    def __call__(self, logits: Tensor, scene: Scene) -> Tensor:
        size, count = len(logits), len(self.held)
        held = torch.full((size,), -1, dtype=torch.int64, device=logits.device)
        held[: min(size, count)] = self.held[:size]
        logits = hold(logits, held)
        if count < size:
            logits[count] = torch.where(self.then, logits[count], NEVER)
        return logits
