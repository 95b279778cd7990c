"""A step's keys and values into their cache slots."""

from torch import Tensor

from diffusiongemma_kernels.kv_write import _config, _kernel, _torch
from diffusiongemma_kernels.paged import FP8, PagedKV


def kv_write(key: Tensor, value: Tensor, kv: PagedKV, slot_mapping: Tensor) -> None:
    """kv.key[s // page, s % page] = key[t] / k_scale   for s = slot_mapping[t] >= 0; so for value

    key, value [T, Hkv, D]; slot_mapping [S] integers with S <= T, rows from S on are padding.
    Only an fp8 cache is scaled (it saturates at 448, NaN and Inf become NaN); other caches take the
    rows as they are.
    """
    run = kv_write_triton if key.is_cuda else kv_write_torch
    run(key, value, kv, slot_mapping)


def kv_write_torch(key: Tensor, value: Tensor, kv: PagedKV, slot_mapping: Tensor) -> None:
    """The same on a CPU."""
    _check(key, value, kv, slot_mapping)
    _torch.kv_write(key, value, kv, slot_mapping)


def kv_write_triton(key: Tensor, value: Tensor, kv: PagedKV, slot_mapping: Tensor) -> None:
    """The same by Triton, one program a row."""
    _check(key, value, kv, slot_mapping)
    S = slot_mapping.shape[0]
    if S == 0:
        return
    D = key.shape[2]
    width = key.shape[1] * D
    cfg = _config.choose(width)
    _kernel.write[(S,)](
        key,
        value,
        kv.key,
        kv.value,
        slot_mapping,
        float(kv.k_scale),
        float(kv.v_scale),
        *key.stride()[:2],
        *value.stride()[:2],
        *kv.key.stride()[:3],
        *kv.value.stride()[:3],
        WIDTH=width,
        D=D,
        PAGE=kv.key.shape[1],
        BLOCK=cfg.block,
        FP8=kv.key.dtype == FP8,
        num_warps=cfg.warps,
    )


def _check(key: Tensor, value: Tensor, kv: PagedKV, slot_mapping: Tensor) -> None:
    kv.check(key.dtype)
    assert key.shape == value.shape and key.dtype == value.dtype, f"{key.shape=} {value.shape=}"
    assert key.shape[1:] == kv.key.shape[2:], f"{key.shape=} {kv.key.shape=}"
    assert key.stride(2) == 1 == value.stride(2), "the head dimension must be contiguous"
    assert slot_mapping.ndim == 1 and slot_mapping.shape[0] <= key.shape[0], (
        f"{slot_mapping.shape=}"
    )
