"""The functions the miniature knows how to call, as OpenAI tool dictionaries."""

from dataclasses import dataclass, field
from random import Random

CITIES = """
amsterdam athens berlin boston cairo chicago dublin geneva hamburg helsinki lima lisbon london
madrid miami moscow oslo paris prague rome seoul sydney tokyo vienna zurich
""".split()
_LABELS = "bread cake eggs laundry pasta pizza rice soup tea yoga".split()
_LANGUAGES = "danish dutch english french german greek italian polish spanish thai".split()
_THINGS = "book cake coat game lamp map photo recipe song story ticket train".split()
_VERBS = "buy find open play read send show".split()
_KEYS = """
amber autumn bridge canyon cedar comet copper coral crystal delta diamond dragon ember falcon
forest galaxy harbor jungle legend lotus maple marble meadow mercury midnight mountain nebula
olive orchid panther pearl phoenix prairie rocket saturn shadow silver summer sunrise thunder
tulip valley velvet volcano willow winter
""".split()


@dataclass(frozen=True)
class Call:
    """One call: the request that asks for it, its arguments and (once made) its result."""

    name: str
    arguments: dict = field(hash=False)
    request: str
    result: str = ""

    def openai(self, number: int) -> dict:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": f"call_{number}", "type": "function", "function": function}

    def gemma(self) -> str:
        """Gemma 4's syntax: keys sorted, strings between `<|"|>`, numbers bare."""
        pairs = (
            f'{key}:<|"|>{value}<|"|>' if isinstance(value, str) else f"{key}:{value}"
            for key, value in sorted(self.arguments.items())
        )
        return "<|tool_call>call:" + self.name + "{" + ",".join(pairs) + "}<tool_call|>"


def _tool(name: str, description: str, /, **types: str) -> dict:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": value} for key, value in types.items()},
                "required": list(types),
            },
        },
    }


GET_WEATHER = _tool("get_weather", "Weather in a city", city="string")
GET_TIME = _tool("get_time", "Time in a city", city="string")
ADD = _tool("add", "Add two numbers", a="integer", b="integer")
SET_TIMER = _tool("set_timer", "Start a timer", minutes="integer", label="string")
TRANSLATE = _tool("translate", "Translate a word", word="string", language="string")


def _lookup(verb: str, thing: str) -> dict:
    """One of the 84 tools named after a verb and a thing, so that names must be read."""
    return _tool(f"{verb}_{thing}", f"{verb.capitalize()} a {thing}", name="string")


def _draw_lookup(rng: Random) -> tuple[dict, Call]:
    verb, thing, key = rng.choice(_VERBS), rng.choice(_THINGS), rng.choice(_KEYS)
    call = Call(f"{verb}_{thing}", {"name": key}, f"{verb.capitalize()} the {thing} {key}.")
    return _lookup(verb, thing), call


def draw_call(rng: Random, lookups_only: bool = False) -> tuple[dict, Call]:
    """A tool and one call of it."""
    kind = 5 if lookups_only else rng.randrange(8)
    city = rng.choice(CITIES).capitalize()
    if kind == 0:
        return GET_WEATHER, Call("get_weather", {"city": city}, f"What is the weather in {city}?")
    if kind == 1:
        return GET_TIME, Call("get_time", {"city": city}, f"What time is it in {city}?")
    if kind == 2:
        a, b = rng.randrange(100, 1000), rng.randrange(100, 1000)
        return ADD, Call("add", {"a": a, "b": b}, f"Use the tool to add {a} and {b}.")
    if kind == 3:
        minutes, label = rng.randrange(1, 60), rng.choice(_LABELS)
        arguments = {"minutes": minutes, "label": label}
        return SET_TIMER, Call("set_timer", arguments, f"Set a {minutes} minute {label} timer.")
    if kind == 4:
        word, language = rng.choice(_KEYS), rng.choice(_LANGUAGES)
        arguments = {"word": word, "language": language}
        return TRANSLATE, Call("translate", arguments, f"Translate {word} to {language}.")
    return _draw_lookup(rng)


def offer(rng: Random, wanted: list[dict], count: int) -> list[dict]:
    """`wanted` among others, `count` tools in all, in any order."""
    tools = list(wanted)
    while len(tools) < count:
        tool, _ = draw_call(rng)
        if tool not in tools:
            tools.append(tool)
    rng.shuffle(tools)
    return tools
