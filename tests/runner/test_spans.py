"""Where pictures stand: runs, whole chunks, cached parts and the rows of a step."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

from diffusiongemma_kernels.paged import NO_IMAGE
from diffusiongemma_vllm.runner import spans


def feature(offset, shown):
    """shown: a letter a token, x where it is one of a picture."""
    mask = torch.tensor([letter == "x" for letter in shown])
    return MultiModalFeatureSpec(None, "image", "i", PlaceholderRange(offset, len(shown), mask))


# an image of 4 tokens at 11..14, a video of two frames of 3 at 21..23 and 28..30
FEATURES = [feature(10, ".xxxx."), feature(20, ".xxx....xxx.")]


def test_runs():
    assert list(spans.runs(FEATURES, 0, 99)) == [(11, 15), (21, 24), (28, 31)]
    assert list(spans.runs(FEATURES, 14, 22)) == [(11, 15), (21, 24)]
    assert list(spans.runs(FEATURES, 15, 21)) == []
    assert list(spans.runs([], 0, 9)) == []
    assert spans.longest(FEATURES) == 4 and spans.longest([]) == 0


@pytest.mark.parametrize(("start", "count", "left", "why"), [
    (0, 40, 40, "all of them"),
    (0, 11, 11, "up to an image"),
    (0, 12, 11, "one token of an image"),
    (0, 15, 15, "up to its end"),
    (11, 3, 0, "an image at the start that is too long"),
    (11, 4, 4, "an image at the start"),
    (13, 1, 0, "the rest of an image, not whole"),
    (13, 2, 2, "the rest of an image"),
    (15, 8, 6, "between two pictures and into the next"),
    (15, 10, 10, "between two frames of a video"),
    (24, 6, 4, "into its second frame"),
    (40, 9, 9, "behind them all"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_whole(start, count, left, why):
    assert spans.whole(FEATURES, start, count) == left


def test_reach():
    long = [feature(10, "." + "x" * 50 + ".")]  # 11..60
    assert spans.reach(long, 5, 8) is None
    assert spans.reach(long, 11, 8) is None, "up to its first token"
    assert spans.reach(long, 18, 8) is None, "its beginning is in the window of 7 before"
    assert spans.reach(long, 19, 8) == 18
    assert spans.reach(long, 60, 8) == 18
    assert spans.reach(long, 61, 8) is None, "all of it"


def batch(requests):
    """requests: (name, computed, scheduled, prompt)"""
    counts = [scheduled for _, _, scheduled, _ in requests]
    return SimpleNamespace(
        req_ids=[name for name, *_ in requests], num_tokens=sum(counts),
        num_computed_tokens_np=np.array([computed for _, computed, *_ in requests]),
        num_scheduled_tokens=np.array(counts),
        is_prefilling_np=np.array([computed < prompt for _, computed, _, prompt in requests]),
        query_start_loc_np=np.array([0, *np.cumsum(counts)]),
    )


def test_rows():
    step = batch([("text", 0, 5, 5), ("seen", 8, 8, 40), ("canvas", 40, 3, 40)])
    table = spans.rows(step, {"seen": FEATURES, "canvas": FEATURES, "text": []}, "cpu")
    assert table.dtype == torch.int32 and table.shape == (16, 2)
    none = list(NO_IMAGE)
    # the second request's rows are positions 8..15
    assert table.tolist() == [none] * 8 + [[11, 15]] * 4 + [none] * 4
    rest = spans.rows(batch([("seen", 13, 4, 40)]), {"seen": FEATURES}, "cpu")
    assert rest.tolist() == [[11, 15]] * 2 + [none] * 2


def test_a_batch_of_text_makes_no_table():
    assert spans.rows(batch([("text", 0, 5, 5)]), {"text": []}, "cpu") is None
    assert spans.rows(batch([("seen", 40, 9, 40)]), {"seen": FEATURES}, "cpu") is None
    assert spans.rows(batch([("seen", 0, 9, 40)]), {"seen": FEATURES}, "cpu") is None
    assert spans.pictured(batch([("seen", 40, 9, 40), ("seen", 3, 9, 40)]), {"seen": FEATURES}) == [
        1
    ]


def test_a_cut_picture_is_a_bug():
    with pytest.raises(AssertionError, match="whole"):
        spans.rows(batch([("seen", 8, 5, 40)]), {"seen": FEATURES}, "cpu")
