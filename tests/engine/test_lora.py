"""LoRA adapters against the same weights merged, alone and beside each other."""

import pytest
from adapters import merged, write
from engine import ask, forget, serve, texts
from teacher import Teacher, lesson

pytestmark = pytest.mark.engine

TOLERANCE = 1e-4  # of the largest logit; seen: 2e-6
NAMES = ["first", "second", "third"]
LIMIT = 1024


@pytest.fixture(scope="module")
def folders(reference, tmp_path_factory):
    """Adapters of everything that can be adapted, of different ranks."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: write(root / name, reference, seed=rank, rank=rank)
        for name, rank in zip(NAMES, (4, 8, 1), strict=True)
    }


@pytest.fixture(scope="module")
def adapter(folders):
    from vllm.lora.request import LoRARequest

    found = {name: LoRARequest(name, i + 1, str(folders[name])) for i, name in enumerate(NAMES)}
    return found | {None: None}


@pytest.fixture(scope="module")
def adapted(engines):
    """It has room for two of the three adapters at a time."""
    return engines(
        max_model_len=LIMIT, block_size=16, enable_lora=True, max_loras=2, max_lora_rank=8,
        async_scheduling=True, override_generation_config={"max_denoising_steps": 4},
    )


def test_logits_are_those_of_merged_weights(
    adapted, adapter, folders, reference, prompts, monkeypatch
):
    """Prompts, canvases and committed text; two adapters and none in one batch."""
    names = [None, "first", "second"]
    models = [reference, *(merged(reference, folders[name]) for name in names[1:])]
    lessons = {
        seed: lesson(model, prompts(70 + 40 * seed), seed=seed)
        for seed, model in enumerate(models)
    }
    teacher = Teacher(monkeypatch, lessons)
    outputs = serve(adapted, [
        ask(lessons[seed].prompt, max_tokens=96, seed=seed, lora=adapter[name])
        for seed, name in enumerate(names)
    ])
    assert all(len(text) == 96 for text in texts(outputs))
    print(f"largest error: {teacher.compare(TOLERANCE):.1e} of the largest logit")


def test_a_text_depends_on_its_own_adapter_alone(adapted, adapter, sync_llm, prompts):
    """Beside others, cached, or where nothing can be adapted."""
    prompt, other = prompts(40), prompts(100)
    asks = {
        name: ask(prompt, max_tokens=40, seed=1, lora=adapter[name])
        for name in (None, "first", "second")
    }
    alone = {}
    for name, one in asks.items():
        forget(adapted)
        alone[name] = texts(serve(adapted, [one]))[0]
    assert len({tuple(text) for text in alone.values()}) == 3
    assert texts(serve(sync_llm, [asks[None]])) == [alone[None]]
    forget(adapted)
    for _ in range(2):
        beside = ask(other, max_tokens=40, seed=2, lora=adapter["first"])
        out = serve(adapted, [asks["second"], beside, asks[None], asks["first"]])
        found = texts(out)
        assert [found[0], found[2], found[3]] == [alone["second"], alone[None], alone["first"]]
    assert all(output.num_cached_tokens for output in out)


def test_more_adapters_than_places_wait(adapted, adapter, prompts):
    """Near the end of the context a request skips steps; its adapter keeps its place."""
    asks = [
        ask(prompts(LIMIT - 70), max_tokens=70, seed=1, lora=adapter["first"]),
        ask(prompts(20), max_tokens=96, seed=2, lora=adapter["second"]),
        ask(prompts(20), max_tokens=32, seed=3, lora=adapter["third"]),
    ]
    together = texts(serve(adapted, asks))
    assert together == [texts(serve(adapted, [one]))[0] for one in asks]


def test_an_adapter_that_cannot_be_served_harms_nobody(
    adapted, adapter, reference, prompts, tmp_path
):
    """Refused when it is loaded and when a request names it."""
    from vllm.exceptions import VLLMValidationError
    from vllm.lora.request import LoRARequest

    folder = write(tmp_path / "large", reference, seed=1, rank=16)
    large = LoRARequest("large", 9, str(folder))
    reason = r"LoRA adapter 'large' .*LoRA rank 16 is greater than max_lora_rank 8"
    with pytest.raises(ValueError, match=reason):
        adapted.llm_engine.add_lora(large)
    with pytest.raises(VLLMValidationError, match=reason):
        serve(adapted, [ask(prompts(9), max_tokens=5, lora=large)])
    assert serve(adapted, [ask(prompts(9), max_tokens=5, lora=adapter["first"])])
