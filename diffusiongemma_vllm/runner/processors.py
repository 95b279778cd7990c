"""Logits processors of users, vLLM's interface for its V2 runner, on a canvas.

A processor sees the canvas as vLLM's runner shows it drafts: a row for every position, with the
token before it.  That token is a guess until the canvas settles, so one that looks at it is asked
again at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor

from diffusiongemma_vllm.denoise.edits import Scene


@dataclass(frozen=True)
class Processed:
    """The processors that take the request in ``slot``, in their order."""

    processors: tuple[LogitsProcessor, ...]
    slot: int

    def __call__(self, logits: Tensor, scene: Scene) -> Tensor:
        size, device = len(logits), logits.device
        column = torch.arange(size, dtype=torch.int32, device=device)
        last = scene.text[(scene.base - 1).clamp(min=0)].long()
        before = torch.cat([last[None], scene.guess[:-1].clamp(min=0)])
        slots = torch.full((size,), self.slot, dtype=torch.int32, device=device)
        ctx = LogitsContext(
            expanded_idx_mapping=slots,
            idx_mapping=slots[:1],
            idx_mapping_np=np.array([self.slot], dtype=np.int32),
            expanded_local_pos=column,
            input_ids=before.to(torch.int32),
            pos=scene.base - 1 + column,
            seq_lens_upper_bound_np=np.array([len(scene.text)], dtype=np.int32),
        )
        for processor in self.processors:
            logits = processor.apply(logits, ctx)
        return logits


class Processors:
    """Those of a server, loaded by vLLM."""

    def __init__(self, loaded: Sequence[LogitsProcessor]) -> None:
        self.loaded = tuple(loaded)

    def add_request(self, slot: int, params: Any) -> Processed | None:
        taking = tuple(one for one in self.loaded if one.add_request(slot, params))
        return Processed(taking, slot) if taking else None

    def apply_staged_writes(self) -> None:
        for processor in self.loaded:
            processor.apply_staged_writes()


def custom(processors: Sequence[Any]) -> Processors:
    """processors: of vLLM's sampler, its own among them, which do what ``edits`` does here."""
    from vllm.v1.worker.gpu.sample.bad_words import BadWordsState
    from vllm.v1.worker.gpu.sample.logit_bias import LogitBiasState
    from vllm.v1.worker.gpu.sample.penalties import PenaltiesState

    own = (BadWordsState, LogitBiasState, PenaltiesState)
    return Processors([one for one in processors if not isinstance(one, own)])
