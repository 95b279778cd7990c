"""Which experts a row goes to, and with which weight."""

import torch
import triton
from torch import Tensor

from diffusiongemma_kernels.route import _kernel, reference

ROWS = 4  # a program


def route(scores: Tensor, top_k: int, scale: Tensor) -> tuple[Tensor, Tensor]:
    """weights [T, K] f32 = softmax of the K best of a row, times scale[ids]; ids [T, K] i32

    scores [T, E]; scale [E].  Best first; of equals, any.
    """
    return (route_triton if scores.is_cuda else route_torch)(scores, top_k, scale)


def route_torch(scores: Tensor, top_k: int, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The same on a CPU."""
    _check(scores, top_k, scale)
    return reference.route(scores, top_k, scale)


def route_triton(scores: Tensor, top_k: int, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The same by Triton, a few rows a program."""
    _check(scores, top_k, scale)
    T, E = scores.shape
    weights = torch.empty(T, top_k, dtype=torch.float32, device=scores.device)
    ids = torch.empty(T, top_k, dtype=torch.int32, device=scores.device)
    if T:
        _kernel.route[(-(-T // ROWS),)](
            scores, scale, weights, ids, T, E, scores.stride(0),
            K=top_k, BLOCK_T=ROWS, BLOCK_E=triton.next_power_of_2(E),
            BLOCK_K=triton.next_power_of_2(top_k), num_warps=ROWS,
        )  # fmt: skip
    return weights, ids


def _check(scores: Tensor, top_k: int, scale: Tensor) -> None:
    assert scores.ndim == 2 and scores.stride(1) == 1, f"{scores.shape=} {scores.stride()=}"
    assert scale.shape == scores.shape[1:] and scale.is_contiguous(), f"{scale.shape=}"
    assert 0 < top_k <= scores.shape[1], f"{top_k=} {scores.shape=}"
