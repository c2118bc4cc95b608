"""The client of a cluster: the public class over what is in the files beside this one.

::

    Client -> packing   functions and arguments into columns of tasks
           -> engine    the machine and the connection, in the event loop of a thread of its own
              -> fetching   large values, from workers or by way of the scheduler
              -> output     what tasks print, shown here
           <- future, waiting

Each call that waits is a coroutine over :mod:`taskloom.client.signals`; a synchronous client runs it, an asynchronous one returns
it.
"""

from __future__ import annotations

import atexit
import difflib
import importlib
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from math import isfinite
from typing import Any

from taskloom import config
from taskloom._collections.annotated import AnnotatedGraph, opened
from taskloom._collections.protocol import is_collection, quote
from taskloom._collections.running import _Merged, _rebuild, default_clients
from taskloom._collections.tokens import tokenize
from taskloom.client import defaults
from taskloom.client.clerk import Clerk
from taskloom.client.engine import SKIPPED, Engine, Watcher
from taskloom.client.future import Future
from taskloom.client.nested import futures_in, listed, with_values
from taskloom.client.output import Screen
from taskloom.client.packing import BYTES, NEXT, Columns, FutureError, Packer, identity
from taskloom.client.signals import Signal, check_seconds, deadline_of, drive, run
from taskloom.core.client import PENDING
from taskloom.core.messages import WISH, Lost, Options
from taskloom.errors import ClusterError, SerializationError, TokenError
from taskloom.graph.compile import Plan, compile_graph
from taskloom.graph.convention import flatten_keys
from taskloom.graph.node import Named
from taskloom.local.frames import quiet_frames
from taskloom.local.run import name_of
from taskloom.net import Token, find_token, tokens_of
from taskloom.net.tokens import how_to_get_token
from taskloom.node.process import versions

__all__ = ["Client"]

Said = Options | list[Options | None] | None  # of all tasks of a graph, or of each
_live: weakref.WeakSet[Client] = weakref.WeakSet()
GOODBYE = 3.0  # seconds to leave


