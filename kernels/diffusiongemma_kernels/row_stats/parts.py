"""The statistics of rows whose vocabulary lies in parts, each of them somewhere else."""

import torch
from torch import Tensor

from diffusiongemma_kernels import noise
from diffusiongemma_kernels.row_stats.types import RowStats

GROUP = noise.LANES * noise.WORDS  # tokens, of which a GPU's part is a multiple
MOST_TOKENS = 2**24  # that fp32 can tell apart


def pack(stats: RowStats) -> Tensor:
    """[6, R] f32, to be sent; exact for tokens below ``MOST_TOKENS``."""
    return torch.stack([part.float() for part in stats])


def merge(parts: Tensor) -> RowStats:
    """[P, 6, R] f32, the ``pack`` of each part in any order of tokens  ->  those of all tokens

    With L = log sum_i exp(L_i), from entropies H_i and logsumexps L_i in nats:
    H = sum_i exp(L_i - L) (H_i + L - L_i), whose terms are positive: nothing cancels.
    Choices are the lowest token of those with the highest number, whichever part has it, so all who
    merge the same parts choose alike.
    """
    argmax, sample, entropy, top, logsumexp, score = parts.unbind(1)  # [P, R] each
    total = torch.logsumexp(logsumexp, 0)
    less = total - logsumexp
    share = torch.exp(-less)
    terms = torch.where(share == 0, 0.0, share * (entropy + less))  # 0 * inf would be NaN
    return RowStats(
        argmax=_choose(top, argmax),
        sample=_choose(score, sample),
        entropy=terms.sum(0),
        max=top.amax(0),
        logsumexp=total,
        score=score.amax(0),
    )


def _choose(values: Tensor, tokens: Tensor) -> Tensor:
    """values, tokens: [P, R]  ->  [R] i64; of NaN any of the tokens"""
    best = torch.where(values == values.amax(0), tokens, tokens.amax(0))
    return best.amin(0).long()
