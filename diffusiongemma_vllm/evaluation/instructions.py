"""IFEval: instructions that a program can check, by lm-eval's checks."""

from __future__ import annotations

from pathlib import Path

from diffusiongemma_vllm.evaluation.benchmark import Doc, Score

PUNKT = "tokenizers/punkt_tab"


def prompt(doc: Doc) -> str:
    return str(doc["prompt"])


def points(doc: Doc) -> int:
    return len(doc["instruction_id_list"])


def prepare(folder: Path | None) -> None:
    """See that the checks find NLTK's sentence splitter, which lm-eval fetches when it may.

    Raises:
        ValueError: where it is missing.
    """
    import langdetect
    import nltk

    langdetect.DetectorFactory.seed = 0  # it draws at random otherwise
    if folder is not None and str(folder / "nltk_data") not in nltk.data.path:
        nltk.data.path.insert(0, str(folder / "nltk_data"))
    try:
        nltk.data.find(PUNKT)
    except LookupError:
        where = "nltk_data" if folder is None else str(folder / "nltk_data")
        if folder is None and nltk.download("punkt_tab", quiet=True):
            return
        raise ValueError(
            "IFEval's checks need NLTK's punkt_tab: python -m nltk.downloader -d "
            f"{where} punkt_tab"
        ) from None


def score(doc: Doc, reply: str) -> Score:
    """Instructions followed of those given, strictly (nothing of the reply is cut away)."""
    from lm_eval.tasks.ifeval.utils import InputExample, test_instruction_following_strict

    example = InputExample(
        doc["key"], list(doc["instruction_id_list"]), doc["prompt"], list(doc["kwargs"])
    )
    followed = test_instruction_following_strict(example, reply).follow_instruction_list
    return Score(sum(followed), len(followed))
