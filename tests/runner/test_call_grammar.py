"""Forced calls: which turns the grammar lets through, token by token."""

import json

import pytest
import xgrammar
from transformers import AutoTokenizer

from diffusiongemma_vllm.cli.main import MINIATURE
from diffusiongemma_vllm.parsers.call_grammar import CallGrammar
from diffusiongemma_vllm.runner.back_ends import compiler as make_compiler

TIMER = {"type": "object", "required": ["minutes"], "properties": {
    "label": {"type": "string"}, "minutes": {"type": "integer"}}}
DEEP = {"type": "object", "$defs": {"n": {"type": "object", "properties": {
    "k": {"$ref": "#/$defs/n"}}}}, "properties": {
        "a": {"enum": ['q"', 1, None]}, "b": {"type": "array", "items": {"$ref": "#/$defs/n"},
                                              "maxItems": 2}, "c": {}}}
TOOLS = {"set_timer": TIMER, "deep": DEEP, "free": None}
CALLS, END = "<|tool_call>call:{}<tool_call|>", 50


@pytest.fixture(scope="module")
def make():
    """Makes a check: whether a text, and then the end, is let through where `tools` are forced."""
    tokenizer = AutoTokenizer.from_pretrained(MINIATURE)
    compiler = make_compiler(tokenizer, 384)

    def make(tools, several=True):
        grammar = CallGrammar(48, 49, 52).of(tools, several=several)
        form = {"type": "grammar", "grammar": grammar}
        compiled = compiler.compile_structural_tag(
            json.dumps({"type": "structural_tag", "format": form})
        )

        def check(text):
            matcher = xgrammar.GrammarMatcher(compiled, override_stop_tokens=[1, 106, END])
            ids = tokenizer.encode(text, add_special_tokens=False)
            return all(matcher.accept_token(token) for token in [*ids, END])

        return check

    return make


@pytest.fixture(scope="module")
def accepts(make):
    checks = {several: make(TOOLS, several) for several in (True, False)}
    return lambda text, several=True: checks[several](text)


@pytest.mark.parametrize("call", [
    'set_timer{label:<|"|>yo{<ga<|"|>,minutes:27}', "set_timer{minutes:-3}", "deep{}",
    'deep{a:<|"|>q"<|"|>,b:[{k:{}},{}],c:[1,<|"|>s<|"|>,{z:true}]}', "deep{c:null}", "free{}",
    'free{q:1,r:<|"|><|"|>}', "deep{b:[]}",
])
def test_allowed(accepts, call):
    assert accepts(CALLS.format(call))
    assert accepts(CALLS.format(call), several=False)
    assert accepts(CALLS.format(call) * 2) and not accepts(CALLS.format(call) * 2, several=False)


@pytest.mark.parametrize("call", [
    'set_timer{label:<|"|>a<|"|>}', "set_timer{minutes:2.5}", "set_timer{minutes:1,label:2}",
    'set_timer{label:<|"|><|tool_call><|"|>,minutes:2}', "other{}", "deep{a:2}",
    "deep{b:[{},{},{}]}", "set_timer{minutes:1,}", 'set_timer{minutes:1,x:2}',
])
def test_refused(accepts, call):
    assert not accepts(CALLS.format(call))


def test_text_instead_of_a_call(accepts):
    assert not accepts("hello") and not accepts("")


def test_names_that_begin_with_a_digit_or_a_dash(make):
    check = make({"2fa": None, "-x": None})
    assert check(CALLS.format("2fa{}") + CALLS.format("-x{}"))
    assert not check(CALLS.format("fa{}"))


ODD = "é日\u2028😀👩\u200d🚀"  # two, three and four bytes a character


def one(name, schema):
    """The parameters of a function that takes one argument."""
    return {"type": "object", "properties": {name: schema}, "required": [name]}


@pytest.mark.parametrize(("tools", "call"), [
    ({"f": one("a", {"enum": [ODD]})}, 'f{a:<|"|>ODD<|"|>}'),
    ({"f": one("a", {"const": ODD})}, 'f{a:<|"|>ODD<|"|>}'),
    ({"f": one(ODD, {"type": "boolean"})}, "f{ODD:true}"),
    ({ODD: None}, "ODD{}"),
], ids=["enum", "const", "property", "name"])
def test_characters_of_every_size(make, tools, call):
    check, text = make(tools), CALLS.format(call)
    assert check(text.replace("ODD", ODD))
    for wrong in (ODD[:-1], ODD.replace("😀", "😁"), ODD.replace("日", "月")):
        assert not check(text.replace("ODD", wrong))
