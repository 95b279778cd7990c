"""A benchmark: where its questions come from, how one is asked, how an answer is scored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Doc = Mapping[str, Any]  # a row of the data set
_log = logging.getLogger(__name__)
DRAW = "draw"  # the column that tells the answers to one question apart


@dataclass(frozen=True)
class Source:
    """A data set on the Hugging Face hub, or its copy in a folder as ``hf download`` writes it."""

    repository: str
    subset: str | None
    split: str
    gated: bool = False

    def locate(self, folder: Path | None) -> str:
        """What ``datasets.load_dataset`` is to open.

        Raises:
            ValueError: where there is a folder for data sets and this one is not in it.
        """
        if folder is None:
            return self.repository
        found = folder / self.repository
        if not found.is_dir():
            gated = " (its page asks you to accept terms first)" if self.gated else ""
            raise ValueError(
                f"no data set in {found}: hf download --repo-type dataset {self.repository} "
                f"--local-dir {found}{gated}"
            )
        return str(found)


@dataclass(frozen=True)
class Card:
    """Published percentages (NVIDIA's model card of the NVFP4 checkpoint, thinking on)."""

    bf16: float
    nvfp4: float


@dataclass(frozen=True)
class Score:
    """So many points of so many; every question of a benchmark but IFEval's gives one."""

    right: int
    of: int = 1


def one(doc: Doc) -> int:
    return 1


class Asker(Protocol):
    """How a question goes to a chat model and what of its reply is the answer."""

    def request(self, doc: Doc, text: str) -> dict[str, Any]:
        """Fields of a chat completion: ``messages`` and what else the question needs."""
        ...

    def answer(self, message: Mapping[str, Any]) -> str:
        """The text to score, of the reply's ``message``."""
        ...


class PlainChat:
    """One user turn with thinking on; the answer is what stands behind the thought."""

    def request(self, doc: Doc, text: str) -> dict[str, Any]:
        return {
            "messages": [{"role": "user", "content": text}],
            "chat_template_kwargs": {"enable_thinking": True},
        }

    def answer(self, message: Mapping[str, Any]) -> str:
        return message.get("content") or ""


@dataclass(frozen=True)
class Benchmark:
    """draws: how often each question is asked, with another seed each time.

    points: that a question gives when all of its answer is right.
    """

    name: str
    title: str
    source: Source
    ask: Callable[[Doc], str]
    score: Callable[[Doc, str], Score]
    card: Card | None = None
    draws: int = 1
    chat: Asker = PlainChat()
    runs_code: bool = False
    points: Callable[[Doc], int] = one

    def task(self, folder: Path | None, score: Callable[[Doc, str], Score] | None = None) -> Any:
        """lm-eval's task: every question ``draws`` times, in the order of the data set.

        folder: the folder of data sets, or None for the hub.  score: instead of the benchmark's.

        Raises:
            ValueError: where the data set is not in the folder, or code would run unguarded.
        """
        from lm_eval.api.task import ConfigurableTask

        if self.runs_code and score is None:
            raise ValueError("the model's code runs in a sandbox only: --sandbox bwrap")
        scored = self._guarded(score or self.score)

        def process_results(doc: Doc, results: list[str]) -> dict[str, int]:
            points = scored(doc, results[0])
            return {"right": points.right, "of": points.of}

        metrics = [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in ("right", "of")
        ]
        return ConfigurableTask(config={
            "task": self.name, "dataset_path": self.source.locate(folder),
            "dataset_name": self.source.subset, "test_split": self.source.split,
            "output_type": "generate_until", "generation_kwargs": {"until": []},
            "process_docs": self._repeat, "doc_to_text": self.ask, "doc_to_target": "",
            "process_results": process_results, "metric_list": metrics, "num_fewshot": 0,
        })

    def _guarded(self, score: Callable[[Doc, str], Score]) -> Callable[[Doc, str], Score]:
        """A reply that the scorer cannot read is wrong; the first one is logged.

        Raises:
            ValueError: where the machine, not the reply, keeps it from being scored.
        """
        failed = False

        def guarded(doc: Doc, reply: str) -> Score:
            nonlocal failed
            try:
                return score(doc, reply)
            except (OSError, MemoryError) as error:
                raise ValueError(
                    f"{self.title}: the answers cannot be scored here ({error}); they are kept: "
                    "the same command goes on"
                ) from error
            except Exception as error:
                if not failed:
                    _log.warning(
                        "%s: the scorer failed on a reply (%s: %s), which counts as wrong, as any "
                        "further one does: %.200r", self.title, type(error).__name__, error, reply,
                    )
                failed = True
                return Score(0, self.points(doc))

        return guarded

    def _repeat(self, rows: Any) -> Any:
        """Every row ``draws`` times, one behind the other, with the number of its draw."""
        count = len(rows)
        again = rows.select([i for i in range(count) for _ in range(self.draws)])
        return again.add_column(DRAW, [draw for _ in range(count) for draw in range(self.draws)])
