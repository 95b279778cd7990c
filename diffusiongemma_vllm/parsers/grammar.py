"""The grammar of a Gemma 4 model turn, read incrementally.

    turn    := { thought | call | text } [ stop ]
    thought := <|channel> "thought\\n" text <channel|>
    call    := <|tool_call> "call:" NAME object <tool_call|>

The scanner reports reasoning, content and calls as they come, the same for every way of cutting the
text.  Nothing is lost: text that is no valid call stays content, in place.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from diffusiongemma_vllm.parsers.arguments import ArgumentReader, Outcome
from diffusiongemma_vllm.parsers.events import (
    Arguments,
    CallEnd,
    CallStart,
    Content,
    Event,
    Reasoning,
)
from diffusiongemma_vllm.parsers.lexer import STOPS, Lexer, Mark, Piece
from diffusiongemma_vllm.parsers.schema import Schema

LABEL = "thought\n"

# After "call:" a name is what a tool may be called; without it, what nothing else looks like.
_NAMED = r"[^\s\0-,.-/:-@\[-^`{-\x7f][^\s\0-,;-@\[-^`{-\x7f]*+"
_HEADER_RE = re.compile(
    r"[\s,;]*+(?P<call>(?:call)?\s*+:\s*+)?"
    rf"(?P<name>(?(call){_NAMED}|[^\W\d][\w.:/-]*+))?\s*+"
)
_HEADER_LIMIT = 512  # characters; a longer name is no name
_LEFTOVER = " \t\r\n)]}"  # between the end of the arguments and the end marker: worth nothing


class Calls(Enum):
    """What to make of calls."""

    PARSE = auto()
    TEXT = auto()  # content, without the markers around it
    RAW = auto()  # content as generated, markers and all: somebody else reads it


class Start(Enum):
    """Where the prompt leaves the turn."""

    TEXT = auto()
    MAYBE_LABEL = auto()  # thinking is on: a bare label opens a thought whose marker got lost
    LABEL = auto()  # right after a thought's opening marker
    THOUGHT = auto()  # inside an open thought


@dataclass(frozen=True)
class Options:
    """How to read a turn."""

    start: Start = Start.TEXT
    calls: Calls = Calls.PARSE
    thoughts: bool = True  # False: thoughts are content as generated
    schemas: dict[str, Schema] = field(default_factory=dict)  # by tool name


class _State(Enum):
    START = auto()
    TEXT = auto()
    LABEL = auto()  # after <|channel>, before it is clear what its label is
    THOUGHT = auto()
    HEADER = auto()  # after <|tool_call>, up to the opening bracket
    ARGUMENTS = auto()
    AFTER = auto()  # after the arguments, before the end marker
    OPAQUE = auto()  # inside the text of a call that is not to be parsed, or is none


class Scanner:
    """Feed it text (and token ids where there are any); it reports events."""

    def __init__(self, options: Options | None = None, lexer: Lexer | None = None) -> None:
        self.options = options or Options()
        self.lexer = lexer or Lexer()
        self._state = {
            Start.TEXT: _State.TEXT,
            Start.MAYBE_LABEL: _State.START,
            Start.LABEL: _State.LABEL,
            Start.THOUGHT: _State.THOUGHT,
        }[self.options.start]
        self._events: list[Event] = []
        self._buffer = ""  # text that the state cannot decide on yet
        self._blank: list[str] = []  # white space that opens a run of text
        self._in_run = False  # the run of text has begun
        self._alone = True  # no thought and no call so far: white space may be all there is
        self._quoted = False  # inside a <|"|> string of an opaque call
        self._calls = 0
        self._reader: ArgumentReader | None = None
        self._on_text: dict[_State, Callable[[str], list[Piece]]] = {
            _State.START: self._start_text,
            _State.TEXT: self._plain_text,
            _State.LABEL: self._label_text,
            _State.THOUGHT: self._thought_text,
            _State.HEADER: self._header_text,
            _State.AFTER: self._after_text,
            _State.OPAQUE: self._plain_text,
        }

    @property
    def in_reasoning(self) -> bool:
        """Whether the next text belongs to a thought (or may still turn out to)."""
        return self._state in (_State.START, _State.LABEL, _State.THOUGHT)

    @property
    def opening(self) -> str:
        """Text that would bring a fresh scanner to this point, while in reasoning."""
        if self._state is _State.THOUGHT:
            return Mark.CHANNEL + LABEL + self._buffer
        return (Mark.CHANNEL if self._state is _State.LABEL else "") + self._buffer

    def feed(self, text: str, token_ids: Sequence[int] = ()) -> list[Event]:
        """The events that this delta completes."""
        for piece in self.lexer.feed(text, token_ids):
            self.push(piece)
        return self.take()

    def finish(self) -> list[Event]:
        """The turn is over: what was held back, decided."""
        for piece in self.lexer.finish():
            self.push(piece)
        while self._state is _State.ARGUMENTS and self._reader is not None:
            rest = self._reader.finish()
            self._report_arguments()
            for piece in rest:
                self.push(piece)
        if self._state is _State.LABEL:
            self._drop_label()
        self._flush_buffer()
        if self._alone and self._blank:
            self._say("")
        self._blank.clear()
        return self.take()

    def take(self) -> list[Event]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def push(self, piece: Piece) -> None:
        """Read one piece, and whatever it leaves over."""
        pending = [piece]
        while pending:
            piece = pending.pop()
            if self._state is _State.ARGUMENTS and self._reader is not None:
                rest = self._reader.feed(piece)
                self._report_arguments()
            elif isinstance(piece, Mark):
                rest = self._mark(piece)
            else:
                rest = self._on_text[self._state](piece)
            pending += reversed(rest)

    # -- markers ----------------------------------------------------------------------------------

    def _mark(self, mark: Mark) -> list[Piece]:
        state = self._state
        if state is _State.OPAQUE:
            return self._opaque_mark(mark)
        if state is _State.HEADER:
            if mark is Mark.CALL_END and self._is_bare_call():
                return []
            if mark not in (Mark.CALL, Mark.CALL_END):
                self._enter(_State.OPAQUE)
                return [mark]
        in_thought = state in (_State.LABEL, _State.THOUGHT)
        if state is _State.THOUGHT and mark not in (Mark.QUOTE, Mark.CALL_END):
            self._buffer = ""
        if mark is Mark.CALL:
            self._begin_call()
        elif mark is Mark.QUOTE:
            self._enter(_State.THOUGHT if in_thought else _State.TEXT)
            return [str(mark) if self.options.calls is Calls.RAW else '"']
        elif mark in STOPS:
            self._enter(_State.TEXT, ends_run=in_thought or self._in_run)
        elif mark is Mark.CALL_END:
            self._enter(state if in_thought else _State.TEXT)
        elif not self.options.thoughts:
            self._enter(_State.TEXT)
            self._say(mark)
        elif mark is Mark.CHANNEL:
            self._enter(_State.LABEL, ends_run=True)
        else:
            if in_thought or state is _State.START:
                self._drop_label()
            self._enter(_State.TEXT, ends_run=in_thought)
        return []

    def _opaque_mark(self, mark: Mark) -> list[Piece]:
        raw = self.options.calls is Calls.RAW
        if mark is Mark.QUOTE:
            self._quoted = not self._quoted
            self._say(mark)
        elif mark is Mark.CALL:
            self._begin_call()
        elif mark in STOPS or (mark is Mark.CALL_END and not self._quoted):
            if raw:
                self._say(mark)
            self._enter(_State.TEXT)
        elif self._quoted:
            self._say(mark)
        else:
            self._enter(_State.TEXT)
            return [mark]
        return []

    def _begin_call(self) -> None:
        if self.options.calls is Calls.PARSE:
            self._enter(_State.HEADER)
            return
        self._enter(_State.OPAQUE)
        if self.options.calls is Calls.RAW:
            self._say(Mark.CALL)

    # -- text -------------------------------------------------------------------------------------

    def _start_text(self, text: str) -> list[Piece]:
        self._buffer += text
        if LABEL.startswith(self._buffer):
            return []
        text, self._buffer = self._buffer, ""
        opened = text.startswith(LABEL)
        self._enter(_State.THOUGHT if opened else _State.TEXT, ends_run=opened)
        return [text.removeprefix(LABEL)] if text != LABEL else []

    def _plain_text(self, text: str) -> list[Piece]:
        if not self._in_run and text.isspace():
            self._blank.append(text)
        else:
            self._say(text)
        return []

    def _label_text(self, text: str) -> list[Piece]:
        self._buffer += text
        if LABEL.startswith(self._buffer) and self._buffer != LABEL:
            return []
        text, self._buffer = self._buffer.removeprefix(LABEL), ""
        self._state = _State.THOUGHT
        return [text] if text else []

    def _thought_text(self, text: str) -> list[Piece]:
        """A line break stays back: right before the end it is the template's, not the thought's."""
        text = self._buffer + text
        self._buffer = "\n" if text.endswith("\n") else ""
        if text := text.removesuffix("\n"):
            self._events.append(Reasoning(text))
        return []

    def _header_text(self, text: str) -> list[Piece]:
        self._buffer += text
        match = _HEADER_RE.match(self._buffer, 0, _HEADER_LIMIT + 1)
        assert match is not None  # every part of it is optional
        end = match.end()
        if end == len(self._buffer) and end <= _HEADER_LIMIT:
            return []
        opener, name = self._buffer[end : end + 1], _name(match)
        if name and end <= _HEADER_LIMIT and (opener == "{" or (opener == "(" and match["call"])):
            rest, self._buffer = self._buffer[end + 1 :], ""
            self._open_call(name, opener)
            return [rest] if rest else []
        self._enter(_State.OPAQUE)
        return []

    def _after_text(self, text: str) -> list[Piece]:
        """Another call may follow in the same envelope; anything else is text."""
        self._buffer += text
        rest = self._buffer.lstrip(_LEFTOVER + ",;")
        undecided = len(self._buffer) - len(rest) <= _HEADER_LIMIT
        if undecided and rest.startswith("call:"):
            self._buffer = ""
            self._enter(_State.HEADER)
            return [rest]
        if not undecided or not "call:".startswith(rest):
            self._enter(_State.TEXT)
        return []

    # -- calls ------------------------------------------------------------------------------------

    def _is_bare_call(self) -> bool:
        """A header without brackets, closed by the end marker: a call without arguments."""
        match = _HEADER_RE.fullmatch(self._buffer)
        name = _name(match) if match and match["call"] else ""
        if name:
            self._buffer = ""
            self._open_call(name, "{")
            self.push("}")
            self._state = _State.TEXT
        return bool(name)

    def _open_call(self, name: str, opener: str) -> None:
        self._end_run()
        self._events.append(CallStart(self._calls, name))
        self._reader = ArgumentReader(self.options.schemas.get(name, Schema()), opener)
        self._state = _State.ARGUMENTS
        self._report_arguments()

    def _report_arguments(self) -> None:
        assert self._reader is not None
        text = self._reader.take()
        if text:
            self._events.append(Arguments(self._calls, text))
        if self._reader.outcome is not None:
            complete = self._reader.outcome is Outcome.COMPLETE
            self._events.append(CallEnd(self._calls, complete))
            self._calls += 1
            self._reader = None
            self._quoted = False
            self._state = _State.AFTER if complete else _State.OPAQUE

    # -- runs of text -----------------------------------------------------------------------------

    def _enter(self, state: _State, *, ends_run: bool = False) -> None:
        """Go to `state`; what was undecided is now decided."""
        self._flush_buffer()
        self._quoted = False
        self._state = state
        if ends_run:
            self._end_run()

    def _flush_buffer(self) -> None:
        """Undecided text is what it looks like: reasoning after a channel marker, else content."""
        text, self._buffer = self._buffer, ""
        if not text or (self._state is _State.AFTER and not text.strip(_LEFTOVER)):
            return
        if self._state in (_State.LABEL, _State.THOUGHT):
            self._events.append(Reasoning(text))
        else:
            self._plain_text(text)

    def _drop_label(self) -> None:
        """A label that nothing followed."""
        if self._buffer == LABEL.strip():
            self._buffer = ""

    def _end_run(self) -> None:
        """A thought or a call begins or ends: white space around it means nothing."""
        self._blank.clear()
        self._in_run = self._alone = False

    def _say(self, text: str) -> None:
        self._events.append(Content("".join([*self._blank, text])))
        self._blank.clear()
        self._in_run = True


def readable(name: str) -> bool:
    """Whether a call of a tool with that name is read as one."""
    match = _HEADER_RE.match("call:" + name, 0, _HEADER_LIMIT + 1)
    assert match is not None
    return _name(match) == name != ""


def _name(match: re.Match[str]) -> str:
    return (match["name"] or "").rstrip(":")
