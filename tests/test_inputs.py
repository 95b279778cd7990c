"""Which rows of a step read a canvas: 4 slots, canvases of 3 tokens."""

from typing import NamedTuple

import pytest
import torch

from diffusiongemma_vllm.config import DenoiseConfig
from diffusiongemma_vllm.inputs import StepInputs
from diffusiongemma_vllm.state import DENOISE, PREFILL, SlotState

CONFIG = DenoiseConfig(
    canvas_length=3, vocab_size=100, max_steps=8, t_min=0.4, t_max=0.8, entropy_bound=0.1,
    stability_steps=1, confidence=0.005,
)
CPU = dict(dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture
def state():
    """Slot s holds the tokens 10 s + 1, 10 s + 2, 10 s + 3 and soft rows of the same numbers.

    Slot 2 has the text 26, 27, 28 to commit before.
    """
    state = SlotState(CONFIG, slots=4, hidden=2, limit=50, **CPU)
    state.phase[:] = torch.tensor([PREFILL, DENOISE, DENOISE, DENOISE])
    state.text[:] = torch.tensor([26, 27, 28])
    state.pending[2] = 3
    state.tokens[:] = 10 * torch.arange(4)[:, None] + torch.arange(1, 4)
    state.soft[:] = state.tokens[:, :, None].float()
    state.step[:] = 1
    return state


@pytest.fixture
def inputs():
    """With the rests of an earlier step in its buffers."""
    inputs = StepInputs(tokens=16, requests=6, hidden=2, **CPU)
    inputs.soft[:], inputs.denoising[:] = 99.0, True
    inputs.parts.starts[:], inputs.parts.ends[:] = 99, 99
    return inputs


def rows(state, inputs, slots, lengths, padded=None):
    starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).to(torch.int32)
    ids = torch.arange(-1, -1 - int(starts[-1]), -1)
    soft, denoising = inputs.set_rows(
        state, torch.tensor(slots), starts, ids, padded or len(ids)
    )
    return ids.tolist(), soft, denoising.int().tolist()


def test_a_prompt_keeps_its_tokens(state, inputs):
    ids, soft, denoising = rows(state, inputs, [0], [5])
    assert ids == [-1, -2, -3, -4, -5] and denoising == [0] * 5
    assert soft.abs().sum() == 0


def test_a_canvas_reads_its_slot(state, inputs):
    ids, soft, denoising = rows(state, inputs, [1], [3])
    assert ids == [11, 12, 13] and denoising == [1, 1, 1]
    assert soft.tolist() == [[11, 11], [12, 12], [13, 13]]


def test_a_canvas_begins_without_conditioning(state, inputs):
    state.soft[1] = torch.nan  # of the canvas before
    state.begin(torch.tensor([1]), torch.tensor([9]), torch.ones(1, 3).long(), torch.tensor([True]))
    ids, soft, denoising = rows(state, inputs, [1, 3], [3, 3])
    assert ids == [1, 1, 1, 31, 32, 33] and denoising == [1] * 6
    assert soft[:3].abs().sum() == 0
    assert soft[3:].tolist() == [[31, 31], [32, 32], [33, 33]]


def test_a_commit_reads_its_text_without_conditioning(state, inputs):
    ids, soft, denoising = rows(state, inputs, [2], [3])
    assert ids == [26, 27, 28] and denoising == [0, 0, 0]
    assert soft.abs().sum() == 0


@pytest.mark.parametrize("text", [1, 2, 3])
@pytest.mark.parametrize("width", [1, 3])
def test_text_and_the_next_canvas_in_one_forward(state, inputs, text, width):
    """A constraint leaves part of a canvas; the context may end in the next one."""
    state.pending[2] = text
    ids, soft, denoising = rows(state, inputs, [1, 2, 3], [3, text + width, 3])
    mine = slice(3, 3 + text + width)
    assert ids[mine] == [26, 27, 28][:text] + [21, 22, 23][:width]
    assert denoising[mine] == [0] * text + [1] * width
    assert soft[mine, 0].tolist() == [0] * text + [21, 22, 23][:width]
    assert ids[:3] + ids[-3:] == [11, 12, 13, 31, 32, 33] and sum(denoising) == 6 + width


