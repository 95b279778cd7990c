"""Answers kept on disk as they come, so that a run that was cut off goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any


@dataclass(frozen=True)
class Answer:
    """text: what is scored.  finish: "stop", "length" or "tool_calls".  tokens: of the output."""

    text: str
    finish: str
    tokens: int


def key(request: Mapping[str, Any]) -> str:
    """Names a request by all that decides its answer."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def _read(path: Path, number: int, line: bytes) -> tuple[str, Answer]:
    try:
        row = json.loads(line)
        answer = Answer(row["text"], row["finish"], row["tokens"])
        if not isinstance(answer.text, str) or not isinstance(answer.tokens, int):
            raise TypeError
        return str(row["key"]), answer
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path}, line {number}, is no answer that eval wrote: delete that line, and its "
            "question is asked again"
        ) from None


class Answers:
    """One JSON line an answer, appended at once; a line cut off by a crash is left out."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError for a file that was not written by this class."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = Lock()
        self._kept: dict[str, Answer] = {}
        before = path.read_bytes() if path.exists() else b""
        whole = before[: before.rfind(b"\n") + 1]
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            name, answer = _read(path, number, line)
            self._kept[name] = answer
        self._file = path.open("r+" if before else "w", encoding="utf-8")
        self._file.truncate(len(whole))
        self._file.seek(len(whole))

    def get(self, name: str) -> Answer | None:
        return self._kept.get(name)

    def put(self, name: str, answer: Answer) -> None:
        line = json.dumps({"key": name} | asdict(answer))
        with self._lock:
            self._kept[name] = answer
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()
