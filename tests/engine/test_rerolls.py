"""An answer that ends at once is drawn again, where the request asks for it."""

import pytest
from engine import Forwards, ask, serve, texts

pytestmark = pytest.mark.engine

END, SEED = 7, 3


@pytest.fixture
def first(llm, prompts):
    """What a request without an end says: its prompt and its text."""
    prompt = prompts(20)
    return prompt, texts(serve(llm, [ask(prompt, max_tokens=40, seed=SEED)]))[0]


def test_until_it_says_something(llm, first, prompts):
    """The same in a batch, and with noise of its own."""
    prompt, text = first
    options = dict(max_tokens=40, seed=SEED, stop_token_ids=[text[0]])
    asked = ask(prompt, extra_args={"diffusion_rerolls": 16}, **options)
    plain, alone = serve(llm, [ask(prompt, **options)]), serve(llm, [asked])
    assert texts(plain) == [text[:1]]
    assert plain[0].outputs[0].diffusion["canvases"] == [
        {"steps": 4, "tokens": 32, "stopped": "step_limit"}
    ]
    answer = texts(alone)[0]
    assert answer[0] != text[0] and answer != text
    canvas, *others = alone[0].outputs[0].diffusion["canvases"]
    assert 1 <= canvas["rerolls"] <= 16 and canvas["steps"] == 4
    assert all("rerolls" not in other for other in others)
    beside = serve(llm, [ask(prompts(50), max_tokens=20), asked, ask(prompt, **options)])
    assert texts(beside)[1:] == [answer, text[:1]]


def test_no_more_often_than_asked(llm, prompts, monkeypatch):
    """A prompt whose every answer ends at once: each canvas is settled in two steps."""
    forwards = Forwards(monkeypatch)
    options = dict(max_tokens=40, seed=SEED, stop_token_ids=[END], logit_bias={END: 100.0})
    out = serve(llm, [
        ask(prompts(20), extra_args={"diffusion_rerolls": most}, **options) for most in (0, 1, 3)
    ])
    assert texts(out) == [[END]] * 3
    told = [one.outputs[0].diffusion for one in out]
    assert [one["canvases"][0].get("rerolls") for one in told] == [None, 1, 3]
    assert [one["canvases"][0]["steps"] for one in told] == [2, 2, 2]
    kinds = [forwards.kinds(name).rstrip("C") for name in "012"]
    assert kinds == ["P" + "D" * steps for steps in (2, 4, 8)]
    assert [one["forwards"] for one in told] == [3, 5, 9]


def test_an_answer_that_says_something_is_left_alone(llm, first):
    prompt, text = first
    options = dict(max_tokens=40, seed=SEED, stop_token_ids=[text[5]])
    asked = ask(prompt, extra_args={"diffusion_rerolls": 3}, **options)
    assert texts(serve(llm, [asked])) == texts(serve(llm, [ask(prompt, **options)]))


def test_min_tokens_bars_an_empty_answer(llm, prompts):
    options = dict(seed=SEED, stop_token_ids=[END], logit_bias={END: 100.0})
    out = serve(llm, [ask(prompts(20), max_tokens=40, min_tokens=3, **options)])
    assert END not in texts(out)[0][:3] and texts(out)[0][3] == END
    assert out[0].outputs[0].diffusion["forwards"] == 5
