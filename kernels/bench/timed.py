from collections.abc import Callable
from typing import NamedTuple


class Timed(NamedTuple):
    """One case: what to run, what it must move or multiply, and what to compare it with."""

    case: str
    run: Callable[[], object]
    bytes: int = 0
    flops: int = 0
    baseline: Callable[[], object] | None = None
    facts: dict | None = None  # more for the line
