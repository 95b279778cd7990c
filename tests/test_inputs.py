"""Which rows of a step read a canvas: 4 slots, canvases of 3 tokens."""

import pytest
import torch

from diffusiongemma_vllm.config import DenoiseConfig
from diffusiongemma_vllm.inputs import StepInputs
from diffusiongemma_vllm.state import COMMIT, DENOISE, PREFILL, SlotState

CONFIG = DenoiseConfig(
    canvas_length=3, vocab_size=100, max_steps=8, t_min=0.4, t_max=0.8, entropy_bound=0.1,
    stability_steps=1, confidence=0.005,
)
CPU = dict(dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture
def state():
    """Slot s holds the tokens 10 s + 1, 10 s + 2, 10 s + 3 and soft rows of the same numbers."""
    state = SlotState(CONFIG, slots=4, hidden=2, limit=50, **CPU)
    state.phase[:] = torch.tensor([PREFILL, DENOISE, COMMIT, DENOISE])
    state.tokens[:] = 10 * torch.arange(4)[:, None] + torch.arange(1, 4)
    state.soft[:] = state.tokens[:, :, None].float()
    state.step[:] = 1
    return state


@pytest.fixture
def inputs():
    """With the rests of an earlier step in its buffers."""
    inputs = StepInputs(tokens=16, requests=6, hidden=2, **CPU)
    inputs.soft[:], inputs.denoising[:], inputs.canvas[:] = 99.0, True, 9
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


def test_a_commit_reads_its_slot_without_conditioning(state, inputs):
    ids, soft, denoising = rows(state, inputs, [2], [3])
    assert ids == [21, 22, 23] and denoising == [0, 0, 0]
    assert soft.abs().sum() == 0


def test_a_mixed_batch(state, inputs):
    ids, soft, denoising = rows(state, inputs, [3, 0, 2, 1], [3, 2, 3, 3])
    assert ids == [31, 32, 33, -4, -5, 21, 22, 23, 11, 12, 13]
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
    before = [x.data_ptr() for x in (inputs.soft, inputs.denoising, inputs.canvas)]
    soft, denoising = inputs.set_rows(
        state, torch.tensor([1]), torch.tensor([0, 3], dtype=torch.int32), torch.zeros(3).long(), 4
    )
    canvas = inputs.set_modes(state, torch.tensor([1]), 2)
    assert [x.data_ptr() for x in (soft, denoising, canvas)] == before


def test_modes(state, inputs):
    """Only a request that denoises sees its whole canvas; padding requests are causal."""
    modes = inputs.set_modes(state, torch.tensor([3, 0, 2, 1]), 6)
    assert modes.tolist() == [1, 0, 0, 1, 0, 0] and modes.dtype == torch.int32
