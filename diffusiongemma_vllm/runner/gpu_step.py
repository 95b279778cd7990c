"""What surrounds a forward, in four launches: for a GPU, where every small kernel costs time.

``inputs`` and the rules of ``denoise`` say the same in plain torch, for a CPU and for requests that
bend their canvases' beginning or end.
"""

from __future__ import annotations

from torch import Tensor

from diffusiongemma_kernels.canvas_rows.op import draw_rows, fill_rows, set_parts
from diffusiongemma_kernels.canvas_rows.types import Draws, Heat
from diffusiongemma_kernels.canvas_step.op import canvas_step
from diffusiongemma_kernels.canvas_step.types import Guess, Outcome, Rules
from diffusiongemma_kernels.slots import Rows, Slots
from diffusiongemma_vllm.inputs import PARTS, Parts, StepInputs
from diffusiongemma_vllm.state import SlotState


class GpuStep:
    """Holds the state's tensors as the kernels take them; the state and the inputs own them."""

    def __init__(self, state: SlotState, inputs: StepInputs) -> None:
        self.config, self.limit = state.config, state.limit
        self.inputs, self.beliefs = inputs, state.soft
        self.slots = Slots(*(getattr(state, name) for name in Slots._fields))
        knobs = state.knobs
        self.rules = Rules(*(getattr(knobs, name) for name in Rules._fields))
        self.heat = Heat(knobs.t_min, knobs.t_max, knobs.max_steps, state.temperature)

    def set_parts(self, rows: Rows, padded: int) -> Parts:
        """As ``StepInputs.set_parts``."""
        starts, ends, canvas = self.inputs.parts
        count = PARTS * padded
        parts = Parts(starts[: count + 1], ends[:count], canvas[:count])
        set_parts(rows, self.slots, parts.starts, parts.ends)
        return parts

    def set_rows(self, rows: Rows, input_ids: Tensor, padded: int) -> tuple[Tensor, Tensor]:
        """As ``StepInputs.set_rows``."""
        soft, denoising = self.inputs.soft[:padded], self.inputs.denoising[:padded]
        fill_rows(rows, self.slots, self.beliefs, input_ids, soft, denoising)
        return soft, denoising

    def draws(self, slots: Tensor) -> Draws:
        """As ``denoise.draws``."""
        return draw_rows(slots, self.slots, self.heat)

    def advance(self, guess: Guess, rows: Rows, prefill_len: Tensor) -> Outcome:
        """Accept, renoise, stop, give out text and begin canvases, as the sampler does."""
        return canvas_step(
            guess, rows, self.slots, self.rules, prefill_len, vocab_size=self.config.vocab_size,
            limit=self.limit,
        )
