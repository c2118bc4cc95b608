"""Real processes of a cluster, and clients and workers that are little more than a connection: what measurements are made of.

``python -m benchmarks.bare scheduler SCHEME`` is a scheduler, at tcp or tls;
``python -m benchmarks.bare worker SCHEME ADDRESS NAME`` is a worker that others reach by tcp or tls;
``python -m benchmarks.bare crowd ADDRESS FIRST COUNT`` are many workers that finish at once whatever they are told to run.
The token is in the variable BENCHMARK_TOKEN. Each prints a line, its address if it has one, when it is there, and ends when its
input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import psutil

from taskloom.core.client import FAILED, PENDING, READY, ClientMachine, Wish
from taskloom.core.messages import (
    KINDS,
    WISH,
    Announce,
    Ask,
    ClientHello,
    Copy,
    Fetched,
    GaveBack,
    Give,
    Options,
    PeerHello,
    Peers,
    Report,
    Run,
    TakeBack,
    Welcome,
    WorkerHello,
)
from taskloom.net import Connection, connect
from taskloom.net import Options as NetOptions
from taskloom.node import calls
from taskloom.serialize.errors import load_error

__all__ = ["BareClient", "BareFetcher", "child", "crowd", "more_files", "nanoseconds", "scheduler", "worker"]

WIRE = NetOptions(kinds=KINDS)
SAID = 5e-6  # seconds that a worker of a crowd says that a task took: it took none


# --- processes


@contextlib.contextmanager
def child(token: str, *args: str) -> Iterator[str]:
    """One of the processes at the top of this module, when it is there: what it says."""
    command = [sys.executable, "-m", "benchmarks.bare", *args]
    environ = {**os.environ, "BENCHMARK_TOKEN": token}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{args[0]} ended with exit status {process.wait()}")
        yield line.strip()
    finally:
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()
        process.stdout.close()


def scheduler(token: str, scheme: str) -> contextlib.AbstractContextManager[str]:
    """A scheduler; its address."""
    return child(token, "scheduler", scheme)


def worker(token: str, scheme: str, address: str, name: str) -> contextlib.AbstractContextManager[str]:
    """A real worker with one thread."""
    return child(token, "worker", scheme, address, name)


def crowd(token: str, address: str, first: int, number: int) -> contextlib.AbstractContextManager[str]:
    """So many workers that finish at once, in a process of their own."""
    return child(token, "crowd", address, str(first), str(number))


def nanoseconds(pid: int) -> dict[str, int]:
    """CPU time that the threads of a process have had: number -> ns; where the system is not Linux, all in one, to 10 ms."""
    found = {}
    try:
        for tid in os.listdir(f"/proc/{pid}/task"):
            with (
                contextlib.suppress(FileNotFoundError, ProcessLookupError),
                open(f"/proc/{pid}/task/{tid}/schedstat") as file,
            ):
                found[tid] = int(file.read().split()[0])
    except OSError:
        pass
    if not found:
        times = psutil.Process(pid).cpu_times()
        found["all"] = int((times.user + times.system) * 1e9)
    return found


# --- a client


class BareClient:
    """The client's machine with a connection, on the event loop that is running.

    Attributes:
        machine: has the wishes.
        addresses: of workers, by their numbers.
    """

    def __init__(self) -> None:
        self.machine = ClientMachine(os.urandom(16))
        self.addresses: dict[int, str] = {}
        self.token = ""
        self._news = asyncio.Event()
        self._open = 0  # wishes that are pending
        self._functions: dict[Any, tuple[bytes, Any]] = {}
        self._connection: Connection | None = None

    @property
    def connection(self) -> Connection:
        """To the scheduler."""
        assert self._connection is not None
        return self._connection

    async def connect(self, address: str, token: str) -> BareClient:
        """Join the scheduler there."""
        self.token = token
        self._connection = await connect(
            address, token=token, role="client", wants="scheduler", timeout=20.0, options=WIRE
        )
        self._connection.start(self._heard, self._lost)
        self._connection.send(ClientHello(self.machine.uuid))
        for message in self.machine.connected():
            self._connection.send(message)
        return self

    def _heard(self, messages: list[Any]) -> None:
        said = []
        for message in messages:
            if type(message) is Peers:
                self.addresses.update(message.addresses)
            elif type(message) is not Welcome:
                said.append(message)
        wishes = self.machine.wishes
        for counter in self.machine.handle(said):
            if counter in wishes and wishes[counter].state != PENDING:
                self._open -= 1
        if not self._open:
            self._news.set()

    def _lost(self, reason: Exception | None) -> None:
        self._open = -1
        self._news.set()

    def submit(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        deps: Sequence[Sequence[int]] | None = None,
        wanted: bytes | None = None,
        options: Options | None = None,
    ) -> int:
        """A block of tasks with one function; arguments as they travel. The counter of the first."""
        known = self._functions.get(function)
        if known is None:
            payload = calls.pack_function(function)
            known = self._functions[function] = (bytes(payload.parts[0]), payload)
        number = len(args)
        wanted = bytes([WISH]) * number if wanted is None else wanted
        self._open += sum(1 for want in wanted if want & WISH)
        first, messages = self.machine.submit(
            [known] * number, args, [()] * number if deps is None else deps, wanted, options
        )
        for message in messages:
            self.connection.send(message)
        return first

    async def done(self) -> None:
        """Wait until nothing is pending.

        Raises:
            RuntimeError: the scheduler is gone, or a task has failed.
        """
        while self._open > 0:
            self._news.clear()
            await self._news.wait()
        if self._open < 0:
            raise RuntimeError("the scheduler is gone")

    def release(self, first: int, end: int) -> None:
        """These are wanted no longer."""
        for message in self.machine.release(range(first, end)):
            self.connection.send(message)

    async def one(self, function: Callable[..., Any], *args: Any, **options: Any) -> Wish:
        """Run one task; what became of it."""
        counter = self.submit(
            function, [args if calls.are_atoms(args) else calls.pack_call(args)], None, None, Options(**options)
        )
        await self.done()
        return self.wish(counter)

    async def of_one(self, function: Callable[..., Any], counter: int, **options: Any) -> Wish:
        """The same with the value of another one as the argument."""
        counter = self.submit(function, [None], [[counter]], None, Options(**options))
        await self.done()
        return self.wish(counter)

    def wish(self, counter: int) -> Wish:
        """What became of a task.

        Raises:
            Exception: what it raised.
        """
        wish = self.machine.wishes[counter]
        if wish.state == FAILED:
            raise load_error(bytes(wish.error.parts[0])) if hasattr(wish.error, "parts") else RuntimeError(wish.error)
        assert wish.state == READY
        return wish

    async def close(self) -> None:
        """Leave."""
        self.connection.close()
        await self.connection.wait_closed()


class BareFetcher:
    """A connection to a worker that asks for values."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._serials = count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        connection.start(self._heard, lambda reason: None)
        connection.send(PeerHello(-1))

    @classmethod
    async def connect(cls, address: str, token: str) -> BareFetcher:
        """To the worker at an address."""
        return cls(await connect(address, token=token, role="client", wants="worker", timeout=20.0, options=WIRE))

    def _heard(self, messages: list[Any]) -> None:
        for message in messages:
            if type(message) is Give and message.serial in self._asked:
                self._asked.pop(message.serial).set_result(message.values[0])

    async def fetch(self, tid: int) -> Any:
        """One value, opened."""
        serial = next(self._serials)
        future = self._asked[serial] = self.connection.loop.create_future()
        self.connection.send(Ask(serial, [tid]))
        return calls.open_value(await future)


