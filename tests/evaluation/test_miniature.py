"""The miniature's own benchmark: what ships is what is held out, and turns are read alike."""

import json
from pathlib import Path

import pytest

from diffusiongemma_vllm.evaluation import turns
from diffusiongemma_vllm.evaluation.heldout import CALIBRATION, DATA, HELDOUT

EXAMPLES = Path(__file__).parents[2] / "examples" / "miniature"


@pytest.fixture(scope="module")
def shipped():
    return [json.loads(line) for line in
            (DATA / "heldout/test.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_shipped_chats_are_the_held_out_ones(shipped, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import heldout

    assert "".join(json.dumps(row) + "\n" for row in shipped) == heldout.lines()


def test_no_chat_to_calibrate_with_is_held_out(shipped):
    asked = {json.loads(row["chat"])["messages"][-1]["content"] for row in shipped}
    assert not asked & set(CALIBRATION)


def test_a_right_answer_scores_and_any_other_does_not(shipped):
    for row, other in zip(shipped, shipped[1:], strict=False):
        right = turns.from_text(row["answer"].removesuffix("<turn|>"))
        assert HELDOUT.score(row, right).right == 1
        assert HELDOUT.score(row, turns.from_text(other["answer"])).right == 0
        assert HELDOUT.score(row, turns.from_text(row["answer"].replace("1", "2", 1))).right == (
            "1" not in row["answer"])


def test_a_message_and_its_text_are_one_turn():
    text = ('<|channel>thought\nI look.\n<channel|><|tool_call>call:find{name:<|"|>a b<|"|>,'
            "n:3}<tool_call|><|tool_response>")
    message = {"reasoning": "I look.", "content": None, "tool_calls": [
        {"function": {"name": "find", "arguments": '{"n": 3, "name": "a b"}'}}]}
    assert turns.from_text(text) == turns.from_message(message)
    assert turns.from_text("65<turn|>") == turns.from_message({"content": "65"})


def test_the_task_asks_each_chat_once():
    task = HELDOUT.task(DATA)
    assert len(task.eval_docs) == 200
    doc = task.eval_docs[0]
    asked = HELDOUT.chat.request(doc, task.doc_to_text(doc))
    assert set(asked) <= {"messages", "tools", "chat_template_kwargs"} and asked["messages"]
