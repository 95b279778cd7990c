"""Row-wise work in row tiles of one fixed size, where a GEMM's rounding depends on its row count.

On CPU the last bits of a row of ``x @ w`` depend on how many rows x has, so the same request would
read differently beside other requests.  Everything but attention is row-wise, so running it on
tiles of TILE rows, the last one padded, makes every row's result its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor

TILE = 256

Result = TypeVar("Result", Tensor, tuple[Tensor, ...])

_FIRST: ContextVar[int] = ContextVar("first", default=0)


def first_row() -> int:
    """Inside a ``rowwise`` function: which of all rows its first one is."""
    return _FIRST.get()


def rowwise(function: Callable[..., Result], *rows: Tensor | None) -> Result:
    """function(*rows) for tensors [T, ...]; a None is handed through.  Tiled on CPU."""
    first = next(x for x in rows if x is not None)
    total = first.shape[0]
    if first.device.type != "cpu" or total == 0:
        return function(*rows)
    parts = []
    for start in range(0, total, TILE):
        piece = [None if x is None else _padded(x[start : start + TILE]) for x in rows]
        token = _FIRST.set(start)
        try:
            parts.append(function(*piece))
        finally:
            _FIRST.reset(token)
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)[:total]
    return tuple(torch.cat(column)[:total] for column in zip(*parts, strict=True))


def _padded(x: Tensor) -> Tensor:
    missing = TILE - x.shape[0]
    if missing == 0:
        return x
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
