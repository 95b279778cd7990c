"""How hot a denoise step is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LinearSchedule:
    """Temperature falls in a line from t_max at the first step towards t_min after the last.

    Source: transformers' ``LinearTemperatureScheduleLogitsProcessor``, whose ``cur_step`` counts
    the steps that remain.  Each field is a number, or one of every canvas: [N].
    """

    t_min: float | Tensor
    t_max: float | Tensor
    max_steps: int | Tensor

    def __call__(self, step: Tensor) -> Tensor:
        """step: [N] i64, steps already done  ->  [N] f32"""
        remaining = (self.max_steps - step).float()
        span = self.t_max - self.t_min
        return _single(self.t_min) + _single(span) * (remaining / self.max_steps)


def _single(value: float | Tensor) -> float | Tensor:
    """Tensors are f64, so that their differences round as a number's do."""
    return value.float() if isinstance(value, Tensor) else value
