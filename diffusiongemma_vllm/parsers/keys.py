"""Keys that a schema knows and that, written bare, look like more than a key."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

_DELIMITERS = frozenset(",:=(){}[]\"'")
_SPACES = 64  # white space to either side of a key; with more of it there is no key here


@dataclass(frozen=True)
class Found:
    key: str
    end: int  # behind its colon


class KnownKeys:
    """The keys of one object that the grammar alone would misread: `xml:lang`, `a,b`, `x[y]`."""

    def __init__(self, keys: Iterable[str]) -> None:
        odd = [key for key in keys if key != key.strip() or not _DELIMITERS.isdisjoint(key)]
        spelled = {f"'{key}'": key for key in odd}
        spelled |= {json.dumps(key, ensure_ascii=False): key for key in odd}
        spelled |= {key: key for key in odd}
        self._spelled = sorted(spelled.items(), key=lambda item: -len(item[0]))

    def __bool__(self) -> bool:
        return bool(self._spelled)

    def find(self, text: str, begin: int, colons: str, *, final: bool) -> Found | None | bool:
        """The longest key that starts at `begin`; False where there is none, None where the text
        is too short to tell, unless it is `final`.
        """
        blank = _blank(text, begin)
        starts = (begin, blank) if blank - begin <= _SPACES else (begin,)
        for spelling, key in self._spelled:
            for start in starts:
                if not spelling.startswith(text[start : start + len(spelling)]):
                    continue
                end = start + len(spelling)
                colon = _blank(text, end)
                if colon - end > _SPACES:
                    continue
                if colon < len(text) and text[colon] in colons:
                    return Found(key, colon + 1)
                if colon >= len(text) and not final:
                    return None
        return False


def _blank(text: str, position: int) -> int:
    """Where the white space at `position` ends, or is too much."""
    last = min(len(text), position + _SPACES + 1)
    while position < last and text[position].isspace():
        position += 1
    return position
