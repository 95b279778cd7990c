"""Marker tokens and their spelling, text that lags behind its ids, and what ids say."""

import json

import pytest
from turns import SPECIAL, Tokenizer, Turn, events_of, tokenized

from diffusiongemma_vllm.parsers.grammar import Scanner, Start
from diffusiongemma_vllm.parsers.lexer import Lexer, Mark
from diffusiongemma_vllm.parsers.prompt import MarkerIds

CALL = '<|tool_call>call:f{a:<|"|>x<|"|>}<tool_call|>'


def read(tokens, size):
    tokenizer = TOKENIZER
    return Turn.of(events_of(tokenized(tokens, size), Scanner(lexer=MarkerIds(tokenizer).lexer())))


TOKENIZER = Tokenizer()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("spelled", [["<|tool_call>", "<tool_call|>"], ["<|tool_call>"]])
def test_a_spelled_marker_is_text(spelled, size):
    """Whole calls written out in prose, with real calls before and after."""
    prose = TOKENIZER.tokens("Write <|tool_call>call:g{}, then.", ["<|tool_call>"])
    if len(spelled) == 2:
        prose = TOKENIZER.tokens("Write <|tool_call>call:g{}<tool_call|>.", spelled)
    call = TOKENIZER.tokens(CALL)
    turn = read([*call, *prose, *call, *prose], size)
    assert [name for name, _ in turn.calls] == ["f", "f"]
    assert turn.content == "".join(t for _, t in prose) * 2


@pytest.mark.parametrize("size", [1, 4, 100])
def test_spelled_markers_in_strings_and_thoughts(size):
    string = TOKENIZER.tokens(
        '<|"|> <channel|> <tool_call|>', ['<|"|>', "<channel|>", "<tool_call|>"]
    )
    quote = [(SPECIAL['<|"|>'], '<|"|>')]
    head, tail = TOKENIZER.tokens("<|tool_call>call:f{a:"), TOKENIZER.tokens("}<tool_call|>")
    thought = TOKENIZER.tokens("<|channel>thought\n")
    end = TOKENIZER.tokens("<channel|>")
    turn = read([*thought, *string, *end, *head, *quote, *string, *quote, *tail], size)
    written = "".join(t for _, t in string)
    assert turn.reasoning == written
    assert [json.loads(arguments) for _, arguments in turn.calls] == [{"a": written}]


@pytest.mark.parametrize("size", [1, 3, 10, 40])
@pytest.mark.parametrize("lag", [1, 5, 12, 30])
def test_text_may_lag_behind_its_ids(size, lag):
    """A stop string makes the server hold characters back."""
    tokens = TOKENIZER.tokens(f"<|channel>thought\nHm.<channel|>One. {CALL} Two. {CALL}")
    deltas, full, sent = [], "", 0
    for text, ids in tokenized(tokens, size):
        full += text
        upto = max(sent, len(full) - lag)
        deltas.append((full[sent:upto], ids))
        sent = upto
    deltas.append((full[sent:], []))
    turn = Turn.of(events_of(deltas, Scanner(lexer=MarkerIds(TOKENIZER).lexer())))
    assert (turn.reasoning, turn.content) == ("Hm.", "One.  Two. ")
    assert turn.calls == [("f", '{"a": "x"}')] * 2


@pytest.mark.parametrize("size", [1, 4, 100])
def test_a_hidden_stop_token_confuses_nothing(size):
    tokens = [*TOKENIZER.tokens("Yes."), (SPECIAL["<turn|>"], ""), *TOKENIZER.tokens(CALL)]
    turn = read(tokens, size)
    assert turn.content == "Yes." and [n for n, _ in turn.calls] == ["f"]


def test_a_marker_cut_in_two_without_ids():
    lexer = Lexer()
    assert lexer.feed("a <|tool_c") == ["a "]
    assert lexer.feed("all>b") == [Mark.CALL, "b"]
    assert lexer.feed("<|tool_c") == []
    assert lexer.finish() == ["<|tool_c"]


def test_unread_text_and_ids_can_be_handed_over():
    tokens = TOKENIZER.tokens("<|channel>thought\nHm.<channel|>One <|tool_call>call")
    lexer = MarkerIds(TOKENIZER).lexer()
    lexer.add("".join(t for _, t in tokens), [i for i, _ in tokens])
    while lexer.next() is not Mark.CHANNEL_END:
        pass
    text, ids = lexer.unread()
    assert text == "One <|tool_call>call"
    assert TOKENIZER.decode(ids) == text


def test_the_tokenizer_must_have_the_markers():
    class Other(Tokenizer):
        def get_added_vocab(self):
            return {"<|endoftext|>": 0}

    with pytest.raises(ValueError, match="tool_call"):
        MarkerIds(Other())


PROMPTS = [
    ("<|turn>user\nHi<turn|>\n<|turn>model\n", Start.TEXT, Start.MAYBE_LABEL),
    ("<|turn>model\n<|channel>thought\n<channel|>", Start.TEXT, Start.TEXT),
    ("<|turn>model\n<|channel>thought\n", Start.THOUGHT, Start.THOUGHT),
    ("<|turn>model\n<|channel>", Start.LABEL, Start.LABEL),
    (f"{CALL}<|tool_response>response:f{{}}<tool_response|>", Start.TEXT, Start.MAYBE_LABEL),
    ("<|channel>thought\nold<channel|>x<turn|>\n<|turn>model\n", Start.TEXT, Start.MAYBE_LABEL),
]


@pytest.mark.parametrize(("prompt", "without", "thinking"), PROMPTS)
def test_where_a_prompt_leaves_the_turn(prompt, without, thinking):
    markers, ids = MarkerIds(TOKENIZER), TOKENIZER.encode(prompt)
    assert markers.start(ids, False) is without
    assert markers.start(ids, True) is thinking


def test_reasoning_tokens_are_those_in_thoughts():
    markers = MarkerIds(TOKENIZER)
    thought = len(TOKENIZER.tokens("thought\nHm, so."))
    turn = f"<|channel>thought\nHm, so.<channel|>Text {CALL.replace('x', '<|channel>')} more"
    assert markers.count_reasoning(TOKENIZER.encode(turn), Start.MAYBE_LABEL) == thought
    rest = TOKENIZER.encode(f"so.{CALL}<|channel>a<turn|>")
    wanted = len(TOKENIZER.encode("so.")) + len(TOKENIZER.encode("a"))
    assert markers.count_reasoning(rest, Start.THOUGHT) == wanted
