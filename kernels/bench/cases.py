"""Shapes of the real model: 16 query heads, 30 layers of which every sixth sees everything."""

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import canvas_cases
import layer_cases
import moe_cases
import torch
import vocabulary_cases
from timed import Timed
from torch.nn.functional import scaled_dot_product_attention

from diffusiongemma_kernels.attention import _config as attention_config
from diffusiongemma_kernels.attention.op import paged_attention, paged_attention_triton
from diffusiongemma_kernels.paged import FP8
from diffusiongemma_kernels.row_stats import _config as row_stats_config
from diffusiongemma_kernels.row_stats.op import row_stats_triton
from diffusiongemma_kernels.testing import Heads, Paged, Request, paged_case

LOCAL, GLOBAL = Heads(16, 8, 256), Heads(16, 2, 512)
WINDOW = 1024
VOCAB = 262144
BF16 = torch.bfloat16


class Attention(NamedTuple):
    name: str
    requests: tuple[Request, ...]
    heads: Heads
    page: int = 64
    kv_dtype: torch.dtype | None = None


CANVAS = (Request(256, 512),)
ATTENTION = [
    Attention("local, 1 canvas, prefix 512", CANVAS, LOCAL),
    Attention("global, 1 canvas, prefix 512", CANVAS, GLOBAL),
    Attention("local, 1 canvas, prefix 512, pages of 16", CANVAS, LOCAL, 16),
    Attention("global, 1 canvas, prefix 512, pages of 32", CANVAS, GLOBAL, 32),
    Attention("local, 1 canvas, prefix 4096", (Request(256, 4096),), LOCAL),
    Attention("global, 1 canvas, prefix 8192", (Request(256, 8192),), GLOBAL),
    Attention("global, 1 canvas, prefix 32768", (Request(256, 32768),), GLOBAL),
    Attention("global, 1 canvas, prefix 131072", (Request(256, 131072),), GLOBAL),
    Attention("local, 8 canvases, prefix 512", CANVAS * 8, LOCAL),
    Attention("global, 8 canvases, prefix 512", CANVAS * 8, GLOBAL),
    Attention("local, 32 canvases, prefix 512", CANVAS * 32, LOCAL),
    Attention("global, 32 canvases, prefix 512", CANVAS * 32, GLOBAL),
    Attention("local, prompt of 8192", (Request(8192, 0, False),), LOCAL),
    Attention("global, prompt of 8192", (Request(8192, 0, False),), GLOBAL),
    Attention("local over fp8, 1 canvas, prefix 512", CANVAS, LOCAL, 64, FP8),
    Attention("global over fp8, 1 canvas, prefix 512", CANVAS, GLOBAL, 64, FP8),
    Attention("local over fp8, 8 canvases, prefix 512", CANVAS * 8, LOCAL, 64, FP8),
    Attention("global over fp8, 8 canvases, prefix 512", CANVAS * 8, GLOBAL, 64, FP8),
    Attention("global over fp8, 1 canvas, prefix 131072", (Request(256, 131072),), GLOBAL, 64, FP8),
    Attention("global over fp8, prompt of 8192", (Request(8192, 0, False),), GLOBAL, 64, FP8),
]


def visible(request: Request, window: int) -> int:
    """How many (query, key) pairs a request has."""
    pairs = 0
    for t in range(request.query_len):
        p = request.prefix if request.canvas else request.prefix + t
        high = request.prefix + request.query_len if request.canvas else p + 1
        pairs += high - (max(p - window + 1, 0) if window else 0)
    return pairs


def sdpa(case: Attention, window: int) -> Callable[[], object]:
    """torch on keys already gathered, in batches of equal requests, with a dense mask."""
    request, (HQ, HKV, D) = case.requests[0], case.heads
    N, Q, keys = len(case.requests), request.query_len, request.prefix + request.query_len
    q = torch.randn(N, HQ, Q, D, dtype=BF16, device="cuda")
    k, v = torch.randn(2, N, HKV, keys, D, dtype=BF16, device="cuda")
    p = torch.arange(request.prefix, keys, device="cuda")[:, None]
    j = torch.arange(keys, device="cuda")[None, :]
    anchor = torch.full_like(p, request.prefix) if request.canvas else p
    mask = (j < keys) if request.canvas else (j <= p)
    if window:
        mask = mask & (j > anchor - window)
    mask = mask.expand(Q, keys)
    return lambda: scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0, enable_gqa=True)


def sdpa_time(case: Attention, window: int) -> dict:
    """In microseconds; none where torch has no memory for its mask."""
    try:
        return {"SDPA us": vocabulary_cases.microseconds(sdpa(case, window))}
    except torch.OutOfMemoryError as error:
        return {"SDPA": str(error).splitlines()[0]}


def unified(paged: Paged, window: int) -> Callable[[], object] | None:
    """vLLM's kernel on the same pages; native masks canvases by its per-request `causal`."""
    try:
        from vllm.v1.attention.ops.triton_unified_attention import unified_attention
    except ImportError as error:
        print(f"no baseline for attention: {error}", file=sys.stderr)
        return None
    q, kv, batch = paged
    out = torch.empty_like(q)
    scale = torch.full(
        (len(batch.seq_lens), kv.key.shape[2]), kv.k_scale, device=q.device
    )  # fmt: skip
    causal = 1 - batch.canvas.int()
    return lambda: unified_attention(
        q=q, k=kv.key, v=kv.value, out=out, cu_seqlens_q=batch.query_start_loc,
        max_seqlen_q=batch.max_query_len, seqused_k=batch.seq_lens,
        max_seqlen_k=batch.max_seq_len, softmax_scale=1.0, causal=causal,
        window_size=(window - 1, 0) if window else (-1, -1), block_table=batch.block_table,
        softcap=0.0, q_descale=None, k_descale=scale, v_descale=scale,
    )  # fmt: skip


