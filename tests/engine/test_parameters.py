"""What a request asks of its tokens, seen in the tokens.  A random checkpoint, canvases of 32."""

import math

import pytest
import torch
from engine import Forwards, ask, draw_prompts, serve, texts
from teacher import Teacher

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def prompt():
    return draw_prompts()(30)


@pytest.fixture(scope="module")
def say(main, prompt):
    """Tokens of one answer to the prompt, three canvases unless told."""
    llm = main(async_scheduling=False)

    def call(start=prompt, **options):
        return texts(serve(llm, [ask(start, **{"max_tokens": 70, "seed": 3} | options)]))[0]

    return call


@pytest.fixture(scope="module")
def plain(say):
    return say()


def test_allowed_tokens(say):
    """A penalty has all of them used."""
    text = say(allowed_token_ids=[5, 9, 400], frequency_penalty=2.0)
    assert sorted(set(text)) == [5, 9, 400] and min(map(text.count, (5, 9, 400))) > 10
    assert say(allowed_token_ids=[400]) == [400] * 70


def test_bias(say, plain):
    assert 77 not in plain
    assert set(say(logit_bias={77: 100.0})) == {77}
    assert say(logit_bias={plain[0]: -100.0}).count(plain[0]) == 0


def test_min_tokens_and_stops(say):
    """Every token is an end but two: 40 come before the first of them."""
    ends = list(range(2, 512))
    assert len(say(stop_token_ids=ends)) == 1
    text = say(stop_token_ids=ends, min_tokens=40)
    assert len(text) == 41 and set(text[:40]) <= {0, 1} and text[40] >= 2


def test_min_tokens_hold_back_the_end_of_text(say):
    """EOS is 1 and 2; a bias makes them all there is."""
    pull = {1: 100.0, 2: 50.0}
    assert len(say(logit_bias=pull, ignore_eos=False)) == 1
    text = say(logit_bias=pull, ignore_eos=False, min_tokens=40)
    assert len(text) == 41 and not {1, 2} & set(text[:40])
    assert say(logit_bias=pull, ignore_eos=True) == [1] * 70


def test_frequency_penalty_spreads_the_tokens(say):
    """What the first canvas wrote often, the second leaves alone."""
    bias = {token: 8.0 for token in range(10, 50)}

    def again(text):
        often = {token for token in text[:32] if text[:32].count(token) > 2}
        return sum(token in often for token in text[32:64])

    assert again(say(logit_bias=bias)) > 5
    assert again(say(logit_bias=bias, frequency_penalty=2.0)) == 0


def test_presence_and_repetition_penalties(say, plain, prompt):
    assert len(set(say(presence_penalty=2.0))) > len(set(plain))
    shy = say(repetition_penalty=10.0)
    assert len(set(shy) & set(prompt)) <= len(set(plain) & set(prompt))
    assert len(set(shy)) > len(set(plain))


def test_min_p(say):
    """Nothing is half as likely as the likeliest in most places: nearly greedy."""
    assert say(min_p=1.0, temperature=2.0) != say(temperature=2.0)


def test_mixed_rows_pay_alone(main, prompt, plain):
    llm = main(async_scheduling=False)
    out = serve(llm, [
        ask(prompt, max_tokens=70, seed=3), ask(prompt, max_tokens=40, logit_bias={7: 100.0}),
        ask(prompt, max_tokens=40, frequency_penalty=1.0, logprobs=3),
    ])
    assert texts(out)[0] == plain and texts(out)[1] == [7] * 40
    assert out[0].outputs[0].logprobs is None and len(out[2].outputs[0].logprobs) == 40


# The canvas's own settings.


def test_steps(llm, monkeypatch, prompt):
    forwards = Forwards(monkeypatch)
    serve(llm, [
        ask(prompt, max_tokens=64, extra_args={"diffusion_max_denoising_steps": 7}),
        ask(prompt, max_tokens=64, extra_args={"diffusion_max_steps": 2}),
        ask(prompt, max_tokens=64),
    ])
    assert [forwards.kinds(name) for name in "012"] == [
        "P" + "D" * 7 + "F" + "D" * 6, "PDDFD", "PDDDDFDDD"
    ]


def test_steps_rescale_the_temperatures_or_not(say):
    same = say(extra_args={"diffusion_max_denoising_steps": 4})
    assert same == say(), "what the server has"
    hot = {"diffusion_t_max": 50.0}
    cut, short = (
        say(extra_args={key: 3} | hot)
        for key in ("diffusion_max_steps", "diffusion_max_denoising_steps")
    )
    assert cut != short


def test_stopping_rules(llm, mode, monkeypatch, prompt):
    """Any certainty and no stability will do: one step a canvas."""
    forwards = Forwards(monkeypatch)
    loose = {"diffusion_stability_threshold": 0, "diffusion_confidence_threshold": 100.0}
    serve(llm, [ask(prompt, max_tokens=64, extra_args=loose)])
    assert forwards.kinds("0").rstrip("C") == ("PDF" if mode == "sync" else "PDCD")


