"""What a scheduler remembers of the past: who said what to whom about which tasks.

It keeps numbers only, never arguments, results or errors, and of these a limited count: a message of a thousand tasks is
forgotten sooner than one of a single task.

The numbers are those of the messages: objects that lie among all else that came with them, so that one that is kept keeps the
interpreter from giving back a whole piece of memory. To copy them costs more than all else here, so that is done when there is
time, see :meth:`Stories.pack`.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import Any

from taskloom.core.messages import (
    Cancel,
    CancelTasks,
    Copy,
    Done,
    Drop,
    Erred,
    Fetched,
    GaveBack,
    Missing,
    Pending,
    Release,
    Report,
    Resend,
    Retry,
    Run,
    Status,
    Submit,
    TakeBack,
    Want,
)

__all__ = ["Stories"]

MOST = 100_000  # numbers of tasks that are kept
# what of a message are numbers of tasks
_COLUMNS: dict[type, tuple[str, ...]] = {
    **dict.fromkeys((TakeBack, CancelTasks, Drop, Run, Fetched, Missing), ("tids",)),
    **dict.fromkeys((Release, Want, Cancel, Retry, Done, Erred, Pending, Resend), ("counters",)),
    Report: ("tids", "failed"),
    GaveBack: ("tids", "kept"),
    Status: ("running",),
    Copy: ("sources",),
}


class Stories:
    """The last messages."""

    def __init__(self) -> None:
        # (time, whether it came from the peer, "client" or "worker", its number, kind, tids or counters, weight)
        self._events: deque[tuple[float, bool, str, int, str, tuple[Any, ...], int]] = deque()
        self._weight = 0
        self._loose = 0  # events at the end whose numbers are not packed

    def note(self, now: float, came: bool, kind: str, number: int, message: Any) -> None:
        """A message has come, or goes."""
        kind_of_message = type(message)
        about: tuple[Any, ...]
        weight = 1
        if kind_of_message is Submit:
            about = (range(message.first, message.first + len(message.functions)),)
        else:
            about = tuple([getattr(message, column) for column in _COLUMNS.get(kind_of_message, ())])
            for numbers in about:
                weight += len(numbers)
        self._events.append((now, came, kind, number, kind_of_message.__name__, about, weight))
        self._weight += weight
        self._loose += 1
        while self._weight > MOST:
            self._weight -= self._events.popleft()[-1]

    def pack(self) -> None:
        """Keep copies of the numbers, in few bytes, in place of those of the messages. Takes some milliseconds at most.

        >>> stories = Stories()
        >>> stories.note(0.0, True, "client", 1, Release([3, 4]))
        >>> stories.pack()
        >>> stories.tell(tid=7, client=1, counter=4)
        ['0.000000 from client 1: Release']
        """
        events = self._events
        count = min(self._loose, len(events))
        loose = [events.pop() for _ in range(count)]
        while loose:
            *rest, about, weight = loose.pop()
            events.append((*rest, tuple([_packed(numbers) for numbers in about]), weight))  # type: ignore[arg-type]
        self._loose = 0

    def tell(self, tid: int, client: int, counter: int) -> list[str]:
        """What is remembered of a task, oldest first, one line each."""
        lines = []
        for now, came, kind, number, name, about, _ in self._events:
            who = tid if kind == "worker" else counter if number == client else None
            if who is not None and any(who in numbers for numbers in about):
                lines.append(f"{now:.6f} {'from' if came else 'to'} {kind} {number}: {name}")
        return lines


def _packed(numbers: Any) -> Any:
    """The same numbers, in few bytes."""
    if type(numbers) is range:
        return numbers
    try:
        return array("q", numbers)
    except (OverflowError, TypeError, ValueError):  # a peer does not keep to the rules, and hears of it elsewhere
        return tuple(numbers)
