"""What a request does to its own logits.  Canvases of 4 tokens, a vocabulary of 5."""

import pytest
import torch

from diffusiongemma_vllm.denoise.edits import (
    BadWords,
    Bias,
    NotBefore,
    Only,
    Penalties,
    Pin,
    Scene,
    ThoughtEnds,
    run,
)

NEVER = float("-inf")
ZERO = torch.zeros(4, 5)


def ids(*tokens):
    return torch.tensor(tokens, dtype=torch.int64)


def scene(guess=(-1, -1, -1, -1), text=(), prompt=0, width=4):
    """Text that is committed, then what an earlier user of the slot left behind."""
    tail = [0, 1, 2, 3]
    return Scene(
        text=torch.tensor([*text, *tail], dtype=torch.int32), base=torch.tensor(len(text)),
        prompt=prompt, guess=torch.tensor(guess), width=torch.tensor(width),
    )


def forbidden(logits):
    """Which tokens are forbidden at each position."""
    return [row.nonzero().flatten().tolist() for row in (logits == NEVER)]


def test_bias():
    got = Bias(ids(1, 3), torch.tensor([2.0, -1.0]))(ZERO + 1, scene())
    assert got.tolist() == [[1, 3, 1, 0, 1]] * 4


def test_only():
    assert forbidden(Only(ids(1, 3))(ZERO, scene())) == [[0, 2, 4]] * 4


def test_the_end_does_not_come_before_its_time():
    """One token of the prompt, two of output: the canvas holds output tokens 2, 3, 4 and 5."""
    got = NotBefore(ids(0, 4), 4)(ZERO, scene(text=(1, 1, 1), prompt=1))
    assert forbidden(got) == [[0, 4], [0, 4], [], []]


def test_penalties_count_the_output_and_the_positions_before():
    """Output 1 1 2 after a prompt 3; the canvas guesses 2 4 2 0, and 0 ends the text."""
    here = scene(guess=(2, 4, 2, 0), text=(3, 1, 1, 2), prompt=1)
    got = Penalties(1.0, frequency=1.0, presence=0.0, ends=ids(0))(ZERO, here)
    others = [[0, 2, 1, 0, 0], [0, 2, 2, 0, 0], [0, 2, 2, 0, 1], [0, 2, 3, 0, 1]]
    assert (-got).tolist() == others
    got = Penalties(1.0, frequency=0.0, presence=0.5, ends=ids(0))(ZERO, here)
    assert (-got).tolist() == [[0.5 * (n > 0) for n in row] for row in others]


def test_guesses_behind_the_end_or_outside_the_canvas_are_not_text():
    penalties = Penalties(1.0, frequency=1.0, presence=0.0, ends=ids(0))
    assert penalties.guessed(scene(guess=(1, 0, 1, 1))).tolist() == [True, False, False, False]
    assert penalties.guessed(scene(guess=(1, 1, 1, 1), width=2)).sum() == 2
    assert not penalties.guessed(scene()).any(), "there is no guess before the first step"


def test_repetition_looks_at_the_prompt_too():
    """Prompt 3, output 1: divided where positive, multiplied where not."""
    logits = torch.tensor([[4.0, 4.0, 4.0, 4.0, 4.0], [-4.0, -4.0, -4.0, -4.0, -4.0]] * 2)
    got = Penalties(2.0, 0.0, 0.0, ids(0))(logits, scene(text=(3, 1), prompt=1))
    assert got[:2].tolist() == [[4, 2, 4, 2, 4], [-4, -8, -4, -8, -4]]


def test_bad_words():
    """[3] nowhere; [1, 2] no 2 behind a 1, in the text or in the guess; [4, 1, 2] is longer."""
    words = BadWords((ids(3), ids(1, 2), ids(4, 1, 0)))
    got = words(ZERO, scene(guess=(1, 2, 4, 1), text=(0, 4), prompt=2))
    assert forbidden(got) == [[3], [0, 2, 3], [3], [3]]
    got = words(ZERO, scene(guess=(0, 0, 0, 0), text=(4, 1), prompt=2))
    assert forbidden(got)[0] == [0, 2, 3]
    got = words(ZERO, scene(guess=(0, 0, 0, 0)))
    assert forbidden(got) == [[3]] * 4, "nothing stands before the text"


def test_pin():
    """Output 1 on: held to 4 and 2, free between; the template says nothing of what follows it."""
    pin = Pin(ids(0, 4, -1, 2))
    here = scene(text=(1, 1), prompt=1)
    assert pin.at(here).tolist() == [4, -1, 2, -1]
    assert forbidden(pin(ZERO, here)) == [[0, 1, 2, 3], [], [0, 1, 3, 4], []]


def test_a_held_token_is_possible_whatever_forbade_it():
    got = run([Only(ids(1)), Pin(ids(2))], ZERO, scene())
    assert got[0].argmax() == 2 and torch.isfinite(got[0, 2])


OPEN, CLOSE, END = 1, 2, 3


@pytest.mark.parametrize(
    ("budget", "text", "guess", "held"),
    [
        (0, (OPEN,), (-1, -1, -1, -1), {0: END, 1: CLOSE}),
        (2, (OPEN, 0), (-1, -1, -1, -1), {1: END, 2: CLOSE}),
        (1, (OPEN, 0, END), (0, 0, 0, 0), {0: CLOSE}),  # half closed in the canvas before
        (1, (OPEN, 0, 0, 0), (0, 0, 0, 0), {0: END, 1: CLOSE}),  # used up by the prompt
        (2, (OPEN, 0), (CLOSE, 0, 0, 0), {}),  # closes in time
        (2, (OPEN, 0), (0, 0, CLOSE, 0), {1: END, 2: CLOSE}),  # too late
        (2, (OPEN, 0, CLOSE), (0, 0, 0, 0), {}),
        (1, (), (OPEN, 0, 0, 0), {2: END, 3: CLOSE}),  # opens in the canvas
        (1, (), (0, OPEN, CLOSE, 0), {}),
        (1, (), (0, 0, 0, 0), {}),
        (9, (OPEN,), (0, 0, 0, 0), {}),
        (1, (OPEN, 0, CLOSE), (OPEN, 0, 0, 0), {2: END, 3: CLOSE}),  # a second thought
    ],
)
def test_a_thought_ends_when_its_budget_does(budget, text, guess, held):
    got = ThoughtEnds(budget, OPEN, CLOSE, ids(END, CLOSE))(ZERO, scene(guess=guess, text=text))
    left = {i: row.argmax().item() for i, row in enumerate(got) if (row == NEVER).any()}
    assert left == held
