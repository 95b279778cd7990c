"""How the tokens of canvases are drawn from their logits."""

from __future__ import annotations

from torch import Tensor

from diffusiongemma_vllm.denoise.noise import SAMPLE, counters, rolled
from diffusiongemma_vllm.denoise.schedule import LinearSchedule
from diffusiongemma_vllm.state import SlotState


def draws(state: SlotState, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """slots: [N] i64  ->  temperature f32, seed i64 and counter i64 of each position, [N * C]"""
    knobs, step = state.knobs, state.step[slots]
    schedule = LinearSchedule(knobs.t_min[slots], knobs.t_max[slots], knobs.max_steps[slots])
    heat = schedule(step) * state.temperature[slots]
    length = state.tokens.shape[1]
    draw = rolled(step, state.roll[slots])
    return (
        heat.repeat_interleave(length),
        state.seed[slots].repeat_interleave(length),
        counters(state.base[slots], draw, length, SAMPLE).flatten(),
    )
