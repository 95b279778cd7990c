"""What a forward reads, row by row, kept at fixed addresses so that CUDA graphs can replay it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffusiongemma_vllm.state import DENOISE, SlotState

PARTS = 2  # of a request's rows: those that are causal, then those of a canvas


class Parts(NamedTuple):
    """The rows of N requests as 2 N runs of rows: request i has runs 2 i and 2 i + 1.

    starts: [2 N + 1] i32, first row of each.  ends: [2 N] i32, position behind its last row.
    canvas: [2 N] i32, 1 for a run that sees all of itself.
    """

    starts: Tensor
    ends: Tensor
    canvas: Tensor


class StepInputs:
    """Persistent buffers of one step.

    soft: [T, H].  denoising: [T] bool.  parts: of the most requests.
    """

    def __init__(
        self, *, tokens: int, requests: int, hidden: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.soft = torch.zeros(tokens, hidden, dtype=dtype, device=device)
        self.denoising = torch.zeros(tokens, dtype=torch.bool, device=device)

        def numbers(count: int) -> Tensor:
            return torch.zeros(count, dtype=torch.int32, device=device)

        self.parts = Parts(
            numbers(PARTS * requests + 1), numbers(PARTS * requests), numbers(PARTS * requests)
        )
        self.parts.canvas[1::PARTS] = 1

    def set_parts(
        self, state: SlotState, slots: Tensor, starts: Tensor, ends: Tensor, padded: int
    ) -> Parts:
        """Split every request's rows into the causal ones, prompt or committed text, and a canvas.

        slots: [N] i64.  starts: [N + 1] i32, first row of each request.  ends: [N] i32, position
        behind its last row.   ->  the parts of ``padded`` requests, those behind N empty
        """
        count = slots.shape[0]
        first, rows = starts[:count], starts[: count + 1].diff()
        denoises = state.phase[slots] == DENOISE
        causal = torch.where(denoises, state.committed(slots, rows).to(rows.dtype), rows)
        parts = Parts(
            self.parts.starts[: PARTS * padded + 1], self.parts.ends[: PARTS * padded],
            self.parts.canvas[: PARTS * padded],
        )
        own = PARTS * count
        parts.starts[:own:PARTS] = first
        parts.starts[1:own:PARTS] = first + causal
        parts.starts[own:] = starts[count]
        parts.ends[:own:PARTS] = ends - rows + causal
        parts.ends[1:own:PARTS] = ends
        parts.ends[own:] = 0
        return parts

    def set_rows(
        self, state: SlotState, slots: Tensor, starts: Tensor, input_ids: Tensor, padded: int
    ) -> tuple[Tensor, Tensor]:
        """Fill the rows that belong to a settled text or to a canvas.

        slots: [N] i64.  starts: [N + 1] i32, first row of each request.  input_ids: [T], written in
        place where a row reads the state.   ->  soft [padded, H], denoising [padded]
        """
        tokens = input_ids.shape[0]
        rows = torch.arange(tokens, device=input_ids.device, dtype=starts.dtype)
        owner = torch.searchsorted(starts, rows, right=True) - 1
        owner = owner.clamp(max=slots.shape[0] - 1)
        slot = slots[owner]
        place = (rows - starts[owner]).long()
        length = state.tokens.shape[1]
        pending = state.pending[slot]
        ours = (state.phase[slot] == DENOISE) & (rows < starts[slots.shape[0]])
        commits = ours & (place < pending)
        column = place - pending
        denoising = ours & ~commits & (column < length)
        column = column.clamp(0, length - 1)
        text = state.text[slot, place.clamp(max=length - 1)]
        read = torch.where(commits, text, state.tokens[slot, column])
        input_ids.copy_(torch.where(commits | denoising, read, input_ids))
        self.denoising[:tokens] = denoising
        self.denoising[tokens:padded] = False
        known = denoising & (state.step[slot] > 0)
        self.soft[:tokens] = torch.where(known[:, None], state.soft[slot, column], 0)
        return self.soft[:padded], self.denoising[:padded]
