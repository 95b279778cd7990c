"""Where canvases end: the context, the token budget, the KV cache and what a request asks for."""

import pytest
from engine import Forwards, ask, at_rest, chunked, engine, serve, squeezed, texts

pytestmark = pytest.mark.engine

CANVAS, LIMIT = 32, 200  # 200 is no multiple of a canvas


def start(engines, mode):
    """A context and a token budget that are no multiples of a canvas; no prefix cache."""
    return engines(
        async_scheduling=mode == "async", max_model_len=LIMIT, max_num_batched_tokens=135,
        max_num_seqs=4, block_size=32, enable_prefix_caching=False,
        override_generation_config={"max_denoising_steps": 4},
    )


@pytest.fixture
def tight(engines, mode):
    llm = start(engines, mode)
    at_rest(llm)
    return llm


@pytest.fixture(scope="module")
def alone(engines):
    """What a request says when it is served alone, sync."""
    known = {}

    def say(one):
        key = repr(one)
        if key not in known:
            known[key] = texts(serve(start(engines, "sync"), [one]))[0]
        return known[key]

    return say


@pytest.fixture
def forwards(monkeypatch):
    return Forwards(monkeypatch)


@pytest.fixture
def sure(monkeypatch):
    """A model that is sure at once: its canvases settle at the second step.  -> set its token"""
    from diffusiongemma_vllm.model.vocabulary import Vocabulary

    tokens = [5]

    def project(self, hidden):
        logits = hidden.new_zeros(hidden.shape[0], self.org_vocab_size)
        logits[:, tokens[0]] = 100
        return logits

    monkeypatch.setattr(Vocabulary, "project", project)

    def says(token):
        tokens[0] = token

    return says


def whole(forwards, limit=LIMIT):
    """Every canvas was denoised and committed at its full width."""
    for step in forwards.log:
        for name, forward in step.items():
            if forward.kind != "P":
                canvases = 2 if forward.kind == "F" else 1
                most = limit - forward.start
                assert forward.rows == min(canvases * CANVAS, most), (name, forward)
                assert canvases == 1 or forward.rows > CANVAS, (name, forward)


