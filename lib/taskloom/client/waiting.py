"""Waiting for several futures at once."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, NamedTuple

from taskloom.client.engine import Engine, Watcher
from taskloom.client.future import Future
from taskloom.client.signals import Signal, deadline_of, drive, run
from taskloom.local.frames import quiet_frames

__all__ = ["DoneAndNotDone", "as_completed", "wait"]

ALL, FIRST, FIRST_ERROR = "ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"


class DoneAndNotDone(NamedTuple):
    """What :func:`wait` returns: two sets of futures."""

    done: set[Future]
    not_done: set[Future]


class _Awaited(Watcher):
    __slots__ = ("futures", "left", "signal", "until")

    def __init__(self, futures: dict[int, list[Future]], until: str) -> None:
        self.futures = futures
        self.until = until
        self.left = 0
        self.signal = Signal()

    def settled(self, counter: int) -> None:
        self.left -= 1
        if not self.left or self.until == FIRST or (self.until == FIRST_ERROR and self.has_failed(counter)):
            self.signal.set()

    def has_failed(self, counter: int) -> bool:
        return self.futures[counter][0].status != "finished"


def _by_engine(futures: Iterable[Future]) -> dict[Engine, dict[int, list[Future]]]:
    found: dict[Engine, dict[int, list[Future]]] = {}
    for future in futures:
        if not isinstance(future, Future):
            raise TypeError(f"this waits for futures of a client, not for {type(future).__name__}: {future!r}")
        found.setdefault(future.client._engine, {}).setdefault(future.counter, []).append(future)
    return found


@quiet_frames
def wait(fs: Any, timeout: float | None = None, return_when: str = ALL) -> Any:
    """Wait until futures have ended, well or not.

    Args:
        fs: a future, or several.
        timeout: seconds to wait at most.
        return_when: "ALL_COMPLETED"; "FIRST_COMPLETED": one is enough; "FIRST_EXCEPTION": all, or one that has not ended well.

    Returns:
        :class:`DoneAndNotDone`. Where the futures are those of an asynchronous client: to be awaited.

    Raises:
        TimeoutError: it took longer; says why.

    >>> import taskloom
    >>> with taskloom.Client(n_workers=1) as client:
    ...     done, not_done = taskloom.wait(client.map(abs, [-1, -2]))
    >>> len(done), len(not_done)
    (2, 0)
    """
    if return_when not in (ALL, FIRST, FIRST_ERROR):
        raise ValueError(f"return_when is {ALL!r}, {FIRST!r} or {FIRST_ERROR!r}, not {return_when!r}")
    futures = [fs] if isinstance(fs, Future) else list(fs)
    groups = _by_engine(futures)
    if len(groups) > 1:
        raise ValueError("futures of several clients cannot be waited for together")
    coroutine = _wait(futures, groups, timeout, return_when)
    return drive(coroutine) if futures and futures[0].client.asynchronous else run(coroutine)


async def _wait(
    futures: list[Future], groups: dict[Engine, dict[int, list[Future]]], timeout: float | None, until: str
) -> DoneAndNotDone:
    deadline = deadline_of(timeout)
    for engine, counters in groups.items():
        awaited = _Awaited(counters, until)
        awaited.left = len(counters)
        ended = engine.watch(counters, awaited)
        if len(ended) == len(counters) or (ended and until == FIRST):
            engine.unwatch(counters, awaited)
            continue
        engine.call(_count_ended, awaited, ended)  # by the thread that counts the others
        try:
            happened = await awaited.signal.wait(deadline)
        finally:
            engine.unwatch(counters, awaited)
        if not happened:
            raise TimeoutError(
                f"{awaited.left} of {len(counters)} futures had not ended after {timeout:g} s"
                + await engine.reasons.because(list(counters), timeout)
            )
    done = {future for future in futures if future.done()}
    return DoneAndNotDone(done, set(futures) - done)


def _count_ended(awaited: _Awaited, counters: list[int]) -> None:
    for counter in counters:
        awaited.settled(counter)


class _Completed(Watcher):
    """Of :class:`as_completed`: puts those that have ended into its queue."""

    __slots__ = ("owner",)

    def __init__(self, owner: as_completed) -> None:
        self.owner = weakref.ref(owner)  # who is not waited for any more keeps no futures

    def settled(self, counter: int) -> None:
        owner = self.owner()
        if owner is not None:
            owner._settled(counter)


class as_completed:
    """Futures in the order in which they end, for ``for`` and ``async for``.

    More can be added meanwhile. It ends when all have come.

    Args:
        futures: which.
        with_results: whether to give pairs of a future and its value instead.
        raise_errors: with ``with_results``: whether what a task has raised is raised here; else it stands in place of the value.
        timeout: seconds for all of it.

    Raises:
        TimeoutError: they have not all ended in time; from the loop.

    >>> import taskloom
    >>> with taskloom.Client(n_workers=1) as client:
    ...     futures = client.map(abs, [-1, -2, -3])
    ...     sorted(value for _, value in taskloom.as_completed(futures, with_results=True))
    [1, 2, 3]
    """

    def __init__(
        self,
        futures: Iterable[Future] = (),
        *,
        with_results: bool = False,
        raise_errors: bool = True,
        timeout: float | None = None,
    ) -> None:
        self.with_results = with_results
        self.raise_errors = raise_errors
        self._timeout = timeout
        self._deadline = deadline_of(timeout)
        self._lock = threading.Lock()
        self._waiting: dict[int, list[Future]] = {}
        self._ready: deque[Future] = deque()
        self._signal: Signal | None = None
        self._engine: Engine | None = None
        self._watcher = _Completed(self)
        self.update(futures)

    # --- more of them

    def add(self, future: Future) -> None:
        """One more; it may have ended already."""
        self.update([future])

    def update(self, futures: Iterable[Future]) -> None:
        """Several more."""
        for engine, counters in _by_engine(futures).items():
            if self._engine is not None and self._engine is not engine:
                raise ValueError("futures of several clients cannot be waited for together")
            self._engine = engine
            with self._lock:
                new = [counter for counter in counters if counter not in self._waiting]
                for counter, several in counters.items():
                    self._waiting.setdefault(counter, []).extend(several)
            for counter in engine.watch(new, self._watcher):
                self._settled(counter)

    def _settled(self, counter: int) -> None:
        with self._lock:
            self._ready.extend(self._waiting.pop(counter, ()))
            signal, self._signal = self._signal, None
        if signal is not None:
            signal.set()

    def clear(self) -> None:
        """Wait for none of them any more."""
        with self._lock:
            counters = list(self._waiting)
            self._waiting.clear()
            self._ready.clear()
        if self._engine is not None:
            self._engine.unwatch(counters, self._watcher)

    # --- how many

    def count(self) -> int:
        """How many have not come yet."""
        with self._lock:
            return len(self._ready) + sum(map(len, self._waiting.values()))

    def has_ready(self) -> bool:
        """Whether one has ended that has not come yet."""
        return bool(self._ready)

    def is_empty(self) -> bool:
        """Whether all have come."""
        return not self.count()

    # --- one after the other

    async def _next(self, wait: bool = True) -> Future | None:
        while True:
            with self._lock:
                if self._ready:
                    return self._ready.popleft()
                if not self._waiting or not wait:
                    return None
                signal = self._signal = Signal()
            if not await signal.wait(self._deadline):
                with self._lock:
                    left = list(self._waiting)
                because = "" if self._engine is None else await self._engine.reasons.because(left, self._timeout)
                raise TimeoutError(f"{self.count()} futures had not ended after {self._timeout:g} s{because}")

    async def _next_item(self) -> Any:
        future = await self._next()
        if future is None:
            return None
        return await self._item(future)

    async def _item(self, future: Future) -> Any:
        if not self.with_results:
            return future
        try:
            return future, await future._result(None)
        except Exception as error:
            if self.raise_errors:
                raise
            return future, error

    def __iter__(self) -> Iterator[Any]:
        return self

    @quiet_frames
    def __next__(self) -> Any:
        item = run(self._next_item())
        if item is None:
            raise StopIteration
        return item

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        item = await drive(self._next_item())
        if item is None:
            raise StopAsyncIteration
        return item

    @quiet_frames
    def next_batch(self, block: bool = True) -> list[Any]:
        """All that have ended; with ``block`` at least one, where there is one."""

        async def batch() -> list[Any]:
            found = []
            future = await self._next(block)
            while future is not None:
                found.append(await self._item(future))
                future = await self._next(False)
            return found

        return run(batch())  # type: ignore[no-any-return]

    def batches(self) -> Iterator[list[Any]]:
        """All, in batches of what has ended meanwhile."""
        while not self.is_empty():
            batch = self.next_batch()
            if batch:
                yield batch