class Client:
    """A connection to a cluster: graphs and functions go there, values come back.

    While it is open it is where ``compute`` of delayed, bag and other collections runs, unless something else is said; those
    of dask too, if dask is loaded when it is made.

    It may be used by many threads at once. What it asks for is let go of when the futures are dropped, and when it is closed; it
    closes with the program, too.

    Args:
        address: of the scheduler, such as ``tcp://127.0.0.1:8786``; or a cluster: an object with ``address`` and ``token``, such
            as :class:`taskloom.LocalCluster`, which is not closed with the client. By default the setting ``cluster.address``,
            and where there is none, a :class:`taskloom.LocalCluster` is started for this client alone.
        token: what the scheduler and its clients have to know; by default the one that this user has.
        timeout: seconds to reach the scheduler.
        asynchronous: every method that waits returns something to be awaited. Such a client is opened by ``await`` or ``async
            with``, in whatever event loop; it is no default for collections.
        name: what it is called where it is shown.
        set_as_default: whether collections run on it by default.
        direct_to_workers: False: values come by way of the scheduler; True: from workers, also from those that could not be
            reached before. By default from workers where they can be reached.
        output: whether what tasks print, log and warn is shown here.
        patience: seconds to look for a scheduler that was there and is gone; what was asked for is kept meanwhile.
        cluster: arguments of :class:`taskloom.LocalCluster`, where one is started: ``n_workers``, ``threads_per_worker``,
            ``processes``, ``memory_limit`` and others.

    Attributes:
        address: of the scheduler.
        token: what it and its clients have to know.
        cluster: the cluster that was given, or was started; None where there was an address.

    Raises:
        ConnectTimeoutError: nobody answers there.
        HandshakeError: somebody does who does not belong to us; says what to do.
        CommError: the scheduler was not reached otherwise; says why.

    >>> with Client(n_workers=1) as client:
    ...     client.get({"x": 1, "y": (sum, ["x", 10])}, "y")
    ...     client.submit(pow, 2, 10).result()
    11
    1024
    """

    def __init__(
        self,
        address: Any = None,
        *,
        token: Token | None = None,
        timeout: float = 10.0,
        asynchronous: bool = False,
        name: str | None = None,
        set_as_default: bool = True,
        direct_to_workers: bool | None = None,
        output: bool = True,
        patience: float = 300.0,
        **cluster: Any,
    ) -> None:
        if address is None and not cluster:
            address = config.get("cluster.address")
        if cluster:
            _check_names(cluster)
        if address is not None and cluster:
            raise TypeError(
                f"{', '.join(sorted(cluster))}: such arguments say how a cluster on this machine is started, and one that is "
                f"there was given too: {address!r}"
            )
        self.asynchronous = asynchronous
        self.name = name
        self.address = self.token = ""
        self.cluster: Any = None
        self._engine: Any = _Unopened()
        self._cluster: Any = None  # that was started for this client
        self._options = token, patience, direct_to_workers, output
        check_seconds(timeout)
        check_seconds(patience)
        self._timeout = timeout
        self._set_as_default = set_as_default and not asynchronous
        self._clerk = Clerk("taskloom-callbacks")
        self._starting: dict[str, Any] | None = None if address is not None else cluster
        self._opening: Signal | None = None
        self._problem: BaseException | None = None
        self._closing = False
        self._workers: dict[str, str] = {}  # addresses of workers -> what they are called
        if address is not None:
            self._engage(address)
        if not asynchronous:
            run(self._open())

    def _engage(self, address: Any) -> None:
        """Begin to connect."""
        token, patience, direct, output = self._options
        if not isinstance(address, str):
            self.cluster = address
            if not hasattr(address, "address") or not hasattr(address, "token"):
                raise TypeError(
                    "a client connects to an address such as 'tcp://127.0.0.1:8786', or to a cluster, an object with address and "
                    f"token; {type(address).__name__} is neither"
                )
            token = address.token if token is None else token
            address = address.address
        if token is None:
            token = find_token()
        if token is None:
            if not address.startswith("inproc:"):
                raise TokenError(
                    f"to connect to {address} a token is needed, and there is none here. Where the scheduler was started it is "
                    f"in ~/.config/taskloom/token; set {how_to_get_token()}, or hand it over as token="
                )
            token = ""
        self.address, self.token = address, tokens_of(token)[0] if token else ""
        screen = Screen(stderr=not getattr(self.cluster, "shows_stderr", False)) if output else None
        self._engine = Engine(address, token, patience, screen, direct)
        self._connected = self._engine.start(self._timeout)

    # --- opening and closing

    async def _open(self) -> Client:
        if self._opening is not None:  # by somebody else
            await self._opening.wait()
            if self._problem is not None:
                raise self._problem
            return self
        self._opening = Signal()
        try:
            if self._starting is not None:
                self._cluster = await _elsewhere(self.asynchronous, partial(_start_cluster, self._starting))
                self._engage(self._cluster)
            await self._connected.signal.wait()
            Engine.answer_of(self._connected)
            if self.asynchronous:
                await self._meet_workers()
            _live.add(self)
            atexit.unregister(_say_goodbye)
            atexit.register(_say_goodbye)  # once more: before the clusters that were started since end
            if self._set_as_default:
                defaults.add(self)
        except BaseException as error:
            self._problem = error
            await self._close()
            raise
        finally:
            self._opening.set()
        return self

    def __await__(self) -> Generator[Any, Any, Client]:
        return drive(self._open()).__await__()

    async def __aenter__(self) -> Client:
        return await self

    async def __aexit__(self, *exc_info: object) -> None:
        await drive(self._close())

    def __enter__(self) -> Client:
        if self.asynchronous:
            problem = "a client with asynchronous=True is opened by `async with`, or by `await`"
            self._engine.leave(problem)  # nobody has it, to close it
            raise TypeError(problem)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> Any:
        """Leave the cluster. What was asked for and not done is stopped; a cluster that was started for this client ends.

        With an asynchronous client: to be awaited.

        >>> client = Client(n_workers=1)
        >>> client.close()
        >>> client.submit(abs, -1)
        Traceback (most recent call last):
            ...
        taskloom.errors.ClusterError: this client is closed
        """
        return self._sync(self._close())

    async def _close(self) -> None:
        defaults.drop(self)
        _live.discard(self)
        if not self._engine.forked:
            closing, self._closing = self._closing, True
            over = self._engine.leave("this client is closed")
            await over.wait(deadline_of(GOODBYE))
            if not closing:
                self._engine.join(1.0)
                await _elsewhere(self.asynchronous, partial(self._clerk.close, 1.0))
            cluster, self._cluster = self._cluster, None
            if cluster is not None:
                await _elsewhere(self.asynchronous, cluster.close)

    def _sync(self, coroutine: Any) -> Any:
        return drive(coroutine) if self.asynchronous else run(coroutine)

    def __repr__(self) -> str:
        name = "Client" if self.name is None else f"Client {self.name!r}"
        engine = self._engine
        if engine.forked:
            state = "of the process that this one was forked from"
        elif engine.reason:
            state = "closed" if self._closing else engine.reason
        else:
            held = len(engine.machine.wishes)
            state = f"{'connected' if engine.is_connected else 'not connected'}, {held} value{'' if held == 1 else 's'} wanted"
        return f"<{name} of {self.address or 'a cluster to come'}: {state}>"

    @classmethod
    def current(cls) -> Client:
        """The client that collections run on just now.

        Raises:
            ClusterError: there is none.

        >>> with Client(n_workers=1) as client:
        ...     Client.current() is client
        True
        """
        if not default_clients:
            raise ClusterError("there is no client here that collections run on: make one, with taskloom.Client(...)")
        found: Client = default_clients[-1]
        return found

    # --- graphs

    @quiet_frames
    def get(
        self,
        graph: Any,
        keys: Any,
        *,
        priority: int = 0,
        retries: int = 0,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        timeout: float | None = None,
        sync: bool = True,
        **more: Any,
    ) -> Any:
        """Compute keys of a graph on the cluster.

        Ctrl-C, and a timeout, stop what was begun.

        Args:
            graph: mapping ``key -> literal | (function, *arguments) | key | list``, or a collection; see
                :mod:`taskloom.graph.convention`. A future in it stands for its value.
            keys: a key, or a list of keys and such lists.
            priority: of its tasks: greater goes first.
            retries: how many times a task that raised is run again.
            workers: names or addresses of the workers that may run them; by default all.
            resources: name -> amount of what each task takes while it runs.
            timeout: seconds to wait at most.
            sync: False: futures instead of values, at once.
            more: what other schedulers take (``num_workers``) has no meaning here; ``allow_other_workers`` as for :meth:`submit`.

        Returns:
            The value of the key; for a list of keys a tuple of values, nested as the list is.

        Raises:
            GraphError: the graph is wrong.
            SerializationError: something in it does not pickle.
            TimeoutError: it took longer.
            Exception: whatever a task raises.

        >>> with Client(n_workers=1) as client:
        ...     client.get({"x": 1, "y": (abs, -2), "z": (max, "x", "y")}, ["z", ["x", "y"]])
        (2, (1, 2))
        """
        self._engine.check()
        how = priority, retries, _without_dasks(more, workers), resources
        options = self._options_of(*how)
        graph = opened(graph)
        plan = compile_graph(graph, keys)
        said = self._said(plan, graph, options, how)
        if not sync:
            futures = self._persisted(plan, said)
            return plan.results(futures)
        return self._sync(self._get(plan, said, timeout))

    async def _get(self, plan: Plan, options: Said, timeout: float | None) -> Any:
        packer = Packer(self._engine, copy=False)
        wanted: dict[int, int] = {}
        try:
            self._send(packer, plan, wanted, options)
            values = await self._engine.values(list(wanted.values()), timeout, name=partial(self._name, packer))
        finally:
            self._engine.release(wanted.values())
            self._engine.finished(packer.base, len(packer.order))
        return plan.results(dict(zip(wanted, values, strict=True)))

    def _send(self, packer: Packer, plan: Plan, wanted: dict[int, int], options: Said) -> None:
        """Send a graph. ``wanted`` is filled with the counters of its outputs, by their ids, whatever happens."""
        engine = self._engine
        each = options if isinstance(options, list) else None
        try:
            for columns in packer.graph(plan, wanted, each):
                engine.submit(columns, options if each is None else packer.options)
        except BaseException:
            engine.unsubmit(packer.base, packer.base + len(packer.order))
            raise

    def _persisted(self, plan: Plan, options: Said) -> dict[int, Future]:
        """Futures of the outputs of a graph, by their ids."""
        packer = Packer(self._engine)
        wanted: dict[int, int] = {}
        try:
            self._send(packer, plan, wanted, options)
        except BaseException:
            self._engine.release(wanted.values())
            if packer.order:
                self._engine.graphs.forget(packer.base)
            raise
        futures = {i: Future(self, counter, plan.keys[i]) for i, counter in wanted.items()}
        self._engine.labels.update({counter: plan.keys[i] for i, counter in wanted.items()})
        if packer.order:
            self._engine.graphs.keep(packer.base, wanted.values())
        return futures

    def _name(self, packer: Packer | None, counter: int) -> Any:
        """The key of a task by its counter, as far as it is known here."""
        if packer is not None and 0 <= counter - packer.base < len(packer.order):
            return packer.keys[packer.order[counter - packer.base]]
        return self._engine.key_of(counter)

    # --- functions

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

        >>> with Client(n_workers=1) as client:
        ...     numbers = client.submit(list, (3, 1, 2))
        ...     client.submit(sorted, numbers, reverse=True).result()
        [3, 2, 1]
        """
        engine = self._engine
        engine.check()
        _check_call(function, timeout)
        if kwargs and not DASKS.isdisjoint(kwargs):
            workers = _without_dasks(kwargs, workers, function)
        options = self._options_of(priority, retries, workers, resources)
        if pure and key is None:
            key = f"{name_of(function)}-{tokenize(function, args, kwargs)}"
        if key is not None:
            _check_key(key)
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

        >>> with Client(n_workers=1) as client:
        ...     client.gather(client.map(pow, [2, 3], [10, 2]))
        [1024, 9]
        """
        engine = self._engine
        engine.check()
        _check_call(function, timeout)
        if kwargs and not DASKS.isdisjoint(kwargs):
            workers = _without_dasks(kwargs, workers, function)
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
                _check_key(each)
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

    def _said(self, plan: Plan, graph: Any, options: Options | None, how: tuple[Any, ...]) -> Said:
        """The options of a graph; where it has annotations, of each task by its id.

        Args:
            graph: of which the plan was made. Its annotations go before what is said of all.
            options: of all; ``how``: the priority, retries, workers and resources that these are made of.
        """
        if type(graph) is not AnnotatedGraph:
            return options
        made: dict[str, Options | None] = {}
        found = []
        for key in plan.keys:
            said = graph.annotations.get(key)
            if not said:
                found.append(options)
                continue
            each = [said.get(name, of_all) for name, of_all in zip(_SAID, how, strict=True)]
            for n in (0, 1):  # a priority of 0.5 may be said
                each[n] = int(each[n] // 1) if isinstance(each[n], float) and isfinite(each[n]) else each[n]
            if said.get("allow_other_workers"):
                each[_SAID.index("workers")] = None
            words = repr(each)
            if words not in made:
                made[words] = self._options_of(*each)
            found.append(made[words])
        return found

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

    # --- data

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

    def _counters(self, futures: Iterable[Future]) -> list[int]:
        counters = []
        for future in futures:
            if future.client is not self:
                raise TypeError(f"{future!r} is a future of another client: {future.client!r}")
            if future.counter < 0:
                raise ClusterError(f"the future {future.key!r} was released, so its value is not to be had by it")
            counters.append(future.counter)
        return counters

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

    # --- collections

    @quiet_frames
    def compute(
        self,
        collections: Any,
        sync: bool = False,
        *,
        optimize_graph: bool = True,
        priority: int = 0,
        retries: int = 0,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        **more: Any,
    ) -> Any:
        """Compute collections in the background, each to one value on the cluster.

        Args:
            collections: a collection of ours or of dask's, or a list of them. What is none is returned as it is.
            sync: whether to wait for the values, and return them.
            optimize_graph: whether the collections' own optimizations are applied first.
            priority, retries, workers, resources: as for :meth:`get`.
            more: what dask's takes besides: see :meth:`submit`.

        Returns:
            The future of its value; of a list, a list of futures.

        >>> import taskloom
        >>> numbers = taskloom.bag.range(10, npartitions=2)
        >>> with Client(n_workers=1) as client:
        ...     total, count = client.compute([numbers.sum(), numbers.count()])
        ...     total.result(), count.result()
        (45, 10)
        """
        self._engine.check()
        defaults.tell_dask()
        how = priority, retries, _without_dasks(more, workers), resources
        for name in more.keys() - {"traverse"}:
            raise TypeError(f"compute takes no argument {name!r}")
        options = self._options_of(*how)
        several = isinstance(collections, (list, tuple, set, frozenset))
        given = list(collections) if several else [collections]
        found = [collection for collection in given if is_collection(collection)]
        futures: list[Future] = []
        if found:
            merged = _Merged(found, optimize_graph)
            merged.finalize_expressions()
            whole = merged.graph()
            graph = dict(whole)
            wanted = []
            for number, collection in enumerate(found):
                key = merged.keys[number]
                tell = None if number in merged.finals else getattr(collection, "__dask_postcompute__", None)
                if tell is not None:
                    finalize, args = tell()
                    if getattr(finalize, "__name__", "") != "single_key":
                        key, keys = f"{name_of(type(collection)).lower()}-value-{os.urandom(8).hex()}", key
                        graph[key] = (finalize, keys, *[quote(arg) for arg in args])
                while type(key) is list and len(key) == 1:
                    key = key[0]
                if type(key) is list:
                    key, keys = f"value-{os.urandom(8).hex()}", key
                    graph[key] = keys
                wanted.append(key)
            plan = compile_graph(graph, wanted)
            by_id = self._persisted(plan, self._said(plan, whole, options, how))
            futures = self._futures_of(plan.shape, by_id)
        rest = iter(futures)
        results = [next(rest) if is_collection(collection) else collection for collection in given]
        if sync:
            return self.gather(results if several else results[0])
        return results if several else results[0]

    def _futures_of(self, ids: Sequence[int], by_id: dict[int, Future]) -> list[Future]:
        """A future for each id; where one stands twice, another one."""
        seen: set[int] = set()
        futures = []
        for i in ids:
            future = by_id[i]
            if i in seen:
                self._engine.share(future.counter)
                future = Future(self, future.counter, future.key)
            seen.add(i)
            futures.append(future)
        return futures

    @quiet_frames
    def persist(
        self,
        collections: Any,
        *,
        optimize_graph: bool = True,
        priority: int = 0,
        retries: int = 0,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        **more: Any,
    ) -> Any:
        """Compute collections in the background; their values stay on the cluster.

        Args:
            collections: a collection of ours or of dask's, or a list of them.
            optimize_graph, priority, retries, workers, resources, more: as for :meth:`compute`.

        Returns:
            A collection of the same kind, made of futures of its parts; of a list, a list. The values live as long as it does.

        >>> import taskloom
        >>> with Client(n_workers=1) as client:
        ...     squares = client.persist(taskloom.bag.range(10, npartitions=2).map(lambda x: x * x))
        ...     squares.sum().compute()
        285
        """
        self._engine.check()
        defaults.tell_dask()
        how = priority, retries, _without_dasks(more, workers), resources
        options = self._options_of(*how)
        several = isinstance(collections, (list, tuple, set, frozenset))
        given = list(collections) if several else [collections]
        found = [collection for collection in given if is_collection(collection)]
        rebuilt = []
        if found:
            merged = _Merged(found, optimize_graph)
            graph = merged.graph()
            keys = [list(flatten_keys(own)) for own in merged.keys]
            plan = compile_graph(graph, [key for own in keys for key in own])
            by_id = self._persisted(plan, self._said(plan, graph, options, how))
            futures = iter(self._futures_of(plan.shape, by_id))
            for collection, own in zip(found, keys, strict=True):
                rebuilt.append(_rebuild(collection, {key: next(futures) for key in own}))
        rest = iter(rebuilt)
        results = [next(rest) if is_collection(collection) else collection for collection in given]
        return results if several else results[0]

    # --- what becomes of tasks

    def cancel(self, futures: Any, force: bool = False) -> Any:
        """Stop tasks that have not ended, whoever needs them; those that run too. What has ended stays as it is.

        Args:
            futures: a future, a collection made of futures, or lists and dicts of them.
            force: has no meaning; it is there as dask has it.

        >>> import time
        >>> with Client(n_workers=1) as client:
        ...     futures = client.map(time.sleep, [60, 60])
        ...     client.cancel(futures)
        ...     [future.status for future in futures]
        ['cancelled', 'cancelled']
        """
        return self._sync(self._cancel(_futures_for("cancel", futures)))

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

        >>> with Client(n_workers=1) as client:
        ...     future = client.submit(abs, -1)
        ...     future.cancel()
        ...     client.retry(future)
        ...     future.result()
        True
        1
        """
        return self._sync(self._retry(_futures_for("retry", futures)))

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

        >>> with Client(n_workers=1) as client:
        ...     future = client.submit(abs, -1, key="one")
        ...     future.result()
        ...     client.who_has(future)
        1
        {'one': ('worker-0',)}
        """
        return self._sync(self._who_has(None if futures is None else _futures_for("who_has", futures)))

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


class _Unopened:
    """In place of the engine of an asynchronous client that was not opened yet."""

    forked = False
    reason = "it was not opened yet"

    def check(self) -> None:
        raise ClusterError("this client was not opened yet: `await client`, or `async with Client(...) as client`")

    def leave(self, reason: str) -> Signal:
        signal = Signal()
        signal.set()
        return signal

    def join(self, timeout: float) -> None:
        pass


_WORKERS, _THREADS, _MEMORY = ["n_workers"], ["threads_per_worker"], ["memory_limit"]
# what others call arguments of a LocalCluster, without underscores
_MEANT = {
    **dict.fromkeys(("workers", "nworkers", "numworkers", "nprocs", "njobs"), _WORKERS),
    **dict.fromkeys(("threads", "nthreads", "numthreads", "ncores", "cores", "cpus", "ncpus", "numcpus"), _THREADS),
    **dict.fromkeys(("memory", "mem", "memlimit", "maxmemory"), _MEMORY),
}
_WISHED = bytes([WISH])
_FUTURES = frozenset({Future})
_SAID = ("priority", "retries", "workers", "resources")
DASKS = frozenset(
    ("allow_other_workers", "fifo_timeout", "actor", "actors")
)  # what dask's client takes, and this one not


def _check_call(function: Any, timeout: Any) -> None:
    if not callable(function):
        raise TypeError(
            f"what the cluster is to call is a function, not {function!r:.200} of type {type(function).__name__}"
        )
    check_seconds(timeout)


def _without_dasks(kwargs: dict[str, Any], workers: Any, function: Any = None) -> Any:
    """Take arguments of dask's client out that are not the function's.

    Args:
        kwargs: they are taken out of this.
        workers: who may run it.

    Returns:
        Who may run it after that.

    Raises:
        TypeError: what they ask for is not to be had.
    """
    for name in DASKS.intersection(kwargs):
        if function is not None and _takes(function, name):
            continue
        value = kwargs.pop(name)
        if name == "allow_other_workers" and value:
            if not workers:
                raise TypeError("allow_other_workers=True goes with workers=, and there is none: leave it away")
            workers = None
        elif name in ("actor", "actors") and value:
            raise TypeError(
                f"{name}={value!r}: this client makes no actors. Submit functions, and hand what is to be kept from one to the "
                "next on as a future"
            )
    return workers


def _takes(function: Any, name: str) -> bool:
    """Whether a function takes an argument of this name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin that does not tell
        return True
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return any(
        of.kind is inspect.Parameter.VAR_KEYWORD or (of.name == name and of.kind in by_name) for of in parameters
    )


def _futures_for(what: str, data: Any) -> list[Future]:
    """The futures in what a method was given, which takes nothing else."""
    found: list[Future] = []
    stack = [listed(data)]
    while stack:
        item = stack.pop()
        if isinstance(item, Future):
            found.append(item)
        elif isinstance(item, dict):
            stack.extend(reversed(item.values()))
        elif isinstance(item, (list, tuple, set, frozenset)):
            stack.extend(reversed(list(item)))
        elif is_collection(item):
            found += futures_in(dict(item.__dask_graph__()))
        else:
            raise TypeError(
                f"{what} takes a future, a collection made of futures, or lists and dicts of them; "
                f"{item!r:.200}, of type {type(item).__name__}, is none of these"
            )
    return found


def _check_key(key: Any) -> None:
    try:
        hash(key)
    except TypeError as error:
        raise TypeError(f"a key is hashable, such as 'x' or ('x', 0); {key!r:.200} is not: {error}") from None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def _local_cluster() -> Any:
    # by its name: imports go the other way
    return importlib.import_module("taskloom.deploy.local").LocalCluster


def _start_cluster(options: dict[str, Any]) -> Any:
    return _local_cluster()(**options)


def _check_names(cluster: Mapping[str, Any]) -> None:
    """See that arguments which are none of a client's are those of a LocalCluster."""
    known = list(inspect.signature(_local_cluster()).parameters)
    for name in cluster:
        if name in known:
            continue
        own = [*inspect.signature(Client).parameters][:-1]
        meant = _MEANT.get(name.replace("_", "")) or difflib.get_close_matches(name, [*own, *known], 1)
        raise TypeError(
            f"Client() takes no argument {name!r}"
            + (
                f": do you mean {meant[0]!r}?"
                if meant
                else f"; there are {', '.join(own)}, and for a cluster {', '.join(known)}"
            )
        )


async def _elsewhere(asynchronous: bool, function: Callable[[], Any]) -> Any:
    """Call something that takes long; in a thread, if this one has an event loop to look after."""
    if not asynchronous:
        return function()
    signal = Signal()
    found: list[Any] = []

    def call() -> None:
        try:
            found.append(function())
        except BaseException as error:
            found.append(error)
        signal.set()

    threading.Thread(target=call, name="taskloom-opening", daemon=True).start()
    await signal.wait()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _forked() -> None:
    """This process was forked: the clients here are those of the other one."""
    defaults.drop_all()
    for client in list(_live):
        client._engine.fork()


def _say_goodbye() -> None:
    """The program ends, and clients are open: the scheduler need not wait for them to come back."""
    for client in list(_live):
        if not client._engine.forked:
            defaults.drop(client)
            over = client._engine.leave("the program ends")
            if over.block(deadline_of(1.0)):
                client._engine.join(0.5)


os.register_at_fork(after_in_child=_forked)
