"""Turns to parse: a tokenizer with Gemma 4's markers, ways to cut a text, results to compare."""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from diffusiongemma_vllm.parsers.events import (
    Arguments,
    CallEnd,
    CallStart,
    Content,
    Event,
    Reasoning,
)
from diffusiongemma_vllm.parsers.grammar import Options, Scanner
from diffusiongemma_vllm.parsers.prompt import MarkerIds

SPECIAL = {
    "<pad>": 0, "<eos>": 1, "<bos>": 2, "<|tool>": 46, "<tool|>": 47, "<|tool_call>": 48,
    "<tool_call|>": 49, "<|tool_response>": 50, "<tool_response|>": 51, '<|"|>': 52,
    "<|think|>": 98, "<|channel>": 100, "<channel|>": 101, "<|turn>": 105, "<turn|>": 106,
}  # fmt: skip
_SPECIAL_RE = re.compile("|".join(map(re.escape, SPECIAL)))
_WORD_RE = re.compile(r" ?\w{1,6}|\s|[^\w\s]{1,2}")

Token = tuple[int, str]


class Tokenizer:
    """Markers under their real ids, everything else in little pieces."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._texts = {i: t for t, i in SPECIAL.items()}
        self.all_special_tokens = list(SPECIAL)
        self.all_special_ids = list(SPECIAL.values())

    def get_vocab(self) -> dict[str, int]:
        return dict(SPECIAL)

    get_added_vocab = get_vocab

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(self._texts[i] for i in ids)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [i for i, _ in self.tokens(text)]

    def tokens(self, text: str, spelled: Sequence[str] = ()) -> list[Token]:
        """(id, text) of each token; the markers in `spelled` are written with ordinary tokens."""
        tokens: list[Token] = []
        position = 0
        for match in _SPECIAL_RE.finditer(text):
            if match.group() not in spelled:
                tokens += self._plain(text[position : match.start()])
                tokens.append((SPECIAL[match.group()], match.group()))
                position = match.end()
        return tokens + self._plain(text[position:])

    def _plain(self, text: str) -> list[Token]:
        pieces = _WORD_RE.findall(text)
        for piece in pieces:
            if piece not in self._ids:
                self._ids[piece] = 1000 + len(self._ids)
                self._texts[self._ids[piece]] = piece
        return [(self._ids[p], p) for p in pieces]


@dataclass
class Turn:
    """What came out."""

    reasoning: str = ""
    content: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    complete: list[bool] = field(default_factory=list)

    @classmethod
    def of(cls, events: Iterable[Event]) -> "Turn":
        """Put events together, checking that they come in an order that makes sense."""
        turn = cls()
        for event in events:
            if isinstance(event, Reasoning):
                turn.reasoning += event.text
            elif isinstance(event, Content):
                turn.content += event.text
            elif isinstance(event, CallStart):
                assert event.index == len(turn.calls) == len(turn.complete)
                turn.calls.append((event.name, ""))
            elif isinstance(event, Arguments):
                assert event.index == len(turn.calls) - 1 == len(turn.complete)
                name, arguments = turn.calls[-1]
                turn.calls[-1] = (name, arguments + event.json)
            elif isinstance(event, CallEnd):
                assert event.index == len(turn.calls) - 1 == len(turn.complete)
                turn.complete.append(event.complete)
        assert len(turn.complete) == len(turn.calls)
        return turn


def events_of(deltas: Iterable[tuple[str, list[int]]], scanner: Scanner) -> list[Event]:
    events: list[Event] = []
    for text, ids in deltas:
        events += scanner.feed(text, ids)
    return events + scanner.finish()


def whole(text: str, options: Options | None = None) -> Turn:
    """The turn read at once, without token ids."""
    return Turn.of(events_of([(text, [])], Scanner(options)))


def chunked(text: str, sizes: Iterable[int]) -> list[tuple[str, list[int]]]:
    """The text in chunks of the given sizes, the last one repeated."""
    deltas, position, size = [], 0, 1
    sizes = iter(sizes)
    while position < len(text):
        size = next(sizes, size)
        deltas.append((text[position : position + size], []))
        position += size
    return deltas


def tokenized(tokens: list[Token], size: int) -> list[tuple[str, list[int]]]:
    """Deltas of `size` tokens, with their ids."""
    groups = [tokens[i : i + size] for i in range(0, len(tokens), size)]
    return [("".join(t for _, t in g), [i for i, _ in g]) for g in groups]


def every_way(text: str, options: Options | None = None, seed: int = 0) -> dict[str, Turn]:
    """The turn at once, by characters, at random cuts, and in bursts of tokens."""
    generator = random.Random(seed)
    tokenizer = Tokenizer()
    markers, tokens = MarkerIds(tokenizer), tokenizer.tokens(text)
    ways = {"whole": [(text, [])], "characters": chunked(text, [1])}
    for n in range(3):
        sizes = [generator.randint(1, 12) for _ in range(len(text))]
        ways[f"random cuts {n}"] = chunked(text, sizes)
    turns = {way: Turn.of(events_of(d, Scanner(options))) for way, d in ways.items()}
    for size in (1, 5, 64, 256):
        scanner = Scanner(options, markers.lexer())
        turns[f"{size} tokens"] = Turn.of(events_of(tokenized(tokens, size), scanner))
    return turns
