"""What every answer tells of its canvases."""

import pytest
from engine import Forwards, ask, serve, squeezed

pytestmark = pytest.mark.engine


def limit(tokens):
    return {"steps": 4, "tokens": tokens, "stopped": "step_limit"}


def test_canvases_and_forwards(llm, monkeypatch, prompts):
    """The last commit is not waited for."""
    forwards = Forwards(monkeypatch)
    loose = {"diffusion_stability_threshold": 0, "diffusion_confidence_threshold": 100.0}
    out = serve(llm, [
        ask(prompts(20), max_tokens=70),
        ask(prompts(30), max_tokens=40, extra_args=loose),
        ask(prompts(30), max_tokens=5, n=1, extra_args={"diffusion_canvas_length": 20}),
    ])
    told = [one.outputs[0].diffusion for one in out]
    settled = {"steps": 1, "tokens": 32, "stopped": "settled"}
    assert [one["canvases"] for one in told] == [
        [limit(32)] * 3, [settled] * 2, [limit(20)]
    ]
    assert [one["forwards"] for one in told] == [
        len(forwards.kinds(name).rstrip("C")) for name in "012"
    ]
    assert all(one.kv_transfer_params is None for one in out)


def test_a_canvas_lost_to_a_preemption_is_not_told(llm, prompts):
    with squeezed(llm, 40) as preempted:
        out = serve(llm, [ask(prompts(n), max_tokens=96) for n in (20, 70, 150)], rest=False)
    assert preempted
    for one in out:
        assert one.outputs[0].diffusion["canvases"] == [limit(32)] * 3
    assert max(one.outputs[0].diffusion["forwards"] for one in out) > 1 + 3 * 4


def test_every_choice_has_its_own(sync_llm, prompts):
    from vllm import SamplingParams

    params = SamplingParams(n=2, max_tokens=40, detokenize=False, ignore_eos=True, seed=1)
    out = sync_llm.generate({"prompt_token_ids": prompts(9)}, params, use_tqdm=False)[0]
    assert [one.diffusion["canvases"] for one in out.outputs] == [[limit(32)] * 2] * 2
