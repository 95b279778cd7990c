"""One request over HTTP, its answer as one text that can be compared."""

import json
from collections.abc import AsyncIterator

import httpx

from diffusiongemma_vllm.evaluation import turns

CHAT = "/v1/chat/completions"
HANG = 300.0  # seconds without a byte until a request counts as lost
# vLLM hangs up after five seconds without a request: one that is sent at that moment is lost.
IDLE = 2.0


class Refused(Exception):
    """The server answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"HTTP {status}: {text[:300]}")
        self.status = status


def client(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(
        max_connections=None, max_keepalive_connections=32, keepalive_expiry=IDLE
    )
    return httpx.AsyncClient(base_url=url, timeout=HANG, limits=limits)


async def whole(http: httpx.AsyncClient, body: dict) -> str:
    """The whole turn and why it ended.

    Raises:
        Refused: for a status other than 200.
    """
    reply = await http.post(CHAT, json=body)
    if reply.status_code != 200:
        raise Refused(reply.status_code, reply.text)
    choice = reply.json()["choices"][0]
    return _ended(turns.from_message(choice["message"]), choice["finish_reason"])


async def streamed(
    http: httpx.AsyncClient, body: dict, heard: list[dict] | None = None
) -> str:
    """The same of a stream, put together from its deltas.

    heard: the choices of its chunks are appended there.
    """
    message: dict = {"reasoning": "", "content": "", "tool_calls": []}
    finish = None
    async for choice in chunks(http, body):
        if heard is not None:
            heard.append(choice)
        delta = choice["delta"]
        for part in ("reasoning", "content"):
            message[part] += delta.get(part) or ""
        for call in delta.get("tool_calls") or ():
            if call["index"] == len(message["tool_calls"]):
                message["tool_calls"].append({"function": {"name": "", "arguments": ""}})
            function = message["tool_calls"][call["index"]]["function"]
            for part in ("name", "arguments"):
                function[part] += (call.get("function") or {}).get(part) or ""
        finish = choice.get("finish_reason") or finish
    return _ended(turns.from_message(message), finish)


async def chunks(http: httpx.AsyncClient, body: dict) -> AsyncIterator[dict]:
    """The first choice of every chunk of a stream.

    Raises:
        Refused: for a status other than 200, and for an error in the stream.
    """
    async with http.stream("POST", CHAT, json=body | {"stream": True}) as reply:
        if reply.status_code != 200:
            raise Refused(reply.status_code, (await reply.aread()).decode())
        async for line in reply.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise Refused(500, json.dumps(event["error"]))
            for choice in event["choices"][:1]:
                yield choice


def turn_of(said: str) -> str:
    """An answer without why it ended."""
    return said.rpartition(" [")[0]


def _ended(turn: str, finish: str | None) -> str:
    return f"{turn} [{finish}]"
