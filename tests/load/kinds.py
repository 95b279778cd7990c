"""Kinds of requests: each draws its bodies and knows how to ask one and what to make of it.

To add one, write a class that is a ``Kind`` and put it into ``KINDS``.
"""

import asyncio
import json
from random import Random
from typing import Protocol

import ask
import drawn
import httpx
import told
from ask import Refused
from bodies import BODIES
from record import Outcome

from diffusiongemma_vllm.evaluation.heldout import DATA

CHATS = [
    json.loads(line)
    for line in (DATA / "heldout/test.jsonl").read_text(encoding="utf-8").splitlines()
]
Found = tuple[Outcome, str]  # with what a bad outcome was


class Kind(Protocol):
    """share: of all requests.  drawn: kinds that have this alike have the same bodies.
    compared: is there one right answer?"""

    name: str
    share: float
    drawn: str
    compared: bool

    def bodies(self, random: Random, count: int) -> list[dict]: ...

    async def ask(self, http: httpx.AsyncClient, body: dict, alone: str | None) -> Found:
        """alone: the answer to the same request when nothing else runs."""
        ...


def compared(said: str, alone: str | None) -> Found:
    if said == alone:
        return Outcome.RIGHT, ""
    return Outcome.WRONG, f"{said!r}, alone {alone!r}"


class Chats:
    """Held-out chats of some tasks, answered as a whole, at their own temperatures."""

    compared = True
    style = "chat"

    def __init__(self, name: str, share: float, tasks: tuple[str, ...], stream: bool = False):
        self.name, self.share, self.tasks, self.stream = name, share, tasks, stream
        self.drawn = f"{self.style} {tasks}"

    def bodies(self, random: Random, count: int) -> list[dict]:
        rows = random.sample([row for row in CHATS if row["task"] in self.tasks], count)
        return [self.body(json.loads(row["chat"]), random) for row in rows]

    def body(self, chat: dict, random: Random) -> dict:
        thinking = {"enable_thinking": chat["enable_thinking"]}
        body = {"messages": chat["messages"], "chat_template_kwargs": thinking,
                "seed": random.randrange(2**31)}
        return body | ({"tools": chat["tools"]} if chat["tools"] else {})

    async def ask(self, http: httpx.AsyncClient, body: dict, alone: str | None) -> Found:
        said = await (ask.streamed if self.stream else ask.whole)(http, body)
        return compared(said, alone)


class Json(Chats):
    """Questions that must be answered by a grammar."""

    style = "json"
    SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}},
              "required": ["city"], "additionalProperties": False}

    def body(self, chat: dict, random: Random) -> dict:
        schema = {"name": "city", "schema": self.SCHEMA}
        return super().body(chat, random) | {
            "response_format": {"type": "json_schema", "json_schema": schema}, "max_tokens": 64,
        }


class Options(Chats):
    """Chats with sampling parameters, several answers not among them."""

    style = "options"
    CHOICES = (
        {"temperature": 0}, {"temperature": 1.5, "top_p": 0.9}, {"top_k": 5}, {"min_p": 0.05},
        {"repetition_penalty": 1.1}, {"logprobs": True, "top_logprobs": 2}, {"max_tokens": 3},
        {"stop": ["e"]}, {"vllm_xargs": {"diffusion_max_steps": 2}},
    )

    def body(self, chat: dict, random: Random) -> dict:
        return super().body(chat, random) | random.choice(self.CHOICES)


class Pictures(Chats):
    """The same with a picture or two around the question, a few of which several requests share.

    What the miniature sees in them is for ``tests/server/test_seeing.py``: here it must say the
    same as alone.
    """

    style = "pictures"
    FEW = {"max_tokens": 40, "vllm_xargs": {"diffusion_max_steps": 8}}

    def bodies(self, random: Random, count: int) -> list[dict]:
        urls = drawn.some(random, count)
        bodies = super().bodies(random, count)
        for body in bodies:
            *before, last = body["messages"]
            parts = [{"type": "text", "text": last["content"]}]
            for url in random.choices(urls, k=random.randint(1, 2)):
                part = {"type": "image_url", "image_url": {"url": url}}
                parts.insert(random.randint(0, len(parts)), part)
            body["messages"] = [*before, last | {"content": parts}]
        return [body | self.FEW for body in bodies]


class Drafts(Chats):
    """Streams with drafts of every, every second or every third step."""

    async def ask(self, http: httpx.AsyncClient, body: dict, alone: str | None) -> Found:
        every, choices = body["seed"] % 3 + 1, []
        drafts = {"vllm_xargs": {"diffusion_drafts": every}}
        said = await ask.streamed(http, body | drafts, choices)
        fault = told.fault(choices, every, ask.turn_of(said))
        return (Outcome.WRONG, fault) if fault else compared(said, alone)


class Vanishing(Chats):
    """Streams, half of them with drafts, whose client goes away after a chunk or two."""

    compared = False

    async def ask(self, http: httpx.AsyncClient, body: dict, alone: str | None) -> Found:
        left = body["seed"] % 3
        drafts = {"vllm_xargs": {"diffusion_drafts": 1}} if body["seed"] % 2 else {}
        async for _ in ask.chunks(http, body | drafts):
            left -= 1
            if left < 0:
                break
        return Outcome.LEFT, ""


class Aborted(Chats):
    """Requests whose client goes away before there is an answer, at any moment."""

    compared = False

    async def ask(self, http: httpx.AsyncClient, body: dict, alone: str | None) -> Found:
        wait = body["seed"] % 1000 / 1000
        try:
            async with asyncio.timeout(wait):
                await ask.whole(http, body)
        except TimeoutError:
            pass
        return Outcome.LEFT, ""


class Hostile:
    """Requests that must be refused with a sentence, and hurt nobody: all there are."""

    name, share, drawn, compared = "hostile", 0.2, "hostile", False

    def bodies(self, random: Random, count: int) -> list[dict]:
        return BODIES

    async def ask(self, http: httpx.AsyncClient, body: dict, alone: str | None) -> Found:
        reply = await http.post(
            body.get("path", ask.CHAT), content=body["content"],
            headers={"Content-Type": "application/json"},
        )
        if 400 <= reply.status_code < 500 and len(reply.text) > 10:
            return Outcome.REFUSED, ""
        if reply.status_code >= 500:
            raise Refused(reply.status_code, f"{body}: {reply.text}")
        return Outcome.WRONG, f"HTTP {reply.status_code} to {body}"


SHORT = ("add", "add_think", "sort", "reverse", "gap", "fill_json", "count_short")
LONG = ("count_long",)
TOOLS = ("call_one", "call_two", "tool_answer")
KINDS: tuple[Kind, ...] = (
    Chats("chat", 0.12, SHORT),
    Chats("long", 0.08, LONG),
    Chats("tools", 0.08, TOOLS),
    Chats("stream", 0.08, SHORT + LONG, stream=True),
    Chats("stream tools", 0.05, TOOLS, stream=True),
    Options("options", 0.08, SHORT),
    Json("json", 0.05, ("fill_json",)),
    Pictures("pictures", 0.06, SHORT),
    Pictures("stream pictures", 0.04, SHORT, stream=True),
    Drafts("drafts", 0.06, SHORT + LONG, stream=True),
    Vanishing("vanishing", 0.05, SHORT + LONG),
    Aborted("aborted", 0.05, SHORT + LONG),
    Hostile(),
)
