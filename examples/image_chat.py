"""Ask about a picture that this script draws: `python examples/image_chat.py [--url URL]`.

Without a URL it starts a server on the miniature.
"""

import argparse
import base64
from contextlib import nullcontext
from io import BytesIO
from types import SimpleNamespace

from openai import OpenAI
from PIL import Image, ImageDraw

from diffusiongemma_vllm.cli.main import MINIATURE
from diffusiongemma_vllm.cli.server import serving


def draw() -> str:
    """A red circle on white, as a data URL."""
    picture = Image.new("RGB", (192, 144), "white")
    ImageDraw.Draw(picture).ellipse((60, 36, 132, 108), fill="red")
    file = BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def ask(url: str, question: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    answer = client.chat.completions.create(
        model=client.models.list().data[0].id, temperature=0, max_tokens=64,
        messages=[{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": draw()}},
            {"type": "text", "text": question},
        ]}],
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    print(f"{answer.usage.prompt_tokens} tokens of text and picture")
    print(f"{question} -> {answer.choices[0].message.content}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a running server, for example http://127.0.0.1:8000")
    parser.add_argument("--question", default="What is drawn here?")
    args = parser.parse_args()
    running = nullcontext(SimpleNamespace(url=args.url)) if args.url else serving(str(MINIATURE))
    with running as server:
        ask(server.url, args.question)
