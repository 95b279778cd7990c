"""`_kernel.read` for sm_90, in Gluon: one warp fetches, eight multiply, four fold what came out.

A program stays on its processor and takes one tile after another: 128 rows times four strips of
tokens.  A tile's logits pass through shared memory, so that they are folded, a row a thread, beside
the products of the next tile.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from diffusiongemma_kernels.gluon_names import load_tile, reinterpret
from diffusiongemma_kernels.lm_head import _kernel, hopper
from diffusiongemma_kernels.row_stats import _kernel as stats

CALLS = gl.constexpr(_kernel.CALLS.value)
GROUP = gl.constexpr(_kernel.GROUP.value)
ROWS = gl.constexpr(hopper.ROWS // 2)  # of either group that multiplies
STRIP = gl.constexpr(hopper.STRIP)
COLUMNS = gl.constexpr(hopper.COLUMNS)  # of a stage
STAGES = gl.constexpr(hopper.STAGES)
LOWEST = gl.constexpr(stats.LOWEST.value)
LOG2E = gl.constexpr(_kernel.LOG2E.value)
CHUNK = gl.constexpr(8)  # tokens of each strip that are folded at once
CHUNKS = gl.constexpr(STRIP.value // CHUNK.value)
OPERAND = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))
SUMS = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 2 * STRIP.value, 16]))
# A tile's logits lie by CHUNK tokens, 16 bytes a row: threads that read a row each do not collide.
PIECE = gl.constexpr(gl.SwizzledSharedLayout(8, 1, 1, [1, 0]))
PIECES = gl.constexpr(gl.SwizzledSharedLayout(8, 1, 1, [2, 1, 0]))
COPY = gl.constexpr(gl.BlockedLayout([1, 1, CHUNK.value], [4, 8, 1], [1, 4, 1], [2, 1, 0]))
ROW = gl.constexpr(gl.BlockedLayout([1, CHUNK.value], [32, 1], [4, 1], [1, 0]))

token_of, scaled, race, inverse, as_logits, philox = (
    gluon.jit(fn.fn)
    for fn in (
        *(_kernel.token_of, _kernel.scaled, _kernel.race, _kernel.inverse, _kernel.as_logits),
        stats.philox,
    )
)


@gluon.jit
def fetch(hidden, weight, work, ring):
    x, w, full, empty = ring
    blocks, items, H = work
    it = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        start = token_of(item // blocks, 0, STRIP)
        for k in range(0, H, COLUMNS):
            slot = it % STAGES
            mbarrier.wait(empty.index(slot), ((it // STAGES) & 1) ^ 1)
            ready = full.index(slot)
            mbarrier.expect(ready, (2 * ROWS + 4 * STRIP) * COLUMNS * 2)
            load_tile(hidden, [item % blocks * (2 * ROWS), k], ready, x.index(slot))
            for s in gl.static_range(4):
                load_tile(weight, [start + s * CALLS, k], ready, w.index(slot * 4 + s))
            it += 1


@gluon.jit
def store_half(acc, pieces, HALF: gl.constexpr, WHICH: gl.constexpr):
    rounded = gl.reshape(as_logits(acc, pieces.dtype, True), [ROWS, 2 * CHUNKS, CHUNK])
    mine = pieces.slice(HALF * 2 * CHUNKS, 2 * CHUNKS, dim=0).slice(WHICH * ROWS, ROWS, dim=1)
    mine.store(gl.permute(rounded, [1, 0, 2]))


@gluon.jit
def multiply(work, ring, handed, WHICH: gl.constexpr):
    x, w, full, empty = ring
    whole, filled, emptied = handed
    pieces = whole.index(0)  # by eight tokens
    blocks, items, H = work
    it = 0
    turn = 0
    for _ in range(gl.program_id(0), items, gl.num_programs(0)):
        acc0 = gl.full([ROWS, 2 * STRIP], 0.0, gl.float32, SUMS)
        acc1 = gl.full([ROWS, 2 * STRIP], 0.0, gl.float32, SUMS)
        for k in range(0, H, COLUMNS):
            slot = it % STAGES
            mbarrier.wait(full.index(slot), (it // STAGES) & 1)
            rows = x.index(slot).slice(WHICH * ROWS, ROWS, dim=0)
            strips = w.index(slot)
            left = strips.slice(0, 2 * STRIP, dim=0).permute((1, 0))
            right = strips.slice(2 * STRIP, 2 * STRIP, dim=0).permute((1, 0))
            acc0 = warpgroup_mma(rows, left, acc0, is_async=True)
            acc1 = warpgroup_mma(rows, right, acc1, is_async=True)
            acc0, acc1 = warpgroup_mma_wait(2, deps=[acc0, acc1])
            mbarrier.arrive(empty.index((it + STAGES - 1) % STAGES), count=1, pred=k > 0)
            it += 1
        acc0, acc1 = warpgroup_mma_wait(0, deps=[acc0, acc1])
        mbarrier.arrive(empty.index((it + STAGES - 1) % STAGES), count=1)
        mbarrier.wait(emptied, (turn & 1) ^ 1)
        store_half(acc0, pieces, 0, WHICH)
        store_half(acc1, pieces, 1, WHICH)
        mbarrier.arrive(filled, count=1)
        turn += 1


@gluon.jit
def best_of(a, b, c, d):
    return gl.max(gl.maximum(gl.maximum(a, b), gl.maximum(c, d)), 1)


@gluon.jit
def fold(rows, work, tensors, handed, SOFTCAP: gl.constexpr):
    """As `_kernel.fold`, CHUNK tokens of each strip at once."""
    logits_ptr, tops_ptr, sums_ptr = tensors
    temperature_ptr, seed_ptr, counter_ptr, R, V, TILES, group, stride_l = rows
    pieces, by_strip, filled, emptied = handed
    blocks, items, _ = work
    SLICE: gl.constexpr = gl.SliceLayout(1, ROW)
    column = gl.arange(0, CHUNK, gl.SliceLayout(0, ROW))
    # A strip as it is stored: 64 bytes of a row by neighbouring threads.
    BY_PIECE: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, COPY))
    BY_ROW: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, COPY))
    BY_TOKEN: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, COPY))
    stored_row = gl.arange(0, 2 * ROWS, BY_ROW)[None, :, None]
    piece = gl.arange(0, CHUNKS, BY_PIECE)[:, None, None]
    stored_token = piece * CHUNK + gl.arange(0, CHUNK, BY_TOKEN)[None, None, :]
    turn = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        row = item % blocks * (2 * ROWS) + gl.arange(0, 2 * ROWS, SLICE)
        tile = item // blocks
        there = row < R
        row = gl.minimum(row, R - 1).to(gl.int64)
        temperature = gl.load(temperature_ptr + row)
        to_log2 = LOG2E / gl.where(temperature > 0.0, temperature, 1.0)
        seed = gl.load(seed_ptr + row)
        counter = gl.load(counter_ptr + row)
        start = token_of(tile, 0, STRIP)
        block = item % blocks * (2 * ROWS)
        stored = stored_row < R - block
        out = logits_ptr + (block.to(gl.int64) * stride_l + start)
        out = out + (stored_row.to(gl.int64) * stride_l + stored_token)
        top = gl.full([2 * ROWS], LOWEST, gl.float32, SLICE)
        total = gl.full([2 * ROWS], 0.0, gl.float32, SLICE)
        moment = gl.full([2 * ROWS], 0.0, gl.float32, SLICE)
        best = gl.full([2 * ROWS], 0.0, gl.float32, SLICE)
        top0 = gl.full([2 * ROWS], float("-inf"), gl.float32, SLICE)
        top1 = gl.full([2 * ROWS], float("-inf"), gl.float32, SLICE)
        top2 = gl.full([2 * ROWS], float("-inf"), gl.float32, SLICE)
        top3 = gl.full([2 * ROWS], float("-inf"), gl.float32, SLICE)
        mbarrier.wait(filled, turn & 1)
        for c in range(0, CHUNKS):
            if c % (CHUNKS // 4) == 0:  # one of the strips, so that not all are stored at once
                s = c // (CHUNKS // 4)
                gl.store(out + s * CALLS, by_strip.index(s).load(COPY), mask=stored)
            b0 = pieces.index(c).load(ROW)
            b1 = pieces.index(c + CHUNKS).load(ROW)
            b2 = pieces.index(c + 2 * CHUNKS).load(ROW)
            b3 = pieces.index(c + 3 * CHUNKS).load(ROW)
            z0, z1 = b0.to(gl.float32), b1.to(gl.float32)
            z2, z3 = b2.to(gl.float32), b3.to(gl.float32)
            new0, new1, new2, new3 = gl.max(z0, 1), gl.max(z1, 1), gl.max(z2, 1), gl.max(z3, 1)
            highest = gl.maximum(gl.maximum(new0, new1), gl.maximum(new2, new3))
            highest = gl.maximum(scaled(highest, to_log2, SOFTCAP, True), top)
            top0, top1 = gl.maximum(top0, new0), gl.maximum(top1, new1)
            top2, top3 = gl.maximum(top2, new2), gl.maximum(top3, new3)
            fall = top - highest
            shrink = gl.exp2(fall)
            top = highest
            below0 = scaled(z0, to_log2[:, None], SOFTCAP, True) - top[:, None]
            below1 = scaled(z1, to_log2[:, None], SOFTCAP, True) - top[:, None]
            below2 = scaled(z2, to_log2[:, None], SOFTCAP, True) - top[:, None]
            below3 = scaled(z3, to_log2[:, None], SOFTCAP, True) - top[:, None]
            if SOFTCAP == 0.0:  # 0 * -inf would be NaN
                below0, below1 = gl.maximum(below0, LOWEST), gl.maximum(below1, LOWEST)
                below2, below3 = gl.maximum(below2, LOWEST), gl.maximum(below3, LOWEST)
            p0, p1, p2, p3 = gl.exp2(below0), gl.exp2(below1), gl.exp2(below2), gl.exp2(below3)
            part = p0 * below0 + p1 * below1 + p2 * below2 + p3 * below3
            moment = shrink * (moment + total * fall) + gl.sum(part, 1)
            total = shrink * total + gl.sum(p0 + p1 + p2 + p3, 1)

            token = start + c * CHUNK + column
            index = ((token // GROUP + group) * CALLS + token % CALLS)[None, :]
            w0, w1, w2, w3 = philox(seed[:, None], counter[:, None], index, 0)
            p0 *= inverse(race(w0, True), True)
            p1 *= inverse(race(w1, True), True)
            p2 *= inverse(race(w2, True), True)
            p3 *= inverse(race(w3, True), True)
            best = gl.maximum(best * shrink, best_of(p0, p1, p2, p3))
        mbarrier.arrive(emptied, count=1)
        turn += 1

        apart: gl.constexpr = CALLS // STRIP
        cell = tops_ptr + row * (V // STRIP) + start // STRIP
        gl.store(cell, top0, mask=there)
        gl.store(cell + apart, top1, mask=there)
        gl.store(cell + 2 * apart, top2, mask=there)
        gl.store(cell + 3 * apart, top3, mask=there)
        highest = gl.maximum(gl.maximum(top0, top1), gl.maximum(top2, top3))
        cell = sums_ptr + row * TILES + tile
        plane = R.to(gl.int64) * TILES
        gl.store(cell, highest, mask=there)
        gl.store(cell + plane, total, mask=there)
        gl.store(cell + 2 * plane, moment, mask=there)
        gl.store(cell + 3 * plane, top + gl.log2(best), mask=there)


@gluon.jit(do_not_specialize=["R"])
def read(
    hidden,  # [R, H] bf16 in pieces of [2 * ROWS, COLUMNS]
    weight,  # [V, H] bf16 in pieces of [STRIP, COLUMNS]
    temperature_ptr,  # [R]
    seed_ptr,  # [R] i64
    counter_ptr,  # [R] i64
    logits_ptr,  # [R, V] bf16
    tops_ptr,  # [R, V / STRIP] f32, the highest logit of each strip
    sums_ptr,  # [4, R, TILES] f32: highest logit, total, moment, best
    R,
    V,  # a multiple of GROUP
    H,
    TILES,
    group,  # of the first token, GROUP tokens each
    stride_l,
    SOFTCAP: gl.constexpr,
    MULTIPLYING: gl.constexpr,  # registers
    FOLDING: gl.constexpr,
    FETCHING: gl.constexpr,
):
    KIND: gl.constexpr = logits_ptr.dtype.element_ty
    x = gl.allocate_shared_memory(KIND, [STAGES, 2 * ROWS, COLUMNS], OPERAND)
    strips = gl.allocate_shared_memory(KIND, [STAGES * 4, STRIP, COLUMNS], OPERAND)
    w = reinterpret(strips, KIND, [STAGES, 4 * STRIP, COLUMNS], OPERAND)
    pieces = gl.allocate_shared_memory(KIND, [4 * CHUNKS, 2 * ROWS, CHUNK], PIECE)
    whole = reinterpret(pieces, KIND, [1, 4 * CHUNKS, 2 * ROWS, CHUNK], PIECES)
    by_strip = reinterpret(pieces, KIND, [4, CHUNKS, 2 * ROWS, CHUNK], PIECES)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    filled = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    emptied = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    mbarrier.init(filled, count=2)
    mbarrier.init(emptied, count=1)
    # Programs that share a tile of weights are neighbours: it is read once.
    blocks = gl.cdiv(R, 2 * ROWS)
    work = (blocks, blocks * TILES, H)
    ring = (x, w, full, empty)
    rows = (temperature_ptr, seed_ptr, counter_ptr, R, V, TILES, group, stride_l)
    out = (logits_ptr, tops_ptr, sums_ptr)
    gl.warp_specialize(
        [
            (multiply, (work, ring, (whole, filled, emptied), 0)),
            (multiply, (work, ring, (whole, filled, emptied), 1)),
            (fold, (rows, work, out, (pieces, by_strip, filled, emptied), SOFTCAP)),
            (fetch, (hidden, weight, work, (x, strips, full, empty))),
        ],
        [4, 4, 1],
        [MULTIPLYING, FOLDING, FETCHING],
    )
