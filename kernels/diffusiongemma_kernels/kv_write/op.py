"""A step's keys and values into their cache slots on a CPU; on a GPU ``qkv`` puts them there."""

from torch import Tensor

from diffusiongemma_kernels.paged import FP8, PagedKV

FP8_MAX = 448.0


def kv_write(key: Tensor, value: Tensor, kv: PagedKV, slot_mapping: Tensor) -> None:
    """kv.key[s // page, s % page] = key[t] / k_scale   for s = slot_mapping[t] >= 0; so for value

    key, value [T, Hkv, D]; slot_mapping [S] integers with S <= T, rows from S on are padding.
    Only an fp8 cache is scaled (it saturates at 448, NaN and Inf become NaN); other caches take the
    rows as they are.
    """
    kv.check(key.dtype)
    assert key.shape == value.shape and key.dtype == value.dtype, f"{key.shape=} {value.shape=}"
    assert key.shape[1:] == kv.key.shape[2:], f"{key.shape=} {kv.key.shape=}"
    assert slot_mapping.ndim == 1 and slot_mapping.shape[0] <= key.shape[0], (
        f"{slot_mapping.shape=}"
    )
    written = slot_mapping >= 0
    slots = slot_mapping[written].long()
    page = kv.key.shape[1]
    for rows, cache, scale in ((key, kv.key, kv.k_scale), (value, kv.value, kv.v_scale)):
        rows = rows[: len(written)][written]
        if cache.dtype == FP8:
            rows = rows.float() / scale
            rows = rows.clamp(-FP8_MAX, FP8_MAX).where(rows.isfinite(), float("nan"))
        cache[slots // page, slots % page] = rows.to(cache.dtype)
