"""A layer's norms by Triton against fp64 in plain torch."""

import pytest
import torch

from diffusiongemma_kernels.moe_gemm.order import arranged
from diffusiongemma_kernels.moe_gemm.routed import summed
from diffusiongemma_kernels.moe_gemm.types import Unsummed
from diffusiongemma_kernels.norms import op, reference
from diffusiongemma_kernels.norms.types import Entry, Exit

EPS = 1e-6
CASES = [(0, 64), (1, 64), (5, 100)]
CLOSE = {torch.float32: (1e-5, 1e-6), torch.bfloat16: (2e-2, 2e-2)}


def make(rows: int, width: int, count: int, device: str, dtype=torch.float32):
    make = torch.Generator().manual_seed(rows + width)
    wide = torch.randn(count, rows, width + 8, generator=make)[:, :, :width] * 3  # rows lie apart
    weights = torch.rand(4, width, generator=make) + 0.5
    return [x.to(device, dtype) for x in wide], [w.to(device, dtype) for w in weights]


def same(got, want, dtype) -> None:
    rtol, atol = CLOSE[dtype]
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=rtol, atol=atol)


def check_enter(function, rows: int, width: int, device: str, dtype=torch.float32) -> None:
    (x, mixed), weights = make(rows, width, 2, device, dtype)
    got = function(x, mixed, Entry(*weights), EPS)
    post, *readers = [w.double() for w in weights]
    norm = torch.nn.functional.rms_norm
    after = x.double() + norm(mixed.double(), (width,), post, EPS)
    after = after.to(dtype).double()
    mlp, experts, router = (norm(after, (width,), w, EPS) for w in readers)
    same(got, (after, mlp, experts, router * width**-0.5), dtype)


def check_leave(function, rows: int, width: int, device: str, a_row: bool, dtype=torch.float32):
    (x, dense, experts), weights = make(rows, width, 3, device, dtype)
    scalar = torch.rand((rows, 1) if a_row else (1,), device=device, dtype=dtype) + 0.5
    got = function(x, dense, experts, Exit(*weights), scalar, EPS)
    mlp, moe, both, following = [w.double() for w in weights]
    norm = torch.nn.functional.rms_norm
    sum_ = norm(dense.double(), (width,), mlp, EPS) + norm(experts.double(), (width,), moe, EPS)
    after = (x.double() + norm(sum_, (width,), both, EPS)) * scalar.double()
    after = after.to(dtype).double()
    same(got, (after, norm(after, (width,), following, EPS)), dtype)


def check_leave_adds_up(rows: int, width: int, top_k: int, device: str, dtype) -> None:
    """Slot by slot in fp32, then rounded, to the bits of a sum made before."""
    (x, dense), weights = make(rows, width, 2, device, dtype)
    slots = make(rows * top_k, width, 1, device, dtype)[0][0].contiguous()
    # Of 6 experts: -2, -1, 6 and 7 are nobody's, and their slots as memory was.
    ids = torch.arange(rows * top_k).remainder(10).sub(2).int().to(device)
    elsewhere = (ids < 0) | (ids >= 6)
    want = slots.float().masked_fill(elsewhere[:, None], 0).view(rows, top_k, width)
    total = torch.zeros(rows, width, device=device)
    for part in want.unbind(1):
        total += part
    slots[elsewhere] = float("nan")
    found = Unsummed(slots, ids.view(rows, top_k), 6)
    assert torch.equal(summed(found), total.to(dtype))
    behind, scalar = Exit(*weights), torch.rand(rows, 1, device=device, dtype=dtype) + 0.5
    got = op.leave_triton(x, dense, found, behind, scalar, EPS)
    for mine, theirs in zip(
        got, op.leave_triton(x, dense, total.to(dtype), behind, scalar, EPS), strict=True
    ):
        assert mine.dtype == dtype and torch.equal(mine, theirs)


@pytest.mark.parametrize("rows, width", CASES)
def test_enter(rows: int, width: int, device: str) -> None:
    check_enter(op.enter_triton, rows, width, device)
    check_enter(op.enter_torch, rows, width, "cpu")


def check_enter_arranges(rows: int, width: int, lane: int, device: str, dtype) -> None:
    (x, mixed), weights = make(rows, width, 2, device, dtype)
    plain = op.enter_triton(x, mixed, Entry(*weights), EPS)
    got = op.enter_triton(x, mixed, Entry(*weights), EPS, lane=lane)
    assert torch.equal(got[2], arranged(plain[2], lane)) and not torch.equal(got[2], plain[2])
    for i in (0, 1, 3):
        assert torch.equal(got[i], plain[i])


@pytest.mark.parametrize("lane", [2, 8])
@pytest.mark.parametrize("rows, width", [(1, 64), (5, 192)])
def test_enter_arranges_what_experts_read(rows: int, width: int, lane: int, device: str) -> None:
    check_enter_arranges(rows, width, lane, device, torch.float32)


@pytest.mark.parametrize("a_row", [False, True])
@pytest.mark.parametrize("rows, width", CASES)
def test_leave(rows: int, width: int, a_row: bool, device: str) -> None:
    check_leave(op.leave_triton, rows, width, device, a_row)
    check_leave(op.leave_torch, rows, width, "cpu", a_row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # bf16 is cut off there
@pytest.mark.parametrize("rows, width", CASES)
def test_leave_adds_a_rows_experts_up(rows: int, width: int, dtype, device: str) -> None:
    check_leave_adds_up(rows, width, 3, device, dtype)


def test_a_row_of_zeros_stays_zero() -> None:
    assert not reference.rms(torch.zeros(2, 8), torch.ones(8), EPS).any()


@pytest.mark.gpu
def test_real_shape() -> None:
    for rows in (1, 256, 2048):
        check_enter(op.enter_triton, rows, 2816, "cuda", torch.bfloat16)
        check_enter_arranges(rows, 2816, 2, "cuda", torch.bfloat16)
        check_leave(op.leave_triton, rows, 2816, "cuda", True, torch.bfloat16)
        check_leave_adds_up(rows, 2816, 8, "cuda", torch.bfloat16)
