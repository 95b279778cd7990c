"""The sums and norms around a layer's feed-forward part, each side of it in one launch.

rms(x, w) = x / sqrt(mean(x^2) + eps) * w.  All rows are [T, H]; sums and norms are fp32, and the
residual stream is rounded before it is normed again.
"""

import torch
import triton
from torch import Tensor

from diffusiongemma_kernels.moe_gemm.types import Unsummed
from diffusiongemma_kernels.norms import _kernel, reference
from diffusiongemma_kernels.norms.types import Entry, Exit


def enter(
    x: Tensor, mixed: Tensor, weights: Entry, eps: float, *, lane: int = 0
) -> tuple[Tensor, ...]:
    """y = x + rms(mixed, post_attention)

    -> y, rms(y, mlp), rms(y, experts) and rms(y, router) / sqrt(H).  On a GPU rms(y, experts) may
    be in the order `moe_gemm.order.ORDERS[lane]`, of H a multiple of 64.
    """
    if x.is_cuda:
        return enter_triton(x, mixed, weights, eps, lane=lane)
    assert lane == 0, "on a CPU columns stay where they are"
    return enter_torch(x, mixed, weights, eps)


def enter_torch(x: Tensor, mixed: Tensor, weights: Entry, eps: float) -> tuple[Tensor, ...]:
    """The same on a CPU."""
    _check((x, mixed), weights)
    return reference.enter(x, mixed, weights, eps)


def enter_triton(
    x: Tensor, mixed: Tensor, weights: Entry, eps: float, *, lane: int = 0
) -> tuple[Tensor, ...]:
    """The same by Triton, a row a program."""
    _check((x, mixed), weights)
    T, H = x.shape
    assert lane == 0 or H % 64 == 0, f"{H=}"
    out = torch.empty(4, T, H, dtype=x.dtype, device=x.device)
    if T:
        _kernel.enter[(T,)](
            x, mixed, *weights, out, H, T * H, x.stride(0), mixed.stride(0), eps, LANE=lane,
            **_launch(H),
        )  # fmt: skip
    return out.unbind()


def leave(
    x: Tensor, dense: Tensor, experts: Tensor | Unsummed, weights: Exit, scalar: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """y = (x + rms(rms(dense, mlp) + rms(experts, experts), both)) * scalar

    -> y and rms(y, following); scalar is [1], or [T, 1] for a factor a row.  On a GPU experts may
    be unsummed: their sum is rounded before its norm, to the bits of `moe_gemm.routed.summed`.
    """
    if x.is_cuda:
        return leave_triton(x, dense, experts, weights, scalar, eps)
    assert isinstance(experts, Tensor), "on a CPU experts are summed"
    return leave_torch(x, dense, experts, weights, scalar, eps)


def leave_torch(
    x: Tensor, dense: Tensor, experts: Tensor, weights: Exit, scalar: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The same on a CPU."""
    _check((x, dense, experts), weights)
    return reference.leave(x, dense, experts, weights, scalar, eps)


def leave_triton(
    x: Tensor, dense: Tensor, experts: Tensor | Unsummed, weights: Exit, scalar: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The same by Triton, a row a program."""
    T, H = x.shape
    if isinstance(experts, Unsummed):
        _check((x, dense), weights)
        slots, ids, count = experts
        K = ids.shape[1]
        assert ids.shape[0] == T and slots.shape == (T * K, H), f"{slots.shape=} {ids.shape=}"
        assert slots.dtype == x.dtype and slots.is_contiguous() and ids.is_contiguous()
    else:
        _check((x, dense, experts), weights)
        slots, ids, count, K = experts, experts, 0, 0
    assert scalar.shape in ((1,), (T, 1)), f"{scalar.shape=} {x.shape=}"
    out = torch.empty(2, T, H, dtype=x.dtype, device=x.device)
    if T:
        _kernel.leave[(T,)](
            x, dense, slots, ids, *weights, scalar, out, H, T * H, count,
            x.stride(0), dense.stride(0), slots.stride(0),
            scalar.stride(0) if scalar.ndim == 2 else 0, eps, K=K, **_launch(H),
        )  # fmt: skip
    after, following = out.unbind()
    return after, following


def _launch(H: int) -> dict[str, int]:
    block = triton.next_power_of_2(H)
    return {"BLOCK": block, "num_warps": max(1, min(8, block // 512))}


def _check(rows: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> None:
    shape = rows[0].shape
    assert all(x.shape == shape and x.stride(1) == 1 for x in rows), f"{[x.shape for x in rows]}"
    assert all(w.shape == shape[1:] and w.is_contiguous() for w in weights), f"{shape=}"
