"""Events as the messages of vLLM's serving layer."""

from collections.abc import Iterable, Sequence

from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
    FunctionCall,
)
from vllm.renderers.chat_utils import make_tool_call_id

from diffusiongemma_vllm.parsers.events import (
    Arguments,
    CallStart,
    Content,
    Event,
    Reasoning,
)


class DeltaWriter:
    """One stream's events as DeltaMessages.

    A message cannot say that text came after the rest of a call: the Responses and Anthropic
    streams would put the text first and so cut the call in two.  Such text waits for the next one.
    """

    def __init__(self) -> None:
        self._started: set[int] = set()
        self._waiting: list[Event] = []

    def write(self, events: Sequence[Event], *, last: bool = False) -> DeltaMessage | None:
        """The message for one delta, or None where it says nothing."""
        calls: dict[int, DeltaToolCall] = {}
        resumed = any(isinstance(e, Arguments) and e.index in self._started for e in events)
        spoken: list[Event] = self._waiting
        self._waiting = []
        for event in events:
            if isinstance(event, CallStart):
                calls[event.index] = DeltaToolCall(
                    index=event.index,
                    id=make_tool_call_id(),
                    type="function",
                    function=DeltaFunctionCall(name=event.name, arguments=""),
                )
            elif isinstance(event, Arguments):
                call = calls.setdefault(
                    event.index,
                    DeltaToolCall(index=event.index, function=DeltaFunctionCall(arguments="")),
                )
                assert call.function is not None
                call.function.arguments = (call.function.arguments or "") + event.json
            elif isinstance(event, Reasoning | Content):
                spoken.append(event)
        self._started |= calls.keys()
        if resumed and not last:
            self._waiting, spoken = spoken, []
        reasoning, content = texts(spoken)
        if not (reasoning or content or calls):
            return None
        message = DeltaMessage(tool_calls=list(calls.values()))
        if reasoning:
            message.reasoning = reasoning
        if content:
            message.content = content
        return message


def texts(events: Iterable[Event]) -> tuple[str | None, str | None]:
    """The reasoning and the content in `events`."""
    reasoning, content = [], []
    for event in events:
        if isinstance(event, Reasoning):
            reasoning.append(event.text)
        elif isinstance(event, Content):
            content.append(event.text)
    return "".join(reasoning) or None, "".join(content) or None


def calls(events: Iterable[Event]) -> list[FunctionCall]:
    """The calls in `events`; an incomplete one keeps its unclosed arguments."""
    names: list[str] = []
    arguments: list[list[str]] = []
    for event in events:
        if isinstance(event, CallStart):
            names.append(event.name)
            arguments.append([])
        elif isinstance(event, Arguments):
            arguments[event.index].append(event.json)
    return [
        FunctionCall(id=make_tool_call_id(), name=name, arguments="".join(parts))
        for name, parts in zip(names, arguments, strict=True)
    ]
