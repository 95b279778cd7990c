"""What token ids say: where a prompt leaves the turn, which generated tokens are reasoning."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from diffusiongemma_vllm.parsers.grammar import Start
from diffusiongemma_vllm.parsers.lexer import STOPS, Lexer, Mark

_TURN = "<|turn>"
_RESPONSE_END = "<tool_response|>"


class Tokenizer(Protocol):
    """The part of a tokenizer that the parsers use."""

    def get_added_vocab(self) -> dict[str, int]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str: ...


class MarkerIds:
    """The marker tokens of one tokenizer, and what a sequence of ids says through them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocabulary: Mapping[str, int] = tokenizer.get_added_vocab()
        missing = [t for t in [*Mark, _TURN, _RESPONSE_END] if t not in vocabulary]
        if missing:
            raise ValueError(
                f"the tokenizer has no {', '.join(missing)}: the gemma4 parsers need Gemma 4's own"
            )
        self.marks = {vocabulary[mark]: mark for mark in Mark}
        self._bounds = {vocabulary[_TURN], vocabulary[_RESPONSE_END]}
        self._tokenizer = tokenizer

    def lexer(self) -> Lexer:
        """A lexer for text that these tokens spell."""
        return Lexer(self.marks, lambda ids: self._tokenizer.decode(ids, skip_special_tokens=False))

    def start(self, prompt_ids: Sequence[int], thinking: bool) -> Start:
        """Where the prompt leaves the turn."""
        last = self._last_bound(prompt_ids)
        if last is Mark.CHANNEL:
            label_follows = self.marks.get(prompt_ids[-1]) is not Mark.CHANNEL
            return Start.THOUGHT if label_follows else Start.LABEL
        return Start.MAYBE_LABEL if thinking and last is not Mark.CHANNEL_END else Start.TEXT

    def reasoning_ended(self, ids: Sequence[int], thinking: bool) -> bool:
        """Whether the turn is past its thought (or never has one)."""
        last = self._last_bound(ids)
        if last is Mark.CHANNEL:
            return False
        return last in (Mark.CHANNEL_END, Mark.CALL, Mark.CALL_END) or not thinking

    def content_ids(self, ids: Sequence[int]) -> list[int]:
        """The generated ids after the last thought."""
        for i in range(len(ids) - 1, -1, -1):
            if self.marks.get(ids[i]) is Mark.CHANNEL_END:
                return list(ids[i + 1 :])
        return list(ids)

    def count_reasoning(self, ids: Sequence[int], start: Start) -> int:
        """How many of the generated tokens stand in thoughts, markers left out."""
        inside = start in (Start.THOUGHT, Start.LABEL)
        in_call = quoted = False
        count = 0
        for token_id in ids:
            mark = self.marks.get(token_id)
            if mark is None:
                count += inside
            elif mark in STOPS:
                inside = in_call = quoted = False
            elif in_call:
                if mark is Mark.QUOTE:
                    quoted = not quoted
                elif mark is Mark.CALL_END and not quoted:
                    in_call = False
            elif mark is Mark.CALL:
                inside, in_call, quoted = False, True, False
            elif mark in (Mark.CHANNEL, Mark.CHANNEL_END):
                inside = mark is Mark.CHANNEL
        return count

    def _last_bound(self, ids: Sequence[int]) -> Mark | None:
        """The last marker of this turn that opens or closes something; None at its beginning."""
        for token_id in reversed(ids):
            mark = self.marks.get(token_id)
            if mark in (Mark.CHANNEL, Mark.CHANNEL_END, Mark.CALL, Mark.CALL_END):
                return mark
            if token_id in self._bounds:
                return None
        return None
