import triton
import triton.language as tl

LOWEST = tl.constexpr(-1.0e30)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LN_LN2 = tl.constexpr(-0.36651292058166435)
LANES = tl.constexpr(1024)
TILE = tl.constexpr(4096)
NOBODY = tl.constexpr(2147483647)
MOST_NOISE = tl.constexpr(25.0)  # above -log2(-log2(1 - 2^-24)) = 23.5
ROUNDS = tl.constexpr(7)


@triton.jit
def load_logits(row_ptr, token, V):
    """Some tokens' logits, -inf beyond the vocabulary.  [LANES]"""
    return tl.load(row_ptr + token, mask=token < V, other=float("-inf")).to(tl.float32)


@triton.jit
def scaled(z, token, V, to_log2, SOFTCAP: tl.constexpr):
    """y * log2(e) of some tokens, -inf beyond the vocabulary.  [LANES]"""
    if SOFTCAP > 0.0:
        # tanh(x) = 1 - 2 / (1 + exp(2 x)), whose ends are exact.
        capped = 1.0 - 2.0 / (1.0 + tl.exp2(z * (2.0 * LOG2E / SOFTCAP)))
        return tl.where(token < V, capped * (to_log2 * SOFTCAP), float("-inf"))
    else:
        return z * to_log2


@triton.jit
def add_to_sums(total, moment, y, top):
    """total += p, moment += p * (y - top) for p = 2^(y - top)."""
    below = tl.maximum(y - top, LOWEST)  # 0 * -inf would be NaN
    p = tl.exp2(below)
    return total + p, moment + p * below


@triton.jit
def best_of(a, b, c, d):
    return tl.max(tl.maximum(tl.maximum(a, b), tl.maximum(c, d)), 0)


@triton.jit
def first_at(a, b, c, d, value, token):
    """The lowest token whose number is `value`; b, c, d lie 1, 2, 3 times LANES further."""
    least = tl.where(d == value, token + 3 * LANES, NOBODY)
    least = tl.where(c == value, token + 2 * LANES, least)
    least = tl.where(b == value, token + LANES, least)
    return tl.min(tl.where(a == value, token, least), 0)


