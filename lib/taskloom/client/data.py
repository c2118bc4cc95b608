"""The client: values that go to the cluster, and those that come from there."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from taskloom.client.engine import SKIPPED
from taskloom.client.functions import Functions
from taskloom.client.future import Future
from taskloom.client.nested import futures_in, listed, with_values
from taskloom.client.packing import FutureError, Packer, identity
from taskloom.client.signals import check_seconds
from taskloom.core.messages import Options
from taskloom.errors import SerializationError
from taskloom.local.frames import quiet_frames

__all__ = ["Data"]

_FUTURES = frozenset({Future})


class Data(Functions):
    """The part of :class:`taskloom.Client` that moves values."""

    @quiet_frames
    def gather(
        self, futures: Any, errors: str = "raise", direct: bool | None = None, timeout: float | None = None
    ) -> Any:
        """The values of futures; waits for them.

        Args:
            futures: a future, or lists, tuples, sets and dicts with futures in them, as deep as one likes.
            errors: "raise": what the first of those that failed has raised is raised here. "skip": they are left out.
            direct: as ``direct_to_workers`` of :class:`Client`, for this call.
            timeout: seconds to wait at most.

        Returns:
            The same data with values instead of futures; iterators become lists.

        Raises:
            TimeoutError: they were not all there in time.
            Exception: what a task raised.

        >>> from taskloom import Client
        >>> with Client(n_workers=1) as client:
        ...     client.gather({"a": client.submit(abs, -1), "b": [client.submit(abs, -2), 3]})
        {'a': 1, 'b': [2, 3]}
        """
        if errors not in ("raise", "skip"):
            raise ValueError(f"errors is 'raise' or 'skip', not {errors!r}")
        return self._sync(self._gather(listed(futures), errors, direct, timeout))

    async def _gather(self, data: Any, errors: str, direct: bool | None, timeout: float | None) -> Any:
        futures = data if type(data) is list and _FUTURES.issuperset(map(type, data)) else futures_in(data)
        counters = self._counters(futures)
        values = await self._engine.values(counters, timeout, errors, direct, partial(self._name, None))
        if futures is data:
            return [value for value in values if value is not SKIPPED] if errors == "skip" else values
        by_counter = dict(zip(counters, values, strict=True))
        return with_values(data, lambda future: by_counter[future.counter], SKIPPED)

    @quiet_frames
    def scatter(
        self,
        data: Any,
        workers: str | Iterable[str] | None = None,
        broadcast: bool = False,
        hash: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Put data on workers, once, for all tasks that will need it.

        It is copied, and sent in the background. If the workers that have it are lost, it is sent once more, as long as this
        client is there and the futures are.

        Args:
            data: a list, tuple, set or iterator: each item is a piece of data by itself; a dict: each of its values; anything
                else is one.
            workers: names or addresses of the workers that may have it; by default all.
            broadcast: whether all of them are to have it, and not one.
            hash: has no meaning; it is there as dask has it.
            timeout: seconds after which what has not arrived is given up.

        Returns:
            Futures of the data, in the same shape: a list, tuple, set or dict of futures, or one. With an asynchronous client:
            to be awaited.

        Raises:
            SerializationError: it does not pickle.

        >>> from taskloom import Client
        >>> with Client(n_workers=1) as client:
        ...     table = client.scatter([{"a": 1, "b": 2}])[0]
        ...     client.gather(client.map(dict.get, [table, table], ["a", "b"]))
        [1, 2]
        """
        return self._sync(self._scatter(listed(data), workers, broadcast, timeout))

    async def _scatter(self, data: Any, workers: Any, broadcast: bool, timeout: float | None) -> Any:
        engine = self._engine
        engine.check()
        check_seconds(timeout)
        await self._meet(workers)
        options = self._options_of(0, 0, workers, None) or Options()
        options = options._replace(data=True, everywhere=bool(broadcast))
        kind = type(data)
        names: list[Any] | None = None
        if isinstance(data, dict):
            names, items = list(data), list(data.values())
        elif isinstance(data, (list, tuple, set, frozenset, range)):
            items = list(data)
        else:
            items = [data]
        packer = Packer(engine)
        args = []
        for item in items:
            try:
                packed, needed = packer.row(identity, (item,))
            except FutureError:
                raise
            except SerializationError as error:
                raise SerializationError(
                    f"data of type {type(item).__name__} does not pickle: {error.__cause__}"
                ) from error
            if needed:
                raise TypeError("there is a future in what is to be scattered: its value is on the cluster already")
            args.append(packed)
        first = engine.reserve(len(args))
        futures = []
        for counter, item in enumerate(items, first):
            name = f"{type(item).__name__}-{counter}" if names is None else names[counter - first]
            futures.append(Future(self, counter, name))
            engine.labels[counter] = name
        if args:
            self._send_rows(first, packer.function(identity), args, [()] * len(args), options)
        if timeout is not None:
            engine.give_up_after(range(first, first + len(args)), timeout)
        if names is not None:
            return dict(zip(names, futures, strict=True))
        if isinstance(data, (list, tuple, set, frozenset, range)):
            return kind(futures) if kind in (tuple, set, frozenset) else futures
        return futures[0]
