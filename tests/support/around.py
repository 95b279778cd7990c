"""Inputs and sampler around a forward that is made up, for whole requests."""

from types import SimpleNamespace

import numpy as np
import torch
from vocabulary import Held

from diffusiongemma_kernels.slots import Rows
from diffusiongemma_vllm.config import DenoiseConfig
from diffusiongemma_vllm.inputs import StepInputs
from diffusiongemma_vllm.knobs import CanvasOptions
from diffusiongemma_vllm.model.ranks import Ranks
from diffusiongemma_vllm.request import RequestOptions
from diffusiongemma_vllm.state import SlotState

CANVAS, VOCAB, HIDDEN, REQUESTS, LIMIT = 5, 50, 4, 2, 18
PROMPTS = [5, 6]
CONFIG = DenoiseConfig(
    canvas_length=CANVAS, vocab_size=VOCAB, max_steps=4, t_min=0.4, t_max=0.8, entropy_bound=6.0,
    stability_steps=0, confidence=3.45,  # some canvases settle at their first step, some never
)


class Side:
    """One way to do it: slots, inputs and sampler.

    ranks: where the vocabulary is divided.
    """

    def __init__(self, device, by_kernels, ranks=None):
        from diffusiongemma_vllm.runner.gpu_step import GpuStep
        from diffusiongemma_vllm.runner.sampler import DiffusionSampler

        where = dict(dtype=torch.float32, device=torch.device(device))
        self.state = SlotState(CONFIG, slots=REQUESTS, hidden=HIDDEN, limit=LIMIT, **where)
        self.inputs = StepInputs(
            tokens=4 * CANVAS * REQUESTS, requests=REQUESTS, hidden=HIDDEN, **where
        )
        self.gpu = GpuStep(self.state, self.inputs) if by_kernels else None
        weight = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(3)).to(device)
        vocabulary = Held.of(weight, ranks or Ranks())
        model = SimpleNamespace(
            text_config=SimpleNamespace(final_logit_softcapping=30.0), vocabulary=vocabulary,
            project=vocabulary.project_all, model=SimpleNamespace(embed_scale=2.0),
            expert_load=SimpleNamespace(take=lambda: None),
        )
        known = SimpleNamespace(
            prefill_len=SimpleNamespace(gpu=torch.tensor(PROMPTS, dtype=torch.int32).to(device)),
            prompt_len=SimpleNamespace(np=PROMPTS),
            all_token_ids=SimpleNamespace(gpu=torch.zeros(REQUESTS, LIMIT).to(device)),
        )
        self.sampler = DiffusionSampler(CONFIG, self.state, model, known, gpu=self.gpu)
        for slot in range(REQUESTS):
            options = RequestOptions(temperature=1.0, top_k=0, top_p=1.0, seed=slot)
            self.state.add(slot, options)

    def filter(self, slot):
        """From here on the slot's request draws from fewer tokens."""
        from diffusiongemma_vllm.runner.special import special_of

        options = RequestOptions(temperature=1.0, top_k=20, top_p=0.9, seed=slot, scores=3)
        self.sampler.special[slot] = special_of(
            options, CanvasOptions(CONFIG), None, None, CANVAS, self.state.phase.device
        )

    def watch(self, slot, device):
        """From here on the slot's request asks for drafts."""
        from diffusiongemma_vllm.runner.special import special_of

        options = RequestOptions(temperature=1.0, top_k=0, top_p=1.0, seed=slot)
        asked = CanvasOptions(CONFIG, drafts=1)
        self.sampler.special[slot] = special_of(
            options, asked, None, None, CANVAS, torch.device(device)
        )

    def inputs_of(self, rows, ids, padded):
        if self.gpu is not None:
            return self.gpu.set_parts(rows, REQUESTS), self.gpu.set_rows(rows, ids, padded)
        parts = self.inputs.set_parts(self.state, *rows, REQUESTS)
        return parts, self.inputs.set_rows(self.state, rows.slots, rows.starts, ids, padded)


def batch_of(requests, device):
    """requests: (slot, tokens computed, rows, drafts), those with drafts first"""
    slots, computed, rows, drafts = (np.array(column) for column in zip(*requests, strict=True))
    starts = torch.tensor([0, *rows]).cumsum(0).to(torch.int32).to(device)
    logits = np.concatenate([[0], np.cumsum(drafts)])
    return SimpleNamespace(
        num_reqs=len(slots), idx_mapping=torch.tensor(slots).to(device), idx_mapping_np=slots,
        query_start_loc=starts, seq_lens=torch.tensor(computed + rows).to(torch.int32).to(device),
        cu_num_logits_np=logits, num_draft_tokens=int(logits[-1]),
        req_ids=[str(slot) for slot in slots],
    )


class Host:
    """What a scheduler knows: text is committed alone, or beside the next canvas."""

    def __init__(self):
        self.computed, self.text = [0] * REQUESTS, list(PROMPTS)

    def schedule(self, step):
        chosen = []
        for slot in range(REQUESTS):
            behind, room = self.text[slot] - self.computed[slot], LIMIT - self.text[slot]
            if self.computed[slot] < PROMPTS[slot]:
                chosen.append((slot, self.computed[slot], min(behind, 4), 0))
            elif behind and (step + slot) % 3 == 0:
                # Either the host knows that this is a commit, or it takes it for one more step.
                chosen.append((slot, self.computed[slot], behind, behind * (slot % 2)))
            elif room > 0:
                width = min(CANVAS, room)
                chosen.append((slot, self.computed[slot], behind + width, width))
        return sorted(chosen, key=lambda one: one[3] == 0)

    def update(self, requests, lengths, rejected):
        for (slot, _, rows, _), length, back in zip(requests, lengths, rejected, strict=True):
            self.computed[slot] += rows - back
            self.text[slot] += length


def steps(host, device, seed=0):
    """What comes before and after every forward until the requests end: batch, rows and hidden."""
    make = torch.Generator().manual_seed(seed)
    for number in range(60):
        requests = host.schedule(number)
        if not requests:
            return
        batch = batch_of(requests, device)
        rows = Rows(batch.idx_mapping, batch.query_start_loc, batch.seq_lens)
        hidden = torch.randn(batch.num_draft_tokens, HIDDEN, generator=make).to(device) / 4
        yield requests, batch, rows, hidden
    raise AssertionError("the requests do not end")
