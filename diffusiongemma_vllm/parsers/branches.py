"""A JSON schema's references and combinations, worked out as far as a grammar needs them."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

COMBINING = ("$ref", "allOf", "anyOf", "oneOf")
_MOST = 10_000  # schemas to look at for one tool
_LOWER, _UPPER = ("minLength", "minItems"), ("maxLength", "maxItems")


class GrammarError(ValueError):
    """A schema that no grammar can enforce; says which part of it, and why."""


def resolve(root: Any, pointer: str) -> Any:
    """What a reference points at, inside its schema; None when it is not there."""
    here = root if pointer.startswith("#") else None
    for part in filter(None, pointer.removeprefix("#").split("/")):
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(here, list) and part.isdecimal() and int(part) < len(here):
            here = here[int(part)]
        else:
            here = here.get(part) if isinstance(here, Mapping) else None
    return here


class Branches:
    """Works schemas with one root out."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self._looked = 0  # at so many schemas

    def of(self, schema: Any, opened: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
        """Schemas without references and combinations, one of which a value has to meet.

        A reference that leads to itself (`opened`) adds nothing.
        """
        if not isinstance(schema, Mapping):
            return [{}]
        found: list[dict[str, Any]] = [{k: v for k, v in schema.items() if k not in COMBINING}]
        for alternatives in self._groups(schema, opened):
            found = [m for a in found for b in alternatives if (m := _merged(a, b)) is not None]
            self._looked += 1 + len(found)
            if self._looked > _MOST:
                raise GrammarError("anyOf, oneOf and allOf make too many alternatives")
        return found

    def _groups(
        self, schema: Mapping[str, Any], opened: frozenset[str]
    ) -> Iterable[list[dict[str, Any]]]:
        pointer = schema.get("$ref")
        if isinstance(pointer, str):
            inner = opened | {pointer}
            yield [] if pointer in opened else self.of(resolve(self.root, pointer), inner)
        for part in parts(schema, "allOf"):
            yield self.of(part, opened)
        for keyword in ("anyOf", "oneOf"):
            if listed := parts(schema, keyword):
                yield [b for part in listed for b in self.of(part, opened)]


def parts(schema: Mapping[str, Any], keyword: str) -> list[Any]:
    found = schema.get(keyword)
    return found if isinstance(found, list) else []


def kinds(schema: Mapping[str, Any]) -> list[str]:
    """The types it names, in lower case; none where it leaves them open."""
    named = schema.get("type")
    listed = named if isinstance(named, list) else [named]
    found = [kind.lower() for kind in listed if isinstance(kind, str)]
    return [*found, "null"] if found and schema.get("nullable") is True else found


def values(schema: Mapping[str, Any]) -> list[Any] | None:
    """What const and enum leave; None where they leave everything."""
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _merged(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any] | None:
    """Both at once; None where nothing meets both."""
    merged = a | b
    if kinds(a) and kinds(b):
        merged["type"] = [kind for kind in kinds(a) if kind in kinds(b)]
        if "integer" in {*kinds(a), *kinds(b)} and "number" in {*kinds(a), *kinds(b)}:
            merged["type"].append("integer")
        if not merged["type"]:
            return None
        merged.pop("nullable", None)
    chosen, other = values(a), values(b)
    if chosen is not None and other is not None:
        spelled = {json.dumps(value, sort_keys=True) for value in other}
        merged.pop("const", None)
        merged["enum"] = [v for v in chosen if json.dumps(v, sort_keys=True) in spelled]
        if not merged["enum"]:
            return None
    for key in a.keys() & b.keys():
        mine, its = a[key], b[key]
        if key == "properties" and isinstance(mine, Mapping) and isinstance(its, Mapping):
            merged[key] = {**mine, **its} | {n: _both(mine[n], its[n]) for n in mine if n in its}
        elif key == "items":
            merged[key] = _both(mine, its)
        elif key == "required" and isinstance(mine, list) and isinstance(its, list):
            merged[key] = [*mine, *its]
        elif key in _LOWER and isinstance(mine, int) and isinstance(its, int):
            merged[key] = max(mine, its)
        elif key in _UPPER and isinstance(mine, int) and isinstance(its, int):
            merged[key] = min(mine, its)
    return merged


def _both(a: Any, b: Any) -> Any:
    return a if a == b else {"allOf": [a, b]}
