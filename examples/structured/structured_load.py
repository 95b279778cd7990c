"""300 structured outputs, each judged by `jsonschema`, `re` or its choices.

    python examples/structured/structured_load.py           # the miniature, or --model DIR
    python examples/structured/structured_load.py --random  # random weights, bounded constraints

Prints what is not valid, a JSON line for every group and one for all: how many ended, how many of
those are valid, forwards an answer with the constraint and without it, and tokens a forward.
"""

import argparse
import json
import re
import sys
import time
from collections import defaultdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from constraints import TEMPERATURES, Case, cases
from jsonschema import Draft202012Validator, FormatChecker
from random_weights import randomised

from diffusiongemma_vllm.cli.main import MINIATURE

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "miniature"))

FORMATS = FormatChecker()
LIMIT = 1024
CLOCK = r"\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"
# `jsonschema` knows more formats only with more packages installed.
SHAPES = {
    "time": CLOCK,
    "date-time": r"\d{4}-\d\d-\d\dT" + CLOCK,
    "duration": r"P(?=.)(\d+[YMWD])*(T(?=.)(\d+[HMS])*)?",
    "hostname": r"[a-zA-Z0-9-]{1,63}(\.[a-zA-Z0-9-]{1,63})*",
    "uri": r"[a-zA-Z][a-zA-Z0-9+.-]*:\S*",
}
for name, shape in SHAPES.items():
    FORMATS.checks(name)(lambda text, shape=shape: bool(re.fullmatch(shape, text, re.I)))
FORMATS.checks("date", raises=ValueError)(lambda text: bool(date.fromisoformat(text)))


class Request(NamedTuple):
    case: Case
    temperature: float
    seed: int


class Answer(NamedTuple):
    text: str
    ended: bool
    tokens: int
    forwards: int


def requests(*, bounded: bool = False, every: int = 1) -> list[Request]:
    """All of them, or those of bounded constraints; of these every so many."""
    found = [
        Request(case, temperature, seed)
        for seed, case in enumerate(cases())
        for temperature in TEMPERATURES
        if case.bounded or not bounded
    ]
    return found[::every]


def problem(case: Case, text: str) -> str:
    """What is wrong with a text that ended; empty where it is valid."""
    kind, constraint = next(iter(case.constraint.items()))
    if kind == "regex":
        return "" if re.fullmatch(constraint, text) else f"does not match {constraint}"
    if kind == "choice":
        return "" if text in constraint else f"is none of {constraint}"
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"is no JSON: {error}"
    errors = Draft202012Validator(constraint, format_checker=FORMATS).iter_errors(value)
    return "; ".join(error.message for error in errors)


def params(request: Request, *, limit: int, free: bool = False, steps: int | None = None) -> Any:
    """vLLM's; free: without the constraint."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    constraint = None if free else StructuredOutputsParams(**request.case.constraint)
    return SamplingParams(
        temperature=request.temperature, seed=request.seed, max_tokens=limit,
        structured_outputs=constraint,
        extra_args={"diffusion_max_denoising_steps": steps} if steps else None,
    )


def ask(llm: Any, asked: list[Request], **options: Any) -> list[Answer]:
    outputs = llm.chat(
        [[{"role": "user", "content": one.case.prompt}] for one in asked],
        [params(one, **options) for one in asked],
        chat_template_kwargs={"enable_thinking": False},
    )
    return [answer(output.outputs[0]) for output in outputs]


def answer(output: Any) -> Answer:
    ended = output.finish_reason == "stop"
    return Answer(output.text, ended, len(output.token_ids), output.diffusion["forwards"])


def summary(asked: list[Request], bound: list[Answer], free: list[Answer]) -> dict:
    ended = [(one.case, told) for one, told in zip(asked, bound, strict=True) if told.ended]
    count = len(asked)
    return {
        "requests": count,
        "ended": len(ended),
        "valid": sum(not problem(case, told.text) for case, told in ended),
        "forwards": round(sum(told.forwards for told in bound) / count, 1),
        "forwards_without": round(sum(told.forwards for told in free) / count, 1),
        "tokens_a_forward": round(
            sum(told.tokens for told in bound) / sum(told.forwards for told in bound), 2
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path(MINIATURE))
    parser.add_argument("--random", action="store_true", help="with random weights in their place")
    parser.add_argument("--steps", type=int, help="denoise steps of a canvas at most")
    parser.add_argument("--every", type=int, default=1, help="only every so many")
    parser.add_argument("--backend", default="auto", help="vLLM's for structured outputs")
    parser.add_argument("--batch", type=int, default=8, help="requests at a time")
    args = parser.parse_args()
    from offline import start

    with TemporaryDirectory() as folder:
        model = randomised(args.model, Path(folder)) if args.random else args.model
        llm = start(
            model=str(model), max_model_len=2048, max_num_seqs=args.batch,
            structured_outputs_config={"backend": args.backend},
        )
        asked = requests(bounded=args.random, every=args.every)
        began = time.monotonic()
        bound = ask(llm, asked, limit=LIMIT, steps=args.steps)
        seconds = time.monotonic() - began
        free = ask(llm, asked, limit=LIMIT, steps=args.steps, free=True)
    groups: dict[str, list[int]] = defaultdict(list)
    for i, one in enumerate(asked):
        groups[one.case.name.partition("/")[0]].append(i)
        wrong = problem(one.case, bound[i].text) if bound[i].ended else "did not end"
        if wrong:
            print(f"{one.case.name} at {one.temperature}: {wrong}: {bound[i].text[:200]!r}")
    for group, places in groups.items():
        parts = ([found[i] for i in places] for found in (asked, bound, free))
        print(json.dumps({"group": group} | summary(*parts)))
    whole = summary(asked, bound, free)
    settings = {"backend": args.backend, "random": args.random, "seconds": round(seconds),
                "versions": {name: version(name) for name in ("torch", "xgrammar", "jsonschema")}}
    print(json.dumps(whole | settings), flush=True)
    return 0 if whole["valid"] == whole["ended"] >= 0.95 * len(asked) else 1


if __name__ == "__main__":  # vLLM starts its engine in a process that imports this file
    sys.exit(main())
