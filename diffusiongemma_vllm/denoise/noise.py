"""Where the random numbers of a request come from.

Every draw is a pure function of (seed, position in the sequence, step, purpose), so it does not
depend on the batch, on the order of requests or on when a canvas is denoised again.
"""

from __future__ import annotations

import torch
from torch import Tensor

SAMPLE, CANVAS = 0, 1
STEP_BITS = 14


def rolled(step: Tensor, roll: Tensor) -> Tensor:
    """The step to count for a canvas that was drawn ``roll`` [N] times before: noise of its own.

    step: [N] i64, below 2^14.  roll: below 2^5.
    """
    return step | (roll << STEP_BITS)


def counters(base: Tensor, step: Tensor, length: int, purpose: int) -> Tensor:
    """The counter of each position of N canvases.

    base: [N] i64, position of the first token.  step: [N] i64, below 2^19  ->  [N, length] i64
    """
    position = base[:, None] + torch.arange(length, device=base.device)
    return (position << 20) | (step[:, None] << 1) | purpose
