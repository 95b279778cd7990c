"""What the sampler tells the scheduler of a step beside the text.

It takes the place of vLLM's sampling masks, which a diffusion model cannot have: the runner copies
them to the host with the text, while the next forward runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from diffusiongemma_vllm.runner.drafts import Drafts


@dataclass(frozen=True)
class Told:
    """In plain numbers.

    drafts: by request id.  load: for every layer, how many rows each expert got; empty in a
    forward that was not looked at.
    """

    drafts: dict[str, dict[str, Any]] = field(default_factory=dict)
    load: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Notes:
    """On the device, with the methods that vLLM calls.  load: [L, E] i64"""

    drafts: Drafts | None = None
    load: Tensor | None = None

    def to_cpu_nonblocking(self) -> Notes:
        drafts, load = self.drafts, self.load
        return Notes(
            None if drafts is None else drafts.to_cpu(),
            None if load is None else load.to("cpu", non_blocking=True),
        )

    def tolists(self, num_sampled_tokens: Any) -> Told:
        """Called once the copies are there."""
        return Told(
            {} if self.drafts is None else self.drafts.told(),
            [] if self.load is None else self.load.tolist(),
        )


def notes(drafts: Drafts | None, load: Tensor | None) -> Any:
    """None where there is nothing to tell, so that nothing is copied."""
    return None if drafts is None and load is None else Notes(drafts, load)


def take(output: Any) -> Told:
    """Out of vLLM's ``ModelRunnerOutput``, which goes on without."""
    told, output.sampling_masks = output.sampling_masks, None
    return told or Told()
