"""Our experts' kernels against plain torch, once at start-up, on the GPU that will run them.

A kernel that a GPU, a driver or a compiler turns into nonsense must stop the start, not answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.logger import init_logger

from diffusiongemma_kernels.ahead import Ahead
from diffusiongemma_kernels.moe_gemm.routed import summed
from diffusiongemma_kernels.route.reference import route
from diffusiongemma_vllm.model.moe import Routing

logger = init_logger("vllm.diffusiongemma")
# 0.3 to 94 rows an expert of the real shape: every schedule, and every way to sort for it.
ROWS = (5, 300, 500, 600, 900, 1500)
_checked: set[tuple[str, torch.device]] = set()
_begun: list[tuple[Ahead, Callable[[], None]]] = []

# expert, as this rank numbers them -> its gate and up [2 F, H] and down [H, F], f32
Weights = Callable[[int], tuple[Tensor, Tensor]]


def known(run: nn.Module, device: torch.device) -> bool:
    """Whether such experts were checked there already, or are being checked."""
    return (type(run).__name__, device) in _checked


def check(
    run: nn.Module,
    weights: Weights,
    config: Any,
    routing: Routing,
    *,
    limit: float,
    device: torch.device,
) -> None:
    """Compare `run` with the same experts in FP32; once a kind of experts and device.

    What is compared is this rank's part of the sum over experts.  On a GPU the kernels begin to
    compile, and ``finish`` compares.

    limit: largest ||got - want|| / ||want|| of a row.
    Raises:
        RuntimeError: where a row is farther off, naming the kernel's class and the GPU.
    """
    if known(run, device):
        return
    kind = type(run).__name__
    make = torch.Generator(device).manual_seed(0)
    most = (max(ROWS), config.hidden_size)
    all_rows = torch.randn(most, generator=make, device=device).to(torch.bfloat16)
    all_scores = torch.randn(max(ROWS), config.num_experts, generator=make, device=device)
    steps = [(all_rows[:rows], all_scores[:rows]) for rows in ROWS]

    def compare() -> None:
        worst, all_wanted = 0.0, exact(all_rows, all_scores, weights, routing)
        for x, scores in steps:
            want = all_wanted[: len(x)]
            got = summed(run(x, scores)).float()
            error = (got - want).norm(dim=1) / want.norm(dim=1).clamp(min=1e-20)
            worst = max(worst, float(error.nan_to_num(float("inf")).max()))
        if worst > limit:
            name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
            raise RuntimeError(
                f"{kind}: our expert kernels are wrong on {name} "
                f"(a row is off by {worst:.1%} of its size, at most {limit:.1%} is rounding; torch "
                f"{torch.__version__}). Nothing is served. Please report this line; VLLM_PLUGINS= "
                "(empty) serves the model by vLLM's own implementation meanwhile."
            )
        logger.info("%s agree with plain torch on this GPU: %.2g of a row's size", kind, worst)

    if device.type == "cuda":
        ahead = Ahead()
        with ahead.launched():
            for x, scores in steps:
                summed(run(x, scores))
        _begun.append((ahead, compare))
    else:
        compare()
    _checked.add((kind, device))


def finish() -> None:
    """The comparisons that have begun.  Raises as ``check`` does."""
    while _begun:
        ahead, compare = _begun.pop()
        ahead.wait()
        compare()


def exact(x: Tensor, scores: Tensor, weights: Weights, routing: Routing) -> Tensor:
    """x: [T, H]  scores: [T, E]  ->  [T, H] f32, one expert at a time"""
    share, ids = route(scores, routing.top_k, routing.router.per_expert_scale)
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    mine = routing.share.experts
    for expert in range(mine.start, mine.stop):
        rows, slot = torch.where(ids == expert)
        gate_up, down = weights(expert - mine.start)
        gate, up = F.linear(x[rows].float(), gate_up).chunk(2, dim=-1)
        y = F.linear(F.gelu(gate, approximate="tanh") * up, down)
        out.index_add_(0, rows, y * share[rows, slot, None])
    return out
