"""The worker process: connections, threads and values around :class:`taskloom.core.worker.WorkerMachine`."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from taskloom.core.messages import (
    KINDS,
    Ask,
    Bye,
    Fetch,
    ForgetFunctions,
    Functions,
    Leaving,
    Peers,
    Refused,
    Retired,
    Said,
    Status,
    Unask,
    Vitals,
    Welcome,
    WorkerHello,
)
from taskloom.core.worker import (
    AskerLost,
    ClosePeers,
    Forget,
    Got,
    Leave,
    Paused,
    PeerAsks,
    PeerLost,
    Raised,
    Rename,
    Send,
    Spoiled,
    Start,
    Stop,
    Unready,
    Withdraw,
    WorkerMachine,
)
from taskloom.errors import CommError, ConnectTimeoutError, HandshakeError, TaskCancelledError
from taskloom.local.frames import cut_frames
from taskloom.net import Connection, Options, Token, connect, listen
from taskloom.node import calls
from taskloom.node.cell import RunningCells
from taskloom.node.chains import Chains
from taskloom.node.codes import MEMORY, REPLACE
from taskloom.node.executor import CANCELLED, DONE, STUCK, Executor
from taskloom.node.memory import Pause, Resume, Terminate
from taskloom.node.output import Output
from taskloom.node.process import versions
from taskloom.node.sizes import sizeof
from taskloom.node.transfers import Pieces, Sender, Transfers
from taskloom.node.values import TINY, Values
from taskloom.protocol import Payload
from taskloom.serialize.errors import dump_error

__all__ = ["WorkerNode", "run_worker"]

AHEAD = 0.002  # seconds of work that the threads have in hand
AGAIN = (0.05, 0.1, 0.2, 0.5, 1.0)  # seconds between attempts to reach a scheduler that was there
LOOK = 0.2  # seconds between looks at the memory
LOOK_CLOSELY = 0.02  # and while there is much
HOLD = 4.0  # seconds that nothing is taken in from other workers at most, at a time
HOLD_LOOK = 0.005  # and between looks whether there is room
UNKNOWN = 1 << 20  # bytes that a function's first task is taken to make, where memory is full
SIGN = 1.0  # and between signs of life
MOVE = 30.0  # seconds that the values of a process which is to be replaced may take to move to others

_log = logging.getLogger("taskloom.worker")
_unnamed = itertools.count()


_ABSENT: Any = object()
_MANY = frozenset({list, dict, set, tuple, frozenset})


class _NotThere(Exception):
    """A task was handed over with the one that makes its input, and that one failed."""


class WorkerNode:
    """A worker that belongs to the scheduler at an address.

    Args:
        scheduler: its address.
        token: what both have to know.
        name: what users call it.
        threads: how many tasks run at a time.
        limit: bytes of memory that this process may have; 0: no limit.
        resources: name -> amount.
        cells: path of a file that shall say which tasks run, for whoever wants to know after this process has died.
        launch: what its supervisor calls it; "": it has none.
        folder: where values go that do not fit into memory; by default where temporary files are.
        capture: whether what tasks print goes to the client too.
        echo: whether it is printed here all the same, see :class:`taskloom.node.output.Output`.
        patience: seconds to look for a scheduler that was there and is gone.
        die: called with an exit code when this process has to be replaced; where it is None it goes on as well as it can.

    Attributes:
        finished: set when it has left.
    """

    def __init__(
        self,
        scheduler: str,
        token: Token,
        name: str = "",
        threads: int = 1,
        limit: int = 0,
        resources: dict[str, float] | None = None,
        cells: str | None = None,
        launch: str = "",
        folder: str | None = None,
        capture: bool = True,
        echo: bool = True,
        patience: float = 300.0,
        die: Callable[[int], object] | None = None,
    ) -> None:
        self._cells = None if cells is None else RunningCells(cells, threads + 64)
        self.scheduler = scheduler
        self.token = token
        self.name = name or f"worker-{os.getpid()}-{next(_unnamed)}"
        self.threads = threads
        self.limit = limit
        self.resources = resources or {}
        self.launch = launch
        self.patience = patience
        self.machine = WorkerMachine(threads, resources, AHEAD)
        self.values = Values(limit or None, folder)
        self.functions: dict[int, _Function] = {}
        self.connection: Connection | None = None
        self.finished = asyncio.Event()
        self.transfers = Transfers(self.token, self._took, self._lost_peer)
        self.pieces = Pieces(self.values, self.name)
        self._sender = Sender(self.values, self.name)
        self._store = self.values.store
        self._store.alarm = self._alarm
        self._output = Output(echo=echo) if capture else None
        self._die = die
        self._fresh: dict[int, Any] = {}  # tid -> value, of tasks whose end the event loop has not heard of yet
        # with one thread, which takes tasks in their order, a task's inputs are made before its turn comes
        self._chains = Chains(self._is_there, self._submit) if threads > 1 else None
        self._events: list[Any] = []
        self._peers: set[Connection] = set()  # who asks us
        self._stuck_at: set[Any] = set()  # tasks that were told to stop and do not, by (grant, tid)
        self._replace_by = (
            0.0  # when this process is to be replaced, be its values elsewhere or not; 0.0: it is not to be
        )
        self._called = False
        self._welcome: asyncio.Future[None] | None = (
            None  # while the scheduler has not said yet that it takes this worker
        )
        self._closing = False
        self._timers: list[asyncio.TimerHandle] = []

    async def start(self, address: str = "tcp://127.0.0.1:0", timeout: float = 10.0) -> None:
        """Listen for other workers, and join the scheduler.

        Raises:
            CommError: this process cannot listen there, or the scheduler was not reached in so many seconds.
        """
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
            output=self._output,
        )
        if self._output is not None:  # before the first task can come
            self._output.__enter__()
        try:
            await self._join(timeout)
        except BaseException:
            self._closing = True
            if self.connection is not None:
                self.connection.abort()
            self.listener.close()
            if self._output is not None:
                self._output.__exit__()
            self.executor.close()
            raise
        if self._closing:  # it was told to go meanwhile
            return
        self._timers = [self._loop.call_later(LOOK, self._look), self._loop.call_later(SIGN, self._sign)]

    async def _join(self, timeout: float) -> None:
        self.connection = await connect(
            self.scheduler,
            token=self.token,
            role="worker",
            wants="scheduler",
            timeout=timeout,
            options=Options(kinds=KINDS),
        )
        self.functions = {}
        self.transfers.addresses.clear()
        welcome = self._welcome = self._loop.create_future()
        self.connection.start(self._heard, self._lost_scheduler)
        self.connection.send(
            WorkerHello(
                self.name,
                self.threads,
                self.limit,
                self.resources,
                self.address,
                os.getpid(),
                self.launch,
                self.machine.number,
                _about(),
            )
        )
        try:
            async with asyncio.timeout(timeout):
                await welcome
        except TimeoutError:
            connection, self.connection = self.connection, None
            if connection is not None:
                connection.abort()
            raise ConnectTimeoutError(
                f"the scheduler at {self.scheduler} has not taken this worker in within {timeout:g} s"
            ) from None

    @property
    def address(self) -> str:
        """Where others reach this worker: with the address by which it has reached the scheduler, where it listens at all."""
        own = str(self.listener.address)
        scheme, _, rest = own.partition("://")
        host, _, port = rest.rpartition(":")
        if host in ("0.0.0.0", "[::]") and self.connection is not None:
            local = self.connection.local.partition("://")[2].rpartition(":")[0]
            return f"{scheme}://{local or host}:{port}"
        return own

    async def close(self) -> None:
        """Leave."""
        if self._closing:
            return
        self._closing = True
        for timer in self._timers:
            timer.cancel()
        self.listener.close()
        self._close_peers()
        if self.connection is not None:
            self.connection.send(Bye())
            self.connection.close()
        if self._output is not None:
            self._output.__exit__()
        self._store.let_go(for_good=True)
        await self._loop.run_in_executor(None, self.executor.close)
        if self._cells is not None and not self.executor.size():
            self._cells.close()
        self.values.close()
        self.finished.set()

    # --- the scheduler

    def _heard(self, messages: list[Any]) -> None:
        for message in messages:
            kind = type(message)
            if kind is Functions:
                for number, payload in zip(message.numbers, message.payloads, strict=True):
                    self.functions[number] = _Function(payload)
            elif kind is ForgetFunctions:
                if self._events:  # what was said before: tasks of them may be among what it cancels
                    self._work()
                for number in message.numbers:
                    self.functions.pop(number, None)
            elif kind is Peers:
                self.transfers.addresses.update(message.addresses)
            elif kind is Welcome:
                welcome, self._welcome = self._welcome, None
                if welcome is not None and not welcome.done():
                    welcome.set_result(None)
                self._do(self.machine.connected(message.number))
                if self.machine.paused and self.connection is not None:
                    self.connection.send(Status(True, self._running()))
                if self._replace_by and self.connection is not None:  # another scheduler does not know
                    self.connection.send(Leaving([self.launch]))
            elif kind is Fetch:
                if self._events:  # what was said before counts: by what name the value goes, for one
                    self._work()
                if self.connection is not None:
                    self.pieces.send(self.connection, message)
            elif kind is Refused:
                if self._welcome is not None and not self._welcome.done():
                    self._welcome.set_exception(HandshakeError(message.words, "name"))
            elif kind is Retired and self._replace_by:
                self._replace(
                    "others have what it held"
                    if message.moved
                    else "nobody else is here who could take what it holds, so what is still needed of that is computed again"
                )
            else:
                self._events.append(message)
        if self._events:
            self._work()

    def _lost_scheduler(self, reason: CommError | None) -> None:
        self.connection = None
        if self._closing:
            return
        if self._welcome is not None:  # who waits for that is to hear of it
            if not self._welcome.done():
                self._welcome.set_exception(reason or CommError("the connection was closed"))
            return
        _log.info("worker %s has lost the scheduler at %s: %s", self.name, self.scheduler, reason)
        self._events.clear()
        withdrawn: list[Any] = self.executor.withdraw()
        if self._chains is not None:
            withdrawn += self._chains.withdraw()
        self._do(self.machine.disconnected(withdrawn))
        self._loop.create_task(self._come_back())

    async def _come_back(self) -> None:
        until = time.monotonic() + self.patience
        problem: Exception | None = None
        n = 0
        while time.monotonic() < until and not self._closing:
            await asyncio.sleep(AGAIN[min(n, len(AGAIN) - 1)])
            n += 1
            try:
                await self._join(2.0)
                return
            except HandshakeError as error:
                problem = error
                break
            except (CommError, OSError) as error:
                problem = error
                if n == 3:  # not at once: a program that ends takes them all with it, one after the other
                    _log.warning(
                        "worker %s has lost the scheduler at %s, and looks for it for %.0f s: %s",
                        self.name,
                        self.scheduler,
                        self.patience,
                        error,
                    )
        if not self._closing:
            gone = f"the scheduler at {self.scheduler} is gone, so this worker ends. "
            if isinstance(problem, HandshakeError) and problem.code == "name":
                gone = "while it was away, another one has taken its place, so it ends: "
            print(f"taskloom worker {self.name}: {gone}{problem}", file=sys.stderr)
            await self.close()

    # --- the machine

    def _call(self) -> None:
        if not self._called:
            self._called = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        self._called = False
        if self._closing:
            return
        events, self._events = self._events, []
        self._do(self.machine.handle(events, time.monotonic()))

    def _do(self, actions: list[Any]) -> None:
        starts: list[Any] = []
        chained: list[Any] = []
        functions = self.functions
        for action in actions:
            kind = type(action)
            if kind is Start:
                item = action.key, action.tid, action, functions[action.function]
                if action.missing and self._chains is not None:
                    missing = [d for d in action.deps if not self._is_there(d)]
                    if missing:
                        chained.append((item, missing))
                        continue
                starts.append(item)
            elif kind is Forget:
                self.values.forget(action.tids)
            elif kind is Send:
                self._sender.send(action.peer, action.serial, action.tids)
            elif kind is Rename:
                self.values.rename(action.names)
            elif kind is Stop:
                key = action.grant, action.tid
                if self._chains is not None and self._chains.remove(key):
                    self._events.append(Raised(*key, None))
                    self._not_made(action.tid)
                    self._call()
                else:
                    self.executor.stop([key])
                    self._store.let_go()
            elif kind is Withdraw:
                self._events += [Unready(*key) for key in self._withdraw(action.keys)]
                self._call()
            elif kind is ClosePeers:
                self._close_peers()
            elif kind is Leave:
                self._loop.create_task(self.close())
            elif action.peer is None:
                if self.connection is not None:
                    self.connection.put(action.message)
            elif not self.transfers.ask(action.peer, action.message):
                self._events.append(PeerLost(action.peer))
                self._call()
        if starts:
            self.executor.submit(starts)
        for item, missing in chained:
            self._chains.add(item, missing)  # type: ignore[union-attr]
        if self.connection is not None:
            self.connection.flush()

    def _withdraw(self, keys: Sequence[tuple[int, int]]) -> list[Any]:
        """Take back from the threads what they have not begun."""
        found = self.executor.withdraw(keys)
        if self._chains is not None:
            found += [key for key in keys if self._chains.remove(key)]
        return found + [other for key in found for other in self._not_begun(key[1])]

    def _is_there(self, tid: int) -> bool:
        return tid in self._fresh or tid in self.values

    def _submit(self, items: list[Any]) -> None:
        try:
            self.executor.submit(items)
        except RuntimeError:  # this worker is leaving
            pass

    # --- tasks (the first two run in the executor's threads)

    def _prepare(self, key: Any, task: Start, function: Any) -> tuple[Any, Any]:
        call, nbytes = function.opened, function.nbytes
        if call is None:
            call = function.open()
            if self._store.full:
                nbytes = UNKNOWN
        args, deps = task.args, task.deps
        absent = self._store.absent(deps) if deps and self._store.spilled else 0
        if nbytes or absent:
            self._store.expect(key, nbytes + absent)
        if not deps and type(args) is tuple:
            return call, args
        fresh, get = self._fresh.get, self.values.get
        inputs = []
        for d in deps:
            # First where tasks put what they have made: the event loop moves it from there, and puts it before it takes it away.
            value = fresh(d, _ABSENT)
            if value is _ABSENT:
                try:
                    value = get(d)
                except KeyError:
                    raise _NotThere from None
            inputs.append(value)
        if absent:
            self._store.read(key, nbytes)
        if args is None:
            return call, inputs
        return calls.call, (call, args, inputs)

    def _finish(self, key: Any, value: Any, seconds: float) -> Any:
        size = sizeof(value)
        task = self.machine.running[key]
        if size >= TINY and self.limit:
            self._learn(key, task.function, size, type(value))
        result = calls.pack_result(value, size) if task.wanted else None
        self._fresh[key[1]] = value  # for tasks that were handed over behind this one
        if self._chains is not None:
            self._chains.made(key[1])
        return value, size, result

    def _learn(self, key: Any, number: int, size: int, kind: type) -> None:
        """A task has made so much: its value counts from now on, and the next one of its kind is taken to be as large.

        What is made of many objects takes more for a while: it grows by being copied, and what others leave are holes.
        """
        function = self.functions.get(number)
        if function is not None:
            nbytes = size + size // 2 if kind in _MANY else size
            function.nbytes = max(nbytes, int(function.nbytes * 0.9))
        self._store.made(key, size)

    def _collect(self) -> None:
        key: Any
        some = False
        ended, put, fresh, coming = self.machine.ended, self.values.put, self._fresh, self._store.coming
        for key, kind, outcome, seconds in self.executor.collect():
            if kind == STUCK:
                self._stuck(key, seconds)
            elif kind == DONE:
                value, size, result = outcome
                name = ended(key, size, seconds, result)
                if name is not None:
                    put(name, value, size)
                fresh.pop(key[1], None)
                some = True
                if key in coming:
                    self._store.arrived(key)
                continue
            elif type(outcome) is _NotThere:
                self._events.append(Unready(key[0], key[1]))
                self._not_made(key[1])
            else:
                self._not_made(key[1])
                error = TaskCancelledError("the task was stopped") if kind == CANCELLED else outcome
                cut_frames(error)
                self._events.append(Raised(key[0], key[1], Payload([dump_error(error)])))
            if kind != STUCK:
                self._store.arrived(key)
        if self._output is not None:
            pieces = self._output.take()
            if pieces and self.connection is not None:
                columns = [list(column) for column in zip(*pieces, strict=True)]
                self.connection.send(Said([ticket[1] for ticket in columns[0]], *columns[1:]))
        if some or self._events:
            self._work()

    def _not_begun(self, tid: int) -> list[Any]:
        """A value is not made here: the keys of those that were handed over behind it, and cannot begin."""
        return [] if self._chains is None else self._chains.failed(tid)

    def _not_made(self, tid: int) -> None:
        self._events += [Unready(*key) for key in self._not_begun(tid)]

    def _running(self) -> list[int]:
        """Tids that the threads are at."""
        return [key[1] for key in self.executor.running()]  # type: ignore[index]

    def _stuck(self, key: Any, seconds: float) -> None:
        """A task that was told to stop still runs. Its thread is lost until it ends: best to have another process."""
        self._stuck_at.add(key)
        words = (
            f"a task that was cancelled {seconds:.0f} s ago does not stop: it is in native code, or catches everything"
        )
        if not self._replace_if_stuck(f"{words}.") and not self._replace_by:
            _log.warning("worker %s: %s. Its thread is not free until it ends.", self.name, words)

    def _replace_if_stuck(self, words: str) -> bool:
        """Have another process in place of this one, where nothing but tasks that do not stop runs here.

        Not at once, if it has values: others take them first, if there are others.

        Args:
            words: why; said when it begins.
        """
        if self._replace_by or not self._has_only_stuck():
            return False
        if not len(self.values):
            self._leave(REPLACE, f"{words} This process is replaced.")
        else:
            _log.warning(
                "worker %s: %s This process is replaced once others have what it holds, or in %.0f s.",
                self.name,
                words,
                MOVE,
            )
            self._replace_by = time.monotonic() + MOVE
            if self.connection is not None:
                self.connection.send(Leaving([self.launch]))
        return True

    def _has_only_stuck(self) -> bool:
        """Whether all threads, or all tasks that have begun, are tasks that do not stop."""
        self._stuck_at.intersection_update(self.executor.running())
        if self._die is None or not self._stuck_at:
            return False
        # What was handed over and cannot begin, as no thread is free, is done elsewhere.
        return len(self._stuck_at) >= self.threads or all(key in self._stuck_at for key in self.machine.running)

    def _replace(self, words: str) -> None:
        """End, so that another process takes the place of this one."""
        self._leave(REPLACE, f"this process is replaced: {words}.")

    def _leave(self, code: int, words: str) -> None:
        """End this process at once, nobody being blamed for it but the tasks that are to."""
        _log.warning("worker %s: %s", self.name, words)
        if code == REPLACE and self._cells is not None:
            self._cells.close()  # nobody is to be blamed
        if self._die is not None:
            self._die(code)

    # --- memory, and signs of life

    def _look(self) -> None:
        self._timers[0] = self._loop.call_later(LOOK_CLOSELY if self._store.pressing else LOOK, self._look)
        if self._replace_by:
            # what runs was begun before the scheduler knew, and is wanted
            if time.monotonic() >= self._replace_by and all(key in self._stuck_at for key in self.executor.running()):
                self._replace(
                    f"in {MOVE:.0f} s others have not taken all that it holds, so what is still needed of that is computed again"
                )
        elif self._stuck_at:
            self._replace_if_stuck("nothing runs here but tasks that were cancelled.")
        self._look_at_memory()

    def _alarm(self) -> None:
        """There seems to be too much in memory, says any thread."""
        try:
            self._loop.call_soon_threadsafe(self._look_at_memory)
        except RuntimeError:  # the loop is closed
            pass

    def _look_at_memory(self) -> None:
        if self._closing:
            return
        for order in self.values.check():
            if type(order) is Terminate:
                if self._die is not None:
                    self._leave(MEMORY, "it has more than 95 % of its memory limit, and is replaced")
                continue
            paused = type(order) is Pause
            if paused or type(order) is Resume:
                self._events.append(Paused(paused))
                if self.connection is not None:
                    self.connection.send(Status(paused, self._running()))
                self._call()

    def _sign(self) -> None:
        self._timers[1] = self._loop.call_later(SIGN, self._sign)
        if self.connection is not None:
            vitals = self.values.vitals()
            vitals["running"] = len(self.executor.running())
            vitals["ready"] = len(self.machine.tasks)
            self.connection.send(Vitals(vitals))

    # --- other workers, and clients that fetch

    def _took(self, number: int, message: Any) -> None:
        """Values of another worker have come; they are opened where they are used first."""
        tids, sizes = [], []
        for tid, size, value in zip(message.tids, message.sizes, message.values, strict=True):
            if tid < 0:  # it cannot be sent; the value says why
                self._events.append(Spoiled(number, -tid, Payload([value.parts[0]])))
                continue
            if self.values.is_slow(value):
                self._loop.create_task(self._open(number, message.serial, tid, size, value))
                continue
            self.values.receive(tid, value)
            tids.append(tid)
            sizes.append(size)
        if tids:
            self._events.append(Got(number, message.serial, tids, sizes))
        if self._store.full and not self.transfers.held:
            self._hold()
        self._call()

    def _hold(self) -> None:
        """Take in no more values of others while memory is full and values go to disk; at most for ``HOLD`` seconds at a time."""
        if not self._store.is_behind():
            return
        self.transfers.hold(True)
        until = time.monotonic() + HOLD

        def look() -> None:
            if self._closing:
                return
            if self._store.is_behind() and time.monotonic() < until:
                self._loop.call_later(HOLD_LOOK, look)
            else:
                self.transfers.hold(False)

        self._loop.call_later(HOLD_LOOK, look)

    async def _open(self, number: int, serial: int, tid: int, size: int, value: Any) -> None:
        connection = self.connection
        opened = await self._loop.run_in_executor(None, self.values.open, value)
        if connection is not self.connection:
            return  # the scheduler was lost meanwhile: with the next one, the same tid may be another task
        self.values.receive(tid, value, opened)
        if self._store.full and not self.transfers.held:
            self._hold()
        self._events.append(Got(number, serial, [tid], [size]))
        self._call()

    def _lost_peer(self, number: int) -> None:
        self._events.append(PeerLost(number))
        self._call()

    def _close_peers(self) -> None:
        self.transfers.forget_all()
        self.pieces.forget_all()
        for connection in list(self._peers):
            connection.close()

    def _peer_came(self, connection: Connection) -> None:
        self._peers.add(connection)

        def on_messages(messages: list[Any]) -> None:
            for message in messages:
                if type(message) in (Ask, Unask):
                    self._events.append(PeerAsks(connection, message))
                elif message.number >= 0 and message.number != self.machine.number:
                    connection.close()  # it means somebody who was here before
            self._call()

        def on_close(reason: CommError | None) -> None:
            self._peers.discard(connection)
            self._events.append(AskerLost(connection))
            self._call()

        connection.start(on_messages, on_close)


class _Function:
    """A function as it came, and as it is called; opened where it is called first, so that its error is that task's."""

    __slots__ = ("nbytes", "opened", "payload")

    def __init__(self, payload: Any) -> None:
        self.payload = payload
        self.opened: Any = None
        self.nbytes = 0  # what its tasks make, of late; 0: little, or there is no limit

    def open(self) -> Any:
        """The function."""
        self.opened = calls.open_function(self.payload)
        return self.opened


def _about() -> dict[str, Any]:
    """What people want to know of a worker."""
    found: dict[str, Any] = {"host": socket.gethostname(), "versions": versions()}
    uid = os.environ.get("TASKLOOM_POD_UID")
    if uid:
        found["pod_uid"] = uid
    return found


def run_worker(
    scheduler: str,
    token: Token,
    tell: Callable[[str], object] | None = None,
    listen_at: str = "tcp://127.0.0.1:0",
    timeout: float = 10.0,
    **options: Any,
) -> None:
    """Run a worker in this process until its scheduler is gone, or has retired it.

    Args:
        tell: called with its own address when it has joined.
        listen_at: where other workers are to reach it.
        timeout: seconds to reach the scheduler.
        options: those of :class:`WorkerNode`.
    """

    async def main() -> None:
        node = WorkerNode(scheduler, token, **options)
        await node.start(listen_at, timeout)
        if tell is not None:
            tell(node.address)
        await node.finished.wait()

    asyncio.run(main())
