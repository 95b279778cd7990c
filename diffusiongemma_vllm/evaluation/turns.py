"""A whole model turn as one text: thought, content and calls, whoever took the turn apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from diffusiongemma_vllm.parsers.events import Arguments, CallStart, Content, Reasoning
from diffusiongemma_vllm.parsers.grammar import Options, Scanner


def from_text(text: str) -> str:
    """Of a turn as the model writes it, markers and all."""
    scanner = Scanner(Options())
    thought, content = "", ""
    calls: list[list[str]] = []
    for event in [*scanner.feed(text), *scanner.finish()]:
        match event:
            case Reasoning():
                thought += event.text
            case Content():
                content += event.text
            case CallStart():
                calls.append([event.name, ""])
            case Arguments():
                calls[event.index][1] += event.json
    return _joined(thought, content, calls)


def from_message(message: Mapping[str, Any]) -> str:
    """Of a chat completion's message."""
    calls = [
        [call["function"]["name"], call["function"]["arguments"]]
        for call in message.get("tool_calls") or ()
    ]
    return _joined(message.get("reasoning") or "", message.get("content") or "", calls)


def _joined(thought: str, content: str, calls: list[list[str]]) -> str:
    read = [[name, _value(arguments)] for name, arguments in calls]
    return json.dumps({"thought": thought.strip(), "content": content.strip(), "calls": read},
                      sort_keys=True)


def _value(arguments: str) -> Any:
    """Arguments are compared as values; broken ones as they stand."""
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
