"""One random checkpoint, its reference and the engines that serve it, for the whole session."""

import pytest
import torch
from engine import Engines, at_rest, draw_prompts, forget
from random_checkpoint import build
from teacher import lesson

STEPS = 4
LIMIT = 1024


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Two threads gain nothing on matrices this small, and lose much where cores are shared."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return build(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="session")
def reference(checkpoint):
    from transformers import DiffusionGemmaForBlockDiffusion

    return DiffusionGemmaForBlockDiffusion.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="session")
def engines(checkpoint):
    pool = Engines(checkpoint)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def main(engines):
    """Canvases of 32 tokens that take 4 steps: a random checkpoint does not settle by itself."""

    def start(*, async_scheduling):
        return engines(
            max_model_len=LIMIT, block_size=16, async_scheduling=async_scheduling,
            override_generation_config={"max_denoising_steps": STEPS},
        )

    return start


@pytest.fixture(scope="session")
def miniature():
    """Starts an engine of the shipped checkpoint, which has a tokenizer and can answer."""
    from diffusiongemma_vllm.cli.main import MINIATURE

    pool = Engines(MINIATURE)
    yield lambda *, async_scheduling: pool(
        skip_tokenizer_init=False, max_model_len=1280, block_size=16,
        async_scheduling=async_scheduling,
        structured_outputs_config={"reasoning_parser": "gemma4"},
    )
    pool.close()


@pytest.fixture(scope="session", params=["sync", "async"])
def mode(request):
    return request.param


def empty(llm):
    at_rest(llm)
    forget(llm)
    return llm


@pytest.fixture
def llm(main, mode):
    """An engine at rest with an empty prefix cache, sync and async."""
    return empty(main(async_scheduling=mode == "async"))


@pytest.fixture
def sync_llm(main):
    return empty(main(async_scheduling=False))


@pytest.fixture
def async_llm(main):
    return empty(main(async_scheduling=True))


@pytest.fixture
def prompts():
    """The same prompts for a test whatever ran before it."""
    return draw_prompts()


@pytest.fixture(scope="session")
def lessons(reference):
    """seed -> Lesson for prompts of 20, 70 and 150 tokens."""
    draw = draw_prompts()
    return {n: lesson(reference, draw(n), seed=n) for n in (20, 70, 150)}
