"""NVFP4 expert weights into the order of the tensor core's registers, and back.

A unit is 16 rows by 64 columns, 512 bytes.  Lane 4 g + q of a warp owns 16 bytes of it: rows g and
g + 8, columns 16 q .. 16 q + 15, which share one scale a row; `order` puts x's columns where the
lane reads them.  A 16-bit half holds columns 16 q + 4 j + 2 h + b for j = 0 .. 3, its bits chosen
so that a shift and a mask put a number where a bf16 has sign, low exponent and high mantissa bits.
A scale's byte is what a bf16 of scale * 2^118 has below its three highest exponent bits, which are
ones; the missing 2^-118 and the 2^126 of the codes meet in `decode` and leave 2^-8.
"""

import torch
from torch import Tensor

from diffusiongemma_kernels.moe_gemm.types import Nvfp4

MAGNITUDE = (0, 3, 6, 13)  # the lowest bit of number j in a half
SIGN = (9, 12, 10, 11)


def _scale_bytes() -> Tensor:
    """e4m3 bits -> the byte stored, -1 where a scale must not be: zero, negative or NaN."""
    value = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    mantissa, exponent = torch.frexp(value)  # value = mantissa * 2^exponent, 1/2 <= mantissa < 1
    stored = ((exponent - 1 + 118 + 127 - 224) << 3) + (mantissa * 16 - 8).nan_to_num().int()
    return torch.where(value > 0, stored, -1)


SCALE_BYTES = _scale_bytes()


