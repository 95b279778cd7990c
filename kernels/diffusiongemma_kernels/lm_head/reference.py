import torch
from torch import Tensor

from diffusiongemma_kernels.row_stats import reference
from diffusiongemma_kernels.row_stats.types import RowStats


def lm_head(
    hidden: Tensor,
    weight: Tensor,
    temperature: Tensor,
    seed: Tensor,
    counter: Tensor,
    *,
    softcap: float | None = None,
) -> tuple[Tensor, RowStats]:
    logits = torch.matmul(hidden.float(), weight.float().T).to(hidden.dtype)
    return logits, reference.row_stats(logits, temperature, seed, counter, softcap=softcap)
