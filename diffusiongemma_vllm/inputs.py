"""What a forward reads, row by row, kept at fixed addresses so that CUDA graphs can replay it."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusiongemma_vllm.state import COMMIT, DENOISE, SlotState


class StepInputs:
    """Persistent buffers of one step.

    soft: [T, H].  denoising: [T] bool.  canvas: [N] i32, which requests see their whole canvas.
    """

    def __init__(
        self, *, tokens: int, requests: int, hidden: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.soft = torch.zeros(tokens, hidden, dtype=dtype, device=device)
        self.denoising = torch.zeros(tokens, dtype=torch.bool, device=device)
        self.canvas = torch.zeros(requests, dtype=torch.int32, device=device)

    def set_modes(self, state: SlotState, slots: Tensor, padded: int) -> Tensor:
        """Say which of the requests in ``slots`` [N] denoise.   ->  [padded] i32"""
        requests = slots.shape[0]
        self.canvas[:requests] = (state.phase[slots] == DENOISE).to(torch.int32)
        self.canvas[requests:padded] = 0
        return self.canvas[:padded]

    def set_rows(
        self, state: SlotState, slots: Tensor, starts: Tensor, input_ids: Tensor, padded: int
    ) -> tuple[Tensor, Tensor]:
        """Fill the rows that belong to a canvas.

        slots: [N] i64.  starts: [N + 1] i32, first row of each request.  input_ids: [T], written in
        place where a row reads a canvas.   ->  soft [padded, H], denoising [padded]
        """
        tokens = input_ids.shape[0]
        rows = torch.arange(tokens, device=input_ids.device, dtype=starts.dtype)
        owner = torch.searchsorted(starts, rows, right=True) - 1
        owner = owner.clamp(max=slots.shape[0] - 1)
        slot = slots[owner]
        column = (rows - starts[owner]).long()
        length = state.tokens.shape[1]
        inside = (column < length) & (rows < starts[slots.shape[0]])
        column = column.clamp(0, length - 1)
        phase = state.phase[slot]
        denoising = (phase == DENOISE) & inside
        written = ((phase == COMMIT) & inside) | denoising
        input_ids.copy_(torch.where(written, state.tokens[slot, column], input_ids))
        self.denoising[:tokens] = denoising
        self.denoising[tokens:padded] = False
        known = denoising & (state.step[slot] > 0)
        self.soft[:tokens] = torch.where(known[:, None], state.soft[slot, column], 0)
        return self.soft[:padded], self.denoising[:padded]