@triton.jit
def philox(seed, counter, index, DOMAIN: tl.constexpr):
    """Four u32 words a lane; `noise.philox` in torch.  64-bit products are one instruction each."""
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c2 = index.to(tl.uint32)  # [lanes]
    zero = c2 & 0
    c0 = (counter & 0xFFFFFFFF).to(tl.uint32) + zero
    c1 = ((counter >> 32) & 0xFFFFFFFF).to(tl.uint32) + zero
    c3 = zero + DOMAIN
    for _ in tl.static_range(ROUNDS):
        first = c0.to(tl.uint64) * 0xD2511F53
        second = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (second >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (first >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = second.to(tl.uint32)
        c3 = first.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def with_noise(y, word):
    """y - log2(-log2(u)): the Gumbel number in base 2, less a constant."""
    u = ((word >> 9).to(tl.int32) * 2 + 1).to(tl.float32) * (1.0 / 16777216.0)
    return y - tl.log2(-tl.log2(u))


@triton.jit
def scan(
    logits_ptr,  # [R, V]
    temperature_ptr,  # [R]
    seed_ptr,  # [R] i64
    counter_ptr,  # [R] i64
    sums_ptr,  # [4, R, SPLITS] f32: top, total, moment, best
    tokens_ptr,  # [2, R, SPLITS] i32: argmax, sample
    R,
    V,
    stride_r,
    tiles,
    group,  # of the first token
    SPLITS: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    row_ptr = logits_ptr + row * stride_r
    temperature = tl.load(temperature_ptr + row)
    noisy = temperature > 0.0
    to_log2 = LOG2E / tl.where(noisy, temperature, 1.0)
    seed = tl.load(seed_ptr + row)
    counter = tl.load(counter_ptr + row)

    lane = tl.arange(0, LANES)  # [LANES]
    top = tl.full((), LOWEST, tl.float32)
    arg = tl.full((), NOBODY, tl.int32)
    best = tl.full((), LOWEST, tl.float32)
    pick = tl.full((), NOBODY, tl.int32)
    total = tl.zeros([LANES], tl.float32)
    moment = tl.zeros([LANES], tl.float32)
    for tile in range(split * tiles, tl.minimum((split + 1) * tiles, tl.cdiv(V, TILE))):
        token = lane + tile * TILE  # [LANES]
        z0 = load_logits(row_ptr, token, V)
        z1 = load_logits(row_ptr, token + LANES, V)
        z2 = load_logits(row_ptr, token + 2 * LANES, V)
        z3 = load_logits(row_ptr, token + 3 * LANES, V)
        y0 = scaled(z0, token, V, to_log2, SOFTCAP)
        y1 = scaled(z1, token + LANES, V, to_log2, SOFTCAP)
        y2 = scaled(z2, token + 2 * LANES, V, to_log2, SOFTCAP)
        y3 = scaled(z3, token + 3 * LANES, V, to_log2, SOFTCAP)
        tile_top = best_of(y0, y1, y2, y3)
        if tile_top > top:
            arg = first_at(y0, y1, y2, y3, tile_top, token)
            fall = top - tile_top
            shrink = tl.exp2(fall)
            moment = shrink * (moment + total * fall)
            total = shrink * total
            top = tile_top
        total, moment = add_to_sums(total, moment, y0, top)
        total, moment = add_to_sums(total, moment, y1, top)
        total, moment = add_to_sums(total, moment, y2, top)
        total, moment = add_to_sums(total, moment, y3, top)

        if noisy:
            index = lane + (tile + group) * LANES
            w0, w1, w2, w3 = philox(seed, counter, index, 0)  # [LANES] each
            # Only u > 2^-(2^-(best - tile_top)) can win; the slack covers the rounding of y + g.
            gap = best - tile_top - 0.01
            highest = tl.max(tl.maximum(tl.maximum(w0, w1), tl.maximum(w2, w3)) >> 9, 0)
            u = (highest.to(tl.int32) * 2 + 1).to(tl.float32) * (1.0 / 16777216.0)
            needed = tl.exp2(-tl.exp2(-gap)) - 1.0e-6
            if (gap < MOST_NOISE) & (u >= needed):
                s0 = with_noise(y0, w0)
                s1 = with_noise(y1, w1)
                s2 = with_noise(y2, w2)
                s3 = with_noise(y3, w3)
                tile_best = best_of(s0, s1, s2, s3)
                if tile_best > best:
                    pick = first_at(s0, s1, s2, s3, tile_best, token)
                    best = tile_best

    cell = row * SPLITS + split
    plane = tl.cast(R, tl.int64) * SPLITS
    all_total = tl.sum(total, 0)
    tl.store(sums_ptr + cell, top)
    tl.store(sums_ptr + plane + cell, all_total)
    tl.store(sums_ptr + 2 * plane + cell, tl.sum(moment, 0))
    tl.store(sums_ptr + 3 * plane + cell, best)
    tl.store(tokens_ptr + cell, arg)
    tl.store(tokens_ptr + plane + cell, pick)


@triton.jit
def finish(
    temperature_ptr,  # [R]
    sums_ptr,  # [4, R, SPLITS]
    tokens_ptr,  # [2, R, SPLITS]
    argmax_ptr,  # [R] i64
    sample_ptr,  # [R] i64
    entropy_ptr,  # [R] f32
    max_ptr,  # [R] f32
    logsumexp_ptr,  # [R] f32
    score_ptr,  # [R] f32
    R,
    first,  # token
    SPLITS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cell = row * SPLITS + tl.arange(0, SPLITS)  # [SPLITS]
    plane = tl.cast(R, tl.int64) * SPLITS
    tops = tl.load(sums_ptr + cell)
    totals = tl.load(sums_ptr + plane + cell)
    moments = tl.load(sums_ptr + 2 * plane + cell)
    bests = tl.load(sums_ptr + 3 * plane + cell)
    args = tl.load(tokens_ptr + cell)
    picks = tl.load(tokens_ptr + plane + cell)

    top = tl.max(tops, 0)
    fall = tops - top
    weight = tl.exp2(fall)
    total = tl.sum(totals * weight, 0)
    moment = tl.sum(weight * (moments + totals * fall), 0)
    log_total = tl.log2(total)
    arg = tl.min(tl.where(tops == top, args, NOBODY), 0)
    best = tl.max(bests, 0)
    pick = tl.min(tl.where(bests == best, picks, NOBODY), 0)
    greedy = tl.load(temperature_ptr + row) <= 0.0

    tl.store(argmax_ptr + row, arg.to(tl.int64) + first)
    tl.store(sample_ptr + row, tl.where(greedy, arg, pick).to(tl.int64) + first)
    tl.store(entropy_ptr + row, tl.maximum((log_total - moment / total) * LN2, 0.0))
    tl.store(max_ptr + row, top * LN2)
    tl.store(logsumexp_ptr + row, (top + log_total) * LN2)
    # The noise in base 2 has left out a constant, see `with_noise`.
    tl.store(score_ptr + row, tl.where(greedy, top * LN2, best * LN2 - LN_LN2))


@triton.jit
def uniform_tokens(
    seed_ptr, counter_ptr, token_ptr, n, vocab, DOMAIN: tl.constexpr, BLOCK: tl.constexpr
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    seed = tl.load(seed_ptr + i, mask=i < n, other=0)
    counter = tl.load(counter_ptr + i, mask=i < n, other=0)
    word, _, _, _ = philox(seed, counter, tl.zeros([BLOCK], tl.uint32), DOMAIN)
    tl.store(token_ptr + i, (word.to(tl.int64) * vocab) >> 32, mask=i < n)
