"""The choice of experts by Triton and on the CPU against softmax, top-k and a sum."""

import pytest
import torch

from diffusiongemma_kernels.route import op, reference

CASES = [(0, 8, 2), (1, 8, 8), (17, 7, 3), (33, 128, 8)]  # tokens, experts, top_k
FUNCTIONS = [op.route_triton, op.route_torch]


def make(tokens: int, experts: int, device: str):
    make = torch.Generator().manual_seed(tokens)
    scores = torch.randn(tokens, experts + 3, generator=make)[:, :experts] * 4  # rows lie apart
    return scores.to(device), (torch.rand(experts, generator=make) + 0.5).to(device)


def check(function, tokens: int, experts: int, top_k: int, device: str) -> None:
    scores, scale = make(tokens, experts, device)
    weights, ids = function(scores, top_k, scale)
    p = scores.double().softmax(-1)
    assert ids.dtype == torch.int32
    best = p.sort(-1, descending=True)
    assert torch.equal(ids.long(), best.indices[:, :top_k])
    want = best.values[:, :top_k]
    want = want / want.sum(-1, keepdim=True) * scale.double()[ids.long()]
    torch.testing.assert_close(weights.double(), want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("tokens, experts, top_k", CASES)
def test_route(function, tokens: int, experts: int, top_k: int, device: str) -> None:
    if function is op.route_torch:
        device = "cpu"
    check(function, tokens, experts, top_k, device)


def test_scores_of_bf16_and_far_apart(device: str) -> None:
    """Weights that underflow are zeros; no expert is chosen twice."""
    scores = torch.tensor([[0.0, -300.0, -300.0, 5.0, -1000.0]], device=device).bfloat16()
    weights, ids = op.route_triton(scores, 4, torch.ones(5, device=device))
    assert sorted(ids[0].tolist()) == [0, 1, 2, 3]
    want, _ = reference.route(scores, 4, torch.ones(5, device=device))
    torch.testing.assert_close(weights, want)


@pytest.mark.gpu
def test_real_shape() -> None:
    for tokens in (1, 2048):
        check(op.route_triton, tokens, 128, 8, "cuda")
