"""Router and experts against transformers, and by hand."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from diffusiongemma_kernels.norms.reference import rms
from diffusiongemma_kernels.route.op import route
from diffusiongemma_vllm.model.moe import EXPERT_TILE, TorchExperts
from diffusiongemma_vllm.model.ranks import Ranks
from diffusiongemma_vllm.model.share import Share

LAYER = 1
CLOSE = dict(rtol=1e-5, atol=1e-5)


def scores_of(router, rows):
    return router(rms(rows, router.scale, 1e-6) * rows.shape[1] ** -0.5)


def test_route_by_hand():
    """Probabilities 1/2, 1/4, 1/8, 1/8: the best two become 2/3 and 1/3, then are scaled."""
    scores = torch.tensor([[0.5, 0.125, 0.25, 0.125]]).log()
    weights, ids = route(scores, 2, torch.tensor([3.0, 1.0, 6.0, 1.0]))
    assert ids.tolist() == [[0, 2]] and ids.dtype == torch.int32
    assert_close(weights, torch.tensor([[2.0, 2.0]]))


def test_route_does_not_renormalise_after_the_expert_scale():
    weights, _ = route(torch.zeros(1, 4), 2, torch.full((4,), 0.5))
    assert_close(weights.sum(), torch.tensor(0.5))


def test_router_is_the_references(ours, theirs, rows):
    """Its own norm without a weight, a scale per channel, 1 / sqrt(H), a scale per expert."""
    router, other = ours.model.layers[LAYER].router, theirs.model.decoder.layers[LAYER].router
    probabilities, want_weights, want_ids = other(rows)
    scores = scores_of(router, rows)
    assert_close(scores.softmax(-1), probabilities, **CLOSE)
    weights, ids = route(scores, 2, router.per_expert_scale)
    assert torch.equal(ids.long(), want_ids)
    assert_close(weights, want_weights, **CLOSE)
    assert not torch.allclose(router.scale, torch.ones(64))
    assert not torch.allclose(router.per_expert_scale, torch.ones(8))


def test_router_ignores_the_length_of_a_row(ours, rows):
    router = ours.model.layers[LAYER].router
    assert_close(scores_of(router, rows), scores_of(router, rows * 100), rtol=1e-4, atol=1e-4)


def test_experts_are_the_references(ours, theirs, rows):
    layer, other = ours.model.layers[LAYER], theirs.model.decoder.layers[LAYER]
    _, weights, ids = other.router(rows)
    want = other.experts(rows, ids, weights)
    assert_close(layer.experts(rows, scores_of(layer.router, rows)), want, **CLOSE)


def test_one_expert_by_hand():
    """gelu(gate) * up, down; the gate is the first half of the fused rows."""
    config = SimpleNamespace(num_experts=2, hidden_size=1, moe_intermediate_size=1, top_k_experts=1)
    router = SimpleNamespace(per_expert_scale=torch.tensor([1.0, 2.0]))
    experts = TorchExperts(config, router, Share.of(config, Ranks()))
    experts.gate_up_proj.copy_(torch.tensor([[[0.0], [1.0]], [[10.0], [3.0]]]))
    experts.down_proj.copy_(torch.tensor([[[1.0]], [[5.0]]]))
    scores = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    out = experts(torch.tensor([[1.0], [1.0]]), scores)
    # Row 0 takes expert 1: gelu(10) = 10, times 3, times 5, times its scale 2; row 1: gelu(0) = 0.
    assert_close(out, torch.tensor([[300.0], [0.0]]))


@pytest.mark.parametrize("count", [1, 3, EXPERT_TILE, EXPERT_TILE + 1, 70])
def test_a_row_does_not_depend_on_the_others(ours, rows, count):
    layer = ours.model.layers[LAYER]
    scores = layer.router(rows)
    whole = layer.experts(rows, scores)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(count))[:count]
    assert torch.equal(layer.experts(rows[order], scores[order]), whole[order])


def test_no_rows(ours):
    layer = ours.model.layers[LAYER]
    assert layer.experts(torch.empty(0, 64), torch.empty(0, 8)).shape == (0, 64)
