"""Answers survive what ends a run."""

import pytest

from diffusiongemma_vllm.evaluation.answers import Answer, Answers, key


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path):
    path = tmp_path / "answers.jsonl"
    first = Answers(path)
    first.put("a", Answer("ja – ど\n", "stop", 3))
    first.put("b", Answer("", "length", 9))
    first.close()
    path.write_bytes(path.read_bytes()[:-5])
    second = Answers(path)
    assert second.get("a") == Answer("ja – ど\n", "stop", 3) and second.get("b") is None
    second.put("c", Answer("c", "stop", 1))
    second.close()
    third = Answers(path)
    assert third.get("a") and third.get("c") and third.get("b") is None
    third.close()


@pytest.mark.parametrize("line", [
    b"{", b"[]", b"{}", b"\xff", b'{"key": "a", "text": null, "finish": "stop", "tokens": 1}', b"",
])
def test_a_broken_line_is_named(line, tmp_path):
    path = tmp_path / "gsm8k.answers.jsonl"
    path.write_bytes(b'{"key": "a", "text": "t", "finish": "stop", "tokens": 1}\n' + line + b"\n")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"gsm8k.answers.jsonl, line 2, .*delete that line"):
        Answers(path)
    assert path.read_bytes() == before


def test_a_key_is_all_that_decides_an_answer():
    asked = {"messages": [{"role": "user", "content": "q"}], "seed": 1}
    assert key(asked) == key(dict(reversed(asked.items())))
    assert key(asked) != key(asked | {"seed": 2})
    assert key(asked) != key(asked | {"checkpoint": "other"})
