"""Prompts with images: the engine's logits against transformers', whole, in chunks and cached."""

import pytest
from engine import Forwards, ask, chunked, scheduler, serve, texts
from pictures import noise, reference_inputs
from teacher import Teacher, lesson

from diffusiongemma_vllm.runner import spans

pytestmark = pytest.mark.engine

IMAGE, BEGIN, END = 10, 11, 12
SIZES = {1: [(90, 60)], 3: [(64, 48), (30, 200), (300, 90)], 2: [(100, 100), (100, 100)]}
BUDGETS = {1: 140, 3: 70, 2: 70}  # a budget of 140 gives more tokens than the window has
TOLERANCE = 1e-4


def prompt(count, draw):
    """Text and images in turns, as a caller sends it; two images without text between them."""
    gaps = [0] if count == 2 else [9] * (count - 1)
    tokens = draw(21)
    for k in range(count):
        tokens += [IMAGE] + (draw(gaps[k]) if k < len(gaps) else [])
    return tokens + draw(17)


def expand(tokens, counts):
    counts, long = iter(counts), []
    for token in tokens:
        long += [BEGIN, *[IMAGE] * next(counts), END] if token == IMAGE else [token]
    return long


class Seen:
    """A lesson about images and the request that asks for it."""

    def __init__(self, reference, draw, count):
        self.images = [noise(*size, seed=k) for k, size in enumerate(SIZES[count])]
        if count == 2:
            self.images[1] = self.images[0]
        self.count, self.short = count, [token if token != IMAGE else 13 for token in draw(0)]
        self.short = prompt(count, lambda n: [t if t > 13 else t + 20 for t in draw(n)])
        inputs, counts = reference_inputs(self.images, BUDGETS[count])
        self.lesson = lesson(
            reference, expand(self.short, counts), canvases=2, steps=2, seed=count, pictures=inputs
        )

    def ask(self):
        media = {
            "multi_modal_data": {"image": self.images},
            "mm_processor_kwargs": {"max_soft_tokens": BUDGETS[self.count]},
        }
        return ask(self.short, max_tokens=64, seed=self.count, media=media)


@pytest.fixture(scope="module")
def seen(reference):
    from engine import draw_prompts

    draw = draw_prompts(7)
    return {count: Seen(reference, draw, count) for count in SIZES}


@pytest.fixture
def teacher(monkeypatch, seen):
    return Teacher(monkeypatch, {count: one.lesson for count, one in seen.items()})


def check(teacher, seen, outputs):
    for one, output in zip(seen.values(), outputs, strict=True):
        assert list(output.prompt_token_ids) == one.lesson.prompt
    expected = [sum((text.tolist() for text in one.lesson.text), []) for one in seen.values()]
    assert texts(outputs) == expected
    print(f"largest error: {teacher.compare(TOLERANCE):.1e} of the largest logit")


def asks(seen):
    return [one.ask() for one in seen.values()]


def test_images(llm, teacher, seen):
    check(teacher, seen, serve(llm, asks(seen)))


def test_what_the_reference_sees_differs_without_the_mask(sync_llm, teacher, seen, monkeypatch):
    """The check above notices an image that is read causally."""
    monkeypatch.setattr(spans, "rows", lambda *args: None)
    serve(sync_llm, asks(seen))
    with pytest.raises(AssertionError, match="differ"):
        teacher.compare(TOLERANCE)


def test_in_chunks(llm, teacher, seen, monkeypatch):
    """A chunk ends before an image that it cannot hold whole."""
    forwards = Forwards(monkeypatch)
    with chunked(llm, 144):
        outputs = serve(llm, asks(seen))
    first = list(seen).index(3)
    chunks = [one.rows for one in forwards.of(str(first)) if one.kind == "P"]
    assert len(chunks) > 1 and max(chunks) <= 144, chunks
    check(teacher, seen, outputs)


def test_cached(llm, teacher, seen):
    serve(llm, asks(seen))
    teacher.teach(teacher.lessons)
    outputs = serve(llm, asks(seen))
    assert all(output.num_cached_tokens > 21 for output in outputs)
    check(teacher, seen, outputs)


def test_the_cached_part_ends_in_an_image(sync_llm, teacher, seen):
    """The same start and image, then other text: the rest of the image sees its beginning."""
    whole = seen[1].ask()
    where = whole.prompt.index(IMAGE)
    serve(sync_llm, [whole._replace(prompt=whole.prompt[: where + 1] + [50] * 3)])
    teacher.teach({1: seen[1].lesson})
    outputs = serve(sync_llm, [whole])
    begin = seen[1].lesson.prompt.index(IMAGE)
    end = seen[1].lesson.prompt.index(END)
    # blocks of 16 up to the window of 64 tokens behind the image's beginning
    assert begin < outputs[0].num_cached_tokens <= begin + 63 < end - 16
    check(teacher, {1: seen[1]}, outputs)


def test_preempted(sync_llm, teacher, seen):
    """Prompts and committed text are read again, the images from vLLM's encoder cache."""
    found, restarted = scheduler(sync_llm), []

    def restart(step, outputs):
        committed = [one for one in found.running if one.num_output_tokens]
        if committed and not restarted:
            restarted.extend(one.request_id for one in committed)
            assert found.reset_prefix_cache(reset_running_requests=True)

    outputs = serve(sync_llm, asks(seen), restart)
    assert restarted
    check(teacher, seen, outputs)


def test_equal_images_are_encoded_once(sync_llm, seen, monkeypatch):
    from diffusiongemma_vllm.model.vision import Vision

    encoded, forward = [], Vision.forward
    monkeypatch.setattr(
        Vision, "forward",
        lambda self, pictures: encoded.append(len(pictures)) or forward(self, pictures),
    )
    two = seen[2].ask()
    sync_llm.llm_engine.reset_encoder_cache()
    serve(sync_llm, [two])
    assert encoded == [1]
    sync_llm.llm_engine.reset_prefix_cache()
    serve(sync_llm, [two])
    assert encoded == [1], "vLLM's encoder cache keeps it"


def test_a_request_that_says_how_to_show_images(sync_llm, seen):
    from vllm.exceptions import VLLMValidationError

    one = seen[1].ask()
    for wrong, said in (
        ({"max_soft_tokens": 100}, "must be one of 70, 140, 280, 560, 1120"),
        ({"size": 3}, "'size' is unknown"),
    ):
        bad = one._replace(media=one.media | {"mm_processor_kwargs": wrong})
        with pytest.raises(VLLMValidationError, match=said):
            serve(sync_llm, [bad])
    # 1,120 tokens are 33 rows of soft tokens, and the tower has positions for 21
    large = one._replace(media=one.media | {"mm_processor_kwargs": {"max_soft_tokens": 1120}})
    with pytest.raises(VLLMValidationError, match="more than the checkpoint's 64"):
        serve(sync_llm, [large])
