"""vLLM's tool parser for Gemma 4's calls."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from vllm.entrypoints.generate.base.protocol import (
    DeltaMessage,
    ExtractedToolCallInformation,
    ToolCall,
)
from vllm.exceptions import VLLMValidationError
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.sampling_params import StructuredOutputsParams
from vllm.tool_parsers.abstract_tool_parser import Tool, ToolParser
from vllm.tool_parsers.utils import get_function_tools

from diffusiongemma_vllm.parsers import deltas
from diffusiongemma_vllm.parsers.branches import GrammarError
from diffusiongemma_vllm.parsers.call_grammar import CallGrammar
from diffusiongemma_vllm.parsers.grammar import Calls, Options, Scanner, readable
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
        self.schemas = tool_schemas(tools)  # vLLM keeps plain functions alone in `self.tools`
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
    return {name: Schema.of(parameters) for name, parameters in _functions(tools).items()}


def forced_tools(request: Any) -> dict[str, Any] | None:
    """Parameters by name of the tools that `tool_choice` lets the model choose from; None where it
    is free to call none.

    Raises:
        VLLMValidationError: where nothing could be called, or the choice is one that we do not keep
    """
    choice = request.tool_choice
    if choice in (None, "auto", "none"):
        return None
    tools = _functions(request.tools)
    wanted = tools if choice == "required" else {n: tools.get(n) for n in _named(choice)}
    free = getattr(choice, "mode", None) == "auto"
    if free and wanted.keys() >= tools.keys():
        return None
    if free:
        _refuse(
            "tool_choice 'allowed_tools' with mode 'auto' is not kept: leave the other tools out "
            "of tools, or use mode 'required'"
        )
    if not wanted:
        _refuse(
            "tool_choice forces a call of a function or a custom tool in tools, and leaves nothing "
            "to call: list one, or use tool_choice 'auto'"
        )
    for name in wanted:
        if name not in tools:
            _refuse(f"tool_choice names {name!r}, which is no function or custom tool of tools")
        if not readable(name):
            _refuse(f"tool_choice forces a call of {name!r}, and no call of that name is read: "
                    "name the tool with letters, digits, '_' and '-'")
    return wanted


def _functions(tools: Sequence[Any] | None) -> dict[str, Any]:
    """Parameters by name of what the prompt shows and vLLM dispatches: functions, those in
    namespaces, custom tools.
    """
    listed: Sequence[Any] = get_function_tools(tools or ())
    functions = [getattr(tool, "function", tool) for tool in listed]
    return {f.name: f.parameters for f in functions}


def _named(choice: Any) -> list[str]:
    """The tools that an object names; hosted ones have no names, and nobody calls them here."""
    if getattr(choice, "type", None) == "allowed_tools":
        names = [tool.get("name") for tool in choice.tools]
    else:
        names = [getattr(getattr(choice, "function", choice), "name", None)]
    return [name for name in names if isinstance(name, str)]


def _refuse(why: str) -> NoReturn:
    raise VLLMValidationError(why, parameter="tool_choice")


def constrain(request: Any, tools: Mapping[str, Any], markers: MarkerIds) -> None:
    """Have the answer be calls of `tools`, one where the request names it or wants no more.

    Raises:
        VLLMValidationError: where a schema cannot be kept, or the answer is to be something else
    """
    if request.extract_structured_outputs() is not None:
        _refuse(
            "tool_choice forces a call, and response_format or structured_outputs another answer; "
            "drop one of the two, or use tool_choice 'auto'"
        )
    ids = {mark: token for token, mark in markers.marks.items()}
    grammar = CallGrammar(ids[Mark.CALL], ids[Mark.CALL_END], ids[Mark.QUOTE])
    several = request.tool_choice == "required" and request.parallel_tool_calls is not False
    try:
        form = {"type": "grammar", "grammar": grammar.of(tools, several=several)}
    except GrammarError as error:
        raise VLLMValidationError(
            f"tool_choice forces a call: {error}; or use tool_choice 'auto'", parameter="tools"
        ) from None
    tag = json.dumps({"type": "structural_tag", "format": form})
    request.structured_outputs = StructuredOutputsParams(structural_tag=tag)
