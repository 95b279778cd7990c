"""An xgrammar grammar (EBNF) of the calls that a request forces, in Gemma 4's own syntax.

Enforced of a tool's schema: names, required arguments, types, enum, const, items, lengths, nesting,
references and alternatives.  Patterns, formats and bounds of numbers are left to the model.
Arguments come sorted by name, as the chat template shows them.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

NUMBER = '"-"? ("0" | [1-9] [0-9]{0,14}) ("." [0-9]{1,15})?'
INTEGER = '"-"? ("0" | [1-9] [0-9]{0,14})'
ANY_ITEMS = 64  # elements and members where a schema names no limit


class CallGrammar:
    """Collects rules; ``marks`` are the ids of <|tool_call>, <tool_call|> and <|"|>."""

    def __init__(self, opens: int, closes: int, quote: int) -> None:
        self._marks = (f"Token({opens})", f"Token({closes})", f"Token({quote})")
        self._rules: dict[str, str] = {}
        self._references: dict[str, str] = {}
        self._root: Mapping[str, Any] = {}

    def of(self, tools: Mapping[str, Mapping[str, Any] | None], *, several: bool) -> str:
        """tools: parameters by name, one of which must be called; several: or more of them."""
        opens, closes, _ = self._marks
        calls = []
        for name, parameters in tools.items():
            self._root = parameters or {}
            self._references = {}
            arguments = self._object(self._root)
            calls.append(f"{opens} {_text('call:' + name)} {arguments} {closes}")
        self._rules["call"] = " | ".join(calls)
        self._rules["root"] = "call" + ("{1,16}" if several else "")
        return "\n".join(f"{name} ::= {body}" for name, body in reversed(self._rules.items()))

    def _rule(self, body: str) -> str:
        name = f"r{len(self._rules)}"
        self._rules[name] = body
        return name

    def _value(self, schema: Any) -> str:
        if not isinstance(schema, Mapping):
            return self._any()
        if isinstance(schema.get("$ref"), str):
            return self._reference(schema["$ref"])
        if "const" in schema or isinstance(schema.get("enum"), list):
            values = [schema["const"]] if "const" in schema else schema["enum"]
            return self._rule(" | ".join(self._literal(value) for value in values))
        for keyword in ("anyOf", "oneOf"):
            if isinstance(schema.get(keyword), list) and schema[keyword]:
                return self._rule(" | ".join(self._value(part) for part in schema[keyword]))
        if isinstance(schema.get("allOf"), list) and len(schema["allOf"]) == 1:
            return self._value(schema["allOf"][0])
        kinds = schema.get("type", "object" if "properties" in schema else None)
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not isinstance(kinds, list) or not kinds:
            return self._any()
        if schema.get("nullable") is True:
            kinds = [*kinds, "null"]
        return self._rule(" | ".join(self._typed(str(kind).lower(), schema) for kind in kinds))

    def _reference(self, pointer: str) -> str:
        if pointer not in self._references:
            name = f"ref{len(self._rules)}"
            self._references[pointer] = name
            self._rules[name] = ""  # a schema may refer to itself
            self._rules[name] = self._value(_resolve(self._root, pointer))
        return self._references[pointer]

    def _typed(self, kind: str, schema: Mapping[str, Any]) -> str:
        if kind == "string":
            least, most = schema.get("minLength", 0), schema.get("maxLength", "")
            return self._string(f"{{{least},{most}}}")
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
        least, most = schema.get("minItems", 0), schema.get("maxItems", ANY_ITEMS)
        if most < 1:
            return _text("[]")
        some = f'"[" {item} ("," {item}){{{max(least - 1, 0)},{most - 1}}} "]"'
        return self._rule(some if least else f'"[]" | {some}')

    def _object(self, schema: Mapping[str, Any]) -> str:
        properties = schema.get("properties")
        if not isinstance(properties, Mapping) or not properties:
            return self._free_object() if not schema or "properties" not in schema else _text("{}")
        required = schema.get("required") or []
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
        return _text(json.dumps(value))


def _text(text: str) -> str:
    """A literal of the grammar; xgrammar reads no pairs of surrogates, as JSON's escapes have."""
    return json.dumps(text, ensure_ascii=False)


def _resolve(root: Mapping[str, Any], pointer: str) -> Any:
    """What a reference points at, inside its schema; None when it is not there."""
    here: Any = root
    for part in filter(None, pointer.removeprefix("#").split("/")):
        part = part.replace("~1", "/").replace("~0", "~")
        here = here.get(part) if isinstance(here, Mapping) else None
    return here
