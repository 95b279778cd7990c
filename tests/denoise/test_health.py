"""Canvases with NaN or Inf in them, and no others, are found."""

import pytest
import torch

from diffusiongemma_vllm.denoise.health import health


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_number_is_enough(dtype, value):
    hidden = torch.randn(4, 8, 16).to(dtype)
    assert (health(hidden) == 0).all()
    hidden[1, 7, 3] = value
    assert health(hidden).isnan().tolist() == [False, True, False, False]


def test_large_numbers_are_well():
    assert health(torch.full((1, 256, 2816), 3e4, dtype=torch.bfloat16)).tolist() == [0.0]
