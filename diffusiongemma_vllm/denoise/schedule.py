"""How hot a denoise step is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LinearSchedule:
    """Temperature falls in a line from t_max at the first step towards t_min after the last.

    Source: transformers' ``LinearTemperatureScheduleLogitsProcessor``, whose ``cur_step`` counts
    the steps that remain.
    """

    t_min: float
    t_max: float
    max_steps: int

    def __call__(self, step: Tensor) -> Tensor:
        """step: [N] i64, steps already done  ->  [N] f32"""
        remaining = (self.max_steps - step).float()
        return self.t_min + (self.t_max - self.t_min) * (remaining / self.max_steps)
