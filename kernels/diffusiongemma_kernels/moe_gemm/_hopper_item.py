"""What a consumer of `_hopper` does with an item: decode, multiply, and store."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from diffusiongemma_kernels.moe_decode import _kernel as moe_decode

LOG2E = gl.constexpr(moe_decode.LOG2E.value)
# `decode` by the lower or the upper one of a word's two scales.
LOWER, UPPER = (
    gl.constexpr(
        "{ .reg .b16 l, h; .reg .b32 s; mov.b32 {l, h}, $5; mov.b32 s, {half, half};".replace(
            "half", half
        )
        + moe_decode.DECODE.value.replace("$5", "s")
        + "}"
    )
    for half in "lh"
)
# [1, 1, 4, 256] codes of 64 rows: a lane's 16 bytes, a warp's sixteen rows.
CODES = gl.constexpr(
    gl.DistributedLinearLayout(
        reg_bases=[[0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 4]],
        lane_bases=[[0, 0, 0, 8 << i] for i in range(5)],
        warp_bases=[[0, 0, 1, 0], [0, 0, 2, 0]],
        block_bases=[],
        shape=[1, 1, 4, 256],
    )
)
# [4, 32] words of four scales.
SCALES = gl.constexpr(gl.BlockedLayout([1, 1], [1, 32], [4, 1], [1, 0]))
H_STORE = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))
Y_STORE = gl.constexpr(gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0]))


@gluon.jit
def load_scales(scales):
    """A lane's scales of 64 columns, bf16 times 2^118, as the words of `decode`.  [4, 32, 8] i16"""
    four = scales.load(SCALES)  # bytes: rows g and g + 8 of a warp's first 16, then of its others
    row = ((four << 4) & 0x0FF00FF0) | 0x70007000
    row8 = ((four >> 4) & 0x0FF00FF0) | 0x70007000
    s = gl.join(row, row8)
    s = gl.join(s.to(gl.int16), (s >> 16).to(gl.int16))  # [4, 32, 2, 2]
    s = gl.permute(gl.join(s, s), [0, 1, 2, 4, 3])
    return gl.reshape(s, [4, 32, 8])


@gluon.jit
def decode(codes, s, ASM: gl.constexpr, MMA: gl.constexpr):
    """64 columns of weights * 2^-8 / global scale, [64, 64], as the tensor core's left operand."""
    c = gl.reshape(codes.load(CODES), [4, 32, 8])  # unit, lane, its codes
    k0, k1, k2, k3 = gl.inline_asm_elementwise(
        ASM,
        "=r,=r,=r,=r,r,r",
        [c, gl.convert_layout(s, c.type.layout, assert_trivial=True)],
        dtype=(gl.bfloat16, gl.bfloat16, gl.bfloat16, gl.bfloat16),
        is_pure=True,
        pack=2,
    )
    w = gl.join(gl.join(k0, k2), gl.join(k1, k3))
    # unit, row, quad, row8, k8, k1, step2, step
    w = gl.permute(gl.reshape(w, [4, 8, 4, 2, 2, 2, 2, 2]), [0, 3, 1, 6, 7, 4, 2, 5])
    operand: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    return gl.convert_layout(gl.reshape(w, [64, 64]), operand, assert_trivial=True)


@gluon.jit
def add_columns(
    sums, ring, slot, j: gl.constexpr,
    WHICH: gl.constexpr, A: gl.constexpr, B: gl.constexpr, C: gl.constexpr,
):  # fmt: skip
    """The products of a stage's 64 columns `j`, waited for: left operands are in registers.

    The first 64 rows are multiplied while the others are decoded.
    """
    codes, scales, xa, xb, _, _ = ring
    acc0, more0, acc1, more1 = sums
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, A, 16])
    MMB: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, B or A, 16])
    c = codes.index((slot * C + WHICH) * 2 + j)
    s = load_scales(scales.index((slot * C + WHICH) * 2 + j))
    tokens = xa.index(slot * 2 + j)
    x = tokens.slice(0, A, dim=0).permute((1, 0))
    if B > 0:
        if A == tokens.shape[0]:
            y = xb.index(slot * 2 + j).permute((1, 0))
        else:
            y = tokens.slice(A, B, dim=0).permute((1, 0))
    w0 = decode(c.slice(0, 4, dim=2), s, LOWER, MMA)
    acc0 = warpgroup_mma(w0, x, acc0, is_async=True)
    if B > 0:
        w0 = gl.convert_layout(w0, gl.DotOperandLayout(0, MMB, 2), assert_trivial=True)
        more0 = warpgroup_mma(w0, y, more0, is_async=True)
    w1 = decode(c.slice(4, 4, dim=2), s, UPPER, MMA)
    acc1 = warpgroup_mma(w1, x, acc1, is_async=True)
    if B > 0:
        w1 = gl.convert_layout(w1, gl.DotOperandLayout(0, MMB, 2), assert_trivial=True)
        more1 = warpgroup_mma(w1, y, more1, is_async=True)
        acc0, more0, acc1, more1, w0, w1 = warpgroup_mma_wait(
            0, deps=[acc0, more0, acc1, more1, w0, w1]
        )
    else:
        acc0, acc1, w0, w1 = warpgroup_mma_wait(0, deps=[acc0, acc1, w0, w1])
    return acc0, more0, acc1, more1


