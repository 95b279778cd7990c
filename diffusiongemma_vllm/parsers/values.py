"""JSON for one value of Gemma 4's argument syntax, typed by the tool's schema."""

import json
import math
import re

Types = frozenset[str] | None

_SPACE_RE = re.compile(r"\s*")
_NUMBER_RE = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_LOOSE_NUMBER_RE = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_BOOLEANS = {"true": "true", "True": "true", "false": "false", "False": "false"}
_NULLS = frozenset({"null", "None"})
_EXACT = 2**53  # integers a float holds exactly


def skip_space(text: str, position: int) -> int:
    match = _SPACE_RE.match(text, position)
    assert match is not None
    return match.end()


def string(text: str) -> str:
    """A JSON string."""
    return json.dumps(text, ensure_ascii=False)


def string_part(text: str) -> str:
    """The inside of a JSON string: parts put side by side make the whole."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def may_be_string(types: Types) -> bool:
    """Whether a quoted value is kept as the string it is."""
    return types is None or "string" in types


def quoted(text: str, types: Types) -> str:
    """A quoted value: a string, unless the schema wants something else that the text spells."""
    if may_be_string(types):
        return string(text)
    assert types is not None
    plain = text.strip()
    if plain in _BOOLEANS and "boolean" in types:
        return _BOOLEANS[plain]
    if plain in _NULLS and "null" in types:
        return "null"
    if types & {"integer", "number"} and (number := _number(plain, types)) is not None:
        return number
    if types & {"array", "object"} and plain[:1] in ("[", "{"):
        kind = "array" if plain[0] == "[" else "object"
        if kind in types and (value := _json(plain)) is not None:
            return value
    return string(text)


def bare(text: str, types: Types) -> str:
    """An unquoted value: a number, a boolean, null, or a word that should have been quoted."""
    plain = text.strip()
    if plain in _NULLS:
        return "null"
    if not plain:
        return '""' if types is not None and "string" in types else "null"
    if plain in _BOOLEANS:
        as_text = types is not None and "boolean" not in types and "string" in types
        return string(plain) if as_text else _BOOLEANS[plain]
    numeric = types is None or bool(types & {"integer", "number"})
    if numeric or not may_be_string(types):
        number = _number(plain, types)
        if number is not None:
            return number
    return string(plain)


def json_quoted(text: str, quote: str, types: Types) -> str:
    """A value between the quotes of another language: JSON's, or Python's single ones."""
    if quote == '"':
        try:
            text = json.loads(f'"{text}"', strict=False)
        except ValueError:  # no JSON escapes in there: the text is meant as it stands
            pass
    else:
        text = text.replace("\\'", "'")
    return quoted(text, types)


def _number(plain: str, types: Types) -> str | None:
    """`plain` as a JSON number with its digits kept, or None when it is not one."""
    whole = types is not None and "integer" in types and "number" not in types
    if _NUMBER_RE.fullmatch(plain):
        if not whole or plain.lstrip("-").isdigit():
            return plain
        value = float(plain)
        return str(int(value)) if value.is_integer() and abs(value) < _EXACT else plain
    if types is None or "string" in types or not _LOOSE_NUMBER_RE.fullmatch(plain):
        return None
    digits = plain.lstrip("+-").lstrip("0")
    if digits.isdigit() or not digits:
        sign = "-" if plain.startswith("-") and digits else ""
        return sign + (digits or "0")
    value = float(plain)
    return json.dumps(value) if math.isfinite(value) else None


def _json(text: str) -> str | None:
    def refuse(constant: str) -> float:
        raise ValueError(constant)

    try:
        value = json.loads(text, parse_constant=refuse)
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return None


def unquoted(key: str) -> str:
    """A bare key as it stands, or what JSON's or Python's quotes hold."""
    if len(key) < 2 or key[0] != key[-1] or key[0] not in "\"'":
        return key
    try:
        return str(json.loads(key)) if key[0] == '"' else key[1:-1]
    except ValueError:
        return key[1:-1]
