"""The NVFP4 expert GEMMs for sm_90, in Gluon: some warps fetch, the others decode and multiply.

A program stays on its processor and takes one item after another: a tile of tokens and C
neighbouring blocks of 128 packed rows of weights, one for each consumer of four warps.  The warps
that fetch run ahead through a ring of STAGES times KB * 64 columns, over the ends of items as well.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from diffusiongemma_kernels.moe_decode import _kernel as moe_decode

# Their names before Triton 3.7 or so.
load_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
load_async = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared

DECODE = gl.constexpr(moe_decode.DECODE.value)
LOG2E = gl.constexpr(moe_decode.LOG2E.value)
EXTRA = gl.constexpr(32)  # tokens of a tile beyond a power of two
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
CODES_STAGE = gl.constexpr(gl.NVMMASharedLayout(0, 16, 4))
SCALES_STAGE = gl.constexpr(gl.NVMMASharedLayout(0, 8, 4))
X_STAGE = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))
H_STORE = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))
Y_STORE = gl.constexpr(gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0]))


@gluon.jit
def fetch_weights(
    codes_desc, scales_desc, tiles_ptr, total_ptr, codes, scales, full, empty, columns, blocks,
    C: gl.constexpr, KB: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Codes and scales of every step of this program's items."""
    groups = gl.cdiv(blocks, C)
    it = 0
    for item in range(gl.program_id(0), groups * gl.load(total_ptr), gl.num_programs(0)):
        block = (item % groups) * C
        expert = gl.load(tiles_ptr + item // groups)
        for at in range(0, columns // 64, KB):
            slot = it % STAGES
            mbarrier.wait(empty.index(slot), ((it // STAGES) & 1) ^ 1)
            ready = full.index(slot)
            mbarrier.expect(ready, C * KB * (4096 + 512))
            for j in gl.static_range(C):  # zeros beyond the last block
                here = slot * C + j
                load_tile(codes_desc, [expert, block + j, at * 8, 0], ready, codes.index(here))
                load_tile(scales_desc, [expert, block + j, at * 2, 0], ready, scales.index(here))
            it += 1


@gluon.jit
def fetch_tokens(
    x_ptr, rows_ptr, tiles_ptr, total_ptr, xa, xb, full, empty, columns, blocks, TILES, stride_x,
    K: gl.constexpr, N: gl.constexpr, MORE: gl.constexpr,
    C: gl.constexpr, KB: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Tokens of every step of this program's items.  K: slots a token, 0 if x is by expert."""
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [gl.num_warps(), 1], [1, 0])
    n = gl.arange(0, N, gl.SliceLayout(1, COPY))
    more = N + gl.arange(0, EXTRA, gl.SliceLayout(1, COPY))
    k = gl.arange(0, 64, gl.SliceLayout(0, COPY))
    groups = gl.cdiv(blocks, C)
    it = 0
    for item in range(gl.program_id(0), groups * gl.load(total_ptr), gl.num_programs(0)):
        start = gl.load(tiles_ptr + TILES + item // groups)
        count = gl.load(tiles_ptr + 2 * TILES + item // groups)
        if K > 0:
            row = gl.load(rows_ptr + start + n, mask=n < count, other=0) // K
            row_more = gl.load(rows_ptr + start + more, mask=more < count, other=0) // K
        else:
            row = start + n
            row_more = start + more
        offset = row[:, None] * stride_x + k[None, :]
        offset_more = row_more[:, None] * stride_x + k[None, :]
        live, live_more = (n < count)[:, None], (more < count)[:, None]
        for at in range(0, columns // 64, KB):
            slot = it % STAGES
            mbarrier.wait(empty.index(slot), ((it // STAGES) & 1) ^ 1)
            for j in gl.static_range(KB):
                x = x_ptr + (at + j) * 64
                load_async(xa.index(slot * KB + j), x + offset, mask=live)
                if MORE:
                    load_async(xb.index(slot * KB + j), x + offset_more, mask=live_more)
            async_copy.mbarrier_arrive(full.index(slot), increment_count=False)
            it += 1


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
    codes, scales, xa, xb, full, empty, it, columns,
    WHICH: gl.constexpr, A: gl.constexpr, B: gl.constexpr,
    C: gl.constexpr, KB: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The sums of an item's A and then B tokens, [128, A] and [128, B] f32, and the next step.

    A product is waited for before the next weights are decoded: its left operand is in registers.
    """
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
def skip(full, empty, it, columns, KB: gl.constexpr, STAGES: gl.constexpr):
    """An item's steps without this consumer: the rows end before its block."""
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
    scale, rows_ptr, weight_ptr, out_ptr, codes, scales, xa, xb, full, empty, it, columns,
    stride_out, start, count, block,
    UP: gl.constexpr, WHICH: gl.constexpr, A: gl.constexpr, B: gl.constexpr,
    C: gl.constexpr, KB: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    acc, more, it = multiply(
        codes, scales, xa, xb, full, empty, it, columns, WHICH, A, B, C, KB, STAGES
    )
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


@gluon.jit
def consume(
    global_ptr, rows_ptr, tiles_ptr, total_ptr, weight_ptr, out_ptr, codes, scales, xa, xb, full,
    empty, columns, blocks, TILES, stride_out,
    WHICH: gl.constexpr, UP: gl.constexpr, N: gl.constexpr, MORE: gl.constexpr,
    LEAST: gl.constexpr, C: gl.constexpr, KB: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """This consumer's block of every item, at the least width that holds the item's tokens."""
    groups = gl.cdiv(blocks, C)
    it = 0
    for item in range(gl.program_id(0), groups * gl.load(total_ptr), gl.num_programs(0)):
        i = item // groups
        block = (item % groups) * C + WHICH
        scale = gl.load(global_ptr + gl.load(tiles_ptr + i)) * 256.0
        start = gl.load(tiles_ptr + TILES + i)
        count = gl.load(tiles_ptr + 2 * TILES + i)
        if block >= blocks:
            it = skip(full, empty, it, columns, KB, STAGES)
        elif LEAST == 16 and count <= 16:
            it = one_item(
                scale, rows_ptr, weight_ptr, out_ptr, codes, scales, xa, xb, full, empty, it,
                columns, stride_out, start, count, block, UP, WHICH, 16, 0, C, KB, STAGES,
            )  # fmt: skip
        elif N > 32 and count <= 32:
            it = one_item(
                scale, rows_ptr, weight_ptr, out_ptr, codes, scales, xa, xb, full, empty, it,
                columns, stride_out, start, count, block, UP, WHICH, 32, 0, C, KB, STAGES,
            )  # fmt: skip
        elif N + MORE > 64 and count <= 64:
            it = one_item(
                scale, rows_ptr, weight_ptr, out_ptr, codes, scales, xa, xb, full, empty, it,
                columns, stride_out, start, count, block, UP, WHICH, 64, 0, C, KB, STAGES,
            )  # fmt: skip
        elif N > 64 and count <= 96:
            it = one_item(
                scale, rows_ptr, weight_ptr, out_ptr, codes, scales, xa, xb, full, empty, it,
                columns, stride_out, start, count, block, UP, WHICH, 64, 32, C, KB, STAGES,
            )  # fmt: skip
        elif N > 64 and count <= 128:
            it = one_item(
                scale, rows_ptr, weight_ptr, out_ptr, codes, scales, xa, xb, full, empty, it,
                columns, stride_out, start, count, block, UP, WHICH, 128, 0, C, KB, STAGES,
            )  # fmt: skip
        else:
            it = one_item(
                scale, rows_ptr, weight_ptr, out_ptr, codes, scales, xa, xb, full, empty, it,
                columns, stride_out, start, count, block, UP, WHICH, N, MORE, C, KB, STAGES,
            )  # fmt: skip


@gluon.jit(do_not_specialize=["blocks", "TILES"])  # one compilation for every batch
def experts(
    x_ptr,  # [T, columns] in the order of `moe_sort`, or [T * K, columns] by expert
    codes_desc,  # [E, blocks, columns / 8, 256] i16 in pieces of [1, 1, KB * 8, 256]
    scales_desc,  # [E, blocks, columns / 32, 256] u8 in pieces of [1, 1, KB * 2, 256]
    global_ptr,  # [E] f32
    rows_ptr,  # [T * K] i32, token * K + slot by expert
    tiles_ptr,  # [3, TILES] i32: expert, start, count
    total_ptr,  # [1] i32: how many of them there are
    weight_ptr,  # [T * K] f32, of `down` alone
    out_ptr,  # [T * K, stride_out] by expert, or by row of `down`
    columns,
    blocks,
    TILES,
    stride_x,
    stride_out,
    UP: gl.constexpr,
    K: gl.constexpr,
    N: gl.constexpr,
    MORE: gl.constexpr,
    LEAST: gl.constexpr,
    C: gl.constexpr,
    KB: gl.constexpr,
    STAGES: gl.constexpr,
    COPYING: gl.constexpr,
    CONSUMING: gl.constexpr,  # registers
    FETCHING: gl.constexpr,
):
    codes = gl.allocate_shared_memory(gl.int16, [STAGES * C, 1, 1, KB * 8, 256], CODES_STAGE)
    scales = gl.allocate_shared_memory(gl.uint8, [STAGES * C, 1, 1, KB * 2, 256], SCALES_STAGE)
    xa = gl.allocate_shared_memory(x_ptr.dtype.element_ty, [STAGES * KB, N, 64], X_STAGE)
    xb = xa
    if MORE > 0:
        xb = gl.allocate_shared_memory(x_ptr.dtype.element_ty, [STAGES * KB, EXTRA, 64], X_STAGE)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=COPYING * 32 + 1)
        mbarrier.init(empty.index(i), count=C)
    if C == 2:
        gl.warp_specialize(
            [
                (consume, (
                    global_ptr, rows_ptr, tiles_ptr, total_ptr, weight_ptr, out_ptr, codes, scales,
                    xa, xb, full, empty, columns, blocks, TILES, stride_out,
                    0, UP, N, MORE, LEAST, C, KB, STAGES,
                )),
                (consume, (
                    global_ptr, rows_ptr, tiles_ptr, total_ptr, weight_ptr, out_ptr, codes, scales,
                    xa, xb, full, empty, columns, blocks, TILES, stride_out,
                    1, UP, N, MORE, LEAST, C, KB, STAGES,
                )),
                (fetch_weights, (
                    codes_desc, scales_desc, tiles_ptr, total_ptr, codes, scales, full, empty,
                    columns, blocks, C, KB, STAGES,
                )),
                (fetch_tokens, (
                    x_ptr, rows_ptr, tiles_ptr, total_ptr, xa, xb, full, empty, columns, blocks,
                    TILES, stride_x, K, N, MORE, C, KB, STAGES,
                )),
            ],
            [4, 1, COPYING],
            [CONSUMING, FETCHING, FETCHING],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (consume, (
                    global_ptr, rows_ptr, tiles_ptr, total_ptr, weight_ptr, out_ptr, codes, scales,
                    xa, xb, full, empty, columns, blocks, TILES, stride_out,
                    0, UP, N, MORE, LEAST, C, KB, STAGES,
                )),
                (consume, (
                    global_ptr, rows_ptr, tiles_ptr, total_ptr, weight_ptr, out_ptr, codes, scales,
                    xa, xb, full, empty, columns, blocks, TILES, stride_out,
                    1, UP, N, MORE, LEAST, C, KB, STAGES,
                )),
                (consume, (
                    global_ptr, rows_ptr, tiles_ptr, total_ptr, weight_ptr, out_ptr, codes, scales,
                    xa, xb, full, empty, columns, blocks, TILES, stride_out,
                    2, UP, N, MORE, LEAST, C, KB, STAGES,
                )),
                (fetch_weights, (
                    codes_desc, scales_desc, tiles_ptr, total_ptr, codes, scales, full, empty,
                    columns, blocks, C, KB, STAGES,
                )),
                (fetch_tokens, (
                    x_ptr, rows_ptr, tiles_ptr, total_ptr, xa, xb, full, empty, columns, blocks,
                    TILES, stride_x, K, N, MORE, C, KB, STAGES,
                )),
            ],
            [4, 4, 1, COPYING],
            [CONSUMING, CONSUMING, FETCHING, FETCHING],
        )  # fmt: skip