# --- workers


async def _crowd(address: str, token: str, first: int, number: int) -> None:
    """Workers that say of each task at once that it is done; its value is its first argument."""
    open_at_once = asyncio.Semaphore(50)  # handshakes
    gone = asyncio.Event()

    async def join(n: int) -> None:
        async with open_at_once:
            connection = await connect(
                address, token=token, role="worker", wants="scheduler", timeout=60.0, options=WIRE
            )
        welcome = asyncio.get_running_loop().create_future()

        def on_messages(messages: list[Any]) -> None:
            for message in messages:
                kind = type(message)
                if kind is Run:
                    size = len(message.tids)
                    results = [
                        ((args[0] if args else ()) if want else None)
                        for args, want in zip(message.args, message.wanted, strict=True)
                    ]
                    connection.send(Report(message.grant, message.tids, [28] * size, [SAID] * size, results, [], []))
                elif kind is TakeBack:
                    connection.send(GaveBack([], [], message.tids, message.grants))
                elif kind is Copy:
                    connection.send(Fetched(list(message.orders), list(message.orders.values())))
                elif kind is Welcome:
                    connection.send(Announce([], []))
                    welcome.set_result(None)

        connection.start(on_messages, lambda reason: gone.set())
        # Nobody fetches anything from it; the address has to be one.
        connection.send(WorkerHello(f"crowd-{n}", 1, 0, {}, f"tcp://127.0.0.1:{1 + n}", os.getpid()))
        await welcome

    await asyncio.gather(*[join(n) for n in range(first, first + number)])
    print("joined", flush=True)
    await gone.wait()


def _end_with_input() -> None:
    def watch() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def more_files() -> None:
    """Let this process and its children have as many connections as the system allows."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(what: str, *args: str) -> None:
    """Be what the command line says."""
    _end_with_input()
    token = os.environ["BENCHMARK_TOKEN"]

    def tell(own: str, http: str | None = None) -> None:
        print(own, flush=True)

    if what == "scheduler":
        from taskloom.node.scheduler import serve

        asyncio.run(serve(f"{args[0]}://127.0.0.1:0", token, tell=tell))
    elif what == "worker":
        from taskloom.node.worker import run_worker

        scheme, address, name = args
        run_worker(
            address,
            token,
            tell=tell,
            listen_at=f"{scheme}://127.0.0.1:0",
            name=name,
            capture=False,
        )
    else:
        address, first, number = args
        asyncio.run(_crowd(address, token, int(first), int(number)))


if __name__ == "__main__":
    main(*sys.argv[1:])
