"""Everything the sampler needs of the logits, in one pass over them."""

import torch
from torch import Tensor

from diffusiongemma_kernels import noise, target
from diffusiongemma_kernels.row_stats import _config, _kernel, _torch, parts
from diffusiongemma_kernels.row_stats._config import Config
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
    """z = softcap * tanh(logits / softcap), or logits;   y = z / temperature, or z where it is 0

        argmax = argmax_v y                              max, logsumexp of y
        sample = argmax_v y + gumbel(seed, counter, v)   argmax where temperature is 0
        entropy = log sum_v p - sum_v p (y - max) / sum_v p   for p = exp(y - max), in nats

    logits [R, V] raw lm_head output; temperature [R] f32; seed, counter [R] i64.  The noise is
    `noise.gumbel`, a function of those integers alone.  The tokens are first .. first + V - 1,
    part of a vocabulary that `parts.merge` puts together; on a GPU first is a multiple of 4,096.
    """
    run = row_stats_triton if logits.is_cuda else row_stats_torch
    return run(logits, temperature, seed, counter, softcap=softcap, first=first)


def row_stats_torch(
    logits: Tensor,
    temperature: Tensor,
    seed: Tensor,
    counter: Tensor,
    *,
    softcap: float | None = None,
    first: int = 0,
) -> RowStats:
    """The same on a CPU."""
    check(logits, temperature, seed, counter, softcap)
    if logits.shape[0] == 0:
        return empty(logits)
    return _torch.row_stats(logits, temperature, seed, counter, softcap=softcap, first=first)


def row_stats_triton(
    logits: Tensor,
    temperature: Tensor,
    seed: Tensor,
    counter: Tensor,
    *,
    softcap: float | None = None,
    first: int = 0,
    config: Config | None = None,
) -> RowStats:
    """The same by Triton.  `config` overrides the table, for tests and for the bench."""
    check(logits, temperature, seed, counter, softcap)
    R, V = logits.shape
    stats = empty(logits)
    if R == 0:
        return stats
    cfg = config or _config.choose(R, V, target.of(logits.device).processors)
    sums = torch.empty((4, R, cfg.splits), dtype=torch.float32, device=logits.device)
    tokens = torch.empty((2, R, cfg.splits), dtype=torch.int32, device=logits.device)
    _kernel.scan[(R, cfg.splits)](
        logits,
        temperature,
        seed,
        counter,
        sums,
        tokens,
        R,
        V,
        logits.stride(0),
        cfg.tiles,
        group(first),
        SPLITS=cfg.splits,
        SOFTCAP=softcap or 0.0,
        num_warps=cfg.warps,
    )
    _kernel.finish[(R,)](
        temperature, sums, tokens, *stats, R, first, SPLITS=cfg.splits, num_warps=1
    )
    return stats


def hash_uniform_tokens(seed: Tensor, counter: Tensor, vocab_size: int) -> Tensor:
    """token[i] = floor(word(seed[i], counter[i]) * vocab_size / 2^32), a function of nothing else

    seed, counter: i64 of one shape.  A token's probability is within vocab_size / 2^32 of
    1 / vocab_size, relatively: 6e-5 at 262,144 (and exactly equal for powers of two).
    """
    run = hash_uniform_tokens_triton if seed.is_cuda else noise.uniform_tokens
    return run(seed, counter, vocab_size)


def hash_uniform_tokens_triton(seed: Tensor, counter: Tensor, vocab_size: int) -> Tensor:
    """The same by Triton."""
    assert seed.shape == counter.shape, f"{seed.shape=} {counter.shape=}"
    assert seed.is_contiguous() and counter.is_contiguous()
    tokens = torch.empty_like(counter)
    n = tokens.numel()
    if n:
        grid = (-(-n // 256),)
        _kernel.uniform_tokens[grid](
            seed, counter, tokens, n, vocab_size, DOMAIN=noise.TOKENS, BLOCK=256
        )
    return tokens


def empty(logits: Tensor) -> RowStats:
    """Unwritten statistics of logits [R, V]: [R] each, two i64 and four f32, beside the logits."""
    R, device = logits.shape[0], logits.device
    integers = [torch.empty(R, dtype=torch.int64, device=device) for _ in range(2)]
    floats = [torch.empty(R, dtype=torch.float32, device=device) for _ in range(4)]
    return RowStats(*integers, *floats)


def group(first: int) -> int:
    """Which of the groups of tokens that share calls of Philox begins with token `first`."""
    assert first % parts.GROUP == 0, f"{first=}"
    return first // parts.GROUP


def check(
    logits: Tensor, temperature: Tensor, seed: Tensor, counter: Tensor, softcap: float | None
) -> None:
    """AssertionError unless all is as ``row_stats`` says; logits f32, bf16 or f16, rows whole."""
    R, V = logits.shape
    assert logits.dtype in (torch.float32, torch.bfloat16, torch.float16), f"{logits.dtype=}"
    assert logits.stride(1) == 1 and 0 < V < 2**31 - 4096, f"{logits.stride()=} {V=}"
    assert temperature.shape == (R,) and temperature.dtype == torch.float32, f"{temperature.shape=}"
    for x in (seed, counter):
        assert x.shape == (R,) and x.dtype == torch.int64, f"{x.shape=} {x.dtype=}"
    for x in (temperature, seed, counter):
        assert x.is_contiguous(), "per-row arguments must be contiguous"
    assert softcap is None or softcap > 0, f"{softcap=}"
