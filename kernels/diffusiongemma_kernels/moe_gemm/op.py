"""The experts of one layer, from routed rows to their sum."""

import torch
from torch import Tensor

from diffusiongemma_kernels import target
from diffusiongemma_kernels.moe_gemm import _config, _kernel, _torch, hopper, routed
from diffusiongemma_kernels.moe_gemm._config import Config, Schedule
from diffusiongemma_kernels.moe_gemm.order import arranged, tensor_of
from diffusiongemma_kernels.moe_gemm.types import Arranged, Dense, Experts, Nvfp4, Unsummed
from diffusiongemma_kernels.moe_sort.op import moe_sort
from diffusiongemma_kernels.moe_sort.types import Sorted


def moe(
    x: Tensor | Arranged,
    topk_ids: Tensor,
    topk_weights: Tensor,
    gate_up: Experts,
    down: Experts,
    *,
    batch_invariant: bool = False,
) -> Tensor:
    """y[t] = sum_k topk_weights[t, k] * down[e] (gelu_tanh(gate[e] x[t]) * (up[e] x[t]))

    for e = topk_ids[t, k]; an id outside 0 .. E - 1 adds nothing.  x [T, H]; topk_ids [T, K] i32;
    topk_weights [T, K] f32; gate_up 2 F x H and down H x F an expert, both NVFP4 or both dense.
    Products are of x's dtype and sums fp32; h and each slot's row are rounded to x's dtype.
    x may be arranged by `lane` where the weights are NVFP4, as `norms.enter` writes it.
    `batch_invariant`: a row's bits do not depend on the other rows.
    """
    return routed.summed(
        moe_unsummed(x, topk_ids, topk_weights, gate_up, down, batch_invariant=batch_invariant)
    )


def moe_unsummed(
    x: Tensor | Arranged,
    topk_ids: Tensor,
    topk_weights: Tensor,
    gate_up: Experts,
    down: Experts,
    *,
    batch_invariant: bool = False,
) -> Tensor | Unsummed:
    """What `moe` adds up, for `norms.leave` to add up; on a CPU the sum."""
    routed_x = (x, topk_ids, topk_weights)
    if isinstance(x, Tensor) and not x.is_cuda:
        return moe_torch(x, topk_ids, topk_weights, gate_up, down)
    if isinstance(gate_up, Nvfp4) and hopper.runs_on(target.of(topk_ids.device).capability):
        assert isinstance(down, Nvfp4)
        return moe_hopper(*routed_x, gate_up, down)
    return moe_triton(*routed_x, gate_up, down, batch_invariant=batch_invariant)


def moe_torch(
    x: Tensor, topk_ids: Tensor, topk_weights: Tensor, gate_up: Experts, down: Experts
) -> Tensor:
    """The sum on a CPU; batch-invariant as far as torch's matrix product is."""
    _check(x, topk_ids, topk_weights, gate_up, down)
    return _torch.moe(x, topk_ids, topk_weights, gate_up, down)


def lane(capability: tuple[int, int]) -> int:
    """How `norms.enter` arranges what NVFP4 weights meet on such a GPU."""
    return hopper.LANE if hopper.runs_on(capability) else _config.LANE


def moe_triton(
    x: Tensor | Arranged,
    topk_ids: Tensor,
    topk_weights: Tensor,
    gate_up: Experts,
    down: Experts,
    *,
    batch_invariant: bool = False,
    config: Config | None = None,
) -> Unsummed:
    """Every slot's row by Triton.  `config` overrides the table, for tests and for the bench."""
    E = _check(tensor_of(x), topk_ids, topk_weights, gate_up, down)
    (T, K), nvfp4 = topk_ids.shape, isinstance(gate_up, Nvfp4)
    if T == 0:
        return Unsummed(torch.empty_like(tensor_of(x)), topk_ids, E)
    cfg = config or _config.choose(
        T * K / E, nvfp4, target.of(topk_ids.device).capability, batch_invariant
    )
    ordered = moe_sort(topk_ids, experts=E, block=cfg.block_n)
    read = arranged(x, _config.LANE) if nvfp4 else tensor_of(x)
    h = launch_gate_up(read, ordered, gate_up, K, cfg)
    return Unsummed(launch_down(ordered, h, topk_weights, down, cfg), topk_ids, E)


