from torch import Tensor

from diffusiongemma_kernels.paged import FP8, PagedKV

FP8_MAX = 448.0


def kv_write(key: Tensor, value: Tensor, kv: PagedKV, slot_mapping: Tensor) -> None:
    written = slot_mapping >= 0
    slots = slot_mapping[written].long()
    page = kv.key.shape[1]
    for rows, cache, scale in ((key, kv.key, kv.k_scale), (value, kv.value, kv.v_scale)):
        rows = rows[: len(written)][written]
        if cache.dtype == FP8:
            rows = rows.float() / scale
            rows = rows.clamp(-FP8_MAX, FP8_MAX).where(rows.isfinite(), float("nan"))
        cache[slots // page, slots % page] = rows.to(cache.dtype)
