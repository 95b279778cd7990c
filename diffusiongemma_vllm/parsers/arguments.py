"""Read one call's arguments as they come and write them as growing JSON.

Strings whose schema allows a string stream as they are read; every other value goes out when it is
complete.  Forms that are no valid syntax but leave no doubt (JSON or Python quotes, bare words,
trailing commas, Python's literals, a missing delimiter) are read as what they mean; anything else
breaks the call: its JSON stays unclosed and the rest of its text is handed back.
"""

import re
import string

from diffusiongemma_vllm.parsers import values
from diffusiongemma_vllm.parsers.frames import Frame, Outcome, State
from diffusiongemma_vllm.parsers.keys import Found
from diffusiongemma_vllm.parsers.lexer import Mark, Piece, is_stop
from diffusiongemma_vllm.parsers.schema import Schema

_KEY_RE = re.compile(r"[^,:=(){}\[\]]+")
_BARE_RE = re.compile(r"[^,)}\]]+")
_ENDINGS = string.whitespace + ")]}"
_DEEPEST = 200  # levels of brackets; readers of JSON give up not far beyond


class ArgumentReader:
    """Turns the pieces after `NAME{` into JSON; `take()` fetches what is ready."""

    def __init__(self, schema: Schema, opener: str = "{") -> None:
        self.outcome: Outcome | None = None
        self._out: list[str] = []
        self._frames = [Frame(")" if opener == "(" else "}", schema)]
        self._state = State.KEY
        self._word: list[str] = []  # the key or value being read
        self._key_start, self._final = "", False  # text that may become a key that the schema knows
        self._types: values.Types = None  # what the schema allows for it
        self._bare: list[str] = []  # a bare word that may go on after its commas
        self._held: list[Piece] = []  # inside a string: what may turn out to end the call
        self._ending = False  # an end marker is among it
        self._duplicate_at: int | None = None  # depth of an object whose key came before
        self._quote = ""  # the foreign quote, whether the last one may be the closing one
        self._quote_seen = self._escaped = False
        self._readers = {
            State.KEY: self._read_key,
            State.COLON: self._read_colon,
            State.VALUE: self._read_value,
            State.BARE: self._read_bare,
            State.FOREIGN: self._read_foreign,
            State.NEXT: self._read_next,
        }
        self._emit("{")

    def take(self) -> str:
        """The JSON written since the last call."""
        text = "".join(self._out)
        self._out.clear()
        return text

    def feed(self, piece: Piece) -> list[Piece]:
        """Read one piece; what it leaves over belongs to whatever follows the call."""
        if self._state in (State.STRING, State.STRING_KEY):
            return self._in_string(piece)
        if not isinstance(piece, Mark):
            return self._read(piece)
        rest = self._read("", final=True)
        return [*rest, piece] if self.outcome else self._mark(piece)

    def finish(self) -> list[Piece]:
        """The text is over."""
        if self._ending:
            return self._end_in_string()
        rest = self._read("", final=True)
        if self.outcome is None:
            self._string_text("".join(p for p in self._held if not is_stop(p)))
            self._abandon()
        return rest

    # -- outside <|"|> strings --------------------------------------------------------------------

    def _read(self, text: str, *, final: bool = False) -> list[Piece]:
        """final: no more text comes before a marker or the end."""
        text, self._key_start, self._final = self._key_start + text, "", final
        position = 0
        while position < len(text) and self.outcome is None:
            position = self._readers[self._state](text, position)
        return [text[position:]] if position < len(text) else []

    def _mark(self, mark: Mark) -> list[Piece]:
        if mark is Mark.CALL_END:
            self._end()
            return []
        if mark is not Mark.QUOTE:
            self._abandon()
        elif self._state is State.VALUE:
            self._open_string()
        elif self._state is State.KEY and not self._text().strip():
            self._settle_bare()
            self._word.clear()
            self._state = State.STRING_KEY
        elif self._state is State.BARE or (self._state is State.KEY and self._bare):
            self._close_unopened()
        elif self._state is State.FOREIGN:
            self._word.append(mark)
            self._quote_seen = False
        else:
            self._abandon()
        return [mark] if self.outcome else []

    def _read_key(self, text: str, position: int) -> int:
        if not self._word and (known := self._frames[-1].known):
            colons = ":=" if self._frames[0].closer == ")" else ":"
            found = known.find(text, position, colons, final=self._final)
            if found is None:
                self._key_start = text[position:]
                return len(text)
            if isinstance(found, Found):
                self._settle_bare()
                self._start_member(found.key)
                self._state = State.VALUE
                return found.end
        match = _KEY_RE.match(text, position)
        if match:
            self._word.append(match.group())
            return match.end()
        char, frame = text[position], self._frames[-1]
        if char == ":" or (char == "=" and self._frames[0].closer == ")"):
            self._settle_bare()
            self._start_member(values.unquoted(self._text().strip()))
            self._state = State.VALUE
        elif char in (frame.closer, ",") and (self._bare or not self._text().strip()):
            self._extend_bare()
            if char != ",":
                self._settle_bare()
                self._close_frame()
        elif self._bare or char in "=()":
            self._word.append(char)
        else:
            self._abandon()
            return position
        return position + 1

    def _read_colon(self, text: str, position: int) -> int:
        position = values.skip_space(text, position)
        if position < len(text):
            if text[position] not in ":=":
                self._abandon()
                return position
            self._state = State.VALUE
            position += 1
        return position

    def _read_value(self, text: str, position: int) -> int:
        position = values.skip_space(text, position)
        if position == len(text):
            return position
        char, frame = text[position], self._frames[-1]
        if frame.is_array and char in ",]":
            if char == "]":
                self._close_frame()
        elif char in ",)}]":
            if frame.is_array:
                self._abandon()
            else:
                self._scalar(values.bare("", frame.value.types()))
            return position
        elif char in "{[":
            if len(self._frames) == _DEEPEST:
                self._abandon()
                return position
            self._open_frame(char)
        else:
            self._word.clear()
            self._types = frame.value_schema().types()
            self._state = State.FOREIGN if char in "\"'" else State.BARE
            if self._state is State.BARE:
                return position
            self._quote, self._quote_seen, self._escaped = char, False, False
        return position + 1

    def _read_bare(self, text: str, position: int) -> int:
        match = _BARE_RE.match(text, position)
        if match:
            self._word.append(match.group())
            return match.end()
        char, frame = text[position], self._frames[-1]
        if char == ")" and frame.closer != ")":
            self._word.append(char)
            return position + 1
        written = values.bare(self._text(), self._types)
        if char == "," and written.startswith('"') and not frame.is_array:
            self._bare = [self._text()]  # goes on if a delimiter closes it before any colon
            self._word.clear()
            self._state = State.KEY
            return position + 1
        self._scalar(written)
        return position

    def _read_foreign(self, text: str, position: int) -> int:
        """Up to the quote that a comma, a bracket or the end of the call follows."""
        if self._quote_seen:
            after = values.skip_space(text, position)
            self._word.append(text[position:after])
            if after == len(text):
                return after
            position, self._quote_seen = after, False
            if text[position] in ",)}]":
                self._end_foreign()
                return position
        char = text[position]
        self._word.append(char)
        self._quote_seen = char == self._quote and not self._escaped
        self._escaped = char == "\\" and not self._escaped
        return position + 1

    def _read_next(self, text: str, position: int) -> int:
        position = values.skip_space(text, position)
        if position == len(text):
            return position
        char, frame = text[position], self._frames[-1]
        if char == frame.closer:
            self._close_frame()
        elif char == ",":
            self._state = State.VALUE if frame.is_array else State.KEY
        else:
            self._abandon()
            return position
        return position + 1

    # -- <|"|> strings ----------------------------------------------------------------------------

    def _in_string(self, piece: Piece) -> list[Piece]:
        if piece is Mark.QUOTE:
            self._string_text("".join(self._held))
            self._held, self._ending = [], False
            self._close_string()
        elif self._ending:
            if piece is Mark.CALL or is_stop(piece):
                return [*self._end_in_string(), piece]
            self._held.append(piece)
        elif piece is Mark.CALL_END and self._closes_all("".join(self._held)):
            self._held.append(piece)
            self._ending = True
        elif is_stop(piece):
            self._held.append(piece)
        else:
            text = "".join([*self._held, piece])
            end = len(text.rstrip(_ENDINGS)) if self._state is State.STRING else len(text)
            end = max(end, len(text) - 64 - 4 * len(self._frames))
            self._string_text(text[:end])
            self._held = [text[end:]] if end < len(text) else []
        return []

    def _closes_all(self, text: str) -> bool:
        """Whether the brackets at the end of a string would close everything that is open."""
        return "".join(text.split()).endswith("".join(f.closer for f in reversed(self._frames)))

    def _end_in_string(self) -> list[Piece]:
        """The delimiter that closes the string is missing: the end marker ended the call."""
        end = next(i for i, piece in enumerate(self._held) if piece is Mark.CALL_END)
        text, rest = "".join(self._held[:end]).rstrip(), self._held[end + 1 :]
        for frame in reversed(self._frames):
            text = text.removesuffix(frame.closer).rstrip()
        self._held, self._ending = [], False
        self._string_text(text)
        self._close_string()
        self._end()
        return rest

    def _open_string(self) -> None:
        self._word.clear()
        self._types = self._frames[-1].value_schema().types()
        self._state = State.STRING
        if values.may_be_string(self._types):
            self._start_value('"')

    def _string_text(self, text: str) -> None:
        if self._state is State.STRING and values.may_be_string(self._types):
            self._emit(values.string_part(text))
        elif text:
            self._word.append(text)

    def _close_string(self) -> None:
        if self._state is State.STRING_KEY:
            self._start_member(self._text())
            self._state = State.COLON
        elif values.may_be_string(self._types):
            self._emit('"')
            self._end_value()
        else:
            self._scalar(values.quoted(self._text(), self._types))

    # -- members, values, brackets ----------------------------------------------------------------

    def _start_member(self, key: str) -> None:
        frame = self._frames[-1]
        self._word.clear()
        if self._duplicate_at is None and key in frame.keys:
            self._duplicate_at = len(self._frames)  # the first value stands; this one goes nowhere
        frame.keys.add(key)
        frame.value = frame.schema.member(key)
        self._emit(f"{frame.comma()}{values.string(key)}: ")
        if self._duplicate_at is None:
            frame.count += 1

    def _start_value(self, written: str) -> None:
        frame = self._frames[-1]
        if frame.is_array:
            written = frame.comma() + written
            frame.count += 1
        self._emit(written)

    def _end_value(self) -> None:
        self._word.clear()
        if self._duplicate_at == len(self._frames):
            self._duplicate_at = None
        self._state = State.NEXT

    def _scalar(self, written: str) -> None:
        self._start_value(written)
        self._end_value()

    def _open_frame(self, bracket: str) -> None:
        schema = self._frames[-1].value_schema()
        self._start_value(bracket)
        self._word.clear()
        self._frames.append(Frame("]" if bracket == "[" else "}", schema))
        self._state = State.VALUE if bracket == "[" else State.KEY

    def _close_frame(self) -> None:
        self._emit("]" if self._frames.pop().is_array else "}")
        if self._frames:
            self._end_value()
        else:
            self.outcome = Outcome.COMPLETE

    def _extend_bare(self) -> None:
        """What came after a bare word's comma is no key: it belongs to the word."""
        word = self._text()
        if self._bare and word.strip():
            self._bare.append(word)
        self._word.clear()

    def _settle_bare(self) -> None:
        """The bare word before the comma was the whole value."""
        if self._bare:
            word, key = ",".join(self._bare), self._text()
            self._bare.clear()
            self._scalar(values.bare(word, self._types))
            self._word.append(key)

    def _close_unopened(self) -> None:
        """A delimiter closes a string that none opened."""
        text = ",".join([*self._bare, self._text()])
        self._bare.clear()
        self._scalar(values.quoted(text.lstrip(), self._types))

    def _end_foreign(self) -> None:
        text = self._text()
        text = text[: text.rindex(self._quote)]
        self._scalar(values.json_quoted(text, self._quote, self._types))

    def _end(self) -> None:
        """The end marker came: close what is open, unless that is a key or a foreign string."""
        if self._state is State.FOREIGN and self._quote_seen:
            self._end_foreign()
        elif self._state is State.BARE:
            self._scalar(values.bare(self._text(), self._types))
        elif self._state is State.KEY:
            if self._bare:
                self._extend_bare()
            self._settle_bare()
        elif self._state is State.VALUE and not self._frames[-1].is_array:
            self._scalar(values.bare("", self._frames[-1].value.types()))
        if self._state not in (State.NEXT, State.KEY, State.VALUE) or self._text().strip():
            self._abandon()
            return
        while self._frames:
            self._close_frame()

    def _abandon(self) -> None:
        """The call breaks off here: what was read goes out, the JSON stays unclosed."""
        in_key = self._state in (State.KEY, State.STRING_KEY)
        self._settle_bare()
        frame, text = self._frames[-1], self._text()
        if in_key:
            text = text.strip() and f'{frame.comma()}"{values.string_part(text.strip())}'
        elif text:
            opening = "" if self._state is State.BARE else '"'
            comma = frame.comma() if frame.is_array else ""
            text = comma + opening + values.string_part(text)
        self._emit(text)
        self._word.clear()
        self.outcome = Outcome.INCOMPLETE

    def _text(self) -> str:
        return "".join(self._word)

    def _emit(self, text: str) -> None:
        if self._duplicate_at is None and text:
            self._out.append(text)
