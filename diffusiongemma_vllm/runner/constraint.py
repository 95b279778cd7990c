"""How far the text of one request is in its grammar, and what may come next.

With a thought in front: the grammar begins behind it.  The text ends where the grammar is complete,
with one of the request's end tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from enum import Enum, auto
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar

from diffusiongemma_vllm.denoise.edits import Known
from diffusiongemma_vllm.markers import marker_tokens
from diffusiongemma_vllm.runner.back_ends import WORD, TextGrammar, forced_text
from diffusiongemma_vllm.runner.edits import ThoughtMarks
from diffusiongemma_vllm.runner.grammars import Grammars

# In extra_args, from the scheduler to the sampler:
THOUGHT_FIRST = "_thought_first"
SHORTS = "_shorts"  # see the attribute, of a request that comes back after a preemption
INTERNAL = {THOUGHT_FIRST, SHORTS}
LONGEST_LEAD = 1024  # forced tokens that are worked out ahead
LONGEST_TEXT = 4096  # forced characters that are looked at in one go
CLOSERS, SEPARATORS = ('"', "}", "]"), (",",)


class Stage(Enum):
    MAYBE_THOUGHT = auto()
    THOUGHT = auto()
    GRAMMAR = auto()
    OVER = auto()


class GrammarConstraint:
    """See the module; ``Constraint`` of denoise.walk.

    lead: tokens that come next because nothing else may, already accepted by the grammar.
    shorts: canvases in a row that it left little text of; the sampler counts them.
    stuck: the grammar has led to where nothing may come; the request ends with an error.
    """

    def __init__(
        self, grammar: Future[StructuredOutputGrammar], *, ends: Sequence[int], markers: Tensor,
        marks: ThoughtMarks | None, tokenize: Callable[[str], list[int]], letters: dict[str, int],
    ) -> None:
        """markers: [V] bool, tokens that are never text.  marks: given where a thought may come.

        letters: tokens of one character.
        """
        self._future = grammar
        self.vocab = len(markers)
        self.ends = frozenset(ends)
        self.markers = markers
        self.marks = marks
        self.tokenize = tokenize
        self.letters = letters
        self.closers, self.separators = (
            [letters[text] for text in some if text in letters] for some in (CLOSERS, SEPARATORS)
        )
        self.stage = Stage.GRAMMAR if marks is None else Stage.MAYBE_THOUGHT
        self.started = False
        self.lead: list[int] = []
        self.shorts = 0
        self.stuck = False
        self._bits = torch.full((1, -(-self.vocab // WORD)), -1, dtype=torch.int32)
        self._known: Known | None = None

    @property
    def grammar(self) -> StructuredOutputGrammar:
        """The scheduler lets a request in once its grammar compiles: this waits shortly at most."""
        return self._future.result()

    def over(self) -> bool:
        return self.stage is Stage.OVER or self.stuck

    def allowed(self) -> Callable[[int], bool]:
        if self.lead:
            only = self.lead[0]
            return lambda token: token == only
        if self.stage is Stage.THOUGHT:
            assert self.marks is not None
            closes, markers = self.marks.closes, self.markers
            return lambda token: token == closes or not markers[token]
        if self.grammar.is_terminated():
            return lambda token: token in self.ends
        opens = self.marks.opens if self.marks and self.stage is Stage.MAYBE_THOUGHT else -1
        grammar = self.grammar
        if isinstance(grammar, TextGrammar):
            return lambda token: token == opens or grammar.allows(token)
        words = self._fill().tolist()
        return lambda token: bool(words[token // WORD] >> (token % WORD) & 1) or token == opens

    def allowed_mask(self, vocab: int) -> Tensor:
        if self.lead or (self.stage is Stage.GRAMMAR and self.grammar.is_terminated()):
            mask = torch.zeros(vocab, dtype=torch.bool)
            mask[self.lead[:1] or sorted(self.ends)] = True
            return mask
        if self.stage is Stage.THOUGHT:
            assert self.marks is not None
            mask = ~self.markers
            mask[self.marks.closes] = True
            return mask
        bits = self._fill()[:, None] >> torch.arange(WORD, dtype=torch.int32)
        mask = (bits & 1).flatten()[:vocab].bool()
        if self.marks is not None and self.stage is Stage.MAYBE_THOUGHT:
            mask[self.marks.opens] = True
        return mask

    def _fill(self) -> Tensor:
        self._bits.fill_(-1)
        self.grammar.fill_bitmask(self._bits, 0)
        return self._bits[0]

    def accept(self, token: int) -> None:
        self._known = None
        if self.lead:
            assert token == self.lead.pop(0), "nothing else is allowed"
        elif self.stage is Stage.THOUGHT:
            assert self.marks is not None
            if token == self.marks.closes:
                self.stage = Stage.GRAMMAR
            return
        elif self.stage is Stage.MAYBE_THOUGHT and self.marks and token == self.marks.opens:
            self.stage = Stage.THOUGHT
            return
        else:
            self._advance(token)
        if token in self.ends and not self.lead and self.grammar.is_terminated():
            self.stage = Stage.OVER

    def is_text(self, token: int) -> bool:
        return token not in self.ends and not self.markers[token]

    def closing(self) -> int | None:
        """A token of ``CLOSERS``, or of a letter behind which one of them or the end may come.

        Or of a separator, which ends a value.  What a closer closes is not known: at the start of
        a value a quote opens one, and closes it the next time.
        """
        if self.lead or self.stage is not Stage.GRAMMAR or self.grammar.is_terminated():
            return None
        allowed = self.allowed()
        found = next(filter(allowed, self.closers), None)
        if found is None:
            letters = [*filter(allowed, self.letters.values())]
            found = next(filter(self._leads_out, letters), None)
        return next(filter(allowed, self.separators), None) if found is None else found

    def _leads_out(self, letter: int) -> bool:
        """Whether a closer or the end may come behind ``letter``, which is allowed."""
        self._advance(letter)
        try:
            return any(map(self.allowed(), (*self.closers, *self.ends)))
        finally:
            self.grammar.rollback(1)

    def _advance(self, token: int) -> None:
        self.stage = Stage.GRAMMAR
        if self.grammar.is_terminated():
            return
        self.stuck |= not self.grammar.accept_tokens("", [token])

    def start(self, prompt: Sequence[int], output: Sequence[int]) -> None:
        """``output``: what is written already, for a request that comes back after a preemption."""
        self.started = True
        if self.marks is not None:
            bounds = [t for t in prompt if t in (self.marks.opens, self.marks.closes)]
            if bounds and bounds[-1] == self.marks.opens:
                self.stage = Stage.THOUGHT
        for token in output:
            self.accept(token)

    def known(self, device: torch.device) -> Known:
        """What it says of the canvas behind the text so far."""
        if self._known is None:
            self._look_ahead()
            then = self._then()
            self.stuck |= not bool(then.any())
            held = torch.tensor(self.lead, dtype=torch.int64, device=device)
            self._known = Known(held, then.to(device))
        return self._known

    def _look_ahead(self) -> None:
        """Accept what can only be one text, for good: nothing has to be taken back."""
        if self.stage is not Stage.GRAMMAR:
            return
        while len(self.lead) < LONGEST_LEAD and not (self.stuck or self.grammar.is_terminated()):
            forced = self._forced_text() or self._forced_token()
            if not forced:
                return
            for token in forced:
                self._advance(token)
                self.lead.append(token)

    def _forced_text(self) -> list[int]:
        """The tokens of what must follow.  The last is left open: it may be the start of a longer
        one.
        """
        text = forced_text(self.grammar)[:LONGEST_TEXT]
        tokens = self.tokenize(text)[:-1] if len(text) > 1 else []
        return self.grammar.validate_tokens(tokens) if tokens else []

    def _forced_token(self) -> list[int]:
        words = self._fill()
        used = words.nonzero().flatten()
        if len(used) != 1:
            return []
        word = int(words[used[0]]) & 0xFFFFFFFF
        if word & (word - 1):
            return []
        return [int(used[0]) * WORD + word.bit_length() - 1]

    def _then(self) -> Tensor:
        lead, self.lead = self.lead, []
        try:
            return self.allowed_mask(self.vocab)
        finally:
            self.lead = lead


class Constraints:
    """Makes the constraints of requests."""

    def __init__(self, vllm_config: Any, marks: ThoughtMarks | None) -> None:
        self.config = vllm_config.model_config
        self.marks = marks
        self.grammars = Grammars(vllm_config)

    def __call__(self, params: Any) -> GrammarConstraint | None:
        if params.structured_outputs is None:
            return None
        thought = (params.extra_args or {}).get(THOUGHT_FIRST)
        return GrammarConstraint(
            self.grammars.compile(params), ends=sorted(self.grammars.ends_of(params)),
            markers=self._markers, marks=self.marks if thought else None,
            tokenize=lambda text: self._tokenizer.encode(text, add_special_tokens=False),
            letters=self._letters,
        )

    @cached_property
    def _tokenizer(self) -> Any:
        return cached_tokenizer_from_config(self.config)

    @cached_property
    def _letters(self) -> dict[str, int]:
        vocabulary = self._tokenizer.get_vocab()
        return {text: vocabulary[text] for text in map(chr, range(33, 127)) if text in vocabulary}

    @cached_property
    def _markers(self) -> Tensor:
        markers = torch.zeros(self.config.get_vocab_size(), dtype=torch.bool)
        markers[list(marker_tokens(self._tokenizer))] = True
        return markers
