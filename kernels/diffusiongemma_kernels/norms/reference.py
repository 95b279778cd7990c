import torch
from torch import Tensor

from diffusiongemma_kernels.norms.types import Entry, Exit


def rms(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """f32"""
    x = x.float()
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x if weight is None else x * weight.float()


def enter(x: Tensor, mixed: Tensor, weights: Entry, eps: float) -> tuple[Tensor, ...]:
    after = (x.float() + rms(mixed, weights.post_attention, eps)).to(x.dtype)
    mlp, experts = rms(after, weights.mlp, eps), rms(after, weights.experts, eps)
    router = rms(after, weights.router, eps) * x.shape[1] ** -0.5
    return after, *(part.to(x.dtype) for part in (mlp, experts, router))


def leave(
    x: Tensor, dense: Tensor, experts: Tensor, weights: Exit, scalar: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    both = rms(dense, weights.mlp, eps) + rms(experts, weights.experts, eps)
    after = ((x.float() + rms(both, weights.both, eps)) * scalar.float()).to(x.dtype)
    return after, rms(after, weights.following, eps).to(x.dtype)
