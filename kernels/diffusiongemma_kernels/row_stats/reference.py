import torch
from torch import Tensor

from diffusiongemma_kernels import noise
from diffusiongemma_kernels.row_stats.types import RowStats


def row_stats(
    logits: Tensor,
    temperature: Tensor,
    seed: Tensor,
    counter: Tensor,
    *,
    softcap: float | None = None,
    first: int = 0,
) -> RowStats:
    z = logits.float()
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    t = temperature.float()[:, None]
    y = torch.where(t > 0, z / t, z)
    log_p = torch.log_softmax(y, dim=1)
    p = log_p.exp()
    entropy = -torch.where(p > 0, p * log_p, 0.0).sum(1)
    g = noise.gumbel(noise.token_words(seed, counter, first, first + logits.shape[1]))
    noisy = torch.where(t > 0, y + g, y)
    return RowStats(
        argmax=y.argmax(1) + first,
        sample=noisy.argmax(1) + first,
        entropy=entropy.clamp(min=0),
        max=y.amax(1),
        logsumexp=torch.logsumexp(y, 1),
        score=noisy.amax(1),
    )
