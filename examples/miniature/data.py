"""Examples: chats rendered by the real chat template, split by hash into training and held-out.

`stream(seed)` yields training examples for ever; `heldout(200)` is the fixed test set, balanced
over `SCORED`. A prompt belongs to the test set when the first byte of the SHA-256 of its rendered
text is divisible by 16, so neither side can meet the other's prompts.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random

import tasks
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tasks import Question
from tools import draw_call

CHECKPOINT = Path(__file__).parents[2] / "diffusiongemma_vllm" / "miniature"

# task: (maker, share of the training examples, share of them asked to think)
TASKS = {
    "add": (tasks.add, 0.08, 0.0),
    "add_think": (tasks.add, 0.06, 1.0),
    "sort": (tasks.sort, 0.24, 0.1),
    "reverse": (tasks.reverse, 0.06, 0.1),
    "count_short": (tasks.count_short, 0.10, 0.1),
    "count_middle": (tasks.count_middle, 0.09, 0.05),
    "count_long": (tasks.count_long, 0.09, 0.05),
    "call_one": (tasks.call_one, 0.05, 0.15),
    "call_two": (tasks.call_two, 0.09, 0.15),
    "tool_answer": (tasks.tool_answer, 0.06, 0.1),
    "fill_json": (tasks.fill_json, 0.08, 0.1),
    "gap": (tasks.gap, 0.17, 0.1),
    "greet": (tasks.greet, 0.02, 0.1),
}
SCORED = [name for name in TASKS if name not in ("greet", "count_middle")]
_SHORT = ["add", "sort", "reverse", "count_short", "fill_json", "gap", "greet"]
_SYSTEMS = ["You are a helpful assistant.", "Be brief.", "Answer exactly."]
_STOP_TURN, _STOP_CALL = "<turn|>", "<|tool_response>"


@dataclass(frozen=True)
class Example:
    """One chat. `answer` is all the model must write, stop token and markup included."""

    task: str
    messages: list[dict]
    tools: list[dict]
    enable_thinking: bool
    answer: str
    prompt: str

    @property
    def held_out(self) -> bool:
        # greetings are few: all of them are for training
        return self.task != "greet" and sha256(self.prompt.encode()).digest()[0] % 16 == 0


@cache
def _template():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    return env.from_string((CHECKPOINT / "chat_template.jinja").read_text(encoding="utf-8"))


def render(messages: list[dict], tools: list[dict], enable_thinking: bool) -> str:
    """The prompt text, as tokenizer.apply_chat_template(..., add_generation_prompt=True) gives."""
    return _template().render(
        messages=messages,
        tools=tools or None,
        enable_thinking=enable_thinking,
        add_generation_prompt=True,
        bos_token="<bos>",
    )


def _answer(task: str, question: Question, thinking: bool) -> str:
    said = question.answer + _STOP_TURN
    if task in ("call_one", "call_two"):
        said = "".join(call.gemma() for call in question.calls) + _STOP_CALL
    # after a tool result the turn goes on: there is nothing left to think about
    if thinking and task != "tool_answer":
        return f"<|channel>thought\n{question.thought}\n<channel|>{said}"
    return said


def _asked(rng: Random, question: Question) -> list[dict]:
    """The question and, if it comes with calls, the assistant's calls and their results.

    Some clients send the thought in front of a call back with it.
    """
    messages = [{"role": "user", "content": question.text}]
    if question.answer and question.calls:
        calls = [call.openai(i) for i, call in enumerate(question.calls)]
        thought = {"reasoning": f"I call {question.calls[0].name}."} if rng.random() < 0.3 else {}
        messages.append({"role": "assistant", "content": "", "tool_calls": calls, **thought})
        messages += [
            {"role": "tool", "tool_call_id": call["id"], "content": made.result}
            for call, made in zip(calls, question.calls, strict=True)
        ]
    return messages


def _history(rng: Random) -> tuple[list[dict], list[dict]]:
    """An earlier turn pair, now and then with a tool call in it; and its tools."""
    name = "tool_answer" if rng.random() < 0.15 else rng.choice(_SHORT)
    question = TASKS[name][0](rng)
    answer = {"role": "assistant", "content": question.answer}
    return [*_asked(rng, question), answer], question.tools


def draw(rng: Random, task: str | None = None) -> Example:
    """One example, of `task` or of any; the caller looks at `held_out`."""
    if task is None:
        task = rng.choices(list(TASKS), [share for _, share, _ in TASKS.values()])[0]
    make, _, think_share = TASKS[task]
    question = make(rng)
    thinking = rng.random() < think_share
    messages, tools = [], list(question.tools)
    if rng.random() < 0.1:
        messages.append({"role": "system", "content": rng.choice(_SYSTEMS)})
    if rng.random() < 0.15:
        before, known = _history(rng)
        messages += before
        tools += [tool for tool in known if tool not in tools]
    messages += _asked(rng, question)
    if not tools and rng.random() < 0.04:
        tools = [draw_call(rng)[0]]
    prompt = render(messages, tools, thinking)
    return Example(task, messages, tools, thinking, _answer(task, question, thinking), prompt)


def stream(seed: int) -> Iterator[Example]:
    """Training examples for ever; held-out prompts never come out of it."""
    rng = Random(f"train-{seed}")
    while True:
        example = draw(rng)
        if not example.held_out:
            yield example


def heldout(count: int = 200) -> list[Example]:
    """`count` fixed held-out examples with distinct prompts, the tasks in turn."""
    rng = Random("held-out")
    chosen: list[Example] = []
    seen: set[str] = set()
    for i in range(count):
        while True:
            example = draw(rng, SCORED[i % len(SCORED)])
            if example.held_out and example.prompt not in seen:
                break
        seen.add(example.prompt)
        chosen.append(example)
    return chosen


def table(correct: list[bool], examples: list[Example]) -> dict[str, float]:
    """Exact-match share per task, and of all under "all"."""
    right, total = Counter(), Counter()
    for ok, example in zip(correct, examples, strict=True):
        for key in (example.task, "all"):
            right[key] += ok
            total[key] += 1
    return {key: right[key] / total[key] for key in [*SCORED, "all"] if total[key]}
