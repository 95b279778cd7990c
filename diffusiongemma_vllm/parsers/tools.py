"""vLLM's tool parser for Gemma 4's calls."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vllm.entrypoints.generate.base.protocol import (
    DeltaMessage,
    ExtractedToolCallInformation,
    ToolCall,
)
from vllm.exceptions import VLLMValidationError
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.sampling_params import StructuredOutputsParams
from vllm.tool_parsers.abstract_tool_parser import Tool, ToolParser

from diffusiongemma_vllm.parsers import deltas
from diffusiongemma_vllm.parsers.call_grammar import CallGrammar
from diffusiongemma_vllm.parsers.grammar import Calls, Options, Scanner
from diffusiongemma_vllm.parsers.lexer import Mark
from diffusiongemma_vllm.parsers.prompt import MarkerIds
from diffusiongemma_vllm.parsers.schema import Schema


class Gemma4ToolParser(ToolParser):
    """Reads what follows the reasoning: text, calls and, where there are any, later thoughts."""

    supports_required_and_named = False  # the model writes its own syntax, forced or not
    engine_based_streaming = True  # keeps its own state: hand it deltas only

    def __init__(self, tokenizer: Any, tools: list[Tool] | None = None) -> None:
        super().__init__(tokenizer, tools)
        self.skip_reasoning_parsing = False  # vLLM sets it when no reasoning parser is configured
        self.schemas = tool_schemas(self.tools)
        self._markers = MarkerIds(tokenizer)
        self._scanner: Scanner | None = None
        self._writer = deltas.DeltaWriter()

    def adjust_request(self, request: Any) -> Any:
        """Markers are special tokens: the detokenizer has to show them.  Forced calls are forced by
        a grammar.
        """
        request.skip_special_tokens = False
        if (forced := forced_tools(request)) is not None:
            constrain(request, forced, self._markers)
        return request

    def extract_tool_calls(self, model_output: str, request: Any) -> ExtractedToolCallInformation:
        scanner = Scanner(self._options(request), self._markers.lexer())
        events = scanner.feed(model_output) + scanner.finish()
        calls = deltas.calls(events)
        return ExtractedToolCallInformation(
            tools_called=bool(calls),
            tool_calls=[ToolCall(id=c.id or make_tool_call_id(), function=c) for c in calls],
            content=deltas.texts(events)[1],
        )

    def extract_tool_calls_streaming(  # noqa: PLR0913 (vLLM's signature)
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request: Any,
    ) -> DeltaMessage | None:
        if self._scanner is None:
            self._scanner = Scanner(self._options(request), self._markers.lexer())
        return self._writer.write(self._scanner.feed(delta_text, delta_token_ids))

    def finish_streaming(self) -> DeltaMessage | None:
        """The rest of the stream, once it is over."""
        events = self._scanner.finish() if self._scanner else []
        return self._writer.write(events, last=True)

    def _options(self, request: Any) -> Options:
        return Options(
            calls=calls_for(request),
            thoughts=not self.skip_reasoning_parsing,
            schemas=self.schemas,
        )


def calls_for(request: Any) -> Calls:
    """`tool_choice: none` keeps the text of a call that the model makes all the same."""
    return Calls.TEXT if request.tool_choice == "none" else Calls.PARSE


def tool_schemas(tools: Sequence[Any] | None) -> dict[str, Schema]:
    """The parameters of each tool, by name, for both of vLLM's tool classes."""
    functions = [getattr(tool, "function", tool) for tool in tools or ()]
    named = [(getattr(f, "name", None), getattr(f, "parameters", None)) for f in functions]
    return {n: Schema.of(p) for n, p in named if n and isinstance(p, Mapping)}


def forced_tools(request: Any) -> dict[str, Any] | None:
    """Parameters by name of the tools that `tool_choice` lets the model choose from; None where it
    is free to call none.
    """
    choice = request.tool_choice
    name = getattr(getattr(choice, "function", choice), "name", None)
    if choice != "required" and name is None:
        return None
    functions = [getattr(tool, "function", tool) for tool in request.tools or ()]
    named = [f for f in functions if getattr(f, "name", None)]
    return {f.name: f.parameters for f in named if name in (None, f.name)}


def constrain(request: Any, tools: Mapping[str, Any], markers: MarkerIds) -> None:
    """Have the answer be calls of `tools`, one where the request names it or wants no more.

    Raises:
        VLLMValidationError: where the answer is to be something else as well.
    """
    if not tools:
        return
    if request.extract_structured_outputs() is not None:
        raise VLLMValidationError(
            "tool_choice forces a call, and response_format or structured_outputs another answer; "
            "drop one of the two, or use tool_choice 'auto'",
            parameter="tool_choice",
        )
    ids = {mark: token for token, mark in markers.marks.items()}
    grammar = CallGrammar(ids[Mark.CALL], ids[Mark.CALL_END], ids[Mark.QUOTE])
    several = request.tool_choice == "required" and request.parallel_tool_calls is not False
    form = {"type": "grammar", "grammar": grammar.of(tools, several=several)}
    tag = json.dumps({"type": "structural_tag", "format": form})
    request.structured_outputs = StructuredOutputsParams(structural_tag=tag)
