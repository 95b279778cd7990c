"""Tokens that mark and never stand for their spelling: turns, channels, calls, images."""

from __future__ import annotations

from typing import Any


def marker_tokens(tokenizer: Any) -> set[int]:
    """tokenizer: transformers'."""
    return {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids}
