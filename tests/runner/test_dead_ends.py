"""Grammars that no text satisfies, or that go on for ever, told from those that end."""

import json

import pytest
import xgrammar
from vllm.sampling_params import StructuredOutputsParams

from diffusiongemma_vllm.runner import dead_ends

ROOT = {"type": "object", "properties": {"a": {"$ref": "#"}}, "additionalProperties": False}
ON = 'root ::= "a" x\nx ::= "b" x'


def tag(**content):
    return {"structural_tag": json.dumps({"type": "structural_tag", "format": content})}


def old_tag(schema):
    return {"structural_tag": json.dumps({
        "structures": [{"begin": "<a>", "schema": schema, "end": "</a>"}], "triggers": ["<a"],
    })}


def found(back_end, constraint):
    asked = StructuredOutputsParams(**constraint)
    asked._backend = back_end
    return dead_ends.found(asked)


@pytest.mark.parametrize(("constraint", "rule"), [
    ({"grammar": ON}, "root"),
    ({"grammar": 'root ::= "c" | "a" x\nx ::= "b" x'}, "x"),  # one of two ways has no end
    ({"grammar": 'root ::= "a" x\nx ::= x "b"'}, "root"),
    ({"grammar": 'root ::= "a" [^\\u0000-\\U0010FFFF]'}, "root"),
    ({"grammar": "root ::= x{2,3}\nx ::= \"a\" root"}, "root"),
    ({"regex": "a[^\\s\\S]"}, "root"),
    ({"json": ROOT | {"required": ["a"]}}, "root"),
    (tag(type="grammar", grammar=ON), "root_0"),
    (tag(type="regex", pattern="a[^\\s\\S]"), "root_0"),
    (old_tag(ROOT | {"required": ["a"]}), "root_0"),
])
def test_what_never_ends(constraint, rule):
    assert f"no text ends the grammar's rule {rule}" in found("xgrammar", constraint)


@pytest.mark.parametrize("constraint", [
    {"grammar": 'root ::= "c" | "a" x\nx ::= "b" x | ""'},
    {"grammar": "root ::= x{0,3}\nx ::= [^a-z] [0-9]* (root | [a])"},
    {"grammar": "?start: \"a\" b\nb: /[0-9]+/"},
    {"regex": "[a-z]+([^a-z]|x)?"}, {"choice": ["a", "b"]}, {"json_object": True}, {"json": ROOT},
    tag(type="json_schema", json_schema={"type": "integer"}),
    tag(type="triggered_tags", triggers=["<a"], tags=[{
        "begin": "<a>", "content": {"type": "json_schema", "json_schema": ROOT}, "end": "</a>",
    }]),
    old_tag(ROOT),
])
def test_what_ends(constraint):
    assert found("xgrammar", constraint) is None


def test_rules_that_lead_on_and_on_are_followed_quickly():
    """In either order, whichever the writer chose."""
    chain = [f'r{i} ::= "a" r{i + 1}' for i in range(3000)] + ['r3000 ::= "z"']
    for rules in (chain, chain[::-1]):
        grammar = xgrammar.Grammar.from_ebnf("\n".join(["root ::= r0", *rules]))
        assert dead_ends.first_endless(grammar) is None


@pytest.mark.parametrize(("regex", "right"), [
    ("a[0-9]+", True), ("", True), ("(b[^\\s\\S])?", True), ("\\d{3}", True),
    ("a|b[^\\s\\S]", True),
    ("a[^\\s\\S]", False), ("[^\\s\\S]", False), ("x(a[^\\s\\S]){2,4}", False),
])
def test_a_regex_by_guidance(regex, right):
    assert (found("guidance", {"regex": regex}) is None) == right
    assert dead_ends.satisfiable(regex) == right


def test_the_version_of_this_xgrammar_is_known(monkeypatch):
    """Another one may number its expressions anew: then nothing is refused."""
    grammar = xgrammar.Grammar.from_ebnf(ON)
    assert json.loads(grammar.serialize_json())["__VERSION__"] == dead_ends.VERSION
    monkeypatch.setattr(dead_ends, "VERSION", "v17")
    assert dead_ends.first_endless(grammar) is None
