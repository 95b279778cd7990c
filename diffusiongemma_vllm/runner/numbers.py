"""Numbers of a request that its arithmetic, or the way to the engine, could not hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isnan
from typing import Any

from vllm.exceptions import VLLMValidationError

WHOLE = 1 << 63  # below it, and from its negative on, messages to the engine take whole numbers
PENALTY = 1e6  # logits, which are below 30, stay finite times it
HUGE = 10**300
BIAS = 1e30  # likewise, divided by the lowest temperature


def check(params: Any) -> None:
    """Raises VLLMValidationError for a number of vLLM's ``SamplingParams`` that is out of range."""
    for name in params.__struct_fields__:
        for number in _whole(getattr(params, name)):
            if not -WHOLE <= number < WHOLE:
                _refuse(name, "hold whole numbers below 2^63", number)
    if not 1 / PENALTY <= params.repetition_penalty <= PENALTY:
        _refuse("repetition_penalty", f"be a number of {1 / PENALTY:g}..{PENALTY:g}",
                params.repetition_penalty)
    for bias in (params.logit_bias or {}).values():
        if isnan(bias) or bias > BIAS:
            _refuse("logit_bias", f"hold numbers of at most {BIAS:g}", bias)


def _whole(value: Any) -> Iterator[int]:
    """Those in a field, at any depth."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from _whole(pair)
    elif isinstance(value, list | tuple | set):
        for one in value:
            yield from _whole(one)
    elif hasattr(value, "__dataclass_fields__") or hasattr(value, "__struct_fields__"):
        for name in getattr(value, "__struct_fields__", ()) or value.__dataclass_fields__:
            yield from _whole(getattr(value, name))


def _refuse(name: str, must: str, number: float) -> None:
    huge = isinstance(number, int) and abs(number) >= HUGE
    shown = "one of more than 300 digits" if huge else f"{number:g}"
    raise VLLMValidationError(f"{name} must {must}, got {shown}", parameter=name)
