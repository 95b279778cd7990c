"""Random experts and routing for the tests and the bench."""

from typing import NamedTuple

import torch
from torch import Tensor

from diffusiongemma_kernels.formats.nvfp4 import NVFP4, dequantize
from diffusiongemma_kernels.moe_gemm import pack, reference
from diffusiongemma_kernels.moe_gemm.types import Nvfp4

# Of a row: ||got - want|| / ||want||, against fp64 on the same rounded weights and activations.
MOE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


Routed = tuple[Tensor, Tensor, Tensor]  # x, ids and weights of its experts


class Case(NamedTuple):
    """A layer of ``experts`` of ``hidden`` by ``width``, and how ``tokens`` choose among them."""

    tokens: int
    why: str
    experts: int = 6
    top_k: int = 2
    hidden: int = 128
    width: int = 64
    zipf: float = 0.0


def random_nvfp4(
    experts: int, rows: int, columns: int, *, scales: tuple[int, int] = (0x20, 0x40), device="cpu"
) -> NVFP4:
    """Weights of about 0.05; `scales` are the lowest e4m3 bits and one above the highest."""
    make = torch.Generator(device).manual_seed(rows + columns)

    def bits(low: int, high: int, *shape: int) -> Tensor:
        kind = {"dtype": torch.uint8, "device": device}
        return torch.randint(low, high, shape, generator=make, **kind)

    factor = torch.rand(experts, generator=make, device=device) + 0.5
    return NVFP4(
        bits(0, 256, experts, rows, columns // 2),
        bits(*scales, experts, rows, columns // 16).view(torch.float8_e4m3fn),
        factor * 0.05,
    )


def packed(gate_up: NVFP4, down: NVFP4) -> tuple[Nvfp4, Nvfp4]:
    return pack.pack(*gate_up, gate_up=True), pack.pack(*down, gate_up=False)


def route(
    tokens: int, experts: int, top_k: int, *, zipf: float = 0.0, device="cpu"
) -> tuple[Tensor, Tensor]:
    """Distinct experts a token, expert e drawn with weight (e + 1)^-zipf.  [T, K] i32 and f32"""
    make = torch.Generator(device).manual_seed(tokens)
    weight = torch.arange(1, experts + 1, device=device).float() ** -zipf
    if tokens == 0:
        ids = torch.empty(0, top_k, dtype=torch.int32, device=device)
    else:
        ids = torch.multinomial(weight.expand(tokens, -1), top_k, generator=make).int()
    share = torch.rand(tokens, top_k, generator=make, device=device) + 0.1
    return ids.contiguous(), share / share.sum(1, keepdim=True)


def make(case: Case, device: str = "cpu") -> tuple[Routed, NVFP4, NVFP4]:
    """x [T, H] f32 with its routing, and a layer's weights."""
    gate_up = random_nvfp4(case.experts, 2 * case.width, case.hidden, device=device)
    down = random_nvfp4(case.experts, case.hidden, case.width, device=device)
    x = torch.randn(case.tokens, case.hidden, device=device)
    ids, share = route(case.tokens, case.experts, case.top_k, zipf=case.zipf, device=device)
    return (x, ids, share), gate_up, down


def exact(routed: Routed, gate_up: NVFP4, down: NVFP4) -> Tensor:
    """The reference in fp64.  [T, H]"""
    return reference.moe(*routed, dequantize(gate_up).double(), dequantize(down).double())


def worst_row(got: Tensor, want: Tensor) -> float:
    """The largest relative error of a row; rows of zeros must be zeros."""
    error = (got.double() - want.double()).norm(dim=1)
    size = want.double().norm(dim=1)
    return float(torch.where(size > 0, error / size, error * 1e30).max()) if len(got) else 0.0
