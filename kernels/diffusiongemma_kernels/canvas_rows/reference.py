from torch import Tensor

from diffusiongemma_kernels.slots import DENOISE, Rows, Slots


def set_parts(rows: Rows, state: Slots, starts: Tensor, ends: Tensor) -> None:
    bounds = rows.starts.tolist()
    starts.fill_(bounds[-1])
    ends.zero_()
    for i, (slot, end) in enumerate(zip(rows.slots.tolist(), rows.ends.tolist(), strict=True)):
        count = bounds[i + 1] - bounds[i]
        causal = count
        if state.phase[slot] == DENOISE:
            causal = min(int(state.pending[slot]), count)
        starts[2 * i], starts[2 * i + 1] = bounds[i], bounds[i] + causal
        ends[2 * i], ends[2 * i + 1] = end - count + causal, end


def fill_rows(
    rows: Rows, state: Slots, beliefs: Tensor, ids: Tensor, soft: Tensor, denoising: Tensor
) -> None:
    denoising.zero_()
    bounds = rows.starts.tolist()
    for i, slot in enumerate(rows.slots.tolist()):
        if state.phase[slot] != DENOISE:
            continue
        text = int(state.pending[slot])
        for t in range(bounds[i], bounds[i + 1]):
            place = t - bounds[i]
            column = place - text
            if place < text:
                ids[t] = state.text[slot, place]
            elif column < state.tokens.shape[1]:
                ids[t] = state.tokens[slot, column]
                denoising[t] = True
                soft[t] = beliefs[slot, column] if state.step[slot] > 0 else 0
