"""Operations on rows of logits.  Probabilities 1/2, 1/4, 1/8, 1/8, in some order."""

import pytest
import torch
from torch.testing import assert_close

from diffusiongemma_vllm.denoise.rows import MinP, Softcap, Temperature, TopK, TopP, run

LOGITS = torch.tensor([[0.125, 0.5, 0.125, 0.25]]).log()
INF = float("inf")


def kept(logits):
    return torch.isfinite(logits).int().tolist()


def test_softcap():
    z = torch.tensor([[0.0, 1e9, -1e9]])
    assert_close(Softcap(30.0)(z), torch.tensor([[0.0, 30.0, -30.0]]))


def test_temperature_is_each_rows_own():
    got = Temperature(torch.tensor([0.5, 2.0]))(torch.tensor([[1.0, 3.0], [1.0, 3.0]]))
    assert got.tolist() == [[2.0, 6.0], [0.5, 1.5]]


@pytest.mark.parametrize(
    ("k", "want"),
    [
        (1, [0, 1, 0, 0]), (2, [0, 1, 0, 1]), (3, [1, 1, 1, 1]), (4, [1, 1, 1, 1]),
        (99, [1, 1, 1, 1]),
    ],
)
def test_top_k(k, want):
    """With 3 the two least likely tie, and both are kept."""
    assert kept(TopK(k)(LOGITS)) == [want]


@pytest.mark.parametrize(
    ("p", "want"),
    [
        (0.0, [0, 1, 0, 0]), (0.4, [0, 1, 0, 0]), (0.5, [0, 1, 0, 0]), (0.51, [0, 1, 0, 1]),
        (0.75, [0, 1, 0, 1]), (0.8, [1, 1, 0, 1]), (0.9, [1, 1, 1, 1]), (1.0, [1, 1, 1, 1]),
    ],
)
def test_top_p(p, want):
    """The smallest set that reaches p, at least one token; ties by position."""
    logits = torch.tensor([[1.0, 4.0, 1.0, 2.0]]).log()  # sums of powers of two: exact
    assert kept(TopP(p)(logits)) == [want]


def test_what_is_kept_is_not_changed():
    for op in (TopK(2), TopP(0.6)):
        got = op(LOGITS)
        assert torch.equal(got[torch.isfinite(got)], LOGITS[0, [1, 3]])


@pytest.mark.parametrize(
    ("p", "want"), [(0.2, [1, 1, 1, 1]), (0.3, [0, 1, 0, 1]), (1.0, [0, 1, 0, 0])]
)
def test_min_p(p, want):
    """In shares of the likeliest: 1/4, 1, 1/4, 1/2."""
    logits = torch.tensor([[1.0, 4.0, 1.0, 2.0]]).log()
    assert kept(MinP(p)(logits)) == [want]


def test_top_p_of_what_top_k_left():
    """In this order: 1/2 and 1/4 left of four, renormalised 2/3 and 1/3."""
    ops = (TopK(2), TopP(0.6))
    assert kept(run(ops, LOGITS)) == [[0, 1, 0, 0]]


def test_forbidden_tokens_stay_forbidden():
    logits = torch.tensor([[-INF, 0.0, -INF, 0.0]])
    ops = (TopK(3), TopP(0.99))
    assert kept(run(ops, logits)) == [[0, 1, 0, 1]]


def test_no_operation():
    assert run((), LOGITS) is LOGITS
