"""Split generated text into plain text and marker tokens.

A marker is a *token*.  The same characters written with ordinary tokens are text, and only the
token ids can tell the two apart; where the server hands over no ids, the spelling decides.  Text
may lag behind its ids (byte fallback, stop strings held back), never run ahead of them.
"""

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Mark(StrEnum):
    """The marker tokens that shape a model turn."""

    CALL = "<|tool_call>"
    CALL_END = "<tool_call|>"
    QUOTE = '<|"|>'
    CHANNEL = "<|channel>"
    CHANNEL_END = "<channel|>"
    TURN_END = "<turn|>"
    EOS = "<eos>"
    RESPONSE = "<|tool_response>"
    PAD = "<pad>"


STOPS = frozenset({Mark.TURN_END, Mark.EOS, Mark.RESPONSE, Mark.PAD})

# A piece of a turn: a Mark is a marker token, any other str is text.
Piece = str


def is_stop(piece: Piece) -> bool:
    return isinstance(piece, Mark) and piece in STOPS


_MARK_RE = re.compile("|".join(re.escape(m) for m in Mark))
_PREFIXES = frozenset(m[:n] for m in Mark for n in range(1, len(m)))
_LONGEST_PREFIX = max(map(len, _PREFIXES))


def _held_prefix(text: str, begin: int) -> int:
    """Length of the tail of `text` (after `begin`) that may still become a marker."""
    start = text.rfind("<", max(begin, len(text) - _LONGEST_PREFIX))
    return len(text) - start if start >= 0 and text[start:] in _PREFIXES else 0


@dataclass
class _Expected:
    """A marker token whose text has not come yet, and the ordinary tokens in front of it."""

    mark: Mark
    token_id: int
    run: list[int]
    spelled: int | None = None  # markers spelled out in `run`, counted on demand


class Lexer:
    """Turn (text, token ids) deltas into pieces, however the text is cut."""

    def __init__(
        self,
        marks: Mapping[int, Mark] | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self._marks = marks or {}
        self._decode = decode
        self._text = ""
        self._position = 0  # of the first unread character
        self._mark: re.Match[str] | None = None  # the marker token that ends the next text
        self._expected: deque[_Expected] = deque()
        self._run: list[int] = []  # ordinary tokens after the last expected marker
        self._spelled_seen = 0  # spelled-out markers already passed in the foremost run
        self._by_ids = False

    def feed(self, text: str, token_ids: Sequence[int] = ()) -> list[Piece]:
        """The pieces that `text` completes; a tail that may become a marker is held back."""
        self.add(text, token_ids)
        return list(iter(self.next, None))

    def add(self, text: str, token_ids: Sequence[int] = ()) -> None:
        """Take in one delta; `next` reads it."""
        if token_ids and self._marks:
            self._by_ids = True
            self._note(token_ids)
        self._text = self._text[self._position :] + text
        self._position = 0

    def next(self) -> Piece | None:
        """The next piece, or None when the next delta has to decide."""
        if self._mark is None:
            self._mark = self._find_mark()
        if self._mark is None:
            end = len(self._text) - _held_prefix(self._text, self._position)
        else:
            end = self._mark.start()
        if end > self._position:
            text = self._text[self._position : end]
            self._position = end
            return text
        if self._mark is None:
            return None
        mark = Mark(self._mark.group())
        self._position = self._mark.end()
        self._mark = None
        return mark

    def finish(self) -> list[Piece]:
        """What was held back, as text."""
        text = self._text[self._position :]
        self._text, self._position = "", 0
        return [text] if text else []

    def unread(self) -> tuple[str, list[int]]:
        """What was not read yet, and its ids, for a reader that takes over from here."""
        ids: list[int] = []
        if self._mark is not None:
            ids = [i for i, mark in self._marks.items() if mark == self._mark.group()]
        for item in self._expected:
            ids += [*item.run, item.token_id]
        return self._text[self._position :], ids + self._run

    def _find_mark(self) -> re.Match[str] | None:
        for match in _MARK_RE.finditer(self._text, self._position):
            if self._is_token(match.group()):
                return match
        return None

    def _note(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            mark = self._marks.get(token_id)
            if mark is None:
                self._run.append(token_id)
            else:
                self._expected.append(_Expected(mark, token_id, self._run))
                self._run = []

    def _is_token(self, spelling: str) -> bool:
        """Whether the next marker spelling in the text is a marker token."""
        if not self._by_ids:
            return True
        while self._expected:
            item = self._expected[0]
            if item.spelled is None:
                text = self._decode(item.run) if self._decode and item.run else ""
                item.spelled = len(_MARK_RE.findall(text))
            if self._spelled_seen < item.spelled:
                self._spelled_seen += 1
                return False
            self._expected.popleft()
            self._spelled_seen = 0
            if item.mark == spelling:
                return True
            # The server did not show this marker's text: go on with the next one.
        self._spelled_seen += 1
        return False
