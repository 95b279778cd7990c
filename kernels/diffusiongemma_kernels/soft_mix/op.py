"""What a row believes, as a mean of embeddings: only of the tokens that can matter, if few can."""

import torch
import triton
from torch import Tensor

from diffusiongemma_kernels import target
from diffusiongemma_kernels.lm_head.types import Reading
from diffusiongemma_kernels.row_probs.op import row_probs_torch
from diffusiongemma_kernels.soft_mix import _config, _kernel
from diffusiongemma_kernels.soft_mix._config import Config
from diffusiongemma_kernels.soft_mix.types import Part

COLUMNS = 512  # of the embedding, a program of the sums that gather
TOKENS = 16  # a step of theirs


def soft_mix(
    reading: Reading, temperature: Tensor, weight: Tensor, *, softcap: float | None = None,
    scale: float, part: Part | None = None,
) -> Tensor:
    """m[r] = scale * sum_v p[r, v] weight[v]   with p as in ``row_probs``

    reading: from ``lm_head``, whose logits are scratch afterwards; temperature [R] f32;
    weight [V, H].  -> [R, H] of weight's dtype.

    On a GPU a row keeps a set K of tokens and leaves the others out, where their probability is
    1 - sum_{v in K} p[r, v] <= DROPPED = 2^-9.  That sum is computed, so the bound holds for every
    row: by the triangle inequality ||m[r] - exact|| <= scale * 2^-9 * max_v ||weight[v]||.  The
    product over the whole vocabulary has the same bound, since it rounds every p to bf16 and K's
    are not rounded.  (fp32's rounding of p adds 1e-5 to either.)  K is the smallest of ``LEVELS``
    sets p >= 4^i LEAST that suffices.  A row that needs more than ``LIMIT`` tokens takes the
    product over the whole vocabulary.  Most such rows show it by the strips' tops alone: where
    n > LIMIT strips have a token of p >= q, any LIMIT tokens lose (n - LIMIT) q or more.  Which
    it takes depends on that row alone and is decided on the device; the launches are the same.

    `part`: reading and weight are one of several parts of a vocabulary.  p is then of all of it,
    and each part may lose DROPPED / parts: the sum of the parts' m has the same bound.
    """
    run = soft_mix_triton if reading.logits.is_cuda else soft_mix_torch
    return run(reading, temperature, weight, softcap=softcap, scale=scale, part=part)


def soft_mix_torch(
    reading: Reading, temperature: Tensor, weight: Tensor, *, softcap: float | None = None,
    scale: float, part: Part | None = None,
) -> Tensor:
    """The same on a CPU, where nothing is left out."""
    _check(reading, temperature, weight)
    sums = reading.stats.logsumexp if part is None else part.logsumexp
    probs = row_probs_torch(
        reading.logits, temperature, sums, softcap=softcap, dtype=weight.dtype
    )
    return (probs @ weight) * scale


def soft_mix_triton(
    reading: Reading, temperature: Tensor, weight: Tensor, *, softcap: float | None = None,
    scale: float, part: Part | None = None, config: Config | None = None,
    limit: int = _config.LIMIT,
) -> Tensor:
    """The same by Triton.  `config` and `limit` override the table, for tests and for the bench."""
    _check(reading, temperature, weight)
    logits, tops, strip, stats = reading
    (R, V), H = logits.shape, weight.shape[1]
    out = weight.new_empty(R, H)
    if R == 0:
        return out
    cfg = config or _config.choose(target.of(logits.device).capability)
    cap, (sums, parts) = softcap or 0.0, part or Part(stats.logsumexp, 1)
    fast = logits.is_cuda
    integers = logits.new_empty(2 * R * limit + 2 * R + 1, dtype=torch.int32)
    strips, tokens, counts, order, total = integers.split([R * limit, R * limit, R, R, 1])
    probs = logits.new_empty(R * limit, dtype=torch.float32)
    _kernel.select[(R,)](
        logits, tops, temperature, sums, stats.logsumexp, strips, tokens, probs, counts, V,
        tops.shape[1], logits.stride(0), STRIP=strip, SOFTCAP=cap, LEAST=_config.LEAST,
        LEVELS=_config.LEVELS, DROPPED=_config.DROPPED, PARTS=parts, LIMIT=limit,
        BLOCK_S=triton.next_power_of_2(tops.shape[1]), FAST=fast, num_warps=8,
    )  # fmt: skip
    _kernel.line_up[(1,)](counts, order, total, R, BLOCK=1024, num_warps=4)
    columns = -(-H // COLUMNS)
    _kernel.mix_few[(R, columns)](
        tokens, probs, counts, weight, out, H, weight.stride(0), scale,
        LIMIT=limit, BLOCK_N=TOKENS, BLOCK_H=COLUMNS, num_warps=4,
    )  # fmt: skip

    # The rest leaves at once where there is no such row.
    _kernel.weigh[(R, 8)](
        logits, temperature, sums, order, total, V, logits.stride(0),
        SOFTCAP=cap, BLOCK=4096, FAST=fast, num_warps=8,
    )  # fmt: skip
    splits = logits.new_empty((cfg.splits, R, H), dtype=torch.float32)
    _kernel.mix_all[(-(-H // cfg.block_h), -(-R // cfg.block_m), cfg.splits)](
        logits, weight, order, total, splits, R, V, H, logits.stride(0), weight.stride(0),
        BLOCK_M=cfg.block_m, BLOCK_H=cfg.block_h, BLOCK_K=cfg.block_k,
        EVEN_K=V % cfg.block_k == 0, EVEN_H=H % cfg.block_h == 0,
        num_warps=cfg.warps, num_stages=cfg.stages,
    )  # fmt: skip
    _kernel.add_splits[(R, columns)](
        splits, order, total, out, R, H, scale, SPLITS=cfg.splits, BLOCK_H=COLUMNS, num_warps=4
    )
    return out


def _check(reading: Reading, temperature: Tensor, weight: Tensor) -> None:
    (R, V), strips = reading.logits.shape, reading.tops.shape[1]
    assert weight.shape[0] == V and weight.stride(1) == 1, f"{weight.shape=} {V=}"
    assert weight.dtype == reading.logits.dtype, f"{weight.dtype=} {reading.logits.dtype=}"
    assert strips == -(-V // reading.strip), f"{reading.tops.shape=} {reading.strip=}"
    assert reading.tops.is_contiguous() and reading.logits.stride(1) == 1
    assert temperature.shape == (R,) and temperature.dtype == torch.float32, f"{temperature.shape=}"
