"""The examples: deterministic, split without overlap, rendered as the chat API renders them."""

from collections import Counter
from itertools import islice

import pytest
import torch
from data import CHECKPOINT, SCORED, TASKS, heldout, stream
from loader import CANVAS, first, rows, unpack
from tokens import SPECIAL, STOP, VOCAB, decode, encode
from transformers import AutoTokenizer

TEXTS = [
    "",
    " ",
    "  two  spaces ",
    "a\n\n\tb\r\n",
    "สวัสดี",
    "你好，世界",
    "🎉👩‍👩‍👧",
    "<0x41> ▁",
    "\x00\x7fé",
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def test_heldout_is_fixed_balanced_and_distinct():
    examples = heldout(200)
    assert examples == heldout(200)
    assert len({e.prompt for e in examples}) == 200
    counts = Counter(e.task for e in examples)
    assert set(counts) == set(SCORED) == set(TASKS) - {"greet", "count_middle"}
    assert min(counts.values()) >= 12


def test_heldout_prompts_never_come_out_of_the_training_stream():
    held = {e.prompt for e in heldout(200)}
    drawn = list(islice(stream(3), 3000))
    assert drawn == list(islice(stream(3), 3000))
    assert not held & {e.prompt for e in drawn}
    assert not any(e.held_out for e in drawn)
    assert set(SCORED) < {e.task for e in drawn}


def test_long_counts_need_three_canvases():
    counts = {len(list(rows(e))) for e in heldout(200) if e.task == "count_long"}
    assert counts == {3}


def test_prompts_are_what_the_chat_template_gives(tokenizer):
    for example in heldout(44):
        chat = dict(
            conversation=example.messages,
            tools=example.tools or None,
            enable_thinking=example.enable_thinking,
            add_generation_prompt=True,
        )
        assert tokenizer.apply_chat_template(**chat, tokenize=False) == example.prompt
        ids = tokenizer.apply_chat_template(**chat, return_dict=True)["input_ids"]
        assert ids == encode(example.prompt)


def test_generation_prompts_end_as_the_model_continues_them():
    ends = {e.task: e for e in heldout(22)}
    assert ends["add_think"].prompt.endswith("<|turn>model\n")
    assert ends["tool_answer"].prompt.endswith("<tool_response|>")
    for example in heldout(200):
        if not example.enable_thinking and example.task != "tool_answer":
            assert example.prompt.endswith("<|turn>model\n<|channel>thought\n<channel|>")
        assert encode(example.answer)[-1] in STOP


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_every_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids == encode(text)
    assert tokenizer.decode(ids) == decode(ids) == text


def test_special_tokens_are_one_id_each(tokenizer):
    assert len(SPECIAL) == 24 and len(tokenizer) == len(VOCAB) == 384
    for token in SPECIAL:
        assert tokenizer(token)["input_ids"] == [VOCAB[token]]
    assert tokenizer("Hello")["input_ids"][0] != tokenizer.bos_token_id
    assert STOP == [1, 106, 50] and tokenizer.image_token_id == VOCAB["<|image|>"]


def test_rows_split_an_answer_into_canvases():
    example = next(e for e in heldout(200) if len(encode(e.answer)) > 2 * CANVAS)
    parts = list(rows(example))
    said = [token for _, canvas, n in parts for token in canvas[:n]]
    assert said == encode(example.answer)
    assert parts[2][0] == encode(example.prompt) + said[: 2 * CANVAS]
    batch = unpack(torch.from_numpy(first(1)[0]))
    assert batch.canvas.shape[1] == CANVAS
    assert (batch.lengths <= batch.context.shape[1]).all() and (batch.said >= 1).all()
