"""What one step tells the next."""

import torch
from torch.testing import assert_close

from diffusiongemma_kernels.row_probs.op import row_probs
from diffusiongemma_vllm.denoise.soft_embed import soft_embed

WEIGHT = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 4.0]])


def test_a_certain_token_is_its_embedding():
    assert soft_embed(torch.tensor([[0.0, 0.0, 1.0]]), WEIGHT, 2.0).tolist() == [[8.0, 8.0]]


def test_in_doubt_it_is_the_mean():
    assert soft_embed(torch.tensor([[0.5, 0.25, 0.25]]), WEIGHT, 1.0).tolist() == [[1.5, 1.25]]


def test_of_logits_it_is_the_references():
    """softmax of the logits that the temperature has divided, in fp32, then the embedding."""
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 3
    heat = torch.tensor([0.8, 0.7, 0.6, 0.5, 0.4])
    scaled = logits / heat[:, None]
    probs = row_probs(logits, heat, scaled.logsumexp(-1), dtype=torch.float32)
    want = (scaled.softmax(-1) @ WEIGHT) * 8.0
    assert_close(soft_embed(probs, WEIGHT, 8.0), want, rtol=1e-5, atol=1e-5)
