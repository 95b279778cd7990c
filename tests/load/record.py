"""What became of one request."""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    RIGHT = "right"  # the same answer as alone
    WRONG = "wrong"  # another one, or none where there should have been one
    REFUSED = "refused"  # a hostile request got its 4xx and a sentence
    LEFT = "left"  # the client went away, as it had meant to
    LOST = "lost"  # no answer: the connection broke, a 5xx, or a hang


@dataclass(frozen=True)
class Record:
    """seconds: from sending to the last byte.  detail: what a bad outcome was."""

    kind: str
    outcome: Outcome
    seconds: float
    detail: str = ""
