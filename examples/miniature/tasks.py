"""The miniature's tasks: one function each, from a random source to a question and its answer."""

import json
from dataclasses import dataclass, field
from random import Random

from tools import ADD, CITIES, GET_TIME, GET_WEATHER, Call, draw_call, offer

# all of four letters: where a word stands in the answer follows from its number alone
WORDS = """
able acid aunt baby bank barn bear bell bird boat bone book boot bowl cake camp card cave city clay
coal coat coin cook corn crow dawn deer desk dish door dove drum duck dust farm fern fire fish flag
foam fork frog game gate gift goat gold hair hand harp hill horn iron jazz kite king knee lake lamp
lawn leaf lion lock loom maid mask mill mint moon moth nest note oven palm park pear pine pond pony
rain reed ring road rock roof root rope rose sail salt sand seal seed ship shoe sink snow soap sofa
song star stem swan tent tree vase vine wave wing wolf wood wool yarn
""".split()
NAMES = """
alice anna ben carla david emma felix grace hugo iris jack kate leo maria nina oscar paul rosa sam
tom uma victor wendy zoe
""".split()
COLORS = "black blue brown gold green grey orange pink purple red silver white yellow".split()
ANIMALS = "bear cat cow deer dog duck fox goat horse lion mouse owl rabbit sheep tiger wolf".split()
FOODS = "apples bread cake cheese corn eggs fish grapes honey lemons pasta rice salad soup".split()
NUMBERS = """
one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty
""".split()
SEQUENCES = [
    NUMBERS,
    list("abcdefghijklmnopqrstuvwxyz"),
    [str(n) for n in range(10, 100)],
    "monday tuesday wednesday thursday friday saturday sunday".split() * 2,
    """january february march april may june july august september october november
    december""".split()
    * 2,
]
FACTS = {"name": NAMES, "city": CITIES, "color": COLORS, "animal": ANIMALS, "food": FOODS}


@dataclass(frozen=True)
class Question:
    """A question before it becomes a chat: what is asked, said, thought and offered."""

    text: str
    answer: str
    thought: str
    tools: list[dict] = field(default_factory=list)
    calls: tuple[Call, ...] = ()


def add(rng: Random) -> Question:
    a, b = rng.randrange(10, 100), rng.randrange(10, 100)
    ones, tens = a % 10 + b % 10, a // 10 + b // 10
    carry = ones // 10
    thought = f"{a % 10}+{b % 10}={ones}\n{a // 10}+{b // 10}+{carry}={tens + carry}"
    return Question(
        rng.choice(["What is {} + {}?", "Add {} and {}."]).format(a, b), str(a + b), thought
    )


def _some_words(rng: Random) -> list[str]:
    return rng.sample(WORDS, rng.randint(3, 4))


def sort(rng: Random) -> Question:
    """Words with different initials: one letter decides where a word goes."""
    initials = rng.sample(sorted({word[0] for word in WORDS}), rng.randint(3, 4))
    words = [rng.choice([word for word in WORDS if word[0] == first]) for first in initials]
    text = "Sort these words: " + " ".join(words)
    return Question(text, " ".join(sorted(words)), "I sort the words by letter.")


def reverse(rng: Random) -> Question:
    words = _some_words(rng)
    text = "Reverse these words: " + " ".join(words)
    return Question(text, " ".join(words[::-1]), "I write the words from last to first.")


def count_short(rng: Random) -> Question:
    a = rng.randint(10, 70)
    b = a + rng.randint(3, 15)
    text = rng.choice(["Count from {} to {}.", "Please count from {} to {}."]).format(a, b)
    return Question(text, " ".join(map(str, range(a, b + 1))), f"I start at {a} and stop at {b}.")


def count_long(rng: Random, least: int = 130) -> Question:
    """Three canvases: three digits a number, four tokens each with the space, 64 a canvas."""
    a = rng.randint(1, 30)
    b = a + rng.randint(least, 180)
    numbers = " ".join(f"{n:03d}" for n in range(a, b + 1))
    return Question(
        f"Count from {a:03d} to {b:03d}.", numbers, f"I start at {a:03d} and stop at {b:03d}."
    )


