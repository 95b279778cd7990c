"""Regular expressions of a client: none of them may hold up the server, or fail a turn."""

import time

import pytest
from test_grammar import STRING, check, one

from diffusiongemma_vllm.parsers.grammar import Options, Scanner
from diffusiongemma_vllm.parsers.patterns import TURN, Patterns
from diffusiongemma_vllm.parsers.schema import Schema

SLOW = ["^(a+)+$", "(.*a){20}b", "^(?:(?:a?){30}){30}$", r"^(a|b|ab)*(?<=c)\1$", "(a{1,30}){1,30}b"]


@pytest.mark.parametrize("pattern", SLOW)
def test_time_is_bounded(pattern):
    schema = {"type": "object", "patternProperties": {pattern: STRING}}
    members = ",".join("a" * 200 + f"{n}!:1" for n in range(500))
    begin = time.perf_counter()
    scanner = Scanner(Options(schemas={"f": Schema.of(schema)}))
    scanner.feed(f"<|tool_call>call:f{{{members}}}<tool_call|>")
    assert time.perf_counter() - begin < TURN + 1


@pytest.mark.parametrize("pattern", [
    "((a{999}){999}){999}", "a{99999999999999999999}", "(" * 20000 + ")" * 20000, "[", "(?<=a+b",
    "a" * 5000, "(?P<x>a)(?P<x>b", "\\", "*", None, 5,
], ids=lambda p: str(p)[:20])  # fmt: skip
def test_what_is_no_pattern_describes_nothing(pattern):
    begin = time.perf_counter()
    assert not Patterns().match(pattern, "a" * 100)
    assert time.perf_counter() - begin < 1


@pytest.mark.parametrize(("pattern", "key", "other"), [
    ("^x-", "x-a", "a-x"), (r"^\d{1,3}$", "42", "4242"), (r"^\p{L}+$", "größe", "g3"),
    ("^[a-f0-9]{8}-([a-f0-9]{4}-){3}[a-f0-9]{12}$", "0af3bc12-0000-4000-8000-0123456789ab", "0af3"),
], ids=str)  # fmt: skip
def test_ordinary_patterns_match(pattern, key, other):
    assert Patterns().match(pattern, key) and not Patterns().match(pattern, other)


@pytest.mark.parametrize("schema", [
    {"patternProperties": ["x"]}, {"patternProperties": "ab"}, {"patternProperties": {"[": STRING}},
    {"patternProperties": {"a": None}}, {"patternProperties": 5}, {"properties": ["a"]},
    {"properties": {"a": {"type": {"x": 1}}}}, {"properties": {"a": {"anyOf": {"x": 1}}}},
    {"properties": {"a": {"$ref": 5}}}, {"properties": {"a": {"enum": None}}},
], ids=str)  # fmt: skip
def test_a_malformed_schema_describes_nothing(schema):
    check(one("", "{a:1,b:{c:2}}", {"a": 1, "b": {"c": 2}}),
          Options(schemas={"f": Schema.of({"type": "object", **schema})}))  # fmt: skip


def test_so_many_patterns_are_not_all_read():
    schema = {"patternProperties": {f"(a{{1,90}}){{1,90}}{n}": STRING for n in range(2000)}}
    begin = time.perf_counter()
    Schema.of(schema).member("b")
    assert time.perf_counter() - begin < TURN + 1
