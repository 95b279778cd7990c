"""What the scanner reports about a model turn."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text of a thought."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call of `name`; its arguments follow."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """The next piece of a call's arguments, a JSON object as it grows."""

    index: int
    json: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call is over.  An incomplete one (cut off, or broken) leaves its JSON unclosed."""

    index: int
    complete: bool


Event = Reasoning | Content | CallStart | Arguments | CallEnd
