"""The shipped checkpoint answers held-out prompts through transformers' generate()."""

import json

import pytest
import torch
from data import CHECKPOINT, heldout
from evaluate import Generator
from loader import rows

LIMIT = 9_000_000


@pytest.fixture(scope="module")
def generate():
    torch.set_num_threads(2)
    return Generator(str(CHECKPOINT))


def chosen():
    """16 examples: the first of every task, a three-canvas count, then more in turn."""
    examples = heldout(200)
    long = next(e for e in examples if len(list(rows(e))) == 3)
    return [long, *[e for e in examples if e is not long][:15]]


def test_the_file_is_small_and_says_what_it_is():
    assert (CHECKPOINT / "model.safetensors").stat().st_size <= LIMIT
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert config["architectures"] == ["DiffusionGemmaForBlockDiffusion"]
    assert config["canvas_length"] == 256


@pytest.mark.parametrize("example", chosen(), ids=lambda e: e.task)
def test_heldout_prompts_are_answered_exactly(generate, example):
    assert generate(example) == example.answer
