"""NVFP4 as NVIDIA's checkpoints hold it: four-bit numbers, a scale a block, a scale a matrix.

    w[..., n, k] = e2m1(code[n, k]) * (e4m3(scale[n, k // 16]) * global_scale)

Plain torch, the ground truth of everything that reads or writes the format; equal bit for bit to
``modelopt.torch.quantization.qtensor.NVFP4QTensor`` (nvidia-modelopt 0.47), but for a matrix of
zeros, for which that class divides by zero and which gets a global scale of 1 here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 16
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # codes 0..7; codes 8..15 are their negatives
E2M1_MAX, E4M3_MAX, E4M3_TINY = 6.0, 448.0, 2.0**-9

# Between neighbouring numbers lies their middle; a middle itself goes to the even code.
MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
TIES_UP = (0.75, 1.75, 3.5)


class NVFP4(NamedTuple):
    """One matrix [N, K], or a stack of them [..., N, K]."""

    codes: Tensor  # [..., N, K / 2] u8, the even column in the low nibble
    scales: Tensor  # [..., N, K / 16] e4m3
    global_scale: Tensor  # [...] f32


def quantize(w: Tensor, global_scale: Tensor | None = None) -> NVFP4:
    """Round each matrix to NVFP4.

    w: [..., N, K] floating.  global_scale: [...] f32, each matrix's largest magnitude / 2688 where
    it is not given (gate and up of one expert share the larger of theirs).

    Raises:
        ValueError: where K is no multiple of 16, w is no matrix of finite floats, or a global scale
            is not a positive number.
    """
    _check(w)
    if global_scale is None:
        amax = w.abs().amax(dim=(-2, -1)).float()
        global_scale = torch.where(amax > 0, amax / (E2M1_MAX * E4M3_MAX), 1.0)
    if not bool((torch.isfinite(global_scale) & (global_scale > 0)).all()):
        raise ValueError("NVFP4: every global scale must be a positive finite number")
    by_matrix = global_scale[..., None, None]
    blocks = w.unflatten(-1, (-1, BLOCK))
    scales = blocks.abs().amax(dim=-1).float() / (E2M1_MAX * by_matrix)
    scales = torch.where(scales == 0, 1.0, scales).clamp(E4M3_TINY, E4M3_MAX)
    rounded = scales.to(torch.float8_e4m3fn)
    unit = (rounded.float() * by_matrix)[..., None]
    return NVFP4(pack(encode((blocks / unit).flatten(-2))), rounded, global_scale)


def dequantize(q: NVFP4, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers that ``q`` stands for, computed in f32.  ->  [..., N, K] of ``dtype``"""
    unit = q.scales.float() * q.global_scale.float()[..., None, None]
    blocks = decode(unpack(q.codes)).unflatten(-1, (-1, BLOCK))
    return (blocks * unit[..., None]).flatten(-2).to(dtype)


def encode(x: Tensor) -> Tensor:
    """The nearest e2m1 number, 6 beyond its range; ties go to the even code.   f32  ->  u8"""
    magnitude = x.abs().float()
    code = torch.bucketize(magnitude, torch.tensor(MIDDLES, device=x.device), out_int32=True)
    for tie in TIES_UP:
        code += magnitude == tie
    return (code + 8 * (x < 0)).to(torch.uint8)


def decode(code: Tensor) -> Tensor:
    """[...] u8 below 16  ->  [...] f32"""
    table = torch.tensor(E2M1 + tuple(-x for x in E2M1), device=code.device)
    return table[code.int()]


def pack(code: Tensor) -> Tensor:
    """[..., K] u8  ->  [..., K / 2] u8, the even column in the low nibble"""
    return code[..., 0::2] | code[..., 1::2] << 4


def unpack(codes: Tensor) -> Tensor:
    """What ``pack`` leads back from."""
    return torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)


def _check(w: Tensor) -> None:
    if not w.is_floating_point() or w.dim() < 2 or w.shape[-1] % BLOCK:
        raise ValueError(
            f"NVFP4 holds matrices of floats whose rows are a multiple of {BLOCK} long, got "
            f"{w.dtype} {tuple(w.shape)}"
        )
    if not bool(torch.isfinite(w).all()):
        raise ValueError("NVFP4 has no code for NaN or infinity, and the matrix holds some")
