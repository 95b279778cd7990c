"""Shares and differences of shares, with confidence intervals that never have width zero."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054  # of the standard normal distribution, both sides


@dataclass(frozen=True)
class Points:
    """right, of: [Q] f64, points got and to get at each question, over all its draws."""

    right: NDArray[np.float64]
    of: NDArray[np.float64]

    @property
    def share(self) -> float:
        return float(self.right.sum() / self.of.sum())

    def values(self) -> NDArray[np.float64]:
        """[Q] f64 whose mean is the share and whose variance is that of a ratio (linearised).

        Draws of one question depend on each other, so the question is the unit.
        """
        share = self.share
        return share + (self.right - share * self.of) / self.of.mean()


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % confidence interval, as shares (0..1, differences -1..1)."""

    estimate: float
    low: float
    high: float


def share(points: Points) -> Interval:
    """Two successes and two failures are added (Agresti and Coull 1998)."""
    values = points.values()
    low, high = _around(values, added=4, total=2.0, squares=2.0)
    return Interval(points.share, max(low, 0.0), min(high, 1.0))


def against(points: Points, published: float) -> Interval:
    """Our share minus a published one that is taken as exact: its own error is not known."""
    ours = share(points)
    return Interval(ours.estimate - published, ours.low - published, ours.high - published)


def difference(ours: Points, theirs: Points) -> Interval:
    """Of two runs over the same questions: half a pair of every kind is added (Agresti and Min
    2005).

    Raises:
        ValueError: where they are not the same questions.
    """
    if ours.of.shape != theirs.of.shape:
        raise ValueError(
            f"runs of {ours.of.size} and {theirs.of.size} questions cannot be compared"
        )
    paired = ours.values() - theirs.values()
    low, high = _around(paired, added=2, total=0.0, squares=1.0)
    return Interval(ours.share - theirs.share, max(low, -1.0), min(high, 1.0))


def _around(
    values: NDArray[np.float64], added: int, total: float, squares: float
) -> tuple[float, float]:
    """Ends of the interval with so many more observations, of that sum and sum of squares."""
    count = values.size + added
    mean = (values.sum() + total) / count
    variance = ((values**2).sum() + squares) / count - mean**2
    half = Z95 * float(np.sqrt(max(variance, 0.0) / count))
    return float(mean) - half, float(mean) + half
