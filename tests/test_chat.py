"""The terminal's view of an answer."""

from types import SimpleNamespace

import pytest

pytest.importorskip("openai")

from rich.console import Console

from diffusiongemma_vllm.cli.chat import TINTS, Answer, tint


def chunk(content=None, *, extra=None, calls=None, reasoning=None, usage=None):
    delta = SimpleNamespace(content=content, tool_calls=calls, reasoning=reasoning)
    return SimpleNamespace(
        choices=[SimpleNamespace(delta=delta, model_extra=extra)],
        usage=usage and SimpleNamespace(completion_tokens=usage),
    )


def shown(answer):
    console = Console(width=80, record=True, file=open("/dev/null", "w"), color_system="truecolor",
                      force_terminal=True)
    console.print(answer.under_way(), *answer.words(), sep="\n")
    return console.export_text(styles=True)


def draft(**changes):
    return {
        "canvas": 1, "step": 2, "done": False, "length": 3,
        "settled": [True, False, True, True, True],
        "tokens": ["a", "x", "c", "<turn|>", "<pad>"], "guess": ["a", "b", "c", "<turn|>", "<pad>"],
        "entropy": [0.0, 3.0, 0.1, 0.0, 0.0],
    } | changes


def test_surer_tokens_are_greener():
    assert [tint(e) for e in (5.0, 1.0, 0.5, 0.2, 0.05)] == list(TINTS)


def test_a_canvas_under_way():
    answer = Answer()
    answer.take(chunk("one ", extra={}))
    answer.take(chunk("", extra={"diffusion_draft": draft()}))
    said = shown(answer)
    assert "canvas 2 · step 2 · 4 of 5 settled" in said
    assert "one" in said and "<turn|>" in said and "<pad>" not in said
    assert "x" not in said.split("settled")[1]  # the guess, not the noise
    answer.take(chunk("two", extra={"diffusion_draft": draft(done=True)}))
    assert answer.text == "one two" and "settled" not in shown(answer)


def test_a_whole_answer():
    answer = Answer()
    answer.take(chunk(reasoning="7+8=15", extra=None))
    part = SimpleNamespace(index=0, function=SimpleNamespace(name="add", arguments='{"a": 1'))
    answer.take(chunk(calls=[part]))
    part = SimpleNamespace(index=0, function=SimpleNamespace(name=None, arguments="}"))
    report = {"forwards": 4, "canvases": [{}]}
    answer.take(chunk(calls=[part], extra={"diffusion": report}, usage=10))
    said = shown(answer)
    assert "(thought) 7+8=15" in said and 'add({"a": 1})' in said
    assert "10 tokens, 1 canvas(es), 4 forwards, 2.5 tokens a forward" in said


def test_a_long_answer_leaves_room_for_the_canvas():
    answer = Answer(text="0123456789" * 100)
    console = Console(width=80, record=True, file=open("/dev/null", "w"))
    console.print(answer.under_way())
    assert console.export_text().startswith("…0123456789") and len(console.export_text()) < 500
