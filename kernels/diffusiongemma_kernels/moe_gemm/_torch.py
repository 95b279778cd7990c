import torch
from torch import Tensor

from diffusiongemma_kernels.formats.nvfp4 import NVFP4, dequantize
from diffusiongemma_kernels.moe_gemm import pack
from diffusiongemma_kernels.moe_gemm.types import Dense, Experts, Nvfp4


def dense(weights: Experts, expert: int, *, gate_up: bool) -> Tensor:
    """One expert's [rows, columns]."""
    if isinstance(weights, Dense):
        return weights.weight[expert]
    one = slice(expert, expert + 1)
    part = Nvfp4(
        weights.codes[one],
        weights.scales[one],
        weights.global_scale[one],
        weights.rows,
        weights.columns,
    )
    return dequantize(NVFP4(*pack.unpack(part, gate_up=gate_up)))[0]


def moe(
    x: Tensor, topk_ids: Tensor, topk_weights: Tensor, gate_up: Experts, down: Experts
) -> Tensor:
    """Expert by expert, in x's dtype with fp32 sums of the slots."""
    slots = torch.zeros(*topk_ids.shape, x.shape[1], device=x.device)
    for e in topk_ids.unique().tolist():
        if not 0 <= e < _count(gate_up):
            continue
        token, slot = (topk_ids == e).nonzero(as_tuple=True)
        both = x[token] @ dense(gate_up, e, gate_up=True).to(x.dtype).T
        gate, up = both.chunk(2, dim=1)
        h = torch.nn.functional.gelu(gate, approximate="tanh") * up
        part = (h @ dense(down, e, gate_up=False).to(x.dtype).T).float()
        slots[token, slot] = part * topk_weights[token, slot, None]
    return slots.sum(1).to(x.dtype)


def _count(weights: Experts) -> int:
    return len(weights.weight if isinstance(weights, Dense) else weights.codes)
