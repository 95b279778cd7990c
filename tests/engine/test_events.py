"""When text goes out, when its keys are committed, and what a request leaves behind."""

import pytest
from engine import Forwards, ask, forget, scheduler, serve, squeezed, texts

pytestmark = pytest.mark.engine

CANVAS, STEPS = 32, 4
THREE = "PDDDD" + "FDDD" * 2  # the last canvas is not committed
LOOSE = {"diffusion_stability_threshold": 0, "diffusion_confidence_threshold": 100.0}  # one step


@pytest.fixture
def forwards(monkeypatch):
    return Forwards(monkeypatch)


@pytest.fixture
def question(prompts):
    return ask(prompts(20), max_tokens=96, seed=5)


def test_forwards_of_three_canvases(llm, forwards, question):
    """As many as steps: text is committed beside the first step of the next canvas.

    Async too: the step limit is known before its forward comes back, and the end of the answer.
    """
    out = serve(llm, [question])
    assert forwards.kinds("0") == THREE
    assert out[0].outputs[0].diffusion["fused"] == 2
    emitted = [forward.emitted for forward in forwards.of("0")]
    settles = [5, 9, 13]  # the forwards whose logits settle a canvas
    assert [i + 1 for i, tokens in enumerate(emitted) if tokens] == settles
    assert {tokens for tokens in emitted if tokens} == {CANVAS}
    starts = [forward.start for forward in forwards.of("0")]
    assert starts == [0] + [20] * 5 + [52] * 4 + [84] * 3
    assert [f.rows for f in forwards.of("0") if f.kind == "F"] == [2 * CANVAS] * 2


def test_canvases_that_settle_early(llm, mode, forwards, question):
    """Async, the forward in flight is the commit; at the end one more is in flight, and dropped."""
    out = serve(llm, [question._replace(options=question.options | {"extra_args": LOOSE})])
    assert forwards.kinds("0") == ("PDFF" if mode == "sync" else "PDCDCDC")
    assert out[0].outputs[0].diffusion["fused"] == (2 if mode == "sync" else 0)
    assert out[0].outputs[0].diffusion["forwards"] == (4 if mode == "sync" else 6)


def test_one_step_canvases_at_their_limit(llm, forwards, question):
    """Every forward settles a canvas, and is known to."""
    one = {"extra_args": {"diffusion_max_steps": 1}}
    serve(llm, [question._replace(options=question.options | one)])
    assert forwards.kinds("0") == "PDFF"


def test_text_goes_out_on_the_step_that_settles_it(sync_llm, forwards, question):
    seen = []

    def watch(step, outputs):
        seen.append(len(texts(outputs.values())[0]) if outputs else 0)

    serve(sync_llm, [question], watch)
    assert seen == [0] * STEPS + [32] * STEPS + [64] * STEPS + [96]


def test_async_text_is_one_forward_behind(async_llm, forwards, question):
    seen = []

    def watch(step, outputs):
        seen.append((len(forwards.log), len(texts(outputs.values())[0]) if outputs else 0))

    serve(async_llm, [question], watch)
    first = {tokens: done for done, tokens in reversed(seen) if tokens}
    # Settled by forwards 5, 9 and 13; one more was launched before the host read the first two.
    assert first == {32: 6, 64: 10, 96: 13}


def test_committed_tokens_alone_are_computed(sync_llm, forwards, question):
    found, computed = scheduler(sync_llm), []

    def watch(step, outputs):
        computed.extend(request.num_computed_tokens for request in found.requests.values())

    serve(sync_llm, [question], watch)
    assert computed == [20] * 5 + [52] * 4 + [84] * 3


def test_async_computed_tokens_count_forwards_in_flight(async_llm, question):
    found, settled = scheduler(async_llm), []

    def watch(step, outputs):
        for request in found.requests.values():
            settled.append(request.num_computed_tokens - request.num_in_flight_tokens)
            assert request.num_output_placeholders in (0, CANVAS)

    serve(async_llm, [question], watch)
    # The commit was in flight when its text went out, so its keys count one step later.
    assert sorted(set(settled)) == [0, 20, 52, 84]
    assert settled == sorted(settled)


def test_short_answers_take_one_canvas(llm, forwards, question):
    serve(llm, [question._replace(options=question.options | {"max_tokens": 7})])
    assert forwards.kinds("0") == "PDDDD"


def test_requests_share_forwards(llm, forwards, prompts):
    """Four requests cost the forwards of one."""
    asks = [ask(prompts(20 + i), max_tokens=64, seed=i) for i in range(4)]
    serve(llm, asks)
    assert len({forwards.kinds(name) for name in "0123"}) == 1
    assert len(forwards.log) == len(forwards.of("0"))


def test_a_stop_string_ends_a_request_whose_next_canvas_has_begun(llm, prompts):
    """The front end finds stop strings, and aborts: the engine is some forwards further by then."""
    def stop(step, outputs):
        if outputs and len(texts(outputs.values())[0]) >= 32:
            llm.llm_engine.abort_request(["0"])

    asks = [ask(prompts(20), max_tokens=96, seed=1)]
    assert len(texts(serve(llm, asks, stop))[0]) == 32


