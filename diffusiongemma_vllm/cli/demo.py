"""The whole way once: start a server, ask it through the OpenAI client, stop it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai import OpenAI
from rich.console import Console
from rich.markup import escape

from diffusiongemma_vllm.cli.server import CARD_FLAGS, Server

HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # OWNER/NAME
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city",
        "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
        },
    },
}


@dataclass(frozen=True)
class Question:
    text: str
    thinking: bool = False
    tools: list[dict[str, Any]] = field(default_factory=list)


QUESTIONS = (
    Question("What is 27 + 38?", thinking=True),
    Question("Count from 001 to 170."),
    Question("What is the weather in paris?", tools=[WEATHER]),
)


def demo(model: str, *, verbose: bool) -> int:
    """Serve ``model`` with the model card's flags and ask QUESTIONS.

    Raises:
        ValueError: for what is neither a checkpoint's folder nor a name on the hub.
        NotStarted: where the server does not start.
    """
    if not (Path(model) / "config.json").is_file() and not HUB.fullmatch(model):
        raise ValueError(f"--model {model} is no folder with a checkpoint, nor a name on the hub")
    console = Console(highlight=False)
    console.print(f"vllm serve {model} {' '.join(CARD_FLAGS)}", style="dim", soft_wrap=True)
    with Server(model) as server:
        with console.status("starting vLLM …") as status:
            for waited in server.wait():
                status.update(f"starting vLLM … {waited:.0f} s (log: {server.log})")
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=600)
        for question in QUESTIONS:
            _ask(console, client, server, question)
        if verbose:
            console.print(escape(server.log.read_text(errors="replace")), style="dim")
    console.print("stopped.", style="dim")
    return 0


def _ask(console: Console, client: OpenAI, server: Server, question: Question) -> None:
    before, began = server.metrics(), time.monotonic()
    options: dict[str, Any] = {"tools": question.tools} if question.tools else {}
    reply = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": question.text}],
        extra_body={"chat_template_kwargs": {"enable_thinking": question.thinking}},
        temperature=0, **options,
    )
    seconds, after = time.monotonic() - began, server.metrics()
    message = reply.choices[0].message
    console.print(f"\n[bold]{escape(question.text)}[/bold]")
    thought = getattr(message, "reasoning", None)
    if thought:
        console.print(f"(thought) {escape(thought.strip())}", style="dim")
    if message.content:
        console.print(escape(message.content.strip()), style="green")
    for call in message.tool_calls or []:
        console.print(f"{call.function.name}({escape(call.function.arguments)})", style="green")

    def spent(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    steps = spent("vllm:diffusion_num_denoising_steps_total")
    canvases = spent("vllm:diffusion_num_committed_tokens_total") / 256
    tokens = reply.usage.completion_tokens if reply.usage else 0
    forwards = steps + max(canvases - 1, 0)
    if steps and canvases:
        console.print(
            f"{tokens} tokens, {canvases:.0f} canvas(es), {steps / canvases:.1f} denoise steps a "
            f"canvas, {tokens / forwards:.1f} tokens a forward, {seconds:.1f} s",
            style="cyan",
        )
