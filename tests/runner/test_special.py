"""Requests that bend their distributions: the same text in less memory."""

from types import SimpleNamespace

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffusiongemma_vllm.config import DenoiseConfig
from diffusiongemma_vllm.denoise import rows
from diffusiongemma_vllm.knobs import canvas_options
from diffusiongemma_vllm.model.ranks import Ranks
from diffusiongemma_vllm.request import RequestOptions
from diffusiongemma_vllm.runner.sampler import DiffusionSampler
from diffusiongemma_vllm.runner.special import ROWS, filtered, special_of
from diffusiongemma_vllm.state import SlotState

C, V, H, SLOTS = 256, 301, 6, 6  # a canvas is a row tile of the CPU
CPU = torch.device("cpu")
NARROW = RequestOptions(temperature=1.0, top_k=5, top_p=0.7, seed=1, min_p=0.01)


class Model:
    """The least that a sampler needs of one."""

    text_config = SimpleNamespace(final_logit_softcapping=30.0)
    model = SimpleNamespace(embed_scale=2.0)

    def __init__(self):
        weight = torch.randn(V, H, generator=torch.Generator().manual_seed(0))
        self.project = lambda hidden: hidden @ weight.T
        self.vocabulary = SimpleNamespace(
            part=weight, first=0, ranks=Ranks(), project=self.project
        )


def sampler():
    config = DenoiseConfig(
        canvas_length=C, vocab_size=V, max_steps=4, t_min=0.4, t_max=0.8, entropy_bound=0.1,
        stability_steps=1, confidence=0.005,
    )
    state = SlotState(config, slots=SLOTS, hidden=H, limit=999, dtype=torch.float32, device=CPU)
    texts = SimpleNamespace(gpu=torch.zeros(SLOTS, 999, dtype=torch.int32))
    lengths = SimpleNamespace(np=np.zeros(SLOTS, dtype=np.int32))
    return DiffusionSampler(
        config, state, Model(), SimpleNamespace(all_token_ids=texts, prompt_len=lengths)
    )


class Largest(TorchDispatchMode):
    """The most numbers in the vocabulary's arrays that any operation gave."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else (found,):
            if isinstance(one, torch.Tensor) and one.ndim == 2 and one.shape[1] == V:
                self.numbers = max(self.numbers, one.numel())
        return found


def test_a_few_rows_at_a_time_are_filtered_as_all_at_once():
    make = torch.Generator().manual_seed(2)
    logits = torch.randn(2 * ROWS + 9, V, generator=make) * 4
    heat = torch.rand(len(logits), generator=make) + 0.3
    whole = [
        rows.Temperature(heat), rows.MinP(NARROW.min_p), rows.TopK(NARROW.top_k),
        rows.TopP(NARROW.top_p),
    ]
    found = filtered(logits, heat, NARROW)
    assert torch.equal(found, rows.run(whole, logits))
    assert (found.isfinite().sum(-1) <= NARROW.top_k).all()


def test_bent_canvases_go_one_at_a_time():
    one = sampler()
    bent = special_of(NARROW, canvas_options(None, one.config), None, None, C, CPU)
    one.special = {1: bent, 4: bent}
    assert one._tiles(np.arange(6)) == [[0, 2, 3, 5], [1], [4]]
    hidden = torch.randn(2 * C, H, generator=torch.Generator().manual_seed(1))
    slots = np.array([1, 4])
    with Largest() as largest:
        one._denoise(hidden, torch.from_numpy(slots), slots, torch.zeros(2, dtype=torch.bool))
    assert largest.numbers == C * V


def test_the_rehearsal_asks_for_what_a_bent_canvas_takes_and_leaves_nothing():
    one = sampler()
    seen = []
    edit = one._edit
    one._edit = lambda logits, *rest: seen.append(logits.shape) or edit(logits, *rest)
    before = {name: getattr(one.state, name).clone() for name in ("phase", "tokens", "base")}
    with Largest() as largest:
        one._rehearse(torch.zeros(1, H))
    assert seen == [(C, V)] and largest.numbers == 4 * C * V
    assert not one.special
    assert all(torch.equal(getattr(one.state, name), old) for name, old in before.items())
