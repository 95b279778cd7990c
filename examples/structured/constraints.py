"""A hundred constraints, each with a prompt: 300 requests at three temperatures.

Those of `SUITE` have the form of JSON-Schema-Test-Suite (draft 2020-12): a schema with a value that
is valid and one that is not, filed under the suite's file for the keyword. They are our own.
"""

from typing import Any, NamedTuple

TEMPERATURES = (0.0, 0.7, 1.5)
PERSON = "Write a JSON object: name is nina, color is grey, age is 55."
CITY = "Write a JSON object: city is paris, food is rice."
PROMPTS = (
    PERSON, CITY, "What is 27 + 38?", "Reverse these words: boat lamp salt", "Count from 10 to 25."
)


class Case(NamedTuple):
    """One constraint, as vLLM's `StructuredOutputsParams` takes it.

    bounded: every text that it allows is short, so that any model ends it.
    suite: (file, valid, invalid) of a case in the suite's form.
    """

    name: str
    constraint: dict[str, Any]
    prompt: str
    bounded: bool
    suite: tuple[str, Any, Any] | None = None


def obj(_optional: tuple[str, ...] = (), **properties: Any) -> dict:
    """An object of these properties and no others; all must be there but the optional ones."""
    return {
        "type": "object", "properties": properties, "additionalProperties": False,
        "required": [key for key in properties if key not in _optional],
    }


def arr(items: Any, least: int, most: int) -> dict:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def whole(least: int, most: int) -> dict:
    return {"type": "integer", "minimum": least, "maximum": most}


def short(most: int) -> dict:
    return {"type": "string", "maxLength": most}


TEXT, INT, NUM, BOOL = ({"type": kind} for kind in ("string", "integer", "number", "boolean"))
WORD = {"type": "string", "pattern": "^[a-z]{1,8}$"}
COLOR = {"enum": ["grey", "red", "blue"]}
WHO = obj(name=WORD, color=COLOR, age=whole(0, 120))

# What the miniature would write anyway: (prompt, schema).
FITS = [
    (PERSON, WHO),
    (PERSON, obj(name=TEXT, color=TEXT, age=INT)),
    (PERSON, {"type": "object"}),
    (CITY, obj(city=TEXT, food=TEXT)),
    (CITY, obj(city=WORD, food={"enum": ["bread", "rice"]})),
    ("Write a JSON object: animal is wolf, food is soup, name is leo.",
     obj(animal=TEXT, food=TEXT, name=TEXT)),
    ("Write a JSON object: color is gold, animal is owl.",
     obj(color=short(12), animal=short(12))),
    ("Write a JSON object: name is victor, age is 31.", obj(name=TEXT, age=whole(18, 99))),
    ("Write a JSON object: food is honey, color is pink, animal is cat, name is rosa.",
     obj(food=TEXT, color=TEXT, animal=TEXT, name=TEXT)),
    ("Write a JSON object: name is hugo, city is oslo.",
     {"type": "object", "additionalProperties": WORD, "minProperties": 1, "maxProperties": 3}),
]

