"""The grammar of a model turn, case by case, each read at once and cut in every manner.

In the cases below `~` stands for the string delimiter <|"|>, `[call]` for <|tool_call>, `[/call]`
for its end, `[think]` for an opened thought with its label and `[/think]` for its end.
"""

import json
from typing import Any, NamedTuple

import pytest
from turns import every_way

from diffusiongemma_vllm.parsers.grammar import Calls, Options, Start
from diffusiongemma_vllm.parsers.schema import Schema

CUT = object()  # arguments that were never finished


class Case(NamedTuple):
    """A turn, and what is in it: content, reasoning, calls."""

    why: str
    turn: str
    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, Any], ...] = ()


def call(name: str, arguments: Any = CUT, **more: Any) -> tuple[str, Any]:
    return name, more if more else arguments


def one(why: str, arguments: str, wanted: dict[str, Any]) -> Case:
    """A call of `f`, written with its brackets."""
    return Case(why, f"[call]call:f{arguments}[/call]", calls=(call("f", wanted),))


def spell(turn: str) -> str:
    for short, token in (
        ("[call]", "<|tool_call>"),
        ("[/call]", "<tool_call|>"),
        ("[think]", "<|channel>thought\n"),
        ("[/think]", "<channel|>"),
        ("~", '<|"|>'),
    ):
        turn = turn.replace(short, token)
    return turn


VALUES = [
    one("no arguments", "{}", {}),
    one("a string", "{city:~Oslo~}", {"city": "Oslo"}),
    one("an empty string", "{s:~~}", {"s": ""}),
    one("a string of blanks", "{s:~  \n ~}", {"s": "  \n "}),
    one("an integer", "{n:7}", {"n": 7}),
    one("a negative integer", "{n:-31}", {"n": -31}),
    one("a decimal", "{x:2.75}", {"x": 2.75}),
    one("an exponent", "{x:6e-3}", {"x": 0.006}),
    one("more digits than a float holds", "{n:9007199254740993}", {"n": 9007199254740993}),
    one("true and false", "{a:true,b:false}", {"a": True, "b": False}),
    one("null", "{a:null}", {"a": None}),
    one("an array of numbers", "{xs:[3,1,2]}", {"xs": [3, 1, 2]}),
    one("an array of strings", "{xs:[~a~,~b~]}", {"xs": ["a", "b"]}),
    one(
        "an array of everything",
        "{xs:[1,~1~,true,null,[],{}]}",
        {"xs": [1, "1", True, None, [], {}]},
    ),
    one("arrays in arrays", "{m:[[1],[],[2,[3]]]}", {"m": [[1], [], [2, [3]]]}),
    one("an object", "{o:{a:{b:{}}}}", {"o": {"a": {"b": {}}}}),
    one("objects in an array", "{xs:[{a:1},{a:2}]}", {"xs": [{"a": 1}, {"a": 2}]}),
    one("a member after brackets", "{a:[{}],b:~c~}", {"a": [{}], "b": "c"}),
    one("sorted or not", "{b:1,a:2}", {"b": 1, "a": 2}),
    one("brackets in a string", "{s:~}]){[(~}", {"s": "}]){[("}),
    one("a string of one bracket, then more", "{s:~}~,t:1}", {"s": "}", "t": 1}),
    one("commas and colons in a string", "{s:~a:1,b:2~}", {"s": "a:1,b:2"}),
    one("quotes and backslashes in a string", "{s:~\"\\n'~}", {"s": "\"\\n'"}),
    one("line breaks and tabs in a string", "{s:~a\n\tb\r~}", {"s": "a\n\tb\r"}),
    one("control characters in a string", "{s:~\x00\x1f\x7f~}", {"s": "\x00\x1f\x7f"}),
    one("half a marker in a string", "{s:~<|tool_~}", {"s": "<|tool_"}),
    one("a string that ends like a marker", "{s:~a<~}", {"s": "a<"}),
    one("every script", "{s:~Ünïcødé 東京 🎉~}", {"s": "Ünïcødé 東京 🎉"}),
    one("an end marker in a string", "{s:~a[/call]b~}", {"s": "a<tool_call|>b"}),
    one(
        "an end marker after a bracket in a string", "{s:~a}[/call] b~}", {"s": "a}<tool_call|> b"}
    ),
    one("a whole call in a string", "{s:~[call]call:g{}~}", {"s": "<|tool_call>call:g{}"}),
    one("a thought in a string", "{s:~[think]x[/think]~}", {"s": "<|channel>thought\nx<channel|>"}),
    one("the end of a turn in a string", "{s:~a<turn|>b~}", {"s": "a<turn|>b"}),
    one("quoted keys", "{~a b~:1,~c:d~:2,~~:3}", {"a b": 1, "c:d": 2, "": 3}),
    one("keys with dots, dashes, digits", "{a.b-c:1,2:3}", {"a.b-c": 1, "2": 3}),
    one("keys in other scripts", "{größe:1,名:2}", {"größe": 1, "名": 2}),
    one("keys with blanks inside", "{first name:~A~}", {"first name": "A"}),
    one(
        "white space everywhere",
        "{ a : 1 ,\n b : [ 1 , 2 ] , c : { } }",
        {"a": 1, "b": [1, 2], "c": {}},
    ),
]

