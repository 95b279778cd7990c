"""From the guesses of a step to the slots' next state, in one launch."""

import torch
from torch import Tensor

from diffusiongemma_kernels import noise
from diffusiongemma_kernels.canvas_step import _config, _kernel
from diffusiongemma_kernels.canvas_step.types import Guess, Outcome, Rules
from diffusiongemma_kernels.slots import Rows, Slots


def canvas_step(
    guess: Guess, rows: Rows, state: Slots, rules: Rules, prefill_len: Tensor, *, vocab_size: int,
    limit: int,
) -> Outcome:
    """For request i of N with slot s, rows r, K canvases of the guess being those of the first K:

        committed = min(pending, r)                     the slot denoises
        denoises = i < K and r > committed
        accept   = positions by entropy while the sum of those before is <= entropy_bound
        tokens   = sample where accepted, else uniform tokens
        held     = held + 1 where best is as before, else 0
        done     = held >= stability_steps and mean entropy < confidence, or step >= last_step
        a settled canvas gives `width` tokens of text, which are then pending
        it, and a prompt whose end >= prefill_len, is followed by a new canvas of uniform tokens
        of min(limit - base, canvas_length) tokens

    prefill_len [S] integers; `limit`, positions served.  Writes the state.  The noise is
    `noise.uniform_tokens` of the slot's seed and of (position, step, roll).
    """
    _check(guess, rows, state, rules, prefill_len)
    N, C = rows.slots.shape[0], state.tokens.shape[1]
    device = state.tokens.device
    text = torch.empty((N, C), dtype=torch.int32, device=device)
    length, rejected = (torch.empty(N, dtype=torch.int32, device=device) for _ in range(2))
    if N:
        cfg = _config.choose(C)
        _kernel.step[(N,)](
            *guess, *rows, prefill_len, *state, *rules, text, length, rejected,
            guess.best.shape[0], C, vocab_size, limit, DOMAIN=noise.TOKENS, BLOCK=cfg.block,
            CHUNK=cfg.chunk, num_warps=cfg.warps,
        )
    return Outcome(text, length, rejected)


def _check(guess: Guess, rows: Rows, state: Slots, rules: Rules, prefill_len: Tensor) -> None:
    guess.check()
    rows.check()
    state.check()
    S, C = state.tokens.shape
    rules.check(S)
    N = rows.slots.shape[0]
    assert guess.best.shape[0] <= N and guess.best.shape[1] == C, f"{guess.best.shape=} {N=} {C=}"
    assert prefill_len.shape == (S,), f"{prefill_len.shape=} {S=}"
