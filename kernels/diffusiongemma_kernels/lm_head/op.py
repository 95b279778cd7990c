"""The product with the tied embedding, and everything the sampler needs of its rows, at once."""

import torch
import triton
from torch import Tensor

from diffusiongemma_kernels import target
from diffusiongemma_kernels.lm_head import _config, _kernel, hopper, reference
from diffusiongemma_kernels.lm_head._config import Config
from diffusiongemma_kernels.lm_head.types import Reading
from diffusiongemma_kernels.row_stats import op as row_stats
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
    """logits = hidden weight^T, summed in fp32 and rounded, and row_stats(logits, ...)

    hidden [R, H]; weight [V, H], of one dtype, which the logits [R, V] have too; the rest as in
    ``row_stats``; first: the token of weight's first row.  The statistics are those of the rounded
    logits, with the same noise.  On a GPU a row's bits do not depend on the other rows.
    """
    run = lm_head_torch
    if hidden.is_cuda:
        run = lm_head_hopper if hopper.runs(hidden, weight) else lm_head_triton
    return run(hidden, weight, temperature, seed, counter, softcap=softcap, first=first)


def lm_head_torch(
    hidden: Tensor,
    weight: Tensor,
    temperature: Tensor,
    seed: Tensor,
    counter: Tensor,
    *,
    softcap: float | None = None,
    first: int = 0,
) -> Reading:
    """The same on a CPU, where a row's bits depend on others as far as torch's product does."""
    _check(hidden, weight)
    logits = hidden @ weight.T
    stats = row_stats.row_stats(
        logits, temperature, seed, counter, softcap=softcap, first=first
    )
    return Reading(logits, reference.tops(logits, STRIP), STRIP, stats)


def lm_head_triton(
    hidden: Tensor,
    weight: Tensor,
    temperature: Tensor,
    seed: Tensor,
    counter: Tensor,
    *,
    softcap: float | None = None,
    first: int = 0,
    config: Config | None = None,
) -> Reading:
    """The same by Triton: one kernel reads the embedding, another finishes each row's statistics.

    A row's bits depend on no others.  `config` overrides the table, for tests and for the bench.
    """
    (R, H), V = hidden.shape, weight.shape[0]
    cfg = config or _config.choose(target.of(hidden.device).capability)
    reading, sums = _empty(hidden, weight, (temperature, seed, counter), cfg.strip, softcap)
    if R == 0:
        return reading
    logits, tops, strip, _ = reading
    tiles, group = sums.shape[2], row_stats.group(first)
    _kernel.read[(tiles * -(-R // cfg.block_r),)](
        hidden,
        weight,
        temperature,
        seed,
        counter,
        logits,
        tops,
        sums,
        R,
        V,
        H,
        tiles,
        group,
        hidden.stride(0),
        weight.stride(0),
        logits.stride(0),
        SOFTCAP=softcap or 0.0,
        BLOCK_R=cfg.block_r,
        STRIP=strip,
        BLOCK_K=cfg.block_k,
        EVEN_K=H % cfg.block_k == 0,
        EVEN_V=V % _config.GROUP == 0,
        FAST=hidden.is_cuda,
        num_warps=cfg.warps,
        num_stages=cfg.stages,
    )
    return _finished(reading, (temperature, seed, counter), sums, softcap, group)


def lm_head_hopper(
    hidden: Tensor,
    weight: Tensor,
    temperature: Tensor,
    seed: Tensor,
    counter: Tensor,
    *,
    softcap: float | None = None,
    first: int = 0,
) -> Reading:
    """The same by Gluon, where `hopper.runs`."""
    rows, group = (temperature, seed, counter), row_stats.group(first)
    reading, sums = _empty(hidden, weight, rows, hopper.STRIP, softcap)
    if len(hidden) == 0:
        return reading
    hopper.launch(
        hidden, weight, rows, reading.logits, reading.tops, sums, softcap=softcap or 0.0,
        group=group,
    )  # fmt: skip
    return _finished(reading, rows, sums, softcap, group)


Rows = tuple[Tensor, Tensor, Tensor]  # temperature, seed and counter


def _empty(
    hidden: Tensor, weight: Tensor, rows: Rows, strip: int, softcap: float | None
) -> tuple[Reading, Tensor]:
    """What comes out, and the sums [4, R, tiles] f32 that its statistics are made of."""
    _check(hidden, weight)
    R, V = len(hidden), len(weight)
    logits = hidden.new_empty(R, V)
    row_stats.check(logits, *rows, softcap)
    tops = logits.new_empty(R, -(-V // strip), dtype=torch.float32)
    sums = logits.new_empty(4, R, _config.tiles(V, strip), dtype=torch.float32)
    return Reading(logits, tops, strip, row_stats.empty(logits)), sums


def _finished(
    reading: Reading, rows: Rows, sums: Tensor, softcap: float | None, group: int
) -> Reading:
    (R, V), tiles = reading.logits.shape, sums.shape[2]
    _kernel.finish[(R,)](
        reading.logits,
        *rows,
        sums,
        *reading.stats,
        R,
        V,
        tiles,
        group,
        reading.logits.stride(0),
        SOFTCAP=softcap or 0.0,
        STRIP=reading.strip,
        BLOCK_T=triton.next_power_of_2(tiles),
        num_warps=4,
    )
    return reading


def _check(hidden: Tensor, weight: Tensor) -> None:
    assert hidden.shape[1:] == weight.shape[1:], f"{hidden.shape=} {weight.shape=}"
    assert hidden.dtype == weight.dtype, f"{hidden.dtype=} {weight.dtype=}"
    assert hidden.stride(1) == weight.stride(1) == 1, f"{hidden.stride()=} {weight.stride()=}"
