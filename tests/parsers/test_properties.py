"""Whatever a turn says is read back, however it is cut; whatever else comes is not lost."""

import json
import random
import re
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from turns import SPECIAL, Tokenizer, Turn, chunked, events_of, tokenized

from diffusiongemma_vllm.parsers.events import Arguments, CallStart, Content, Event, Reasoning
from diffusiongemma_vllm.parsers.grammar import Calls, Options, Scanner, Start
from diffusiongemma_vllm.parsers.prompt import MarkerIds

QUOTE = '<|"|>'


def _unmarked(text: str) -> bool:
    return not any(marker in text for marker in SPECIAL)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(_unmarked)
PROSE = st.text(st.sampled_from("ab <|>\"'{}[]:,\n(é🎉=\\"), min_size=1, max_size=30).filter(
    lambda t: bool(t.strip()) and _unmarked(t)
)
BARE_KEY = st.from_regex(r"[A-Za-z_][\w.-]{0,8}", fullmatch=True)
KEY = st.one_of(BARE_KEY.map(lambda k: (k, k)), TEXT.map(lambda k: (k, QUOTE + k + QUOTE)))
NAME = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,12}", fullmatch=True)
SCALAR = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.one_of(TEXT, PROSE),
)
Rendered = tuple[Any, str]  # a value and how the grammar writes it


def _scalar(value: Any) -> Rendered:
    return value, QUOTE + value + QUOTE if isinstance(value, str) else json.dumps(value)


def _array(items: list[Rendered]) -> Rendered:
    return [v for v, _ in items], "[" + ",".join(r for _, r in items) + "]"


def _object(members: list[tuple[tuple[str, str], Rendered]]) -> Rendered:
    value = {key: v for (key, _), (v, _) in members}
    return value, "{" + ",".join(f"{k}:{r}" for (_, k), (_, r) in members) + "}"


def _objects(values: st.SearchStrategy[Rendered]) -> st.SearchStrategy[Rendered]:
    member = st.tuples(KEY, values)
    return st.lists(member, max_size=4, unique_by=lambda m: m[0][0]).map(_object)


VALUE = st.recursive(
    SCALAR.map(_scalar),
    lambda inner: st.one_of(st.lists(inner, max_size=4).map(_array), _objects(inner)),
    max_leaves=8,
)
PART = st.one_of(
    st.tuples(st.just("thought"), TEXT),
    st.tuples(st.just("text"), PROSE),
    st.tuples(st.just("call"), st.tuples(NAME, _objects(VALUE))),
)


def _render(parts: list[tuple[str, Any]]) -> tuple[str, Turn, list[Any]]:
    text, turn, arguments = "", Turn(), []
    for kind, part in parts:
        if kind == "thought":
            text += f"<|channel>thought\n{part}\n<channel|>"
            turn.reasoning += part
        elif kind == "text":
            text += part
            turn.content += part
        else:
            name, (value, written) = part
            text += f"<|tool_call>call:{name}{written}<tool_call|>"
            turn.calls.append((name, ""))
            arguments.append(value)
    return text, turn, arguments


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(PART, max_size=5), st.lists(st.integers(1, 40), min_size=1, max_size=9), st.data())
def test_a_rendered_turn_is_read_back(parts, sizes, data):
    text, wanted, arguments = _render(parts)
    tokenizer = Tokenizer()
    by_ids = tokenized(tokenizer.tokens(text), data.draw(st.integers(1, 60)))
    for deltas, lexer in (
        ([(text, [])], None),
        (chunked(text, [1]), None),
        (chunked(text, sizes), None),
        (by_ids, MarkerIds(tokenizer).lexer()),
    ):
        turn = Turn.of(events_of(deltas, Scanner(lexer=lexer)))
        assert turn.reasoning == wanted.reasoning
        assert turn.content == wanted.content
        assert [name for name, _ in turn.calls] == [name for name, _ in wanted.calls]
        assert all(turn.complete)
        read = [json.loads(a) for _, a in turn.calls]
        assert read == arguments
        assert json.dumps(read) == json.dumps(arguments)  # 1 is not 1.0 is not true


# ------------------------------------------------------------------------------------------- noise

