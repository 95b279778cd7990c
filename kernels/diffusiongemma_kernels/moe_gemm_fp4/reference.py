import torch
from torch import Tensor

from diffusiongemma_kernels.formats.nvfp4 import NVFP4, dequantize, encode, pack
from diffusiongemma_kernels.moe_gemm_fp4.types import Fp4, Rows


def quantise(x: Tensor, input_scale: Tensor) -> Rows:
    """x [R, C], input_scale [R] f32, of each row's expert."""
    blocks = x.float().unflatten(1, (-1, 16))
    factor = input_scale.float()[:, None]
    largest = blocks.abs().amax(2)
    scales = (largest / (6.0 * factor)).clamp(max=448.0).to(torch.float8_e4m3fn)
    step = scales.float() * factor  # [R, C / 16]
    v = torch.where(step[..., None] > 0, blocks.abs() / step[..., None], 0.0)
    code = encode(v) | (blocks < 0).to(torch.uint8) << 3
    return Rows(pack(code.flatten(1)), scales.view(torch.uint8))


def dequantise(codes: Tensor, scales: Tensor, factor: Tensor) -> Tensor:
    """[R, C / 2] u8, [R, C / 16] e4m3 or its bits, [R] f32 -> [R, C] f32"""
    matrices = NVFP4(codes[:, None], scales[:, None].view(torch.float8_e4m3fn), factor)
    return dequantize(matrices)[:, 0]


def moe(x: Tensor, topk_ids: Tensor, topk_weights: Tensor, gate_up: Fp4, down: Fp4) -> Tensor:
    """fp32, with both GEMMs' activations rounded to NVFP4."""
    T, K = topk_ids.shape
    F = down.codes.shape[2] * 2
    y = torch.zeros(T, down.codes.shape[1])

    def product(row: Tensor, weights: Fp4, e: int) -> Tensor:
        scale = weights.input_scale[e : e + 1]
        rounded = dequantise(*quantise(row[None], scale), scale)[0]
        rows = weights.global_scale[e].expand(weights.codes.shape[1])
        return dequantise(weights.codes[e], weights.scales[e], rows) @ rounded

    for t in range(T):
        for k in range(K):
            e = int(topk_ids[t, k])
            if 0 <= e < len(gate_up.codes):
                both = product(x[t], gate_up, e)
                h = torch.nn.functional.gelu(both[:F], approximate="tanh") * both[F:]
                y[t] += topk_weights[t, k] * product(h.to(x.dtype), down, e)
    return y
