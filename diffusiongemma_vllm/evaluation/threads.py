"""Work in threads that an interrupted program does not wait for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")


def at_once(work: Callable[[Item], None], items: Iterable[Item], count: int) -> Iterator[None]:
    """Do ``work`` on each item, ``count`` of them at a time; yields after each, in any order.

    The first error is raised when what is in work has ended; nothing is begun after it.  Ctrl-C
    waits for nothing: the threads are daemons.
    """
    todo: SimpleQueue[Item] = SimpleQueue()
    done: SimpleQueue[BaseException | None] = SimpleQueue()
    given = 0
    for item in items:
        todo.put(item)
        given += 1

    def run() -> None:
        while True:
            try:
                item = todo.get_nowait()
            except Empty:
                return
            try:
                work(item)
            except BaseException as error:
                done.put(error)
            else:
                done.put(None)

    for _ in range(min(count, given)):
        Thread(target=run, daemon=True).start()
    first: BaseException | None = None
    ended = 0
    try:
        while ended < given:
            error = done.get()
            ended += 1
            if error is None:
                yield
            elif first is None:
                first = error
                given -= _drop(todo)
    finally:
        _drop(todo)
    if first is not None:
        raise first


def _drop(todo: SimpleQueue[Item]) -> int:
    """How many items were still waiting."""
    dropped = 0
    while True:
        try:
            todo.get_nowait()
        except Empty:
            return dropped
        dropped += 1
