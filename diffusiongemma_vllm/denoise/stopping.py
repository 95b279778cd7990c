"""When a canvas is finished.  Source: transformers' ``StableAndConfidentStoppingCriteria``.

The number in a rule is one for all canvases, or one of every canvas: [N].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Trace:
    """What the stopping rules may look at, for N canvases.

    held: [N] i64, steps in a row that kept the best guess.  step: [N] i64, steps done, this one
    included.  mean_entropy: [N] f32, nats, over the positions that exist.
    """

    held: Tensor
    step: Tensor
    mean_entropy: Tensor


Rule = Callable[[Trace], Tensor]


@dataclass(frozen=True)
class Settled:
    """Stop once the best guess has held still for ``steps`` steps."""

    steps: int | Tensor

    def __call__(self, trace: Trace) -> Tensor:
        return trace.held >= self.steps


@dataclass(frozen=True)
class Confident:
    """Stop once the mean entropy is below ``threshold`` nats."""

    threshold: float | Tensor

    def __call__(self, trace: Trace) -> Tensor:
        return trace.mean_entropy < self.threshold


@dataclass(frozen=True)
class StepLimit:
    """Stop after ``steps`` steps."""

    steps: int | Tensor

    def __call__(self, trace: Trace) -> Tensor:
        return trace.step >= self.steps


@dataclass(frozen=True)
class All:
    """Stop once every rule says so."""

    rules: tuple[Rule, ...]

    def __call__(self, trace: Trace) -> Tensor:
        verdict = self.rules[0](trace)
        for rule in self.rules[1:]:
            verdict = verdict & rule(trace)
        return verdict


@dataclass(frozen=True)
class Either:
    """Stop once any rule says so."""

    rules: tuple[Rule, ...]

    def __call__(self, trace: Trace) -> Tensor:
        verdict = self.rules[0](trace)
        for rule in self.rules[1:]:
            verdict = verdict | rule(trace)
        return verdict
