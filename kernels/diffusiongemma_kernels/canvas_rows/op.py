"""What the rows of a step read and how they attend, from the slots' state: two launches a step."""

import torch
from torch import Tensor

from diffusiongemma_kernels.canvas_rows import _config, _kernel
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