@pytest.mark.parametrize("prompt", [105, 136, 137, 168, 198])
def test_the_context_ends_in_mid_canvas(tight, forwards, alone, prompt):
    """Native fault F4: async steps took turns between the canvas and a cut one."""
    one = ask(list(range(3, 3 + prompt)), max_tokens=None, seed=prompt)
    expected = alone(one)
    forwards.log.clear()
    out = serve(tight, [one])
    assert texts(out) == [expected]
    assert len(expected) == LIMIT - prompt
    assert out[0].outputs[0].finish_reason == "length"
    assert len(set(expected[-CANVAS // 2 :])) > 1 or len(expected) < 3  # no padding shows
    whole(forwards)
    canvases = -(-(LIMIT - prompt) // CANVAS)
    assert sum(kind in "DF" for kind in forwards.kinds("0")) == 4 * canvases


def test_a_threshold_that_would_cut_canvases_is_refused(checkpoint):
    with pytest.raises(ValueError, match="long-prefill-token-threshold .* at least 32, got 24"):
        with engine(checkpoint, long_prefill_token_threshold=24):
            pass


@pytest.mark.parametrize("room", [1, 31, 32, 33])
def test_a_short_canvas_settles_early(tight, forwards, sure, room):
    """Positions past the end of the context count for nothing: they would never settle."""
    serve(tight, [ask([9] * (LIMIT - room), max_tokens=None, seed=1)])
    kinds = forwards.kinds("0").strip("P")
    assert kinds == ("DD" if room <= CANVAS else "DDFD")
    whole(forwards)


def test_a_prompt_that_leaves_one_token(tight, alone):
    one = ask([9] * (LIMIT - 1), max_tokens=50, seed=1)
    out = serve(tight, [one])
    assert texts(out) == [alone(one)]
    assert len(alone(one)) == 1 and out[0].outputs[0].finish_reason == "length"


def test_a_tight_budget_cuts_no_canvas(tight, forwards, alone, prompts):
    """Native fault F5.  Four canvases and 7 tokens a step: prompts wait, canvases do not."""
    asks = [ask(prompts(n), max_tokens=60, seed=n) for n in (5, 60, 110, 100, 70)]
    expected = [alone(one) for one in asks]
    forwards.log.clear()
    assert texts(serve(tight, asks)) == expected
    whole(forwards)
    assert max(sum(f.rows for f in step.values()) for step in forwards.log) > 4 * CANVAS


def test_a_tight_budget_leaves_text_and_canvas_apart(tight, forwards, alone, prompts):
    """135 tokens: one of three requests may commit beside its next canvas, the others wait."""
    asks = [ask(prompts(n), max_tokens=64, seed=n) for n in (20, 20, 20)]
    expected = [alone(one) for one in asks]
    forwards.log.clear()
    assert texts(serve(tight, asks)) == expected
    kinds = sorted(forwards.kinds(name).strip("P") for name in "012")
    assert kinds == ["DDDDCDDDD"] * 2 + ["DDDDFDDD"]
    assert max(sum(f.rows for f in step.values()) for step in forwards.log) <= 135
    whole(forwards)


def test_preemption_near_the_end_of_the_context(tight, forwards, alone, prompts):
    asks = [ask(prompts(n), max_tokens=None, seed=n) for n in (20, 45, 70)]
    expected = [alone(one) for one in asks]
    forwards.log.clear()
    with squeezed(tight, 30) as preempted:
        assert texts(serve(tight, asks, rest=False)) == expected
    assert preempted
    whole(forwards)


def test_a_crowd_of_many_lengths(tight, forwards, alone, prompts):
    """Requests end at different times and others take their slots."""
    lengths = [(20, 1), (50, 100), (7, 33), (90, 64), (33, 5), (150, 90)]
    asks = [ask(prompts(n), max_tokens=tokens, seed=n) for n, tokens in lengths]
    expected = [alone(one) for one in asks]
    assert [len(text) for text in expected] == [1, 100, 33, 64, 5, 50]
    forwards.log.clear()
    with chunked(tight, 32):
        assert texts(serve(tight, asks)) == expected
    whole(forwards)


@pytest.fixture(scope="module")
def long_text(main):
    llm = main(async_scheduling=False)
    return texts(serve(llm, [ask(range(3, 43), max_tokens=260, seed=4)]))[0]


@pytest.mark.parametrize("tokens", [1, 5, 45, 257])
def test_max_tokens_trims_a_whole_canvas(llm, forwards, long_text, tokens):
    """The canvas is denoised in full, as the reference does."""
    forwards.log.clear()
    out = serve(llm, [ask(range(3, 43), max_tokens=tokens, seed=4)])
    assert texts(out)[0] == long_text[:tokens]
    assert out[0].outputs[0].finish_reason == "length"
    whole(forwards, limit=1024)


def test_two_answers_of_one_request(llm, prompts):
    from vllm.sampling_params import RequestOutputKind

    def say(**options):
        one = ask(prompt, max_tokens=40, n=2, output_kind=RequestOutputKind.FINAL_ONLY, **options)
        return [list(answer.token_ids) for answer in serve(llm, [one])[0].outputs]

    prompt = prompts(20)
    first, second = say(seed=6)
    assert len(first) == len(second) == 40 and first != second
    assert say(seed=6) == [first, second]
    first, second = say()
    assert first != second


def test_stop_token_ids(llm, prompts):
    one = ask(prompts(20), max_tokens=96, seed=7)
    text = texts(serve(llm, [one]))[0]
    stop = text[45]
    out = serve(llm, [ask(one.prompt, max_tokens=96, seed=7, stop_token_ids=[stop])])
    assert texts(out)[0] == text[: text.index(stop) + 1]
    assert (out[0].outputs[0].finish_reason, out[0].outputs[0].stop_reason) == ("stop", stop)


def test_ignore_eos(llm, sure, prompts):
    sure(1)
    prompt = prompts(20)
    assert texts(serve(llm, [ask(prompt, max_tokens=40, seed=1)])) == [[1] * 40]
    out = serve(llm, [ask(prompt, max_tokens=40, seed=1, ignore_eos=False)])
    assert texts(out) == [[1]] and out[0].outputs[0].finish_reason == "stop"
