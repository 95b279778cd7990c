"""The rows of a batch's canvases as if all were whole."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def whole(hidden: Tensor, widths: np.ndarray, length: int) -> Tensor:
    """[R, H], canvases of ``widths`` rows  ->  [N * C, H], canvases short of ``length`` padded."""
    if (widths == length).all():
        return hidden
    ends = np.cumsum(widths)
    padded = hidden.new_zeros(len(widths) * length, hidden.shape[1])
    for i, (width, end) in enumerate(zip(widths.tolist(), ends.tolist(), strict=True)):
        padded[i * length : i * length + width] = hidden[end - width : end]
    return padded
