"""Waiting, for callers of both kinds: those that block a thread, and those that await.

What the client does is written once, as coroutines that await nothing but :class:`Signal`. Who calls it decides how it
waits: :func:`run` blocks the thread, :func:`drive` awaits in whatever event loop is running.
"""

from __future__ import annotations

import asyncio
import numbers
import threading
import time
from collections.abc import Coroutine, Generator
from typing import Any

from taskloom.errors import ClusterError

__all__ = ["Signal", "check_seconds", "deadline_of", "drive", "left_of", "run"]

_own_threads: set[int] = set()  # of clients' event loops: who waits there waits for itself


class Signal:
    """Something that happens once. ``await signal.wait(deadline)`` in a coroutine for :func:`run` or :func:`drive`.

    Attributes:
        is_set: whether it has happened.
    """

    __slots__ = ("_bell", "_waiter", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._bell = threading.Lock()  # a bare lock is several times cheaper than an Event, and Ctrl-C gets through too
        self._bell.acquire()
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def set(self) -> None:
        """It has happened. Called by one thread at a time, mostly the client's event loop."""
        if self.is_set:
            return
        self.is_set = True
        self._bell.release()
        if self._waiter is not None:
            _wake(*self._waiter)

    def wait(self, deadline: float | None = None) -> _Waiting:
        """To be awaited: whether it has happened.

        Args:
            deadline: on the clock ``time.monotonic``.
        """
        return _Waiting(self, deadline)

    def block(self, deadline: float | None) -> bool:
        """Wait in this thread."""
        if threading.get_ident() in _own_threads:
            raise ClusterError(
                "the thread of the client's event loop, which handles logging and output of tasks, cannot wait for the cluster"
            )
        if deadline is None:
            return self._bell.acquire()
        return self._bell.acquire(timeout=min(left_of(deadline), threading.TIMEOUT_MAX))

    async def come(self, deadline: float | None) -> bool:
        """Wait in this event loop."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiter = loop, waiter
        if self.is_set:
            return True
        await asyncio.wait([waiter], timeout=None if deadline is None else left_of(deadline))
        return self.is_set


class _Waiting:
    """What a coroutine hands to whoever runs it."""

    __slots__ = ("deadline", "signal")

    def __init__(self, signal: Signal, deadline: float | None) -> None:
        self.signal = signal
        self.deadline = deadline

    def __await__(self) -> Generator[_Waiting, bool, bool]:
        if self.signal.is_set:
            return True
        return (yield self)


def _wake(loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None]) -> None:
    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    try:
        loop.call_soon_threadsafe(wake)
    except RuntimeError:  # that loop is closed: nobody waits any more
        pass


def check_seconds(timeout: Any) -> None:
    """See that a timeout is one.

    Raises:
        TypeError: it is neither a number nor None.
        ValueError: it is no number that can be counted down.
    """
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, numbers.Real):
        raise TypeError(f"a timeout is a number of seconds, or None, not {timeout!r} of type {type(timeout).__name__}")
    if timeout != timeout:
        raise ValueError("a timeout is a number of seconds, or None, not nan")


def deadline_of(timeout: float | None) -> float | None:
    """When so many seconds are over."""
    check_seconds(timeout)
    return None if timeout is None else time.monotonic() + timeout


def left_of(deadline: float) -> float:
    """Seconds until then, or 0."""
    return max(0.0, deadline - time.monotonic())


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that awaits signals; blocks this thread.

    Ctrl-C is raised inside of the coroutine, so that it cleans up.
    """
    try:
        waiting = coroutine.send(None)
        while True:
            try:
                happened = waiting.signal.block(waiting.deadline)
            except BaseException as error:
                waiting = coroutine.throw(error)
            else:
                waiting = coroutine.send(happened)
    except StopIteration as stop:
        return stop.value


async def drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The same in the running event loop, which goes on meanwhile."""
    try:
        waiting = coroutine.send(None)
        while True:
            try:
                happened = await waiting.signal.come(waiting.deadline)
            except BaseException as error:
                waiting = coroutine.throw(error)
            else:
                waiting = coroutine.send(happened)
    except StopIteration as stop:
        return stop.value
    finally:
        coroutine.close()
