import torch
from torch import Tensor


def moe(x: Tensor, topk_ids: Tensor, topk_weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Weights already dequantised; fp32, or fp64 where they are fp64."""
    T, K = topk_ids.shape
    F = down.shape[2]
    y = torch.zeros(T, down.shape[1], dtype=gate_up.dtype, device=x.device)
    for t in range(T):
        for k in range(K):
            e = int(topk_ids[t, k])
            if 0 <= e < len(gate_up):
                both = gate_up[e] @ x[t].to(gate_up.dtype)
                h = torch.nn.functional.gelu(both[:F], approximate="tanh") * both[F:]
                y[t] += topk_weights[t, k] * (down[e] @ h)
    return y