@gluon.jit
def add_stage(
    sums, ring, it, BLOCKS: gl.constexpr,
    WHICH: gl.constexpr, A: gl.constexpr, B: gl.constexpr, C: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The products of the first BLOCKS times 64 columns of a stage, which is free behind them."""
    full, empty = ring[4], ring[5]
    slot = it % STAGES
    mbarrier.wait(full.index(slot), (it // STAGES) & 1)
    fence_async_shared()  # x came by ordinary stores
    for j in gl.static_range(BLOCKS):
        sums = add_columns(sums, ring, slot, j, WHICH, A, B, C)
    mbarrier.arrive(empty.index(slot), count=1)
    return sums


@gluon.jit
def multiply(
    ring, it, columns,
    WHICH: gl.constexpr, A: gl.constexpr, B: gl.constexpr, C: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The sums of an item's A and then B tokens for either 64 rows, [64, A] and [64, B] f32.

    And the next stage.
    """
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, A, 16])
    MMB: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, B or A, 16])
    acc0 = gl.full([64, A], 0.0, gl.float32, MMA)
    acc1 = gl.full([64, A], 0.0, gl.float32, MMA)
    more0 = gl.full([64, B or A], 0.0, gl.float32, MMB)
    more1 = gl.full([64, B or A], 0.0, gl.float32, MMB)
    sums = acc0, more0, acc1, more1
    for _ in range(0, columns // 128):
        sums = add_stage(sums, ring, it, 2, WHICH, A, B, C, STAGES)
        it += 1
    for _ in range(columns // 128 * 128, columns, 64):  # half of a stage is left
        sums = add_stage(sums, ring, it, 1, WHICH, A, B, C, STAGES)
        it += 1
    return sums, it


@gluon.jit
def skip(ring, it, columns, STAGES: gl.constexpr):
    """An item's stages without this consumer: the rows end before its block."""
    full, empty = ring[4], ring[5]
    for _ in range(0, columns, 128):
        mbarrier.wait(full.index(it % STAGES), (it // STAGES) & 1)
        mbarrier.arrive(empty.index(it % STAGES), count=1)
        it += 1
    return it


@gluon.jit
def store_h(gate, up, h_ptr, scale, start, count, block, stride_h, N: gl.constexpr):
    """h[start + n, f] = gelu(gate) * up for the 64 f of `block`, in `moe_sort`'s order."""
    n = gl.arange(0, N, gl.SliceLayout(1, H_STORE))
    f = gl.arange(0, 64, gl.SliceLayout(0, H_STORE))
    gate = gate * scale
    up = up * scale
    inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
    h = (gate / (1.0 + gl.exp2(inner * (-2.0 * LOG2E))) * up).to(gl.bfloat16)
    h = gl.permute(gl.reshape(h, [4, 8, 2, N]), [3, 1, 0, 2])
    h = gl.convert_layout(gl.reshape(h, [N, 64]), H_STORE)
    h_ptrs = h_ptr + (start + n)[:, None].to(gl.int64) * stride_h + (block * 64 + f)[None, :]
    gl.store(h_ptrs, h, mask=(n < count)[:, None])


@gluon.jit
def store_slots(acc0, acc1, down, start, count, block, N: gl.constexpr):
    """slots[row, m] = weight[row] * down for the 128 m of `block`."""
    rows_ptr, weight_ptr, slots_ptr, scale, H = down
    across = gl.arange(0, N, gl.SliceLayout(0, acc0.type.layout))
    row = gl.load(rows_ptr + start + across, mask=across < count, other=0)
    weight = gl.load(weight_ptr + row, mask=across < count, other=0.0) * scale
    y0 = (acc0 * weight[None, :]).to(gl.bfloat16)
    y1 = (acc1 * weight[None, :]).to(gl.bfloat16)
    y = gl.reshape(gl.permute(gl.join(y0, y1), [1, 2, 0]), [N, 128])
    y = gl.convert_layout(y, Y_STORE)
    n = gl.arange(0, N, gl.SliceLayout(1, Y_STORE))
    m = block * 128 + gl.arange(0, 128, gl.SliceLayout(0, Y_STORE))
    row = gl.load(rows_ptr + start + n, mask=n < count, other=0)
    slots_ptrs = slots_ptr + row[:, None].to(gl.int64) * H + m[None, :]
    gl.store(slots_ptrs, y, mask=(n < count)[:, None] & (m < H)[None, :])


@gluon.jit
def one_item(
    item, out, ring, it, columns,
    WHICH: gl.constexpr, A: gl.constexpr, B: gl.constexpr, C: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    is_up, expert, start, count, block = item
    up_global_ptr, h_ptr, stride_h, down_global_ptr, rows_ptr, weight_ptr, slots_ptr, H = out
    sums, it = multiply(ring, it, columns, WHICH, A, B, C, STAGES)
    acc0, more0, acc1, more1 = sums
    if is_up:
        scale = gl.load(up_global_ptr + expert) * 256.0
        store_h(acc0, acc1, h_ptr, scale, start, count, block, stride_h, A)
        if B > 0:
            store_h(more0, more1, h_ptr, scale, start + A, count - A, block, stride_h, B)
    else:
        scale = gl.load(down_global_ptr + expert) * 256.0
        down = rows_ptr, weight_ptr, slots_ptr, scale, H
        store_slots(acc0, acc1, down, start, count, block, A)
        if B > 0:
            store_slots(more0, more1, down, start + A, count - A, block, B)
    return it