REPAIRS = [
    one("a comma too many", "{a:1,}", {"a": 1}),
    one("a comma too many in an array", "{a:[1,2,]}", {"a": [1, 2]}),
    one("commas in a row", "{a:1,,b:2}", {"a": 1, "b": 2}),
    one("Python's literals", "{a:None,b:True,c:False}", {"a": None, "b": True, "c": False}),
    one("JSON's quotes", '{a:"x, y}",b:["z"]}', {"a": "x, y}", "b": ["z"]}),
    one("JSON's escapes", '{a:"x \\"y\\" \\u00e9\\n"}', {"a": 'x "y" é\n'}),
    one("JSON's keys", '{"a":1, "b":"c"}', {"a": 1, "b": "c"}),
    one("Python's quotes", "{a:'x, \"y\"',b:1}", {"a": 'x, "y"', "b": 1}),
    one("an apostrophe between Python's quotes", "{a:'it's'}", {"a": "it's"}),
    one("bare words", "{a:word,b:two words,c:1}", {"a": "word", "b": "two words", "c": 1}),
    one("bare words in an array", "{a:[red,green]}", {"a": ["red", "green"]}),
    one("a bare address", "{u:https://a.b/c?d=(e)}", {"u": "https://a.b/c?d=(e)"}),
    one("a bare word with a comma", "{a:Rome, Italy}", {"a": "Rome, Italy"}),
    one("no number", "{zip:01234,v:1.2.3}", {"zip": "01234", "v": "1.2.3"}),
    one("a string that was never opened", "{a:Rome~,b:1}", {"a": "Rome", "b": 1}),
    one("the same with commas", "{a:Rome, Italy, EU~,b:1}", {"a": "Rome, Italy, EU", "b": 1}),
    one("a string that was never closed", "{a:~ls -l}", {"a": "ls -l"}),
    one("the same inside brackets", "{a:[{b:~x}]}", {"a": [{"b": "x"}]}),
    one("no closing bracket", "{a:1", {"a": 1}),
    one("several missing", "{a:[1,{b:~c~", {"a": [1, {"b": "c"}]}),
    one("a closing bracket too many", "{a:1}}", {"a": 1}),
    one("a value missing", "{a:,b:1}", {"a": None, "b": 1}),
    one("the first of two equal keys", "{a:1,a:[~x~],b:2}", {"a": 1, "b": 2}),
    one("round brackets", "(a:1,b:~x(y)~)", {"a": 1, "b": "x(y)"}),
    one("keyword arguments", "(a=1, b=~x~)", {"a": 1, "b": "x"}),
    Case("no brackets", "[call]call:now[/call]", calls=(call("now", {}),)),
    Case("no 'call'", "[call]:f{a:1}[/call]", calls=(call("f", a=1),)),
    Case("neither", "[call]f{a:1}[/call]", calls=(call("f", a=1),)),
    Case("blanks around", "[call] call: f {a:1} [/call]", calls=(call("f", a=1),)),
    Case("an opening marker twice", "[call][call]call:f{}[/call]", calls=(call("f", {}),)),
    Case("an end marker twice", "[call]call:f{}[/call][/call]ok", "ok", calls=(call("f", {}),)),
    Case("two calls in one envelope", "[call]call:f{a:1}\ncall:g{}[/call]",
         calls=(call("f", a=1), call("g", {}))),
    Case("no end marker before the next call", "[call]call:f{}[call]call:g{}[/call]",
         calls=(call("f", {}), call("g", {}))),
    Case("no end marker before text", "[call]call:f{}\nDone.", "\nDone.", calls=(call("f", {}),)),
    Case("a response instead of an end marker", "[call]call:f{}<|tool_response>",
         calls=(call("f", {}),)),
    Case("an unclosed string, then a call", "[call]call:f{a:~x}[/call][call]call:g{}[/call]",
         calls=(call("f", a="x"), call("g", {}))),
]  # fmt: skip

