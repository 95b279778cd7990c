import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from diffusiongemma_kernels.paged import Batch, PagedKV


def paged_attention(
    q: Tensor, kv: PagedKV, batch: Batch, out: Tensor, *, window: int, scale: float
) -> Tensor:
    starts = batch.query_start_loc.tolist()
    lengths = batch.seq_lens.tolist()
    canvases = batch.canvas.tolist()
    for i, (seq_len, canvas) in enumerate(zip(lengths, canvases, strict=True)):
        query_len = starts[i + 1] - starts[i]
        if query_len > 0 and seq_len > 0:
            rows = slice(starts[i], starts[i + 1])
            low = max(seq_len - query_len - (window - 1), 0) if window else 0
            images = None if batch.images is None else batch.images[rows]
            if images is not None:
                low = min(low, int(images[:, 0].min()))
            keys, values = _gather(kv, batch.block_table[i // batch.parts], low, seq_len, q.dtype)
            mask = None if canvas else _causal_mask(query_len, seq_len, low, window, q.device)
            if mask is not None and images is not None:
                key = torch.arange(low, seq_len, device=q.device)[None, :]
                mask |= (key >= images[:, :1]) & (key < images[:, 1:])
            out[rows] = _attend(q[rows], keys, values, mask, scale * kv.k_scale)
            if kv.v_scale != 1.0:
                out[rows] *= kv.v_scale
    return out


def _gather(
    kv: PagedKV, table: Tensor, low: int, high: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Keys and values low..high of one request, [Hkv, keys, D]; no other page is read."""
    page = kv.key.shape[1]
    pages = table[low // page : -(-high // page)].long()
    cut = slice(low % page, low % page + high - low)

    def take(cache: Tensor) -> Tensor:
        return cache[pages].flatten(0, 1)[cut].to(dtype).transpose(0, 1)

    return take(kv.key), take(kv.value)


def _causal_mask(
    query_len: int, seq_len: int, low: int, window: int, device: torch.device
) -> Tensor:
    position = torch.arange(seq_len - query_len, seq_len, device=device)[:, None]
    key = torch.arange(low, seq_len, device=device)[None, :]
    mask = key <= position  # [Q, keys]
    return mask & (key > position - window) if window else mask


def _attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """q [Q, Hq, D].  A KV head's group is folded into the rows, so keys are not repeated."""
    Q, HQ, D = q.shape
    HKV = keys.shape[0]
    group = HQ // HKV
    rows = q.view(Q, HKV, group, D).permute(1, 2, 0, 3).reshape(1, HKV, group * Q, D)
    if mask is not None:
        mask = mask.repeat(group, 1)
    result = scaled_dot_product_attention(
        rows, keys[None], values[None], attn_mask=mask, scale=scale
    )
    return result.view(HKV, group, Q, D).permute(2, 0, 1, 3).reshape(Q, HQ, D)
