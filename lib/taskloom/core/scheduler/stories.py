"""What a scheduler remembers of the past: who said what to whom about which tasks.

It keeps numbers only, never arguments, results or errors, and of these a limited count: a message of a thousand tasks is
forgotten sooner than one of a single task.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from taskloom.core.messages import Submit

__all__ = ["Stories"]

MOST = 100_000  # numbers of tasks that are kept
_NAMES = {
    "Report": ("tids", "failed"),
    "GaveBack": ("tids", "kept"),
    "Status": ("running",),
    "Copy": ("sources",),
}
_COMMON = ("counters", "tids")


class Stories:
    """The last messages."""

    def __init__(self) -> None:
        # (time, whether it came from the peer, "client" or "worker", its number, kind, tids or counters)
        self._events: deque[tuple[float, bool, str, int, str, tuple[Any, ...]]] = deque()
        self._weight = 0

    def note(self, now: float, came: bool, kind: str, number: int, message: Any) -> None:
        """A message has come, or goes."""
        name = type(message).__name__
        if type(message) is Submit:
            about: tuple[Any, ...] = (range(message.first, message.first + len(message.functions)),)
            weight = 1
        else:
            about = tuple(
                [getattr(message, column) for column in _NAMES.get(name, _COMMON) if hasattr(message, column)]
            )
            weight = 1 + sum(map(len, about))
        self._events.append((now, came, kind, number, name, about))
        self._weight += weight
        while self._weight > MOST:
            old = self._events.popleft()
            self._weight -= 1 if old[4] == "Submit" else 1 + sum(map(len, old[5]))

    def tell(self, tid: int, client: int, counter: int) -> list[str]:
        """What is remembered of a task, oldest first, one line each."""
        lines = []
        for now, came, kind, number, name, about in self._events:
            who = tid if kind == "worker" else counter if number == client else None
            if who is not None and any(who in numbers for numbers in about):
                lines.append(f"{now:.6f} {'from' if came else 'to'} {kind} {number}: {name}")
        return lines