# (schema, bounded)
NESTED = [
    (obj(who=WHO), True),
    (obj(a=obj(b=obj(c=obj(d=BOOL)))), True),
    (obj(who=obj(name=TEXT, home=obj(city=TEXT))), False),
    (obj(people=arr(WHO, 1, 3)), True),
    (obj(x=obj(y=arr(arr(whole(0, 9), 1, 2), 1, 2)), z=BOOL), True),
    (obj(("note",), id=whole(1, 999), note=short(20), tags=arr(short(6), 0, 3)), True),
    (obj(order=obj(items=arr(obj(sku=WORD, count=whole(1, 9)), 1, 2), paid=BOOL)), True),
    (obj(matrix=arr(arr(INT, 2, 2), 2, 2)), False),
]
ARRAYS = [
    (arr(whole(0, 99), 3, 3), True), (arr(COLOR, 1, 4), True), (arr(BOOL, 2, 5), True),
    (arr(short(5), 0, 3), True), (arr(arr(BOOL, 1, 2), 1, 2), True),
    ({"type": "array", "items": INT}, False),
    ({"type": "array", "prefixItems": [WORD, whole(0, 9)], "items": False, "minItems": 2}, True),
    (arr({"anyOf": [WORD, whole(0, 9)]}, 2, 3), True),
]
ENUMS = [
    ({"enum": [1, 2, 3]}, True), ({"enum": ["a", 1, None, True]}, True),
    ({"const": "fixed"}, True), ({"const": {"a": [1, {"b": None}]}}, True),
    ({"enum": ["two words", 'a "quoted" one', "back\\slash"]}, True),
    (obj(kind={"const": "dog"}, size={"enum": ["s", "m", "l"]}), True),
    ({"enum": [[1, 2], {"x": 1}, ""]}, True),
]
NUMBERS = [
    (INT, False), (NUM, False), (whole(-5, 5), True), (whole(100, 250), True),
    ({"type": "integer", "exclusiveMinimum": 7, "exclusiveMaximum": 10}, True),
    ({"type": "number", "minimum": 0, "maximum": 1}, False),
    (obj(low=whole(0, 9), high=whole(90, 99), off=whole(-99, -90)), True),
    ({"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 95}, True),
]
STRINGS = [
    (TEXT, False), (short(10), True), ({"type": "string", "minLength": 3, "maxLength": 6}, True),
    (WORD, True),
    ({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}, True),
    ({"type": "string", "pattern": "^(yes|no|maybe)$"}, True),
    (obj(key={"type": "string", "pattern": "^k[0-9]{1,3}$"}, text=short(15)), True),
]
FORMATS = """
date time date-time duration email hostname ipv4 ipv6 uuid uri
""".split()
SHORT_FORMATS = ("date", "ipv4", "uuid")
UNIONS = [
    ({"type": ["integer", "null", "boolean"]}, False), ({"anyOf": [WHO, {"type": "null"}]}, True),
    ({"oneOf": [obj(a=BOOL), obj(b=whole(0, 9))]}, True), ({"anyOf": [WORD, whole(0, 9)]}, True),
    (obj(value={"anyOf": [arr(BOOL, 1, 2), obj(ok=BOOL), {"const": "none"}]}), True),
    ({"allOf": [obj(a=BOOL)]}, True),
    ({"anyOf": [obj(kind={"const": "circle"}, r=whole(1, 9)),
                obj(kind={"const": "box"}, w=whole(1, 9), h=whole(1, 9))]}, True),
]
TREE = obj(("child",), value=whole(0, 9), child={"$ref": "#/$defs/tree"})
LIST = {"anyOf": [{"type": "null"}, obj(head=BOOL, tail={"$ref": "#/$defs/list"})]}
RECURSION = [
    {"$ref": "#/$defs/tree", "$defs": {"tree": TREE}},
    {"$ref": "#/$defs/list", "$defs": {"list": LIST}},
    obj(("next",), name=WORD, next={"$ref": "#"}),
    {"$defs": {"n": {"anyOf": [whole(0, 9), arr({"$ref": "#/$defs/n"}, 1, 2)]}},
     "$ref": "#/$defs/n"},
    obj(tree={"$ref": "#/$defs/t"}) | {
        "$defs": {"t": obj(("left", "right"), v=BOOL, left={"$ref": "#/$defs/t"},
                           right={"$ref": "#/$defs/t"})}},
]
UNICODE = [
    obj(größe=whole(1, 300)), obj(**{"名前": WORD, "色": COLOR}), obj(**{"café ☕": BOOL}),
    obj(**{"ключ": {"enum": ["да", "нет"]}}), obj(**{"👍🏽": whole(0, 9)}),
    obj(**{'quo"te': BOOL, "back\\slash": BOOL, "tab\t": BOOL}),
]
UNBOUNDED = ("additionalProperties", "patternProperties", "minProperties")
# (file of the suite, schema, valid, invalid)
SUITE = [
    ("required", obj(foo=BOOL, bar=BOOL), {"foo": True, "bar": False}, {"foo": True}),
    ("properties", obj(("foo", "bar"), foo=whole(0, 9), bar=WORD), {"foo": 1, "bar": "b"},
     {"foo": "x"}),
    ("additionalProperties", {**obj(a=BOOL), "additionalProperties": whole(0, 9)}, {"a": True},
     {"a": True, "b": "x"}),
    ("patternProperties",
     {"type": "object", "patternProperties": {"^f[0-9]$": whole(0, 9)},
      "additionalProperties": False, "minProperties": 1, "maxProperties": 2},
     {"f1": 3}, {"f1": "x"}),
    ("minProperties", {"type": "object", "additionalProperties": whole(0, 9), "minProperties": 1,
                       "maxProperties": 2}, {"a": 1}, {}),
    ("items", arr({"type": "null"}, 1, 3), [None], [1]),
    ("prefixItems", {"type": "array", "prefixItems": [BOOL, whole(0, 9)], "minItems": 2,
                     "maxItems": 2}, [True, 1], [1, True]),
    ("allOf", {"allOf": [obj(a=BOOL, b=BOOL), {"properties": {"b": {"const": True}}}]},
     {"a": True, "b": True}, {"a": True, "b": False}),
    ("anyOf", {"type": "integer", "anyOf": [whole(90, 99), whole(0, 9)]}, 7, 30),
    ("ref", {"$ref": "#/$defs/a", "maximum": 3, "$defs": {"a": whole(0, 9)}}, 2, 5),
    ("anchor", {"$ref": "#small", "$defs": {"a": {"$anchor": "small"} | whole(0, 9)}}, 1, 10),
    ("type", {"type": "string", "enum": ["a", 1, "b"]}, "a", 1),
    ("minLength", {"minLength": 2, "type": ["string", "boolean"], "maxLength": 4}, "foo", "f"),
    ("multipleOf", {"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 70}, 14, 15),
]
REGEXES = [
    "[0-9]{3}-[0-9]{4}", "[A-Za-z]{1,12}", "[^a-z]{4}", "#[0-9a-f]{6}", "é+ü",
    "(19|20)[0-9]{2}",
]
CHOICES = [["yes", "no"], ["red", "green", "blue"], ["a", "ab", "abc"], ["日本", "中国", "<eos>"]]


def cases() -> list[Case]:
    """All of them; the prompts of one group take turns."""
    found = [Case(f"fits/{i}", {"json": schema}, prompt, False)
             for i, (prompt, schema) in enumerate(FITS)]

    def add(group: str, entries: list[tuple[dict, bool]], files: list[tuple] | None = None) -> None:
        for i, (constraint, bounded) in enumerate(entries):
            suite = files[i] if files else None
            name = f"{group}/{suite[0] if suite else i}"
            found.append(Case(name, constraint, PROMPTS[i % len(PROMPTS)], bounded, suite))

    def schemas(entries: list[tuple[dict, bool]]) -> list[tuple[dict, bool]]:
        return [({"json": schema}, bounded) for schema, bounded in entries]

    for group, entries in (("nested", NESTED), ("arrays", ARRAYS), ("enums", ENUMS),
                           ("numbers", NUMBERS), ("strings", STRINGS), ("unions", UNIONS)):
        add(group, schemas(entries))
    add("formats", schemas([({"type": "string", "format": name}, name in SHORT_FORMATS)
                            for name in FORMATS]))
    add("recursion", schemas([(schema, False) for schema in RECURSION]))
    add("unicode", schemas([(schema, True) for schema in UNICODE]))
    add("suite", schemas([(schema, file not in UNBOUNDED) for file, schema, _, _ in SUITE]),
        [(file, valid, invalid) for file, _, valid, invalid in SUITE])
    add("regex", [({"regex": pattern}, pattern != "é+ü") for pattern in REGEXES])
    add("choice", [({"choice": options}, True) for options in CHOICES])
    return found
