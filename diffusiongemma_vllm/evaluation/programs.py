"""HumanEval: a function that the model finishes, run against the data set's tests."""

from __future__ import annotations

import re

from diffusiongemma_vllm.evaluation.benchmark import Doc, Score
from diffusiongemma_vllm.evaluation.sandbox import Sandbox

_FENCED = re.compile(r"```[ \t]*(?:python|py|Python)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def prompt(doc: Doc) -> str:
    return (
        "Finish this Python function. Reply with the whole function in one ```python block, with "
        f"every import that it needs.\n\n```python\n{doc['prompt'].rstrip()}\n```"
    )


def program(doc: Doc, reply: str) -> str:
    """The reply's function (in its last block that defines it) and the tests that call it."""
    name = doc["entry_point"]
    blocks = _FENCED.findall(reply) or [reply]
    whole = [block for block in blocks if re.search(rf"^def {re.escape(name)}\b", block, re.M)]
    # the prompt goes first: it holds imports and helpers that a reply may take as given
    body = whole[-1] if whole else blocks[-1]
    given = f"{doc['prompt']}    pass\n" if whole else str(doc["prompt"])
    return f"{given}\n{body}\n{doc['test']}\ncheck({name})\n"


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
