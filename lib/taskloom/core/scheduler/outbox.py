"""What a scheduler has to say, gathered until the end of a batch of events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from taskloom.core.messages import Adopted, CancelTasks, Copy, Done, Drop, Erred, Pending, Resend, TakeBack

_Tids = type[CancelTasks] | type[Drop]

__all__ = ["Action", "Outbox"]


class Action(NamedTuple):
    """A message to one peer.

    Attributes:
        kind: "worker" or "client".
        number: the scheduler's number of it.
        message: one of :mod:`taskloom.core.messages`.
    """

    kind: str
    number: int
    message: Any


class Outbox:
    """Messages in the order in which they were said to each peer; what is alike and stands side by side is one message."""

    def __init__(self) -> None:
        self._workers: dict[int, list[Any]] = {}
        self._clients: dict[int, list[Any]] = {}
        self._resend: dict[int, list[int]] = {}  # said last, in one message

    def tids(self, number: int, kind: _Tids, tid: int) -> None:
        """A tid in a CancelTasks or Drop to a worker."""
        messages = self._workers.setdefault(number, [])
        if not messages or type(messages[-1]) is not kind:
            messages.append(kind([]))
        messages[-1].tids.append(tid)

    def take_back(self, number: int, tid: int, grant: int) -> None:
        """A worker is to give back a task."""
        messages = self._workers.setdefault(number, [])
        if not messages or type(messages[-1]) is not TakeBack:
            messages.append(TakeBack([], []))
        messages[-1].tids.append(tid)
        messages[-1].grants.append(grant)

    def copy(self, number: int, tid: int, source: int, order: int, owner: tuple[bytes, int]) -> None:
        """A worker is to fetch a value and keep it."""
        messages = self._workers.setdefault(number, [])
        if not messages or type(messages[-1]) is not Copy:
            messages.append(Copy({}, {}, {}))
        messages[-1].sources[tid] = source
        messages[-1].orders[tid] = order
        messages[-1].owners[tid] = owner

    def adopted(self, number: int, name: int, tid: int, grant: int = 0) -> None:
        """What a worker calls by a number below 0 is this task: its value, or, with a grant, that it is at it."""
        messages = self._workers.setdefault(number, [])
        if not messages or type(messages[-1]) is not Adopted:
            messages.append(Adopted({}, {}))
        if grant:
            messages[-1].running[name] = (tid, grant)
        else:
            messages[-1].held[name] = tid

    def worker(self, number: int, message: Any) -> None:
        """Any message to a worker."""
        self._workers.setdefault(number, []).append(message)

    def done(self, number: int, counter: int, tid: int, size: int, place: int, result: Any) -> None:
        """A value that a client wants is there."""
        messages = self._clients.setdefault(number, [])
        if not messages or type(messages[-1]) is not Done:
            messages.append(Done([], [], [], [], []))
        last = messages[-1]
        last.counters.append(counter)
        last.tids.append(tid)
        last.sizes.append(size)
        last.places.append(place)
        last.results.append(result)

    def done_rows(self, number: int, rows: Sequence[tuple[int, int, int, int, Any]]) -> None:
        """The same for many: counter, tid, size, place and result of each."""
        columns = [list(column) for column in zip(*rows, strict=True)]
        messages = self._clients.setdefault(number, [])
        if messages and type(messages[-1]) is Done:
            for column, more in zip(messages[-1], columns, strict=True):
                column.extend(more)  # type: ignore[attr-defined]
        else:
            messages.append(Done(*columns))

    def erred(self, number: int, counter: int, culprit: int, error: Any) -> None:
        """A task that a client wants has failed."""
        messages = self._clients.setdefault(number, [])
        if not messages or type(messages[-1]) is not Erred:
            messages.append(Erred([], [], []))
        last = messages[-1]
        last.counters.append(counter)
        last.culprits.append(culprit)
        last.errors.append(error)

    def pending(self, number: int, counter: int) -> None:
        """A value that a client wants was there and is not any more."""
        messages = self._clients.setdefault(number, [])
        if not messages or type(messages[-1]) is not Pending:
            messages.append(Pending([]))
        messages[-1].counters.append(counter)

    def resend(self, number: int, counter: int) -> None:
        """A client is to send data once more."""
        self._resend.setdefault(number, []).append(counter)

    def forget_worker(self, number: int) -> None:
        """It has gone: nothing more is said to it."""
        self._workers.pop(number, None)

    def forget_client(self, number: int) -> None:
        """It has gone: nothing more is said to it."""
        self._clients.pop(number, None)
        self._resend.pop(number, None)

    def take(self) -> list[Action]:
        """All that was said since the last time."""
        found = [Action("worker", n, message) for n, messages in self._workers.items() for message in messages]
        found += [Action("client", n, message) for n, messages in self._clients.items() for message in messages]
        found += [Action("client", n, Resend(counters)) for n, counters in self._resend.items()]
        self._workers = {}
        self._clients = {}
        self._resend = {}
        return found
