"""Head norms and rotation by Triton and on the CPU against a rotation of complex numbers."""

from typing import NamedTuple

import pytest
import torch

from diffusiongemma_kernels.qkv import op

EPS = 1e-6


class Case(NamedTuple):
    rows: int
    heads: int
    kv_heads: int
    dim: int
    why: str


CASES = [
    Case(0, 2, 1, 16, "empty step"),
    Case(3, 2, 1, 16, "fewer heads than a program takes"),
    Case(5, 7, 3, 20, "nothing divides"),
]
REAL = [
    Case(1, 16, 8, 256, "one row"),
    Case(2048, 16, 8, 256, "local"),
    Case(2048, 16, 2, 512, "global"),
]


def check(function, case: Case, device: str, dtype=torch.float32) -> None:
    T, Hq, Hk, D, _ = case
    make = torch.Generator().manual_seed(T + D)
    wide = torch.randn(T, (Hq + 2 * Hk) * D + 8, generator=make)[:, :-8] * 3  # rows lie apart
    turn = torch.rand(T, D // 2, generator=make) * 6
    angles = torch.cat([turn.cos(), turn.sin()], 1).to(device, dtype)
    q_weight, k_weight = (torch.rand(2, D, generator=make) + 0.5).to(device, dtype)
    qkv = wide.to(device, dtype)
    got = function(qkv, angles, q_weight, k_weight, Hk, EPS)

    parts = qkv.double().unflatten(1, (-1, D)).split([Hq, Hk, Hk], 1)
    cos, sin = angles.double().chunk(2, 1)
    circle = torch.complex(cos, sin)[:, None]
    for mine, part, weight in zip(got, parts, (q_weight, k_weight, None), strict=True):
        normed = torch.nn.functional.rms_norm(
            part, (D,), None if weight is None else weight.double(), EPS
        )
        if weight is not None:
            turned = torch.complex(*normed.chunk(2, -1)) * circle
            normed = torch.cat([turned.real, turned.imag], -1)
        assert mine.dtype == dtype and mine.is_contiguous()
        close = dict(rtol=1e-5, atol=1e-5) if dtype == torch.float32 else dict(rtol=1e-2, atol=2e-2)
        torch.testing.assert_close(mine.double(), normed.flatten(1), **close)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_triton(case: Case, device: str) -> None:
    check(op.normed_and_turned_triton, case, device)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_torch(case: Case) -> None:
    check(op.normed_and_turned, case, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("case", REAL, ids=lambda c: c.why)
def test_real_shapes(case: Case) -> None:
    check(op.normed_and_turned_triton, case, "cuda", torch.bfloat16)
