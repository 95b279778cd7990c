"""Constraints that no text can satisfy, or not from every place they lead to; found at admission.

A rule of xgrammar's that never ends lets a text begin and not end, and working out what must follow
in it would take for ever.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from vllm.logger import init_logger
from vllm.v1.structured_output.utils import choice_as_grammar, grammar_is_likely_lark

from diffusiongemma_vllm.parsers.endless import endless
from diffusiongemma_vllm.runner.back_ends import ascii_classes

logger = init_logger("vllm.diffusiongemma")

VERSION = "v16"  # of xgrammar's serialised grammars
# Kinds of its expressions.  Those that are not here are taken to end.
CLASS, RULE, SEQUENCE, CHOICES, REPEAT = 1, 4, 5, 6, 8
LAST_CHARACTER = 0x10FFFF


def found(asked: Any) -> str | None:
    """What is wrong with vLLM's ``StructuredOutputsParams``, whose back end is chosen; or None."""
    if asked._backend == "xgrammar":
        rule = first_endless(_grammar(asked))
        return rule and f"no text ends the grammar's rule {rule}: it could begin and go on for ever"
    if asked.regex is not None and not satisfiable(asked.regex):
        return "no text matches the regex"
    return None


def first_endless(grammar: Any) -> str | None:
    """The first rule of an ``xgrammar.Grammar`` that no text ends; None where all can end."""
    read: dict[str, Any] = json.loads(grammar.serialize_json())
    if read["__VERSION__"] != VERSION:
        logger.warning_once("Grammars are not looked through: this xgrammar writes them as %s, "
                            "not %s.", read["__VERSION__"], VERSION)
        return None
    starts, numbers = read["grammar_expr_indptr"], read["grammar_expr_data"]
    bodies = [rule[1] for rule in read["rules"]]

    def ways(start: int) -> list[list[int]]:
        kind, size = numbers[start : start + 2]
        parts = numbers[start + 2 : start + 2 + size]
        if kind == CLASS:
            return [[]] if _holds_any(bool(parts[0]), parts[1:]) else []
        if kind == RULE or (kind == REPEAT and parts[1] > 0):
            return [[bodies[parts[0]]]]
        if kind == CHOICES:
            return [[part] for part in parts]
        return [parts if kind == SEQUENCE else []]

    never = endless({place: ways(start) for place, start in enumerate(starts)})
    return next((rule[0] for rule in read["rules"] if rule[1] in never), None)


def _holds_any(negated: bool, bounds: list[int]) -> bool:
    """Whether a class of characters has one.  bounds: first and last of each of its ranges."""
    if not negated:
        return bool(bounds)
    after = 0  # characters below it are excluded
    for first, last in sorted(zip(bounds[::2], bounds[1::2], strict=True)):
        if first > after:
            return True
        after = max(after, last + 1)
    return after <= LAST_CHARACTER


def _grammar(asked: Any) -> Any:
    """As vLLM reads it.   ->  xgrammar.Grammar"""
    from xgrammar import Grammar, StructuralTagItem

    if asked.structural_tag is not None:
        tag = json.loads(asked.structural_tag)
        if "structures" not in tag:
            return Grammar.from_structural_tag(asked.structural_tag)
        items = [
            StructuralTagItem(begin=one["begin"], schema=json.dumps(one["schema"]), end=one["end"])
            for one in tag["structures"]
        ]
        return Grammar.from_structural_tag(items, tag["triggers"])
    if asked.json is not None:
        return Grammar.from_json_schema(asked.json)
    if asked.regex is not None:
        return Grammar.from_regex(asked.regex)
    if asked.choice is not None:
        return Grammar.from_ebnf(choice_as_grammar(asked.choice))
    if asked.grammar is not None:
        lark = grammar_is_likely_lark(asked.grammar)
        return (Grammar.from_lark if lark else Grammar.from_ebnf)(asked.grammar)
    return Grammar.builtin_json_grammar()


def satisfiable(regex: str) -> bool:
    """Whether guidance finds a first byte of a text that matches."""
    from llguidance import LLMatcher

    matcher = LLMatcher(_bytes(), LLMatcher.grammar_from_regex(ascii_classes(regex)))
    matcher.compute_bitmask()
    return not matcher.is_error() and (matcher.is_accepting() or not matcher.is_stopped())


@lru_cache
def _bytes() -> Any:
    """A tokenizer without longer tokens."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")
