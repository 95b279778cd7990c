"""Tolerances and inputs that the tests and the bench share."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffusiongemma_kernels.paged import FP8, NO_IMAGE, Batch, PagedKV

# Against an fp32 reference whose inputs are the same rounded numbers.
ATTENTION = {  # (rtol, atol); values are near one, so atol is one rounding of P and of the result
    torch.float32: (1e-5, 2e-5),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (1e-2, 4e-3),
}
ROW_STATS = (1e-4, 1e-4)
# How far below the maximum of the reference a chosen token may be: near-ties round either way.
CHOICE = 2e-4


def assert_close(got: Tensor, want: Tensor, tolerance: tuple[float, float]) -> None:
    rtol, atol = tolerance
    torch.testing.assert_close(got.float(), want.float(), rtol=rtol, atol=atol)


class Request(NamedTuple):
    query_len: int
    prefix: int
    canvas: bool = True


class Heads(NamedTuple):
    query: int
    kv: int
    dim: int


class Paged(NamedTuple):
    q: Tensor  # [T, Hq, D]
    kv: PagedKV
    batch: Batch


def paged_case(
    requests: Sequence[Request],
    heads: Heads,
    *,
    page: int = 16,
    dtype: torch.dtype = torch.float32,
    kv_dtype: torch.dtype | None = None,
    device: str = "cpu",
    padding: tuple[int, int] = (0, 0),
    images: Sequence[tuple[int, int, int]] = (),
) -> Paged:
    """A batch on shuffled pages, with NaN in every slot that no request owns.

    `padding` adds rows beyond the last request, and empty requests.  `images`: request, first
    position, position behind the last.
    """
    extra_rows, extra_requests = padding
    make = torch.Generator().manual_seed(len(requests) + heads.dim)
    lengths = [r.prefix + r.query_len for r in requests]
    pages = [-(-n // page) for n in lengths]
    order = torch.randperm(sum(pages) + 3, generator=make)  # three pages belong to nobody
    table = torch.zeros(
        len(requests) + extra_requests, max(pages, default=0) + 1, dtype=torch.int32
    )
    filled = kv_dtype or dtype
    cache = torch.full((len(order), 2, page, heads.kv, heads.dim), float("nan")).to(filled)
    taken = 0
    for i, (length, count) in enumerate(zip(lengths, pages, strict=True)):
        table[i, :count] = order[taken : taken + count]
        table[i, count:] = order[-1]
        taken += count
        rows = torch.randn(length, 2, heads.kv, heads.dim, generator=make)
        rows[:, 0] *= heads.dim**-0.5  # the model's scale is 1
        j = torch.arange(length)
        cache[table[i, j // page].long(), :, j % page] = rows.to(filled)
    starts = [0]
    for r in requests:
        starts.append(starts[-1] + r.query_len)
    T = starts[-1] + extra_rows
    starts += [starts[-1]] * extra_requests
    lengths += [0] * extra_requests
    canvas = [r.canvas for r in requests] + [False] * extra_requests

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    cache = cache.to(device)
    scales = (0.5, 1.5) if filled == FP8 else (1.0, 1.0)
    q = torch.randn(T, heads.query, heads.dim, generator=make).to(dtype).to(device)
    batch = Batch(
        ints(starts),
        ints(lengths),
        table.to(device),
        ints([int(c) for c in canvas]),
        max((r.query_len for r in requests), default=0),
        max(lengths, default=0),
        images=image_rows(requests, images, T).to(device) if images else None,
    )
    return Paged(q, PagedKV(cache[:, 0], cache[:, 1], *scales), batch)


def image_rows(
    requests: Sequence[Request], images: Sequence[tuple[int, int, int]], rows: int
) -> Tensor:
    """[rows, 2] i32, as ``Batch.images``."""
    table = torch.tensor([NO_IMAGE] * rows, dtype=torch.int32)
    starts = [sum(r.query_len for r in requests[:i]) for i in range(len(requests))]
    for i, begin, end in images:
        first = max(begin - requests[i].prefix, 0)
        table[starts[i] + first : starts[i] + end - requests[i].prefix] = torch.tensor(
            [begin, end], dtype=torch.int32
        )
    return table
