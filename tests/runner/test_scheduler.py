"""The scheduler's accounts, over a device of paper: canvases of 32 tokens."""

import random

import pytest
from modules import engine_config
from paper import Device, hasher, make_request, make_scheduler, serve
from vllm.sampling_params import RepetitionDetectionParams

LIMIT, STEPS = 200, 4


@pytest.fixture(scope="module", params=["sync", "async"])
def asynchronous(request):
    return request.param == "async"


@pytest.fixture(scope="module")
def hash_blocks():
    return hasher()


@pytest.fixture(scope="module")
def config(checkpoint):
    return engine_config(
        checkpoint, max_model_len=LIMIT, max_num_seqs=4, block_size=16,
        override_generation_config={"max_denoising_steps": STEPS},
    )


@pytest.fixture
def start(config, asynchronous):
    return lambda **options: make_scheduler(config, asynchronous=asynchronous, **options)


def always(steps):
    return lambda name, canvas: steps


def test_forwards_at_the_step_limit(start, hash_blocks):
    """16 forced steps: 16 forwards a canvas, sync and async."""
    scheduler = start()
    steps = {"diffusion_max_denoising_steps": 16}
    request = make_request(0, 20, hash_blocks, max_tokens=96, extra_args=steps)
    forwards, kinds, tokens = serve(scheduler, Device(LIMIT, always(99), 16), [request])
    assert kinds["0"] == "P" + "D" * 16 + ("F" + "D" * 15) * 2
    assert forwards == 1 + 3 * 16 and tokens["0"] == [500] * 32 + [501] * 32 + [502] * 32


def test_forwards_of_canvases_that_settle_early(start, asynchronous, hash_blocks):
    """Async, one forward more a canvas, and one at the end."""
    scheduler = start()
    request = make_request(0, 20, hash_blocks, max_tokens=96)
    kinds = serve(scheduler, Device(LIMIT, always(3), STEPS), [request])[1]
    assert kinds["0"] == ("PDDDCDDDCDDDC" if asynchronous else "PDDDFDDFDD")


@pytest.mark.parametrize("prompt", [103, 105, 136, 137, 168, 169, 198])
@pytest.mark.parametrize("steps", [1, 2, STEPS])
def test_the_end_of_the_context(start, hash_blocks, prompt, steps):
    """No canvas is cut but the last, which is as wide as the context allows."""
    scheduler = start()
    request = make_request(0, prompt, hash_blocks, max_tokens=1000)
    _, kinds, tokens = serve(scheduler, Device(LIMIT, always(steps), STEPS), [request])
    assert len(tokens["0"]) == LIMIT - prompt
    canvases = -(-(LIMIT - prompt) // 32)
    assert sum(kind in "DF" for kind in kinds["0"]) == steps * canvases


def test_a_budget_of_one_canvas_each(start, hash_blocks):
    """There is never room for text beside a canvas."""
    scheduler = start(max_num_batched_tokens=128)
    requests = [make_request(i, 30 + i, hash_blocks, max_tokens=64) for i in range(4)]
    _, kinds, tokens = serve(scheduler, Device(LIMIT, always(STEPS), STEPS), requests)
    assert all(len(text) == 64 for text in tokens.values())
    # Prompts need two steps, and a canvas that waits for them has room to spare.
    assert {kind.strip("P") for kind in kinds.values()} <= {"DDDDCDDDD", "DDDDFDDD"}
    assert any("C" in kind for kind in kinds.values())


def test_a_threshold_of_a_canvas(start, hash_blocks):
    scheduler = start(long_prefill_token_threshold=40)
    requests = [make_request(i, 60, hash_blocks, max_tokens=64) for i in range(2)]
    kinds = serve(scheduler, Device(LIMIT, always(STEPS), STEPS), requests)[1]
    assert all(kind.strip("P") == "DDDDCDDDD" for kind in kinds.values())


@pytest.mark.parametrize("seed", range(12))
def test_crowds(start, hash_blocks, seed):
    """Any lengths, canvases, steps, pages, budgets, preemptions and aborts: all text goes out."""
    draw = random.Random(seed)
    scheduler = start(
        blocks=draw.choice([45, 70, 1000]),
        max_num_batched_tokens=draw.choice([128, 140, 180, 400]),
        long_prefill_token_threshold=draw.choice([0, 0, 33, 70]),
    )
    requests, expected = [], {}
    for i in range(10):
        prompt, tokens = draw.randrange(1, 190), draw.choice([1, 31, 32, 33, 64, 90, 1000])
        extra = draw.choice([{}, {}, {"diffusion_canvas_length": 20}, {"diffusion_max_steps": 2}])
        requests.append(
            make_request(i, prompt, hash_blocks, max_tokens=tokens, extra_args=extra or None)
        )
        expected[str(i)] = min(tokens, LIMIT - prompt)
    device = Device(LIMIT, lambda name, canvas: 1 + (int(name) * 7 + canvas * 3) % 5, STEPS)
    limits = {str(i): (r.sampling_params.extra_args or {}) for i, r in enumerate(requests)}
    settles = device.settles
    device.settles = lambda name, canvas: min(
        settles(name, canvas), limits[name].get("diffusion_max_steps", STEPS)
    )

    def interrupt(forward):
        if scheduler.running and draw.random() < 0.05:
            scheduler._preempt_request(scheduler.running.pop(), 0.0)

    _, kinds, tokens = serve(scheduler, device, requests, interrupt)
    assert {name: len(text) for name, text in tokens.items()} == expected
    assert scheduler.kv_cache_manager.usage == 0 and not scheduler.reports


@pytest.mark.parametrize("options", [
    {}, {"stop_token_ids": [7, 9]}, {"ignore_eos": False},
    {"repetition_detection": RepetitionDetectionParams(4, 1, 5)},
], ids=lambda options: "".join(options) or "no stop")
def test_text_ends_where_vllm_ends_it(start, hash_blocks, options):
    """Token by token there, all that cannot end it at once here."""
    from vllm.v1.core.sched.scheduler import Scheduler

    draw, scheduler = random.Random(1), start()
    for _ in range(60):
        prompt, most = draw.randrange(150, 199), draw.choice([1, 5, 32, 100])
        both = [make_request(i, prompt, hash_blocks, max_tokens=most, **options) for i in range(2)]
        tokens = [draw.choice([1, 7, 9, 20] + 20 * [30]) for _ in range(min(32, LIMIT - prompt))]
        for request in both:
            request.sampling_params.update_from_generation_config({}, 1)
            scheduler.add_request(request)
        ours = scheduler._update_request_with_output(both[0], list(tokens))
        theirs = Scheduler._update_request_with_output(scheduler, both[1], list(tokens))
        assert ours == theirs
        for name in ("status", "stop_reason", "_all_token_ids", "block_hashes"):
            assert getattr(both[0], name) == getattr(both[1], name), name
        scheduler.requests.clear()
