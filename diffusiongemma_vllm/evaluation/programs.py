"""HumanEval: a function that the model finishes, run against the data set's tests."""

from __future__ import annotations

import re

from diffusiongemma_vllm.evaluation.benchmark import Doc, Score
from diffusiongemma_vllm.evaluation.sandbox import Sandbox

# a fence that opens a block, with what stands before it and its first word
_OPENS = re.compile(r"^(?P<before>.*?)(?P<fence>`{3,}|~{3,})[ \t]*(?P<word>[\w.]*)[^`\n]*$")
_PYTHON = re.compile(r"(?:python|py)[\d.]*|", re.IGNORECASE)
_INDENT = re.compile(r"\s*(?:(?:[-*+]|\d+[.)])\s+)?")  # of a list item too
_FUTURE = re.compile(r"^from[ \t]+__future__[ \t]+import[ \t]+(?:\([^)]*\)|[^\n(]+)$", re.M)


def prompt(doc: Doc) -> str:
    return (
        "Finish this Python function. Reply with the whole function in one ```python block, with "
        f"every import that it needs.\n\n```python\n{doc['prompt'].rstrip()}\n```"
    )


def program(doc: Doc, reply: str) -> str:
    """The reply's function (in its last block that defines it) and the tests that call it."""
    name = doc["entry_point"]
    reply = reply.replace("\r\n", "\n")
    blocks = _blocks(reply) or [reply]
    whole = [block for block in blocks if re.search(rf"^def {re.escape(name)}\b", block, re.M)]
    # the prompt goes first: it holds imports and helpers that a reply may take as given
    body = whole[-1] if whole else blocks[-1]
    given = f"{doc['prompt']}    pass\n" if whole else str(doc["prompt"])
    future = "".join(f"{line}\n" for line in _FUTURE.findall(body))  # Python wants it on top
    return f"{future}{given}\n{_FUTURE.sub('', body)}\n{doc['test']}\ncheck({name})\n"


def _blocks(reply: str) -> list[str]:
    """The fenced blocks that are Python, or do not say what they are."""
    blocks = []
    lines = iter(reply.split("\n"))
    for line in lines:
        opened = _OPENS.match(line)
        if opened is None:
            continue
        code = []
        for inside in lines:
            text, closed, _ = inside.partition(opened["fence"])
            if not closed or text.strip():
                code.append(text if closed else inside)
            if closed:
                break
        if _PYTHON.fullmatch(opened["word"]):
            indent = _INDENT.fullmatch(opened["before"])
            blocks.append(_outdented(code, len(opened["before"]) if indent else 0))
    return blocks


def _outdented(code: list[str], width: int) -> str:
    """Without the indent that the lines owe to the list around them."""
    owed = [len(line) - len(line.lstrip()) for line in code if line.strip()]
    cut = min([width, *owed])
    return "".join(f"{line[cut:]}\n" for line in code)


class InSandbox:
    """One point for a program that ends without an error."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def __call__(self, doc: Doc, reply: str) -> Score:
        return Score(int(self.sandbox.passes(program(doc, reply))))


def refuse(doc: Doc, reply: str) -> Score:
    """What scores where no sandbox was asked for.

    Raises:
        ValueError: always.
    """
    raise ValueError("the model's code runs in a sandbox only: --sandbox bwrap")
