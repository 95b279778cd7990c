"""How often each expert is chosen, counted in one of several forwards."""

import pytest
import torch

pytest.importorskip("vllm")

from diffusiongemma_kernels.route.op import route
from diffusiongemma_vllm.model.load import EVERY, ExpertLoad


@pytest.fixture
def load(ours):
    return ExpertLoad(ours)


def forward(ours, rows):
    """The experts that every layer chooses: [L, T, 2]"""
    chosen = []
    for layer in ours.model.layers:
        _, ids = route(layer.router(rows), 2, layer.router.per_expert_scale)
        chosen.append(ids)
    return torch.stack(chosen)


def test_rows_of_every_expert_in_every_layer(ours, load, rows):
    load.prepare(len(rows))
    chosen = forward(ours, rows)
    counted = load.take()
    assert counted.tolist() == [torch.bincount(ids.flatten(), minlength=8).tolist()
                                for ids in chosen]
    assert counted.sum(1).tolist() == [2 * len(rows)] * len(ours.model.layers)
    assert load.take() is None
    forward(ours, rows)
    assert load.take() is None


def test_one_forward_in_so_many(ours, load):
    counted = []
    for _ in range(2 * EVERY):
        counted.append(load.prepare(100))
        assert (load.take() is not None) == counted[-1]
    assert counted == ([True] + [False] * (EVERY - 1)) * 2


def test_few_rows_say_nothing(load):
    assert not load.prepare(7)  # fewer than the experts
    assert load.take() is None
    assert load.prepare(8)
    assert load.take() is not None


def test_a_forward_that_was_not_asked_of_is_forgotten(ours, load, rows):
    load.prepare(8)
    forward(ours, rows)
    load.prepare(8)
    assert load.take() is None
