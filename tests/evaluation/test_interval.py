"""Intervals: against published worked examples, by counting, and never of width zero."""

import numpy as np
import pytest

from diffusiongemma_vllm.evaluation.interval import Points, against, difference, share


def points(right, of=None):
    right = np.array(right, dtype=float)
    return Points(right, np.ones_like(right) if of is None else np.array(of, dtype=float))


def test_share_is_agresti_coull_with_four_added():
    """p = (x + 2) / (n + 4), p +- z sqrt(p (1 - p) / (n + 4))"""
    found = share(points([1] * 8 + [0] * 2))
    p, n = 10 / 14, 14
    half = 1.959964 * (p * (1 - p) / n) ** 0.5
    assert found.estimate == 0.8
    assert (found.low, found.high) == pytest.approx((p - half, p + half), abs=1e-6)


def test_difference_is_agresti_min():
    """Half a pair of every kind: d = (b - c) / (n + 2)"""
    b, c, n = 12, 5, 100
    ours = [1] * b + [0] * c + [1] * 60 + [0] * (n - 60 - b - c)
    theirs = [0] * b + [1] * c + [1] * 60 + [0] * (n - 60 - b - c)
    found = difference(points(ours), points(theirs))
    d = (b - c) / (n + 2)
    half = 1.959964 * ((b + c + 1) - (b - c) ** 2 / (n + 2)) ** 0.5 / (n + 2)
    assert found.estimate == pytest.approx((b - c) / n)
    assert (found.low, found.high) == pytest.approx((d - half, d + half), abs=1e-6)


def test_perfect_runs_still_have_a_width():
    perfect = points([1] * 20)
    assert share(perfect).low < 0.95 and share(perfect).high == 1
    same = difference(perfect, perfect)
    assert same.low < 0 < same.high
    assert against(perfect, 0.9).estimate == pytest.approx(0.1)


def test_draws_of_one_question_are_one_observation():
    """Ten draws that always agree tell no more than one."""
    one = points([1, 0, 1, 1, 0, 1])
    ten = points([10, 0, 10, 10, 0, 10], [10] * 6)
    assert share(ten) == share(one)


def test_coverage():
    """About 95 of 100 intervals hold the truth, for questions of unlike weight too."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        of = random.integers(1, 4, 60)
        found = share(points(random.binomial(of, 0.9), of))
        held += found.low <= 0.9 <= found.high
    assert 925 <= held <= 990


def test_runs_of_other_questions_are_not_compared():
    with pytest.raises(ValueError, match="cannot be compared"):
        difference(points([1, 0]), points([1]))
