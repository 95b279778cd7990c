"""The driver finds what is wrong with a stream of drafts."""

import re
import sys
from copy import deepcopy
from pathlib import Path

import pytest

from diffusiongemma_vllm.evaluation import turns

HERE = str(Path(__file__).parent)


@pytest.fixture(scope="module")
def fault():
    before = dict(sys.modules)
    sys.path.insert(0, HERE)
    import told

    yield told.fault
    sys.path.remove(HERE)
    for name in set(sys.modules) - set(before):
        if str(getattr(sys.modules[name], "__file__", "")).startswith(HERE):
            del sys.modules[name]


def draft(canvas, step, guess, done=False):
    """Of four positions; those that ``guess`` fills are settled where it is done."""
    settled = [done and place < len(guess) for place in range(4)]
    cells = [*guess, *["<turn|>"] * (4 - len(guess))]
    return {"delta": {"content": ""}, "finish_reason": None, "diffusion_draft": {
        "canvas": canvas, "step": step, "rerolls": 0, "done": done, "text": guess,
        "length": len(guess), "tokens": cells if done else ["x"] * 4, "guess": cells,
        "settled": settled, "entropy": [0.5] * 4,
    }}


def text(words):
    return {"delta": {"content": words}, "finish_reason": None}


@pytest.fixture
def good():
    """Two canvases of three steps and of one, drafts of every second step."""
    report = {"canvases": [{"steps": 3}, {"steps": 1}]}
    return [
        draft(0, 2, "6"), draft(0, 3, "65 a", done=True), text("65 a"),
        draft(1, 1, "b", done=True), text("b"),
        {"delta": {"content": ""}, "finish_reason": "stop", "diffusion": report},
    ]


TURN = turns.from_text("65 ab")


def test_a_good_stream(good, fault):
    assert fault(good, 2, TURN) is None


def test_a_canvas_that_begins_again(good, fault):
    again = [good[0], *good]
    assert fault(again, 2, TURN) is None
    again[0] = draft(0, 2, "7")
    assert "told again" in fault(again, 2, TURN)


def change(place, **fields):
    return lambda choices: choices[place]["diffusion_draft"].update(fields)


WRONG = {
    "another text": (change(1, tokens=["6", "6", " ", "a"]), "settled canvases hold '66 ab'"),
    "a canvas is missing": (lambda choices: choices.pop(3), "settled at"),
    "a step is missing": (lambda choices: choices.pop(0), r"steps \[3\]"),
    "a step too many": (change(0, step=1), "a draft of step 1"),
    "never done": (change(3, done=False, step=2), "does not settle once"),
    "done twice": (change(0, done=True), "does not settle once"),
    "not the first canvas": (lambda choices: choices.__delitem__(slice(0, 2)), "comes after 0"),
    "lengths differ": (change(0, entropy=[0.5]), "equally many"),
    "text is not the guess": (change(0, length=2), "spell"),
    "a field too many": (change(0, more=1), "fields"),
    "no bool": (change(0, settled=[0, 0, 0, 0]), "not bool"),
    "text beside a draft": (lambda choices: choices[0]["delta"].update(content="a"), "has text"),
    "another report": (
        lambda choices: choices[-1]["diffusion"].update(canvases=[{"steps": 3}]), "the report has"
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong(good, fault, name):
    spoil, said = WRONG[name]
    choices = deepcopy(good)
    spoil(choices)
    found = fault(choices, 2, TURN)
    assert found is not None and re.search(said, found), found
