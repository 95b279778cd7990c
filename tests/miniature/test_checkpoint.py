"""The shipped checkpoint answers held-out prompts through transformers' generate()."""

import json

import pytest
import torch
from data import CHECKPOINT, SCORED, heldout
from evaluate import Generator

LIMIT = 9_000_000


@pytest.fixture(scope="module")
def generate():
    torch.set_num_threads(2)
    return Generator(str(CHECKPOINT))


def chosen():
    """The first two held-out examples of each task; test_engine.py asks all of them."""
    examples = heldout(200)
    return [e for task in SCORED for e in [e for e in examples if e.task == task][:2]]


def test_the_file_is_small_and_says_what_it_is():
    assert (CHECKPOINT / "model.safetensors").stat().st_size <= LIMIT
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert config["architectures"] == ["DiffusionGemmaForBlockDiffusion"]
    assert config["canvas_length"] == 256


@pytest.mark.parametrize("example", chosen(), ids=lambda e: e.task)
def test_heldout_prompts_are_answered_exactly(generate, example):
    assert generate(example) == example.answer
