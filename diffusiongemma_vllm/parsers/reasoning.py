"""vLLM's reasoning parser for Gemma 4's thoughts."""

from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.reasoning.abs_reasoning_parsers import ReasoningParser

from diffusiongemma_vllm.parsers import deltas
from diffusiongemma_vllm.parsers.events import Content, Event
from diffusiongemma_vllm.parsers.grammar import LABEL, Calls, Options, Scanner, Start
from diffusiongemma_vllm.parsers.lexer import Mark
from diffusiongemma_vllm.parsers.prompt import MarkerIds


class Gemma4ReasoningParser(ReasoningParser):
    """Reads the thought that opens a turn, then hands the text and its ids to the tool parser."""

    engine_based_streaming = True  # keeps its own state: hand it deltas only

    def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        self.thinking = bool((kwargs.get("chat_template_kwargs") or {}).get("enable_thinking"))
        self.markers = MarkerIds(tokenizer)
        self._start = Start.MAYBE_LABEL if self.thinking else Start.TEXT
        self._scanner: Scanner | None = None
        self._over = False
        self._handed_ids: list[int] = []

    @property
    def reasoning_start_str(self) -> str:
        return Mark.CHANNEL.value

    @property
    def reasoning_end_str(self) -> str:
        return Mark.CHANNEL_END.value

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        return self.markers.reasoning_ended(input_ids, self.thinking)

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """While streaming: the ids of the text handed over, which `input_ids` may not all hold."""
        return self._handed_ids if self._over else self.markers.content_ids(input_ids)

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        return self.markers.count_reasoning(token_ids, self._start)

    def adjust_request(self, request: Any) -> Any:
        """Markers are special tokens: the detokenizer has to show them."""
        request.skip_special_tokens = False
        return request

    def adjust_initial_state_from_prompt(self, prompt_token_ids: Sequence[int]) -> None:
        self._start = self.markers.start(prompt_token_ids, self.thinking)

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Without the prompt, a request that ends in a tool's result tells an open thought."""
        start = Start.THOUGHT if self.thinking and _answers_a_tool(request) else self._start
        scanner = Scanner(Options(start, Calls.RAW), self.markers.lexer())
        return deltas.texts(scanner.feed(model_output) + scanner.finish())

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> DeltaMessage | None:
        if self._scanner is None:
            self._scanner = Scanner(Options(self._start, Calls.RAW), self.markers.lexer())
        scanner = self._scanner
        text, ids = scanner.lexer.unread()
        delta = (scanner.opening, text + delta_text, [*ids, *delta_token_ids])
        scanner.lexer.add(delta_text, delta_token_ids)
        piece = None
        while scanner.in_reasoning and (piece := scanner.lexer.next()) is not None:
            scanner.push(piece)
        if scanner.in_reasoning:
            return _message(scanner.take())
        self._over = True
        text, ids = scanner.lexer.unread()
        scanner.lexer.finish()
        if Mark.CHANNEL in text:
            return self._hand_over(*delta)
        if piece in (Mark.CALL, Mark.QUOTE):  # read, and handed over all the same
            ids = self._ids_of(piece) + ids
        self._handed_ids = ids
        return _message([*scanner.finish(), Content(text)])

    def _hand_over(self, opening: str, text: str, ids: list[int]) -> DeltaMessage:
        """The whole delta: vLLM keeps no reasoning of ours where the tool parser finds another."""
        if (opening + text).startswith(LABEL):
            opening = Mark.CHANNEL + opening
        opened = opening.startswith(Mark.CHANNEL)
        self._handed_ids = (self._ids_of(Mark.CHANNEL) if opened and ids else []) + ids
        return DeltaMessage(content=opening + text)

    def _ids_of(self, piece: str) -> list[int]:
        return [i for i, mark in self.markers.marks.items() if mark == piece]

    def has_engine_confirmed_reasoning_end(self) -> bool:
        return self._over

    def finish_streaming(self) -> DeltaMessage | None:
        """The rest of a stream that never left its thought."""
        if self._scanner is None or self._over:
            return None
        return _message(self._scanner.finish())


def _message(events: Sequence[Event]) -> DeltaMessage | None:
    reasoning, content = deltas.texts(events)
    if not (reasoning or content):
        return None
    return DeltaMessage(reasoning=reasoning, content=content)


def _answers_a_tool(request: Any) -> bool:
    """Whether the conversation ends in the result of a tool."""
    messages = getattr(request, "messages", None)
    if messages is None:
        items = getattr(request, "input", None)
        messages = items if isinstance(items, list) else []
    last = messages[-1] if messages else {}
    if not isinstance(last, dict):
        last = last.model_dump()
    return last.get("role") == "tool" or last.get("type") == "function_call_output"
