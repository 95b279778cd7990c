"""Patches, positions and padding against transformers' PIL processor."""

import numpy as np
import pytest
from pictures import noise, processed

from diffusiongemma_vllm.media.limits import MediaError
from diffusiongemma_vllm.media.options import BUDGETS
from diffusiongemma_vllm.media.pixels import Tiling, grid, patches, positions

TILING = Tiling()
SIZES = [
    (640, 480), (1920, 1080), (1024, 1024), (224, 224), (1000, 100), (100, 1000), (1, 1), (17, 31),
    (3, 900), (2000, 5),
]  # width, height
# height x width, then the target and its tokens, as the real model's processor gives them
PUBLISHED = {
    70: ((480, 640, 336, 432), (1080, 1920, 288, 528), (224, 224, 384, 384), (100, 1000, 96, 1248)),
    280: ((480, 640, 672, 912), (1080, 1920, 576, 1056), (1024, 1024, 768, 768)),
    1120: ((480, 640, 1344, 1824), (1080, 1920, 1200, 2112), (100, 1000, 480, 5040)),
}


@pytest.mark.parametrize("tokens", BUDGETS)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_equal_to_transformers(size, tokens):
    image = noise(*size)
    want = processed([image], tokens)
    got = patches(image, tokens, TILING)
    count = got.rows * got.columns
    assert int(np.asarray(want["num_soft_tokens_per_image"]).item()) == count
    values, where = want["pixel_values"][0].numpy(), np.asarray(want["image_position_ids"])[0]
    used = count * TILING.pool**2
    assert np.abs(values[:used] - got.values / 255).max() <= 1e-5
    assert (where[:used] == positions(got.rows, got.columns, TILING.pool)).all()
    # The rest is padding, which our tower never sees.
    assert not values[used:].any() and (where[used:] == -1).all()


@pytest.mark.parametrize("tokens", PUBLISHED)
def test_published_sizes(tokens):
    for height, width, tall, wide in PUBLISHED[tokens]:
        assert grid(height, width, tokens, TILING) == (tall // 48, wide // 48)


def test_a_picture_longer_than_the_position_table():
    small = Tiling(positions=64)
    assert grid(100, 100, 280, small) == (16, 16)
    with pytest.raises(MediaError, match="210 patches along a side, more than the checkpoint's 64"):
        grid(1, 5000, 70, small)


def test_other_tilings():
    tiling = Tiling(patch=8, pool=2, positions=1000)
    cut = patches(noise(50, 30), 70, tiling)
    assert cut.values.shape == (cut.rows * cut.columns * 4, 8 * 8 * 3)
    assert cut.rows * cut.columns <= 70
