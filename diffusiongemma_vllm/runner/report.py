"""What a request's text cost: told with every piece of it, under ``KEY``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diffusiongemma_vllm.config import DenoiseConfig

KEY = "diffusion"  # in vLLM's kv_transfer_params, and the field that clients read


@dataclass
class Report:
    """Kept by the scheduler for one request, whose canvases follow ``rules``.

    forwards: of prompt, canvases and committed text, those before a preemption too.
    fused: those of them that committed a canvas's text and denoised the next one.
    steps: denoise steps of the canvas under way.
    canvases: for each that gave text, its denoise ``steps``, the ``tokens`` it gave, and why it
        ``stopped``: "settled" before the step limit, at the "step_limit", or with its
        "constraint" met by the beginning alone; and ``rerolls``, where it was drawn again: its
        steps are those of the last time.
    """

    rules: DenoiseConfig
    forwards: int = 0
    fused: int = 0
    canvases: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    _rerolls: int = 0

    def forward(self, *, denoised: bool, committed: bool) -> None:
        """denoised, committed: what it did, beside a prompt or a canvas of its own."""
        self.forwards += 1
        self.fused += denoised and committed
        self.steps += denoised

    def restart(self) -> None:
        """The canvas under way is lost to a preemption."""
        self.steps = self._rerolls = 0

    def rerolled(self, times: int) -> int:
        """The canvas under way has been drawn again so often; returns how often anew."""
        anew = times - self._rerolls
        if anew <= 0:
            return 0
        self.steps, self._rerolls = 0, times
        return anew

    def emit(self, tokens: int, *, width: int) -> None:
        """A canvas of ``width`` tokens gave text."""
        stopped = "step_limit" if self.steps >= self.rules.last_step else "settled"
        if tokens < width:
            stopped = "constraint"
        canvas = {"steps": self.steps, "tokens": tokens, "stopped": stopped}
        if self._rerolls:
            canvas["rerolls"] = self._rerolls
        self.canvases.append(canvas)
        self.steps = self._rerolls = 0

    def told(self) -> dict[str, Any]:
        """A copy for the output."""
        return {
            "forwards": self.forwards, "fused": self.fused,
            "canvases": [dict(canvas) for canvas in self.canvases],
        }
