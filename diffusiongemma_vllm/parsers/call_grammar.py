"""An xgrammar grammar (EBNF) of the calls that a request forces, in Gemma 4's own syntax.

Enforced of a tool's schema: names, required arguments, types, enum, const, items, lengths, nesting,
references and alternatives.  Patterns, formats and bounds of numbers are left to the model.
Arguments come sorted by name, as the chat template shows them.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from diffusiongemma_vllm.parsers.branches import (
    Branches,
    GrammarError,
    kinds,
    parts,
    resolve,
    values,
)
from diffusiongemma_vllm.parsers.endless import endless

NUMBER = '"-"? ("0" | [1-9] [0-9]{0,14}) ("." [0-9]{1,15})?'
INTEGER = '"-"? ("0" | [1-9] [0-9]{0,14})'
ANY_ITEMS = 64  # elements and members where a schema names no limit
LIMIT = 2**30  # of lengths: xgrammar counts in 32 bits
MOST = 20_000  # rules
# In a rule: literals, sets of characters, what may be left out.
_PLAIN_RE = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]')
_OPTIONAL_RE = re.compile(r"\([^()]*\)(?:\{0,\d*\}|\?)")
_NAME_RE = re.compile(r"[a-z]+\d*")


class CallGrammar:
    """Collects rules; ``marks`` are the ids of <|tool_call>, <tool_call|> and <|"|>."""

    def __init__(self, opens: int, closes: int, quote: int) -> None:
        self._marks = (f"Token({opens})", f"Token({closes})", f"Token({quote})")
        self._rules: dict[str, str] = {}
        self._references: dict[str, str] = {}
        self._branches = Branches({})

    def of(self, tools: Mapping[str, Mapping[str, Any] | None], *, several: bool) -> str:
        """tools: parameters by name, one of which must be called; several: or more of them.

        Raises:
            GrammarError: where a tool's parameters cannot be enforced
        """
        opens, closes, _ = self._marks
        calls = []
        for name, parameters in tools.items():
            self._branches = Branches(parameters or {})
            self._references = {}
            try:
                arguments = self._arguments()
                calls.append(f"{opens} {_text('call:' + name)} {arguments} {closes}")
            except GrammarError as error:
                raise GrammarError(f"the parameters of tool {name!r}: {error}") from None
            except RecursionError:
                raise GrammarError(f"the parameters of tool {name!r} nest too deep") from None
        self._rules["call"] = " | ".join(calls)
        self._rules["root"] = "call" + ("{1,16}" if several else "")
        return "\n".join(f"{name} ::= {body}" for name, body in reversed(self._rules.items()))

    def _arguments(self) -> str:
        found = self._branches.of(self._branches.root)
        found = [branch for branch in found if "object" in (kinds(branch) or ["object"])]
        if not found:
            raise GrammarError("they have to describe an object")
        rule = self._rule(" | ".join(self._object(branch) for branch in found))
        never = endless(_ways(self._rules)) if self._references else set()
        for pointer, name in self._references.items():
            if name in never:
                raise GrammarError(
                    f"$ref {pointer!r} leads to itself without end: make it optional, or give it "
                    "another alternative"
                )
        return rule

    def _rule(self, body: str) -> str:
        if len(self._rules) > MOST:
            raise GrammarError(f"the forced tools need more than {MOST} rules of grammar")
        name = f"r{len(self._rules)}"
        self._rules[name] = body
        return name

    def _value(self, schema: Any) -> str:
        if not isinstance(schema, Mapping):
            return self._any()
        combined = [key for key in ("allOf", "anyOf", "oneOf") if parts(schema, key)]
        pointer = schema.get("$ref")
        own = schema.keys() & {"properties", "required"}
        if isinstance(pointer, str) and not combined and not own:
            return self._reference(pointer)
        if (chosen := values(schema)) is not None:
            if not chosen:
                raise GrammarError("enum has to list a value, got []")
            return self._rule(" | ".join(self._literal(value) for value in chosen))
        if len(combined) == 1 and not own and not isinstance(pointer, str):
            listed = parts(schema, combined[0])
            if combined[0] != "allOf" or len(listed) == 1:
                return self._rule(" | ".join(self._value(part) for part in listed))
        if combined or isinstance(pointer, str):
            found = self._branches.of(schema)
            if not found:
                raise GrammarError(f"nothing meets all of {', '.join(combined) or '$ref'}")
            return self._rule(" | ".join(self._value(branch) for branch in found))
        named = kinds(schema) or (["object"] if "properties" in schema else [])
        if not named:
            return self._any()
        return self._rule(" | ".join(self._typed(kind, schema) for kind in named))

    def _reference(self, pointer: str) -> str:
        if pointer not in self._references:
            name = f"ref{len(self._rules)}"
            self._references[pointer] = name
            self._rules[name] = ""  # a schema may refer to itself
            self._rules[name] = self._value(resolve(self._branches.root, pointer))
        return self._references[pointer]

    def _typed(self, kind: str, schema: Mapping[str, Any]) -> str:
        if kind == "string":
            least, most = _limits(schema, "minLength", "maxLength")
            return self._string(f"{{{least},{'' if most is None else most}}}")
        if kind == "array":
            return self._array(schema)
        if kind == "object":
            return self._object(schema)
        plain = {"integer": INTEGER, "number": NUMBER, "boolean": '"true" | "false"',
                 "null": '"null"'}
        return self._rule(plain[kind]) if kind in plain else self._any()

    def _string(self, count: str) -> str:
        quote = self._marks[2]
        return self._rule(f"{quote} [^\\0]{count} {quote}")

    def _array(self, schema: Mapping[str, Any]) -> str:
        item = self._value(schema.get("items"))
        least, most = _limits(schema, "minItems", "maxItems")
        if most is None:
            most = least + ANY_ITEMS
        if most < 1:
            return _text("[]")
        some = f'"[" {item} ("," {item}){{{max(least - 1, 0)},{most - 1}}} "]"'
        return self._rule(some if least else f'"[]" | {some}')

    def _object(self, schema: Mapping[str, Any]) -> str:
        properties = schema.get("properties")
        if not isinstance(properties, Mapping) or not properties:
            return self._free_object() if not schema or "properties" not in schema else _text("{}")
        required = schema.get("required") or []
        if not isinstance(required, list):
            raise GrammarError(f"required is to be a list of names, got {required!r}")
        # Behind a member the next one needs a comma, so there are two rules for each tail.
        first, later = '"}"', '"}"'
        for name in sorted(properties, key=lambda name: (name.lower(), name), reverse=True):
            member = f"{_text(name + ':')} {self._value(properties[name])}"
            rest = self._rule(later)
            skip_first, skip_later = self._rule(first), rest
            first, later = f"{member} {rest}", f'"," {member} {rest}'
            if name not in required:
                first, later = f"{first} | {skip_first}", f"{later} | {skip_later}"
        return self._rule(f'"{{" {self._rule(first)}')

    def _free_object(self) -> str:
        self._any()
        return "anyobject"

    def _any(self) -> str:
        if "any" not in self._rules:
            self._rules["any"] = ""
            key = self._rule("[a-zA-Z_] [a-zA-Z0-9_]{0,31}")
            member = self._rule(f'{key} ":" any')
            string, number = self._string("*"), self._rule(NUMBER)
            more = f'{{0,{ANY_ITEMS}}}'
            self._rules["anyobject"] = f'"{{}}" | "{{" {member} ("," {member}){more} "}}"'
            array = self._rule(f'"[]" | "[" any ("," any){more} "]"')
            self._rules["any"] = (
                f'{string} | {number} | "true" | "false" | "null" | anyobject | {array}'
            )
        return "any"

    def _literal(self, value: Any) -> str:
        quote = self._marks[2]
        if isinstance(value, str):
            return f"({quote} {_text(value)} {quote})" if value else f"({quote} {quote})"
        if isinstance(value, Sequence | Mapping):
            return self._value({"type": "array" if isinstance(value, Sequence) else "object"})
        if isinstance(value, float) and not math.isfinite(value):
            raise GrammarError(f"{value} is no JSON: leave it out of enum and const")
        return _text(json.dumps(value))


