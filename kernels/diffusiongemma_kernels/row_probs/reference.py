import torch
from torch import Tensor


def row_probs(
    logits: Tensor,
    temperature: Tensor,
    logsumexp: Tensor,
    *,
    softcap: float | None = None,
    dtype: torch.dtype,
) -> Tensor:
    z = logits.float()
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    t = temperature[:, None]
    y = torch.where(t > 0, z / t, z)
    return (y - logsumexp[:, None]).exp().to(dtype)
