"""Drafts: canvases under way, from the sampler to the scheduler, for the requests that ask.

One tensor a step holds all of them, so that one copy beside the text's takes them to the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

from diffusiongemma_vllm.denoise.accept import EntropyBound
from diffusiongemma_vllm.denoise.noise import rolled
from diffusiongemma_vllm.denoise.step import Guess
from diffusiongemma_vllm.runner.special import Special
from diffusiongemma_vllm.state import DENOISE, Canvases, SlotState

KEY = "diffusion_draft"  # in vLLM's kv_transfer_params, and the field that clients read
FACTS = 4  # step, roll, length of the text or 0, width


class Watched(NamedTuple):
    """A request that asks for the draft of every ``every``-th step of its canvas, ``place``."""

    request: str
    place: int
    every: int


@dataclass(frozen=True)
class Watch:
    """The canvases of D requests that ask, as a step finds them.

    place, slots: [D] i64, among the canvases of the step, and of the state.
    denoising: [D] bool, those that take part.  bound: [D] f32, nats that may be accepted.
    vocab: tokens that there are.
    """

    watched: tuple[Watched, ...]
    place: Tensor
    slots: Tensor
    before: Canvases
    denoising: Tensor
    bound: Tensor
    vocab: int

    @property
    def drawn(self) -> tuple[Tensor, Tensor, Tensor]:
        """Slots, bases and steps of the noise that the step draws."""
        before = self.before
        return self.slots, before.base, rolled(before.step + 1, before.roll)

    def drafts(
        self, guess: Guess, text: Tensor, lengths: Tensor, noise: Tensor
    ) -> Drafts:
        """What became of them.

        guess: of all canvases.  text: [N, C], what they give out, and lengths [N], how much of it;
        0 while they go on.  noise: [D, C] i64, where nothing is accepted.
        """
        pair = (guess.best, guess.sample)
        best, sample = (each[self.place].clamp(0, self.vocab - 1) for each in pair)
        entropy, before = guess.entropy[self.place], self.before
        places = torch.arange(best.shape[1], device=best.device)[None, :]
        bounded = torch.where(places < before.width[:, None], entropy, torch.inf)
        accepted = EntropyBound(self.bound[:, None])(bounded)
        length = lengths[self.place][:, None]
        written, done = places < length, length > 0
        facts = torch.stack(
            (
                torch.where(self.denoising, before.step + 1, 0), before.roll, length[:, 0],
                before.width,
            ), dim=1,
        )
        held = torch.where(accepted, sample, noise)
        planes = (
            facts, torch.where(written, text[self.place], torch.where(done, best, held)), best,
            torch.where(done, written, accepted),
        )
        bits = entropy.float().contiguous().view(torch.int32)
        return Drafts(
            self.watched, torch.cat([*(plane.to(torch.int32) for plane in planes), bits], dim=1)
        )


@dataclass(frozen=True)
class Drafts:
    """The packed drafts [D, FACTS + 4 C] i32 of the requests ``watched``."""

    watched: tuple[Watched, ...]
    packed: Tensor

    def to_cpu(self) -> Drafts:
        """Started, not waited for."""
        return Drafts(self.watched, self.packed.to("cpu", non_blocking=True))

    def told(self) -> dict[str, dict[str, Any]]:
        """Request id -> its draft, where this step has one.  For tensors on the CPU."""
        found = {}
        for one, row in zip(self.watched, self.packed.numpy(), strict=True):
            draft = _read(row)
            if draft["step"] and (draft["done"] or draft["step"] % one.every == 0):
                found[one.request] = draft
        return found


def watched(
    specials: Mapping[int, Special], batch: Any, state: SlotState, canvases: int
) -> Watch | None:
    """What requests that ask for drafts have among the first ``canvases`` of a batch.

    specials: by slot.  batch: vLLM's ``InputBatch``, in which those with a canvas come first.
    """
    slots = batch.idx_mapping_np[:canvases].tolist()
    asked = ((i, specials.get(slot)) for i, slot in enumerate(slots))
    found = [Watched(batch.req_ids[i], i, one.drafts) for i, one in asked if one and one.drafts]
    if not found:
        return None
    place = torch.tensor([one.place for one in found], device=state.phase.device)
    own = batch.idx_mapping[place]
    rows = batch.query_start_loc.diff()[place].long()
    return Watch(
        tuple(found), place, own, state.gather(own),
        denoising=(state.phase[own] == DENOISE) & (rows > state.committed(own, rows)),
        bound=state.knobs.entropy_bound[own], vocab=state.config.vocab_size,
    )


class Sent(NamedTuple):
    """A draft on its way to the front end, ``client``, that its request came from."""

    client: int
    request: str
    draft: dict[str, Any]


def send(outputs: dict[int, EngineCoreOutputs], drafts: Sequence[Sent]) -> None:
    """Put drafts into what a step gives out: with their request's text, or by themselves."""
    for one in drafts:
        some = outputs.setdefault(one.client, EngineCoreOutputs()).outputs
        output = next((each for each in some if each.request_id == one.request), None)
        if output is None:
            output = EngineCoreOutput(request_id=one.request, new_token_ids=[])
            some.append(output)
        output.kv_transfer_params = (output.kv_transfer_params or {}) | {KEY: one.draft}


def _read(row: np.ndarray) -> dict[str, Any]:
    """A packed draft in plain numbers, cut to the canvas's width."""
    step, roll, text, width = row[:FACTS].tolist()
    tokens, best, settled, entropy = np.split(row[FACTS:], 4)
    return {
        "step": step,
        "rerolls": roll,
        "done": text > 0,
        "tokens": tokens[:width].tolist(),
        "guess": best[:width].tolist(),
        "settled": settled[:width].astype(bool).tolist(),
        "entropy": entropy.view(np.float32)[:width].tolist(),
    }
