"""Four places where vLLM 0.32's handlers mistake a call that is cut off or resumed.

Each function is idempotent and leaves every other model's responses as they are.  They go when vLLM
reports `length` for a cut call without streaming, and orders a delta's parts as generated.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

from diffusiongemma_vllm.compat import patch


def install() -> None:
    """All of them; called when the API server composes our parser."""
    report_cut_calls()
    show_cut_calls_to_anthropic()
    resume_calls_first()
    resume_calls_first_for_anthropic()


def is_whole(arguments: str) -> bool:
    """Whether a call's arguments are complete: those of a cut call are no JSON."""
    try:
        json.loads(arguments)
    except ValueError:
        return False
    return True


def report_cut_calls() -> None:
    """Chat completions, not streamed: a call cut by the token limit is no `tool_calls` finish."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat

    from diffusiongemma_vllm.parsers.parser import TurnParser

    def make(original: Any) -> Any:
        async def chat_completion_full_generator(
            self: Any, request: Any, result_generator: AsyncIterator[Any], *args: Any, **kwargs: Any
        ) -> Any:
            if not (self.parser_cls and issubclass(self.parser_cls, TurnParser)):
                return await original(self, request, result_generator, *args, **kwargs)
            reasons: dict[int, str | None] = {}

            async def noted() -> AsyncIterator[Any]:
                async for result in result_generator:
                    reasons.update({o.index: o.finish_reason for o in result.outputs})
                    yield result

            response = await original(self, request, noted(), *args, **kwargs)
            if isinstance(response, ChatCompletionResponse):
                for choice in response.choices:
                    calls = choice.message.tool_calls
                    cut = bool(calls) and not is_whole(calls[-1].function.arguments)
                    if cut and reasons.get(choice.index) == "length":
                        choice.finish_reason = "length"
            return response

        return chat_completion_full_generator

    patch(OpenAIServingChat, "chat_completion_full_generator", make)


def show_cut_calls_to_anthropic() -> None:
    """Anthropic messages, not streamed: a tool_use block has no place for half an object.

    vLLM fails the request there; the call's text becomes text instead.
    """
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages

    def make(original: Any) -> Any:
        def messages_full_converter(self: Any, generator: Any) -> Any:
            message = generator.choices[0].message
            cut = [c.function for c in message.tool_calls if not is_whole(c.function.arguments)]
            if cut:
                text = "".join(c.name + c.arguments for c in cut)
                message.content = (message.content or "") + text
                message.tool_calls = [
                    c for c in message.tool_calls if is_whole(c.function.arguments)
                ]
            return original(self, generator)

        return messages_full_converter

    patch(AnthropicServingMessages, "messages_full_converter", make)


def resume_calls_first() -> None:
    """Responses, streamed: the rest of an open call goes before the text that came after it.

    vLLM puts text first, which closes the call, and fails on the rest of it.
    """
    from vllm.entrypoints.openai.responses import serving

    def make(original: Any) -> Any:
        def split_delta(delta: Any) -> list[Any]:
            parts = original(delta)
            return sorted(parts, key=lambda p: not (p.tool_calls and p.tool_calls[0].id is None))

        return split_delta

    patch(serving, "split_delta", make)


def resume_calls_first_for_anthropic() -> None:
    """Anthropic messages, streamed: the same for a thought after the rest of an open call.

    vLLM opens the block of the thought first and drops what then comes for the call.
    """
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages

    from diffusiongemma_vllm.parsers.parser import TurnParser

    def make(original: Any) -> Any:
        def message_stream_converter(self: Any, generator: AsyncIterator[str]) -> Any:
            parser_cls = getattr(self, "parser_cls", None)
            if not (parser_cls and issubclass(parser_cls, TurnParser)):
                return original(self, generator)

            async def parted() -> AsyncIterator[str]:
                async for item in generator:
                    for part in _calls_apart(item):
                        yield part

            return original(self, parted())

        return message_stream_converter

    patch(AnthropicServingMessages, "message_stream_converter", make)


def _calls_apart(item: str) -> list[str]:
    """A chunk of a stream; in two where a thought comes after the rest of an open call."""
    if '"reasoning"' not in item or '"tool_calls"' not in item:
        return [item]
    chunk = json.loads(item.removeprefix("data:"))
    choice: dict[str, Any] = next(iter(chunk.get("choices") or ()), {})
    delta = choice.get("delta") or {}
    resumed = [c for c in delta.get("tool_calls") or () if c.get("id") is None]
    if not resumed or not delta.get("reasoning"):
        return [item]
    first = choice | {"delta": {"tool_calls": resumed}, "finish_reason": None}
    rest = choice | {"delta": delta | {
        "tool_calls": [c for c in delta["tool_calls"] if c.get("id") is not None]
    }}  # fmt: skip
    return [f"data: {json.dumps(chunk | {'choices': [part]})}\n\n" for part in (first, rest)]
