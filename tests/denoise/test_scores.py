"""Log-probabilities.  Probabilities 1/8, 1/2, 1/8, 1/4 at both positions."""

import pytest
import torch
from torch.testing import assert_close

from diffusiongemma_vllm.denoise.scores import score

PROBS = torch.tensor([[0.125, 0.5, 0.125, 0.25]] * 2)
LOGITS = PROBS.log() + 3
WRITTEN = torch.tensor([1, 3])


@pytest.mark.parametrize(("likely", "tokens"), [(0, []), (1, [1]), (2, [1, 3])])
def test_the_likeliest(likely, tokens):
    got = score(LOGITS, WRITTEN, likely=likely, ids=None, normalized=True)
    assert got.tokens.tolist() == [[1, *tokens], [3, *tokens]]
    assert_close(got.values.exp(), PROBS.gather(1, got.tokens))
    assert got.ranks.tolist() == [1, 2]


def test_all():
    got = score(LOGITS, WRITTEN, likely=-1, ids=None, normalized=True)
    assert got.tokens.shape == (2, 5)


def test_tokens_asked_for():
    got = score(LOGITS, WRITTEN, likely=2, ids=torch.tensor([2, 0]), normalized=False)
    assert got.tokens.tolist() == [[1, 2, 0], [3, 2, 0]]
    assert_close(got.values, LOGITS.gather(1, got.tokens))
