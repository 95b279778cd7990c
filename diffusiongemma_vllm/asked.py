"""The engine arguments that the user set, while an engine config is being made of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, fields
from typing import Any

_ASKED: ContextVar[dict[str, Any]] = ContextVar("asked", default={})  # noqa: B039  never written


def asked() -> dict[str, Any]:
    """Values by the names of ``EngineArgs``; empty outside of ``remembered``."""
    return _ASKED.get()


@contextmanager
def remembered(args: Any) -> Iterator[None]:
    """args: vLLM's ``EngineArgs``, which later mixes them with its defaults."""
    token = _ASKED.set(_given(args))
    try:
        yield
    finally:
        _ASKED.reset(token)


def _given(args: Any) -> dict[str, Any]:
    """The fields of EngineArgs that differ from their defaults."""
    given = {}
    for field in fields(type(args)):
        value = getattr(args, field.name)
        make = field.default_factory
        default = field.default if make is MISSING else make()
        if value is None or value == default:
            continue
        if field.name == "compilation_config":
            value = {
                key: getattr(value, key)
                for key in ("mode", "cudagraph_mode", "cudagraph_capture_sizes",
                            "max_cudagraph_capture_size")
                if getattr(value, key, None) is not None
            } if not isinstance(value, dict) else value
        given[field.name] = value
    for name in ("cudagraph_capture_sizes", "max_cudagraph_capture_size"):
        if name in given:
            given.setdefault("compilation_config", {})[name] = given[name]
    return given
