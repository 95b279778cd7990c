"""Turn 2 of a conversation: the canvases committed in turn 1 are found, and only those."""

import functools
from typing import NamedTuple

import pytest
import torch
from engine import ask, draw_prompts, forget, serve, texts
from random_checkpoint import SPECIALS
from teacher import Teacher, lesson

pytestmark = pytest.mark.engine

CANVAS, PAGE, PROMPT = 32, 16, 40
STOP = 499  # a stop token of the request


class Ending(NamedTuple):
    max_tokens: int
    place: int | None  # in the third canvas, of a token that ends the turn
    token: int | None
    tokens: int  # of the answer
    why: str


EOS = Ending(96, 10, SPECIALS["eos"], 75, "EOS")
LENGTH = Ending(70, None, None, 70, "max_tokens")
ENDINGS = [
    EOS,
    LENGTH,
    Ending(96, 20, STOP, 85, "stop token"),
    Ending(64, None, None, 64, "a whole canvas"),
    Ending(96, None, None, 64, "abort"),
]


@pytest.fixture(scope="module")
def turns(reference):
    """Ending -> the lessons of turn 1 and turn 2."""
    draw = draw_prompts()
    prompt, more = draw(PROMPT), draw(25)

    @functools.cache
    def make(ending):
        def edit(texts):
            for text in texts:
                text[(text < 3) | (text == STOP)] = 3
            if ending.place is not None:
                texts[2][ending.place] = ending.token

        one = lesson(reference, prompt, seed=1, edit=edit)
        answer = torch.cat(one.text)[: ending.tokens].tolist()
        return one, lesson(reference, prompt + answer + more, seed=2)

    return make


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.why)
def test_second_turn_is_the_same_warm_and_cold(llm, monkeypatch, turns, ending):
    one, two = turns(ending)
    teacher = Teacher(monkeypatch, {1: one})
    since = []

    def abort(step, outputs):
        """After two canvases, in the middle of the third."""
        if ending.why == "abort" and outputs and len(texts(outputs.values())[0]) == 64:
            since.append(step)
            if len(since) == 3:
                llm.llm_engine.abort_request(["0"])

    options = dict(seed=1, max_tokens=ending.max_tokens, ignore_eos=False, stop_token_ids=[STOP])
    answer = texts(serve(llm, [ask(one.prompt, **options)], abort))[0]
    assert answer == torch.cat(one.text)[: ending.tokens].tolist()

    # A canvas that the model went on from is committed; the one that ended the turn is not.
    last = 0 if ending.why == "abort" else (len(answer) - 1) % CANVAS + 1
    committed = PROMPT + len(answer) - last
    teacher.teach({2: two})
    question = [ask(two.prompt, max_tokens=96, seed=2)]
    warm = serve(llm, question)
    assert warm[0].num_cached_tokens == committed // PAGE * PAGE
    print(f"{ending.why}: warm {teacher.compare():.1e}")
    said = teacher.said[2]

    forget(llm)
    teacher.teach({2: two})
    cold = serve(llm, question)
    assert not cold[0].num_cached_tokens
    assert texts(cold) == texts(warm) == [torch.cat(two.text).tolist()]
    print(f"{ending.why}: cold {teacher.compare():.1e}")
    for place, logits in teacher.said[2].items():
        torch.testing.assert_close(said[place], logits, rtol=0, atol=1e-4 * logits.abs().max())


def test_the_last_canvas_is_not_in_the_cache(llm, monkeypatch, turns):
    """Even where the prompt of turn 2 holds all of its text."""
    one, _ = turns(LENGTH)
    teacher = Teacher(monkeypatch, {1: one})
    serve(llm, [ask(one.prompt, seed=1, max_tokens=96)])
    teacher.teach({})
    said = one.prompt + torch.cat(one.text).tolist()
    out = serve(llm, [ask(said + [7], seed=2, max_tokens=1)])
    assert out[0].num_cached_tokens == (PROMPT + 64) // PAGE * PAGE


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_abort_around_the_commit_leaves_only_true_keys(llm, monkeypatch, reference, turns, steps):
    """The pages that an abort leaves in the cache hold what a fresh prefill would write.

    steps: engine steps since the first canvas went out.
    """
    one, _ = turns(LENGTH)
    teacher = Teacher(monkeypatch, {1: one})
    since = []

    def abort(step, outputs):
        if outputs:
            since.append(step)
        if len(since) == steps:
            llm.llm_engine.abort_request(["0"])

    serve(llm, [ask(one.prompt, seed=1, max_tokens=96)], abort)
    said = one.prompt + torch.cat(one.text).tolist()[:32]
    teacher.teach({2: lesson(reference, said + [7], canvases=1, steps=1, seed=2)})
    out = serve(llm, [ask(said + [7], seed=2, max_tokens=32)])
    assert out[0].num_cached_tokens in (PROMPT // PAGE * PAGE, (PROMPT + 32) // PAGE * PAGE)
    teacher.compare()