TURNS = [
    Case("nothing", ""),
    Case("text", "Hello, world.", "Hello, world."),
    Case("only white space", " \n", " \n"),
    Case("a marker's beginning at the end", "see <|tool_ca", "see <|tool_ca"),
    Case("things that look like markers", "<tool_call> <|x|> </think> <turn>",
         "<tool_call> <|x|> </think> <turn>"),
    Case("call syntax without markers", "call:f{a:1} {b: [2]}", "call:f{a:1} {b: [2]}"),
    Case("a thought", "[think]Hm.\n[/think]Yes.", "Yes.", "Hm."),
    Case("an empty thought", "[think][/think]Yes.", "Yes."),
    Case("a thought that ends in a blank line", "[think]a\n\n[/think]b", "b", "a\n"),
    Case("a thought without a label", "<|channel>Hm.[/think]Yes.", "Yes.", "Hm."),
    Case("a label without a line break", "<|channel>thought[/think]Yes.", "Yes."),
    Case("a word that begins like the label", "<|channel>thoughtful[/think]Yes.", "Yes.",
         "thoughtful"),
    Case("another channel", "<|channel>plan\nGo.[/think]Yes.", "Yes.", "plan\nGo."),
    Case("a thought after text", "One. [think]Two.[/think]Three.", "One. Three.", "Two."),
    Case("two thoughts", "[think]One.[/think][think]Two.[/think]Three.", "Three.", "One.Two."),
    Case("a thought opened twice", "[think]One.[think]Two.[/think]Three.", "Three.", "One.Two."),
    Case("a thought cut off", "[think]Let me s", "", "Let me s"),
    Case("a thought cut off in its label", "<|channel>thought"),
    Case("a thought that a call ends", "[think]Now.\n[call]call:f{}[/call]", "", "Now.",
         (call("f", {}),)),
    Case("a thought that the turn ends", "[think]Hm.<turn|>", "", "Hm."),
    Case("a closing marker alone", "Yes.[/think]", "Yes."),
    Case("structure in a thought", '[think]{"a": [1]} <b> call:f{}[/think]', "",
         '{"a": [1]} <b> call:f{}'),
    Case("a delimiter in a thought", "[think]say ~hi~[/think]", "", 'say "hi"'),
    Case("a delimiter in text", "say ~hi~", 'say "hi"'),
    Case("thought, text, call", "[think]T[/think]C [call]call:f{}[/call]", "C ", "T",
         (call("f", {}),)),
    Case("call, thought, text", "[call]call:f{}[/call][think]T[/think]C", "C", "T",
         (call("f", {}),)),
    Case("white space between parts", "[think]T[/think]\n\n[call]call:f{}[/call]\n", "", "T",
         (call("f", {}),)),
    Case("text around a call", "a [call]call:f{}[/call] b", "a  b", calls=(call("f", {}),)),
    Case("text between calls", "[call]call:f{}[/call]and[call]call:g{}[/call]", "and",
         calls=(call("f", {}), call("g", {}))),
    Case("the same call twice", "[call]call:f{a:1}[/call][call]call:f{a:1}[/call]",
         calls=(call("f", a=1), call("f", a=1))),
    Case("thought, call, thought, call",
         "[think]A[/think][call]call:f{}[/call][think]B[/think][call]call:g{}[/call]", "", "AB",
         (call("f", {}), call("g", {}))),
    Case("names with dots, dashes, colons", "[call]call:a.b-c:d_1{}[/call]",
         calls=(call("a.b-c:d_1", {}),)),
    Case("names that begin with a digit or a dash",
         "[call]call:2fa_verify{a:1}[/call][call]:-x{}[/call][call]call: 7[/call]",
         calls=(call("2fa_verify", a=1), call("-x", {}), call("7", {}))),
    Case("a name in other scripts", "[call]call:größe-名-😀🏳️‍🌈{}[/call]",
         calls=(call("größe-名-😀🏳️‍🌈", {}),)),
    Case("the end of a turn", "Yes.<turn|>", "Yes."),
    Case("what fills the canvas after it", "Yes.<turn|>\n<eos><pad><pad>", "Yes."),
    Case("the end after a call", "[call]call:f{}[/call]<|tool_response>", calls=(call("f", {}),)),
]  # fmt: skip

