"""Keys that the schema knows: the template writes them bare, whatever is in them."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_grammar import INTEGER, STRING, Case, call, check, one
from turns import every_way

from diffusiongemma_vllm.parsers.grammar import Options
from diffusiongemma_vllm.parsers.schema import Schema

ODD = {
    "type": "object",
    "properties": {
        "xml:lang": STRING, "xml": INTEGER, "a,b": INTEGER, "filter[name]": STRING, "x{y}": STRING,
        "a=b": INTEGER, "f(x)": INTEGER, " s ": INTEGER, "'q'": STRING, "a": STRING,
        "}x": INTEGER, "a:1,xml": INTEGER, "": {"type": "object"}, ":{": STRING,
        "in": {"type": "object", "properties": {"k:v": STRING}},
        "of": {"type": "array", "items": {"$ref": "#/properties/in"}},
    },
}  # fmt: skip
KNOWN = [
    ("a colon", "{xml:lang:1,xml:2}", {"xml:lang": "1", "xml": 2}),
    ("a comma", "{xml:lang:~e~,a,b:~4~,a:~x~}", {"xml:lang": "e", "a,b": 4, "a": "x"}),
    ("brackets", "{filter[name]:1,x{y}:2,}x:3,f(x):~4~}",
     {"filter[name]": "1", "x{y}": "2", "}x": 3, "f(x)": 4}),
    ("in round brackets", "(f(x)=~1~, a=b=~2~, xml:lang=3)",
     {"f(x)": 1, "a=b": 2, "xml:lang": "3"}),
    ("blanks and quotes", "{ s :~1~,'q':2}", {" s ": 1, "'q'": "2"}),
    ("white space around", "{ xml:lang : 1 ,\n a,b : ~2~ }", {"xml:lang": "1", "a,b": 2}),
    ("JSON's quotes", '{"xml:lang":"e", \'a,b\':~1~, "xml": 2}',
     {"xml:lang": "e", "a,b": 1, "xml": 2}),
    ("quoted", "{~xml:lang~:1}", {"xml:lang": "1"}),
    ("nested", "{in:{k:v:1},of:[{k:v:2},{},{k:v:3}]}",
     {"in": {"k:v": "1"}, "of": [{"k:v": "2"}, {}, {"k:v": "3"}]}),
    ("after a bare word", "{a:one, two,xml:lang:e}", {"a": "one, two", "xml:lang": "e"}),
    ("the longest", "{a:1,xml:~7~}", {"a:1,xml": 7}),
    ("the longest of two readings", "{:{:~x~}", {":{": "x"}),
    ("not there after all", "{a:1,xm:~7~}", {"a": "1", "xm": "7"}),
    ("only half of it", "{filter:1,xm:2,a:~3~}", {"filter": 1, "xm": 2, "a": "3"}),
    ("nothing", "{}", {}),
    ("no bracket", "{xml:lang:~e~", {"xml:lang": "e"}),
    ("unlisted", "{y:1}", {"y": 1}),
]


@pytest.mark.parametrize(("why", "arguments", "wanted"), KNOWN, ids=[k[0] for k in KNOWN])
def test_keys_that_the_schema_knows(why, arguments, wanted):
    check(one(why, arguments, wanted), Options(schemas={"f": Schema.of(ODD)}))


def test_a_key_needs_its_colon():
    turn = "[call]call:f{xml:lang[/call]"
    check(Case("", turn, calls=(call("f", xml="lang"),)), Options(schemas={"f": Schema.of(ODD)}))
    check(Case("", "[call]call:f{xml:la", calls=(call("f"),)),
          Options(schemas={"f": Schema.of(ODD)}))  # fmt: skip


LETTERS = st.text(st.sampled_from("ab:,={}[]()\"'\\ \n<é😀"), max_size=6)


def hides(longer: str, key: str) -> bool:
    """Whether `key`, its colon and a value can be written as `longer` is, which then is found."""
    spelled = (longer, f"'{longer}'", json.dumps(longer, ensure_ascii=False))
    begun = (f"{key}:", f"{key.lstrip()}:")
    return any(spelling.startswith(begun) for spelling in spelled)


@st.composite
def members(draw: st.DrawFn, depth: int = 2) -> tuple[dict, dict, str]:
    """An object's schema, a value of it, and how the template writes that."""
    schema, value, written = {}, {}, []
    keys = sorted(draw(st.sets(LETTERS, max_size=5)))
    for key in keys:
        if any(hides(key, other) for other in keys):
            continue
        if depth and draw(st.booleans()):
            schema[key], value[key], text = draw(members(depth - 1))
            if draw(st.booleans()):
                schema[key] = {"type": "array", "items": schema[key]}
                value[key], text = [value[key]] * 2, f"[{text},{text}]"
        else:
            schema[key], value[key] = STRING, draw(LETTERS)
            text = f'<|"|>{value[key]}<|"|>'
        written.append(f"{key}:{text}")
    return {"type": "object", "properties": schema}, value, "{" + ",".join(written) + "}"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(members(), st.integers(0, 99))
def test_whatever_the_schema_knows_is_read_back(made, seed):
    schema, value, written = made
    turn = f"<|tool_call>call:f{written}<tool_call|>"
    turns = every_way(turn, Options(schemas={"f": Schema.of(schema)}), seed)
    for way, turn in turns.items():
        assert turn == turns["whole"], way
    assert turns["whole"].complete == [True]
    assert json.loads(turns["whole"].calls[0][1]) == value
