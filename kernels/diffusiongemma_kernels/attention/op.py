"""Paged attention in which every request says whether its rows are a canvas."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusiongemma_kernels import target
from diffusiongemma_kernels.attention import _config, _kernel, _torch, hopper
from diffusiongemma_kernels.attention._config import Config
from diffusiongemma_kernels.paged import FP8, Batch, PagedKV


def paged_attention(
    q: Tensor,
    kv: PagedKV,
    batch: Batch,
    out: Tensor,
    *,
    window: int,
    scale: float,
    batch_invariant: bool = False,
) -> Tensor:
    """out[t, h] = sum_j softmax_j(scale * q[t, h] . k[j]) v[j]   over the keys j that t sees

    With L = seq_len - query_len, the row at position p = L, L + 1, ... of a request sees
        causal:  j <= p        and  (window == 0 or j > p - window)
        canvas:  j < seq_len   and  (window == 0 or j > L - window)
    and, where the row belongs to an image, all of that image's positions too, however far.
    q, out [T, Hq, D]; the step's own keys and values are already in the cache.  Rows from
    query_start_loc[N] on and requests without queries or keys leave `out` as it is.
    `batch_invariant`: a row's bits do not depend on the other requests.
    """
    if not q.is_cuda:
        return paged_attention_torch(q, kv, batch, out, window=window, scale=scale)
    fits = hopper.runs(target.of(q.device).capability, q, kv)
    attend = paged_attention_hopper if fits else paged_attention_triton
    return attend(q, kv, batch, out, window=window, scale=scale, batch_invariant=batch_invariant)


def paged_attention_torch(
    q: Tensor, kv: PagedKV, batch: Batch, out: Tensor, *, window: int, scale: float
) -> Tensor:
    """The same on a CPU: one request at a time, so no request can change another's bits."""
    _check(q, kv, batch, out, window, scale)
    return _torch.paged_attention(q, kv, batch, out, window=window, scale=scale)


def paged_attention_triton(
    q: Tensor,
    kv: PagedKV,
    batch: Batch,
    out: Tensor,
    *,
    window: int,
    scale: float,
    batch_invariant: bool = False,
    config: Config | None = None,
) -> Tensor:
    """The same by Triton.  `config` overrides the table, for tests and for the bench."""
    _check(q, kv, batch, out, window, scale)
    gpu = target.of(q.device)
    assert kv.key.dtype != FP8 or gpu.capability >= (8, 9), "an fp8 cache needs sm_89 or newer"
    shape = _shape(q, kv, batch, window)
    cfg = config or _config.choose(shape, gpu.capability, gpu.processors, batch_invariant)
    options = {
        "WINDOW": window,
        "BLOCK_M": cfg.block_m,
        "BLOCK_N": cfg.block_n,
        "BLOCK_DV": cfg.block_dv,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
        "num_stages": cfg.stages,
    }
    strides = *kv.key.stride()[:3], *kv.value.stride()[:3]
    return _launch(_Way(_kernel.attend, strides, options), q, kv, batch, out, shape, cfg, scale)


def paged_attention_hopper(
    q: Tensor,
    kv: PagedKV,
    batch: Batch,
    out: Tensor,
    *,
    window: int,
    scale: float,
    batch_invariant: bool = False,
    config: Config | None = None,
) -> Tensor:
    """The same by Gluon on sm_90, for what `hopper.runs` allows; from fp8, q and p are f16."""
    from diffusiongemma_kernels.attention import _hopper

    _check(q, kv, batch, out, window, scale)
    kind = kv.key.dtype
    shape = _shape(q, kv, batch, window)
    cfg = config or hopper.choose(shape, kind, target.of(q.device).processors, batch_invariant)
    options = hopper.constants(shape.head_dim, kind) | {"WINDOW": window, "maxnreg": hopper.LAUNCH}
    if kind == FP8:
        kv = kv._replace(key=kv.key.view(torch.int32), value=kv.value.view(torch.int32))
    way = _Way(_hopper.attend, kv.key.stride()[:3], options)
    return _launch(way, q, kv, batch, out, shape, cfg, scale)


class _Way(NamedTuple):
    kernel: Any
    strides: tuple[int, ...]  # of the cache, as this kernel takes them
    options: dict[str, Any]  # what only this kernel takes


def _launch(
    way: _Way,
    q: Tensor,
    kv: PagedKV,
    batch: Batch,
    out: Tensor,
    shape: _config.Shape,
    cfg: Config,
    scale: float,
) -> Tensor:
    """Either kernel, and what adds its splits up."""
    T, HQ, D = q.shape
    N = shape.requests
    if q.numel() == 0 or N == 0:
        return out
    partial, stats = out, out
    if cfg.splits > 1:
        partial = torch.empty((cfg.splits, T, HQ, D), dtype=torch.float32, device=q.device)
        stats = torch.empty((cfg.splits, T, HQ, 2), dtype=torch.float32, device=q.device)
    grid = (
        _config.row_tiles(T, N, shape.group, cfg.block_m),
        shape.kv_heads * (D // cfg.block_dv),
        cfg.splits,
    )
    way.kernel[grid](
        q,
        kv.key,
        kv.value,
        out,
        partial,
        stats,
        batch.query_start_loc,
        batch.seq_lens,
        batch.block_table,
        batch.canvas.view(torch.uint8) if batch.canvas.dtype == torch.bool else batch.canvas,
        batch.query_start_loc if batch.images is None else batch.images,
        N,
        T,
        scale * kv.k_scale * math.log2(math.e),
        kv.v_scale,
        *q.stride()[:2],
        *out.stride()[:2],
        *way.strides,
        batch.block_table.stride(0),
        IMAGES=batch.images is not None,
        PAGE=kv.key.shape[1],
        PARTS=batch.parts,
        **_config.constants(shape, cfg),
        **way.options,
        num_warps=cfg.warps,
    )
    if cfg.splits > 1:
        _kernel.combine[(T, HQ)](
            partial,
            stats,
            out,
            batch.query_start_loc,
            N,
            T,
            kv.v_scale,
            *out.stride()[:2],
            HQ=HQ,
            D=D,
            SPLITS=cfg.splits,
            num_warps=2,
        )
    return out


def _shape(q: Tensor, kv: PagedKV, batch: Batch, window: int) -> _config.Shape:
    T, HQ, D = q.shape
    HKV = kv.key.shape[2]
    keys = batch.max_seq_len
    if window and batch.images is None:
        keys = min(keys, window - 1 + batch.max_query_len)
    return _config.Shape(T, len(batch.seq_lens), HKV, HQ // HKV, D, q.element_size(), keys)


def _check(q: Tensor, kv: PagedKV, batch: Batch, out: Tensor, window: int, scale: float) -> None:
    kv.check(q.dtype)
    batch.check()
    _, HQ, D = q.shape
    assert q.dtype in (torch.bfloat16, torch.float16, torch.float32), f"{q.dtype=}"
    assert out.shape == q.shape and out.dtype == q.dtype, f"{out.shape=} {out.dtype=}"
    assert q.stride(2) == 1 == out.stride(2), "the head dimension must be contiguous"
    assert kv.key.shape[3] == D and D in _config.HEAD_DIMS, f"{kv.key.shape=} {D=}"
    assert HQ % kv.key.shape[2] == 0, f"{HQ} query heads over {kv.key.shape[2]} KV heads"
    assert window >= 0 and scale > 0 and kv.k_scale > 0, f"{window=} {scale=} {kv.k_scale=}"
