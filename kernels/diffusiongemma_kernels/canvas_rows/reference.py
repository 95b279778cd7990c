import torch
from torch import Tensor

from diffusiongemma_kernels.canvas_rows.types import Draws, Heat
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


def draw_rows(slots: Tensor, state: Slots, heat: Heat) -> Draws:
    seeds, counters, temperatures = [], [], []
    for s in slots.tolist():
        steps, step, roll = (int(x[s]) for x in (heat.max_steps, state.step, state.roll))
        left = torch.tensor(steps - step, dtype=torch.float32) / steps
        t_min, span = heat.t_min[s].cpu().float(), (heat.t_max[s] - heat.t_min[s]).cpu().float()
        temperature = (t_min + span * left) * heat.temperature[s].cpu()
        for c in range(state.tokens.shape[1]):
            temperatures.append(float(temperature))
            seeds.append(int(state.seed[s]))
            counters.append((int(state.base[s]) + c) << 20 | roll << 15 | step << 1)
    device = slots.device
    return Draws(
        torch.tensor(temperatures, dtype=torch.float32, device=device),
        torch.tensor(seeds, dtype=torch.int64, device=device),
        torch.tensor(counters, dtype=torch.int64, device=device),
    )