STRUCTURE = [*SPECIAL, "call:", "thought\n", "{", "}", "[", "]", "(", ")", ",", ":", " ", "\n", "="]
STRUCTURE += ['"', "'", "\\", ";", "<", "|>", "<|tool_", "call:f{", "null", "1.5", "true"]


def _noise(generator: random.Random, length: int) -> tuple[str, list[str]]:
    """Markers and punctuation around words that occur nowhere else."""
    parts, words = [], []
    for _ in range(length):
        if generator.random() < 0.35:
            words.append(f"w{len(words)}w")
            parts.append(words[-1])
        else:
            parts.append(generator.choice(STRUCTURE))
    return "".join(parts), words


def _said(events: list[Event]) -> str:
    """Everything that went out, in order."""
    texts = []
    for event in events:
        if isinstance(event, Content | Reasoning):
            texts.append(event.text)
        elif isinstance(event, CallStart):
            texts.append(event.name)
        elif isinstance(event, Arguments):
            texts.append(event.json)
    return "".join(texts)


@pytest.mark.parametrize("calls", Calls)
@pytest.mark.parametrize("start", Start)
def test_noise_never_raises_and_no_word_is_lost(calls, start):
    generator = random.Random(f"{calls}{start}")
    for _ in range(400):
        text, words = _noise(generator, generator.randint(1, 40))
        options = Options(start=start, calls=calls, thoughts=generator.random() < 0.8)
        events = events_of([(text, [])], Scanner(options))
        assert re.findall(r"w\d+w", _said(events)) == words, text
        wanted = Turn.of(events)
        for sizes in ([1], [generator.randint(1, 9) for _ in range(60)]):
            assert Turn.of(events_of(chunked(text, sizes), Scanner(options))) == wanted, text
        tokenizer = Tokenizer()
        deltas = tokenized(tokenizer.tokens(text), generator.randint(1, 30))
        scanner = Scanner(options, MarkerIds(tokenizer).lexer())
        assert Turn.of(events_of(deltas, scanner)) == wanted, text


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(1, 20), min_size=1))
def test_random_bytes_are_content(raw, sizes):
    text = raw.decode("latin-1")
    turn = Turn.of(events_of(chunked(text, sizes), Scanner()))
    assert (turn.content, turn.reasoning, turn.calls) == (text, "", [])


SHAPES = {
    "content": ("", 'x < y "z" {1}\n'),
    "a thought": ("<|channel>thought\n", "so, {a: 1} <- b\n"),
    "a string": ('<|tool_call>call:f{a:<|"|>', 'if (x[0] < y) { return "z"; }\n'),
    "brackets in a string": ('<|tool_call>call:f{a:<|"|>', "}"),
    "an array": ("<|tool_call>call:f{a:[", "1.5,true,"),
    "nesting": ("<|tool_call>call:f{a:", "["),
    "a foreign string": ("<|tool_call>call:f{a:'", "it's, \""),
    "a bare word": ("<|tool_call>call:f{a:", "word, (word) "),
    "calls": ("", '<|tool_call>call:f{a:<|"|>x<|"|>}<tool_call|>'),
    "no calls": ("", "<|tool_call>no call<tool_call|>"),
    "open calls": ("", "<|tool_call>"),
    "end markers in a string": ('<|tool_call>call:f{a:<|"|>', "}<tool_call|> "),
    "blanks": ("<|tool_call>", " "),
    "keys": ("<|tool_call>call:f{", "(k="),
    "nearly markers": ("", "<|tool_call<"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_time_is_linear(shape):
    opening, unit = SHAPES[shape]

    def seconds(kilobytes: int) -> float:
        text = opening + unit * (kilobytes * 1024 // len(unit))
        deltas = chunked(text, [48])
        best = float("inf")
        for _ in range(3):
            begin = time.perf_counter()
            events_of(deltas, Scanner())
            best = min(best, time.perf_counter() - begin)
        return best

    for _attempt in range(3):
        small, large = seconds(64), seconds(256)
        if large <= 6 * small:
            return
    pytest.fail(f"256 kB take {large / small:.1f} times as long as 64 kB ({large:.2f} s)")