LEFT_ALONE = [
    Case("prose in an envelope", "[call]I will call it.[/call] ok", "I will call it. ok"),
    Case("a name and prose", "[call]call:f and then[/call]", "call:f and then"),
    Case("a name that is none", "[call]call:?up{}[/call]", "call:?up{}"),
    Case("a digit and no 'call:'", "[call]7up{}[/call]", "7up{}"),
    Case("an array for arguments", "[call]call:f[1,2][/call]", "call:f[1,2]"),
    Case("code in an envelope", '[call]print(f("x"))[/call]', 'print(f("x"))'),
    Case("an empty envelope", "a[call][/call]b", "ab"),
    Case("a delimiter in no call", "[call]no ~a~[/call]", 'no <|"|>a<|"|>'),
    Case("between good calls", "[call]call:f{}[/call][call]oops[/call][call]call:g{}[/call]",
         "oops", calls=(call("f", {}), call("g", {}))),
    Case("a marker alone", "[call]"),
    Case("cut off in the name", "[call]call:ge", "call:ge"),
    Case("cut off after the bracket", "[call]call:f{", calls=(call("f"),)),
    Case("cut off in a key", "[call]call:f{ci", calls=(call("f"),)),
    Case("cut off in a string", "[call]call:f{a:~rm -rf /t", calls=(call("f"),)),
    Case("cut off in a number", "[call]call:f{a:1", calls=(call("f"),)),
    Case("cut off in an array", "[call]call:f{a:[~x~,", calls=(call("f"),)),
    Case("cut off by the end of the turn", "[call]call:f{a:~x~<turn|>", calls=(call("f"),)),
    Case("the second of two cut off", "[call]call:f{}[/call][call]call:f{a:~",
         calls=(call("f", {}), call("f"))),
    Case("a thought in the middle", "[call]call:f{a:1,[think]T[/think]", "", "T", (call("f"),)),
    Case("two values side by side", "[call]call:f{a:~x~ ~y~}[/call]", '<|"|>y<|"|>}',
         calls=(call("f"),)),
    Case("the wrong bracket", "[call]call:f{a:[1}[/call]z", "}z", calls=(call("f"),)),
    Case("too deep for any reader of JSON", "[call]call:f{a:" + "[" * 300, "[" * 101,
         calls=(call("f"),)),
]  # fmt: skip


