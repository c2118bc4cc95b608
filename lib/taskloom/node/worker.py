"""The worker process: connections, threads and values around :class:`taskloom.core.worker.WorkerMachine`."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from taskloom.core.messages import (
    KINDS,
    Ask,
    Functions,
    Give,
    PeerHello,
    Peers,
    Unask,
    Welcome,
    WorkerHello,
)
from taskloom.core.worker import (
    AskerLost,
    ClosePeers,
    Discard,
    Ended,
    Forget,
    Got,
    Keep,
    Leave,
    PeerAsks,
    PeerLost,
    Raised,
    Rename,
    Send,
    Start,
    Stop,
    Unready,
    WorkerMachine,
)
from taskloom.errors import CommError
from taskloom.local.frames import cut_frames
from taskloom.net import Connection, Options, connect, listen
from taskloom.node import calls
from taskloom.node.cell import RunningCells
from taskloom.node.executor import DONE, STUCK, Executor
from taskloom.protocol import Payload
from taskloom.serialize.errors import dump_error

__all__ = ["WorkerNode", "run_worker"]

AHEAD = 0.002  # seconds of work that the threads have in hand
AGAIN = (0.05, 0.1, 0.2, 0.5, 1.0)  # seconds between attempts to reach a scheduler that was there


class _NotThere(Exception):
    """A task was handed over with the one that makes its input, and that one failed."""


class _Peering:
    """A connection by which this worker asks another one; made when it is needed."""

    def __init__(self, node: WorkerNode, number: int, address: str) -> None:
        self.node = node
        self.number = number
        self.waiting: list[Any] = []
        self.connection: Connection | None = None
        self.closed = False
        self.task = asyncio.ensure_future(self._connect(address))

    async def _connect(self, address: str) -> None:
        try:
            connection = await connect(
                address, token=self.node.token, role="worker", wants="worker", timeout=5.0, options=Options(kinds=KINDS)
            )
        except (CommError, OSError) as error:
            self._lost(error)
            return
        if self.closed:
            connection.close()
            return
        self.connection = connection
        connection.start(self._heard, self._lost)
        connection.send(PeerHello(self.number))
        for message in self.waiting:
            connection.send(message)
        self.waiting.clear()

    def send(self, message: Any) -> None:
        """Say something."""
        if self.connection is None:
            self.waiting.append(message)
        else:
            self.connection.send(message)

    def _heard(self, messages: list[Any]) -> None:
        for message in messages:
            self.node.took(self.number, message)

    def _lost(self, reason: Any) -> None:
        if not self.closed:
            self.closed = True
            self.node.lost_peer(self)

    def close(self) -> None:
        """Close it; nothing is told."""
        self.closed = True
        if self.connection is not None:
            self.connection.close()


class WorkerNode:
    """A worker that belongs to the scheduler at an address.

    Args:
        scheduler: its address.
        token: what both have to know.
        name: what users call it.
        threads: how many tasks run at a time.
        limit: bytes of memory that it may use; 0: no limit.
        resources: name -> amount.
        cells: path of a file that shall say which tasks run, for whoever wants to know after this process has died.
    """

    def __init__(
        self,
        scheduler: str,
        token: str,
        name: str = "",
        threads: int = 1,
        limit: int = 0,
        resources: dict[str, float] | None = None,
        cells: str | None = None,
    ) -> None:
        self._cells = None if cells is None else RunningCells(cells, threads + 64)
        self.scheduler = scheduler
        self.token = token
        self.name = name or f"worker-{os.getpid()}"
        self.threads = threads
        self.limit = limit
        self.resources = resources or {}
        self.machine = WorkerMachine(threads, resources, AHEAD)
        self.values: dict[int, Any] = {}
        self.functions: dict[int, Any] = {}
        self.addresses: dict[int, str] = {}
        self.connection: Connection | None = None
        self.finished = asyncio.Event()
        self._results: dict[tuple[int, int], Any] = {}
        self._fresh: dict[int, Any] = {}  # tid -> value, of tasks whose end the event loop has not heard of yet
        self._starts: dict[tuple[int, int], Start] = {}
        self._peers: dict[int, _Peering] = {}
        self._events: list[Any] = []
        self._called = False
        self._closing = False

    async def start(self, address: str = "tcp://127.0.0.1:0") -> None:
        """Listen for other workers, and join the scheduler."""
        self._loop = asyncio.get_running_loop()
        self.listener = await listen(
            address, self._peer_came, token=self.token, role="worker", options=Options(kinds=KINDS)
        )
        self.executor = Executor(
            self.threads,
            lambda: self._loop.call_soon_threadsafe(self._collect),
            prepare=self._prepare,
            finish=self._finish,
            cells=self._cells,
        )
        await self._join(10.0)

    async def _join(self, timeout: float) -> None:
        self.connection = await connect(
            self.scheduler,
            token=self.token,
            role="worker",
            wants="scheduler",
            timeout=timeout,
            options=Options(kinds=KINDS),
        )
        self.functions.clear()
        self.addresses.clear()
        self.connection.start(self._heard, self._lost_scheduler)
        self.connection.send(
            WorkerHello(self.name, self.threads, self.limit, self.resources, str(self.listener.address), os.getpid())
        )

    async def close(self) -> None:
        """Leave."""
        self._closing = True
        self.listener.close()
        for peering in list(self._peers.values()):
            peering.close()
        if self.connection is not None:
            self.connection.close()
        self.executor.close()
        if self._cells is not None and not self.executor.size():
            self._cells.close()
        self.finished.set()

    # --- the scheduler

    def _heard(self, messages: list[Any]) -> None:
        for message in messages:
            kind = type(message)
            if kind is Functions:
                self.functions.update(zip(message.numbers, message.payloads, strict=True))
            elif kind is Peers:
                self.addresses.update(message.addresses)
            elif kind is Welcome:
                self._do(self.machine.connected(message.number))
            else:
                self._events.append(message)
        self._call()

    def _lost_scheduler(self, reason: CommError | None) -> None:
        self.connection = None
        if self._closing:
            return
        self._events.clear()
        self._do(self.machine.disconnected())
        self._loop.create_task(self._come_back())

    async def _come_back(self) -> None:
        for n in range(60):
            await asyncio.sleep(AGAIN[min(n, len(AGAIN) - 1)])
            try:
                await self._join(2.0)
                return
            except (CommError, OSError):
                continue
        print(f"taskloom worker {self.name}: the scheduler at {self.scheduler} is gone", file=sys.stderr)
        await self.close()

    # --- the machine

    def _call(self) -> None:
        if not self._called:
            self._called = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        self._called = False
        events, self._events = self._events, []
        self._do(self.machine.handle(events, time.monotonic()))

    def _do(self, actions: list[Any]) -> None:
        starts: list[Any] = []
        for action in actions:
            kind = type(action)
            if kind is Start:
                key = action.grant, action.tid
                self._starts[key] = action
                starts.append((key, action.tid, action, ()))
            elif kind is Keep:
                self.values[action.name] = self._results.pop((action.grant, action.tid))
                self._fresh.pop(action.tid, None)
            elif kind is Discard:
                self._results.pop((action.grant, action.tid), None)
                self._fresh.pop(action.tid, None)
            elif kind is Forget:
                for tid in action.tids:
                    self.values.pop(tid, None)
            elif kind is Send:
                self._give(action)
            elif kind is Rename:
                for old, new in action.names.items():
                    self.values[new] = self.values.pop(old)
            elif kind is Stop:
                self.executor.stop([(action.grant, action.tid)])
            elif kind is ClosePeers:
                peers, self._peers = self._peers, {}
                for peering in peers.values():
                    peering.close()
            elif kind is Leave:
                self._loop.create_task(self.close())
            elif action.peer is None:
                if self.connection is not None:
                    self.connection.send(action.message)
            else:
                self._ask(action.peer, action.message)
        if starts:
            self.executor.submit(starts)

    # --- tasks (the first two run in the executor's threads)

    def _prepare(self, key: Any, start: Start, _: Any) -> tuple[Any, tuple[Any, ...]]:
        payload = self.functions[start.function]
        if type(payload) is Payload:
            function = self.functions[start.function] = calls.open_function(payload)
        else:
            function = payload
        values = self.values
        try:
            inputs = [values[d] for d in start.deps]
        except KeyError:
            inputs = [self._input(d) for d in start.deps]
        return calls.call, (function, start.args, inputs)

    def _input(self, tid: int) -> Any:
        """A value that was made here, maybe just now: the event loop moves it from the one place to the other."""
        for place in (self.values, self._fresh, self.values):
            try:
                return place[tid]
            except KeyError:
                continue
        raise _NotThere

    def _finish(self, key: Any, value: Any, seconds: float) -> Any:
        size = _size_of(value)
        result = calls.pack_result(value, size) if self._starts[key].wanted else None
        self._fresh[key[1]] = value  # for tasks that were handed over behind this one
        return value, size, result

    def _collect(self) -> None:
        key: Any
        for key, kind, outcome, seconds in self.executor.collect():
            if kind == STUCK:
                continue
            del self._starts[key]
            if kind == DONE:
                value, size, result = outcome
                self._results[key] = value
                self._events.append(Ended(key[0], key[1], size, seconds, result))
            elif type(outcome) is _NotThere:
                self._events.append(Unready(key[0], key[1]))
            else:
                error = outcome if outcome is not None else RuntimeError("the task was stopped")
                cut_frames(error)
                self._events.append(Raised(key[0], key[1], Payload([dump_error(error)])))
        if self._events:
            self._work()

    # --- other workers, and clients that fetch

    def _ask(self, number: int, message: Any) -> None:
        peering = self._peers.get(number)
        if peering is None:
            address = self.addresses.get(number)
            if address is None:
                self._events.append(PeerLost(number))
                self._call()
                return
            peering = self._peers[number] = _Peering(self, number, address)
        peering.send(message)

    def took(self, number: int, message: Any) -> None:
        """Values of another worker have come."""
        if type(message) is Give:
            sizes = []
            for tid, value in zip(message.tids, message.values, strict=True):
                if tid not in self.values:
                    self.values[tid] = calls.open_value(value)
                sizes.append(_size_of(self.values[tid]))
            self._events.append(Got(number, message.serial, message.tids, sizes))
            self._call()

    def lost_peer(self, peering: _Peering) -> None:
        """A connection to another worker is gone."""
        if self._peers.get(peering.number) is peering:
            del self._peers[peering.number]
            self._events.append(PeerLost(peering.number))
            self._call()

    def _peer_came(self, connection: Connection) -> None:
        def on_messages(messages: list[Any]) -> None:
            for message in messages:
                if type(message) is PeerHello:
                    if message.number >= 0 and message.number != self.machine.number:
                        connection.close()  # it means somebody who was here before
                elif type(message) in (Ask, Unask):
                    self._events.append(PeerAsks(connection, message))
            self._call()

        def on_close(reason: CommError | None) -> None:
            self._events.append(AskerLost(connection))
            self._call()

        connection.start(on_messages, on_close)

    def _give(self, action: Send) -> None:
        values, tids = [], []
        for tid in action.tids:
            try:
                values.append(calls.pack_value(self.values[tid]))
                tids.append(tid)
            except Exception as error:  # it does not pickle: who asked has to know why
                values.append(Payload([dump_error(error), b""]))
                tids.append(-tid)
        action.peer.send(Give(action.serial, tids, [payload.nbytes for payload in values], values))


def _size_of(value: Any) -> int:
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size
    return sys.getsizeof(value)


def run_worker(
    scheduler: str,
    token: str,
    tell: Callable[[str], None] | None = None,
    listen_at: str = "tcp://127.0.0.1:0",
    **options: Any,
) -> None:
    """Run a worker in this process until its scheduler is gone.

    Args:
        tell: called with its own address when it has joined.
        listen_at: where other workers are to reach it.
        options: those of :class:`WorkerNode`.
    """

    async def main() -> None:
        node = WorkerNode(scheduler, token, **options)
        await node.start(listen_at)
        if tell is not None:
            tell(str(node.listener.address))
        await node.finished.wait()

    asyncio.run(main())
