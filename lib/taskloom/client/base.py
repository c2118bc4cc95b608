"""What all parts of the client use: options, workers by their addresses, counters of futures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from taskloom.client.clerk import Clerk
from taskloom.client.future import Future
from taskloom.client.packing import Packer
from taskloom.client.signals import drive, run
from taskloom.core.messages import Options
from taskloom.errors import ClusterError

__all__ = ["Base"]


class Base:
    """The part of :class:`taskloom.Client` that the other parts share."""

    asynchronous: bool
    address: str
    _engine: Any
    _clerk: Clerk
    _timeout: float
    _workers: dict[str, str]  # addresses of workers -> what they are called

    def _sync(self, coroutine: Any) -> Any:
        return drive(coroutine) if self.asynchronous else run(coroutine)

    def _name(self, packer: Packer | None, counter: int) -> Any:
        """The key of a task by its counter, as far as it is known here."""
        if packer is not None and 0 <= counter - packer.base < len(packer.order):
            return packer.keys[packer.order[counter - packer.base]]
        return self._engine.key_of(counter)

    def _counters(self, futures: Iterable[Future]) -> list[int]:
        counters = []
        for future in futures:
            if future.client is not self:
                raise TypeError(f"{future!r} is a future of another client: {future.client!r}")
            if future.counter < 0:
                raise ClusterError(f"the future {future.key!r} was released, so its value is not to be had by it")
            counters.append(future.counter)
        return counters

    def _options_of(
        self,
        priority: int,
        retries: int,
        workers: str | Iterable[str] | None,
        resources: Mapping[str, float] | None,
    ) -> Options | None:
        if not (priority or retries or workers or resources):
            return None
        names: list[str] = []
        if workers:
            if not isinstance(workers, Iterable):
                raise TypeError(f"workers are names or addresses of workers, not {workers!r}")
            names = [workers] if isinstance(workers, str) else list(workers)
            if not all(isinstance(name, str) for name in names):
                raise TypeError(f"workers are names or addresses of workers, not {workers!r}")
            names = [self._name_of_worker(name) if "://" in name else name for name in names]
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ValueError(f"retries is a whole number of 0 or more, not {retries!r}")
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise TypeError(f"priority is a whole number, not {priority!r}")
        if resources and not isinstance(resources, Mapping):
            raise TypeError(f"resources is a dict of names and amounts, such as {{'GPU': 1}}, not {resources!r}")
        amounts: list[tuple[str, float]] = []
        for name, amount in (resources or {}).items():
            if isinstance(amount, bool) or not isinstance(amount, (int, float)) or amount < 0:
                raise ValueError(f"of the resource {name!r} a task takes a number of 0 or more, not {amount!r}")
            amounts.append((str(name), float(amount)))
        return Options(priority, retries, tuple(names), tuple(sorted(amounts)))

    def _name_of_worker(self, address: str) -> str:
        if address not in self._workers and not self.asynchronous:
            run(self._meet_workers())
        try:
            return self._workers[address]
        except KeyError:
            there = ", ".join(sorted(self._workers)) or "none"
            advice = ""
            if self.asynchronous:  # to ask the scheduler would hold up the event loop
                advice = (
                    ". This client knows of those that were there when it last asked: `await client.scheduler_info()`"
                )
            raise ValueError(f"there is no worker at {address}; there are: {there}{advice}") from None

    async def _meet_workers(self) -> dict[str, Any]:
        """Ask which workers there are, and note their addresses."""
        info: dict[str, Any] = await self._engine.ask("scheduler_info", self._timeout)
        self._workers = {worker["address"]: name for name, worker in info["workers"].items()}
        return info

    async def _meet(self, workers: Any) -> None:
        """Ask, if an address is among these that is not known here."""
        names = [workers] if isinstance(workers, str) else workers if isinstance(workers, (list, tuple, set)) else ()
        if any(isinstance(name, str) and "://" in name and name not in self._workers for name in names):
            await self._meet_workers()
