"""One denoise step: from what the model says of every position to the next canvas."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusiongemma_vllm.config import DenoiseConfig
from diffusiongemma_vllm.denoise.accept import EntropyBound
from diffusiongemma_vllm.denoise.schedule import LinearSchedule
from diffusiongemma_vllm.denoise.stopping import (
    All,
    Confident,
    Either,
    Rule,
    Settled,
    StepLimit,
    Trace,
)
from diffusiongemma_vllm.state import Canvases, Knobs, StepResult


@dataclass(frozen=True)
class Guess:
    """What the logits say of every position of N canvases.

    best, sample: [N, C] i64, the most likely and a sampled token.  entropy: [N, C] f32, nats.
    """

    best: Tensor
    sample: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class DenoiseRules:
    """The rules of a checkpoint, composed, or those of N canvases side by side."""

    schedule: LinearSchedule
    accept: EntropyBound
    stop: Rule

    @classmethod
    def of(cls, config: DenoiseConfig | Knobs) -> DenoiseRules:
        bound = config.entropy_bound
        return cls(
            schedule=LinearSchedule(config.t_min, config.t_max, config.max_steps),
            accept=EntropyBound(bound[:, None] if isinstance(bound, Tensor) else bound),
            stop=Either(
                (
                    All((Settled(config.stability_steps), Confident(config.confidence))),
                    StepLimit(config.last_step),
                )
            ),
        )


def denoise(rules: DenoiseRules, canvas: Canvases, guess: Guess, noise: Tensor) -> StepResult:
    """Accept, renoise, decide whether to stop.

    noise: [N, C] i64, uniform tokens for the positions that are not accepted.
    Source: transformers' ``DiffusionGemmaGenerationMixin._denoising_step``.
    """
    length = guess.best.shape[-1]
    exists = torch.arange(length, device=noise.device)[None, :] < canvas.width[:, None]
    entropy = torch.where(exists, guess.entropy, torch.inf)
    accepted = rules.accept(entropy)
    same = ((guess.best == canvas.best) | ~exists).all(dim=-1)
    held = torch.where(same, canvas.held + 1, 0)
    mean = torch.where(exists, guess.entropy, 0.0).sum(dim=-1) / canvas.width.clamp(min=1)
    trace = Trace(held=held, step=canvas.step + 1, mean_entropy=mean)
    return StepResult(
        tokens=torch.where(accepted, guess.sample, noise),
        best=guess.best,
        held=held,
        done=rules.stop(trace),
    )
