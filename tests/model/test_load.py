"""How often each expert is chosen, counted in one of several forwards."""

import pytest
import torch

pytest.importorskip("vllm")

from diffusiongemma_kernels.route.op import route
from diffusiongemma_vllm.model.load import EVERY, PROMPTS, ExpertLoad


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
        load.prepare(100)
        counted.append(load.take() is not None)
    assert counted == ([True] + [False] * (EVERY - 1)) * 2


def test_few_rows_say_nothing(load):
    load.prepare(7)  # fewer than the experts
    assert load.take() is None
    load.prepare(8)
    assert load.take() is not None


def test_one_prompt_in_so_many_leaves_its_graph(ours, load):
    load.prepare(100)  # the turn of a forward outside of graphs has just been
    left = []
    for _ in range(2 * PROMPTS):
        assert not load.due(7)
        left.append(load.due(100))
        if left[-1]:
            load.prepare(100)
            assert load.take() is not None
    assert left == ([True] + [False] * (PROMPTS - 1)) * 2


def test_a_forward_that_was_not_asked_of_is_forgotten(ours, load, rows):
    load.prepare(8)
    forward(ours, rows)
    load.prepare(8)
    assert load.take() is None