def test_a_mixed_batch(state, inputs):
    ids, soft, denoising = rows(state, inputs, [3, 0, 2, 1], [3, 2, 3, 3])
    assert ids == [31, 32, 33, -4, -5, 26, 27, 28, 11, 12, 13]
    assert denoising == [1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1]
    assert soft[:, 0].tolist() == [31, 32, 33, 0, 0, 0, 0, 0, 11, 12, 13]


def test_a_short_canvas_reads_its_first_tokens(state, inputs):
    ids, _, denoising = rows(state, inputs, [1, 3], [2, 3])
    assert ids == [11, 12, 31, 32, 33] and denoising == [1] * 5


def test_a_request_without_rows(state, inputs):
    ids, _, _ = rows(state, inputs, [1, 2, 3], [3, 0, 3])
    assert ids == [11, 12, 13, 31, 32, 33]


def test_padding_rows_are_clean(state, inputs):
    """Rows between the batch and the graph's size denoise nothing."""
    _, soft, denoising = rows(state, inputs, [1], [3], padded=8)
    assert soft.shape == (8, 2) and denoising == [1, 1, 1, 0, 0, 0, 0, 0]


def test_rows_after_the_last_request_are_no_canvas(state, inputs):
    """A graph is run with more input ids than the requests own."""
    starts = torch.tensor([0, 3], dtype=torch.int32)
    ids = torch.full((6,), -1)
    _, denoising = inputs.set_rows(state, torch.tensor([1]), starts, ids, 6)
    assert ids.tolist() == [11, 12, 13, -1, -1, -1]
    assert denoising.int().tolist() == [1, 1, 1, 0, 0, 0]


def test_the_buffers_stay_where_they_are(state, inputs):
    """A CUDA graph replays their addresses."""
    before = [x.data_ptr() for x in (inputs.soft, inputs.denoising, *inputs.parts)]
    starts = torch.tensor([0, 3], dtype=torch.int32)
    slot = torch.tensor([1])
    soft, denoising = inputs.set_rows(state, slot, starts, torch.zeros(3).long(), 4)
    parts = inputs.set_parts(state, slot, starts, starts[1:], 2)
    assert [x.data_ptr() for x in (soft, denoising, *parts)] == before


class Case(NamedTuple):
    slots: list[int]
    rows: list[int]
    starts: list[int]  # of two parts for each request
    why: str


CASES = [
    Case([1], [3], [0, 0], "a canvas"),
    Case([0], [5], [0, 5], "a prompt"),
    Case([2], [3], [0, 3], "a commit"),
    Case([2], [6], [0, 3], "a commit and a canvas"),
    Case([2], [4], [0, 3], "a commit and a short canvas"),
    Case([3, 2, 1], [3, 6, 3], [0, 0, 3, 6, 9, 9], "fused beside canvases"),
    Case([2, 0, 1], [6, 2, 2], [0, 3, 6, 8, 8, 8], "every kind"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
@pytest.mark.parametrize("padding", [0, 2])
def test_parts(state, inputs, case, padding):
    """Every request is a run of causal rows, then a run that sees its whole canvas."""
    count, rows = len(case.slots), torch.tensor(case.rows)
    starts = torch.tensor([0, *case.rows]).cumsum(0).to(torch.int32)
    ends = (20 + rows).to(torch.int32)  # 20 tokens are in the cache
    parts = inputs.set_parts(state, torch.tensor(case.slots), starts, ends, count + padding)
    total = int(rows.sum())
    assert parts.starts.tolist() == case.starts + [total] * (2 * padding + 1)
    lengths = parts.starts.diff()[: 2 * count].view(count, 2)
    assert parts.ends[: 2 * count : 2].tolist() == (20 + lengths[:, 0]).tolist()
    assert parts.ends[1 : 2 * count : 2].tolist() == ends.tolist()
    assert parts.ends[2 * count :].tolist() == [0] * (2 * padding)
    assert parts.canvas.tolist() == [0, 1] * (count + padding)
    assert {x.dtype for x in parts} == {torch.int32}
