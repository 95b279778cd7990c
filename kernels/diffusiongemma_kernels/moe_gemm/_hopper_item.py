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

DECODE = gl.constexpr(moe_decode.DECODE.value)
LOG2E = gl.constexpr(moe_decode.LOG2E.value)
# [1, 1, 8, 256] codes: a lane's 16 bytes of either half of the rows, a warp's sixteen.
CODES = gl.constexpr(
    gl.DistributedLinearLayout(
        reg_bases=[[0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 4], [0, 0, 4, 0]],
        lane_bases=[[0, 0, 0, 8 << i] for i in range(5)],
        warp_bases=[[0, 0, 1, 0], [0, 0, 2, 0]],
        block_bases=[],
        shape=[1, 1, 8, 256],
    )
)
# [1, 1, 2, 256] scales: a lane's four bytes.
SCALES = gl.constexpr(
    gl.DistributedLinearLayout(
        reg_bases=[[0, 0, 0, 1], [0, 0, 0, 2]],
        lane_bases=[[0, 0, 0, 4 << i] for i in range(5)],
        warp_bases=[[0, 0, 0, 128], [0, 0, 1, 0]],
        block_bases=[],
        shape=[1, 1, 2, 256],
    )
)
H_STORE = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))
Y_STORE = gl.constexpr(gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0]))


@gluon.jit
def decode(codes, scales, MMA: gl.constexpr):
    """64 columns of weights * 2^-8 / global scale, [128, 64], as the tensor core's left operand."""
    c = gl.reshape(codes.load(CODES), [2, 4, 32, 8])  # half of the rows, unit, lane, its codes
    s = gl.reshape(scales.load(SCALES), [4, 32, 2, 2])
    s = gl.permute((s.to(gl.uint16) << 4) | 0x7000, [2, 0, 1, 3])
    s = gl.join(s, s)
    s = gl.reshape(gl.join(s, s), [2, 4, 32, 8])
    k0, k1, k2, k3 = gl.inline_asm_elementwise(
        DECODE,
        "=r,=r,=r,=r,r,r",
        [c, gl.convert_layout(s, c.type.layout, assert_trivial=True)],
        dtype=(gl.bfloat16, gl.bfloat16, gl.bfloat16, gl.bfloat16),
        is_pure=True,
        pack=2,
    )
    w = gl.join(gl.join(k0, k2), gl.join(k1, k3))
    # half, unit, row, quad, row8, k8, k1, step2, step
    w = gl.permute(gl.reshape(w, [2, 4, 8, 4, 2, 2, 2, 2, 2]), [0, 1, 4, 2, 7, 8, 5, 3, 6])
    operand: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    return gl.convert_layout(gl.reshape(w, [128, 64]), operand, assert_trivial=True)