def attention(sweep: bool) -> Iterator[Timed]:
    for case in ATTENTION[:2] if sweep else ATTENTION:
        window = WINDOW if case.heads == LOCAL else 0
        paged = paged_case(
            case.requests,
            case.heads,
            page=case.page,
            dtype=BF16,
            kv_dtype=case.kv_dtype,
            device="cuda",
        )
        out = torch.empty_like(paged.q)
        pairs = sum(visible(r, window) for r in case.requests)
        flops = 4 * pairs * case.heads.query * case.heads.dim
        configs = attention_configs(case.heads.dim) if sweep else [None]

        for config in configs:

            def triton(paged=paged, out=out, window=window, config=config):
                paged_attention_triton(*paged, out, window=window, scale=1.0, config=config)

            def run(paged=paged, out=out, window=window):
                paged_attention(*paged, out, window=window, scale=1.0)

            if sweep:
                yield Timed(f"{case.name}, {tuple(config)}", triton, flops=flops)
                continue
            facts = sdpa_time(case, window) | {"Triton us": vocabulary_cases.microseconds(triton)}
            yield Timed(case.name, run, flops=flops, baseline=unified(paged, window), facts=facts)


def attention_configs(dim: int) -> Iterator[attention_config.Config]:
    tiles = {
        256: [(64, 32, 256, 4, 2), (64, 32, 256, 4, 3), (64, 64, 256, 4, 2), (64, 64, 256, 8, 2),
              (64, 32, 256, 8, 2), (128, 64, 256, 8, 2), (128, 32, 256, 8, 2), (64, 64, 128, 4, 2)],
        512: [(64, 32, 256, 4, 2), (64, 32, 256, 8, 2), (64, 32, 512, 8, 2), (128, 32, 256, 8, 1),
              (64, 32, 128, 4, 2), (64, 64, 256, 8, 1), (32, 32, 256, 4, 2), (64, 16, 256, 4, 3)],
    }  # fmt: skip
    for tile in tiles[dim]:
        for splits in (1, 2, 4):
            yield attention_config.Config(*tile, splits, 2)


def statistics(sweep: bool) -> Iterator[Timed]:
    for rows, spread in ((256, 4.0),) if sweep else ((1, 4.0), (256, 4.0), (256, 0.1), (2048, 4.0)):
        logits = (torch.randn(rows, VOCAB, device="cuda") * spread).to(BF16)
        temperature = torch.full((rows,), 0.6, device="cuda")
        ints = torch.arange(rows, device="cuda")
        args = (logits, temperature, ints, ints)
        configs = [None]
        if sweep:
            tiles = VOCAB // row_stats_config.TILE
            configs = [
                row_stats_config.Config(tiles // splits, splits, warps)
                for splits in (1, 2, 4, 8, 16)
                for warps in (4, 8, 16)
            ]
        for config in configs:

            def run(args=args, config=config):
                row_stats_triton(*args, softcap=30.0, config=config)

            name = f"{rows} rows, spread {spread}"
            yield Timed(
                f"{name}, {tuple(config)}" if config else name,
                run,
                bytes=2 * logits.numel(),
                baseline=None if sweep else lambda args=args: torch_statistics(*args[:2]),
            )


def torch_statistics(logits: torch.Tensor, temperature: torch.Tensor) -> None:
    """The same numbers the usual way, with fp32 as wide as the vocabulary."""
    for part, t in zip(logits.split(256), temperature.split(256), strict=True):
        y = 30.0 * torch.tanh(part.float() / 30.0) / t[:, None]
        log_p = torch.log_softmax(y, 1)
        p = log_p.exp()
        y.argmax(1)
        (p * log_p).sum(1)
        (p / torch.empty_like(p).exponential_()).argmax(1)


def experts(sweep: bool) -> Iterator[Timed]:
    """Against the slower of reading the weights and multiplying the rows."""
    for case in moe_cases.experts(sweep):
        streams = case.bytes / 4300e9 > case.flops / 790e12  # an H200's
        yield Timed(
            case.case,
            case.run,
            bytes=case.bytes if streams else 0,
            flops=0 if streams else case.flops,
            baseline=case.baseline,
            facts=case.facts,
        )


OPS: dict[str, Callable[[bool], Iterator[Timed]]] = {
    "attention": attention,
    "canvas_rows": canvas_cases.canvas_rows,
    "canvas_step": canvas_cases.steps,
    "lm_head": vocabulary_cases.lm_heads,
    "moe_gemm": experts,
    "moe_sort": layer_cases.sorts,
    "norms": layer_cases.norms,
    "qkv": layer_cases.heads,
    "route": layer_cases.routes,
    "row_probs": vocabulary_cases.probabilities,
    "row_stats": statistics,
    "soft_mix": vocabulary_cases.soft_mixes,
}
