"""Ask about a video that this script makes: `python examples/video_chat.py [--url URL]`.

Without a URL it starts a server on the miniature.
"""

import argparse
import base64
from contextlib import nullcontext
from io import BytesIO
from types import SimpleNamespace

import av
from openai import OpenAI
from PIL import Image, ImageDraw

from diffusiongemma_vllm.cli.main import MINIATURE
from diffusiongemma_vllm.cli.server import serving


def film() -> str:
    """Two seconds of MP4 in which a red circle turns blue, as a data URL."""
    file = BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 192, 144, "yuv420p"
        for k in range(48):
            picture = Image.new("RGB", (192, 144), "white")
            ImageDraw.Draw(picture).ellipse((60, 36, 132, 108), fill="red" if k < 24 else "blue")
            output.mux(stream.encode(av.VideoFrame.from_image(picture)))
        output.mux(stream.encode())
    return f"data:video/mp4;base64,{base64.b64encode(file.getvalue()).decode()}"


def ask(url: str, question: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    answer = client.chat.completions.create(
        model=client.models.list().data[0].id, temperature=0, max_tokens=64,
        messages=[{"role": "user", "content": [
            {"type": "video_url", "video_url": {"url": film()}},
            {"type": "text", "text": question},
        ]}],
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    print(f"{answer.usage.prompt_tokens} tokens of text and frames")
    print(f"{question} -> {answer.choices[0].message.content}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a running server, for example http://127.0.0.1:8000")
    parser.add_argument("--question", default="What changes?")
    args = parser.parse_args()
    running = nullcontext(SimpleNamespace(url=args.url)) if args.url else serving(str(MINIATURE))
    with running as server:
        ask(server.url, args.question)
