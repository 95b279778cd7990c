import torch
from torch import Tensor

from diffusiongemma_kernels.lm_head.types import Reading
from diffusiongemma_kernels.row_stats import reference
from diffusiongemma_kernels.row_stats.types import STRIP


def lm_head(
    hidden: Tensor,
    weight: Tensor,
    temperature: Tensor,
    seed: Tensor,
    counter: Tensor,
    *,
    softcap: float | None = None,
    first: int = 0,
) -> Reading:
    logits = torch.matmul(hidden.float(), weight.float().T).to(hidden.dtype)
    stats = reference.row_stats(
        logits, temperature, seed, counter, softcap=softcap, first=first
    )
    return Reading(logits, tops(logits, STRIP), STRIP, stats)


def tops(logits: Tensor, strip: int) -> Tensor:
    beyond = (0, -logits.shape[1] % strip)
    padded = torch.nn.functional.pad(logits.float(), beyond, value=-torch.inf)
    return padded.unflatten(1, (-1, strip)).amax(2)
