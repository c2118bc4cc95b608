"""The client: what becomes of tasks, and what there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from taskloom.client.arguments import futures_for
from taskloom.client.base import Base
from taskloom.client.clerk import Clerk
from taskloom.client.engine import Watcher
from taskloom.client.future import Future
from taskloom.client.signals import Signal
from taskloom.core.client import PENDING
from taskloom.core.messages import Lost
from taskloom.errors import ClusterError
from taskloom.local.frames import quiet_frames
from taskloom.node.process import versions

__all__ = ["Questions"]


class Questions(Base):
    """The part of :class:`taskloom.Client` that stops tasks, tries them again, and asks the scheduler."""

    # --- what becomes of tasks

    def cancel(self, futures: Any, force: bool = False) -> Any:
        """Stop tasks that have not ended, whoever needs them; those that run too. What has ended stays as it is.

        Args:
            futures: a future, a collection made of futures, or lists and dicts of them.
            force: has no meaning; it is there as dask has it.

        >>> from taskloom import Client
        >>> import time
        >>> with Client(n_workers=1) as client:
        ...     futures = client.map(time.sleep, [60, 60])
        ...     client.cancel(futures)
        ...     [future.status for future in futures]
        ['cancelled', 'cancelled']
        """
        return self._sync(self._cancel(futures_for("cancel", futures)))

    async def _cancel(self, futures: Sequence[Future]) -> None:
        self._give_up(futures)

    def _give_up(self, futures: Sequence[Future]) -> None:
        self._engine.check()
        self._engine.give_up(self._counters_held(futures), Lost("cancelled", "the task was cancelled"))

    def _counters_held(self, futures: Iterable[Future]) -> list[int]:
        return self._counters([future for future in futures if future.counter >= 0])

    def retry(self, futures: Any) -> Any:
        """Try tasks again that have failed or were cancelled, and what they need that has.

        Args:
            futures: a future, a collection made of futures, or lists and dicts of them.

        >>> from taskloom import Client
        >>> with Client(n_workers=1) as client:
        ...     future = client.submit(abs, -1)
        ...     future.cancel()
        ...     client.retry(future)
        ...     future.result()
        True
        1
        """
        return self._sync(self._retry(futures_for("retry", futures)))

    async def _retry(self, futures: Sequence[Future]) -> None:
        self._engine.check()
        signal = Signal()
        self._engine.call(self._engine._retry, self._counters(futures))
        self._engine.call(signal.set)
        await signal.wait()  # so that nobody sees the old state after this

    def _when_done(self, future: Future, function: Callable[[Future], object]) -> None:
        watcher = _Callback(self._clerk, future, function)
        for counter in self._engine.watch([future.counter], watcher):
            watcher.settled(counter)

    # --- questions

    @quiet_frames
    def who_has(self, futures: Any = None) -> Any:
        """Which workers have values.

        Args:
            futures: a future, a collection made of futures, or lists and dicts of them; by default all of this client.

        Returns:
            Mapping of keys to tuples of names of workers. Where several tasks have one key, those of all of them.

        >>> from taskloom import Client
        >>> with Client(n_workers=1) as client:
        ...     future = client.submit(abs, -1, key="one")
        ...     future.result()
        ...     client.who_has(future)
        1
        {'one': ('worker-0',)}
        """
        return self._sync(self._who_has(None if futures is None else futures_for("who_has", futures)))

    async def _who_has(self, futures: Sequence[Future] | None) -> dict[Any, tuple[str, ...]]:
        if futures is None:
            names = dict(self._engine.labels)
        else:
            names = dict(zip(self._counters(futures), [future.key for future in futures], strict=True))
        holders = await self._engine.ask("who_has", self._timeout, counters=list(names))
        found: dict[Any, tuple[str, ...]] = {}
        for key, who in zip(names.values(), holders, strict=True):
            before = found.get(key, ())
            found[key] = (*before, *[name for name in who if name not in before])
        return found

    @quiet_frames
    def why_waiting(self, future: Future) -> Any:
        """What a task does, or waits for, as far as the scheduler can say.

        Args:
            future: of the task.

        Returns:
            A sentence, with the task's key in front; "" where it has ended.

        >>> from taskloom import Client
        >>> with Client(n_workers=1) as client:
        ...     client.wait_for_workers(1)
        ...     future = client.submit(abs, -1, resources={"GPU": 1}, key="one")
        ...     client.why_waiting(future)
        "'one': no worker has the resource GPU; 1 worker is connected, it offers no resources"
        """
        if not isinstance(future, Future):
            raise TypeError(
                f"this asks about a future of this client, not about {type(future).__name__}: {future!r:.200}"
            )
        return self._sync(self._why_waiting(future))

    async def _why_waiting(self, future: Future) -> str:
        engine = self._engine
        engine.check()
        counters = self._counters([future])
        if engine.wish(future.counter).state != PENDING:
            return ""
        words: str = await engine.reasons.why(counters, self._timeout, partial(self._name, None))
        return words

    @quiet_frames
    def scheduler_info(self) -> Any:
        """The scheduler's address, when it was started (seconds since 1970), and its workers.

        Returns:
            A dict; under "workers" the workers' names, each with a dict: address, threads, memory_limit, resources, pid, host,
            versions, ....

        >>> from taskloom import Client
        >>> with Client(n_workers=1) as client:
        ...     client.wait_for_workers(1)
        ...     list(client.scheduler_info()["workers"])
        ['worker-0']
        """
        return self._sync(self._meet_workers())

    @quiet_frames
    def wait_for_workers(self, n_workers: int = 1, timeout: float | None = None) -> Any:
        """Wait until so many workers are there.

        Args:
            n_workers: how many.
            timeout: seconds to wait at most.

        Raises:
            TimeoutError: they have not come in time; says how many have.

        >>> from taskloom import Client
        >>> with Client(n_workers=2) as client:
        ...     client.wait_for_workers(2, timeout=60)
        """
        return self._sync(self._wait_for_workers(n_workers, timeout))

    async def _wait_for_workers(self, count: int, timeout: float | None) -> None:
        try:
            await self._engine.ask("wait_for_workers", timeout, count=count)
            if self.asynchronous:
                await self._meet_workers()
        except TimeoutError:
            info = await self._meet_workers()
            raise TimeoutError(
                f"after {timeout:g} s {len(info['workers'])} of {count} workers have come to the scheduler at {self.address}"
            ) from None

    @quiet_frames
    def get_versions(self, check: bool = False) -> Any:
        """The versions of Python and of the packages that matter, of this client, the scheduler and the workers.

        Args:
            check: whether to raise where they differ.

        Returns:
            ``{"client": versions, "scheduler": versions, "workers": {name: versions}}``; versions is a dict of names and texts.

        Raises:
            ClusterError: ``check``, and they differ; says which where.

        >>> from taskloom import Client
        >>> with Client(n_workers=1) as client:
        ...     sorted(client.get_versions(check=True))
        ['client', 'scheduler', 'workers']
        """
        return self._sync(self._get_versions(check))

    async def _get_versions(self, check: bool) -> dict[str, Any]:
        found: dict[str, Any] = {"client": versions()}
        found.update(await self._engine.ask("versions", self._timeout))
        if check:
            all_of = {"this client": found["client"], "the scheduler": found["scheduler"]}
            all_of.update({f"the worker {name}": of for name, of in found["workers"].items()})
            wrong = []
            for package in sorted({package for of in all_of.values() for package in of}):
                have: dict[str, list[str]] = {}
                for who, of in all_of.items():
                    if package in of:
                        have.setdefault(of[package], []).append(who)
                if len(have) > 1:
                    wrong.append(
                        f"{package}: " + ", ".join(f"{version} ({_some(who)})" for version, who in have.items())
                    )
            if wrong:
                raise ClusterError(
                    "versions differ, and values may not be readable where they come: " + "; ".join(wrong)
                )
        return found

    @quiet_frames
    def restart(self, timeout: float | None = 60.0) -> Any:
        """Start anew: all work of all clients is cancelled, all values are dropped, and the workers' processes are replaced.

        A worker that no supervisor has started stays; a scheduler stays.

        Args:
            timeout: seconds to wait until as many workers are there again.

        Raises:
            TimeoutError: they have not come in time.

        >>> from taskloom import Client
        >>> with Client(n_workers=1) as client:
        ...     future = client.submit(abs, -1)
        ...     client.restart()
        ...     future.status
        'cancelled'
        """
        return self._sync(self._restart(timeout))

    async def _restart(self, timeout: float | None) -> None:
        try:
            await self._engine.ask("restart", timeout)
        except TimeoutError:
            raise TimeoutError(
                f"the workers of the scheduler at {self.address} were told to start anew, and have not all come back in "
                f"{timeout:g} s"
            ) from None


class _Callback(Watcher):
    """Has a function called when a future has ended. Holds the future until then."""

    __slots__ = ("clerk", "function", "future")

    def __init__(self, clerk: Clerk, future: Future, function: Callable[[Future], object]) -> None:
        self.clerk = clerk
        self.future = future
        self.function = function

    def settled(self, counter: int) -> None:
        self.clerk.put(self.function, self.future)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"
