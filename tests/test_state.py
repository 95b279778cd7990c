"""The slots of requests: a canvas of 4 tokens, 3 slots, a context of 10 tokens."""

import pytest
import torch

from diffusiongemma_vllm.config import DenoiseConfig
from diffusiongemma_vllm.request import RequestOptions
from diffusiongemma_vllm.state import DENOISE, PREFILL, SlotState, StepResult

CONFIG = DenoiseConfig(
    canvas_length=4, vocab_size=100, max_steps=8, t_min=0.4, t_max=0.8, entropy_bound=0.1,
    stability_steps=1, confidence=0.005,
)
YES = torch.tensor([True])


@pytest.fixture
def state():
    return SlotState(
        CONFIG, slots=3, hidden=2, limit=10, dtype=torch.float32, device=torch.device("cpu")
    )


def options(**changes):
    return RequestOptions(**dict(temperature=1.0, top_k=0, top_p=1.0, seed=5) | changes)


def begin(state, slot, base, where=YES, noise=(9, 8, 7, 6)):
    state.begin(torch.tensor([slot]), torch.tensor([base]), torch.tensor([noise]), where)


def result(tokens, best, *, held=0, done=False):
    return StepResult(
        tokens=torch.tensor([tokens]), best=torch.tensor([best]), held=torch.tensor([held]),
        done=torch.tensor([done]),
    )


def test_a_new_request_starts_with_its_prompt(state):
    state.phase[1], state.pending[1] = DENOISE, 3
    state.add(1, options(seed=11, temperature=0.5))
    assert state.pending[1] == 0
    assert state.phase.tolist() == [PREFILL, PREFILL, PREFILL]
    assert state.seed[1] == 11 and state.temperature[1] == 0.5 and not state.greedy[1]


def test_a_greedy_request_keeps_the_schedule(state):
    """Entropies are those of the checkpoint's temperatures, the tokens are the most likely."""
    state.add(0, options(temperature=0.0))
    assert state.greedy[0] and state.temperature[0] == 1.0


def test_a_limit_of_steps_is_one_requests_and_ends_with_it(state):
    state.limit_steps(1, 2)
    assert state.knobs.last_step.tolist() == [CONFIG.last_step, 2, CONFIG.last_step]
    state.add(1, options())
    assert state.knobs.last_step[1] == CONFIG.last_step


def test_begin_resets_a_slot(state):
    state.step[2], state.held[2] = 5, 3
    begin(state, 2, base=3)
    assert state.phase.tolist() == [PREFILL, PREFILL, DENOISE]
    canvas = state.gather(torch.tensor([2]))
    assert canvas.tokens.tolist() == [[9, 8, 7, 6]]
    assert canvas.best.tolist() == [[-1, -1, -1, -1]]
    assert (canvas.base, canvas.width, canvas.step, canvas.held) == (3, 4, 0, 0)


@pytest.mark.parametrize(("base", "width"), [(0, 4), (6, 4), (7, 3), (9, 1), (10, 0), (12, 0)])
def test_a_canvas_ends_where_the_context_does(state, base, width):
    begin(state, 0, base)
    assert state.width[0] == width


def test_begin_leaves_the_others_alone(state):
    begin(state, 1, base=2)
    before = {name: x.clone() for name, x in vars(state).items() if isinstance(x, torch.Tensor)}
    begin(state, 1, base=5, where=torch.tensor([False]), noise=(0, 0, 0, 0))
    for name, x in before.items():
        assert torch.equal(getattr(state, name), x), name


def test_a_step_that_goes_on(state):
    begin(state, 1, base=2)
    soft = torch.arange(8.0).view(1, 4, 2)
    state.believe(torch.tensor([1]), soft)
    state.apply(torch.tensor([1]), result([1, 2, 3, 4], [5, 6, 7, 8], held=2), YES)
    canvas = state.gather(torch.tensor([1]))
    assert canvas.tokens.tolist() == [[1, 2, 3, 4]] and canvas.best.tolist() == [[5, 6, 7, 8]]
    assert (canvas.step, canvas.held, state.phase[1]) == (1, 2, DENOISE)
    assert torch.equal(state.soft[1], soft[0])


def settle(state, slot, text, length):
    state.settle(torch.tensor([slot]), torch.tensor([text]), torch.tensor([length]))


def test_a_settled_canvas_is_text_to_commit(state):
    """All of it, or as much as goes out; the next canvas begins beside it."""
    begin(state, 1, base=2)
    settle(state, 1, [5, 6, 7, 8], 3)
    begin(state, 1, base=5, noise=(1, 2, 3, 4))
    assert state.text[1].tolist() == [5, 6, 7, 8] and state.pending[1] == 3
    assert state.tokens[1].tolist() == [1, 2, 3, 4] and state.base[1] == 5
    settle(state, 1, [0, 0, 0, 0], 0)
    assert state.text[1].tolist() == [5, 6, 7, 8] and state.pending[1] == 3


@pytest.mark.parametrize(("rows", "committed"), [(0, 0), (2, 2), (4, 4), (8, 4)])
def test_a_forward_commits_text_before_anything_else(state, rows, committed):
    settle(state, 1, [5, 6, 7, 8], 4)
    slots, rows = torch.tensor([0, 1]), torch.tensor([rows, rows])
    assert state.committed(slots, rows).tolist() == [0, committed]
    state.commit(slots, rows)
    assert state.pending.tolist() == [0, 4 - committed, 0]


def test_a_canvas_is_drawn_again(state):
    begin(state, 1, base=2)
    slot = torch.tensor([1])
    state.apply(slot, result([1, 2, 3, 4], [5, 6, 7, 8], done=True), YES)
    state.again(slot, torch.tensor([[4, 4, 4, 4]]), torch.tensor([False]))
    assert state.step[1] == 1 and state.roll[1] == 0
    state.again(slot, torch.tensor([[4, 4, 4, 4]]), YES)
    canvas = state.gather(slot)
    assert state.phase[1] == DENOISE and canvas.tokens.tolist() == [[4, 4, 4, 4]]
    assert (canvas.base, canvas.step, canvas.held, canvas.roll) == (2, 0, 0, 1)
    assert canvas.best.tolist() == [[-1] * 4]
    begin(state, 1, base=6)
    assert state.roll[1] == 0, "counted for each canvas"


def test_a_step_of_a_request_that_does_not_denoise_changes_nothing(state):
    begin(state, 0, base=2)
    state.apply(
        torch.tensor([0]), result([1, 2, 3, 4], [5, 6, 7, 8], done=True), torch.tensor([False])
    )
    assert state.tokens[0].tolist() == [9, 8, 7, 6] and state.step[0] == 0


def test_slots_in_any_order(state):
    slots = torch.tensor([2, 0])
    noise = torch.tensor([[1] * 4, [2] * 4])
    state.begin(slots, torch.tensor([3, 8]), noise, torch.tensor([True, True]))
    assert state.tokens[:, 0].tolist() == [2, 0, 1]
    assert state.width.tolist() == [2, 0, 4]
    assert state.gather(torch.tensor([0, 2])).base.tolist() == [8, 3]
