from torch import Tensor

from diffusiongemma_kernels.paged import FP8, PagedKV


def kv_write(key: Tensor, value: Tensor, kv: PagedKV, slot_mapping: Tensor) -> None:
    page = kv.key.shape[1]
    for t, s in enumerate(slot_mapping.tolist()):
        if s >= 0:
            k, v = key[t].float(), value[t].float()
            if kv.key.dtype == FP8:
                k = (k / kv.k_scale).clamp(-448, 448).where(k.isfinite(), float("nan"))
                v = (v / kv.v_scale).clamp(-448, 448).where(v.isfinite(), float("nan"))
            kv.key[s // page, s % page] = k.to(kv.key.dtype)
            kv.value[s // page, s % page] = v.to(kv.value.dtype)
