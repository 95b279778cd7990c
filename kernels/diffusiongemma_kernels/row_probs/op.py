"""Probabilities of rows of logits whose sums are known, in one pass."""

import torch
from torch import Tensor

from diffusiongemma_kernels.row_probs import _config, _kernel, reference


def row_probs(
    logits: Tensor,
    temperature: Tensor,
    logsumexp: Tensor,
    *,
    softcap: float | None = None,
    dtype: torch.dtype,
) -> Tensor:
    """p[r, v] = exp(y[r, v] - logsumexp[r])   with y as in ``row_stats``

    logits [R, V]; temperature, logsumexp [R] f32, the latter from ``row_stats``.  -> [R, V] of
    ``dtype``.
    """
    run = row_probs_triton if logits.is_cuda else row_probs_torch
    return run(logits, temperature, logsumexp, softcap=softcap, dtype=dtype)


def row_probs_torch(
    logits: Tensor,
    temperature: Tensor,
    logsumexp: Tensor,
    *,
    softcap: float | None = None,
    dtype: torch.dtype,
) -> Tensor:
    """The same on a CPU."""
    _check(logits, temperature, logsumexp, softcap)
    return reference.row_probs(logits, temperature, logsumexp, softcap=softcap, dtype=dtype)


def row_probs_triton(
    logits: Tensor,
    temperature: Tensor,
    logsumexp: Tensor,
    *,
    softcap: float | None = None,
    dtype: torch.dtype,
) -> Tensor:
    """The same by Triton."""
    _check(logits, temperature, logsumexp, softcap)
    R, V = logits.shape
    probs = torch.empty((R, V), dtype=dtype, device=logits.device)
    if R:
        cfg = _config.choose(V)
        _kernel.probs[(R, -(-V // cfg.block))](
            logits, temperature, logsumexp, probs, V, logits.stride(0),
            SOFTCAP=softcap or 0.0, BLOCK=cfg.block, num_warps=cfg.warps,
        )
    return probs


def _check(logits: Tensor, temperature: Tensor, logsumexp: Tensor, softcap: float | None) -> None:
    R, V = logits.shape
    assert logits.stride(1) == 1 and V > 0, f"{logits.stride()=} {V=}"
    for x in (temperature, logsumexp):
        assert x.shape == (R,) and x.dtype == torch.float32, f"{x.shape=} {x.dtype=}"
    assert softcap is None or softcap > 0, f"{softcap=}"
