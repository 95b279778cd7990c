"""Pictures that the miniature is asked about: one function a task, drawn with Pillow.

    figure   a circle, square, triangle or cross in one of eight colours   -> "a red circle"
    dots     one to nine dots                                              -> "5"
    number   three digits                                                  -> "417"
    change   a film of two frames in which colour or shape changes         -> "red to blue"

All have SIZE pixels, so that each has 7 x 9 soft tokens. As in data.py the split is by a hash: of
what is drawn, place and size included.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from random import Random

from data import render
from PIL import Image, ImageDraw, ImageFont
from tokens import encode

from diffusiongemma_vllm.media.pixels import Patches, Tiling, patches

SIZE, TOKENS, GRID = (192, 144), 70, (7, 9)
TILING = Tiling(positions=256)
COLOURS = {
    "red": (220, 30, 30), "green": (30, 150, 50), "blue": (40, 70, 220), "yellow": (235, 205, 30),
    "black": (15, 15, 15), "purple": (140, 50, 170), "orange": (245, 140, 20),
    "brown": (120, 75, 40),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross")


@dataclass(frozen=True)
class Seen:
    """A question about pictures.  facts: what is drawn, by which the split is made."""

    task: str
    question: str
    answer: str
    pictures: tuple[Image.Image, ...]
    facts: tuple

    @property
    def held_out(self) -> bool:
        return sha256(repr(self.facts).encode()).digest()[0] % 16 == 0

    @property
    def prompt(self) -> str:
        """The rendered prompt, with ``<|image|>`` or ``<|video|>`` for what is seen."""
        kind = "video" if self.task == "change" else "image"
        parts = [{"type": kind}, {"type": "text", "text": self.question}]
        return render([{"role": "user", "content": parts}], [], False)

    def cut(self) -> list[Patches]:
        return [patches(picture, TOKENS, TILING) for picture in self.pictures]


def _place(rng: Random, size: int) -> tuple[int, int]:
    return rng.randrange(4, SIZE[0] - size - 4), rng.randrange(4, SIZE[1] - size - 4)


def _draw(shape: str, colour: str, at: tuple[int, int], size: int) -> Image.Image:
    picture = Image.new("RGB", SIZE, "white")
    draw, fill, (x, y), end = ImageDraw.Draw(picture), COLOURS[colour], at, size
    if shape == "circle":
        draw.ellipse((x, y, x + end, y + end), fill)
    elif shape == "square":
        draw.rectangle((x, y, x + end, y + end), fill)
    elif shape == "triangle":
        draw.polygon([(x + end // 2, y), (x, y + end), (x + end, y + end)], fill)
    else:
        arm = end // 3
        draw.rectangle((x + arm, y, x + end - arm, y + end), fill)
        draw.rectangle((x, y + arm, x + end, y + end - arm), fill)
    return picture


def figure(rng: Random) -> Seen:
    shape, colour, size = rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.randrange(40, 100)
    at = _place(rng, size)
    question = rng.choice(["What is drawn here?", "What is this?"])
    facts = (shape, colour, at, size)
    return Seen("figure", question, f"a {colour} {shape}", (_draw(*facts),), facts)


def dots(rng: Random) -> Seen:
    """Dots in cells of 3 x 3, so that none touches another."""
    count, colour, radius = rng.randint(1, 9), rng.choice(list(COLOURS)), rng.randint(9, 15)
    picture = Image.new("RGB", SIZE, "white")
    places = []
    for cell in rng.sample(range(9), count):
        x = cell % 3 * 64 + rng.randrange(radius, 64 - radius)
        y = cell // 3 * 48 + rng.randrange(radius, 48 - radius)
        places.append((x, y))
        box = (x - radius, y - radius, x + radius, y + radius)
        ImageDraw.Draw(picture).ellipse(box, COLOURS[colour])
    question = rng.choice(["How many dots are there?", "Count the dots."])
    return Seen("dots", question, str(count), (picture,), (colour, radius, *places))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def number(rng: Random) -> Seen:
    digits, size = f"{rng.randrange(1000):03d}", rng.randrange(64, 92)
    at = rng.randrange(4, 30), rng.randrange(4, 140 - size)
    picture = Image.new("RGB", SIZE, "white")
    ImageDraw.Draw(picture).text(at, digits, "black", _font(size))
    question = rng.choice(["What number is this?", "Read the number."])
    return Seen("number", question, digits, (picture,), (digits, size, at))


def change(rng: Random) -> Seen:
    """The same figure twice, its colour or its shape another."""
    shape, colour, size = rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.randrange(50, 100)
    at = _place(rng, size)
    if rng.random() < 0.5:
        other = rng.choice([each for each in COLOURS if each != colour])
        then, answer = (shape, other), f"{colour} to {other}"
    else:
        other = rng.choice([each for each in SHAPES if each != shape])
        then, answer = (other, colour), f"{shape} to {other}"
    frames = _draw(shape, colour, at, size), _draw(*then, at, size)
    return Seen("change", "What changes?", answer, frames, (shape, colour, *then, at, size))


TASKS = {"figure": figure, "dots": dots, "number": number, "change": change}


def stream(seed: int) -> Iterator[Seen]:
    """Training pictures for ever; numbers, the hardest, twice as often."""
    rng = Random(f"pictures-{seed}")
    while True:
        name = rng.choices(list(TASKS), [1, 1, 2, 1])[0]
        seen = TASKS[name](rng)
        if not seen.held_out:
            yield seen


def heldout(count: int) -> list[Seen]:
    """The fixed test set, balanced over the tasks."""
    rng, found = Random("pictures-test"), {name: [] for name in TASKS}
    share = -(-count // len(TASKS))
    for name, make in TASKS.items():
        while len(found[name]) < share:
            seen = make(rng)
            if seen.held_out:
                found[name].append(seen)
    return [seen for row in zip(*found.values(), strict=True) for seen in row][:count]


def expanded(prompt: str, tokens: int = GRID[0] * GRID[1]) -> tuple[list[int], list[int]]:
    """Token ids of a prompt as the processor expands it, and where its pictures' tokens begin."""
    image = f"<|image>{'<|image|>' * tokens}<image|>"
    frame = f"<|image>{'<|video|>' * tokens}<image|>"
    prompt = prompt.replace("<|image|>", image)
    ids = encode(prompt.replace("<|video|>", f"00:00 {frame} 00:01 {frame}"))
    begin = encode("<|image>")[0]
    return ids, [at + 1 for at, token in enumerate(ids) if token == begin]
