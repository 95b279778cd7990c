"""What a tool's JSON schema says about the type of each argument."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from diffusiongemma_vllm.parsers.branches import parts, resolve
from diffusiongemma_vllm.parsers.keys import KnownKeys
from diffusiongemma_vllm.parsers.patterns import Patterns

_PYTHON_TYPES = (
    (bool, "boolean"),
    (int, "integer"),
    (float, "number"),
    (str, "string"),
    (list, "array"),
    (dict, "object"),
)


def _type_of(value: object) -> str:
    return next((name for kind, name in _PYTHON_TYPES if isinstance(value, kind)), "null")


@dataclass(frozen=True)
class Schema:
    """Where a value stands in a schema: the nodes that may describe it (none: anything goes)."""

    nodes: tuple[Any, ...] = ()
    root: Mapping[str, Any] = field(default_factory=dict)
    patterns: Patterns = field(default_factory=Patterns, compare=False)
    known: dict[tuple[int, ...], KnownKeys] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, parameters: object) -> "Schema":
        """The schema of a tool's `parameters`."""
        return cls((parameters,), parameters) if isinstance(parameters, Mapping) else cls()

    def types(self) -> frozenset[str] | None:
        """The JSON types allowed here, or None where any is."""
        if not self.nodes:
            return None
        memo: dict[int, frozenset[str] | None] = {}
        return _union([self._types(node, memo) for node in self.nodes]) or None

    def member(self, key: str) -> "Schema":
        """The schema of an object's value under `key`."""
        if not self.nodes:
            return self
        found: list[Any] = []
        for node in self._views():
            properties = node.get("properties")
            patterns = node.get("patternProperties")
            if isinstance(properties, Mapping) and key in properties:
                found.append(properties[key])
                continue
            patterns = patterns if isinstance(patterns, Mapping) else {}
            matched = [v for p, v in patterns.items() if self.patterns.match(p, key)]
            extra = node.get("additionalProperties")
            if matched:
                found += matched
            elif isinstance(extra, Mapping):
                found.append(extra)
        return replace(self, nodes=tuple(found))

    def keys(self) -> KnownKeys:
        """The keys that an object may have here, as far as they need to be known to be read."""
        place = tuple(map(id, self.nodes))
        if place not in self.known:
            listed = [node.get("properties") for node in self._views()]
            self.known[place] = KnownKeys(
                {key for properties in listed if isinstance(properties, Mapping)
                 for key in properties}
            )  # fmt: skip
        return self.known[place]

    def item(self, index: int) -> "Schema":
        """The schema of an array's element `index`."""
        if not self.nodes:
            return self
        found: list[Any] = []
        for node in self._views():
            items, prefix = node.get("items"), node.get("prefixItems")
            if isinstance(items, list):  # the older spelling of prefixItems
                items, prefix = node.get("additionalItems"), items
            if isinstance(prefix, list) and index < len(prefix):
                found.append(prefix[index])
            elif isinstance(items, Mapping):
                found.append(items)
        return replace(self, nodes=tuple(found))

    def _types(self, node: Any, memo: dict[int, frozenset[str] | None]) -> frozenset[str] | None:
        if not isinstance(node, Mapping):
            return None
        if id(node) not in memo:
            memo[id(node)] = frozenset()  # a schema may refer to itself, which adds nothing
            memo[id(node)] = self._types_of(node, memo)
        return memo[id(node)]

    def _types_of(
        self, node: Mapping[str, Any], memo: dict[int, frozenset[str] | None]
    ) -> frozenset[str] | None:
        own = node.get("type")
        allowed: frozenset[str] | None = None
        if isinstance(own, str):
            allowed = frozenset({own})
        elif isinstance(own, list):
            allowed = frozenset(t for t in own if isinstance(t, str))
        elif isinstance(node.get("enum"), list):
            allowed = frozenset(map(_type_of, node["enum"]))
        elif "const" in node:
            allowed = frozenset({_type_of(node["const"])})
        else:
            groups = [[self._target(node)]] if "$ref" in node else []
            groups += [[part] for part in parts(node, "allOf")]
            groups += [listed for k in ("anyOf", "oneOf") if (listed := parts(node, k))]
            for group in groups:
                types = _union([self._types(part, memo) for part in group])
                if types is not None:
                    allowed = types if allowed is None else allowed & types
        if allowed and node.get("nullable") is True:
            allowed |= {"null"}
        return allowed

    def _views(self) -> Iterator[Mapping[str, Any]]:
        """Every node that may describe this value, references and alternatives opened."""
        pending, seen = list(reversed(self.nodes)), set()
        while pending:
            node = pending.pop()
            if not isinstance(node, Mapping) or id(node) in seen:
                continue
            seen.add(id(node))
            yield node
            inner = [self._target(node)] if "$ref" in node else []
            for keyword in ("allOf", "anyOf", "oneOf"):
                inner += parts(node, keyword)
            pending += reversed(inner)

    def _target(self, node: Mapping[str, Any]) -> Any:
        """What `$ref` points at, inside this schema; None when it is not there."""
        return resolve(self.root, ref) if isinstance(ref := node["$ref"], str) else None


def _union(types: list[frozenset[str] | None]) -> frozenset[str] | None:
    known = [t for t in types if t is not None]
    return frozenset().union(*known) if known and len(known) == len(types) else None