@pytest.mark.parametrize("when", [0, 2, 4, 5, 6])
def test_abort_at_any_step_frees_everything(llm, prompts, when):
    """In prefill, in the first canvas, on the step that settles it, in the commit; others go on."""
    mine, other = (ask(prompts(20), max_tokens=64, seed=seed) for seed in (1, 2))
    alone = texts(serve(llm, [other]))[0]

    def abort(step, outputs):
        if step == when:
            llm.llm_engine.abort_request(["0"])

    assert texts(serve(llm, [mine, other], abort)[1:])[0] == alone


@pytest.mark.parametrize("when", [2, 4, 5, 6])
def test_reset_prefix_cache_under_running_requests(llm, prompts, when):
    """Requests begin again with what they have said, and say the same; stale steps are dropped."""
    asks = [ask(prompts(20 + i), max_tokens=64, seed=i) for i in range(2)]
    expected = texts(serve(llm, asks))

    def reset(step, outputs):
        if step == when:
            assert llm.llm_engine.reset_prefix_cache(reset_running_requests=True)

    assert texts(serve(llm, asks, reset)) == expected


def test_preemption_of_a_canvas_that_is_out_and_not_committed(llm, prompts, forwards):
    """Its text goes into the next prefill, and is not said again."""
    one = ask(prompts(20), max_tokens=96, seed=3)
    expected = texts(serve(llm, [one]))
    found, done = scheduler(llm), []
    forwards.log.clear()

    def preempt(step, outputs):
        if outputs and not done:
            request = next(iter(found.requests.values()))
            found.running.remove(request)
            found._preempt_request(request, 0.0)
            done.append(len(forwards.log))

    assert texts(serve(llm, [one], preempt)) == expected
    after = [f for f in forwards.of("0")[done[0] :]]
    assert (after[0].kind, after[0].start + after[0].rows) == ("P", 52)


@pytest.mark.parametrize("when, tokens", [(3, 64), (4, 64), (5, 64), (4, 32)])
def test_preemption_around_the_end_of_a_canvas(llm, prompts, when, tokens):
    """Async, the step that settles the canvas is in flight at 4: its text still goes out, once."""
    one = ask(prompts(20), max_tokens=tokens, seed=3)
    expected = texts(serve(llm, [one]))
    found = scheduler(llm)

    def preempt(step, outputs):
        if step == when and found.running:
            found._preempt_request(found.running.pop(), 0.0)

    assert texts(serve(llm, [one], preempt)) == expected


def test_a_commit_preempted_in_its_own_step_leaves_no_keys(sync_llm, prompts, monkeypatch):
    """By priority, a request whose commit the step holds already may lose its pages to another.

    vLLM puts pages into the prefix cache when it schedules them; these are never computed.
    """
    from vllm import SamplingParams
    from vllm.v1.core.sched.request_queue import SchedulingPolicy

    victim = ask(prompts(20), max_tokens=64, seed=3)
    forget(sync_llm)
    expected = texts(serve(sync_llm, [victim]))
    forget(sync_llm)
    found, core = scheduler(sync_llm), sync_llm.llm_engine
    pool = found.kv_cache_manager.block_pool
    monkeypatch.setattr(found, "policy", SchedulingPolicy.PRIORITY)
    urgent = {"prompt_token_ids": prompts(40)}
    held, hit = [], []

    def squeeze(step, outputs):
        if step == STEPS - 1:  # its prompt is computed beside the victim's last denoise step
            next(iter(found.requests.values())).priority = 1
            core.add_request("urgent", urgent, SamplingParams(max_tokens=32, detokenize=False))
        if step == STEPS:  # its canvas needs 6 pages, beside the victim's commit
            held.extend(pool.get_new_blocks(pool.get_num_free_blocks() - 5))
        if step == STEPS + 1:
            request = next(r for r in found.requests.values() if r.num_preemptions)
            hit.append(found.kv_cache_manager.get_computed_blocks(request)[1])
            pool.free_blocks(held)

    assert texts(serve(sync_llm, [victim], squeeze)) == expected
    assert hit == [16]  # of the prompt's 20


def test_everything_is_free_after_a_crowd(llm, prompts):
    """More requests than slots, of many lengths, some aborted, some preempted."""
    asks = [
        ask(prompts(5 + 37 * i % 150), max_tokens=1 + 23 * i % 70, seed=i, n=1) for i in range(9)
    ]

    def abort(step, outputs):
        if step in (3, 9):
            llm.llm_engine.abort_request([str(step)])

    with squeezed(llm, 60):
        outputs = serve(llm, asks, abort, rest=False)
    for i, output in enumerate(outputs):
        if i != 3:
            assert len(texts([output])[0]) == 1 + 23 * i % 70
