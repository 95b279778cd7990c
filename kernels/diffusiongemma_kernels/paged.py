"""What the paged ops are handed: the cache with its scales, and the requests of one step."""

from typing import NamedTuple

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
NO_IMAGE = (2**31 - 1, 0)  # a row of ``Batch.images`` that belongs to none


class PagedKV(NamedTuple):
    """Keys and values in pages; a stored fp8 number times its scale is the true one."""

    key: Tensor  # [pages, page, Hkv, D], any stride between pages
    value: Tensor  # [pages, page, Hkv, D]
    k_scale: float = 1.0
    v_scale: float = 1.0

    def check(self, dtype: torch.dtype) -> None:
        key, value = self.key, self.value
        assert key.ndim == 4 and key.shape == value.shape, f"{key.shape=} {value.shape=}"
        assert key.dtype == value.dtype, f"{key.dtype=} {value.dtype=}"
        assert key.dtype in (dtype, FP8), f"cache is {key.dtype}; supported: {dtype} or {FP8}"
        assert key.stride(3) == 1 == value.stride(3), "the head dimension must be contiguous"
        assert key.shape[1] % 16 == 0, f"page size must be a multiple of 16, got {key.shape[1]}"


class Batch(NamedTuple):
    """The requests of one step; repeated `query_start_loc` entries are padding.

    With `parts` > 1 each sequence appears as so many requests in a row, which share a line of
    `block_table`: the text that a step commits, then the canvas behind it.
    """

    query_start_loc: Tensor  # [N + 1] i32
    seq_lens: Tensor  # [N] i32, prefix + this step's rows
    block_table: Tensor  # [N / parts, max_blocks] i32, page numbers
    canvas: Tensor  # [N] i32 or bool, nonzero: every row sees the whole canvas
    max_query_len: int  # upper bounds known on the host: the grid depends on nothing else
    max_seq_len: int
    parts: int = 1
    # [T, 2] i32, first and behind last position of the image that a row belongs to; ``NO_IMAGE``
    # where it belongs to none.  Its keys are in the cache.  None: no image in the step
    images: Tensor | None = None

    def check(self) -> None:
        N = self.seq_lens.shape[0]
        assert self.query_start_loc.shape == (N + 1,), f"{self.query_start_loc.shape=} {N=}"
        assert self.canvas.shape == (N,), f"{self.canvas.shape=} {N=}"
        lines = self.block_table.shape[0]
        assert lines * self.parts == N, f"{self.block_table.shape=} {N=} {self.parts=}"
        assert N == 0 or self.block_table.stride(1) == 1, "block_table rows must be contiguous"
        if self.images is not None:
            assert self.images.ndim == 2 and self.images.shape[1] == 2, f"{self.images.shape=}"
            assert self.images.dtype == torch.int32 and self.images.is_contiguous()
