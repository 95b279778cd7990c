"""The whole sampler against transformers', step by step, on the same noise.

Ours is what runs: ``DiffusionSampler`` on a slot state, with a model that knows the logits of every
step.  Theirs is ``_denoising_step`` with its sampler, schedule and stopping rule, whose
``torch.multinomial`` gives out our samples and whose ``torch.randint`` gives out our noise.
"""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import LogitsProcessorList
from transformers.models.diffusion_gemma import generation_diffusion_gemma as reference
from vocabulary import Held

from diffusiongemma_kernels import noise as kernel_noise
from diffusiongemma_kernels.row_stats.op import hash_uniform_tokens, row_stats
from diffusiongemma_vllm.config import DenoiseConfig
from diffusiongemma_vllm.denoise.noise import CANVAS, SAMPLE, counters
from diffusiongemma_vllm.request import RequestOptions
from diffusiongemma_vllm.runner.sampler import DiffusionSampler
from diffusiongemma_vllm.state import DENOISE, SlotState

SOFTCAP = 30.0
HIDDEN = 4


class Run(NamedTuple):
    why: str
    seed: int
    stability: int = 1
    bound: float = 0.1
    vocab: int = 60
    length: int = 16
    steps: int = 24
    pace: float = 1.0  # how fast the logits sharpen
    confidence: float = 0.005


RUNS = [
    Run("a run", 0), Run("another", 1), Run("a third", 2),
    Run("no stability asked", 3, stability=0), Run("two steps", 4, stability=2),
    Run("three steps", 5, stability=3), Run("three, and a loose bound", 6, stability=3, bound=5.0),
    Run("a tight bound", 7, bound=0.001), Run("a loose bound", 8, bound=2.0),
    Run("everything is accepted", 9, bound=1e6),
    Run("two tokens", 10, vocab=2), Run("beyond a tile of noise", 11, vocab=5000, length=8),
    Run("a canvas of one", 12, length=1), Run("a long canvas", 13, length=100),
    Run("slow: the step limit", 14, pace=0.05), Run("one step", 15, steps=1),
    Run("fast", 16, pace=8.0), Run("easily confident", 17, confidence=1.0, stability=2),
    Run("never confident", 18, confidence=1e-12, steps=8),
]


def logits_of(run, step):
    """[C, V] raw logits that sharpen at every position's own speed and now and then change."""
    make = torch.Generator().manual_seed(1000 * run.seed)
    text = (torch.rand(run.length, generator=make) * run.vocab).long()
    speed = run.pace * (0.5 + torch.rand(run.length, generator=make))
    make = torch.Generator().manual_seed(1000 * run.seed + 1 + step)
    logits = torch.randn(run.length, run.vocab, generator=make) * 2
    logits[torch.arange(run.length), text] += speed * step * 3
    return logits


class Model:
    """Stands where the sampler expects the model: hidden states in, raw logits out."""

    text_config = SimpleNamespace(final_logit_softcapping=SOFTCAP)
    model = SimpleNamespace(embed_scale=2.0)

    def __init__(self, run):
        make = torch.Generator().manual_seed(run.seed)
        weight = torch.randn(run.vocab, HIDDEN, generator=make)
        self.vocabulary = Held(weight, self.project)
        self.run, self.step = run, 0

    def project(self, hidden):
        return logits_of(self.run, self.step)


class Ours:
    """Our sampler with one request in slot 1, whose canvas begins at position 37."""

    def __init__(self, run):
        self.config = DenoiseConfig(
            canvas_length=run.length, vocab_size=run.vocab, max_steps=run.steps, t_min=0.4,
            t_max=0.8, entropy_bound=run.bound, stability_steps=run.stability,
            confidence=run.confidence,
        )
        cpu = torch.device("cpu")
        self.state = SlotState(
            self.config, slots=2, hidden=HIDDEN, limit=10_000, dtype=torch.float32, device=cpu
        )
        self.model = Model(run)
        self.sampler = DiffusionSampler(self.config, self.state, self.model, None)
        self.slots, self.base = torch.tensor([1]), torch.tensor([37])
        self.state.add(1, RequestOptions(temperature=1.0, top_k=0, top_p=1.0, seed=99 + run.seed))
        first = self.sampler._noise(self.slots, self.base, torch.zeros(1, dtype=torch.int64))
        self.state.begin(self.slots, self.base, first, torch.tensor([True]))

    def denoise(self):
        """Text and its length: 0 until the canvas has settled."""
        hidden = torch.zeros(self.config.canvas_length, HIDDEN)
        _, best, length = self.sampler._denoise(
            hidden, self.slots, np.array([1]), self.state.phase[self.slots] == DENOISE
        )
        self.model.step += 1
        return best, int(length)


