"""Where a reader of arguments stands."""

from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property

from diffusiongemma_vllm.parsers.keys import KnownKeys
from diffusiongemma_vllm.parsers.schema import Schema


class Outcome(Enum):
    """How a call ended."""

    COMPLETE = auto()
    INCOMPLETE = auto()


class State(Enum):
    KEY = auto()  # a key, or the end of the object
    STRING_KEY = auto()
    COLON = auto()
    VALUE = auto()  # a value or, in an array, its end
    STRING = auto()
    BARE = auto()  # an unquoted value
    FOREIGN = auto()  # between the quotes of JSON or Python
    NEXT = auto()  # a comma, or the end


@dataclass
class Frame:
    """One open object or array."""

    closer: str
    schema: Schema
    count: int = 0
    keys: set[str] = field(default_factory=set)
    value: Schema = field(default_factory=Schema)  # of the member being read

    @cached_property
    def known(self) -> KnownKeys:
        """The keys to look for before any other is read."""
        return self.schema.keys()

    @property
    def is_array(self) -> bool:
        return self.closer == "]"

    def value_schema(self) -> Schema:
        """The schema of the next element, or of the member being read."""
        return self.schema.item(self.count) if self.is_array else self.value

    def comma(self) -> str:
        """What goes before the next member or element."""
        return ", " if self.count else ""
