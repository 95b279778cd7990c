"""A step's guesses into the slots' next state, by Triton against its reference."""

from typing import NamedTuple

import pytest
import torch

from diffusiongemma_kernels.canvas_step import op, reference
from diffusiongemma_kernels.canvas_step.types import Guess, Rules
from diffusiongemma_kernels.slots import DENOISE, PREFILL, Rows, Slots

SLOTS, VOCAB = 8, 900


class Case(NamedTuple):
    canvas: int
    canvases: int  # requests whose guess there is
    why: str
    spread: float = 0.05  # of entropies around a mean that only some canvases may settle at
    limit: int = 10_000


CASES = [
    Case(16, 6, "everything divides"),
    Case(11, 6, "nothing divides"),
    Case(256, 2, "the model's canvas"),
    Case(1, 6, "one token"),
    Case(16, 0, "prompts and commits alone"),
    Case(16, 6, "tied entropies", 0.0),
    Case(16, 6, "canvases at the end of the context", limit=110),
]


def state_of(case, device):
    """Slots at all stages: prompts in 6 and 7, text to commit in 1 and 4."""
    make = torch.Generator().manual_seed(case.canvas)

    def draw(most, *shape):
        return torch.randint(0, most, shape or (SLOTS,), generator=make)

    def canvas():
        return draw(VOCAB, SLOTS, case.canvas)

    phase = torch.full((SLOTS,), DENOISE, dtype=torch.int32)
    phase[6:] = PREFILL
    pending = torch.zeros(SLOTS, dtype=torch.int64)
    pending[1] = case.canvas
    pending[4] = min(3, case.canvas)
    base = 90 + draw(10)
    width = (case.limit - base).clamp(max=case.canvas)
    made = Slots(
        phase, canvas(), pending, canvas(), canvas(), base, width, draw(3), draw(2), draw(3),
        draw(1 << 40),
    )
    return Slots(*(x.to(device) for x in made))


def batch_of(case, state, device):
    """The requests in an order of their own: canvases, text with a canvas, text, prompts."""
    make = torch.Generator().manual_seed(5)
    order = [3, 1, 0, 4, 5, 2, 7, 6]
    counts = []
    for i, slot in enumerate(order):
        text = int(state.pending[slot])
        if slot >= 6:
            counts.append(4)
        else:
            counts.append(text + (case.canvas if i % 2 == 0 or text == 0 else 0))
    starts = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
    ends = torch.full((len(order),), 95, dtype=torch.int32)
    rows = Rows(*(x.to(device) for x in (torch.tensor(order), starts, ends)))
    K, C = case.canvases, case.canvas
    best = torch.randint(0, VOCAB, (K, C), generator=make)
    for i in range(0, K, 3):
        best[i] = state.best[order[i]]  # as before
    entropy = (0.2 + case.spread * torch.randn(K, C, generator=make)).clamp(min=0)
    sample = torch.randint(0, VOCAB, (K, C), generator=make)
    guess = Guess(best.to(device), sample.to(device), entropy.to(device))
    whole = torch.full((SLOTS,), case.canvas)
    rules = Rules(
        whole, torch.tensor([3, 1, 2, 99, 99, 99, 99, 99]), torch.ones(SLOTS).long(),
        torch.full((SLOTS,), 0.83), torch.full((SLOTS,), 0.21),
    )
    prefill = torch.tensor([0] * 6 + [95, 96], dtype=torch.int32)
    return guess, rows, Rules(*(x.to(device) for x in rules)), prefill.to(device)


def run(step, case, device, change=lambda guess: guess):
    state = state_of(case, device)
    guess, rows, rules, prefill = batch_of(case, state, device)
    out = step(
        change(guess), rows, state, rules, prefill, vocab_size=VOCAB, limit=case.limit
    )
    return state, out


def compare(case, device, change=lambda guess: guess):
    ours = run(op.canvas_step, case, device, change)
    theirs = run(reference.canvas_step, case, "cpu", change)
    for name, got, want in zip(Slots._fields, ours[0], theirs[0], strict=True):
        assert torch.equal(got.cpu(), want), name
    for name, got, want in zip(ours[1]._fields, ours[1], theirs[1], strict=True):
        assert torch.equal(got.cpu(), want), name
    return ours


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_triton(case, device):
    state, out = compare(case, device)
    if case.canvases == 6 and case.canvas > 1:
        assert {int(x) > 0 for x in out.length} == {True, False}, "some settle"
    assert state.phase[7] == PREFILL or state.base[7] == 95


def test_nan(device):
    """Logits of NaN: any number for a token, entropies of NaN, and a vocabulary to stay in."""
    def spoil(guess):
        guess.best[0, ::2], guess.sample[1, ::2] = -5, 1 << 40
        guess.entropy[0, ::2] = float("nan")
        return guess

    state, _ = compare(CASES[0], device, spoil)
    assert state.tokens.min() >= 0 and state.tokens.max() < VOCAB


def test_a_request_is_independent_of_its_batch(device):
    """Each alone, with a guess of its own, becomes what it becomes beside the others."""
    case = CASES[1]
    together, _ = run(op.canvas_step, case, device)
    state = state_of(case, device)
    guess, rows, rules, prefill = batch_of(case, state, device)
    for i in range(len(rows.slots)):
        alone = Rows(
            rows.slots[i : i + 1], rows.starts[i : i + 2].contiguous(), rows.ends[i : i + 1]
        )
        own = Guess(*(x[i : min(i + 1, case.canvases)] for x in guess))
        op.canvas_step(own, alone, state, rules, prefill, vocab_size=VOCAB, limit=case.limit)
    for name, got, want in zip(Slots._fields, state, together, strict=True):
        assert torch.equal(got, want), name


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_on_a_gpu(case):
    compare(case, "cuda")
