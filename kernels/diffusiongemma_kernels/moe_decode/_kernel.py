"""NVFP4 numbers as floats, and the gate: what the expert GEMMs share."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)

# Four e2m1 numbers in each 16-bit half of $4, as bf16 times 2^-126, times the scales in $5.
DECODE = tl.constexpr("""{
    .reg .b32 a, b, c, d, t;
    shl.b32 a, $4, 6;
    shl.b32 b, $4, 3;
    shl.b32 c, $4, 5;
    shl.b32 d, $4, 4;
    shr.u32 t, $4, 7;
    and.b32 a, a, 0x81C081C0;
    and.b32 b, b, 0x81C081C0;
    and.b32 c, c, 0x80008000;
    lop3.b32 c, $4, 0x01C001C0, c, 0xEA;
    and.b32 d, d, 0x80008000;
    lop3.b32 d, t, 0x01C001C0, d, 0xEA;
    mov.b32 t, 0x80008000;
    fma.rn.bf16x2 $0, a, $5, t;
    fma.rn.bf16x2 $1, b, $5, t;
    fma.rn.bf16x2 $2, c, $5, t;
    fma.rn.bf16x2 $3, d, $5, t;
}""")


@triton.jit
def field(half, MAGNITUDE: tl.constexpr, SIGN: tl.constexpr):
    """An e2m1 number as the bits of a bf16; `half` is i32, the constants are shifts to the left."""
    if MAGNITUDE < 0:
        magnitude = half >> -MAGNITUDE
    else:
        magnitude = half << MAGNITUDE
    return (magnitude & 0x01C0) | ((half << SIGN) & 0x8000)


@triton.jit
def as_float(bits, DTYPE: tl.constexpr):
    return (bits << 16).to(tl.float32, bitcast=True).to(DTYPE)


@triton.jit
def decode(
    codes,
    scales,
    U: tl.constexpr,
    KB: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """codes [U, KB, 32, 8] i16, scales [U, KB, 32, 2] u8 -> weights * 2^-8 / global scale.

    U units of 16 rows, KB blocks of 64 columns, 32 lanes; `pack` has the order within them: the
    result [U * 16, KB * 64], columns arranged for lanes of 8, is where a tensor core
    wants it without a move.
    """
    if DTYPE == tl.bfloat16:
        s = (scales.to(tl.uint16) << 4) | 0x7000
        s = tl.broadcast_to(s[:, :, :, :, None], [U, KB, 32, 2, 4]).reshape(U, KB, 32, 8)
        k0, k1, k2, k3 = tl.inline_asm_elementwise(
            DECODE,
            "=r,=r,=r,=r,r,r",
            [codes, s],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    else:
        half = codes.to(tl.int32) & 0xFFFF
        s = as_float((scales.to(tl.int32) << 4) | 0x7000, DTYPE)
        s = tl.broadcast_to(s[:, :, :, :, None], [U, KB, 32, 2, 4]).reshape(U, KB, 32, 8)
        k0 = as_float(field(half, 6, 6), DTYPE) * s
        k1 = as_float(field(half, 3, 3), DTYPE) * s
        k2 = as_float(field(half, 0, 5), DTYPE) * s
        k3 = as_float(field(half, -7, 4), DTYPE) * s
    w = tl.join(tl.join(k0, k2), tl.join(k1, k3))  # [U, KB, 32, 8, 2, 2]
    w = w.reshape(U, KB, 8, 4, 2, 2, 2, 2, 2)  # unit, block, row, quad, row8, k8, k1, step2, step
    return w.permute(0, 4, 2, 1, 7, 3, 8, 5, 6).reshape(U * 16, KB * 64)


@triton.jit
def gated(product, M: tl.constexpr, N: tl.constexpr):
    """Blocks of 64 rows of the gate and 64 of up -> gelu(gate) * up.  [M, N] -> [M / 2, N]"""
    both = product.reshape(M // 128, 2, 64, N).permute(0, 2, 3, 1)
    gate, up = tl.split(both.reshape(M // 2, N, 2))
    inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
    return gate / (1.0 + tl.exp2(inner * (-2.0 * LOG2E))) * up
