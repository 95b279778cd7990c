import triton
import triton.language as tl

from diffusiongemma_kernels.row_stats import _kernel as stats

GROUP = tl.constexpr(4096)  # tokens whose noise comes from 1,024 calls of Philox
CALLS = tl.constexpr(1024)
LOG2E = tl.constexpr(1.4426950408889634)
HALF_LOG2E = tl.constexpr(0.7213475204444817)
THIRD_LOG2E = tl.constexpr(0.4808983469629878)
LEAST = tl.constexpr(1.0 - 2.0**-24)


@triton.jit
def log2(x, FAST: tl.constexpr):
    """FAST: within 2^-22, absolutely between 1/2 and 2, else relatively."""
    if FAST:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.log2(x)


@triton.jit
def inverse(x, FAST: tl.constexpr):
    if FAST:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return 1.0 / x


@triton.jit
def scaled(z, to_log2, SOFTCAP: tl.constexpr, FAST: tl.constexpr):
    """y * log2(e) for logits z; to_log2 = log2(e) / temperature"""
    if SOFTCAP > 0.0:
        # tanh(x) = 1 - 2 / (1 + exp(2 x)), whose ends are exact.
        z = 1.0 - 2.0 * inverse(1.0 + tl.exp2(z * (2.0 * LOG2E / SOFTCAP)), FAST)
        to_log2 = to_log2 * SOFTCAP
    return z * to_log2


@triton.jit
def race(word, FAST: tl.constexpr):
    """-log2(u) for the word's uniform number: y - log2 of it is y with Gumbel noise."""
    bits = ((word ^ 0xFFFFFFFF) >> 9) | 0x3F800000
    rest = bits.to(tl.float32, bitcast=True) - LEAST  # 1 - u, exactly
    if FAST:
        near = rest * (LOG2E + rest * (HALF_LOG2E + rest * THIRD_LOG2E))
        return tl.where(rest < 0.015625, near, -log2(1.0 - rest, FAST))
    return -tl.log2(1.0 - rest)


@triton.jit
def in_place_of(x, index, FAST: tl.constexpr):
    """index [C] as u32 for every row of x [BLOCK_R, C]

    FAST: in the threads that hold x.  Triton would otherwise choose others for the noise, and carry
    it over through shared memory.
    """
    if FAST:
        zero = tl.inline_asm_elementwise(
            "mov.b32 $0, 0;", "=r,f", [x], dtype=tl.uint32, is_pure=True, pack=1
        )
    else:
        zero = tl.zeros(x.shape, tl.uint32)
    return zero + index.to(tl.uint32)[None, :]


@triton.jit
def as_logits(x, DTYPE: tl.constexpr, FAST: tl.constexpr):
    """x f32 rounded; FAST: two numbers an instruction."""
    if FAST and DTYPE == tl.bfloat16:
        return tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [x], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    return x.to(DTYPE)


