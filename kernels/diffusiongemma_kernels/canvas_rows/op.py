"""What a step's rows read, how they attend and are drawn, from the slots' state: a launch each."""

import torch
from torch import Tensor

from diffusiongemma_kernels.canvas_rows import _config, _kernel
from diffusiongemma_kernels.canvas_rows.types import Draws, Heat
from diffusiongemma_kernels.slots import Rows, Slots


def set_parts(rows: Rows, state: Slots, starts: Tensor, ends: Tensor) -> None:
    """Request i's rows as runs 2 i and 2 i + 1 of P >= N requests: causal ones, then a canvas

        causal = min(pending, rows) of a slot that denoises, else rows
        starts[2 i], starts[2 i + 1] = first row, first row + causal
        ends[2 i], ends[2 i + 1] = end - rows + causal, end

    starts [2 P + 1], ends [2 P] i32, written; requests behind N are empty and end at 0.
    """
    _check_parts(rows, state, starts, ends)
    P = ends.shape[0] // 2
    block = _config.REQUESTS
    _kernel.parts[(-(-P // block),)](
        rows.slots, rows.starts, rows.ends, state.phase, state.pending, starts, ends,
        rows.slots.shape[0], P, BLOCK=block, num_warps=1,
    )


def fill_rows(
    rows: Rows, state: Slots, beliefs: Tensor, ids: Tensor, soft: Tensor, denoising: Tensor
) -> None:
    """Row t, place p of a request whose slot s denoises, q = pending[s]:

        p < q       ids[t] = text[s, p]
        p < q + C   ids[t] = tokens[s, p - q]; denoising[t] = 1;
                    soft[t] = beliefs[s, p - q] where step[s] > 0, else 0

    beliefs [S, C, H]; ids [T] integers; soft [P, H], denoising [P] bool with P >= T.  All other
    rows, and those of no request, keep their ids; they do not denoise and their soft is not set.
    """
    _check_rows(rows, state, beliefs, ids, soft, denoising)
    P, H = soft.shape
    if P == 0:
        return
    cfg = _config.choose(H)
    _kernel.fill[(P,)](
        rows.slots, rows.starts, state.phase, state.pending, state.step, state.text, state.tokens,
        beliefs, ids, soft, denoising.view(torch.uint8), rows.slots.shape[0],
        state.tokens.shape[1], H, BLOCK=cfg.block, num_warps=cfg.warps,
    )


def draw_rows(slots: Tensor, state: Slots, heat: Heat) -> Draws:
    """Position c of the canvas of slot s = slots[i], in row i C + c:

        temperature = (t_min + (t_max - t_min) ((max_steps - step) / max_steps)) temperature[s]
        seed        = seed[s]
        counter     = that of a sample at (base + c, step, roll)

    slots [N] i64.  The temperature is rounded as torch rounds: t_max - t_min in f64, the rest f32.
    """
    state.check()
    S, C = state.tokens.shape
    heat.check(S)
    assert slots.dtype == torch.int64 and slots.is_contiguous(), f"{slots.dtype=}"
    R = slots.shape[0] * C
    rows = Draws(
        heat.temperature.new_empty(R), state.seed.new_empty(R), state.seed.new_empty(R)
    )
    if R:
        block = 1 << (C - 1).bit_length()
        _kernel.draws[(slots.shape[0],)](
            slots, state.base, state.step, state.roll, state.seed, *heat, *rows, C, BLOCK=block,
            num_warps=max(1, min(8, block // 128)), enable_fp_fusion=False,
        )  # fmt: skip
    return rows


def _check_parts(rows: Rows, state: Slots, starts: Tensor, ends: Tensor) -> None:
    rows.check()
    state.check()
    assert ends.shape[0] % 2 == 0 and starts.shape == (ends.shape[0] + 1,), f"{starts.shape=}"
    assert ends.shape[0] // 2 >= rows.slots.shape[0], f"{ends.shape=} {rows.slots.shape=}"
    assert starts.dtype == ends.dtype == torch.int32, f"{starts.dtype=} {ends.dtype=}"


def _check_rows(
    rows: Rows, state: Slots, beliefs: Tensor, ids: Tensor, soft: Tensor, denoising: Tensor
) -> None:
    rows.check()
    state.check()
    S, C = state.tokens.shape
    P, H = soft.shape
    assert beliefs.shape == (S, C, H) and beliefs.dtype == soft.dtype, f"{beliefs.shape=}"
    assert ids.shape[0] <= P and denoising.shape == (P,), f"{ids.shape=} {denoising.shape=}"
    for x in (beliefs, ids, soft, denoising):
        assert x.is_contiguous(), "buffers must be contiguous"