def test_temperatures_and_bound(say):
    cold = {"diffusion_t_min": 0.01, "diffusion_t_max": 0.01}
    assert say(extra_args=cold) != say()
    assert say(extra_args={"diffusion_entropy_bound": 100.0}) != say()
    assert say(extra_args={"diffusion_entropy_bound": 0.1}) == say(), "what the server has"


def test_canvas_length(llm, monkeypatch, prompt):
    """Beside whole canvases."""
    forwards = Forwards(monkeypatch)
    out = serve(llm, [
        ask(prompt, max_tokens=50, extra_args={"diffusion_canvas_length": 20}),
        ask(prompt, max_tokens=50),
    ])
    assert [len(text) for text in texts(out)] == [50, 50]
    assert {(f.kind, f.rows) for f in forwards.of("0")[1:]} == {("D", 20), ("F", 40)}
    assert forwards.kinds("0") == "PDDDDFDDDFDDD"
    assert {(f.kind, f.rows) for f in forwards.of("1")[1:]} == {("D", 32), ("F", 64)}


def test_seed_canvas_and_pins(say):
    seed = list(range(100, 132))
    text = say(max_tokens=64, extra_args={
        "diffusion_seed_canvas": seed, "diffusion_pinned": [0, 5, 31]})
    assert [text[i] for i in (0, 5, 31)] == [100, 105, 131]
    free = say(max_tokens=64, extra_args={"diffusion_seed_canvas": seed})
    assert free != text and free != say(max_tokens=64)


def test_a_template_longer_than_a_canvas(say):
    template = [-1 if i % 3 == 0 else 200 + i for i in range(50)]
    text = say(max_tokens=60, extra_args={"diffusion_template": template})
    assert all(a == b for a, b in zip(text, template, strict=False) if b >= 0)
    assert len(text) == 60


def test_a_read(llm, prompt):
    """vLLM's decisions: one canvas, chosen from the tokens whose probability is told."""
    out = serve(llm, [ask(prompt, ignore_eos=False, max_tokens=None, logprob_token_ids=[5, 9, 11],
                          extra_args={"diffusion_read_only": True, "diffusion_constrained": 1,
                                      "diffusion_max_steps": 1})])[0].outputs[0]
    assert len(out.token_ids) == 32 and set(out.token_ids) <= {5, 9, 11}
    assert set(out.logprobs[0]) == {5, 9, 11}


# Log-probabilities.


def test_logprobs_are_the_references(llm, monkeypatch, lessons):
    """Of every position of the canvas's last step, with the reference's own canvases."""
    teacher = Teacher(monkeypatch, lessons)
    out = serve(llm, [
        ask(one.prompt, max_tokens=96, seed=seed, logprobs=3, temperature=0.5)
        for seed, one in teacher.lessons.items()
    ])
    for one, lesson in zip(out, lessons.values(), strict=True):
        told = one.outputs[0].logprobs
        for k, text in enumerate(lesson.text):
            expected = lesson.logits[k][-1].log_softmax(-1)
            for i, token in enumerate(text.tolist()):
                here = told[32 * k + i]
                assert here[token].rank == int((expected[i] >= expected[i][token]).sum())
                assert set(expected[i].topk(3).indices.tolist()) | {token} == set(here)
                assert max(abs(v.logprob - expected[i][t].item()) for t, v in here.items()) < 1e-4


def test_logprobs_of_different_widths(llm, prompt):
    """Beside each other, of the tokens asked for, and all of them."""
    out = serve(llm, [
        ask(prompt, max_tokens=40, logprobs=0), ask(prompt, max_tokens=5, logprobs=5),
        ask(prompt, max_tokens=40, logprob_token_ids=[3, 4]), ask(prompt, max_tokens=40),
    ])
    told = [one.outputs[0].logprobs for one in out]
    assert [len(x) for x in told[:3]] == [40, 5, 40] and told[3] is None
    for one, token in zip(told[2], out[2].outputs[0].token_ids, strict=True):
        assert set(one) == {3, 4, token}
    assert {len(x) for x in told[0]} == {1} and {len(x) for x in told[1]} <= {5, 6}
    assert all(math.isfinite(v.logprob) for one in told[:3] for x in one for v in x.values())


def test_bad_words_of_several_tokens(llm, prompt):
    """Tokens 5 and 6 alone are wanted; no 6 behind a 5, across canvases too."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=70, seed=1, ignore_eos=True, detokenize=False,
                            allowed_token_ids=[5, 6, 7])
    params._bad_words_token_ids = [[5, 6], [7]]
    llm.llm_engine.add_request("0", {"prompt_token_ids": prompt}, params)
    text = None
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            text = torch.tensor(output.outputs[0].token_ids)
    assert set(text.tolist()) <= {5, 6} and not ((text[:-1] == 5) & (text[1:] == 6)).any()
