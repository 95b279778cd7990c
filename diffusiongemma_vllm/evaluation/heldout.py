"""The miniature's own benchmark: 200 chats that it was not trained on, answered exactly or not.

``data/heldout/test.jsonl`` is written by ``examples/miniature/heldout.py`` and ships.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusiongemma_vllm.evaluation import turns
from diffusiongemma_vllm.evaluation.benchmark import Benchmark, Doc, Score, Source

DATA = Path(__file__).parent / "data"
# Chats to calibrate NVFP4 with; none is held out.
CALIBRATION = ("What is 11 + 12?", "Count from 1 to 12.", "Reverse: red blue green", "Hi")


class RecordedChat:
    """A chat with its tools, as recorded; the whole turn is the answer."""

    def request(self, doc: Doc, text: str) -> dict[str, Any]:
        chat = json.loads(doc["chat"])
        asked = {
            "messages": chat["messages"],
            "chat_template_kwargs": {"enable_thinking": chat["enable_thinking"]},
        }
        return asked | ({"tools": chat["tools"]} if chat["tools"] else {})

    def answer(self, message: Mapping[str, Any]) -> str:
        return turns.from_message(message)


def chat(doc: Doc) -> str:
    return str(doc["chat"])


def score(doc: Doc, reply: str) -> Score:
    return Score(int(reply == turns.from_text(doc["answer"])))


HELDOUT = Benchmark(
    "miniature", "the miniature", Source("heldout", None, "test"), chat, score,
    chat=RecordedChat(),
)