def _text(text: str) -> str:
    """A literal of the grammar; xgrammar reads no pairs of surrogates, as JSON's escapes have."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise GrammarError(f"{text!r} holds half of a character") from None
    return json.dumps(text, ensure_ascii=False)


def _limits(schema: Mapping[str, Any], lower: str, upper: str) -> tuple[int, int | None]:
    """How little and how much a schema allows; None where it names no limit."""
    least, most = _limit(schema, lower) or 0, _limit(schema, upper)
    if least > LIMIT:
        raise GrammarError(f"{lower} may be {LIMIT} at most, got {least}")
    if most is not None and most < least:
        raise GrammarError(f"{lower} {least} is more than {upper} {most}")
    return least, most if most is None else min(most, LIMIT)


def _limit(schema: Mapping[str, Any], name: str) -> int | None:
    limit = schema.get(name)
    if isinstance(limit, float) and limit.is_integer():
        limit = int(limit)
    if limit is None or (type(limit) is int and limit >= 0):
        return limit
    raise GrammarError(f"{name} is to be a whole number from 0 on, got {limit!r}")


def _ways(rules: Mapping[str, str]) -> dict[str, list[list[str]]]:
    """The rules that each alternative of a rule cannot do without."""
    ways = {}
    for name, body in rules.items():
        body = _OPTIONAL_RE.sub("", _PLAIN_RE.sub("", body))
        ways[name] = [
            [n for n in _NAME_RE.findall(part) if n in rules] for part in body.split("|")
        ]
    return ways