def check(case: Case, options: Options | None = None) -> None:
    turns = every_way(spell(case.turn), options)
    for way, turn in turns.items():
        assert turn == turns["whole"], way
    turn = turns["whole"]
    assert turn.content == case.content
    assert turn.reasoning == case.reasoning
    assert [name for name, _ in turn.calls] == [name for name, _ in case.calls]
    for (_, arguments), complete, (_, wanted) in zip(
        turn.calls, turn.complete, case.calls, strict=True
    ):
        assert complete is (wanted is not CUT)
        if complete:
            read = json.loads(arguments)
            assert read == wanted and repr(read) == repr(wanted)
        else:
            with pytest.raises(ValueError):
                json.loads(arguments)


@pytest.mark.parametrize("case", VALUES + REPAIRS + TURNS + LEFT_ALONE, ids=lambda c: c.why)
def test_grammar(case):
    check(case)


STARTS = [
    (Start.TEXT, Case("a label is text", "thought\nYes.", "thought\nYes.")),
    (Start.MAYBE_LABEL, Case("a bare label", "thought\nHm.[/think]Yes.", "Yes.", "Hm.")),
    (Start.MAYBE_LABEL, Case("a word like it", "thoughts matter", "thoughts matter")),
    (Start.MAYBE_LABEL, Case("only the word", "thought", "thought")),
    (Start.MAYBE_LABEL, Case("a usual thought", "[think]Hm.[/think]Yes.", "Yes.", "Hm.")),
    (Start.MAYBE_LABEL, Case("no thought", "Yes. thought\n", "Yes. thought\n")),
    (Start.LABEL, Case("the label comes", "thought\nHm.[/think]Yes.", "Yes.", "Hm.")),
    (Start.THOUGHT, Case("goes on thinking", "Hm.[/think]Yes.", "Yes.", "Hm.")),
    (Start.THOUGHT, Case("ends it at once", "[/think]Yes.", "Yes.")),
    (Start.THOUGHT, Case("opens it again", "[think]Hm.[/think]Yes.", "Yes.", "Hm.")),
    (Start.THOUGHT, Case("calls", "[call]call:f{}[/call]", calls=(call("f", {}),))),
    (Start.THOUGHT, Case("never ends", "Hm", "", "Hm")),
]


@pytest.mark.parametrize(("start", "case"), STARTS, ids=lambda x: getattr(x, "why", str(x)))
def test_where_the_prompt_leaves_the_turn(start, case):
    check(case, Options(start=start))


OPAQUE = "a [call]call:f{a:~x[/call]~}[/call] b"


@pytest.mark.parametrize(
    ("calls", "content"),
    [
        (Calls.TEXT, 'a call:f{a:<|"|>x<tool_call|><|"|>} b'),
        (Calls.RAW, spell(OPAQUE)),
    ],
)
def test_calls_left_as_text(calls, content):
    check(Case("", OPAQUE, content), Options(calls=calls))


def test_thoughts_left_as_text():
    turn = "[think]T[/think]C [call]call:f{}[/call]"
    check(Case("", turn, spell("[think]T[/think]C "), calls=(call("f", {}),)),
          Options(thoughts=False))  # fmt: skip


TREE = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "child": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
}
REFS = {
    "$defs": {"Id": {"type": "string"}, "Point": {"properties": {"x": {"type": "integer"}}}},
    "properties": {
        "id": {"$ref": "#/$defs/Id"},
        "ids": {"type": "array", "items": {"$ref": "#/$defs/Id"}},
        "at": {"allOf": [{"$ref": "#/$defs/Point"}], "description": "where"},
    },
}


def typed(name: str, schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {name: schema}}


