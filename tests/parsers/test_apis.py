"""What vLLM's handlers make of our messages: Responses items, Anthropic blocks, cut calls."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from runs import TOKENIZER, TOOLS, F, G, Pair, Run, request  # noqa: E402
from vllm.entrypoints.generate.base.protocol import DeltaMessage  # noqa: E402
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest  # noqa: E402

from diffusiongemma_vllm.parsers import serving  # noqa: E402
from diffusiongemma_vllm.parsers.parser import TurnParser  # noqa: E402


def responses_request() -> ResponsesRequest:
    tools = [{"type": "function", "strict": None, **TOOLS[0]["function"]}]
    return ResponsesRequest(model="m", input="Hi", tools=tools)


@pytest.mark.parametrize("size", [1, 3, 16, 256])
@pytest.mark.parametrize("after", ["", " Done.", f" Then {F}"])
def test_responses_items_are_whole(size, after, monkeypatch):
    from vllm.entrypoints.openai.responses import serving as responses
    from vllm.entrypoints.openai.responses.streaming_events import SimpleStreamingEventProcessor

    monkeypatch.setattr(responses, "split_delta", responses.split_delta)
    serving.resume_calls_first()
    serving.resume_calls_first()
    text = f"<|channel>thought\nHm.<channel|>See. {F}{after}"
    run = Run(TurnParser, text, responses_request())
    processor = SimpleStreamingEventProcessor(tools=run.asked.tools)
    for delta in run.deltas(size):
        for part in responses.split_delta(delta):
            state, call = processor.resolve_target_state(part)
            if processor.needs_transition(state, call):
                processor.close_current()
                processor.open(state, call)
            processor.emit_delta(part, None)
    processor.close_current()
    items = processor.output_items
    calls = [(i.name, i.arguments) for i in items if i.type == "function_call"]
    assert calls == [("f", '{"a": "x"}')] * (2 if F in after else 1)
    texts = [c.text for i in items if i.type == "message" for c in i.content]
    assert "".join(texts) == "See. " + after.replace(F, "")


def anthropic_handler() -> Any:
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages

    return object.__new__(AnthropicServingMessages)


def anthropic_blocks(deltas: list[DeltaMessage]) -> list[tuple[str, str | None, str]]:
    """The blocks of a stream whose last delta tells how it ended, as vLLM sends it."""
    from vllm.entrypoints.openai.chat_completion.protocol import (
        ChatCompletionResponseStreamChoice,
        ChatCompletionStreamResponse,
    )

    handler = anthropic_handler()
    handler.parser_cls = TurnParser

    async def chunks():
        said = [DeltaMessage(role="assistant", content=""), *deltas]
        for n, delta in enumerate(said, 1):
            reason = "tool_calls" if n == len(said) else None
            choice = ChatCompletionResponseStreamChoice(index=0, delta=delta, finish_reason=reason)
            chunk = ChatCompletionStreamResponse(model="m", choices=[choice])
            yield f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"
        end = ChatCompletionStreamResponse(model="m", choices=[], usage=None)
        yield f"data: {end.model_dump_json()}\n\n"
        yield "data: [DONE]\n\n"

    async def converted():
        return [event async for event in handler.message_stream_converter(chunks())]

    blocks: dict[int, dict[str, str]] = {}
    for event in asyncio.run(converted()):
        data = json.loads(event.split("data: ", 1)[1])
        assert data["type"] != "error", data
        if data["type"] == "content_block_start":
            block = data["content_block"]
            blocks[data["index"]] = {"type": block["type"], "name": block.get("name"), "text": ""}
        elif data["type"] == "content_block_delta" and "signature" not in data["delta"]:
            parts = [v for k, v in data["delta"].items() if k != "type" and v]
            blocks[data["index"]]["text"] += "".join(parts)
        elif data["type"] == "message_delta":
            assert data["delta"]["stop_reason"] == "tool_use"
    return [(b["type"], b["name"], b["text"]) for b in blocks.values()]


@pytest.mark.parametrize("size", [1, 3, 16, 256])
def test_anthropic_blocks_are_whole(size):
    run = Run(TurnParser, f"<|channel>thought\nHm.<channel|>See. {F}{G}<|tool_response>")
    assert anthropic_blocks([*run.deltas(size), DeltaMessage()]) == [
        ("thinking", None, "Hm."),
        ("text", None, "See. "),
        ("tool_use", "f", '{"a": "x"}'),
        ("tool_use", "g", '{"a": "5"}'),
    ]


LATER = "<|channel>thought\nLater.\n<channel|>"


@pytest.mark.parametrize("after", ["", LATER, f"{LATER}Bye", f"{LATER}{G}", f"So.{LATER}Bye{G}"])
def test_anthropic_keeps_calls_that_the_last_delta_ends(after, patched):
    """Wherever the two deltas meet: what comes after an open call waits for the rest of it."""
    run = Run(TurnParser, F.replace("x", "x y " * 5) + after)
    wanted = [("tool_use", "f", json.dumps({"a": "x y " * 5}))]
    wanted += [("tool_use", "g", '{"a": "5"}')] if G in after else []
    for size in range(1, len(run.tokens) + 1):
        blocks = anthropic_blocks(run.deltas(size))
        assert [b for b in blocks if b[0] == "tool_use"] == wanted, size
        for kind, text in (("thinking", "Later."), ("text", after.replace(LATER, ""))):
            said = "".join(t for k, _, t in blocks if k == kind)
            assert said == ("" if LATER not in after else text.replace(G, "")), size


def completion(text: str, reason: str, parser_cls: type) -> Any:
    """What the chat handler answers to a finished output."""
    from vllm.entrypoints.generate.base.protocol import RequestResponseMetadata
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.outputs import CompletionOutput, RequestOutput

    run = Run(parser_cls, text)
    handler = object.__new__(OpenAIServingChat)
    vars(handler).update(
        parser_cls=parser_cls, enable_auto_tools=True, response_role="assistant",
        enable_log_outputs=False, request_logger=None, enable_prompt_tokens_details=False,
        enable_per_request_metrics=False, system_fingerprint=None,
        _include_reasoning_tokens_details=True,
    )  # fmt: skip
    output = CompletionOutput(0, text, [i for i, _ in run.tokens], None, None, finish_reason=reason)
    result = RequestOutput("r", None, run.prompt, None, [output], finished=True)

    async def results():
        yield result

    return asyncio.run(
        handler.chat_completion_full_generator(
            run.asked, results(), "r", "m", [], TOKENIZER,
            RequestResponseMetadata(request_id="r"), run.parser(),
        )
    )  # fmt: skip


@pytest.fixture
def patched(monkeypatch):
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat

    for cls, name in (
        (OpenAIServingChat, "chat_completion_full_generator"),
        (AnthropicServingMessages, "messages_full_converter"),
        (AnthropicServingMessages, "message_stream_converter"),
    ):
        monkeypatch.setattr(cls, name, getattr(cls, name))
    for _ in range(2):
        serving.report_cut_calls()
        serving.show_cut_calls_to_anthropic()
        serving.resume_calls_first_for_anthropic()


CUT = '<|tool_call>call:f{a:<|"|>x'


@pytest.mark.parametrize(
    ("text", "reason", "wanted"),
    [
        (F, "stop", "tool_calls"),
        (F, "length", "tool_calls"),
        (CUT, "length", "length"),
        (F + CUT, "length", "length"),
        ("Yes.", "length", "length"),
    ],
)
def test_a_cut_call_finishes_by_length(patched, text, reason, wanted):
    assert completion(text, reason, TurnParser).choices[0].finish_reason == wanted


def test_other_parsers_finish_as_before(patched):
    assert completion(CUT, "length", Pair).choices[0].finish_reason == "tool_calls"


def test_anthropic_shows_a_cut_call_as_text(patched):
    answer = anthropic_handler().messages_full_converter(completion(F + CUT, "length", TurnParser))
    assert answer.stop_reason == "max_tokens"
    blocks = [(b.type, b.text, b.input) for b in answer.content]
    assert blocks == [("text", 'f{"a": "x', None), ("tool_use", None, {"a": "x"})]


def test_a_tool_of_either_class_gives_its_schema():
    from diffusiongemma_vllm.parsers.tools import tool_schemas

    flat = responses_request().tools
    for tools in (request().tools, flat):
        assert tool_schemas(tools)["f"].member("a").types() == {"string"}
    assert tool_schemas([SimpleNamespace(type="web_search")]) == {}
