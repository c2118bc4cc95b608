"""The client: functions that are called on the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from taskloom._collections.tokens import tokenize
from taskloom.client.arguments import DASKS, check_call, check_key, without_dasks
from taskloom.client.base import Base
from taskloom.client.future import Future
from taskloom.client.nested import futures_in
from taskloom.client.packing import BYTES, NEXT, Columns, Packer
from taskloom.core.messages import WISH, Options
from taskloom.errors import SerializationError
from taskloom.graph.node import Named
from taskloom.local.frames import quiet_frames
from taskloom.local.run import name_of

__all__ = ["Functions"]

_WISHED = bytes([WISH])


class Functions(Base):
    """The part of :class:`taskloom.Client` that calls functions."""

    @quiet_frames
    def submit(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        key: Any = None,
        pure: bool = False,
        priority: int = 0,
        retries: int = 0,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Future:
        """Call a function on the cluster.

        Args:
            function: what to call.
            args, kwargs: its arguments, as they are now; futures of this client in them, also deep inside, stand for their
                values. Data of megabytes that several calls need is better scattered once, see :meth:`scatter`.
            key: what the task is called. While a future of that key lives, the same key means the same task.
            pure: True: the same function with the same arguments is the same task, while a future of it lives.
            priority: greater goes first.
            retries: how many times the task is run again if it has raised.
            workers: names or addresses of the workers that may run it; by default all.
            resources: name -> amount of what it takes while it runs.
            timeout: seconds after which it is stopped if it is not done; it has failed by a TimeoutError then.

        Of what dask's submit takes besides, ``fifo_timeout`` has no meaning here, and ``allow_other_workers=True`` that
        ``workers`` has none; but they are the function's where it has parameters of these names.

        Returns:
            The future of its result.

        Raises:
            SerializationError: the function or an argument does not pickle; says which.
            ClusterError: the client is closed.
            TypeError: a future of another client is among the arguments.

        >>> from taskloom import Client
        >>> with Client(n_workers=1) as client:
        ...     numbers = client.submit(list, (3, 1, 2))
        ...     client.submit(sorted, numbers, reverse=True).result()
        [3, 2, 1]
        """
        engine = self._engine
        engine.check()
        check_call(function, timeout)
        if kwargs and not DASKS.isdisjoint(kwargs):
            workers = without_dasks(kwargs, workers, function)
        options = self._options_of(priority, retries, workers, resources)
        if pure and key is None:
            key = f"{name_of(function)}-{tokenize(function, args, kwargs)}"
        if key is not None:
            check_key(key)
            counter = engine.find(key)
            if counter is not None:
                return Future(self, counter, key)
        call: Any = function
        if kwargs:
            call = Named(function, tuple(kwargs))
            args = (*args, *kwargs.values())
        packer = Packer(engine)
        function_of = packer.function(call)
        packed, needed = packer.row(call, args)
        counter = engine.reserve(1)
        future = Future(self, counter, f"{name_of(function)}-{counter}" if key is None else key)
        engine.labels[counter] = future.key
        if key is not None:
            engine.register(key, counter)
        engine.submit(Columns(counter, [function_of], [packed], [needed], _WISHED), options)
        if timeout is not None:
            engine.give_up_after([counter], timeout)
        return future

    @quiet_frames
    def map(
        self,
        function: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        key: Any = None,
        pure: bool = False,
        priority: int = 0,
        retries: int = 0,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> list[Future]:
        """Call a function for each item, or for items of several iterables side by side.

        Args:
            function: what to call.
            iterables: of its arguments; the shortest ends it. Futures in them stand for their values.
            key: text that the keys begin with, or a list of keys.
            pure, priority, retries, workers, resources, timeout: as for :meth:`submit`, for each call.
            kwargs: further arguments, the same for each call.

        Returns:
            The futures of the results, in the order of the items.

        Raises:
            SerializationError: the function or an argument does not pickle; says which. None of the calls is made then.

        >>> from taskloom import Client
        >>> with Client(n_workers=1) as client:
        ...     client.gather(client.map(pow, [2, 3], [10, 2]))
        [1024, 9]
        """
        engine = self._engine
        engine.check()
        check_call(function, timeout)
        if kwargs and not DASKS.isdisjoint(kwargs):
            workers = without_dasks(kwargs, workers, function)
        options = self._options_of(priority, retries, workers, resources)
        if not iterables:
            raise TypeError(
                f"map calls {name_of(function)} for each item of an iterable, and there is none: map(function, items)"
            )
        rows = list(zip(*iterables, strict=False))
        name = name_of(function)
        keys: list[Any] | None = None
        if key is not None and not isinstance(key, str):
            keys = list(key)
            if len(keys) != len(rows):
                raise ValueError(f"there are {len(rows)} calls of {name}, and {len(keys)} keys")
            for each in keys:
                check_key(each)
        elif pure:
            token = tokenize(function, kwargs)
            keys = [f"{key or name}-{tokenize(token, row)}" for row in rows]
        if not rows:
            return []
        packer = Packer(engine)
        call: Any = function
        tail: tuple[Any, ...] = ()
        if kwargs:
            if futures_in(list(kwargs.values())):
                call, tail = Named(function, tuple(kwargs)), tuple(kwargs.values())
            else:
                try:
                    call = partial(function, **kwargs)
                    packer.function(call)
                except SerializationError:  # a future deep inside, or something that does not pickle: row() says which
                    call, tail = Named(function, tuple(kwargs)), tuple(kwargs.values())
        function_of = packer.function(call)
        places: Sequence[int] = range(len(rows))
        known: list[int] = []
        if keys is not None:
            known, places = engine.claim(keys)
        try:
            first_of: dict[Any, int] = {}  # of keys that stand there twice, the first
            if keys is not None:
                places = [n for n in places if first_of.setdefault(keys[n], n) == n]
            args: list[Any] = []
            deps: list[Sequence[int]] = []
            for n in places:
                packed, needed = packer.row(call, (*rows[n], *tail) if tail else rows[n])
                args.append(packed)
                deps.append(needed)
        except BaseException:
            engine.release([counter for counter in known if counter >= 0])
            raise
        first = engine.reserve(len(args))
        if keys is None:
            prefix = name if key is None else key
            futures = [Future(self, counter, f"{prefix}-{counter}") for counter in range(first, first + len(args))]
        else:
            futures = []
            for counter, n in enumerate(places, first):
                known[n] = counter
                engine.register(keys[n], counter)
            for n, of in enumerate(keys):
                if known[n] < 0:  # a key that stands there twice
                    known[n] = known[first_of[of]]
                    engine.share(known[n])
                futures.append(Future(self, known[n], of))
        engine.labels.update({future.counter: future.key for future in futures})
        self._send_rows(first, function_of, args, deps, options)
        if timeout is not None:
            engine.give_up_after(range(first, first + len(args)), timeout)
        return futures

    def _send_rows(
        self,
        first: int,
        function: tuple[bytes, Any],
        args: list[Any],
        deps: list[Sequence[int]],
        options: Options | None,
    ) -> None:
        """Send calls of one function, in blocks."""
        start = weight = 0
        for n, packed in enumerate(args, 1):
            if type(packed) is not tuple:
                weight += 0 if packed is None else packed.nbytes
            if n - start == NEXT or weight > BYTES or n == len(args):
                count = n - start
                self._engine.submit(
                    Columns(first + start, [function] * count, args[start:n], deps[start:n], _WISHED * count), options
                )
                start, weight = n, 0