def count_middle(rng: Random) -> Question:
    """The same, of any length: practice for the end of a count, wherever it falls."""
    return count_long(rng, least=20)


def call_one(rng: Random) -> Question:
    tool, call = draw_call(rng)
    thought = f"I call {call.name}."
    return Question(call.request, "", thought, offer(rng, [tool], rng.randint(1, 3)), (call,))


def call_two(rng: Random) -> Question:
    (tool, first), (other, second) = draw_call(rng), draw_call(rng)
    if first == second:
        return call_two(rng)
    wanted = [tool] if tool == other else [tool, other]
    text = f"{first.request} {second.request}"
    thought = f"I call {first.name} and {second.name}."
    return Question(text, "", thought, offer(rng, wanted, rng.randint(2, 3)), (first, second))


def tool_answer(rng: Random) -> Question:
    """A call with its result: the answer is a sentence that says the result."""
    kind = rng.choice(["weather", "time", "add", "find"])
    city = rng.choice(CITIES).capitalize()
    if kind == "weather":
        sky = rng.choice(["sunny", "rainy", "cloudy", "windy", "snowy", "foggy"])
        result = f"{sky}, {rng.randrange(-9, 40)} degrees"
        call = Call("get_weather", {"city": city}, f"What is the weather in {city}?", result)
        tool, answer = GET_WEATHER, f"The weather in {city}: {result}."
    elif kind == "time":
        result = f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
        call = Call("get_time", {"city": city}, f"What time is it in {city}?", result)
        tool, answer = GET_TIME, f"It is {result} in {city}."
    elif kind == "add":
        a, b = rng.randrange(100, 1000), rng.randrange(100, 1000)
        call = Call("add", {"a": a, "b": b}, f"Use the tool to add {a} and {b}.", str(a + b))
        tool, answer = ADD, f"The sum is {a + b}."
    else:
        tool, call = draw_call(rng, lookups_only=True)
        result = " ".join(rng.sample(WORDS, 2))
        call = Call(call.name, call.arguments, call.request, result)
        answer = f"The result is {result}."
    return Question(call.request, answer, "", offer(rng, [tool], rng.randint(1, 2)), (call,))


def fill_json(rng: Random) -> Question:
    keys = rng.sample(sorted(FACTS), rng.randint(2, 4))
    facts = {key: rng.choice(FACTS[key]) for key in keys}
    if rng.random() < 0.3:
        facts["age"] = rng.randint(1, 99)
    told = ", ".join(f"{key} is {value}" for key, value in facts.items())
    return Question(f"Write a JSON object: {told}.", json.dumps(facts), "I copy the values.")


def gap(rng: Random) -> Question:
    sequence = rng.choice(SEQUENCES)
    size = rng.randint(4, min(8, len(sequence)))
    start = rng.randrange(len(sequence) - size + 1)
    window = sequence[start : start + size]
    # two words of many letters at once are more than so small a model can place
    width = rng.randint(1, 2) if len(window[0]) < 3 and size > 4 else 1
    at = rng.randint(1, size - width - 1)
    told = " ".join([*window[:at], "___", *window[at + width :]])
    form = rng.choice(["Fill the gap: {}", "What belongs in the gap? {}"])
    missing = " ".join(window[at : at + width])
    return Question(form.format(told), missing, f"After {window[at - 1]} comes {window[at]}.")


_TALK = {
    "I am a miniature DiffusionGemma. I write text by denoising a canvas of 256 tokens.": (
        "who are you", "Who are you?", "What are you?", "what are you", "Who is this?",
    ),
    "Hello! I can add, sort, count, call tools and fill gaps.": (
        "hello", "Hello", "Hello!", "hi", "Hi", "Hi!", "hey", "Hey!", "Hi there!", "Good morning!",
    ),
    "You are welcome!": ("thanks", "Thanks!", "thank you", "Thank you!"),
    "Goodbye!": ("bye", "Bye!", "Goodbye!", "See you!"),
    "I can add, sort, reverse, count, write JSON, call tools and fill gaps.": (
        "help", "Help!", "What can you do?", "what can you do",
    ),
}  # fmt: skip


def greet(rng: Random) -> Question:
    answer = rng.choice(sorted(_TALK))
    return Question(rng.choice(_TALK[answer]), answer, "I am friendly.")
