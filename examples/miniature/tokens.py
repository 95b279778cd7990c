"""The miniature's vocabulary: characters, bytes and Gemma 4's special tokens.

384 ids. The 17 text specials and the newline keep the ids they have in google/gemma-4-26B-A4B-it's
tokenizer (so eos is [1, 106, 50] here too); the seven media specials close the table; printable
ASCII, the 256 bytes and eight unused entries fill what lies between. Every text is encoded by one
token a character, or by its UTF-8 bytes where the character has none, so decoding gives it back.
"""

import json
import re
from pathlib import Path

VOCAB_SIZE = 384

_GEMMA = {
    "<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4,
    "<|tool>": 46, "<tool|>": 47, "<|tool_call>": 48, "<tool_call|>": 49,
    "<|tool_response>": 50, "<tool_response|>": 51, '<|"|>': 52, "<|think|>": 98,
    "<|channel>": 100, "<channel|>": 101, "<|turn>": 105, "<turn|>": 106,
}  # fmt: skip
_MEDIA = [
    "<|image>", "<|audio>", "<|image|>", "<|audio|>", "<image|>", "<audio|>", "<|video|>",
]  # fmt: skip
_NEWLINE = 107


def _layout() -> dict[str, int]:
    fixed = {**_GEMMA, "\n": _NEWLINE}
    fixed |= {token: VOCAB_SIZE - len(_MEDIA) + i for i, token in enumerate(_MEDIA)}
    free = (i for i in range(VOCAB_SIZE) if i not in set(fixed.values()))
    plain = [chr(c) for c in range(32, 127)] + [f"<0x{b:02X}>" for b in range(256)]
    plain += [f"<unused{i}>" for i in range(VOCAB_SIZE - len(fixed) - len(plain))]
    return dict(sorted((fixed | dict(zip(plain, free, strict=True))).items(), key=lambda e: e[1]))


VOCAB = _layout()
SPECIAL = [*_GEMMA, *_MEDIA]
PAD, EOS, BOS = VOCAB["<pad>"], VOCAB["<eos>"], VOCAB["<bos>"]
STOP = [EOS, VOCAB["<turn|>"], VOCAB["<|tool_response>"]]
_TOKEN = {i: token for token, i in VOCAB.items()}
_SPLIT = re.compile("(" + "|".join(re.escape(t) for t in sorted(SPECIAL, key=len)[::-1]) + ")")


def encode(text: str) -> list[int]:
    """Token ids of `text`, special tokens recognised: tokenizer.json in plain Python."""
    ids: list[int] = []
    for part in _SPLIT.split(text):
        if part in SPECIAL:
            ids.append(VOCAB[part])
            continue
        for char in part:
            known = VOCAB.get(char)
            ids += [VOCAB[f"<0x{b:02X}>"] for b in char.encode()] if known is None else [known]
    return ids


def decode(ids: list[int]) -> str:
    """The text of `ids`, special tokens written out."""
    data = bytearray()
    for i in ids:
        token = _TOKEN[int(i)]
        byte = re.fullmatch("<0x(..)>", token)
        data += bytes([int(byte[1], 16)]) if byte else token.encode()
    return data.decode(errors="replace")


def _tokenizer_json() -> dict:
    added = [
        {"id": VOCAB[token], "content": token, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, "special": True}
        for token in sorted(SPECIAL, key=VOCAB.__getitem__)
    ]  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>",
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
            "byte_fallback": True, "ignore_merges": False, "vocab": VOCAB, "merges": [],
        },
    }  # fmt: skip


_ROLES = {
    "audio_token": "<|audio|>", "boa_token": "<|audio>", "boi_token": "<|image>",
    "eoa_token": "<audio|>", "eoc_token": "<channel|>", "eoi_token": "<image|>",
    "eot_token": "<turn|>", "escape_token": '<|"|>', "etc_token": "<tool_call|>",
    "etd_token": "<tool|>", "etr_token": "<tool_response|>", "image_token": "<|image|>",
    "soc_token": "<|channel>", "sot_token": "<|turn>", "stc_token": "<|tool_call>",
    "std_token": "<|tool>", "str_token": "<|tool_response>", "think_token": "<|think|>",
}  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json for AutoTokenizer. No BOS: the template emits it."""
    config = {
        "backend": "tokenizers",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "Gemma4Processor",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 262144,
        "padding_side": "left",
        "pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>",
        "unk_token": "<unk>", "mask_token": "<mask>",
        **_ROLES,
        "model_specific_special_tokens": _ROLES,
        "extra_special_tokens": ["<|video|>"],
    }  # fmt: skip
    for name, content in (("tokenizer.json", _tokenizer_json()), ("tokenizer_config.json", config)):
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
