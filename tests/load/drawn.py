"""Small pictures for requests, as data URLs."""

import base64
from io import BytesIO
from random import Random

from PIL import Image, ImageDraw


def some(random: Random, count: int) -> list[str]:
    """Different pictures of different sizes and formats."""
    return [_url(_picture(random), random.choice(("PNG", "JPEG", "WEBP"))) for _ in range(count)]


def _picture(random: Random) -> Image.Image:
    size = random.randrange(24, 160), random.randrange(24, 160)
    picture = Image.new("RGB", size, _colour(random))
    draw = ImageDraw.Draw(picture)
    for _ in range(4):
        x, y = random.randrange(size[0]), random.randrange(size[1])
        shape = random.choice((draw.ellipse, draw.rectangle))
        shape((x, y, x + size[0] // 3, y + size[1] // 3), fill=_colour(random))
    return picture


def _colour(random: Random) -> tuple[int, int, int]:
    return random.randrange(256), random.randrange(256), random.randrange(256)


def _url(picture: Image.Image, kind: str) -> str:
    file = BytesIO()
    picture.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
