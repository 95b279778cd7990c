"""The state of every request slot, as tensors on the device.  Only this file writes them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from diffusiongemma_vllm.config import DenoiseConfig
from diffusiongemma_vllm.request import RequestOptions

PREFILL, DENOISE = 0, 1


@dataclass(frozen=True)
class Canvases:
    """The canvases of N requests, gathered from their slots.  C is the canvas length.

    tokens, best: [N, C] i64, what the next forward reads and the last argmax (-1 before any).
    base: [N] i64, position of the first canvas token.  width: [N] i64, tokens that fit.
    step: [N] i64, denoise steps done.  held: [N] i64, steps in a row that kept ``best``.
    roll: [N] i64, how often the canvas was drawn again.
    """

    tokens: Tensor
    best: Tensor
    base: Tensor
    width: Tensor
    step: Tensor
    held: Tensor
    roll: Tensor


@dataclass(frozen=True)
class Knobs:
    """The rules of every slot, or of N canvases: ``DenoiseConfig``'s fields as tensors [N]."""

    canvas_length: Tensor
    max_steps: Tensor
    last_step: Tensor
    t_min: Tensor
    t_max: Tensor
    entropy_bound: Tensor
    stability_steps: Tensor
    confidence: Tensor

    @classmethod
    def of(cls, config: DenoiseConfig, slots: int, device: torch.device) -> Knobs:
        """The same rules for every slot."""
        real = {"t_min": torch.float64, "t_max": torch.float64, "entropy_bound": torch.float32,
                "confidence": torch.float32}
        return cls(**{
            rule.name: torch.full(
                (slots,), getattr(config, rule.name), dtype=real.get(rule.name, torch.int64),
                device=device,
            )
            for rule in fields(cls)
        })

    def at(self, slots: Tensor) -> Knobs:
        return Knobs(*(getattr(self, rule.name)[slots] for rule in fields(self)))

    def set(self, slot: int, config: DenoiseConfig) -> None:
        for rule in fields(self):
            getattr(self, rule.name)[slot] = getattr(config, rule.name)


@dataclass(frozen=True)
class StepResult:
    """What one denoise step decides for N canvases.

    tokens, best: [N, C] i64.  held: [N] i64.  done: [N] bool, the canvas is settled: ``best`` is
    the text.
    """

    tokens: Tensor
    best: Tensor
    held: Tensor
    done: Tensor


class SlotState:
    """One row per request slot; rows are reused, ``add`` resets a row.

    A settled canvas leaves its text in ``text``, ``pending`` tokens of it, and the next canvas
    begins behind it at once: the forward that computes the text may denoise that canvas too.

    Args:
        slots: number of requests that run at once.
        hidden: width of the soft embedding that conditions the next step.
        limit: longest sequence served, in tokens; a canvas ends there.
    """

    def __init__(
        self, config: DenoiseConfig, *, slots: int, hidden: int, limit: int, dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.config = config
        self.limit = limit
        length = config.canvas_length

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.phase = zeros(slots, dtype=torch.int32)
        self.tokens = zeros(slots, length)
        self.text = zeros(slots, length)
        self.pending = zeros(slots)
        self.best = zeros(slots, length)
        self.base = zeros(slots)
        self.width = zeros(slots)
        self.step = zeros(slots)
        self.held = zeros(slots)
        self.roll = zeros(slots)
        self.seed = zeros(slots)
        self.greedy = zeros(slots, dtype=torch.bool)
        self.temperature = zeros(slots, dtype=torch.float32)
        self.soft = zeros(slots, length, hidden, dtype=dtype)  # of the last step; none at step 0
        self.knobs = Knobs.of(config, slots, device)

    def add(self, slot: int, options: RequestOptions, rules: DenoiseConfig | None = None) -> None:
        """Give a slot to a request that has nothing in the cache yet."""
        self.knobs.set(slot, rules or self.config)
        self.phase[slot] = PREFILL
        self.pending[slot] = 0
        self.seed[slot] = options.seed
        self.greedy[slot] = options.greedy
        self.temperature[slot] = 1.0 if options.greedy else options.temperature

    def limit_steps(self, slot: int, steps: int) -> None:
        """Settle this request's canvases after so many steps at most, until told otherwise."""
        self.knobs.last_step[slot] = steps

    def gather(self, slots: Tensor) -> Canvases:
        """Read the canvases of ``slots`` [N] i64."""
        return Canvases(
            tokens=self.tokens[slots], best=self.best[slots], base=self.base[slots],
            width=self.width[slots], step=self.step[slots], held=self.held[slots],
            roll=self.roll[slots],
        )

    def begin(self, slots: Tensor, base: Tensor, noise: Tensor, where: Tensor) -> None:
        """Start a new canvas in those ``slots`` [N] where ``where`` [N] bool holds.

        base: [N] i64, position after the last token of the text.  noise: [N, C] i64.
        """
        width = torch.minimum(self.limit - base, self.knobs.canvas_length[slots]).clamp(min=0)
        self.phase[slots] = torch.where(where, DENOISE, self.phase[slots])
        self.base[slots] = torch.where(where, base, self.base[slots])
        self.width[slots] = torch.where(where, width, self.width[slots])
        self.roll[slots] = torch.where(where, 0, self.roll[slots])
        self._forget(slots, noise, where)

    def again(self, slots: Tensor, noise: Tensor, where: Tensor) -> None:
        """Draw the settled canvas in those ``slots`` [N] again where ``where`` [N] bool holds.

        noise: [N, C] i64.
        """
        self.roll[slots] = torch.where(where, self.roll[slots] + 1, self.roll[slots])
        self._forget(slots, noise, where)

    def _forget(self, slots: Tensor, noise: Tensor, where: Tensor) -> None:
        row = where[:, None]
        self.tokens[slots] = torch.where(row, noise, self.tokens[slots])
        self.best[slots] = torch.where(row, -1, self.best[slots])
        self.step[slots] = torch.where(where, 0, self.step[slots])
        self.held[slots] = torch.where(where, 0, self.held[slots])

    def believe(self, slots: Tensor, soft: Tensor) -> None:
        """Keep the soft embeddings [N, C, H] of a step; a canvas at its first step reads none."""
        self.soft[slots] = soft.to(self.soft.dtype)

    def apply(self, slots: Tensor, result: StepResult, where: Tensor) -> None:
        """Write a step's result into those ``slots`` [N] where ``where`` [N] bool holds."""
        row = where[:, None]
        self.tokens[slots] = torch.where(row, result.tokens, self.tokens[slots])
        self.best[slots] = torch.where(row, result.best, self.best[slots])
        self.step[slots] = torch.where(where, self.step[slots] + 1, self.step[slots])
        self.held[slots] = torch.where(where, result.held, self.held[slots])

    def settle(self, slots: Tensor, text: Tensor, lengths: Tensor) -> None:
        """Keep what the next forward of those ``slots`` [N] commits.

        text: [N, C] i64.  lengths: [N] i64, tokens of it; 0 leaves a slot as it is.
        """
        where = lengths > 0
        self.text[slots] = torch.where(where[:, None], text, self.text[slots])
        self.pending[slots] = torch.where(where, lengths, self.pending[slots])

    def committed(self, slots: Tensor, rows: Tensor) -> Tensor:
        """How many of the ``rows`` [N] of a forward commit text.   ->  [N] i64"""
        return torch.minimum(self.pending[slots], rows)

    def commit(self, slots: Tensor, rows: Tensor) -> None:
        """A forward of ``rows`` [N] is done."""
        self.pending[slots] -= self.committed(slots, rows)
