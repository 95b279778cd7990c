"""From hidden states to what a step needs of every row: its statistics and its mean embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.logger import init_logger

from diffusiongemma_kernels.ahead import Ahead
from diffusiongemma_kernels.lm_head.op import lm_head
from diffusiongemma_kernels.lm_head.types import Reading
from diffusiongemma_kernels.row_probs.op import row_probs
from diffusiongemma_kernels.row_stats import parts
from diffusiongemma_kernels.row_stats.op import row_stats
from diffusiongemma_kernels.row_stats.types import RowStats
from diffusiongemma_kernels.soft_mix.op import soft_mix
from diffusiongemma_kernels.soft_mix.types import Part
from diffusiongemma_vllm.denoise.soft_embed import soft_embed
from diffusiongemma_vllm.model import selfcheck
from diffusiongemma_vllm.model.ranks import Ranks
from diffusiongemma_vllm.model.rowwise import rowwise

logger = init_logger("vllm.diffusiongemma")
ROWS, COLUMNS = 64, 16384  # of a check, and tokens at a time of its exact product
ROUNDING = 2.0**-6  # of a row's logits, of its sums, and of its mean embedding


def fuses(weight: Tensor) -> bool:
    """Whether the kernels read ``weight`` [V, H]: on a GPU, and of two bytes a number."""
    return weight.is_cuda and weight.element_size() == 2


def believe(
    model: Any, hidden: Tensor, logits: Tensor | None, temperature: Tensor, seed: Tensor,
    counter: Tensor, softcap: float | None,
) -> tuple[RowStats, Tensor]:
    """hidden: [R, H]  temperature: [R] f32  seed, counter: [R] i64  ->  statistics, [R, H]

    logits: [R, V] that a request has bent; None for those that ``hidden`` has.  Of several ranks
    each looks at its part of the vocabulary; what comes out is of all of it, and equal on all.
    """
    vocabulary, scale = model.vocabulary, model.model.embed_scale
    weight, first, ranks = vocabulary.part, vocabulary.first, vocabulary.ranks
    if logits is None and fuses(weight):
        reading = lm_head(
            hidden, weight, temperature, seed, counter, softcap=softcap, first=first
        )
        stats = combined(reading.stats, ranks)
        mixed = soft_mix(
            reading, temperature, weight, softcap=softcap, scale=scale,
            part=Part(stats.logsumexp, ranks.count),
        )
        return stats, ranks.sum(mixed)
    if logits is None:
        logits = vocabulary.project(hidden)
        own = row_stats(logits, temperature, seed, counter, softcap=softcap, first=first)
        stats = combined(own, ranks)
    else:
        stats = row_stats(logits, temperature, seed, counter, softcap=softcap)
        logits = logits[:, first : first + len(weight)]
    probs = row_probs(logits, temperature, stats.logsumexp, softcap=softcap, dtype=weight.dtype)
    return stats, ranks.sum(rowwise(lambda p: soft_embed(p, weight, scale), probs))


def combined(stats: RowStats, ranks: Ranks) -> RowStats:
    """stats: of this rank's tokens  ->  those of all tokens, the same on every rank"""
    if ranks.count == 1:
        return stats
    return parts.merge(ranks.gather(parts.pack(stats)))


def prove(model: Any) -> None:
    """Compare our kernels with plain products, once at start-up, on the GPU that runs them.

    The experts', whose compilation has begun, and each rank's of its part of the vocabulary.

    Raises:
        RuntimeError: where one is farther off than rounding, naming it and the GPU.
    """
    weight, scale = model.vocabulary.part, model.model.embed_scale
    first = model.vocabulary.first
    if not fuses(weight):
        selfcheck.finish()
        return
    softcap = float(model.text_config.final_logit_softcapping)
    make = torch.Generator(weight.device).manual_seed(0)
    tokens = torch.randint(len(weight), (ROWS,), generator=make, device=weight.device)
    heat = torch.linspace(0.4, 0.8, ROWS, device=weight.device)
    # From rows that know nothing to rows that are sure of one token.
    rows = torch.nn.functional.normalize(weight[tokens].float(), dim=1)
    top = (rows * weight[tokens].float()).sum(1, keepdim=True)
    hidden = (rows / top * torch.linspace(0, 60, ROWS, device=top.device)[:, None]).to(weight.dtype)

    def read() -> tuple[Reading, RowStats, Tensor]:
        reading = lm_head(hidden, weight, heat, tokens, tokens, softcap=softcap, first=first)
        stats = row_stats(reading.logits, heat, tokens, tokens, softcap=softcap, first=first)
        probs = row_probs(
            reading.logits, heat, stats.logsumexp, softcap=softcap, dtype=torch.float32
        )
        return reading, stats, probs

    def mix(reading: Reading) -> Tensor:  # writes over some of its logits
        return soft_mix(reading, heat, weight, softcap=softcap, scale=scale)

    ahead = Ahead()
    with ahead.launched():
        mix(read()[0])
    selfcheck.finish()
    ahead.wait()
    reading, stats, probs = read()
    exact = torch.cat([hidden.float() @ part.float().T for part in weight.split(COLUMNS)], 1)
    mean = torch.zeros(hidden.shape, device=hidden.device)
    for p, part in zip(probs.split(COLUMNS, 1), weight.split(COLUMNS), strict=True):
        mean += p @ part.float() * scale
    longest = scale * max(part.float().norm(dim=1).amax() for part in weight.split(COLUMNS))
    choices = (reading.stats.argmax == stats.argmax) & (reading.stats.sample == stats.sample)
    off = {
        "lm_head": (reading.logits - exact).norm() / exact.norm(),
        "lm_head's choices": 0.1 * (~choices).float().mean(),  # equals may be told apart otherwise
        "lm_head's entropies": (reading.stats.entropy - stats.entropy).abs().amax() / 10,
        "lm_head's sums": (reading.stats.logsumexp - stats.logsumexp).abs().amax() / 10,
    }
    off["soft_mix"] = ((mix(reading) - mean).norm(dim=1) / longest).amax()
    for name, error in off.items():
        if not float(error) <= ROUNDING:
            raise RuntimeError(
                f"{name}: our kernel is wrong on {torch.cuda.get_device_name(weight.device)} (off "
                f"by {float(error):.2g}, at most {ROUNDING:.2g} is rounding; torch "
                f"{torch.__version__}). Nothing is served. Please report this line; VLLM_PLUGINS= "
                "(empty) serves the model by vLLM's own implementation meanwhile."
            )
    logger.info("lm_head and soft_mix agree with plain products on this GPU")
