"""What one request asks of the sampler, parsed once at admission and once in the worker."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

SEED_BITS = 63


@dataclass(frozen=True)
class RequestOptions:
    """The options of one request that reach the denoising rules.

    temperature: factor on the checkpoint's schedule; 0 takes the most likely token everywhere.
    top_k: keep the k most likely tokens of every position; 0 keeps all.
    top_p: keep the smallest set of tokens whose probability reaches p; 1 keeps all.
    seed: key of every random draw of the request.
    """

    temperature: float
    top_k: int
    top_p: float
    seed: int

    @property
    def filtered(self) -> bool:
        """True where tokens are ruled out."""
        return self.top_k > 0 or self.top_p < 1.0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


def request_options(params: Any) -> RequestOptions:
    """Read vLLM's ``SamplingParams``, whose seed ``draw_seed`` has filled at admission."""
    return RequestOptions(
        temperature=float(params.temperature),
        top_k=max(int(params.top_k), 0),
        top_p=float(params.top_p),
        seed=int(params.seed or 0) & ((1 << SEED_BITS) - 1),
    )


def draw_seed(temperature: float) -> int:
    """The seed of a request that names none.

    At temperature 0 every request starts from the same canvases, so that two equal requests give
    equal text.
    """
    return 0 if temperature == 0.0 else secrets.randbits(31)
