"""What a run over one benchmark came to, kept as JSON beside its answers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusiongemma_vllm.evaluation.interval import Points


@dataclass(frozen=True)
class Result:
    """questions: their numbers in the data set; right, of: points of each over its draws.

    cut: answers that ended at the limit on tokens.  tokens: of all answers.
    about: model, versions and settings.
    """

    benchmark: str
    questions: list[int]
    right: list[int]
    of: list[int]
    cut: int
    tokens: int
    about: dict[str, Any]

    @property
    def points(self) -> Points:
        return Points(np.array(self.right, dtype=np.float64), np.array(self.of, dtype=np.float64))

    def pick(self, places: list[int]) -> Points:
        """The points of the questions at those places of the list."""
        return Points(self.points.right[places], self.points.of[places])

    def save(self, folder: Path) -> None:
        path = folder / f"{self.benchmark}.json"
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


def load(folder: Path, benchmark: str) -> Result:
    """Raises ValueError where no run has been finished there, or its file is broken."""
    path = folder / f"{benchmark}.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no finished run of {benchmark}")
    try:
        return Result(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no result that eval wrote ({error}): run it again") from None
