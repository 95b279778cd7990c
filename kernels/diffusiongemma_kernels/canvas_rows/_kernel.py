import triton
import triton.language as tl

DENOISE = tl.constexpr(1)
SEARCH = tl.constexpr(128)
STEP_BITS = tl.constexpr(14)  # of a counter: position, roll, step, one bit of purpose
POSITION = tl.constexpr(20)
SAMPLE = tl.constexpr(0)


@triton.jit
def counter_of(position, step, roll, PURPOSE: tl.constexpr):
    """What counts the noise of a `position`."""
    return (position << POSITION) | ((step | (roll << STEP_BITS)) << 1) | PURPOSE


@triton.jit(do_not_specialize=["N", "P"])  # one compilation for every batch
def parts(
    slots_ptr,  # [N]
    starts_ptr,  # [N + 1]
    ends_ptr,  # [N]
    phase_ptr,  # [S]
    pending_ptr,  # [S]
    part_starts_ptr,  # [2 P + 1]
    part_ends_ptr,  # [2 P]
    N,
    P,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    live = i < N
    total = tl.load(starts_ptr + N)
    first = tl.load(starts_ptr + i, mask=live, other=0)
    rows = tl.load(starts_ptr + i + 1, mask=live, other=0) - first
    end = tl.load(ends_ptr + i, mask=live, other=0)
    slot = tl.load(slots_ptr + i, mask=live, other=0)
    denoises = tl.load(phase_ptr + slot, mask=live, other=0) == DENOISE
    pending = tl.load(pending_ptr + slot, mask=live, other=0).to(tl.int32)
    causal = tl.where(denoises, tl.minimum(pending, rows), rows)

    first = tl.where(live, first, total)
    middle = tl.where(live, end - rows + causal, 0)
    tl.store(part_starts_ptr + 2 * i, first, mask=i <= P)
    tl.store(part_starts_ptr + 2 * i + 1, first + tl.where(live, causal, 0), mask=i < P)
    tl.store(part_ends_ptr + 2 * i, middle, mask=i < P)
    tl.store(part_ends_ptr + 2 * i + 1, end, mask=i < P)
    if tl.program_id(0) == 0:
        tl.store(part_starts_ptr + 2 * P, total)


@triton.jit(do_not_specialize=["N"])
def fill(
    slots_ptr,  # [N]
    starts_ptr,  # [N + 1]
    phase_ptr,  # [S]
    pending_ptr,  # [S]
    step_ptr,  # [S]
    text_ptr,  # [S, C]
    tokens_ptr,  # [S, C]
    belief_ptr,  # [S, C, H]
    ids_ptr,  # [T]
    soft_ptr,  # [P, H]
    denoising_ptr,  # [P] u8
    N,
    C,
    H,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    denoising = 0
    if row < tl.load(starts_ptr + N):
        begun = 0
        for first in range(0, N, SEARCH):
            ids = first + tl.arange(0, SEARCH)  # [SEARCH]
            start = tl.load(starts_ptr + ids, mask=ids < N, other=0)
            begun += tl.sum(((start <= row) & (ids < N)).to(tl.int32))
        request = begun - 1
        slot = tl.load(slots_ptr + request)
        place = (row - tl.load(starts_ptr + request)).to(tl.int64)
        if tl.load(phase_ptr + slot) == DENOISE:
            pending = tl.load(pending_ptr + slot)
            column = place - pending
            if place < pending:
                token = tl.load(text_ptr + slot * C + place)
                tl.store(ids_ptr + row, token.to(ids_ptr.dtype.element_ty))
            elif column < C:
                denoising = 1
                token = tl.load(tokens_ptr + slot * C + column)
                tl.store(ids_ptr + row, token.to(ids_ptr.dtype.element_ty))
                element = tl.arange(0, BLOCK)  # [BLOCK]
                known = element < tl.where(tl.load(step_ptr + slot) > 0, H, 0)
                belief = tl.load(
                    belief_ptr + (slot * C + column) * H + element, mask=known, other=0.0
                )
                out = soft_ptr + row.to(tl.int64) * H + element
                tl.store(out, belief, mask=element < H)
    tl.store(denoising_ptr + row, denoising)


@triton.jit
def draws(
    slots_ptr,  # [N]
    base_ptr,  # [S]
    step_ptr,  # [S]
    roll_ptr,  # [S]
    seed_ptr,  # [S]
    t_min_ptr,  # [S] f64
    t_max_ptr,  # [S] f64
    max_steps_ptr,  # [S]
    heat_ptr,  # [S] f32
    temperature_ptr,  # [N, C] f32
    seeds_ptr,  # [N, C]
    counters_ptr,  # [N, C]
    C,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + i)
    step = tl.load(step_ptr + slot)
    steps = tl.load(max_steps_ptr + slot)
    t_min = tl.load(t_min_ptr + slot)
    span = (tl.load(t_max_ptr + slot) - t_min).to(tl.float32)
    left = tl.div_rn((steps - step).to(tl.float32), steps.to(tl.float32))
    heat = (t_min.to(tl.float32) + span * left) * tl.load(heat_ptr + slot)
    column = tl.arange(0, BLOCK).to(tl.int64)  # [BLOCK]
    inside = column < C
    position = tl.load(base_ptr + slot) + column
    counter = counter_of(position, step, tl.load(roll_ptr + slot), SAMPLE)
    here = i * C + column
    tl.store(temperature_ptr + here, tl.zeros([BLOCK], tl.float32) + heat, mask=inside)
    tl.store(seeds_ptr + here, tl.zeros_like(column) + tl.load(seed_ptr + slot), mask=inside)
    tl.store(counters_ptr + here, counter, mask=inside)
