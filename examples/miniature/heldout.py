"""Write the 200 held-out chats as the data set that `diffusiongemma-vllm eval miniature` asks.

    python examples/miniature/heldout.py
"""

import json
from pathlib import Path

from data import heldout

PATH = Path(__file__).parents[2] / "diffusiongemma_vllm/evaluation/data/heldout/test.jsonl"


def openai(message: dict) -> dict:
    """A message as the OpenAI API takes it: a call's arguments are a string of JSON."""
    calls = [
        {**call, "function": {**call["function"],
                              "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    return message | ({"tool_calls": calls} if calls else {})


def lines() -> str:
    """One JSON object a line; a chat is a string, since its messages differ in their fields."""
    rows = []
    for example in heldout(200):
        chat = {
            "messages": [openai(message) for message in example.messages],
            "tools": example.tools,
            "enable_thinking": example.enable_thinking,
        }
        rows.append({"task": example.task, "chat": json.dumps(chat), "answer": example.answer})
    return "".join(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text(lines(), encoding="utf-8")
    print(PATH)
