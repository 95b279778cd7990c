import triton
import triton.language as tl

from diffusiongemma_kernels.lm_head._kernel import inverse

LOG2E = tl.constexpr(1.4426950408889634)
LANES = tl.constexpr(2048)


@triton.jit
def probability(z, to_log2, sum_log2, SOFTCAP: tl.constexpr, FAST: tl.constexpr):
    """exp(y - logsumexp) for logits z; to_log2 = log2(e) / temperature, sum_log2 in base 2"""
    if SOFTCAP > 0.0:
        # tanh(x) = 1 - 2 / (1 + exp(2 x)), whose ends are exact.
        most = SOFTCAP * to_log2
        below = inverse(1.0 + tl.exp2(z * (2.0 * LOG2E / SOFTCAP)), FAST)
        return tl.exp2((most - sum_log2) - (2.0 * most) * below)
    return tl.exp2(z * to_log2 - sum_log2)


@triton.jit
def append(list_ptr, values, where, count, MOST: tl.constexpr):
    """Write some of `values` behind the `count` that are there, at most MOST.  -> which"""
    place = count + tl.cumsum(where.to(tl.int32), 0) - 1
    fits = where & (place < MOST)
    tl.store(list_ptr + place, values, mask=fits)
    return place, fits


@triton.jit
def likely_strips(
    tops_ptr, strips_ptr, to_log2, sum_log2, level, strips,
    SOFTCAP: tl.constexpr, LIMIT: tl.constexpr, BLOCK_S: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """A row's strips with a token of probability `level`, in order, if <= LIMIT.  -> how many"""
    strip = tl.arange(0, BLOCK_S)  # [BLOCK_S]
    top = tl.load(tops_ptr + strip, mask=strip < strips, other=0.0)
    likely = (strip < strips) & (probability(top, to_log2, sum_log2, SOFTCAP, FAST) >= level)
    count = tl.sum(likely.to(tl.int32), 0)
    if count <= LIMIT:
        append(strips_ptr, strip, likely, 0, LIMIT)
    return count


@triton.jit
def collect(
    logits_ptr, strips_ptr, tokens_ptr, probs_ptr, to_log2, sum_log2, level, found, V,
    STRIP: tl.constexpr, SOFTCAP: tl.constexpr, LIMIT: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """The tokens of probability `level` in `found` strips, in order.  -> how many, if <= LIMIT"""
    GROUP: tl.constexpr = LANES // STRIP
    count = 0
    begin = 0
    while (begin < found) & (count <= LIMIT):
        at = begin + tl.arange(0, GROUP)  # [GROUP]
        strip = tl.load(strips_ptr + at, mask=at < found, other=0)
        token = strip[:, None] * STRIP + tl.arange(0, STRIP)[None, :]  # [GROUP, STRIP]
        there = (at < found)[:, None] & (token < V)
        z = tl.load(logits_ptr + token, mask=there, other=0.0).to(tl.float32)
        p = probability(z, to_log2, sum_log2, SOFTCAP, FAST)
        likely = (there & (p >= level)).reshape(LANES)
        place, fits = append(tokens_ptr, token.reshape(LANES), likely, count, LIMIT)
        tl.store(probs_ptr + place, p.reshape(LANES), mask=fits)
        count += tl.sum(likely.to(tl.int32), 0)
        begin += GROUP
    return count


@triton.jit
def select(
    logits_ptr,  # [R, V]
    tops_ptr,  # [R, strips] f32
    temperature_ptr,  # [R]
    logsumexp_ptr,  # [R]
    local_ptr,  # [R], the logsumexp of these tokens alone, read where PARTS > 1
    strips_ptr,  # [R, LIMIT] i32, scratch
    tokens_ptr,  # [R, LIMIT] i32
    probs_ptr,  # [R, LIMIT] f32
    counts_ptr,  # [R] i32, -1 where the whole vocabulary is needed
    V,
    strips,
    stride_l,
    STRIP: tl.constexpr,
    SOFTCAP: tl.constexpr,
    LEAST: tl.constexpr,
    DROPPED: tl.constexpr,
    PARTS: tl.constexpr,
    LEVELS: tl.constexpr,
    LIMIT: tl.constexpr,
    BLOCK_S: tl.constexpr,  # strips, rounded up
    FAST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + row)
    to_log2 = LOG2E / tl.where(temperature > 0.0, temperature, 1.0)
    sums = tl.load(logsumexp_ptr + row)
    sum_log2 = sums * LOG2E
    logits_ptr += row * stride_l
    tops_ptr += row * strips
    strips_ptr += row * LIMIT
    tokens_ptr += row * LIMIT
    probs_ptr += row * LIMIT
    level = tl.full((), LEAST, tl.float32)
    count = LIMIT + 1
    # All but LIMIT of the tokens known to have `level` are lost, whatever the higher levels hold.
    lost = tl.full((), 0.0, tl.float32)
    while (count > LIMIT) & (level < 1.0) & (lost <= DROPPED / PARTS):
        count = likely_strips(
            tops_ptr, strips_ptr, to_log2, sum_log2, level, strips, SOFTCAP, LIMIT, BLOCK_S, FAST
        )
        tl.debug_barrier()  # other threads read what was written
        if count <= LIMIT:
            count = collect(
                logits_ptr, strips_ptr, tokens_ptr, probs_ptr, to_log2, sum_log2, level, count, V,
                STRIP, SOFTCAP, LIMIT, FAST,
            )  # fmt: skip
            tl.debug_barrier()
        lost = (count - LIMIT).to(tl.float32) * level
        level *= 16.0

    # The highest level that keeps enough, and the tokens above it.
    place = tl.arange(0, LIMIT)  # [LIMIT]
    there = place < tl.where(count <= LIMIT, count, 0)
    token = tl.load(tokens_ptr + place, mask=there, other=0)
    p = tl.load(probs_ptr + place, mask=there, other=0.0)
    here = 1.0
    if PARTS > 1:
        here = tl.exp(tl.load(local_ptr + row) - sums)
    kept_least = here - DROPPED / PARTS
    enough = tl.sum(p, 0) >= kept_least  # NaN is not
    level = tl.full((), 0.0, tl.float32)
    least = tl.full((), LEAST, tl.float32)
    for _ in tl.static_range(LEVELS):
        level = tl.where(tl.sum(tl.where(p >= least, p, 0.0), 0) >= kept_least, least, level)
        least *= 4.0
    tl.debug_barrier()
    kept = there & (p >= level)
    place, fits = append(tokens_ptr, token, kept, 0, LIMIT)
    tl.store(probs_ptr + place, p, mask=fits)
    tl.store(counts_ptr + row, tl.where(enough, tl.sum(kept.to(tl.int32), 0), -1))


@triton.jit
def line_up(
    counts_ptr,  # [R] i32
    order_ptr,  # [R] i32, the rows that need the whole vocabulary
    total_ptr,  # [1] i32, how many they are
    R,
    BLOCK: tl.constexpr,
):
    lane = tl.arange(0, BLOCK)
    total = 0
    for begin in range(0, R, BLOCK):
        row = begin + lane
        whole = tl.load(counts_ptr + row, mask=row < R, other=0) < 0
        append(order_ptr, row, whole, total, 2147483647)
        total += tl.sum(whole.to(tl.int32), 0)
    tl.store(total_ptr, total)


@triton.jit
def mix_few(
    tokens_ptr,  # [R, LIMIT] i32
    probs_ptr,  # [R, LIMIT] f32
    counts_ptr,  # [R] i32
    weight_ptr,  # [V, H]
    out_ptr,  # [R, H]
    H,
    stride_w,
    scale,
    LIMIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)  # [BLOCK_H]
    count = tl.load(counts_ptr + row)
    if count < 0:
        return
    n = tl.arange(0, BLOCK_N)  # [BLOCK_N]
    acc = tl.zeros([BLOCK_N, BLOCK_H], tl.float32)
    for begin in range(0, count, BLOCK_N):
        there = begin + n < count
        token = tl.load(tokens_ptr + row * LIMIT + begin + n, mask=there, other=0)
        p = tl.load(probs_ptr + row * LIMIT + begin + n, mask=there, other=0.0)
        w = tl.load(
            weight_ptr + token.to(tl.int64)[:, None] * stride_w + h[None, :],
            mask=there[:, None] & (h < H)[None, :], other=0.0,
        )  # fmt: skip
        acc += p[:, None] * w.to(tl.float32)
    out = tl.sum(acc, 0) * scale
    tl.store(out_ptr + row * H + h, out.to(out_ptr.dtype.element_ty), mask=h < H)


@triton.jit
def weigh(
    logits_ptr,  # [R, V], overwritten with probabilities in the rows of `order`
    temperature_ptr,  # [R]
    logsumexp_ptr,  # [R]
    order_ptr,  # [R] i32
    total_ptr,  # [1] i32
    V,
    stride_l,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
    FAST: tl.constexpr,
):
    if tl.program_id(0) >= tl.load(total_ptr):
        return
    row = tl.load(order_ptr + tl.program_id(0)).to(tl.int64)
    temperature = tl.load(temperature_ptr + row)
    to_log2 = LOG2E / tl.where(temperature > 0.0, temperature, 1.0)
    sum_log2 = tl.load(logsumexp_ptr + row) * LOG2E
    step = tl.num_programs(1) * BLOCK
    for begin in range(tl.program_id(1) * BLOCK, V, step):
        token = begin + tl.arange(0, BLOCK)  # [BLOCK]
        ptrs = logits_ptr + row * stride_l + token
        z = tl.load(ptrs, mask=token < V, other=0.0).to(tl.float32)
        p = probability(z, to_log2, sum_log2, SOFTCAP, FAST)
        tl.store(ptrs, p.to(logits_ptr.dtype.element_ty), mask=token < V)


@triton.jit
def mix_all(
    probs_ptr,  # [R, V]
    weight_ptr,  # [V, H]
    order_ptr,  # [R] i32
    total_ptr,  # [1] i32
    sums_ptr,  # [SPLITS, R, H] f32, by place in `order`
    R,
    V,
    H,
    stride_p,
    stride_w,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_H: tl.constexpr,
):
    total = tl.load(total_ptr)
    block, split = tl.program_id(1), tl.program_id(2)
    if block * BLOCK_M >= total:
        return
    place = block * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    there = place < total
    row = tl.load(order_ptr + place, mask=there, other=0).to(tl.int64)
    h = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)  # [BLOCK_H]
    k = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    share = tl.cdiv(tl.cdiv(V, BLOCK_K), tl.num_programs(2)) * BLOCK_K
    begin = split * share
    end = tl.minimum(begin + share, V)
    probs_ptrs = probs_ptr + row[:, None] * stride_p + (begin + k)[None, :]
    weight_ptrs = weight_ptr + (begin + k).to(tl.int64)[:, None] * stride_w + h[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    for at in range(begin, end, BLOCK_K):
        if EVEN_K:
            p = tl.load(probs_ptrs)
        else:
            p = tl.load(probs_ptrs, mask=(at + k < V)[None, :], other=0.0)
        if EVEN_K and EVEN_H:
            w = tl.load(weight_ptrs)
        else:
            w = tl.load(weight_ptrs, mask=(at + k < V)[:, None] & (h < H)[None, :], other=0.0)
        acc = tl.dot(p, w, acc, input_precision="ieee")
        probs_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K * stride_w
    sums = sums_ptr + (split * tl.cast(R, tl.int64) + place)[:, None] * H + h[None, :]
    tl.store(sums, acc, mask=there[:, None] & (h < H)[None, :])


@triton.jit
def add_splits(
    sums_ptr,  # [SPLITS, R, H] f32
    order_ptr,  # [R] i32
    total_ptr,  # [1] i32
    out_ptr,  # [R, H]
    R,
    H,
    scale,
    SPLITS: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)  # [BLOCK_H]
    if place >= tl.load(total_ptr):
        return
    row = tl.load(order_ptr + place).to(tl.int64)
    acc = tl.zeros([BLOCK_H], tl.float32)
    for split in tl.static_range(SPLITS):
        plane = split * tl.cast(R, tl.int64)
        acc += tl.load(sums_ptr + (plane + place) * H + h, mask=h < H, other=0.0)
    tl.store(out_ptr + row * H + h, (acc * scale).to(out_ptr.dtype.element_ty), mask=h < H)
