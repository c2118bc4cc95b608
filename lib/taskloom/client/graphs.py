"""Keys of the tasks of graphs that have no futures: for errors, log records and questions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Graphs"]


class _Graph(NamedTuple):
    """That of the k-th task is ``keys[order[k]]``; ``futures``: counters of the outputs that have some; None: not yet."""

    order: Sequence[int]
    keys: Sequence[Any]
    futures: tuple[int, ...] | None


class Graphs:
    """Which there are: those that are computed just now, and those of whose outputs there are futures.

    Many threads may add graphs while another one asks.

    Args:
        labels: counter -> key, of what has a future.

    >>> graphs = Graphs({})
    >>> graphs.add(100, [1, 0], ["x", "y"])
    >>> graphs.key_of(100), graphs.key_of(101), graphs.key_of(102)
    ('y', 'x', 102)
    """

    def __init__(self, labels: Mapping[int, Any]) -> None:
        self._labels = labels
        self._found: dict[int, _Graph] = {}  # counter of its first task -> it
        self._many = 16  # with more than this it is looked which are needed

    def add(self, first: int, order: Sequence[int], keys: Sequence[Any]) -> None:
        """One that is going to be computed."""
        self._found[first] = _Graph(order, keys, None)

    def keep(self, first: int, futures: Iterable[int]) -> None:
        """One is kept until the futures of its outputs, by their counters, are gone."""
        graph = self._found.get(first)
        if graph is not None:
            self._found[first] = graph._replace(futures=tuple(futures))
        if len(self._found) > self._many:
            for base, (_, _, outputs) in list(self._found.items()):
                if outputs is not None and not any(counter in self._labels for counter in outputs):
                    self._found.pop(base, None)
            self._many = 2 * len(self._found) + 16

    def forget(self, first: int) -> None:
        """One has been computed."""
        self._found.pop(first, None)

    def key_of(self, counter: int) -> Any:
        """The key of a task, or its counter."""
        for first, (order, keys, _) in list(self._found.items()):
            if 0 <= counter - first < len(order):
                return keys[order[counter - first]]
        return counter
