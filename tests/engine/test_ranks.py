"""Two ranks in two processes against one: the same logits and the same text, bit for bit alike.

By tensor on the random checkpoint, by experts on the miniature.
"""

import pytest
import torch
from engine import ask, engine, forget, scheduler, serve, texts
from pictures import noise
from ranks import heal, held, poison, record, recorded, state

from diffusiongemma_vllm.cli.main import MINIATURE

pytestmark = pytest.mark.engine

TOLERANCE = 1e-4  # of logits up to 30
IMAGE = 10
PERSON = "Write a JSON object: name is nina, color is grey, age is 55."
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["name", "color", "age"],
    "properties": {
        "name": {"enum": ["nina", "otto"]}, "color": {"enum": ["grey", "red"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
}


def watched(llm, asks):
    """What they answer; rank by rank, what each step of each canvas saw."""
    forget(llm)
    llm.collective_rpc(record)
    try:
        outputs = serve(llm, asks, rest=False)
    finally:
        seen = llm.collective_rpc(recorded)
    assert not scheduler(llm).requests and scheduler(llm).kv_cache_manager.usage == 0
    return outputs, seen


def by_canvas(seen):
    """Canvas -> its steps in order."""
    found = {}
    for step in seen:
        found.setdefault(step.canvas, []).append(step)
    return found


def compare(one, two, asks):
    """one, two: engines of one rank and of two  ->  ``serve``'s outputs of both, equal in text

    The logits of every canvas are compared step by step as long as the same tokens were read.
    Rounding that tips one draw of thousands makes other canvases on the way to the same text.
    """
    want, (single,) = watched(one, asks)
    got, (first, second) = watched(two, asks)
    assert texts(got) == texts(want)
    for ours, theirs in zip(first, second, strict=True):
        assert ours.canvas == theirs.canvas and torch.equal(ours.tokens, theirs.tokens)
        assert torch.equal(ours.logits, theirs.logits), "ranks see different logits"
    single, pair = by_canvas(single), by_canvas(first)
    assert single.keys() == pair.keys() and {name for name, *_ in pair} == {
        str(i) for i in range(len(asks))
    }
    errors = {}
    for canvas, steps in single.items():
        for i, (ours, theirs) in enumerate(zip(steps, pair[canvas], strict=False)):
            if not torch.equal(ours.tokens, theirs.tokens):
                assert i, f"{canvas} begins with other tokens"
                break
            errors[canvas, i] = float((ours.logits - theirs.logits).abs().max())
    print(f"logits {max(errors.values()):.1e} off, {len(errors)} of {len(first)} steps", end=" ")
    print(f"of {len(pair)} canvases")
    assert max(errors.values()) <= TOLERANCE
    same_state(two)
    return want, got


def same_state(llm):
    first, second = llm.collective_rpc(state)
    assert first["soft"].any() and first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def scores(output):
    """Token -> log-probability at every place, as one row of numbers."""
    return torch.tensor([
        [one.logprob for _, one in sorted(place.items())] for place in output.outputs[0].logprobs
    ])


def test_by_tensor(main, checkpoint, prompts):
    one = main(async_scheduling=False)
    picture = prompts(9) + [IMAGE] + prompts(9)
    asks = [
        ask(prompts(70), max_tokens=45, seed=1),
        ask([t if t > 13 else t + 20 for t in picture[:9]] + [IMAGE] + [99] * 9, max_tokens=32,
            seed=2, media={
                "multi_modal_data": {"image": [noise(64, 48, seed=3)]},
                "mm_processor_kwargs": {"max_soft_tokens": 70},
            }),
        ask(prompts(20), max_tokens=64, seed=3, temperature=1.0, top_p=0.9, logprobs=3),
        ask(prompts(33), max_tokens=40, seed=4, repetition_penalty=1.3, min_p=0.01,
            logit_bias={7: 4.0}),
    ]
    with engine(
        checkpoint, tensor_parallel_size=2, max_model_len=1024, block_size=16,
        override_generation_config={"max_denoising_steps": 4},
    ) as two:
        want, got = compare(one, two, asks)
        torch.testing.assert_close(scores(got[2]), scores(want[2]), rtol=1e-4, atol=1e-4)
        (all_experts, heads), = one.collective_rpc(held)
        assert heads == {"sliding_attention": 2, "full_attention": 1}
        for experts, kept in two.collective_rpc(held):
            assert experts == all_experts // 2
            assert kept == {"sliding_attention": 1, "full_attention": 1}
        # One rank's numbers are none any more: all ranks end the request, and go on.
        two.collective_rpc(poison, args=(1,))
        bad, = serve(two, asks[:1], rest=False)
        assert bad.outputs[0].finish_reason == "error"
        two.collective_rpc(heal, args=(1,))
        forget(two)
        assert texts(serve(two, asks[:1], rest=False)) == texts(want[:1])
        same_state(two)


def test_by_experts(miniature):
    from vllm.sampling_params import StructuredOutputsParams

    one = miniature(async_scheduling=False)

    def chat(prompt, **options):
        ids = one.get_tokenizer().apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
        return ask(ids, ignore_eos=False, max_tokens=60, **options)

    # Questions that it was taught.  On others rounding grows: one rank whose sums are taken in two
    # halves is 3e-4 off itself.
    asks = [
        chat(PERSON, seed=1, structured_outputs=StructuredOutputsParams(json=SCHEMA)),
        chat(PERSON, seed=2, top_k=20, logprobs=2),
        chat("What is 27 + 38?", seed=3),
        chat("What is the weather in Cairo?", seed=4),
    ]
    with engine(
        MINIATURE, tensor_parallel_size=2, enable_expert_parallel=True, skip_tokenizer_init=False,
        max_model_len=1280, block_size=16,
        structured_outputs_config={"reasoning_parser": "gemma4"},
    ) as two:
        compare(one, two, asks)
        (all_experts, _), = one.collective_rpc(held)
        assert [part for part, _ in two.collective_rpc(held)] == [all_experts // 2] * 2
