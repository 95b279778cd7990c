"""Questions whose answer is a number."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from diffusiongemma_vllm.evaluation.benchmark import Doc, Score

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_ASIDE = re.compile(r"(?<=\d)([\s*_$.)\]}\\]*)(?<!\\)\([^()]*\)")  # "5 (since 10-5)"
_SAID = re.compile(r"(?i)answer[*_]*\s*(?:is|:)[*_]*:?(.*)")


def gsm8k(doc: Doc) -> str:
    return (
        f"{doc['question'].strip()}\n\n"
        'Work it out, then put the result in the last line of your reply, as "Answer: N" with a '
        "bare number."
    )


def score_gsm8k(doc: Doc, reply: str) -> Score:
    """The data set's answers end with ``#### N``.  2,000 and 2000.00 are the same number."""
    right = _last_number(doc["answer"].rpartition("####")[2])
    said = _SAID.findall(reply)
    found = _last_number(_ASIDE.sub(r"\1", said[-1])) if said else None
    if found is None:
        found = _last_number(reply)
    return Score(int(found is not None and found == right))


def aime(doc: Doc) -> str:
    return (
        f"{doc['problem'].strip()}\n\n"
        "The answer is an integer from 0 to 999. Put it in \\boxed{} at the end of your reply."
    )


def score_aime(doc: Doc, reply: str) -> Score:
    """lm-eval's own scoring of ``aime25``; leading zeros of the three digits do not matter."""
    from lm_eval.tasks.aime.utils import process_results

    right = str(doc["answer"]).strip().lstrip("0") or "0"
    spelled = {right.zfill(width) for width in (1, 2, 3)}
    return Score(max(process_results({"answer": a}, [reply])["exact_match"] for a in spelled))


def _last_number(text: str) -> Decimal | None:
    text = text.replace("{,}", ",").replace("\N{MINUS SIGN}", "-")
    found = _NUMBER.findall(text)
    if not found:
        return None
    try:
        return Decimal(found[-1].replace(",", ""))
    except InvalidOperation:
        return None
