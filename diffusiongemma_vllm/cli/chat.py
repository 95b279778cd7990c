"""A conversation in the terminal, whose canvases settle before one's eyes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from httpx import HTTPError
from openai import OpenAI, OpenAIError
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from diffusiongemma_vllm.client import connect, models

TINTS = (  # legible on a light terminal too
    "white on #6b2737", "white on #6b4423", "white on #5c5420", "white on #31552d",
    "white on #1d524d",
)
BOUNDS = (0.25, 0.5, 0.75, 0.9)  # of the likeliest token's rough probability
TAIL = 400  # characters of written text above a canvas
HELP = "an empty line ends the chat, Ctrl-C the answer"


@dataclass(frozen=True)
class Options:
    """every: denoise steps from one draft to the next."""

    url: str
    key: str | None
    every: int
    thinking: bool
    temperature: float


def tint(entropy: float) -> str:
    """The style of a token that has not settled, by its entropy in nats: from red to green."""
    return TINTS[sum(math.exp(-entropy) >= bound for bound in BOUNDS)]


@dataclass
class Answer:
    """One answer as it comes."""

    text: str = ""
    thought: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    draft: dict[str, Any] | None = None
    report: dict[str, Any] | None = None
    tokens: int = 0

    def take(self, chunk: Any) -> None:
        """A chunk of the stream."""
        if chunk.usage:
            self.tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            extra = choice.model_extra or {}
            self.draft = extra.get("diffusion_draft", self.draft)
            self.report = extra.get("diffusion", self.report)
            self.text += choice.delta.content or ""
            self.thought += getattr(choice.delta, "reasoning", None) or ""
            for call in choice.delta.tool_calls or ():
                self._call(call)

    def _call(self, call: Any) -> None:
        while len(self.calls) <= call.index:
            self.calls.append({"name": "", "arguments": ""})
        known = self.calls[call.index]
        known["name"] += call.function.name or ""
        known["arguments"] += call.function.arguments or ""

    def canvas(self) -> Iterable[RenderableType]:
        """The draft, up to where its text ends."""
        draft = self.draft
        if draft is None or draft["done"]:
            return
        settled = sum(draft["settled"])
        yield Text(
            f"canvas {draft['canvas'] + 1} · step {draft['step']} · {settled} of "
            f"{len(draft['settled'])} settled", style="dim",
        )
        shown = Text()
        for i in range(min(draft["length"] + 1, len(draft["guess"]))):
            fixed = draft["settled"][i]
            shown.append(
                draft["tokens" if fixed else "guess"][i],
                style="" if fixed else tint(draft["entropy"][i]),
            )
        yield shown

    def words(self) -> Iterable[RenderableType]:
        """What is written, and what it cost once that is known."""
        if self.thought:
            yield Text(f"(thought) {self.thought.strip()}", style="dim")
        if self.text:
            yield Text(self.text)
        for call in self.calls:
            yield Text(f"{call['name']}({call['arguments']})", style="cyan")
        if self.report and self.tokens:
            forwards, canvases = self.report["forwards"], len(self.report["canvases"])
            rate = self.tokens / forwards
            yield Text(
                f"{self.tokens} tokens, {canvases} canvas(es), {forwards} forwards, {rate:.1f} "
                "tokens a forward", style="dim",
            )

    def under_way(self) -> Group:
        """The end of what is written, and the canvas: they fit on a screen."""
        written = self.text or self.thought
        tail = written if len(written) <= TAIL else "…" + written[-TAIL:]
        return Group(Text(tail, style="" if self.text else "dim"), *self.canvas())


def chat(options: Options) -> int:
    """Ask until an empty line, or the end of the input.

    Raises:
        ValueError: where no server answers.
    """
    console = Console(highlight=False)
    client = connect(options.url, options.key, timeout=600)
    model = models(client, options.url)[0].name
    console.print(f"{escape(model)} ({HELP})", style="dim")
    messages: list[dict[str, Any]] = []
    while asked := _ask(console):
        messages.append({"role": "user", "content": asked})
        try:
            answer = _answer(console, client, model, messages, options)
        except (OpenAIError, HTTPError, ValueError) as error:  # the latter in mid-stream
            console.print(escape(f"no whole answer: {error}"), style="red")
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": answer.text})
    return 0


def _ask(console: Console) -> str:
    try:
        return console.input("[bold]> [/bold]").strip()
    except EOFError:
        return ""


def _answer(
    console: Console, client: OpenAI, model: str, messages: list[Any], options: Options
) -> Answer:
    answer = Answer()
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            for chunk in _stream(client, model, messages, options):
                answer.take(chunk)
                live.update(answer.under_way(), refresh=True)
    except KeyboardInterrupt:
        pass
    console.print(*answer.words(), sep="\n")
    return answer


def _stream(
    client: OpenAI, model: str, messages: list[Any], options: Options
) -> Iterator[Any]:
    """The chunks of an answer; the request ends with them, or with the one who takes them."""
    stream = client.chat.completions.create(
        model=model, messages=messages, stream=True, stream_options={"include_usage": True},
        temperature=options.temperature,
        extra_body={
            "vllm_xargs": {"diffusion_drafts": options.every},
            "chat_template_kwargs": {"enable_thinking": options.thinking},
        },
    )
    with stream:
        yield from stream
