"""The experts of one layer with NVFP4 activations, for tensor cores that multiply FP4."""

import torch
from torch import Tensor

from diffusiongemma_kernels import target
from diffusiongemma_kernels.moe_gemm import routed
from diffusiongemma_kernels.moe_gemm.types import Unsummed
from diffusiongemma_kernels.moe_gemm_fp4 import _config, _kernel
from diffusiongemma_kernels.moe_gemm_fp4._config import Config
from diffusiongemma_kernels.moe_gemm_fp4.types import Fp4, Rows
from diffusiongemma_kernels.moe_sort.op import moe_sort
from diffusiongemma_kernels.moe_sort.types import Sorted


def multiplies_fp4(capability: tuple[int, int]) -> bool:
    """True for Blackwell, whose tensor cores multiply NVFP4 by NVFP4."""
    return capability[0] in (10, 12)


def moe_fp4(
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    gate_up: Fp4,
    down: Fp4,
    *,
    batch_invariant: bool = False,
    config: Config | None = None,
) -> Unsummed:
    """y[t] = sum_k topk_weights[t, k] * down[e] q2(gelu_tanh(gate[e] q1(x[t])) * (up[e] q1(x[t])))

    q rounds a row to NVFP4 with its expert's `input_scale` s: a block of 16 has the scale
    e4m3(max |x| / (6 s)) and the numbers e2m1(x / (scale s)), ties to even.  Shapes as in
    `moe_gemm.op.moe`, of which this is the W4A4 form before the sum over k; the weights stay as a
    checkpoint has them.
    Raises ValueError on a GPU whose tensor cores have no FP4.
    """
    (T, K), E = topk_ids.shape, len(down.codes)
    _check(x, topk_ids, topk_weights, gate_up, down)
    if T == 0:
        return Unsummed(torch.empty_like(x), topk_ids, E)
    native = x.is_cuda  # the interpreter has no e4m3 scales: there the numbers are decoded
    if config is None:
        capability = target.of(x.device).capability if native else (10, 0)
        config = _config.choose(T * K / E, capability, batch_invariant)
    ordered = moe_sort(topk_ids, experts=E, block=config.block_n)
    rows = quantise(x, ordered, gate_up.input_scale, K, config)
    h = launch_gate_up(rows, ordered, gate_up, x.dtype, config)
    rows = quantise(h, ordered, down.input_scale, 0, config)
    slots = launch_down(rows, ordered, topk_weights, down, x.dtype, config)
    return Unsummed(slots, topk_ids, E)


def quantise(x: Tensor, ordered: Sorted, input_scale: Tensor, K: int, config: Config) -> Rows:
    """Every row by expert; K is 0 where x is by expert already."""
    R, C = len(ordered.rows), x.shape[1]
    codes = torch.empty((R, C // 2), dtype=torch.uint8, device=x.device)
    scales = torch.empty((R, C // 16), dtype=torch.uint8, device=x.device)
    tiles = ordered.tiles.shape[1]
    _kernel.quantise[(-(-C // config.quantised), tiles)](
        x,
        ordered.rows,
        ordered.tiles,
        input_scale,
        codes,
        scales,
        C,
        tiles,
        x.stride(0),
        K=K,
        BLOCK_N=config.block_n,
        BLOCK_C=config.quantised,
        num_warps=4,
    )
    return Rows(codes, scales)


def launch_gate_up(
    rows: Rows, ordered: Sorted, weights: Fp4, dtype: torch.dtype, config: Config
) -> Tensor:
    """gelu(gate) * up of every row.  [T * K, F], by expert"""
    _, both, half = weights.codes.shape
    F, tiles = both // 2, ordered.tiles.shape[1]
    h = torch.empty((len(ordered.rows), F), dtype=dtype, device=rows.codes.device)
    _kernel.gate_up[(-(-F // (config.block_m // 2)), tiles)](
        *rows,
        weights.codes,
        weights.scales.view(torch.uint8),
        weights.global_scale,
        weights.input_scale,
        ordered.tiles,
        h,
        half * 2,
        F,
        tiles,
        **_plan(config, half * 2, h.is_cuda),
    )
    return h


def launch_down(
    rows: Rows,
    ordered: Sorted,
    topk_weights: Tensor,
    weights: Fp4,
    dtype: torch.dtype,
    config: Config,
) -> Tensor:
    """Every slot's weighted row.  [T * K, H], unwritten where the id is nobody's"""
    _, H, half = weights.codes.shape
    tiles = ordered.tiles.shape[1]
    slots = torch.empty((len(ordered.rows), H), dtype=dtype, device=rows.codes.device)
    _kernel.down[(-(-H // config.block_m), tiles)](
        *rows,
        weights.codes,
        weights.scales.view(torch.uint8),
        weights.global_scale,
        weights.input_scale,
        ordered.rows,
        ordered.tiles,
        topk_weights,
        slots,
        half * 2,
        H,
        tiles,
        **_plan(config, half * 2, slots.is_cuda),
    )
    return slots


def _plan(config: Config, columns: int, native: bool) -> dict:
    return {
        "BLOCK_N": config.block_n,
        "BLOCK_M": config.block_m,
        "BLOCK_K": config.block_k,
        "EVEN_K": columns % config.block_k == 0,
        "ALIGN": _config.alignment(columns),
        "NATIVE": native,
        "num_warps": config.warps,
        "num_stages": config.stages,
    }


def _check(x: Tensor, topk_ids: Tensor, topk_weights: Tensor, gate_up: Fp4, down: Fp4) -> None:
    routed.check(x, topk_ids, topk_weights)
    E, both, _ = gate_up.codes.shape
    H, F = x.shape[1], both // 2
    assert H % 16 == 0 == F % 16, f"a scale has 16 columns: {H=} {F=}"
    for weights, rows, columns in ((gate_up, 2 * F, H), (down, H, F)):
        assert weights.codes.shape == (E, rows, columns // 2), f"{weights.codes.shape=}"
        assert weights.scales.shape == (E, rows, columns // 16), f"{weights.scales.shape=}"
        assert weights.codes.dtype == torch.uint8 and weights.scales.dtype == torch.float8_e4m3fn
        for scale in (weights.global_scale, weights.input_scale):
            assert scale.shape == (E,) and scale.dtype == torch.float32, f"{scale.shape=}"
        assert all(tensor.is_contiguous() for tensor in weights)
