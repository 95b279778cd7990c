"""The parser that the server uses: one scanner per turn, token ids and prompt at hand.

vLLM would compose the reasoning and the tool parser with a parser of its own, which hands neither
of them the ids of a whole output, and no later thought to a reasoning parser without tools.
"""

from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.generate.base.protocol import DeltaMessage, FunctionCall
from vllm.parser.abstract_parser import DelegatingParser
from vllm.parser.metrics import record_tool_parser_invocation

from diffusiongemma_vllm.parsers import deltas
from diffusiongemma_vllm.parsers.events import Event
from diffusiongemma_vllm.parsers.grammar import Calls, Options, Scanner, Start
from diffusiongemma_vllm.parsers.prompt import MarkerIds
from diffusiongemma_vllm.parsers.reasoning import Gemma4ReasoningParser
from diffusiongemma_vllm.parsers.tools import Gemma4ToolParser, calls_for, tool_schemas


class TurnParser(DelegatingParser):
    """Reads whole turns; what is not configured (reasoning, tools) stays content as generated."""

    reasoning_parser_cls: Any = Gemma4ReasoningParser
    tool_parser_cls: Any = Gemma4ToolParser
    always_adjust_request = True  # markers are special tokens, always needed

    def __init__(
        self, tokenizer: Any, tools: list[Any] | None = None, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(tokenizer, tools, *args, **kwargs)
        template = kwargs.get("chat_template_kwargs") or {}
        self._thinking = bool(template.get("enable_thinking"))
        self._markers = MarkerIds(tokenizer)
        self._schemas = tool_schemas(tools)
        self._prompt_ids: Sequence[int] = ()
        self._scanner: Scanner | None = None
        self._writer = deltas.DeltaWriter()

    def set_prompt_token_ids(self, prompt_token_ids: Sequence[int]) -> None:
        self._prompt_ids = prompt_token_ids

    def parse(
        self,
        model_output: str,
        request: Any,
        enable_auto_tools: bool = False,
        model_output_token_ids: Sequence[int] = (),
    ) -> tuple[str | None, str | None, list[FunctionCall] | None]:
        scanner = self._new_scanner(request)
        events = scanner.feed(model_output, model_output_token_ids) + scanner.finish()
        calls = deltas.calls(events)
        self._record(bool(calls), False, request)
        return *deltas.texts(events), calls

    def parse_delta(
        self,
        delta_text: str,
        delta_token_ids: list[int],
        request: Any,
        prompt_token_ids: list[int] | None = None,
        *,
        finished: bool,
    ) -> DeltaMessage | None:
        if self._scanner is None:
            self._prompt_ids = prompt_token_ids or self._prompt_ids
            self._scanner = self._new_scanner(request)
        events: list[Event] = self._scanner.feed(delta_text, delta_token_ids)
        if finished:
            events += self._scanner.finish()
        message = self._writer.write(events, last=finished)
        self._record(bool(message and message.tool_calls), True, request)
        if message is not None and not request.include_reasoning:
            message.reasoning = None
            if not (message.content or message.tool_calls):
                return None
        return message

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        if self._reasoning_parser is None:
            return 0
        return self._markers.count_reasoning(token_ids, self._start())

    def _start(self) -> Start:
        return self._markers.start(self._prompt_ids, self._thinking)

    def _new_scanner(self, request: Any) -> Scanner:
        thoughts = self._reasoning_parser is not None
        options = Options(
            start=self._start() if thoughts else Start.TEXT,
            calls=Calls.RAW if self._tool_parser is None else calls_for(request),
            thoughts=thoughts,
            schemas=self._schemas,
        )
        return Scanner(options, self._markers.lexer())

    def _record(self, is_tool_called: bool, is_streaming: bool, request: Any) -> None:
        if self._tool_parser is not None:
            record_tool_parser_invocation(
                is_tool_called=is_tool_called, is_streaming=is_streaming, request=request
            )
