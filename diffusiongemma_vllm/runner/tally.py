"""What an engine did in a step: counted by the scheduler, summed up in the front end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

from diffusiongemma_vllm.runner.report import Report

KEY = "diffusion_tally"  # in vLLM's kv_transfer_params, of no request
GOES_ON = "no"


@dataclass
class Tally:
    """Of the engine number ``engine``.

    forwards: of every request, by kind: "prompt", "denoise", or "commit" of text alone.
    batches: canvases of each forward that had any.
    canvases: of those that gave text: denoise steps, why denoising stopped, and the finish reason
        of the request, where it ended in that canvas, else "no".
    tokens: of text.  rates: for each finished request, its tokens a forward.
    rerolls: canvases drawn again.  fused: commits that ran in the next canvas's first step.
    skews: for each layer of a forward that was looked at, rows of the busiest expert to the mean.
    """

    engine: int
    forwards: Counter[str] = field(default_factory=Counter)
    batches: list[int] = field(default_factory=list)
    canvases: list[tuple[int, str, str]] = field(default_factory=list)
    tokens: int = 0
    rates: list[float] = field(default_factory=list)
    rerolls: int = 0
    fused: int = 0
    skews: list[float] = field(default_factory=list)

    def forward(self, report: Report, *, canvas: int, rows: int) -> None:
        """One request's part of a forward: ``rows``, of which ``canvas`` are its canvas's."""
        alone = "commit" if report.canvases else "prompt"
        self.forwards["denoise" if canvas else alone] += 1
        self.fused += 0 < canvas < rows

    def batch(self, canvases: int) -> None:
        if canvases:
            self.batches.append(canvases)

    def canvas(self, report: Report, tokens: int, ended: object) -> None:
        """The last canvas of ``report`` gave so many tokens of text.

        ended: the request's finish reason, None where it goes on.
        """
        last = report.canvases[-1]
        reason = GOES_ON if ended is None else str(ended)  # vLLM's "stop" is 0
        self.canvases.append((last["steps"], last["stopped"], reason))
        self.tokens += tokens

    def finish(self, report: Report, tokens: int) -> None:
        """A request is let go of."""
        if report.forwards and tokens:
            self.rates.append(tokens / report.forwards)

    def look(self, load: list[list[int]]) -> None:
        """load: rows of every expert, of every layer."""
        self.skews += [max(rows) * len(rows) / sum(rows) for rows in load if sum(rows)]

    def told(self) -> dict[str, Any]:
        """What was counted; empty where that is nothing."""
        found = {name: value for name, value in vars(self).items() if value and name != "engine"}
        return found | {"engine": self.engine} if found else {}


def send(outputs: dict[int, EngineCoreOutputs], tally: Tally) -> None:
    """Put a tally into what a step gives out, for one of the front ends."""
    if told := tally.told():
        client = next(iter(outputs), 0)
        output = EngineCoreOutput(request_id="", new_token_ids=[], kv_transfer_params={KEY: told})
        outputs.setdefault(client, EngineCoreOutputs()).outputs.append(output)