@triton.jit
def product(
    hidden_ptrs, weight_ptrs, H, BLOCK_R: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """hidden [BLOCK_R, H] x weight [BLOCK_V, H]  ->  [BLOCK_R, BLOCK_V] f32"""
    acc = tl.zeros([BLOCK_R, BLOCK_V], tl.float32)
    k = tl.arange(0, BLOCK_K)[None, :]
    for at in range(0, H, BLOCK_K):
        if EVEN_K:
            x = tl.load(hidden_ptrs)
            w = tl.load(weight_ptrs)
        else:
            x = tl.load(hidden_ptrs, mask=k < H - at, other=0.0)
            w = tl.load(weight_ptrs, mask=k < H - at, other=0.0)
        acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")
        hidden_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K
    return acc


@triton.jit
def best_of(a, b, c, d):
    return tl.max(tl.maximum(tl.maximum(a, b), tl.maximum(c, d)), 1)


@triton.jit
def fold(
    top, total, moment, best,  # [BLOCK_R] each, of the tokens before
    top0, top1, top2, top3,  # [BLOCK_R] each, the highest logit of each strip
    z,  # [BLOCK_R, C, 2, 2]: strip s is [s % 2, s // 2]
    start,  # token, the first of strip 0
    to_log2, seed, counter, V, group, SOFTCAP: tl.constexpr, C: tl.constexpr,
    EVEN_V: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """The same with four times C tokens more.

    best is the largest p / race, times 2^top: one division in place of a second logarithm.
    """
    # The branch keeps the compiler from working on all of a tile's tokens at once: no spills.
    if start < V:
        low, high = tl.split(z)
        z0, z1 = tl.split(low)  # [BLOCK_R, C] each
        z2, z3 = tl.split(high)
        token = start + tl.arange(0, C)  # [C]
        if not EVEN_V:
            z0 = tl.where((token < V)[None, :], z0, float("-inf"))
            z1 = tl.where((token + CALLS < V)[None, :], z1, float("-inf"))
            z2 = tl.where((token + 2 * CALLS < V)[None, :], z2, float("-inf"))
            z3 = tl.where((token + 3 * CALLS < V)[None, :], z3, float("-inf"))
        new0, new1, new2, new3 = tl.max(z0, 1), tl.max(z1, 1), tl.max(z2, 1), tl.max(z3, 1)
        highest = tl.maximum(tl.maximum(new0, new1), tl.maximum(new2, new3))
        highest = tl.maximum(scaled(highest, to_log2, SOFTCAP, FAST), top)
        top0, top1 = tl.maximum(top0, new0), tl.maximum(top1, new1)
        top2, top3 = tl.maximum(top2, new2), tl.maximum(top3, new3)
        y0 = scaled(z0, to_log2[:, None], SOFTCAP, FAST)
        y1 = scaled(z1, to_log2[:, None], SOFTCAP, FAST)
        y2 = scaled(z2, to_log2[:, None], SOFTCAP, FAST)
        y3 = scaled(z3, to_log2[:, None], SOFTCAP, FAST)
        if not EVEN_V:  # the cap has made them finite
            y0 = tl.where((token < V)[None, :], y0, float("-inf"))
            y1 = tl.where((token + CALLS < V)[None, :], y1, float("-inf"))
            y2 = tl.where((token + 2 * CALLS < V)[None, :], y2, float("-inf"))
            y3 = tl.where((token + 3 * CALLS < V)[None, :], y3, float("-inf"))
        fall = top - highest
        shrink = tl.exp2(fall)
        top = highest
        below0 = tl.maximum(y0 - top[:, None], stats.LOWEST)  # 0 * -inf would be NaN
        below1 = tl.maximum(y1 - top[:, None], stats.LOWEST)
        below2 = tl.maximum(y2 - top[:, None], stats.LOWEST)
        below3 = tl.maximum(y3 - top[:, None], stats.LOWEST)
        p0, p1, p2, p3 = tl.exp2(below0), tl.exp2(below1), tl.exp2(below2), tl.exp2(below3)
        part = p0 * below0 + p1 * below1 + p2 * below2 + p3 * below3
        moment = shrink * (moment + total * fall) + tl.sum(part, 1)
        total = shrink * total + tl.sum(p0 + p1 + p2 + p3, 1)

        index = in_place_of(y0, (token // GROUP + group) * CALLS + token % CALLS, FAST)
        w0, w1, w2, w3 = stats.philox(seed[:, None], counter[:, None], index, 0)
        p0 *= inverse(race(w0, FAST), FAST)
        p1 *= inverse(race(w1, FAST), FAST)
        p2 *= inverse(race(w2, FAST), FAST)
        p3 *= inverse(race(w3, FAST), FAST)
        best = tl.maximum(best * shrink, best_of(p0, p1, p2, p3))
    return top, total, moment, best, top0, top1, top2, top3


@triton.jit
def token_of(tile, column, STRIP: tl.constexpr):
    """A tile is four strips that lie CALLS apart: their noise is the four words of one call."""
    first = tile // (CALLS // STRIP) * GROUP + tile % (CALLS // STRIP) * STRIP
    return first + column // STRIP * CALLS + column % STRIP


@triton.jit
def read(
    hidden_ptr,  # [R, H]
    weight_ptr,  # [V, H]
    temperature_ptr,  # [R]
    seed_ptr,  # [R] i64
    counter_ptr,  # [R] i64
    logits_ptr,  # [R, V]
    tops_ptr,  # [R, strips] f32, the highest logit of each
    sums_ptr,  # [4, R, TILES] f32: highest logit, total, moment, best
    R,
    V,
    H,
    TILES,
    group,  # of the first token, GROUP tokens each
    stride_h,
    stride_w,
    stride_l,
    SOFTCAP: tl.constexpr,
    BLOCK_R: tl.constexpr,
    STRIP: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr,
    FAST: tl.constexpr,
):
    # Programs that share a tile of weights are neighbours: it is read once.
    blocks = tl.cdiv(R, BLOCK_R)
    block = tl.program_id(0) % blocks
    tile = tl.program_id(0) // blocks
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R]
    there = row < R
    row = tl.minimum(row, R - 1).to(tl.int64)
    token = token_of(tile, tl.arange(0, 4 * STRIP), STRIP)  # [4 * STRIP]
    k = tl.arange(0, BLOCK_K)[None, :]
    acc = product(
        hidden_ptr + row[:, None] * stride_h + k,
        weight_ptr + tl.minimum(token, V - 1).to(tl.int64)[:, None] * stride_w + k,
        H, BLOCK_R, 4 * STRIP, BLOCK_K, EVEN_K,
    )  # fmt: skip
    rounded = as_logits(acc, logits_ptr.dtype.element_ty, FAST)
    keep = there[:, None] & (token < V)[None, :]
    tl.store(logits_ptr + row[:, None] * stride_l + token[None, :], rounded, mask=keep)
    C: tl.constexpr = STRIP // 4
    z = rounded.to(tl.float32).reshape(BLOCK_R, 2, 2, 2, 2, C)
    left, right = tl.split(z.permute(0, 5, 2, 1, 4, 3))
    piece0, piece1 = tl.split(left)
    piece2, piece3 = tl.split(right)
    temperature = tl.load(temperature_ptr + row)
    to_log2 = LOG2E / tl.where(temperature > 0.0, temperature, 1.0)
    seed = tl.load(seed_ptr + row)
    counter = tl.load(counter_ptr + row)
    start = token_of(tile, 0, STRIP)
    top = tl.full([BLOCK_R], stats.LOWEST, tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    moment = total
    best = total
    top0 = tl.full([BLOCK_R], float("-inf"), tl.float32)
    top1 = top0
    top2 = top0
    top3 = top0
    top, total, moment, best, top0, top1, top2, top3 = fold(
        top, total, moment, best, top0, top1, top2, top3, piece0, start + 0 * C, to_log2, seed,
        counter, V, group, SOFTCAP, C, EVEN_V, FAST,
    )  # fmt: skip
    top, total, moment, best, top0, top1, top2, top3 = fold(
        top, total, moment, best, top0, top1, top2, top3, piece1, start + 1 * C, to_log2, seed,
        counter, V, group, SOFTCAP, C, EVEN_V, FAST,
    )  # fmt: skip
    top, total, moment, best, top0, top1, top2, top3 = fold(
        top, total, moment, best, top0, top1, top2, top3, piece2, start + 2 * C, to_log2, seed,
        counter, V, group, SOFTCAP, C, EVEN_V, FAST,
    )  # fmt: skip
    top, total, moment, best, top0, top1, top2, top3 = fold(
        top, total, moment, best, top0, top1, top2, top3, piece3, start + 3 * C, to_log2, seed,
        counter, V, group, SOFTCAP, C, EVEN_V, FAST,
    )  # fmt: skip
    strips = tl.cdiv(V, STRIP)
    strip = start // STRIP + tl.zeros([BLOCK_R], tl.int32)
    apart: tl.constexpr = CALLS // STRIP
    cell = tops_ptr + row * strips + strip
    tl.store(cell, top0, mask=there)
    tl.store(cell + apart, top1, mask=there & (strip + apart < strips))
    tl.store(cell + 2 * apart, top2, mask=there & (strip + 2 * apart < strips))
    tl.store(cell + 3 * apart, top3, mask=there & (strip + 3 * apart < strips))
    highest = tl.maximum(tl.maximum(top0, top1), tl.maximum(top2, top3))
    cell = sums_ptr + row * TILES + tile
    plane = tl.cast(R, tl.int64) * TILES
    tl.store(cell, highest, mask=there)
    tl.store(cell + plane, total, mask=there)
    tl.store(cell + 2 * plane, moment, mask=there)
    tl.store(cell + 3 * plane, top + tl.log2(best), mask=there)


@triton.jit
def finish(
    logits_ptr,  # [R, V]
    temperature_ptr,  # [R]
    seed_ptr,  # [R] i64
    counter_ptr,  # [R] i64
    sums_ptr,  # [4, R, TILES] f32
    argmax_ptr,  # [R] i64
    sample_ptr,  # [R] i64
    entropy_ptr,  # [R] f32
    max_ptr,  # [R] f32
    logsumexp_ptr,  # [R] f32
    score_ptr,  # [R] f32
    R,
    V,
    TILES,
    group,  # of the first token
    stride_l,
    SOFTCAP: tl.constexpr,
    STRIP: tl.constexpr,
    BLOCK_T: tl.constexpr,  # TILES, rounded up
):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, BLOCK_T)  # [BLOCK_T]
    used = tile < TILES
    cell = sums_ptr + row * TILES + tile
    plane = tl.cast(R, tl.int64) * TILES
    highest = tl.load(cell, mask=used, other=float("-inf"))
    totals = tl.load(cell + plane, mask=used, other=0.0)
    moments = tl.load(cell + 2 * plane, mask=used, other=0.0)
    bests = tl.load(cell + 3 * plane, mask=used, other=float("-inf"))
    temperature = tl.load(temperature_ptr + row)
    to_log2 = LOG2E / tl.where(temperature > 0.0, temperature, 1.0)
    tops = tl.maximum(scaled(highest, to_log2, SOFTCAP, False), stats.LOWEST)

    top = tl.max(tops, 0)
    fall = tops - top
    weight = tl.exp2(fall)
    total = tl.sum(totals * weight, 0)
    moment = tl.sum(weight * (moments + totals * fall), 0)
    log_total = tl.log2(total)
    tl.store(entropy_ptr + row, tl.maximum((log_total - moment / total) * stats.LN2, 0.0))
    tl.store(max_ptr + row, top * stats.LN2)
    tl.store(logsumexp_ptr + row, (top + log_total) * stats.LN2)

    # The tokens: of the first tile that holds the best number, and of all with the highest logit.
    logits_ptr += row * stride_l
    column = tl.arange(0, 4 * STRIP)  # [4 * STRIP]
    peak = tl.max(highest, 0)
    arg = tl.full((), stats.NOBODY, tl.int32)
    at = tl.min(tl.where(highest == peak, tile, BLOCK_T), 0)
    while at < TILES:
        token = token_of(at, column, STRIP)
        z = tl.load(logits_ptr + token, mask=token < V, other=float("-inf")).to(tl.float32)
        equal = (z == peak) & (token < V)
        arg = tl.minimum(arg, tl.min(tl.where(equal, token, stats.NOBODY), 0))
        at = tl.min(tl.where((highest == peak) & (tile > at), tile, BLOCK_T), 0)
    pick = arg
    score = top * stats.LN2
    if temperature > 0.0:
        at = tl.min(tl.where(bests == tl.max(bests, 0), tile, TILES - 1), 0)
        token = token_of(at, column, STRIP)
        z = tl.load(logits_ptr + token, mask=token < V, other=float("-inf")).to(tl.float32)
        index = (token // GROUP + group) * CALLS + token % CALLS
        w0, w1, w2, w3 = stats.philox(
            tl.load(seed_ptr + row), tl.load(counter_ptr + row), index, 0
        )
        strip = column // STRIP
        word = tl.where(strip == 0, w0, tl.where(strip == 1, w1, tl.where(strip == 2, w2, w3)))
        noisy = scaled(z, to_log2, SOFTCAP, False) - tl.log2(race(word, False))
        noisy = tl.where(token < V, noisy, float("-inf"))
        best = tl.max(noisy, 0)
        pick = tl.min(tl.where(noisy == best, token, stats.NOBODY), 0)
        score = best * stats.LN2 - stats.LN_LN2  # the noise in base 2 has left out a constant
    first = tl.cast(group, tl.int64) * GROUP
    tl.store(argmax_ptr + row, arg.to(tl.int64) + first)
    tl.store(sample_ptr + row, pick.to(tl.int64) + first)
    tl.store(score_ptr + row, score)
