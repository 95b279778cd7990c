"""Canvases under way, as the requests that ask for them hear of them."""

import pytest
from engine import ask, at_rest, serve, texts
from vllm.exceptions import VLLMValidationError

from diffusiongemma_vllm import on_draft

pytestmark = pytest.mark.engine

EVERY = {"diffusion_drafts": 1}


def watched(llm, asks, **options):
    """The outputs, and every request's drafts in the order in which they came."""
    drafts = {str(i): [] for i in range(len(asks))}
    with on_draft(lambda draft: drafts[draft.request_id].append(draft)):
        return serve(llm, asks, **options), [drafts[str(i)] for i in range(len(asks))]


def test_every_step_of_every_canvas(llm, prompts):
    asks = [ask(prompts(20), max_tokens=70, seed=1, extra_args=extra) for extra in (
        EVERY, {"diffusion_drafts": 3}, None, {"diffusion_drafts": 9},
    )]
    plain = [ask(one.prompt, **one.options | {"extra_args": None}) for one in asks]
    alone = texts(serve(llm, plain))
    out, (each, third, none, ninth) = watched(llm, asks)
    assert texts(out) == alone
    assert [(d.canvas, d.step) for d in each] == [(c, s) for c in range(3) for s in (1, 2, 3, 4)]
    assert [(d.canvas, d.step) for d in third] == [(c, s) for c in range(3) for s in (3, 4)]
    assert none == [] and [(d.canvas, d.step, d.done) for d in ninth] == [
        (c, 4, True) for c in range(3)
    ]
    assert [d.done for d in each] == [False, False, False, True] * 3
    text = [token for draft in each if draft.done for token in draft.tokens]
    assert text[:70] == alone[0]


def test_what_a_draft_holds(sync_llm, prompts):
    loose = {"diffusion_entropy_bound": 2.0}
    _, [drafts] = watched(sync_llm, [ask(prompts(9), max_tokens=32, extra_args=EVERY | loose)])
    for draft in drafts:
        widths = {len(draft.tokens), len(draft.guess), len(draft.settled), len(draft.entropy)}
        assert widths == {32} and min(draft.entropy) >= 0 and draft.index == 0
    *running, last = drafts
    assert last.done and all(last.settled) and last.tokens == last.guess
    for draft in running:
        settled = [e for e, s in zip(draft.entropy, draft.settled, strict=True) if s]
        others = [e for e, s in zip(draft.entropy, draft.settled, strict=True) if not s]
        assert settled and others and max(settled) <= min(others)  # the surest are accepted


def test_a_short_canvas_and_a_constraint(sync_llm, prompts):
    short = EVERY | {"diffusion_canvas_length": 20}
    _, [drafts] = watched(sync_llm, [ask(prompts(9), max_tokens=20, extra_args=short)])
    assert {len(draft.tokens) for draft in drafts} == {20}


def test_every_choice_has_its_own(sync_llm, prompts):
    from vllm import SamplingParams

    params = SamplingParams(
        n=2, max_tokens=32, detokenize=False, ignore_eos=True, seed=1, extra_args=EVERY
    )
    drafts = []
    with on_draft(drafts.append):
        out = sync_llm.generate({"prompt_token_ids": prompts(9)}, params, use_tqdm=False)[0]
    for one in out.outputs:
        mine = [draft for draft in drafts if draft.index == one.index]
        assert [draft.step for draft in mine] == [1, 2, 3, 4]
        assert mine[-1].tokens == one.token_ids
        assert {draft.request_id for draft in mine} == {out.request_id}


def test_a_request_that_did_not_ask_copies_nothing(sync_llm, prompts, monkeypatch):
    """And has nothing to tell, the experts' load aside."""
    from diffusiongemma_vllm.runner.sampler import DiffusionSampler

    seen, original = [], DiffusionSampler.__call__

    def call(sampler, hidden, batch):
        sampler.model.expert_load.take()
        out = original(sampler, hidden, batch)
        seen.append(out.sampling_mask_tensors)
        return out

    monkeypatch.setattr(DiffusionSampler, "__call__", call)
    serve(sync_llm, [ask(prompts(9), max_tokens=32)])
    assert seen and set(seen) == {None}


def test_drafts_that_nobody_hears_are_refused(sync_llm, prompts):
    with pytest.raises(VLLMValidationError, match="on_draft"):
        serve(sync_llm, [ask(prompts(9), extra_args=EVERY)])
    at_rest(sync_llm)


def test_an_aborted_request_has_no_more_drafts(llm, prompts):
    def abort(step, _):
        if step == 3:
            llm.llm_engine.abort_request(["0"])

    asks = [ask(prompts(9), max_tokens=64, extra_args=EVERY) for _ in range(2)]
    _, (aborted, other) = watched(llm, asks, between=abort)
    assert len(aborted) < 8 == len(other)
