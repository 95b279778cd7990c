"""A tied embedding without vLLM's layers, whole or one rank's part of it."""

from __future__ import annotations

from diffusiongemma_vllm.model.ranks import Ranks


class Held:
    """What ``runner.belief`` asks of ``model.vocabulary``.  part: [V', H]"""

    def __init__(self, part, project=None, *, first=0, ranks=None):
        self.part, self.first, self.ranks = part, first, ranks or Ranks()
        self.project = project or (lambda hidden: hidden @ part.T)
