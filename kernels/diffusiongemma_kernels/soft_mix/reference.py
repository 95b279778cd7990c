import torch
from torch import Tensor

from diffusiongemma_kernels.row_probs import reference


def soft_mix(
    logits: Tensor,
    temperature: Tensor,
    logsumexp: Tensor,
    weight: Tensor,
    *,
    softcap: float | None = None,
    scale: float,
) -> Tensor:
    probs = reference.row_probs(
        logits, temperature, logsumexp, softcap=softcap, dtype=torch.float32
    )
    return (probs @ weight.float() * scale).to(weight.dtype)