def moe_hopper(
    x: Tensor | Arranged,
    topk_ids: Tensor,
    topk_weights: Tensor,
    gate_up: Nvfp4,
    down: Nvfp4,
    *,
    plan: hopper.Plan | None = None,
) -> Unsummed:
    """The same by Gluon, on Hopper: always batch-invariant.  `plan` overrides the table."""
    E = _check(tensor_of(x), topk_ids, topk_weights, gate_up, down)
    T, K = topk_ids.shape
    if T == 0:
        return Unsummed(torch.empty_like(tensor_of(x)), topk_ids, E)
    plan = plan or hopper.choose(T * K / E)
    ordered = moe_sort(topk_ids, experts=E, block=plan.tile, fullest_first=True)
    read = arranged(x, hopper.LANE)
    return Unsummed(hopper.launch(read, ordered, topk_weights, gate_up, down, plan), topk_ids, E)


def launch_gate_up(x: Tensor, ordered: Sorted, weights: Experts, K: int, cfg: Config) -> Tensor:
    """gelu(gate) * up of every row.  [T * K, F rounded up to 64], by expert"""
    F = weights.rows // 2
    h = x.new_empty(len(ordered.rows), -(-F // 64) * 64)
    columns = x.shape[1]
    plan = _plan(weights, cfg.gate_up, columns)
    grid = (-(-F // 64), ordered.tiles.shape[1])
    _kernel.gate_up[grid](
        x,
        *_tensors(weights),
        ordered.rows,
        ordered.tiles,
        h,
        columns,
        F,
        ordered.tiles.shape[1],
        x.stride(0),
        h.stride(0),
        K=K,
        BLOCK_N=cfg.block_n,
        TAIL_N=cfg.tail_n,
        **plan,
    )
    return h


def launch_down(
    ordered: Sorted, h: Tensor, topk_weights: Tensor, weights: Experts, cfg: Config
) -> Tensor:
    """Every slot's weighted row.  [T * K, H], unwritten where the id is nobody's"""
    H = weights.rows
    slots = h.new_empty(len(ordered.rows), H)
    columns = h.shape[1] if isinstance(weights, Nvfp4) else weights.columns
    plan = _plan(weights, cfg.down, columns)
    grid = (-(-H // 128), ordered.tiles.shape[1])
    _kernel.down[grid](
        h,
        *_tensors(weights),
        ordered.rows,
        ordered.tiles,
        topk_weights,
        slots,
        columns,
        H,
        ordered.tiles.shape[1],
        h.stride(0),
        BLOCK_N=cfg.block_n,
        TAIL_N=cfg.tail_n,
        **plan,
    )
    return slots


def _plan(weights: Experts, schedule: Schedule, columns: int) -> dict:
    """The launch arguments that a schedule and a shape decide."""
    nvfp4 = isinstance(weights, Nvfp4)
    if nvfp4:
        schedule = _config.fit(schedule, columns)
    return {
        "BLOCK_K": schedule.block_k,
        "FOUR_BITS": nvfp4,
        "EVEN_K": columns % schedule.block_k == 0,
        "num_warps": schedule.warps,
        "num_stages": schedule.stages,
    }


def _tensors(weights: Experts) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernels take; a dense weight stands in for scales it has not."""
    if isinstance(weights, Nvfp4):
        return weights.codes, weights.scales, weights.global_scale
    return weights.weight, weights.weight, weights.weight


def _check(
    x: Tensor, topk_ids: Tensor, topk_weights: Tensor, gate_up: Experts, down: Experts
) -> int:
    routed.check(x, topk_ids, topk_weights)
    H, F = x.shape[1], down.columns
    assert type(gate_up) is type(down), f"{type(gate_up)=} {type(down)=}"
    assert (gate_up.rows, gate_up.columns) == (2 * F, H), f"{gate_up.rows=} {gate_up.columns=}"
    assert down.rows == H, f"{down.rows=} {H=}"
    if x.is_cuda:
        assert x.dtype == torch.bfloat16, f"activations are bfloat16, got {x.dtype}"
    for weights in (gate_up, down):
        assert all(tensor.is_contiguous() for tensor in _tensors(weights))
        if isinstance(weights, Dense):
            assert weights.weight.dtype == x.dtype, f"{weights.weight.dtype=} {x.dtype=}"
    return len(_tensors(gate_up)[0])
