"""LoRA on the row tiles of ``rowwise``: what vLLM's LoRA layers call on CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from diffusiongemma_vllm.model.rowwise import first_row


class TiledPunica(PunicaWrapperCPU):
    """Finds the adapters of a tile's rows; vLLM's own takes x to hold all rows of the batch.

    Every adapter is multiplied with the whole tile, so that a row's result does not depend on what
    the other rows use.
    """

    def add_lora_linear(
        self, y: Tensor, x: Tensor, lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...], scale: float, output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """y[t] += scale * b[adapter of t] @ a[adapter of t] @ x[t], in place.

        x: [T, H]  y: [T, sum(output_slices)]  a: [adapters, 1, R, H]  b: [adapters, 1, slice, R]
        """
        first = first_row()
        adapters = self.token_lora_indices[first : first + x.shape[0]]  # -1: none
        for adapter in adapters.unique().tolist():
            if adapter < 0:
                continue
            rows = torch.where(adapters == adapter)[0]
            parts = [
                (x @ a[adapter, 0].T) @ b[adapter, 0].T
                for a, b in zip(lora_a_stacked, lora_b_stacked, strict=True)
            ]
            y[rows] += scale * torch.cat(parts, dim=-1)[rows]


def use_tiles(manager: Any) -> None:
    """Have the layers that vLLM's ``LoRAModelManager`` has wrapped work on tiles."""
    tiled = TiledPunica(
        manager.max_num_batched_tokens, max_batches=manager.max_num_seqs, device=manager.device
    )
    for key in manager.punica_wrapper_mapping:
        manager.punica_wrapper_mapping[key] = tiled
    for layer in manager.modules.values():
        layer.set_mapping(tiled)
