"""The frames of a video that are shown, however they were decoded."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusiongemma_vllm.media.limits import MediaError
from diffusiongemma_vllm.media.pixels import Patches


class Clip(NamedTuple):
    """The frames of a video that are shown.

    values: [F, P, patch * patch * 3] u8, as ``Patches``.  seconds: [F] whole seconds from the
    start.  rows, columns: of soft tokens, in every frame.
    """

    values: NDArray[np.uint8]
    seconds: tuple[int, ...]
    rows: int
    columns: int


class Frames:
    """Room for the frames of a video, all of one size."""

    def __init__(self, room: int, first: Patches) -> None:
        self.values = np.empty((room, *first.values.shape), np.uint8)
        self.rows, self.columns, self.count = first.rows, first.columns, 0

    def add(self, cut: Patches) -> None:
        """Raises MediaError for a frame of another size."""
        if (cut.rows, cut.columns) != (self.rows, self.columns):
            raise MediaError("the video changes its size on the way; encode it again")
        self.values[self.count] = cut.values
        self.count += 1
