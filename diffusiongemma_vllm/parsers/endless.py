"""What of a grammar no text of finite length can meet."""

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

Node = TypeVar("Node", bound=Hashable)


def endless(ways: Mapping[Node, Iterable[Iterable[Node]]]) -> set[Node]:
    """Those each of whose ways leads through another of them.

    ways: of each part of a grammar, what has to be met along every way through it; a part without
    a way is met by nothing.  Takes time by the size of ``ways``, whatever their order.
    """
    left: list[tuple[Node, int]] = []  # a way's owner, and how much of it is not known to end
    users: dict[Node, list[int]] = {}
    ending = []
    for node, listed in ways.items():
        for way in listed:
            needed = set(way)
            for need in needed:
                users.setdefault(need, []).append(len(left))
            if not needed:
                ending.append(node)
            left.append((node, len(needed)))
    found = set(ways)
    while ending:
        node = ending.pop()
        if node not in found:
            continue
        found.discard(node)
        for index in users.get(node, ()):
            owner, count = left[index]
            left[index] = owner, count - 1
            if count == 1:
                ending.append(owner)
    return found
