import triton
import triton.language as tl

from diffusiongemma_kernels.canvas_rows._kernel import counter_of
from diffusiongemma_kernels.row_stats._kernel import philox

DENOISE = tl.constexpr(1)
CANVAS = tl.constexpr(1)


@triton.jit
def uniform_tokens(seed, position, step, roll, vocab, DOMAIN: tl.constexpr):
    """[BLOCK] i64 for the positions [BLOCK]"""
    counter = counter_of(position, step, roll, CANVAS)
    word, _, _, _ = philox(seed, counter, tl.zeros_like(position).to(tl.uint32), DOMAIN)
    return (word.to(tl.int64) * vocab) >> 32


@triton.jit
def surest(entropy_ptr, entropy, column, width, bound, C, CHUNK: tl.constexpr):
    """Whether the positions that are surer than each one sum to no more than `bound`.  [BLOCK]"""
    before = tl.zeros_like(entropy)
    for first in range(0, C, CHUNK):
        other = first + tl.arange(0, CHUNK)  # [CHUNK]
        theirs = tl.load(entropy_ptr + other, mask=other < width, other=float("inf"))
        tied = (theirs[None, :] == entropy[:, None]) & (other[None, :] < column[:, None])
        surer = (theirs[None, :] < entropy[:, None]) | tied  # [BLOCK, CHUNK]
        before += tl.sum(tl.where(surer & (other < width)[None, :], theirs[None, :], 0.0), 1)
    return (before <= bound) & (entropy == entropy)


@triton.jit(do_not_specialize=["K", "limit"])  # one compilation for every batch
def step(
    guess_best_ptr,  # [K, C] i64
    guess_sample_ptr,  # [K, C] i64
    guess_entropy_ptr,  # [K, C] f32
    slots_ptr,  # [N] i64
    starts_ptr,  # [N + 1] i32
    ends_ptr,  # [N] i32
    prefill_len_ptr,  # [S]
    phase_ptr,  # [S] i32
    text_ptr,  # [S, C]
    pending_ptr,  # [S]
    tokens_ptr,  # [S, C]
    best_ptr,  # [S, C]
    base_ptr,  # [S]
    width_ptr,  # [S]
    step_ptr,  # [S]
    held_ptr,  # [S]
    roll_ptr,  # [S]
    seed_ptr,  # [S]
    canvas_length_ptr,  # [S]
    last_step_ptr,  # [S]
    stability_ptr,  # [S]
    bound_ptr,  # [S] f32
    confidence_ptr,  # [S] f32
    out_text_ptr,  # [N, C] i32
    out_length_ptr,  # [N] i32
    out_rejected_ptr,  # [N] i32
    K,
    C,
    vocab,
    limit,
    DOMAIN: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + i)
    rows = (tl.load(starts_ptr + i + 1) - tl.load(starts_ptr + i)).to(tl.int64)
    end = tl.load(ends_ptr + i).to(tl.int64)
    has_canvas = tl.load(phase_ptr + slot) == DENOISE
    pending = tl.load(pending_ptr + slot)
    committed = tl.minimum(pending, rows)
    base = tl.load(base_ptr + slot)
    seed = tl.load(seed_ptr + slot)
    column = tl.arange(0, BLOCK).to(tl.int64)  # [BLOCK]
    inside = column < C
    own = slot * C + column  # [BLOCK], of the slot's canvas

    best = tl.zeros([BLOCK], tl.int64)
    length = tl.zeros([], tl.int64)
    if has_canvas & (rows > committed) & (i < K):
        here = i * C + column
        width = tl.load(width_ptr + slot)
        done_steps = tl.load(step_ptr + slot) + 1
        exists = column < width
        # A row of NaN has any number for a token, and the next forward would look it up.
        best = tl.load(guess_best_ptr + here, mask=inside, other=0)
        best = tl.minimum(tl.maximum(best, 0), vocab - 1)
        sample = tl.load(guess_sample_ptr + here, mask=inside, other=0)
        sample = tl.minimum(tl.maximum(sample, 0), vocab - 1)
        entropy = tl.load(guess_entropy_ptr + here, mask=exists, other=0.0)

        bound = tl.load(bound_ptr + slot)
        accepted = surest(guess_entropy_ptr + i * C, entropy, column, width, bound, C, CHUNK)
        roll = tl.load(roll_ptr + slot)
        fresh = uniform_tokens(seed, base + column, done_steps, roll, vocab, DOMAIN)
        tl.store(tokens_ptr + own, tl.where(accepted & exists, sample, fresh), mask=inside)

        before = tl.load(best_ptr + own, mask=inside, other=0)
        moved = tl.sum(((best != before) & exists).to(tl.int32)) > 0
        held = tl.where(moved, 0, tl.load(held_ptr + slot) + 1)
        mean = tl.sum(entropy) / tl.maximum(width, 1).to(tl.float32)
        calm = (held >= tl.load(stability_ptr + slot)) & (mean < tl.load(confidence_ptr + slot))
        tl.store(best_ptr + own, best, mask=inside)
        tl.store(step_ptr + slot, done_steps)
        tl.store(held_ptr + slot, held)
        if calm | (done_steps >= tl.load(last_step_ptr + slot)):
            length = width
            tl.store(text_ptr + own, best, mask=inside)
    tl.store(pending_ptr + slot, tl.where(length > 0, length, pending - committed))
    tl.store(out_text_ptr + i * C + column, best.to(tl.int32), mask=inside)
    tl.store(out_length_ptr + i, length.to(tl.int32))
    tl.store(out_rejected_ptr + i, tl.where(has_canvas, rows - committed, 0).to(tl.int32))

    prompt_done = (end >= tl.load(prefill_len_ptr + slot)) & (has_canvas == 0)
    if prompt_done | (length > 0):
        tl.debug_barrier()  # the same places were written above
        base = tl.where(has_canvas, base + length, end)
        zero = tl.zeros([], tl.int64)
        fresh = uniform_tokens(seed, base + column, zero, zero, vocab, DOMAIN)
        room = tl.minimum(limit - base, tl.load(canvas_length_ptr + slot))
        tl.store(phase_ptr + slot, DENOISE)
        tl.store(tokens_ptr + own, fresh, mask=inside)
        tl.store(best_ptr + own, tl.full([BLOCK], -1, tl.int64), mask=inside)
        tl.store(base_ptr + slot, base)
        tl.store(width_ptr + slot, tl.maximum(room, 0))
        tl.store(step_ptr + slot, zero)
        tl.store(held_ptr + slot, zero)
        tl.store(roll_ptr + slot, zero)
