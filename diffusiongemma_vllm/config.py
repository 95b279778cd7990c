"""The denoising rules that a checkpoint and a server settle once, validated in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

GENERATION_CONFIG = "generation_config.json"
SAMPLER = "EntropyBoundSamplerConfig"
SOURCE = "google/diffusiongemma-26B-A4B-it"


@dataclass(frozen=True)
class DenoiseConfig:
    """How a canvas is denoised.  Source: transformers' ``DiffusionGemmaGenerationConfig``.

    Temperatures fall linearly from ``t_max`` towards ``t_min`` over ``max_steps``; entropies are in
    nats.  ``step_limit`` ends a canvas earlier, with the temperatures as they are.
    """

    canvas_length: int
    vocab_size: int
    max_steps: int
    t_min: float
    t_max: float
    entropy_bound: float
    stability_steps: int
    confidence: float
    step_limit: int | None = None

    @property
    def last_step(self) -> int:
        """Steps after which a canvas ends whatever it looks like."""
        return min(self.max_steps, self.step_limit or self.max_steps)

    def __post_init__(self) -> None:
        for name in ("canvas_length", "vocab_size", "max_steps"):
            if getattr(self, name) < 1:
                raise _wrong(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.t_min <= self.t_max:
            raise _wrong(f"0 < t_min <= t_max must hold, got {self.t_min} and {self.t_max}")
        if self.entropy_bound <= 0:
            raise _wrong(f"entropy_bound must be positive, got {self.entropy_bound}")
        if self.stability_steps < 0:
            raise _wrong(f"stability_threshold must be 0 or more, got {self.stability_steps}")


def _wrong(what: str) -> ValueError:
    return ValueError(
        f"{GENERATION_CONFIG}: {what}; take the file from {SOURCE}, or pass the value with "
        "--override-generation-config"
    )


def is_number(value: Any) -> TypeGuard[float]:
    """Whether what a JSON file holds is a finite number."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    )


def denoise_config(
    generation: Mapping[str, Any], *, canvas_length: int, vocab_size: int, max_steps: int | None
) -> DenoiseConfig:
    """Read the checkpoint's generation config.

    Args:
        generation: ``generation_config.json`` after ``--override-generation-config``.
        canvas_length: tokens a canvas.
        vocab_size: size of the vocabulary.
        max_steps: ``--diffusion-config`` ``max_denoising_steps``, which wins where it is given.

    Raises:
        ValueError: naming the file, the field and the fix, when the sampler is missing or unknown.
    """

    def read(name: str) -> float:
        value = generation.get(name)
        if not is_number(value):
            raise ValueError(
                f"{GENERATION_CONFIG} gives no number for {name!r} (found {value!r}); take the "
                f"file from {SOURCE} or pass the value with "
                f"--override-generation-config '{{\"{name}\": ...}}'"
            )
        return value

    sampler = generation.get("sampler_config")
    if not isinstance(sampler, Mapping) or sampler.get("_cls_name") != SAMPLER:
        raise _wrong(f"no sampler_config of class {SAMPLER} (found {sampler!r})")
    bound = sampler.get("entropy_bound")
    if not is_number(bound):
        raise _wrong(f"sampler_config has no number entropy_bound (found {bound!r})")
    return DenoiseConfig(
        canvas_length=canvas_length,
        vocab_size=vocab_size,
        max_steps=max_steps or int(read("max_denoising_steps")),
        t_min=float(read("t_min")),
        t_max=float(read("t_max")),
        entropy_bound=float(bound),
        stability_steps=int(read("stability_threshold")),
        confidence=float(read("confidence_threshold")),
    )
