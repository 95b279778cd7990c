"""A user's logits processors, vLLM's V2 interface: rows of a canvas, and what is before them."""

import pytest
import torch
from engine import ask, serve, texts
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

pytestmark = pytest.mark.engine
CANVAS = 8
STEPS = {"diffusion_canvas_length": CANVAS, "diffusion_max_denoising_steps": CANVAS + 2}


class Successor(LogitsProcessor):
    """Behind token n comes n + ``by``, for requests that say by how much; every third one is 3."""

    def __init__(self, vllm_config, req_states):
        self.states = req_states
        self.by = torch.zeros(req_states.max_num_reqs, dtype=torch.int64)

    @classmethod
    def validate_params(cls, params):
        if (params.extra_args or {}).get("by", 1) < 1:
            raise ValueError("by must be 1 or more")

    def add_request(self, slot, params):
        self.by[slot] = (params.extra_args or {}).get("by", 0)
        return bool(self.by[slot])

    def apply(self, logits, ctx):
        slots = ctx.expanded_idx_mapping.long()
        assert (ctx.idx_mapping.tolist(), ctx.expanded_local_pos.tolist()) == (
            ctx.idx_mapping_np.tolist(), list(range(len(logits)))
        )
        place = ctx.pos + 1 - self.states.prompt_len.gpu[slots]
        following = (ctx.input_ids.long() + self.by[slots]).clamp(max=logits.shape[1] - 1)
        token = torch.where(place % 3 == 2, 3, following)
        logits.scatter_(1, token[:, None], 1000.0)
        return logits


@pytest.fixture(scope="module")
def llm(engines):
    return engines(max_model_len=256, block_size=16, logits_processors=[Successor])


def expected(last, by, count):
    text = []
    for place in range(count):
        last = 3 if place % 3 == 2 else last + by
        text.append(last)
    return text


def test_rows_see_what_stands_before_them(llm, prompts):
    """Across canvases; beside a request that no processor takes, which is as it is alone."""
    plain = ask(prompts(20), max_tokens=20, seed=1)
    alone = texts(serve(llm, [plain]))[0]
    out = texts(serve(llm, [
        ask([50, 60], max_tokens=20, extra_args=STEPS | {"by": 5}), plain,
        ask([50, 61], max_tokens=20, extra_args=STEPS | {"by": 7}, logit_bias={4: 5.0}),
    ]))
    assert out == [expected(60, 5, 20), alone, expected(61, 7, 20)]


def test_its_own_check_refuses_a_request(llm, prompts):
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match="by must be 1 or more"):
        serve(llm, [ask(prompts(5), max_tokens=5, extra_args={"by": 0})])

