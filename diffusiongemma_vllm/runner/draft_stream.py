"""Drafts over HTTP: chunks without text between those with text, on the same stream.

A draft is the field ``diffusion_draft`` of a choice, never of its ``delta``, whose fields clients
add up.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusiongemma_vllm.compat import ours, patch
from diffusiongemma_vllm.runner.drafts import KEY
from diffusiongemma_vllm.runner.listening import ASKED, Draft, heard_by, listener


class Speller:
    """Tokens as text, each spelled once."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.known: dict[int, str] = {}

    def spell(self, tokens: list[int]) -> list[str]:
        """Each token by itself; one that is a part of a character is U+FFFD."""
        for token in {*tokens} - self.known.keys():
            self.known[token] = self.tokenizer.decode([token], skip_special_tokens=False)
        return [self.known[token] for token in tokens]

    def told(self, draft: Draft) -> dict[str, Any]:
        """What the client reads."""
        place = next((i for i, one in enumerate(draft.guess) if one in draft.ends), None)
        text = self.tokenizer.decode(draft.guess[:place], skip_special_tokens=False)
        return {
            "canvas": draft.canvas, "step": draft.step, "rerolls": draft.rerolls,
            "done": draft.done, "text": text,
            "length": len(draft.guess) if place is None else place,
            "tokens": self.spell(draft.tokens),
            "guess": self.spell(draft.guess), "settled": draft.settled,
            "entropy": [round(value, 3) for value in draft.entropy],
        }


@dataclass
class Shape:
    """The chunks of one stream.  body: what a choice of a chunk has beside its index."""

    head: Mapping[str, Any]
    body: Mapping[str, Any]
    speller: Speller
    opens: int = 0  # choices that a first chunk names, for clients that begin with choice 0
    counts: bool = False  # whether a first chunk says how long the prompt is, as vLLM's does

    def opening(self, draft: Draft) -> str:
        prompt = draft.prompt_tokens
        usage = {"prompt_tokens": prompt, "completion_tokens": 0, "total_tokens": prompt}
        choices = [{"index": i} for i in range(self.opens)]
        return self.chunk(choices, **({"usage": usage} if self.counts else {}))

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> str:
        whole = {**self.head, "choices": [{**self.body, **choice} for choice in choices], **more}
        return f"data: {json.dumps(whole, ensure_ascii=False)}\n\n"


@dataclass
class Mail:
    """What waits to be sent on one stream: events, drafts, at last None or an error."""

    queue: asyncio.Queue[str | Draft | BaseException | None] = field(default_factory=asyncio.Queue)

    def __call__(self, draft: Draft) -> None:
        self.queue.put_nowait(draft)

    async def pump(self, stream: AsyncIterator[str]) -> None:
        try:
            async for event in stream:
                self.queue.put_nowait(event)
        except BaseException as error:  # a stream that is cancelled ends this one too
            self.queue.put_nowait(error)
        else:
            self.queue.put_nowait(None)

    async def merged(self, stream: AsyncIterator[str], shape: Shape, several: int) -> (
        AsyncIterator[str]
    ):
        """``stream`` with the drafts in it.  several: choices of each of its prompts."""
        pump = asyncio.create_task(self.pump(stream))
        opened = not shape.opens
        try:
            while (item := await self.queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, str):
                    opened = True
                    yield item
                    continue
                if not opened:
                    yield shape.opening(item)
                    opened = True
                index = item.index + several * _prompt(item.request_id)
                yield shape.chunk([{"index": index, KEY: shape.speller.told(item)}])
        finally:
            pump.cancel()


def _prompt(request_id: str) -> int:
    """Completions name the engine's requests by their prompt's place: cmpl-ID-PLACE."""
    return int(request_id.rpartition("-")[2]) if request_id.startswith("cmpl-") else 0


def asks(request: Any) -> bool:
    """Whether a streamed HTTP request asks for drafts."""
    return bool(request.stream and (request.vllm_xargs or {}).get(ASKED))


def carry(serving: type, create: str, stream: str, shape: Any) -> None:
    """Send drafts on what the method ``stream`` yields, for requests that ``create`` takes.

    shape: makes the ``Shape`` of the arguments of ``stream``.
    Removal: when vLLM's streams carry what a model tells of text that has not settled.
    """

    def make_create(original: Any) -> Any:
        async def create_listening(
            self: Any, request: Any, *args: Any, **kwargs: Any
        ) -> Any:
            if not (ours(self.model_config) and asks(request)):
                return await original(self, request, *args, **kwargs)
            with heard_by(Mail()):
                return await original(self, request, *args, **kwargs)

        return create_listening

    def make_stream(original: Any) -> Any:
        def stream_with_drafts(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            events = original(self, request, *args, **kwargs)
            mail = listener()
            if not isinstance(mail, Mail):
                return events
            return mail.merged(events, shape(self, request, *args, **kwargs), request.n or 1)

        return stream_with_drafts

    patch(serving, create, make_create)
    patch(serving, stream, make_stream)


def install() -> None:
    """In the API server."""
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.entrypoints.serve.utils.api_utils import should_include_usage

    def chat(
        self: Any, request: Any, results: Any, request_id: str, model: str, conversation: Any,
        tokenizer: Any, *args: Any, **kwargs: Any,
    ) -> Shape:
        head = {"id": request_id, "object": "chat.completion.chunk", "created": int(time.time()),
                "model": model}
        body = {"delta": {"content": ""}, "logprobs": None, "finish_reason": None}
        _, counts = should_include_usage(request.stream_options, self.enable_force_include_usage)
        return Shape(head, body, Speller(tokenizer), opens=request.n or 1, counts=counts)

    def completion(
        self: Any, request: Any, inputs: Any, results: Any, request_id: str, created: int,
        model: str, *args: Any, **kwargs: Any,
    ) -> Shape:
        head = {"id": request_id, "object": "text_completion", "created": created, "model": model}
        body = {"text": "", "logprobs": None, "finish_reason": None}
        return Shape(head, body, Speller(kwargs["tokenizer"]))

    carry(OpenAIServingChat, "create_chat_completion", "chat_completion_stream_generator", chat)
    carry(OpenAIServingCompletion, "create_completion", "completion_stream_generator", completion)
