"""A cluster on this machine: a scheduler process, worker processes, and a supervisor for them in a thread of this program.

The socket at which the scheduler listens is made here, before the scheduler is started. So its workers and clients can begin to
connect at once, and a scheduler that dies is replaced by one that listens at the same place.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Coroutine
from typing import Any

from taskloom.config import positive_int
from taskloom.errors import ClusterError
from taskloom.local.pool import describe_exit
from taskloom.net import Token, tokens_of
from taskloom.node.codes import REFUSED
from taskloom.node.supervisor import Lines, Supervisor, process_ended, spawn
from taskloom.system import cpu_count, memory_total, parse_bytes

__all__ = ["LocalCluster"]

GRACE = 1.0  # seconds in which workers come back to a scheduler that was started again
_open: set[LocalCluster] = set()  # not weak: what is not closed is there until the program ends, and is ended then


class LocalCluster:
    """A scheduler and workers on this machine, for this program.

    No ``if __name__ == "__main__"`` guard is needed. Everything ends when this is closed, and when this program ends, in
    whatever way.

    Args:
        n_workers: how many worker processes; by default as many as this process may use CPUs.
        threads_per_worker: how many tasks each runs at a time; by default one, or, where ``n_workers`` is given, so many
            that all CPUs are used.
        processes: False: one worker, whose threads are threads of this process. Nothing is copied to it, and what holds the
            interpreter's lock holds up everything.
        memory_limit: of each worker: bytes, text such as ``"4GiB"``, ``"auto"`` for an equal share of the memory, 0 for none.
        resources: name -> amount of what each worker has that tasks can ask for.
        name: of the workers: ``worker-0``, ``worker-1``, ...
        local_directory: where values go that do not fit into memory; by default where temporary files are.
        scheduler_port: where the scheduler listens, on loopback; 0: any port that is free.
        http_port: where it serves its HTTP interface, on loopback; None: nowhere; 0: any port that is free.
        http_may_fail: whether to go on without it, with a word about it, where that port is taken.
        token: what a client has to know; by default one is made for this cluster alone.
        wait: whether to come back only when all workers have joined.

    Attributes:
        address: of the scheduler.
        http_address: the URL of its HTTP interface; None: it has none.
        token: what a client has to know.

    Raises:
        ClusterError: the scheduler or the workers could not be started; says why.

    >>> import taskloom
    >>> with LocalCluster(n_workers=1) as cluster, taskloom.Client(cluster) as client:
    ...     client.submit(sum, [1, 2]).result()
    3
    """

    def __init__(
        self,
        n_workers: int | None = None,
        threads_per_worker: int | None = None,
        processes: bool = True,
        memory_limit: str | int | float | None = "auto",
        *,
        resources: dict[str, float] | None = None,
        name: str = "worker",
        local_directory: str | None = None,
        scheduler_port: int = 0,
        http_port: int | None = None,
        http_may_fail: bool = False,
        token: Token | None = None,
        wait: bool = False,
    ) -> None:
        count = threads = 1
        if n_workers is not None and n_workers != 0:
            count = positive_int("n_workers", n_workers)
        if threads_per_worker is not None:
            threads = positive_int("threads_per_worker", threads_per_worker)
        if not processes:
            if n_workers is not None and count > 1:
                raise ValueError(f"with processes=False there is one worker, in this process; n_workers is {n_workers}")
            threads = cpu_count() if threads_per_worker is None else threads
        elif n_workers is None:
            count = max(1, cpu_count() // threads)
        elif threads_per_worker is None:
            threads = max(1, cpu_count() // count)
        self.processes = processes
        self.token = secrets.token_urlsafe(32) if token is None else tokens_of(token)[0]
        self._count = 0 if n_workers == 0 else count
        self._threads = threads
        self._limit = _limit_of(memory_limit, count) if processes else 0
        self._resources = dict(resources or {})
        self._name = name
        self._folder = local_directory
        self._http = http_port
        self._http_may_fail = http_may_fail
        self.http_address: str | None = None
        self._scheduler: subprocess.Popen[bytes] | None = None
        self._node: Any = None
        self._server: Any = None  # HTTP, where the scheduler is in this process
        self._closed = False
        self._problem = ""  # why there is no scheduler
        self._pid = os.getpid()
        self._supervisor: Supervisor | None = None
        self._watching: asyncio.Task[None] | None = None
        self._waiting: asyncio.Task[None] | None = None
        if not (isinstance(scheduler_port, int) and 0 <= scheduler_port <= 65535):
            raise ValueError(f"scheduler_port is a number from 0 to 65535, not {scheduler_port!r}")
        self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="taskloom-cluster", daemon=True)
        self._thread.start()
        try:
            try:
                self._sock.bind(("127.0.0.1", scheduler_port))
                self._sock.listen(1024)
            except OSError as error:
                raise ClusterError(f"no scheduler can listen at port {scheduler_port}: {error.strerror}") from error
            self.address = f"tcp://127.0.0.1:{self._sock.getsockname()[1]}"
            _open.add(self)
            self._call(self._start())
            if wait:
                self.wait_for_workers()
        except BaseException:
            self.close()
            raise

    async def _start(self) -> None:
        if self.processes:
            life, told = self._start_scheduler(0.0)
            up = asyncio.Event()
            self._watching = asyncio.ensure_future(self._watch_scheduler(life, told, up))
            if self._http is not None:  # the one thing that can go wrong with a socket that is there already
                await up.wait()
                if self._problem:
                    raise ClusterError(self._problem)
            self._supervisor = Supervisor(
                self.address,
                self.token,
                count=self._count,
                threads=self._threads,
                limit=self._limit,
                name=self._name,
                resources=self._resources,
                folder=self._folder,
                numbered=True,
                options={"echo": False},  # clients of this program show it, on the same console
            )
            await self._supervisor.start()
            self._waiting = asyncio.ensure_future(self._watch_workers(self._supervisor))
            return
        from taskloom.node.scheduler import SchedulerNode
        from taskloom.node.worker import WorkerNode

        scheduler = SchedulerNode(self.token)
        await scheduler.start(self.address, self._sock.dup())
        self._node = scheduler, []
        if self._http is not None:
            await self._serve_http(scheduler, self._http)
        if self._count:
            worker = WorkerNode(
                self.address,
                self.token,
                f"{self._name}-0",
                self._threads,
                resources=self._resources,
                capture=False,  # what tasks print is printed here anyway
            )
            await worker.start()
            self._node[1].append(worker)

    async def _serve_http(self, scheduler: Any, port: int) -> None:
        """The HTTP interface of a scheduler in this process."""
        from taskloom.node.http import HttpServer

        server = HttpServer(scheduler, "127.0.0.1", port, token=self.token)
        try:
            self.http_address = await server.start()
        except OSError as error:
            if not self._http_may_fail:
                raise ClusterError(str(error)) from error
            print(f"taskloom: no HTTP at port {port}: {error.strerror}", file=sys.stderr)
            return
        self._server = server

    # --- the scheduler's process

    def _start_scheduler(self, grace: float) -> tuple[int, int]:
        """Start one; the descriptor that keeps it alive, and the one by which it says that it listens."""
        ours, theirs = os.pipe()
        hello = {
            "address": self.address,
            "token": self.token,
            "fd": self._sock.fileno(),
            "grace": grace,
            "http": None if self._http is None else ["127.0.0.1", self._http],
            # one that comes after another is there for its workers and clients, be its port taken by now or not
            "http_may_fail": self._http_may_fail or grace > 0,
            "tell": theirs,
        }
        try:
            self._scheduler, life = spawn("scheduler", hello, fds=(self._sock.fileno(), theirs))
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        return life, ours

    async def _watch_scheduler(self, life: int, told: int, up: asyncio.Event) -> None:
        """Start another one where one has died; what it knew, its workers and clients tell the next one."""
        failures = 0
        try:
            while True:
                assert self._scheduler is not None
                begun = self._loop.time()
                words = Lines(self._loop, told, lambda line: self._is_up(line, up))
                try:
                    await process_ended(self._loop, self._scheduler)
                finally:
                    words.close()
                    os.close(told)
                    os.close(life)
                    life = -1
                if self._closed:  # the program is at its end
                    return
                code = self._scheduler.returncode
                if code == REFUSED:
                    self._problem = "the scheduler cannot be started; what it says is above"
                    up.set()
                    return
                print(f"taskloom: the scheduler {describe_exit(code)}; another one is started", file=sys.stderr)
                failures = failures + 1 if self._loop.time() - begun < 5.0 else 0
                await asyncio.sleep(min(5.0, 0.1 * 2**failures) if failures > 2 else 0.0)
                life, told = self._start_scheduler(GRACE)
        finally:
            if life >= 0:
                os.close(life)
                os.close(told)

    def _is_up(self, line: str, up: asyncio.Event) -> None:
        """The scheduler's process says where it listens."""
        _, _, http = line.partition(" ")
        self.http_address = http or None
        if http:  # the next one is to be there too
            self._http = int(http.rpartition(":")[2])
        up.set()

    async def _watch_workers(self, supervisor: Supervisor) -> None:
        """Say so where no worker is left, and none will come: whoever waits for results waits in vain."""
        await supervisor.finished.wait()
        if supervisor.problem and not self._closed:
            why = "; why is said above" if supervisor.problem_said else f": {supervisor.problem}"
            supervisor.say(f"taskloom: the cluster at {self.address} has no workers, and none can be started{why}")

    # --- for users

    @property
    def shows_stderr(self) -> bool:
        """Whether what tasks write to ``sys.stderr`` appears on this program's without a client."""
        return True

    @property
    def scheduler_pid(self) -> int:
        """The process of the scheduler."""
        return os.getpid() if self._scheduler is None else self._scheduler.pid

    @property
    def worker_pids(self) -> dict[str, int]:
        """Names of the workers -> their processes, as they are just now."""
        if self._supervisor is None:
            return {f"{self._name}-0": os.getpid()}
        found = {}
        for worker in list(self._supervisor.workers.values()):
            if worker.process is not None and worker.process.returncode is None:
                found[worker.name] = worker.process.pid
        return found

    def wait_for_workers(self, count: int | None = None, timeout: float | None = 30.0) -> None:
        """Wait until so many workers have joined; by default all.

        Raises:
            TimeoutError: they have not, in so many seconds.
            WorkerDiedError: they cannot be started; says why.
        """
        if self._supervisor is not None:
            try:
                self._call(self._joined(count, timeout))
            except TimeoutError:
                raise TimeoutError(f"the workers of {self!r} have not all joined in {timeout} s") from None

    async def _joined(self, count: int | None, timeout: float | None) -> None:
        assert self._supervisor is not None
        async with asyncio.timeout(timeout):
            await self._supervisor.joined(count)

    def scale(self, n: int) -> None:
        """Have so many workers. The values of those that go, the newest ones, are moved before, unless none stays.

        Raises:
            ClusterError: this cluster's worker is in this process.
        """
        if self._supervisor is None:
            raise ClusterError("a cluster with processes=False has one worker, and cannot be scaled")
        if n != 0:
            positive_int("n", n)
        self._call(self._scale(n))

    async def _scale(self, n: int) -> None:
        assert self._supervisor is not None
        self._count = n
        surplus = self._supervisor.scale(n)
        if not n:  # nobody is left who could take what they hold
            await self._supervisor.end(surplus)
        elif surplus:
            await self._supervisor.retire(surplus)

    def close(self) -> None:
        """End it all."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        try:
            self._call(self._stop())
        except BaseException:  # Ctrl-C: no time for manners
            self._kill()
            raise
        finally:
            _open.discard(self)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
            self._loop.close()
            self._sock.close()

    async def _stop(self) -> None:
        if self._supervisor is not None:
            await self._supervisor.close(1.0)
        if self._server is not None:
            await self._server.close()
        if self._node is not None:
            for worker in self._node[1]:
                await worker.close()
            await self._node[0].close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        if self._scheduler is not None:
            self._scheduler.kill()
            self._scheduler.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others)
        await self._loop.shutdown_default_executor()

    def _kill(self) -> None:
        """At the end of the program: no time for manners."""
        self._closed = True
        if os.getpid() != self._pid:  # a fork of the program: the processes are not its own
            return
        with contextlib.suppress(Exception):
            if self._supervisor is not None:
                self._supervisor.kill()
            if self._scheduler is not None:
                self._scheduler.kill()
                self._scheduler.wait()
            self._sock.close()

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        if not self._thread.is_alive() or os.getpid() != self._pid:
            coroutine.close()
            raise ClusterError(f"{self!r} is closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C
            if not isinstance(future, concurrent.futures.Future) or not future.done():
                future.cancel()
            raise

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        where = "processes" if self.processes else "this process"
        return f"<LocalCluster {self.address}: {self._count} x {self._threads} threads in {where}{state}>"


def _limit_of(memory_limit: str | int | float | None, count: int) -> int:
    if memory_limit is None:
        return 0
    if memory_limit == "auto":
        return memory_total() // count
    if isinstance(memory_limit, float) and 0 < memory_limit <= 1:
        return int(memory_limit * memory_total())
    return parse_bytes(memory_limit)


@atexit.register
def _kill_all() -> None:
    for cluster in list(_open):
        cluster._kill()
