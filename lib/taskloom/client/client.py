"""The client: its machine and connections on an event loop of its own, in a thread of its own."""

from __future__ import annotations

import asyncio
import importlib
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from itertools import count, pairwise
from typing import Any

from taskloom._collections.running import default_clients
from taskloom.client.future import Future
from taskloom.core.client import FAILED, PENDING, READY, ClientMachine, Wish
from taskloom.core.messages import KINDS, PIN, WISH, Ask, ClientHello, Give, Lost, PeerHello, Peers, Welcome
from taskloom.errors import ClusterError, CommError, TaskCancelledError, WorkerDiedError
from taskloom.graph.compile import PLAIN, REFS, VALUE, Plan, compile_graph
from taskloom.graph.node import Named
from taskloom.local.frames import quiet_frames
from taskloom.local.run import name_of
from taskloom.net import Connection, Options, connect, find_token
from taskloom.node import calls
from taskloom.serialize.errors import load_error

__all__ = ["Client"]

FIRST, NEXT = 200, 1000  # tasks in the first block of a graph, so that workers begin soon, and in the next ones


def _identity(value: Any) -> Any:
    return value


def _nothing() -> None:
    """Stands for the function of a task whose call is all in its arguments."""


class _Wait:
    """Somebody waits for some values."""

    __slots__ = ("event", "left")

    def __init__(self, left: int) -> None:
        self.left = left
        self.event = threading.Event()


