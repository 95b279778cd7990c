import torch
from torch import Tensor

from diffusiongemma_kernels.paged import Batch, PagedKV


def paged_attention(
    q: Tensor, kv: PagedKV, batch: Batch, out: Tensor, *, window: int, scale: float
) -> Tensor:
    HQ, HKV, page = q.shape[1], kv.key.shape[2], kv.key.shape[1]
    for i in range(batch.seq_lens.shape[0]):
        start, stop = batch.query_start_loc[i : i + 2].tolist()
        seq_len = batch.seq_lens[i].item()
        first = seq_len - (stop - start)
        if seq_len == 0:
            continue
        for t in range(start, stop):
            p = first + t - start
            anchor = first if batch.canvas[i] else p
            high = seq_len if batch.canvas[i] else p + 1
            low = max(anchor - window + 1, 0) if window else 0
            if batch.images is not None:
                begin, end = batch.images[t].tolist()
                low, high = min(low, begin), max(high, end)
            j = torch.arange(low, high, device=q.device)
            pages = batch.block_table[i // batch.parts, j // page].long()
            k = kv.key[pages, j % page].float() * kv.k_scale  # [keys, Hkv, D]
            v = kv.value[pages, j % page].float() * kv.v_scale
            k = k.repeat_interleave(HQ // HKV, dim=1)  # [keys, Hq, D]
            v = v.repeat_interleave(HQ // HKV, dim=1)
            p_j = torch.softmax(scale * torch.einsum("hd,jhd->hj", q[t].float(), k), dim=1)
            out[t] = torch.einsum("hj,jhd->hd", p_j, v).to(out.dtype)
    return out