def pack(codes: Tensor, scales: Tensor, global_scale: Tensor, *, gate_up: bool) -> Nvfp4:
    """codes [E, R, C / 2] u8, low nibble first; scales [E, R, C / 16] e4m3; global_scale [E] f32.

    weight[e, r, c] = e2m1(codes) * scales[e, r, c // 16] * global_scale[e].  `gate_up` says that
    the rows are F of the gate and then F of up: blocks of 64 of either alternate.  Rows are padded
    to 128 and columns to 64 by zeros.
    Raises ValueError on shapes that do not fit, and on scales that are negative or NaN.
    """
    E, R, half = codes.shape
    C = half * 2
    if codes.dtype != torch.uint8 or scales.dtype != torch.float8_e4m3fn:
        raise ValueError(f"codes are u8 and scales e4m3, got {codes.dtype} and {scales.dtype}")
    if C % 16 or scales.shape != (E, R, C // 16) or global_scale.shape != (E,):
        raise ValueError(
            f"NVFP4 has a scale for 16 columns and a global scale an expert; got codes "
            f"{tuple(codes.shape)}, scales {tuple(scales.shape)}, {tuple(global_scale.shape)}"
        )
    if gate_up and R % 2:
        raise ValueError(f"gate and up rows must be as many, got {R} rows together")
    rows = _row_order(R, gate_up).to(codes.device)
    bits = scales.view(torch.uint8)
    table = SCALE_BYTES.to(codes.device)
    if bool(((table[bits.int()] < 0) & (bits != 0)).any()):
        raise ValueError("a block scale is negative or NaN")
    blocks = (len(rows) // 128, -(-C // 64))
    device = codes.device
    packed = torch.empty(E, *blocks, 8, 32, 8, dtype=torch.int16, device=device)
    packed_scales = torch.empty(E, *blocks, 4, 32, 2, 2, dtype=torch.uint8, device=device)
    for e in range(E):  # one expert at a time bounds the memory
        empty = bits[e] == 0  # a scale of zero: codes of zero times one
        nibbles = torch.stack((codes[e] & 15, codes[e] >> 4), 2).view(R, C // 16, 16)
        nibbles = nibbles.masked_fill(empty[:, :, None], 0).flatten(1)
        stored = table[torch.where(empty, 0x38, bits[e]).int()].to(torch.uint8)
        packed[e] = _pack_codes(_padded(nibbles, rows, blocks[1] * 64))
        packed_scales[e] = _pack_scales(_padded(stored, rows, blocks[1] * 4))
    return Nvfp4(packed, packed_scales, global_scale.float().contiguous(), R, C)


def unpack(weights: Nvfp4, *, gate_up: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments of `pack`.  Blocks whose scale was zero come back as zeros with scale 1."""
    R, C = weights.rows, weights.columns
    E, row_blocks, blocks = weights.scales.shape[:3]
    order = _row_order(R, gate_up).to(weights.codes.device)
    inverse = torch.empty(R, dtype=torch.int64, device=order.device)
    inverse[order[order >= 0]] = (order >= 0).nonzero()[:, 0]

    halves = weights.codes.view(E, row_blocks, blocks, 8, 8, 4, 2, 2, 2).int()
    numbers = torch.stack(
        [((halves >> MAGNITUDE[j]) & 7) | ((halves >> SIGN[j]) & 1) << 3 for j in range(4)], -1
    )  # [e, m, k, u, g, q, r, h, b, j]
    nibbles = numbers.permute(0, 1, 3, 6, 4, 2, 5, 9, 7, 8)
    nibbles = nibbles.reshape(E, row_blocks * 128, blocks * 64)[:, inverse, :C].to(torch.uint8)
    codes = nibbles[..., ::2] | nibbles[..., 1::2] << 4

    table = torch.zeros(256, dtype=torch.uint8)
    table[SCALE_BYTES[SCALE_BYTES >= 0]] = (SCALE_BYTES >= 0).nonzero()[:, 0].to(torch.uint8)
    bits = table.to(order.device)[weights.scales.int()].view(E, row_blocks, blocks, 4, 8, 4, 2, 2)
    bits = bits.permute(0, 1, 6, 3, 7, 4, 2, 5).reshape(E, row_blocks * 128, blocks * 4)
    bits = bits[:, inverse, : C // 16].contiguous()
    return codes.contiguous(), bits.view(torch.float8_e4m3fn), weights.global_scale


def _row_order(R: int, gate_up: bool) -> Tensor:
    """Which row lies where, -1 in padding.  [R rounded up]"""
    if not gate_up:
        return torch.nn.functional.pad(torch.arange(R), (0, -R % 128), value=-1)
    F = R // 2
    f = torch.nn.functional.pad(torch.arange(F), (0, -F % 64), value=-1).view(-1, 1, 64)
    return torch.where(f < 0, -1, torch.cat((f, f + F), 1)).flatten()


def _padded(matrix: Tensor, rows: Tensor, columns: int) -> Tensor:
    """The rows in their order, zeros where there is none and beyond the columns."""
    matrix = torch.nn.functional.pad(matrix, (0, columns - matrix.shape[1]))
    return matrix[rows.clamp(min=0)].masked_fill((rows < 0)[:, None], 0)


def _pack_codes(nibbles: Tensor) -> Tensor:
    """[R, C] u8 -> [R / 128, C / 64, 8, 32, 8] i16"""
    R, C = nibbles.shape
    split = nibbles.view(R // 128, 8, 2, 8, C // 64, 4, 4, 2, 2)  # m, u, r, g, k, q, j, h, b
    numbers = split.permute(6, 0, 4, 1, 3, 5, 2, 7, 8).reshape(4, R // 128, C // 64, 8, 32, 8).int()
    half = torch.zeros_like(numbers[0])
    for j, number in enumerate(numbers):
        half |= (number & 7) << MAGNITUDE[j] | (number >> 3) << SIGN[j]
    return torch.where(half < 32768, half, half - 65536).to(torch.int16)


def _pack_scales(stored: Tensor) -> Tensor:
    """[R, C / 16] u8 -> [R / 128, C / 64, 4, 32, 2, 2] u8"""
    R, C = stored.shape
    split = stored.view(R // 128, 2, 4, 2, 8, C // 4, 4)  # m, half, u, r, g, k, q
    return split.permute(0, 5, 2, 4, 6, 1, 3).reshape(R // 128, C // 4, 4, 32, 2, 2)
