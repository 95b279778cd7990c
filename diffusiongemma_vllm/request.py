"""What one request asks of the sampler, parsed once at admission and once in the worker."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SEED_BITS = 63


@dataclass(frozen=True)
class RequestOptions:
    """The options of one request that reach the denoising rules.

    temperature: factor on the checkpoint's schedule; 0 takes the most likely token everywhere.
    top_k: keep the k most likely tokens of every position; 0 keeps all.
    top_p: keep the smallest set of tokens whose probability reaches p; 1 keeps all.
    min_p: keep the tokens at least p times as likely as the likeliest; 0 keeps all.
    seed: key of every random draw of the request.
    bias, only: change the logits of tokens, and leave no others.
    ends: tokens that end the text.  stops: those, and an ignored end of text; min_tokens come
        before the first of them.
    bad_words: sequences of tokens that must not be written.
    thinking_budget: tokens after which a thought is closed.
    scores: likely tokens whose log-probability is told beside each token's own; None tells nothing.
    score_ids: tokens whose log-probability is told instead of the likeliest ones'.
    """

    temperature: float
    top_k: int
    top_p: float
    seed: int
    min_p: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)
    only: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    stops: tuple[int, ...] = ()
    min_tokens: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    thinking_budget: int | None = None
    scores: int | None = None
    score_ids: tuple[int, ...] = ()

    @property
    def filtered(self) -> bool:
        """True where unlikely tokens are ruled out."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalized(self) -> bool:
        return self.repetition != 1.0 or self.frequency != 0.0 or self.presence != 0.0


def request_options(params: Any) -> RequestOptions:
    """Read vLLM's ``SamplingParams``, whose seed ``draw_seed`` has filled at admission."""
    return RequestOptions(
        temperature=float(params.temperature),
        top_k=max(int(params.top_k), 0),
        top_p=float(params.top_p),
        seed=int(params.seed or 0) & ((1 << SEED_BITS) - 1),
        min_p=float(params.min_p),
        bias={int(token): float(value) for token, value in (params.logit_bias or {}).items()},
        only=tuple(params.allowed_token_ids or ()),
        ends=tuple(sorted({*(params.stop_token_ids or ()), *_given(params.eos_token_id)})),
        stops=tuple(sorted(params.all_stop_token_ids)),
        min_tokens=int(params.min_tokens),
        bad_words=tuple(tuple(word) for word in params.bad_words_token_ids or ()),
        repetition=float(params.repetition_penalty),
        frequency=float(params.frequency_penalty),
        presence=float(params.presence_penalty),
        thinking_budget=_budget(params.thinking_token_budget),
        scores=params.num_logprobs,
        score_ids=tuple(params.logprob_token_ids or ()),
    )


def only(score_ids: Sequence[int], allowed: Sequence[int] | None) -> tuple[int, ...]:
    """What a constrained request may write: ``score_ids`` as far as they are ``allowed`` at all."""
    return tuple(token for token in score_ids if not allowed or token in allowed)


def _budget(tokens: int | None) -> int | None:
    """No context is as long as the most that a place may be."""
    return None if tokens is None else min(int(tokens), 1 << 31)


def _given(token: int | None) -> tuple[int, ...]:
    return () if token is None else (token,)


def draw_seed(temperature: float) -> int:
    """The seed of a request that names none.

    At temperature 0 every request starts from the same canvases, so that two equal requests give
    equal text.
    """
    return 0 if temperature == 0.0 else secrets.randbits(31)
