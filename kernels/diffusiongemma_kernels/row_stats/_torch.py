import torch
from torch import Tensor

from diffusiongemma_kernels import noise
from diffusiongemma_kernels.row_stats.types import RowStats

COLUMNS = 4096
ELEMENTS = 1 << 24  # of fp32 at a time


def row_stats(
    logits: Tensor,
    temperature: Tensor,
    seed: Tensor,
    counter: Tensor,
    *,
    softcap: float | None = None,
    first: int = 0,
) -> RowStats:
    step = max(1, ELEMENTS // max(1, logits.shape[1]))
    blocks = [
        _block(logits[r : r + step], temperature[r : r + step], seed[r : r + step],
               counter[r : r + step], softcap, first)
        for r in range(0, logits.shape[0], step)
    ]  # fmt: skip
    return RowStats(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def _block(
    logits: Tensor, temperature: Tensor, seed: Tensor, counter: Tensor, softcap: float | None,
    first: int,
) -> RowStats:
    R, V = logits.shape
    temperature = temperature.float()[:, None]
    noisy = temperature > 0
    y = logits.float()
    if softcap is not None:
        y = softcap * torch.tanh(y / softcap)
    y = y / torch.where(noisy, temperature, 1.0)
    top, argmax = y.max(1, keepdim=True)

    # Column blocks add up element by element, so a row's bits do not depend on how many rows
    # there are: torch sums one long row in another order than many.
    total = y.new_zeros(R, min(COLUMNS, V))
    moment = y.new_zeros(R, min(COLUMNS, V))
    best = y.new_full((R, 1), -torch.inf)
    pick = argmax.clone()
    for start in range(0, V, COLUMNS):
        part = y[:, start : start + COLUMNS]
        below = (part - top).clamp(min=-1e30)  # 0 * -inf would be NaN
        p = below.exp()
        total[:, : part.shape[1]] += p
        moment[:, : part.shape[1]] += p * below
        words = noise.token_words(
            seed, counter, first + start, first + start + part.shape[1]
        )
        high, where = (part + noise.gumbel(words)).max(1, keepdim=True)
        won = high > best
        best = torch.where(won, high, best)
        pick = torch.where(won, where + start, pick)
    total, moment = total.sum(1), moment.sum(1)
    log_total = total.log()
    top = top[:, 0]
    return RowStats(
        argmax=argmax[:, 0] + first,
        sample=torch.where(noisy, pick, argmax)[:, 0] + first,
        entropy=(log_total - moment / total).clamp(min=0),
        max=top,
        logsumexp=top + log_total,
        score=torch.where(noisy[:, 0], best[:, 0], top),
    )
