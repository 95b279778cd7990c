"""``mm_processor_kwargs``: what is known, and the sentence for what is not."""

import pytest

from diffusiongemma_vllm.media.options import BUDGETS, ImageOptions, MediaOptions, VideoOptions

SERVED = MediaOptions(ImageOptions(280))


def test_nothing_given():
    assert SERVED.changed(None) == SERVED == SERVED.changed({})


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_budget_is_for_images(budget):
    want = MediaOptions(ImageOptions(budget))
    assert SERVED.changed({"max_soft_tokens": budget}) == want
    assert SERVED.changed({"images_kwargs": {"max_soft_tokens": budget}}) == want


def test_videos():
    given = {"videos_kwargs": {"max_soft_tokens": 140, "fps": 2, "num_frames": 90,
                               "longer": "spread"}}
    assert SERVED.changed(given).video == VideoOptions(140, 2, 90, "spread")
    assert SERVED.changed(given).changed({"videos_kwargs": {"fps": 0.5}}).video == VideoOptions(
        140, 0.5, 90, "spread"
    )


@pytest.mark.parametrize(("given", "said"), [
    ({"max_soft_tokens": 100}, "max_soft_tokens must be one of 70, 140, 280, 560, 1120, got 100"),
    ({"max_soft_tokens": 280.0}, "must be one of"),
    ({"max_soft_tokens": True}, "must be one of"),
    ({"max_soft_tokens": "280"}, "must be one of"),
    ({"max_soft_tokens": None}, "must be one of"),
    ({"size": 3}, "'size' is unknown; known are max_soft_tokens"),
    ({"images_kwargs": {"do_resize": False}}, "images_kwargs 'do_resize' is unknown"),
    ({"images_kwargs": 3}, "images_kwargs must be an object, got 3"),
    ({"videos_kwargs": {"fps": 0}}, "videos_kwargs fps must be above 0 and at most 30"),
    ({"videos_kwargs": {"fps": float("nan")}}, "fps must be above 0"),
    ({"videos_kwargs": {"fps": 31}}, "fps must be above 0"),
    ({"videos_kwargs": {"num_frames": 0}}, "num_frames must be a whole number from 1 to 468"),
    ({"videos_kwargs": {"num_frames": 3.0}}, "num_frames must be a whole number"),
    ({"videos_kwargs": {"longer": "cut"}}, "longer must be 'refuse' or 'spread', got 'cut'"),
    ({"videos_kwargs": {"max_soft_tokens": 1120}}, "is more than the 32768 tokens"),
], ids=str)
def test_refused(given, said):
    with pytest.raises(ValueError, match=said):
        SERVED.changed(given)
