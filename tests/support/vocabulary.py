"""A tied embedding without vLLM's layers, whole or one rank's part of it."""

from __future__ import annotations

from diffusiongemma_vllm.model.ranks import Ranks


class Held:
    """What ``runner.belief`` asks of ``model.vocabulary``.  part: [V', H]"""

    def __init__(self, part, project=None, *, first=0, ranks=None):
        self.part, self.first, self.ranks = part, first, ranks or Ranks()
        self.project = project or (lambda hidden: hidden @ part.T)

    @classmethod
    def of(cls, whole, ranks):
        """whole: [V, H]; the last rank may hold less than the others."""
        each = -(-len(whole) // ranks.count)
        first = ranks.rank * each
        return cls(whole[first : first + each], first=first, ranks=ranks)

    def project_all(self, hidden):
        return self.ranks.join(self.project(hidden))
