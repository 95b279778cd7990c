"""Multiple choice: the options with letters, and the letter that the last line names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from random import Random
from string import ascii_uppercase

from diffusiongemma_vllm.evaluation.benchmark import Doc, Score

# what models put around a letter: emphasis, quotes, brackets and LaTeX
_AROUND = (
    r"(?:[\s*_$({\[\"'`“‘]|\\[(\[]"
    r"|\\(?:boxed|fbox|text|textbf|textit|textrm|mathrm|mathbf|mathbb)\s*(?=\{)){0,40}"
)
_REASON = (
    "because|since|as|by|due|for|from|per|with|where|which|while|when|given|based|and|or|but|if|"
    "not|is|according"
)
_OTHER = r"(?:[^\w\n]{0,4}(?:\bor\b|/)[^\w\n]{0,4}(?:(?i:option|choice)\W+)?[A-J]\b)"
# the letter, and whether a second one stands beside it; "I think" names none
_LETTER = (
    rf"{_AROUND}(?:(?i:option|choice)\s{{1,9}}{_AROUND})?"
    rf"([A-J])(?![A-Za-z])(?<!I(?=['’][a-z]))(?<!I(?=[ \t]+(?!(?:{_REASON})\b)[a-z]))({_OTHER}?)"
)
_SAID = re.compile(
    rf"(?i:answer)[*_]*\s*(?::|：|(?i:is)(?!{_AROUND}A[ \t]+(?!(?:{_REASON})\b)[a-z]))"
    rf"[*_]*:?{_LETTER}"
)
_BOXED = re.compile(rf"\\boxed\s*\{{{_LETTER}")
GPQA_OPTIONS = (
    "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3",
)


def question(text: str, options: Sequence[str]) -> str:
    """A question with its options, and how the answer is to end."""
    listed = "\n".join(f"{ascii_uppercase[i]}. {option}" for i, option in enumerate(options))
    return (
        f"{text.strip()}\n\n{listed}\n\n"
        "Exactly one option is right. Put your choice in the last line of your reply, as "
        '"Answer: X" with the letter of the option (a Latin letter in every language).'
    )


def chosen(reply: str) -> str | None:
    """The letter that a reply settles on last, or None."""
    for pattern in (_SAID, _BOXED):
        found = pattern.findall(reply)
        if found:
            letter, other = found[-1]
            return None if other else str(letter)
    lines = reply.strip().splitlines()
    last = lines[-1].strip(" *_().$") if lines else ""
    return last if re.fullmatch("[A-J]", last) else None


def score(right: str, reply: str) -> Score:
    return Score(int(chosen(reply) == right))


def gpqa_order(doc: Doc) -> list[str]:
    """The column of each option, in an order that depends on the question alone."""
    digest = hashlib.sha256(doc["Question"].encode()).digest()
    order = list(GPQA_OPTIONS)
    Random(int.from_bytes(digest[:8], "big")).shuffle(order)
    return order


def gpqa(doc: Doc) -> str:
    return question(doc["Question"], [doc[column].strip() for column in gpqa_order(doc)])


def score_gpqa(doc: Doc, reply: str) -> Score:
    return score(ascii_uppercase[gpqa_order(doc).index(GPQA_OPTIONS[0])], reply)


def mmmlu(doc: Doc) -> str:
    return question(doc["Question"], [doc[letter] for letter in "ABCD"])


def score_mmmlu(doc: Doc, reply: str) -> Score:
    return score(doc["Answer"], reply)


def mmlu_pro(doc: Doc) -> str:
    return question(doc["question"], doc["options"])


def score_mmlu_pro(doc: Doc, reply: str) -> Score:
    return score(doc["answer"], reply)
