"""What the tests of attention share: a case, its batch, and what a result has to be."""

from typing import NamedTuple

import torch

from diffusiongemma_kernels.testing import (
    ATTENTION,
    Heads,
    Paged,
    Request,
    assert_close,
    paged_case,
)


class Case(NamedTuple):
    requests: tuple[Request, ...]
    heads: Heads
    why: str
    window: int = 0
    page: int = 16
    dtype: torch.dtype = torch.float32
    kv_dtype: torch.dtype | None = None
    padding: tuple[int, int] = (0, 0)
    images: tuple[tuple[int, int, int], ...] = ()


def make(case: Case, device: str = "cpu") -> Paged:
    return paged_case(
        case.requests,
        case.heads,
        page=case.page,
        dtype=case.dtype,
        kv_dtype=case.kv_dtype,
        device=device,
        padding=case.padding,
        images=case.images,
    )


def attend(function, paged: Paged, window: int, **options) -> torch.Tensor:
    out = torch.full_like(paged.q, float("nan"))
    return function(*paged, out, window=window, scale=1.0, **options)


def check(got: torch.Tensor, want: torch.Tensor, rows: int) -> None:
    assert_close(got[:rows], want[:rows], ATTENTION[got.dtype])
    assert got[rows:].isnan().all(), "rows of no request were written"


def rows_of(case: Case) -> int:
    return sum(r.query_len for r in case.requests)