class Theirs:
    """transformers' classes and its step, around the same logits and noise."""

    def __init__(self, run, first):
        self.run = run
        self.config = SimpleNamespace(text_config=SimpleNamespace(vocab_size=run.vocab))
        decoder = SimpleNamespace(embed_tokens=SimpleNamespace(weight=torch.zeros(1)))
        self.model = SimpleNamespace(decoder=decoder)
        self.sampler = reference.EntropyBoundSampler(
            reference.EntropyBoundSamplerConfig(run.bound), run.length, run.vocab, run.steps
        )
        self.stopping = reference.StableAndConfidentStoppingCriteria(run.stability, run.confidence)
        self.schedule = LogitsProcessorList(
            [reference.LinearTemperatureScheduleLogitsProcessor(0.4, 0.8, run.steps)]
        )
        self.canvas, self.best, self.belief = first, first, None
        self.finished = torch.tensor([False])

    def denoise(self, step):
        capped = torch.tanh(logits_of(self.run, step) / SOFTCAP) * SOFTCAP
        self.canvas, self.best, self.belief, self.finished = (
            reference.DiffusionGemmaGenerationMixin._denoising_step(
                self, decoder_forward=lambda **_: SimpleNamespace(logits=capped[None]),
                current_canvas=self.canvas, argmax_canvas=self.best, input_ids=None,
                decoder_position_ids=None, self_conditioning_logits=self.belief, mask_mapping=None,
                past_key_values=None, finished_denoising=self.finished,
                cur_step=self.run.steps - step, sampler=self.sampler,
                logits_processor=self.schedule, diffusion_stopping_criteria=self.stopping,
            )
        )


def shared_noise(ours, run, step, monkeypatch):
    """Gumbel noise decides transformers' samples, our uniform tokens its new canvas."""
    seed = ours.state.seed[1].expand(run.length)
    done, base = torch.tensor([step]), ours.base

    def multinomial(probs, num_samples):
        counter = counters(base, done, run.length, SAMPLE)[0]
        words = kernel_noise.token_words(seed, counter, 0, run.vocab)
        return (probs.log() + kernel_noise.gumbel(words)).argmax(-1, keepdim=True)

    def randint(low, high, size, device):
        assert (low, high, size) == (0, run.vocab, (1, run.length))
        counter = counters(base, done + 1, run.length, CANVAS)[0]
        return hash_uniform_tokens(seed, counter, run.vocab)[None]

    monkeypatch.setattr(reference.torch, "multinomial", multinomial)
    monkeypatch.setattr(reference.torch, "randint", randint)


def trace(run, monkeypatch):
    """Run both, compare every step; the number of steps."""
    ours = Ours(run)
    theirs = Theirs(run, ours.state.tokens[1:2].clone())
    for step in range(run.steps):
        with monkeypatch.context() as patch:
            shared_noise(ours, run, step, patch)
            theirs.denoise(step)
        text, length = ours.denoise()
        settled = bool(theirs.finished) or step == run.steps - 1
        assert (length > 0) == settled, f"step {step}: {length=}, theirs {settled}"
        assert torch.equal(ours.state.best[1], theirs.best[0]), f"best guess at step {step}"
        mean = theirs.belief[0].softmax(-1) @ ours.model.vocabulary.part * 2.0
        assert_close(ours.state.soft[1], mean, rtol=1e-4, atol=1e-4)
        if settled:
            assert length == run.length and torch.equal(text[0], theirs.best[0])
            return step + 1
        assert torch.equal(ours.state.tokens[1], theirs.canvas[0]), f"canvas after step {step}"
    raise AssertionError("transformers runs no more steps than these")


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.why)
def test_same_canvases_and_same_stopping_step(run, monkeypatch):
    steps = trace(run, monkeypatch)
    limited = run.pace < 0.1 or run.confidence < 1e-9 or run.steps == 1
    assert (steps == run.steps) == limited, f"{steps} of {run.steps} steps"


def test_runs_stop_at_many_different_steps(monkeypatch):
    assert len({trace(run, monkeypatch) for run in RUNS}) > 5


@pytest.mark.parametrize("heat", [0.4, 0.8, 1.0])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0, 40.0])
@pytest.mark.parametrize("vocab", [2, 100, 9001])
def test_row_stats_are_those_of_a_categorical(vocab, spread, heat):
    logits = torch.randn(6, vocab, generator=torch.Generator().manual_seed(vocab)) * spread
    zero = torch.zeros(6, dtype=torch.int64)
    stats = row_stats(logits, torch.full((6,), heat), zero, zero, softcap=SOFTCAP)
    scaled = torch.tanh(logits / SOFTCAP) * SOFTCAP / heat
    assert torch.equal(stats.argmax, scaled.argmax(-1))
    want = torch.distributions.Categorical(logits=scaled).entropy()
    assert_close(stats.entropy, want, rtol=1e-5, atol=1e-5)
    assert_close(stats.logsumexp, scaled.logsumexp(-1), rtol=1e-5, atol=1e-5)
