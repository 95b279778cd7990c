"""Forced calls: which turns the grammar lets through, token by token."""

import json
import time

import pytest
import xgrammar
from transformers import AutoTokenizer

from diffusiongemma_vllm.cli.main import MINIATURE
from diffusiongemma_vllm.parsers.branches import GrammarError
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


@pytest.mark.parametrize("key", ["xml:lang", "a,b", "x[y]{z}", " s ", '"q"', "\\"])
def test_properties_are_written_bare(make, key):
    check = make({"f": one(key, {"type": "boolean"})})
    assert check(CALLS.format("f{KEY:true}").replace("KEY", key))
    assert not check(CALLS.format("f{}"))


TEXT, COUNT = {"type": "string"}, {"type": "integer"}
LEFT, RIGHT = one("a", TEXT), one("b", COUNT)
NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}, "v": COUNT},
        "required": ["v"]}
SHAPES = [
    ("a reference at the root", {"$ref": "#/$defs/Node", "$defs": {"Node": NODE}},
     ["{v:1}", "{next:{next:{v:1},v:2},v:3}"], ["{}", "{v:true}", "{next:{},v:1}", "{a:1}"]),
    ("two references", {"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/B"}, "B": RIGHT}},
     ["{b:1}"], ["{}", '{b:<|"|>x<|"|>}']),
    ("anyOf at the root", {"anyOf": [LEFT, RIGHT]},
     ['{a:<|"|>x<|"|>}', "{b:1}"], ["{}", "{a:1}", '{a:<|"|>x<|"|>,b:1}']),
    ("oneOf of references", {"oneOf": [{"$ref": "#/$defs/L"}, {"$ref": "#/$defs/R"}],
                             "$defs": {"L": LEFT, "R": RIGHT}},
     ["{b:1}"], ["{}", "{a:1}"]),
    ("allOf at the root", {"type": "object", "allOf": [LEFT, RIGHT]},
     ['{a:<|"|>x<|"|>,b:1}'], ["{}", "{b:1}"]),
    ("one of two required", {"type": "object", "properties": {"a": TEXT, "b": COUNT},
                             "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
     ["{b:1}", '{a:<|"|>x<|"|>}', '{a:<|"|>x<|"|>,b:1}'], ["{}"]),
    ("allOf further in", one("o", {"allOf": [LEFT, {"$ref": "#/$defs/R"}]}) | {
        "$defs": {"R": one("b", {"type": ["integer", "null"]})}},
     ['{o:{a:<|"|>x<|"|>,b:null}}'], ["{o:{b:1}}", "{o:{}}"]),
    ("the same property twice", {"allOf": [one("a", {"enum": ["x", "y"]}),
                                           one("a", {"enum": ["y", "z"]})]},
     ['{a:<|"|>y<|"|>}'], ['{a:<|"|>x<|"|>}', '{a:<|"|>z<|"|>}']),
    ("limits twice", one("a", {"allOf": [TEXT | {"maxLength": 3}, {"maxLength": 1}]}),
     ['{a:<|"|>x<|"|>}'], ['{a:<|"|>xx<|"|>}']),
    ("an object or nothing", {"type": ["object", "null"], "properties": {"b": COUNT}},
     ["{}", "{b:1}"], ["{a:1}"]),
    ("a reference to itself and more", one("a", {"$ref": "#/$defs/A"}) | {
        "$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}, TEXT]}}},
     ['{a:<|"|>x<|"|>}'], ["{a:1}"]),
    ("many items at least", one("a", {"type": "array", "items": COUNT, "minItems": 100}),
     ["{a:[" + "1," * 99 + "1]}", "{a:[" + "1," * 120 + "1]}"], ["{a:[" + "1," * 98 + "1]}"]),
    ("a whole decimal", one("a", TEXT | {"maxLength": 2.0}),
     ['{a:<|"|>xx<|"|>}'], ['{a:<|"|>xxx<|"|>}']),
    ("null is no limit", one("a", {"type": "array", "items": COUNT, "maxItems": None}),
     ["{a:[]}", "{a:[1,2]}"], []),
    ("limits without end", one("a", TEXT | {"maxLength": 10**20}), ['{a:<|"|>x<|"|>}'], []),
    ("items without end", one("a", {"type": "array", "items": COUNT, "maxItems": 10**20}),
     ["{a:[1,2]}"], []),
]  # fmt: skip


@pytest.mark.parametrize(("why", "schema", "good", "bad"), SHAPES, ids=[s[0] for s in SHAPES])
def test_schemas_of_any_shape(make, why, schema, good, bad):
    check = make({"f": schema})
    for arguments in good:
        assert check(CALLS.format("f" + arguments)), arguments
    for arguments in bad:
        assert not check(CALLS.format("f" + arguments)), arguments


DOUBLING = {f"A{n}": {"allOf": [{"$ref": f"#/$defs/A{n + 1}"}] * 2} for n in range(40)}
BRANCHING = {f"A{n}": {"anyOf": [one("x", {"$ref": f"#/$defs/A{n + 1}", "title": title})
                                 for title in ("a", "b")]} for n in range(40)}
REFUSED = [
    ("maxLength.*whole number.*2.5", one("a", TEXT | {"maxLength": 2.5})),
    ("minLength.*'3'", one("a", TEXT | {"minLength": "3"})),
    ("minItems.*-1", one("a", {"type": "array", "minItems": -1})),
    ("minItems 5 .* maxItems 2", one("a", {"type": "array", "minItems": 5, "maxItems": 2})),
    ("minLength may be", one("a", TEXT | {"minLength": 10**20})),
    ("enum has to list", one("a", {"enum": []})),
    ("inf is no JSON", one("a", {"const": float("inf")})),
    ("required is to be", {"properties": {"a": TEXT}, "required": 5}),
    ("describe an object", {"type": "string"}),
    ("describe an object", {"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}),
    ("'#/\\$defs/A' leads to itself", one("a", {"$ref": "#/$defs/A"}) | {
        "$defs": {"A": {"$ref": "#/$defs/A"}}}),
    ("leads to itself", one("a", {"$ref": "#/$defs/A"}) | {
        "$defs": {"A": one("n", {"$ref": "#/$defs/A"})}}),
    ("nothing meets", one("a", {"allOf": [TEXT, COUNT]})),
    ("half of a character", one("\ud800", TEXT)),
    ("too many alternatives", one("a", {"$ref": "#/$defs/A0", "allOf": [{}]}) | {
        "$defs": DOUBLING}),
    ("too many|more than", one("a", {"allOf": [{"$ref": "#/$defs/A0"}] * 2}) | {
        "$defs": BRANCHING}),
]  # fmt: skip


@pytest.mark.parametrize(("said", "schema"), REFUSED, ids=[r[0] for r in REFUSED])
def test_schemas_that_cannot_be_kept(said, schema):
    begin = time.perf_counter()
    with pytest.raises(GrammarError, match=f"tool 'f'.*({said})"):
        CallGrammar(48, 49, 52).of({"f": schema}, several=False)
    assert time.perf_counter() - begin < 5


def test_nesting_without_end():
    schema = {}
    for _ in range(3000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(GrammarError, match="too deep"):
        CallGrammar(48, 49, 52).of({"f": one("a", schema)}, several=False)
