"""What the rows of a step read, by Triton against its reference."""

from typing import NamedTuple

import pytest
import torch
from around import CONFIG

from diffusiongemma_kernels.canvas_rows import op, reference
from diffusiongemma_kernels.canvas_rows.types import Heat
from diffusiongemma_kernels.slots import DENOISE, PREFILL, Rows, Slots
from diffusiongemma_vllm.denoise.draws import draws
from diffusiongemma_vllm.state import SlotState


class Case(NamedTuple):
    slots: list[int]  # 0 a prompt, 1 and 2 canvases at steps 0 and 3, 3 with 3 tokens of text
    rows: list[int]
    why: str
    padding: int = 0  # of requests, and thrice as many rows


CANVAS, HIDDEN = 5, 6
CASES = [
    Case([1], [5], "one canvas"),
    Case([0], [9], "a prompt"),
    Case([3], [3], "a commit"),
    Case([3], [8], "a commit and a canvas"),
    Case([3], [5], "a commit and a short canvas"),
    Case([3], [2], "part of a text"),
    Case([2, 3, 0, 1], [5, 8, 4, 5], "every kind", 2),
    Case([2, 1], [5, 0], "a request without rows"),
    Case([1, 2] * 65, [1] * 130, "more requests than one search", 10),
]


def state_of(device):
    make = torch.Generator().manual_seed(0)

    def tokens():
        return torch.randint(0, 1000, (4, CANVAS), generator=make).to(device)

    def numbers(*values):
        return torch.tensor(values, device=device)

    nothing = numbers(0, 0, 0, 0)
    phase = numbers(PREFILL, DENOISE, DENOISE, DENOISE).to(torch.int32)
    return Slots(
        phase, tokens(), numbers(0, 0, 0, 3), tokens(), tokens(), nothing, nothing,
        numbers(4, 0, 3, 1), nothing, nothing, nothing,
    )


def rows_of(case, device):
    counts = torch.tensor(case.rows, dtype=torch.int64)
    starts = torch.tensor([0, *case.rows]).cumsum(0)
    slots = torch.tensor(case.slots, dtype=torch.int64)
    ends = (counts + 20).to(torch.int32)
    return Rows(slots.to(device), starts.to(torch.int32).to(device), ends.to(device))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_parts(case, device):
    requests = len(case.slots) + case.padding
    found = []
    for run in (op.set_parts, reference.set_parts):
        starts = torch.full((2 * requests + 1,), -9, dtype=torch.int32, device=device)
        ends = torch.full((2 * requests,), -9, dtype=torch.int32, device=device)
        run(rows_of(case, device), state_of(device), starts, ends)
        found.append((starts.tolist(), ends.tolist()))
    assert found[0] == found[1]
    assert found[0][0][-1] == sum(case.rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_rows(case, dtype, device):
    total = sum(case.rows)
    padded = total + 3 * case.padding
    beliefs = torch.randn(4, CANVAS, HIDDEN, generator=torch.Generator().manual_seed(1))
    beliefs = beliefs.to(dtype).to(device)
    beliefs[1] = float("nan")  # of the canvas before: not read at step 0
    found = []
    for run in (op.fill_rows, reference.fill_rows):
        ids = torch.full((total,), -1, dtype=torch.int32, device=device)
        soft = torch.full((padded, HIDDEN), 7.0, dtype=dtype, device=device)
        denoising = torch.ones(padded, dtype=torch.bool, device=device)
        run(rows_of(case, device), state_of(device), beliefs, ids, soft, denoising)
        found.append((ids, soft, denoising))
    for ours, want in zip(*found, strict=True):
        assert torch.equal(ours, want)
    assert not found[0][1].isnan().any() and not found[0][2][total:].any()


def test_draws(device):
    """To the last bit, as torch's rules have it at every step of every length."""
    state = SlotState(
        CONFIG, slots=97, hidden=HIDDEN, limit=1 << 18, dtype=torch.float32,
        device=torch.device(device),
    )
    make = torch.Generator().manual_seed(0)
    for name, most in (("base", 1 << 18), ("seed", 1 << 62), ("roll", 32)):
        getattr(state, name).copy_(torch.randint(most, (97,), generator=make))
    knobs, slots = state.knobs, torch.randperm(97, generator=make).to(device)
    for name, real in (("t_min", knobs.t_min), ("t_max", knobs.t_max), ("", state.temperature)):
        real.copy_(torch.rand(97, generator=make, dtype=torch.float64) + (name == "t_max"))
    knobs.max_steps.copy_(torch.arange(97) + 1)
    state.step.copy_(torch.arange(97) * torch.rand(97, generator=make))
    heat = Heat(knobs.t_min, knobs.t_max, knobs.max_steps, state.temperature)
    own = Slots(*(getattr(state, name) for name in Slots._fields))
    got = op.draw_rows(slots, own, heat)
    for want in (reference.draw_rows(slots, own, heat), draws(state, slots)):
        for one, other in zip(got, want, strict=True):
            assert one.dtype == other.dtype and torch.equal(one, other)
    assert len(got.counter.unique()) > 4 * 97 and len(got.temperature.unique()) == 97


def test_no_rows(device):
    nobody = rows_of(Case([], [], ""), device)
    starts = torch.full((1,), 3, dtype=torch.int32, device=device)
    op.set_parts(nobody, state_of(device), starts, starts[:0])
    soft = torch.zeros(0, HIDDEN, device=device)
    ids = torch.zeros(0, dtype=torch.int32, device=device)
    beliefs = torch.zeros(4, CANVAS, HIDDEN, device=device)
    op.fill_rows(nobody, state_of(device), beliefs, ids, soft, soft[:, 0].bool())
    real, whole = torch.zeros(4, device=device), torch.ones(4, dtype=torch.int64, device=device)
    heat = Heat(real.double(), real.double(), whole, real)
    assert [len(x) for x in op.draw_rows(nobody.slots, state_of(device), heat)] == [0, 0, 0]


@pytest.mark.gpu
def test_the_models_shape():
    """32 requests: canvases, prompts, commits, both; rows of 2,816 numbers in bf16."""
    S, C, H = 32, 256, 2816
    make = torch.Generator().manual_seed(2)
    tokens, text = torch.randint(0, 262144, (2, S, C), generator=make)
    zero, four = torch.zeros(S, dtype=torch.int64), torch.arange(S) % 4
    phase = (four > 0).to(torch.int32)
    pending, step = torch.where(four == 2, C, 0), torch.arange(S) % 3
    state = Slots(phase, text, pending, tokens, zero, zero, zero, step, zero, zero, zero)
    state = state._replace(best=text)
    counts = [(300, C, 2 * C, C)[i % 4] for i in range(S)]
    rows = rows_of(Case(list(range(S)), counts, ""), "cpu")
    beliefs = torch.randn(S, C, H, generator=make).to(torch.bfloat16)
    found = []
    for run, device in ((op.fill_rows, "cuda"), (reference.fill_rows, "cpu")):
        ids = torch.full((sum(counts),), -1, dtype=torch.int32, device=device)
        soft = torch.zeros(len(ids), H, dtype=torch.bfloat16, device=device)
        denoising = torch.ones(len(ids), dtype=torch.bool, device=device)
        moved = (type(x)(*(y.to(device) for y in x)) for x in (rows, state))
        run(*moved, beliefs.to(device), ids, soft, denoising)
        found.append((ids.cpu(), soft.cpu(), denoising.cpu()))
    for ours, want in zip(*found, strict=True):
        assert torch.equal(ours, want)
