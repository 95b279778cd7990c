"""An answer of three canvases, as it comes: `python examples/stream.py [--url URL]`.

Without a URL it starts a server on the miniature.
"""

import argparse
import time
from contextlib import nullcontext
from types import SimpleNamespace

from openai import OpenAI

from diffusiongemma_vllm.cli.main import MINIATURE
from diffusiongemma_vllm.cli.server import serving


def stream(url: str, question: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    began = time.monotonic()
    chunks = client.chat.completions.create(
        model=client.models.list().data[0].id, stream=True, temperature=0,
        messages=[{"role": "user", "content": question}],
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    for chunk in chunks:  # a whole canvas of text comes at once
        text = chunk.choices[0].delta.content
        if text:
            print(f"[{time.monotonic() - began:5.1f} s] {text}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a running server, for example http://127.0.0.1:8000")
    parser.add_argument("--question", default="Count from 001 to 170.")
    args = parser.parse_args()
    running = nullcontext(SimpleNamespace(url=args.url)) if args.url else serving(str(MINIATURE))
    with running as server:
        stream(server.url, args.question)
