"""A client's regular expressions, matched in the server's event loop: bounded in time and size."""

import functools
import re
import time
from typing import Any

import regex

TURN = 0.25  # seconds for all of a tool's patterns in one turn
SEARCH = 0.05  # seconds for one key
_LONGEST = 1000  # characters
_REPEATS = 10_000  # parts that counted repetitions may unroll to: regex does that to compile them
_COUNT_RE = re.compile(r"(\)?)\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")


class Patterns:
    """Matches until the time is spent; from then on nothing matches."""

    def __init__(self) -> None:
        self._left = TURN

    def match(self, pattern: Any, key: str) -> bool:
        """Whether it occurs in `key`; what cannot be read or takes too long describes nothing."""
        if self._left <= 0 or not isinstance(pattern, str):
            return False
        begin = time.perf_counter()
        try:
            compiled = _compiled(pattern)
            return bool(compiled and compiled.search(key, timeout=min(self._left, SEARCH)))
        except TimeoutError:
            return False
        finally:
            self._left -= time.perf_counter() - begin


@functools.lru_cache(maxsize=256)
def _compiled(pattern: str) -> Any:
    """None where it is no pattern, or too large a one."""
    alone, nested = 1, 1
    for group, *counts in _COUNT_RE.findall(pattern):
        count = max(1, *(int(digits[:9] or 0) for digits in counts))
        alone, nested = (alone, nested * count) if group else (alone + count, nested)
    if len(pattern) > _LONGEST or alone * nested > _REPEATS:
        return None
    try:
        return regex.compile(pattern)
    except Exception:  # ECMA patterns that are none here, or whatever regex makes of them
        return None