@gluon.jit
def multiply(
    ring, it, columns,
    WHICH: gl.constexpr, A: gl.constexpr, B: gl.constexpr,
    C: gl.constexpr, KB: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The sums of an item's A and then B tokens, [128, A] and [128, B] f32, and the next step.

    A product is waited for before the next weights are decoded: its left operand is in registers.
    """
    codes, scales, xa, xb, full, empty = ring
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, A, 16])
    MMB: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, B or A, 16])
    acc = gl.full([128, A], 0.0, gl.float32, MMA)
    more = gl.full([128, B or A], 0.0, gl.float32, MMB)
    for _ in range(0, columns, KB * 64):
        slot = it % STAGES
        mbarrier.wait(full.index(slot), (it // STAGES) & 1)
        fence_async_shared()  # x came by ordinary stores
        for j in gl.static_range(KB):
            c = codes.index(slot * C + WHICH).slice(j * 8, 8, dim=2)
            s = scales.index(slot * C + WHICH).slice(j * 2, 2, dim=2)
            w = decode(c, s, MMA)
            x = xa.index(slot * KB + j)
            acc = warpgroup_mma(w, x.slice(0, A, dim=0).permute((1, 0)), acc, is_async=True)
            if B > 0:
                if A == x.shape[0]:
                    y = xb.index(slot * KB + j)
                else:
                    y = x.slice(A, B, dim=0)
                same = gl.convert_layout(w, gl.DotOperandLayout(0, MMB, 2), assert_trivial=True)
                more = warpgroup_mma(same, y.permute((1, 0)), more, is_async=True)
                acc, more, w = warpgroup_mma_wait(0, deps=[acc, more, w])
            else:
                acc, w = warpgroup_mma_wait(0, deps=[acc, w])
        mbarrier.arrive(empty.index(slot), count=1)
        it += 1
    return acc, more, it


@gluon.jit
def skip(ring, it, columns, KB: gl.constexpr, STAGES: gl.constexpr):
    """An item's steps without this consumer: the rows end before its block."""
    _, _, _, _, full, empty = ring
    for _ in range(0, columns, KB * 64):
        mbarrier.wait(full.index(it % STAGES), (it // STAGES) & 1)
        mbarrier.arrive(empty.index(it % STAGES), count=1)
        it += 1
    return it


@gluon.jit
def store_h(acc, h_ptr, scale, start, count, block, stride_h, N: gl.constexpr):
    """h[start + n, f] = gelu(gate) * up for the 64 f of `block`, in `moe_sort`'s order."""
    n = gl.arange(0, N, gl.SliceLayout(1, H_STORE))
    f = gl.arange(0, 64, gl.SliceLayout(0, H_STORE))
    gate, up = gl.split(gl.permute(gl.reshape(acc * scale, [2, 64, N]), [1, 2, 0]))
    inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
    h = (gate / (1.0 + gl.exp2(inner * (-2.0 * LOG2E))) * up).to(gl.bfloat16)
    h = gl.permute(gl.reshape(h, [4, 8, 2, N]), [3, 1, 0, 2])
    h = gl.convert_layout(gl.reshape(h, [N, 64]), H_STORE)
    h_ptrs = h_ptr + (start + n)[:, None].to(gl.int64) * stride_h + (block * 64 + f)[None, :]
    gl.store(h_ptrs, h, mask=(n < count)[:, None])


@gluon.jit
def store_slots(
    acc, rows_ptr, weight_ptr, slots_ptr, scale, start, count, block, H, N: gl.constexpr
):
    """slots[row, m] = weight[row] * down for the 128 m of `block`."""
    across = gl.arange(0, N, gl.SliceLayout(0, acc.type.layout))
    row = gl.load(rows_ptr + start + across, mask=across < count, other=0)
    weight = gl.load(weight_ptr + row, mask=across < count, other=0.0) * scale
    y = (acc * weight[None, :]).to(gl.bfloat16)
    y = gl.convert_layout(gl.permute(y, [1, 0]), Y_STORE)
    n = gl.arange(0, N, gl.SliceLayout(1, Y_STORE))
    m = block * 128 + gl.arange(0, 128, gl.SliceLayout(0, Y_STORE))
    row = gl.load(rows_ptr + start + n, mask=n < count, other=0)
    slots_ptrs = slots_ptr + row[:, None].to(gl.int64) * H + m[None, :]
    gl.store(slots_ptrs, y, mask=(n < count)[:, None] & (m < H)[None, :])


@gluon.jit
def one_item(
    scale, rows_ptr, weight_ptr, out_ptr, ring, it, columns, stride_out, start, count, block,
    UP: gl.constexpr, WHICH: gl.constexpr, A: gl.constexpr, B: gl.constexpr,
    C: gl.constexpr, KB: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    acc, more, it = multiply(ring, it, columns, WHICH, A, B, C, KB, STAGES)
    if UP:
        store_h(acc, out_ptr, scale, start, count, block, stride_out, A)
        if B > 0:
            store_h(more, out_ptr, scale, start + A, count - A, block, stride_out, B)
    else:
        store_slots(
            acc, rows_ptr, weight_ptr, out_ptr, scale, start, count, block, stride_out, A
        )
        if B > 0:
            store_slots(
                more, rows_ptr, weight_ptr, out_ptr, scale, start + A, count - A, block,
                stride_out, B,
            )  # fmt: skip
    return it
