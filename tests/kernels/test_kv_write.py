"""Cache writes on a CPU against their reference."""

from typing import NamedTuple

import pytest
import torch

from diffusiongemma_kernels.kv_write import op, reference
from diffusiongemma_kernels.paged import FP8, PagedKV


class Case(NamedTuple):
    tokens: int
    heads: int
    dim: int
    why: str
    dtype: torch.dtype = torch.float32
    cache: torch.dtype | None = None
    padding: int = 0


CASES = [
    Case(0, 2, 32, "empty step"),
    Case(1, 2, 32, "one row"),
    Case(21, 3, 32, "nothing divides"),
    Case(17, 2, 64, "rows beyond the slots", padding=3),
    Case(17, 2, 64, "f16", torch.float16),
    Case(17, 2, 64, "bf16", torch.bfloat16),
    Case(17, 2, 64, "f32 to fp8", torch.float32, FP8),
    Case(17, 2, 64, "f16 to fp8", torch.float16, FP8),
]
PAGE = 16


def make(case: Case):
    generator = torch.Generator().manual_seed(case.tokens)
    T = case.tokens + case.padding
    # A slice of a fused projection: rows are further apart than they are wide.
    fused = torch.randn(T, 3, case.heads, case.dim, generator=generator) * 300
    fused = fused.to(case.dtype)
    pages = case.tokens // PAGE + 3
    cache = torch.zeros(pages, 2, PAGE, case.heads, case.dim).to(case.cache or case.dtype)
    scales = (0.5, 2.0) if case.cache else (1.0, 1.0)
    slots = torch.randperm(pages * PAGE, generator=generator)[: case.tokens]
    slots[2::5] = -1
    return fused[:, 1], fused[:, 2], PagedKV(cache[:, 0], cache[:, 1], *scales), slots


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_torch(case: Case) -> None:
    got, want = make(case), make(case)
    op.kv_write(*got)
    reference.kv_write(*want)
    for mine, theirs in ((got[2].key, want[2].key), (got[2].value, want[2].value)):
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[mine.element_size()]
        assert torch.equal(mine.view(bits), theirs.view(bits))


@pytest.mark.parametrize("function", [op.kv_write, reference.kv_write])
@pytest.mark.parametrize("cache", [FP8, torch.float16])
def test_what_is_no_number_stays_none(function, cache) -> None:
    """A request ends by the NaN or Inf in its cache, which 448 would hide."""
    key, value, kv, _ = make(Case(17, 2, 64, "", torch.float16, cache))
    for rows in (key, value):
        rows.clamp_(-100, 100)
    key[0, 0, :3] = value[1, 1, 5:8] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    function(key, value, kv, torch.arange(17))
    keys, values = ((~x.float().isfinite()).nonzero().tolist() for x in (kv.key, kv.value))
    assert keys == [[0, 0, 0, i] for i in range(3)]
    assert values == [[0, 1, 1, i] for i in range(5, 8)]