STRING, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
TYPED = [
    ("a number for a string", typed("s", STRING), "{s:123}", {"s": "123"}),
    ("its spelling stays", typed("s", STRING), "{s:1.50}", {"s": "1.50"}),
    ("a boolean for a string", typed("s", STRING), "{s:true}", {"s": "true"}),
    ("null for a string is null", typed("s", STRING), "{s:null}", {"s": None}),
    ("quoted digits for a string", typed("s", STRING), "{s:~42~}", {"s": "42"}),
    ("quoted digits for an integer", typed("n", INTEGER), "{n:~42~}", {"n": 42}),
    ("a whole decimal for an integer", typed("n", INTEGER), "{n:5.0}", {"n": 5}),
    ("a broken one stays", typed("n", INTEGER), "{n:5.5}", {"n": 5.5}),
    ("leading zeros for an integer", typed("n", INTEGER), "{n:007}", {"n": 7}),
    ("a decimal for a number", typed("x", NUMBER), "{x:5.0}", {"x": 5.0}),
    ("a quoted number", typed("x", NUMBER), "{x:~ 2.5 ~}", {"x": 2.5}),
    ("a sloppy number", typed("x", NUMBER), "{x:.5}", {"x": 0.5}),
    ("no number at all", typed("x", NUMBER), "{x:~many~}", {"x": "many"}),
    ("a quoted boolean", typed("b", {"type": "boolean"}), "{b:~True~}", {"b": True}),
    ("a quoted null", typed("z", {"type": "null"}), "{z:~null~}", {"z": None}),
    ("a quoted array", typed("a", {"type": "array"}), "{a:~[1, 2]~}", {"a": [1, 2]}),
    ("a quoted object", typed("o", {"type": "object"}), '{o:~{"a": 1}~}', {"o": {"a": 1}}),
    ("a nullable string", typed("s", {"type": ["string", "null"]}), "{s:~null~}", {"s": "null"}),
    ("string or integer, bare", typed("v", {"type": ["string", "integer"]}), "{v:4}", {"v": 4}),
    ("string or integer, quoted", typed("v", {"anyOf": [STRING, INTEGER]}), "{v:~4~}", {"v": "4"}),
    ("an enum of strings", typed("v", {"enum": ["1", "2"]}), "{v:1}", {"v": "1"}),
    ("an enum of integers", typed("v", {"enum": [1, 2]}), "{v:~1~}", {"v": 1}),
    ("a constant", typed("v", {"const": "7"}), "{v:7}", {"v": "7"}),
    ("an array's items", typed("a", {"type": "array", "items": STRING}), "{a:[1,~2~]}",
     {"a": ["1", "2"]}),
    ("a tuple", typed("a", {"prefixItems": [STRING, INTEGER], "items": STRING}),
     "{a:[1,~2~,3]}", {"a": ["1", 2, "3"]}),
    ("additional properties", {"additionalProperties": STRING}, "{a:1}", {"a": "1"}),
    ("pattern properties", {"patternProperties": {"^x": STRING}}, "{x1:1,y:1}",
     {"x1": "1", "y": 1}),
    ("properties below anyOf", {"anyOf": [typed("a", STRING), typed("b", INTEGER)]},
     "{a:1,b:~2~}", {"a": "1", "b": 2}),
    ("references", REFS, "{id:1,ids:[2],at:{x:~3~}}",
     {"id": "1", "ids": ["2"], "at": {"x": 3}}),
    ("a schema in itself", TREE, "{name:1,child:{name:2,child:null}}",
     {"name": "1", "child": {"name": "2", "child": None}}),
    ("a reference to nowhere", typed("a", {"$ref": "#/nowhere"}), "{a:1}", {"a": 1}),
    ("a key that is not listed", typed("a", STRING), "{b:1}", {"b": 1}),
    ("nullable", typed("s", {**INTEGER, "nullable": True}), "{s:~null~}", {"s": None}),
    ("true for a schema", {"properties": {"a": True}}, "{a:1}", {"a": 1}),
    ("no schema", None, "{a:~1~,b:1}", {"a": "1", "b": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("why", "schema", "arguments", "wanted"), TYPED, ids=[t[0] for t in TYPED])
def test_types_follow_the_schema(why, schema, arguments, wanted):
    check(one(why, arguments, wanted), Options(schemas={"f": Schema.of(schema)}))
