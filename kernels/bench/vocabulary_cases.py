"""The ends of a step at the model's shape: logits with their statistics, and mean embeddings."""

from collections.abc import Iterator

import torch
from timed import Timed

from diffusiongemma_kernels.lm_head import _config as lm_config
from diffusiongemma_kernels.lm_head.op import lm_head, lm_head_triton
from diffusiongemma_kernels.row_probs.op import row_probs_triton
from diffusiongemma_kernels.row_stats.op import row_stats_triton
from diffusiongemma_kernels.soft_mix import _config as mix_config
from diffusiongemma_kernels.soft_mix.op import soft_mix_triton

VOCAB, HIDDEN, CAP = 262144, 2816, 30.0
BF16 = torch.bfloat16


def rows_of(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Temperatures [R] and integers for seeds and counters [R]."""
    return torch.full((count,), 0.6, device="cuda"), torch.arange(count, device="cuda")


def embedding() -> torch.Tensor:
    return torch.randn(VOCAB, HIDDEN, device="cuda", dtype=BF16)


def lm_heads(sweep: bool) -> Iterator[Timed]:
    """Against cuBLAS and `row_stats`; `facts` has cuBLAS alone."""
    weight = embedding()
    for count in (256,) if sweep else (256, 512, 1024):
        hidden = torch.randn(count, HIDDEN, device="cuda", dtype=BF16) * (4 / HIDDEN**0.5)
        heat, ints = rows_of(count)
        args = (hidden, weight, heat, ints, ints)
        out = torch.empty(count, VOCAB, device="cuda", dtype=BF16)

        def product(hidden=hidden, out=out):
            torch.matmul(hidden, weight.T, out=out)

        def apart(hidden=hidden, rest=args[2:], out=out):
            row_stats_triton(torch.matmul(hidden, weight.T, out=out), *rest, softcap=CAP)

        for config in configs() if sweep else [None]:

            def run(args=args, config=config):
                if config:
                    lm_head_triton(*args, softcap=CAP, config=config)
                else:
                    lm_head(*args, softcap=CAP)

            name = f"{count} rows, {tuple(config)}" if config else f"{count} rows"
            facts = None if sweep else {"cuBLAS us": microseconds(product)}
            flops = 2 * count * VOCAB * HIDDEN
            yield Timed(name, run, flops=flops, baseline=None if sweep else apart, facts=facts)


def microseconds(run) -> float:
    import triton

    return round(triton.testing.do_bench(run, return_mode="median") * 1e3, 2)


def configs() -> Iterator[lm_config.Config]:
    for shape in ((128, 64, 64, 8), (128, 32, 64, 4), (256, 32, 64, 8), (128, 32, 64, 8),
                  (256, 32, 64, 16), (128, 64, 32, 8), (64, 64, 64, 4)):  # fmt: skip
        for stages in (3, 4, 5):
            yield lm_config.Config(*shape, stages)


def beliefs(kind: str, count: int) -> torch.Tensor:
    """Logits [R, V] of rows that are sure, that doubt between hundreds of tokens, or know nothing.

    mixed: one row of sixteen knows nothing, the others are sure.
    """
    logits = torch.randn(count, VOCAB, device="cuda", dtype=BF16)
    lead = {"sure": 1, "doubtful": 300, "mixed": 1, "flat": 0}[kind]
    if lead:
        logits[:, torch.randperm(VOCAB, device="cuda")[:lead]] += 20
    if kind == "mixed":
        logits[::16] = torch.randn(len(logits[::16]), VOCAB, device="cuda", dtype=BF16)
    return logits


def soft_mixes(sweep: bool) -> Iterator[Timed]:
    """Against the product over the whole vocabulary, probabilities included."""
    weight = embedding()
    for count in (256,) if sweep else (256, 1024):
        for kind in ("flat",) if sweep else ("sure", "doubtful", "mixed", "flat"):
            heat, ints = rows_of(count)
            reading = lm_head(
                torch.zeros(count, HIDDEN, device="cuda", dtype=BF16), weight, heat, ints, ints
            )
            reading.logits.copy_(beliefs(kind, count))
            for part, top in zip(reading.logits.split(64), reading.tops.split(64), strict=True):
                top.copy_(part.float().unflatten(1, (-1, reading.strip)).amax(2))
            stats = row_stats_triton(reading.logits, heat, ints, ints, softcap=CAP)
            reading = reading._replace(stats=stats)
            other = reading.logits.clone()

            def dense(other=other, heat=heat, sums=stats.logsumexp):
                row_probs_triton(other, heat, sums, softcap=CAP, dtype=BF16) @ weight

            for config in mix_configs() if sweep else [None]:

                def run(reading=reading, heat=heat, config=config):
                    soft_mix_triton(reading, heat, weight, softcap=CAP, scale=53.0, config=config)

                name = f"{count} rows, {kind}" + (f", {tuple(config)}" if config else "")
                few = {"sure": 1, "doubtful": 300, "mixed": 1}.get(kind)
                yield Timed(
                    name, run, bytes=count * HIDDEN * 2 * (few + 1) if few else 0,
                    flops=2 * count * VOCAB * HIDDEN, baseline=None if sweep else dense,
                )  # fmt: skip


def mix_configs() -> Iterator[mix_config.Config]:
    for tile in ((128, 256, 64, 6, 8, 3), (128, 256, 64, 6, 8, 4), (128, 128, 64, 6, 4, 4),
                 (128, 128, 64, 3, 4, 4), (128, 256, 64, 12, 8, 3), (256, 128, 64, 12, 8, 3),
                 (64, 256, 64, 6, 4, 4), (128, 128, 64, 6, 8, 4)):  # fmt: skip
        yield mix_config.Config(*tile)


def probabilities(_sweep: bool) -> Iterator[Timed]:
    for count in (256, 1024):
        logits = torch.randn(count, VOCAB, device="cuda", dtype=BF16) * 4
        heat, ints = rows_of(count)
        sums = row_stats_triton(logits, heat, ints, ints, softcap=CAP).logsumexp

        def run(logits=logits, heat=heat, sums=sums):
            row_probs_triton(logits, heat, sums, softcap=CAP, dtype=BF16)

        yield Timed(f"{count} rows", run, bytes=4 * logits.numel())
