"""A request's text is its own: no neighbour, order, schedule or cache changes a token."""

import pytest
from engine import ask, chunked, draw_prompts, forget, scheduler, serve, squeezed, texts

pytestmark = pytest.mark.engine

KINDS = [
    dict(temperature=0.0), dict(temperature=0.7), dict(temperature=1.0),
    dict(temperature=1.0, top_k=20), dict(temperature=0.7, top_p=0.9),
    dict(temperature=1.0, top_k=50, top_p=0.8),
    dict(frequency_penalty=0.5, repetition_penalty=1.3, min_p=0.01, logprobs=2),
    dict(logit_bias={7: 4.0}, extra_args={"diffusion_canvas_length": 20, "diffusion_t_max": 2.0}),
]
LENGTHS = [5, 30, 100, 64, 41, 80, 33, 18]


@pytest.fixture(scope="module")
def asks():
    draw = draw_prompts()
    return [
        ask(draw(length), max_tokens=45, seed=i, **kind)
        for i, (length, kind) in enumerate(zip(LENGTHS, KINDS, strict=True))
    ]


@pytest.fixture(scope="module")
def alone(main, asks):
    """Each request served by itself, sync, with an empty cache."""
    llm = main(async_scheduling=False)
    found = []
    for one in asks:
        forget(llm)
        found += texts(serve(llm, [one]))
    assert len({tuple(text) for text in found}) == len(found)
    return found


def test_alone_async(async_llm, asks, alone):
    forget(async_llm)
    assert [texts(serve(async_llm, [one]))[0] for one in asks] == alone


def test_beside_strangers_and_queueing(llm, asks, alone):
    assert texts(serve(llm, asks)) == alone


def test_all_eight_in_one_batch(engines, asks, alone):
    llm = engines(
        max_model_len=1024, block_size=16, max_num_seqs=8, async_scheduling=True,
        override_generation_config={"max_denoising_steps": 4},
    )
    most = []
    found = serve(llm, asks, lambda *_: most.append(len(scheduler(llm).running)))
    assert texts(found) == alone and max(most) == 8


def test_in_another_order(llm, asks, alone, prompts):
    order = [4, 7, 2, 5, 0, 6, 3, 1]
    strangers = [ask(prompts(9 * i), max_tokens=40) for i in (1, 7)]
    found = texts(serve(llm, [strangers[0], *(asks[i] for i in order), strangers[1]]))[1:-1]
    assert found == [alone[i] for i in order]


def test_preempted(llm, asks, alone):
    with squeezed(llm, 50) as preempted:
        assert texts(serve(llm, asks, rest=False)) == alone
    assert preempted


def test_chunked(llm, asks, alone):
    with chunked(llm, 40):
        assert texts(serve(llm, asks)) == alone


def test_prefix_cached(llm, asks, alone):
    serve(llm, asks)
    out = serve(llm, asks)
    assert texts(out) == alone
    assert all(output.num_cached_tokens for output in out[1:])
    assert texts(serve(llm, [asks[3]])) == [alone[3]]


def test_seeds(llm, prompts):
    prompt = prompts(30)

    def say(**options):
        return texts(serve(llm, [ask(prompt, max_tokens=32, **options)]))[0]

    assert say(seed=1) == say(seed=1)
    assert say(seed=1) != say(seed=2)
    assert say() != say(), "a request without a seed draws one"
    assert say(temperature=0) == say(temperature=0)
