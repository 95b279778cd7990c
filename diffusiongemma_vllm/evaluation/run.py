"""One benchmark through lm-eval."""

from __future__ import annotations

import logging
import platform
from collections import defaultdict
from importlib.metadata import version
from typing import Any

from lm_eval.evaluator import evaluate

from diffusiongemma_vllm.evaluation.result import Result

VERSIONS = ("diffusiongemma-vllm", "lm-eval", "transformers", "torch")


def places(count: int, limit: int | None) -> list[int]:
    """Questions of ``count`` to ask: all, or ``limit`` of them evenly spread."""
    if limit is None or limit >= count:
        return list(range(count))
    return [i * count // limit for i in range(limit)]


def questions(task: Any, draws: int, limit: int | None) -> list[int]:
    """Those of a task of lm-eval, ``draws`` rows of which belong to each, that are asked."""
    return places(len(task.eval_docs) // draws, limit)


def run(task: Any, model: Any, draws: int, limit: int | None, about: dict[str, Any]) -> Result:
    """Ask and score a task of lm-eval, ``draws`` rows of which belong to each question.

    model: lm-eval's LM; where it counts them, its ``cut`` and ``tokens`` are reported.
    """
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    asked = questions(task, draws, limit)
    rows = [question * draws + draw for question in asked for draw in range(draws)]
    name = task.config.task
    samples = evaluate(
        lm=model, task_dict={"tasks": {name: task}}, samples={name: rows}, bootstrap_iters=0
    )["samples"][name]
    right: dict[int, int] = defaultdict(int)
    of: dict[int, int] = defaultdict(int)
    for sample in samples:
        question = sample["doc_id"] // draws
        right[question] += sample["right"]
        of[question] += sample["of"]
    assert sorted(right) == asked, "lm-eval scored other questions than it was to"
    return Result(
        name, asked, [right[q] for q in asked], [of[q] for q in asked],
        getattr(model, "cut", 0), getattr(model, "tokens", 0),
        about | {
            "draws": draws, "python": platform.python_version(),
            "versions": {package: version(package) for package in VERSIONS},
        },
    )
