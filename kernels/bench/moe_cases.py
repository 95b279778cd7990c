"""One layer's experts at the model's shape: 128 experts of 704, eight a token, hidden 2816."""

import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import NamedTuple

import torch

from diffusiongemma_kernels.formats.nvfp4 import NVFP4, dequantize
from diffusiongemma_kernels.moe_gemm import hopper, op, reference
from diffusiongemma_kernels.moe_gemm.order import arranged
from diffusiongemma_kernels.moe_gemm.routed import summed
from diffusiongemma_kernels.moe_gemm.testing import (
    packed,
    random_nvfp4,
    route,
    worst_row,
)
from diffusiongemma_kernels.moe_gemm.types import Arranged, Dense, Nvfp4

E, K, H, F = 128, 8, 2816, 704
BF16 = torch.bfloat16
TOKENS = (256, 512, 1024, 2048, 4096, 8192)
ROUTING = {"uniform": 0.0, "Zipf": 1.0}
CHECKED = 8  # tokens whose output is compared with fp64

Routed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Layer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Moe(NamedTuple):
    case: str
    run: Callable[[], object]
    bytes: int
    flops: int
    baseline: Callable[[], object] | None
    facts: dict


def experts(sweep: bool) -> Iterator[Moe]:
    gate_up, down = (random_nvfp4(E, r, c, device="cuda") for r, c in ((2 * F, H), (H, F)))
    fp4 = packed(gate_up, down)
    if sweep:
        yield from swept(fp4)
        return
    plain = [dequantize(weights) for weights in (gate_up, down)]
    dense = tuple(Dense(weights.to(BF16)) for weights in plain)
    native = {"nvfp4": marlin(gate_up, down), "dense": vllm_triton(*dense)}
    for name, weights in (("nvfp4", fp4), ("dense", dense)):
        for routing, zipf in ROUTING.items():
            for tokens in TOKENS:
                routed = inputs(tokens, zipf)
                other = native[name]
                yield timed(
                    f"{name}, {tokens} tokens, {routing}",
                    routed,
                    layer(routed, weights),
                    name,
                    other and (lambda routed=routed, other=other: other(*routed)),
                    errors(routed, plain, weights, other) if name == "nvfp4" else {},
                )


def layer(routed: Routed, weights: tuple, plan: hopper.Plan | None = None) -> Callable[[], object]:
    """From activations as `norms.enter` leaves them to the sum, in a step `norms.leave`'s."""
    x, *chosen = routed
    if isinstance(weights[0], Nvfp4):
        lane = op.lane(torch.cuda.get_device_capability())
        x = Arranged(arranged(x, lane), lane)
    if plan:
        return lambda: summed(op.moe_hopper(x, *chosen, *weights, plan=plan))
    return lambda: op.moe(x, *chosen, *weights)


def inputs(tokens: int, zipf: float) -> Routed:
    x = torch.randn(tokens, H, device="cuda", dtype=BF16)
    return x, *route(tokens, E, K, zipf=zipf, device="cuda")


def timed(
    case: str,
    routed: Routed,
    run: Callable[[], object],
    format: str,
    baseline: Callable[[], object] | None = None,
    facts: dict | None = None,
) -> Moe:
    """The weights of the experts that are hit, x and y once; the products of every row."""
    tokens, hit = len(routed[0]), routed[1].unique().numel()
    bits = 4.5 if format == "nvfp4" else 16
    moved = int(hit * 3 * F * H * bits / 8) + 2 * 2 * tokens * H
    flops = tokens * K * 3 * F * H * 2
    return Moe(case, run, moved, flops, baseline, facts or {})


def errors(routed: Routed, plain: list[torch.Tensor], ours: tuple, other: Layer | None) -> dict:
    """The worst row's relative error to fp64 on the same weights, of a few tokens."""
    few = range(0, len(routed[0]), len(routed[0]) // CHECKED)
    slots = torch.arange(K, dtype=torch.int32, device="cuda")[None]
    want = []
    for t in few:
        x, ids, share = (part[t : t + 1] for part in routed)
        chosen = [weights[ids[0].long()].double() for weights in plain]
        want.append(reference.moe(x, slots, share, *chosen))
    rows = torch.tensor(few, device="cuda")
    result = {"error": worst_row(op.moe(*routed, *ours)[rows], torch.cat(want))}
    if other:
        result["baseline error"] = worst_row(other(*routed)[rows], torch.cat(want))
    return result


def marlin(gate_up: NVFP4, down: NVFP4) -> Layer | None:
    """vLLM's path for NVFP4 experts on a GPU without FP4, alignment to sum."""
    try:
        from vllm.model_executor.layers.fused_moe.activation import MoEActivation
        from vllm.model_executor.layers.fused_moe.experts.marlin_moe import fused_marlin_moe
        from vllm.model_executor.layers.quantization.utils import marlin_utils_fp4
        from vllm.model_executor.layers.quantization.utils.marlin_utils import (
            marlin_make_workspace_new,
        )
        from vllm.scalar_type import scalar_types
    except ImportError as error:
        print(f"no baseline for nvfp4: {error}", file=sys.stderr)
        return None
    layer = SimpleNamespace(
        num_experts=E, hidden_size=H, intermediate_size_per_partition=F, params_dtype=BF16
    )
    w13, s13, g13, w2, s2, g2 = marlin_utils_fp4.prepare_nvfp4_moe_layer_for_marlin(
        layer, *gate_up, *down, is_act_and_mul=True
    )
    workspace = marlin_make_workspace_new(w13.device, 4)

    def run(x: torch.Tensor, ids: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        return fused_marlin_moe(
            x, w13, w2, None, None, s13, s2, share, ids, scalar_types.float4_e2m1f.id,
            activation=MoEActivation.GELU_TANH, global_scale1=g13, global_scale2=g2,
            workspace=workspace,
        )  # fmt: skip

    return run


def vllm_triton(gate_up: Dense, down: Dense) -> Layer | None:
    try:
        from vllm.model_executor.layers.fused_moe.activation import MoEActivation
        from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts
    except ImportError as error:
        print(f"no baseline for dense: {error}", file=sys.stderr)
        return None

    def run(x: torch.Tensor, ids: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        activation = MoEActivation.GELU_TANH
        return fused_experts(x, gate_up.weight, down.weight, share, ids, activation=activation)

    return run


def swept(weights: tuple[Nvfp4, Nvfp4]) -> Iterator[Moe]:
    """Every plan of the table, at one canvas and at more."""
    for tokens in (256, 512, 1024, 2048):
        routed = inputs(tokens, 0.0)
        for plan in (row.plan for row in hopper.TABLE):
            yield timed(
                f"{tokens} tokens, tiles of {plan.tile}",
                routed,
                layer(routed, weights, plan),
                "nvfp4",
            )
