"""Cache writes by Triton and on the CPU against their reference."""

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
    Case(17, 2, 64, "f32 to fp8", torch.float32, FP8),
    Case(17, 2, 64, "f16 to fp8", torch.float16, FP8),
]
REAL = [
    Case(256, 8, 256, "local", torch.bfloat16),
    Case(256, 2, 512, "global", torch.bfloat16),
    Case(8192, 8, 256, "local prefill to fp8", torch.bfloat16, FP8, 100),
]
PAGE = 16


def make(case: Case, device: str = "cpu"):
    generator = torch.Generator().manual_seed(case.tokens)
    T = case.tokens + case.padding
    # A slice of a fused projection: rows are further apart than they are wide.
    fused = torch.randn(T, 3, case.heads, case.dim, generator=generator) * 300
    fused = fused.to(case.dtype).to(device)
    pages = case.tokens // PAGE + 3
    cache = torch.zeros(pages, 2, PAGE, case.heads, case.dim).to(case.cache or case.dtype)
    cache = cache.to(device)
    scales = (0.5, 2.0) if case.cache else (1.0, 1.0)
    slots = torch.randperm(pages * PAGE, generator=generator)[: case.tokens]
    slots[2::5] = -1
    return fused[:, 1], fused[:, 2], PagedKV(cache[:, 0], cache[:, 1], *scales), slots.to(device)


def whole(rows: torch.Tensor) -> torch.Tensor:
    """Numbers that fp8 holds, at the scales above, and some far beyond it."""
    rounded = rows.float().clamp(-448, 448).to(FP8).to(rows.dtype)
    return torch.where(rounded.abs() == 448, rounded * 20, rounded)


def check(function, case: Case, device: str = "cpu", exact: bool = False) -> None:
    got, want = make(case, device), make(case)
    if exact:
        got, want = ((*(whole(x) for x in some[:2]), *some[2:]) for some in (got, want))
    function(*got)
    reference.kv_write(*want)
    for mine, theirs in ((got[2].key, want[2].key), (got[2].value, want[2].value)):
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[mine.element_size()]
        assert torch.equal(mine.cpu().view(bits), theirs.view(bits))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_triton(case: Case, device: str) -> None:
    # triton 3.9's interpreter loses the carry when rounding to fp8 reaches the next power of two.
    check(op.kv_write_triton, case, device, exact=device == "cpu" and case.cache == FP8)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_torch(case: Case) -> None:
    check(op.kv_write, case)


@pytest.mark.parametrize("function", [op.kv_write_triton, op.kv_write_torch, reference.kv_write])
@pytest.mark.parametrize("cache", [FP8, torch.float16])
def test_what_is_no_number_stays_none(function, cache, device: str) -> None:
    """A request ends by the NaN or Inf in its cache, which 448 would hide."""
    device = "cpu" if function is op.kv_write_torch else device
    key, value, kv, _ = make(Case(17, 2, 64, "", torch.float16, cache), device)
    for rows in (key, value):
        rows.clamp_(-100, 100)
    slots = torch.arange(17, device=device)
    key[0, 0, :3] = value[1, 1, 5:8] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    function(key, value, kv, slots)
    keys, values = ((~x.float().isfinite()).nonzero().tolist() for x in (kv.key, kv.value))
    assert keys == [[0, 0, 0, i] for i in range(3)]
    assert values == [[0, 1, 1, i] for i in range(5, 8)]


@pytest.mark.gpu
@pytest.mark.parametrize("case", REAL, ids=lambda c: c.why)
def test_real_shapes(case: Case) -> None:
    check(op.kv_write, case, "cuda")
