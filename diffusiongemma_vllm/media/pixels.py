"""From a picture to the patches that the vision tower reads.

Source: transformers' ``Gemma4ImageProcessorPil``.  Patches stay bytes: the tower divides by 255.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusiongemma_vllm.media.limits import MediaError


class Tiling(NamedTuple):
    """How a tower cuts pictures: ``pool`` x ``pool`` patches of ``patch`` pixels make a token."""

    patch: int = 16
    pool: int = 3
    positions: int = 10240  # rows of the position table, for patches along one side

    @property
    def side(self) -> int:
        """Pixels along a soft token."""
        return self.patch * self.pool


class Patches(NamedTuple):
    """values: [P, patch * patch * 3] u8, row by row of patches, each by row, column and colour.

    rows, columns: of soft tokens.
    """

    values: NDArray[np.uint8]
    rows: int
    columns: int


def grid(height: int, width: int, tokens: int, tiling: Tiling) -> tuple[int, int]:
    """Rows and columns of soft tokens: the most that keep the aspect ratio, at most ``tokens``.

    Small pictures are enlarged.

    Raises:
        MediaError: where a side has more patches than the tower has positions.
    """
    factor = math.sqrt(tokens * tiling.side**2 / (height * width))
    rows = math.floor(factor * height / tiling.side)
    columns = math.floor(factor * width / tiling.side)
    if rows == 0:
        rows, columns = 1, min(width // height, tokens)
    elif columns == 0:
        rows, columns = min(height // width, tokens), 1
    longest = max(rows, columns) * tiling.pool
    if longest > tiling.positions:
        raise MediaError(
            f"a picture of {width} x {height} pixels would have {longest} patches along a side, "
            f"more than the checkpoint's {tiling.positions}; crop it or send fewer tokens "
            "(max_soft_tokens)"
        )
    return rows, columns


def patches(picture: Image.Image, tokens: int, tiling: Tiling) -> Patches:
    """Resize an RGB picture to its grid (bicubic, Pillow's) and cut it.

    Raises:
        MediaError: as ``grid`` does.
    """
    assert picture.mode == "RGB", picture.mode
    rows, columns = grid(picture.height, picture.width, tokens, tiling)
    size = columns * tiling.side, rows * tiling.side
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    down, across, side = rows * tiling.pool, columns * tiling.pool, tiling.patch
    cut = np.asarray(picture).reshape(down, side, across, side, 3).transpose(0, 2, 1, 3, 4)
    return Patches(cut.reshape(down * across, side * side * 3), rows, columns)


def positions(rows: int, columns: int, pool: int) -> NDArray[np.int64]:
    """[P, 2]: column and row of every patch of a grid of soft tokens."""
    y, x = np.mgrid[: rows * pool, : columns * pool]
    return np.stack([x, y], -1).reshape(-1, 2)
