import torch
from torch import Tensor


def route(scores: Tensor, top_k: int, scale: Tensor) -> tuple[Tensor, Tensor]:
    weights, ids = torch.topk(scores.softmax(-1, dtype=torch.float32), top_k, -1)
    weights = weights / weights.sum(-1, keepdim=True)
    return weights * scale.float()[ids], ids.to(torch.int32)