class Client:
    """A connection to a cluster.

    While it is open it is where ``compute`` of delayed, bag and other collections runs, unless something else is said.

    Args:
        address: of its scheduler, such as ``tcp://127.0.0.1:8786``; None: a cluster on this machine is started for this
            client alone, with ``n_workers`` and ``threads_per_worker``.
        token: what the scheduler and its clients have to know; by default the one that this user has.
        timeout: seconds to reach the scheduler.

    Raises:
        CommError: the scheduler was not reached; says why.

    >>> with Client(n_workers=1) as client:
    ...     client.get({"x": 1, "y": (sum, ["x", 10])}, "y")
    11
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        timeout: float = 10.0,
        n_workers: int | None = None,
        threads_per_worker: int = 1,
    ) -> None:
        self._cluster: Any = None
        if address is None:
            # by its name: imports go the other way
            local = importlib.import_module("taskloom.deploy.local")
            self._cluster = local.LocalCluster(n_workers=n_workers, threads_per_worker=threads_per_worker)
            address, token = self._cluster.address, self._cluster.token
        if token is None:
            token = find_token() or ""
        self.address = address
        self._token = token
        self._machine = ClientMachine(os.urandom(16))
        self._lock = threading.RLock()  # guards the machine; held for moments
        self._waits: dict[int, list[_Wait]] = {}
        self._addresses: dict[int, str] = {}
        self._peers: dict[str, _Fetcher] = {}
        self._packed: dict[int, tuple[Any, Any, Any]] = {}
        self._serials = count(1)
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="taskloom-client", daemon=True)
        self._thread.start()
        try:
            self._connection: Connection | None = None
            self._call(self._connect(timeout))
        except BaseException:
            self.close()
            raise
        default_clients.append(self)

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _connect(self, timeout: float) -> None:
        connection = await connect(
            self.address,
            token=self._token,
            role="client",
            wants="scheduler",
            timeout=timeout,
            options=Options(kinds=KINDS),
        )
        welcome: asyncio.Future[None] = self._loop.create_future()

        def on_messages(messages: list[Any]) -> None:
            if not welcome.done() and type(messages[0]) is Welcome:
                messages = messages[1:]
                welcome.set_result(None)
            if messages:
                self._heard(messages)

        def on_close(reason: CommError | None) -> None:
            if not welcome.done():
                welcome.set_exception(reason or ClusterError("the scheduler closed the connection"))
            if not self._closed:
                self._loop.create_task(self._come_back())

        with self._lock:
            self._addresses.clear()
            self._connection = connection
            connection.start(on_messages, on_close)
            connection.send(ClientHello(self._machine.uuid))
            for message in self._machine.connected():
                connection.send(message)
        await welcome

    async def _come_back(self) -> None:
        self._connection = None
        for _ in range(100):
            await asyncio.sleep(0.1)
            try:
                await self._connect(2.0)
                return
            except (CommError, OSError):
                continue
        with self._lock:
            self._closed = True
            for waits in self._waits.values():
                for wait in waits:
                    wait.event.set()

    def close(self) -> None:
        """Leave the cluster; a cluster that was started for this client ends."""
        default_clients[:] = [client for client in default_clients if client is not self]
        if not self._closed or self._loop.is_running():
            self._closed = True
            if self._loop.is_running():
                self._call(self._disconnect())
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join(5)
                self._loop.close()
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.close()

    async def _disconnect(self) -> None:
        for fetcher in self._peers.values():
            fetcher.close()
        if self._connection is not None:
            self._connection.close()
            await self._connection.wait_closed()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.address}>"

    # --- what the scheduler says

    def _heard(self, messages: list[Any]) -> None:
        with self._lock:
            said = []
            for message in messages:
                if type(message) is Peers:
                    self._addresses.update(message.addresses)
                else:
                    said.append(message)
            waits, wishes = self._waits, self._machine.wishes
            for counter in self._machine.handle(said):
                if counter in waits and wishes[counter].state != PENDING:
                    for wait in waits.pop(counter):
                        wait.left -= 1
                        if not wait.left:
                            wait.event.set()

    def _send(self, messages: Iterable[Any]) -> None:
        if self._closed:
            raise ClusterError(f"this client of {self.address} is closed")
        connection = self._connection
        if connection is not None:
            self._loop.call_soon_threadsafe(_send_all, connection, list(messages))

    def _release(self, counters: Sequence[int]) -> None:
        with self._lock:
            messages = self._machine.release(counters)
            if messages and not self._closed:
                self._send(messages)

    # --- graphs

    @quiet_frames
    def get(self, graph: Any, keys: Any, *, timeout: float | None = None, **_: Any) -> Any:
        """Compute keys of a graph on the cluster.

        Args:
            graph: mapping ``key -> literal | (function, *arguments) | key | list``, or a collection; see
                :mod:`taskloom.graph.convention`.
            keys: a key, or a list of keys and such lists.
            timeout: seconds to wait at most.
            _: what other schedulers take (``num_workers``) has no meaning here.

        Returns:
            The value of the key; for a list of keys a tuple of values, nested as the list is.

        Raises:
            GraphError: the graph is wrong.
            TimeoutError: it took longer.
            Exception: whatever a task raises.
        """
        plan = compile_graph(graph, keys)
        with self._lock:
            counters = self._submit(plan)
        try:
            values = self._results(list(counters.values()), timeout, plan)
        finally:
            self._release(list(counters.values()))
        return plan.results(dict(zip(counters, values, strict=True)))

    def _submit(self, plan: Plan) -> dict[int, int]:
        """Send a graph; counters of its outputs by their ids."""
        order, positions = plan.order, plan.positions()
        tasks, specs, all_deps = plan.tasks, plan.specs, plan.deps
        base = self._machine.next_counter
        functions, args = [], []
        deps: list[Sequence[int]] = []
        packed = self._packed
        for i in order:
            spec, task = specs[i], tasks[i]
            if spec == PLAIN or spec == REFS:
                function = task[0]
            elif spec == VALUE:
                function = _identity
            else:
                function = _nothing
            found = packed.get(id(function))
            if found is None:
                payload = calls.pack_function(function)
                found = packed[id(function)] = (function, bytes(payload.parts[0]), payload)
            functions.append(found[1:])
            if spec == VALUE:
                value = (task,)
                args.append(value if calls.are_atoms(value) else calls.pack_call(value))
                deps.append(())
                continue
            needed = all_deps[i]
            if len(needed) > 1:
                needed = tuple(dict.fromkeys(needed))
            args.append(calls.pack_args(plan, i, needed))
            deps.append([base + positions[d] for d in needed] if needed else ())
        wanted = bytearray(len(order))
        for i in plan.outputs:
            wanted[positions[i]] = WISH
        messages: list[Any] = []
        start, total = 0, len(order)
        # what a later block needs is pinned until that has come
        if total > FIRST:
            cuts = [0, *range(FIRST, total, NEXT), total]
            number = 0
            for k in range(total):
                while k >= cuts[number + 1]:
                    number += 1
                first = base + cuts[number]
                for d in deps[k]:
                    if d < first:
                        wanted[d - base] |= PIN
        else:
            cuts = [0, total]
        for start, end in pairwise(cuts):
            unpin = (base, base + total) if end == total and len(cuts) > 2 else (0, 0)
            messages += self._machine.submit(
                functions[start:end], args[start:end], deps[start:end], bytes(wanted[start:end]), None, unpin
            )[1]
        self._send(messages)
        return {i: base + positions[i] for i in plan.outputs}

    # --- functions

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Call a function on the cluster.

        Args:
            function: what to call.
            args, kwargs: its arguments; futures of this client stand for their values.

        Returns:
            The future of its result.
        """
        with self._lock:
            return self._one(function, args, kwargs)

    def _one(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future:
        if kwargs:
            function = Named(function, tuple(kwargs))
            args = (*args, *kwargs.values())
        deps = [arg.counter for arg in args if type(arg) is Future]
        needed = list(dict.fromkeys(deps))
        packed: Any
        if not deps:
            packed = args if calls.are_atoms(args) else calls.pack_call(args)
        elif len(deps) == len(args) and len(needed) == len(deps):
            packed = None
        else:
            packed = calls.pack_mixed(args, [needed.index(a.counter) if type(a) is Future else -1 for a in args])
        payload = calls.pack_function(function)
        digest = bytes(payload.parts[0])
        counter, messages = self._machine.submit([(digest, payload)], [packed], [needed], bytes([WISH]))
        self._send(messages)
        return Future(self, counter, f"{name_of(function)}-{counter}")

    def map(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> list[Future]:
        """Call a function for each item, or for items of several iterables side by side; futures of the results."""
        rows = list(zip(*iterables, strict=False))
        if not rows:
            return []
        with self._lock:
            payload = calls.pack_function(function)
            digest = bytes(payload.parts[0])
            args: list[Any] = []
            deps: list[Sequence[int]] = []
            for row in rows:
                futures = [arg.counter for arg in row if type(arg) is Future]
                if not futures:
                    args.append(row if calls.are_atoms(row) else calls.pack_call(row))
                    deps.append(())
                    continue
                needed = list(dict.fromkeys(futures))
                if len(futures) == len(row) and len(needed) == len(row):
                    args.append(None)
                else:
                    args.append(
                        calls.pack_mixed(row, [needed.index(a.counter) if type(a) is Future else -1 for a in row])
                    )
                deps.append(needed)
            found: list[Future] = []
            messages: list[Any] = []
            name = name_of(function)
            for start in range(0, len(rows), NEXT):
                end = min(len(rows), start + NEXT)
                first, more = self._machine.submit(
                    [(digest, payload)] * (end - start), args[start:end], deps[start:end], bytes([WISH]) * (end - start)
                )
                messages += more
                found += [Future(self, first + k, f"{name}-{first + k}") for k in range(end - start)]
            self._send(messages)
        return found

    @quiet_frames
    def gather(self, futures: Iterable[Future], timeout: float | None = None) -> list[Any]:
        """The values of futures, in their order; waits for them.

        Raises:
            TimeoutError: they were not all there in time.
            Exception: what the first of those that failed raised.
        """
        return self._results([future.counter for future in futures], timeout)

    # --- values

    def _results(self, counters: list[int], timeout: float | None, plan: Plan | None = None) -> list[Any]:
        self._wait(counters, timeout)
        for _ in range(100):
            with self._lock:
                wishes = [self._machine.wishes.get(counter) for counter in counters]
            for wish in wishes:
                if wish is None:
                    raise ClusterError("the value was released")
                if wish.state == FAILED:
                    raise _error_of(wish)
            missing: dict[int, list[int]] = {}
            for n, wish in enumerate(wishes):
                if wish is not None and wish.result is None:
                    missing.setdefault(wish.place, []).append(n)
            values = [None if wish is None or wish.result is None else calls.open_value(wish.result) for wish in wishes]
            if not missing:
                return values
            lost = False
            for place, numbers in missing.items():
                tids = [wishes[n].tid for n in numbers]  # type: ignore[union-attr]
                try:
                    found = asyncio.run_coroutine_threadsafe(self._fetch(place, tids), self._loop).result(timeout)
                except CommError:
                    lost = True
                    break
                for n, value in zip(numbers, found, strict=True):
                    values[n] = value
            if not lost:
                return values
            # its worker has gone; the scheduler will say where it is now, or that it is computed again
            threading.Event().wait(0.1)
            self._wait(counters, timeout)
        raise ClusterError("workers that have the values cannot be reached from here")

    def _wait(self, counters: list[int], timeout: float | None) -> None:
        with self._lock:
            wishes = self._machine.wishes
            pending = [counter for counter in dict.fromkeys(counters) if wishes.get(counter, _GONE).state == PENDING]
            if not pending:
                return
            wait = _Wait(len(pending))
            for counter in pending:
                self._waits.setdefault(counter, []).append(wait)
        if not wait.event.wait(timeout):
            raise TimeoutError(f"{wait.left} of {len(pending)} values were not there after {timeout} s")
        if self._closed:
            raise ClusterError(f"the scheduler at {self.address} is gone")

    async def _fetch(self, place: int, tids: list[int]) -> list[Any]:
        address = self._addresses.get(place)
        if address is None:
            raise CommError(f"worker {place} is not known here")
        fetcher = self._peers.get(address)
        if fetcher is None or fetcher.closed:
            connection = await connect(
                address, token=self._token, role="client", wants="worker", timeout=5.0, options=Options(kinds=KINDS)
            )
            fetcher = self._peers[address] = _Fetcher(connection)
        return await fetcher.fetch(next(self._serials), tids)


_GONE = Wish(READY)


class _Fetcher:
    """A connection to a worker, for fetching values."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.closed = False
        self._asked: dict[int, tuple[list[int], dict[int, Any], asyncio.Future[list[Any]]]] = {}
        connection.start(self._heard, self._lost)
        connection.send(PeerHello(-1))

    async def fetch(self, serial: int, tids: list[int]) -> list[Any]:
        """Values."""
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._asked[serial] = (tids, {}, future)
        self.connection.send(Ask(serial, tids))
        return await future

    def _heard(self, messages: list[Any]) -> None:
        for message in messages:
            if type(message) is not Give or message.serial not in self._asked:
                continue
            tids, found, future = self._asked[message.serial]
            for tid, value in zip(message.tids, message.values, strict=True):
                if tid < 0:
                    future.set_exception(load_error(bytes(value.parts[0])))
                    del self._asked[message.serial]
                    break
                found[tid] = value
            else:
                if len(found) == len(set(tids)):
                    del self._asked[message.serial]
                    future.set_result([calls.open_value(found[tid]) for tid in tids])

    def _lost(self, reason: CommError | None) -> None:
        self.closed = True
        for _, _, future in self._asked.values():
            if not future.done():
                future.set_exception(reason or CommError("the connection to a worker was closed"))
        self._asked.clear()

    def close(self) -> None:
        """Close it."""
        self.closed = True
        self.connection.close()


def _send_all(connection: Connection, messages: list[Any]) -> None:
    for message in messages:
        connection.send(message)


def _error_of(wish: Wish) -> BaseException:
    error = wish.error
    if isinstance(error, Lost):
        if error.kind == "died":
            return WorkerDiedError(error.words)
        if error.kind == "cancelled":
            return TaskCancelledError(error.words)
        return ClusterError(error.words)
    return load_error(bytes(error.parts[0]))
