"""The supervisor of one machine: it starts worker processes, watches them, replaces those that die, and says why they died.

::

    supervisor = Supervisor("tcp://127.0.0.1:8786", token, count=4, threads=1, limit=2 << 30)
    await supervisor.start()
    ...
    await supervisor.close()

It lives in an event loop of the program that wants the workers: the ``taskloom worker`` command, or a LocalCluster's thread. Its
processes end with that program, in whatever way it ends. To the scheduler it has a connection of its own, by which it
says who has died of what; see :mod:`taskloom.node.hosts`.

A worker is replaced when its process ends otherwise than it was asked to, is stuck in a task that was cancelled, or takes more
memory than it may. One that ends before it has joined is tried again, each time later; one that says that it is of no
use to try again is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import psutil

from taskloom.core.messages import KINDS, Died, Leaving, Restart, Stopped, SupervisorHello, Vitals
from taskloom.errors import CommError, ConnectTimeoutError, WorkerDiedError
from taskloom.local.pool import describe_exit
from taskloom.net import Connection, Options, Token, connect, dump_token
from taskloom.node.cell import read_running
from taskloom.node.codes import LEFT, MEMORY, REFUSED, REPLACE
from taskloom.node.folders import make_owned, remove_orphans, take_orphans
from taskloom.node.writer import Writer
from taskloom.system import thread_limits

__all__ = ["Lines", "Supervisor", "process_ended", "run_workers", "spawn"]

LOOK = 0.25  # seconds between looks at the processes: memory, stopped or not
SIGN = 1.0  # seconds between signs of life to the scheduler
STOPPED = 1.0  # seconds that a process must be stopped before that is told
TERMINATE = 0.95  # of the memory limit: above, a worker is ended before the system does it, to whomever it chooses
BACKOFF = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds until a worker that did not even join is tried again
ONCE = 5.0  # seconds in which what a worker says of itself is not said again for another one
LINES = 20  # of stderr that are kept, to say why a process has died
SILENCE = 2.0  # seconds in which a scheduler that is not there is looked for without a word
REACH = 3.0  # seconds that the scheduler has for being reached, where workers are to retire
PATIENCE = 5.0  # seconds that a worker has for leaving when it is asked to


def spawn(
    kind: str, hello: dict[str, Any], *, environ: dict[str, str] | None = None, fds: Sequence[int] = (), **popen: Any
) -> tuple[subprocess.Popen[bytes], int]:
    """Start a process of ours that ends with this one.

    Args:
        kind: "worker" or "scheduler", see :mod:`taskloom.node.__main__`.
        hello: what it is to be; plain values.
        environ: variables, beside those that are here.
        fds: descriptors that it is to have.
        popen: for :class:`subprocess.Popen`.

    Returns:
        The process, and the descriptor that keeps it alive: it ends when that is closed, and so when this process ends.
    """
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, **(environ or {}), "PYTHONPATH": path}
    theirs, ours = os.pipe()
    said = json.dumps(hello).encode()
    command = [sys.executable, *subprocess._args_from_interpreter_flags()]  # type: ignore[attr-defined]
    # -P: what lies in the working directory must not stand in for a module that the child needs
    command += ["-P", "-m", "taskloom.node", kind, str(theirs)]
    # a Ctrl-C before the child has its handler must not be its end, with a traceback on everybody's terminal
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=env, pass_fds=(theirs, *fds), **popen)
    except BaseException:
        os.close(ours)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
        os.close(theirs)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has died already
        process.stdin.write(said)
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    return process, ours


class _Worker:
    """A worker that there is to be, and the process that is it now."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.launch = ""
        self.process: subprocess.Popen[bytes] | None = None
        self.about: psutil.Process | None = None
        self.life = -1
        self.joined = ""  # its address, once it has joined
        self.failures = 0  # starts in a row that did not get so far
        self.ending = False  # it was asked to
        self.excused = False  # nobody is to be blamed for its end
        self.stopped = False  # and that was told
        self.lines: deque[str] = deque(maxlen=LINES)
        self.stopped_since = 0.0
        self.words = ""  # why we have killed it
        self.gone: asyncio.Event = asyncio.Event()
        self.cells = ""


class Supervisor:
    """Worker processes of one machine.

    Args:
        scheduler: the address of their scheduler.
        token: what it and they have to know.
        count: how many there are to be.
        threads: how many tasks each runs at a time.
        limit: bytes of memory that each may have; 0: no limit.
        name: of the workers: each is called so, with a dash and a number; where there is one alone, without.
        resources: what each has that tasks can ask for.
        listen_at: where other workers are to reach them.
        folder: where values go that do not fit into memory.
        notes: a directory in which it is noted which tasks run, and which is this supervisor's and its successors' alone: if it
            outlives the container that they run in, the next one tells the scheduler what ran when all of them died at once.
        tell: called with words about what happens: a worker that has joined, died, is started again.
        numbered: whether one alone has a number too.
        options: others for each worker, see :class:`taskloom.node.worker.WorkerNode`.

    Attributes:
        finished: set when no worker is left that there should be: all have left, or are of no use to start.
        problem: why the last one is of no use; "" while there is no reason.
        problem_said: whether that stands on the standard error already, in the worker's own words.
    """

    def __init__(
        self,
        scheduler: str,
        token: Token,
        *,
        count: int = 1,
        threads: int = 1,
        limit: int = 0,
        name: str = "",
        resources: dict[str, float] | None = None,
        listen_at: str = "tcp://127.0.0.1:0",
        folder: str | None = None,
        notes: str | None = None,
        tell: Callable[[str], object] | None = None,
        numbered: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.token = token
        self.threads = threads
        self.limit = limit
        self.name = name or _own_name()
        self.resources = resources or {}
        self.listen_at = listen_at
        self.folder = folder
        self.notes = notes
        self.options = options or {}
        self.finished = asyncio.Event()
        self.problem = ""
        self.workers: dict[str, _Worker] = {}
        self._numbered = numbered
        self._listener = tell
        self._count = count
        self._numbers = 0
        self._id = secrets.token_hex(8)
        self._stderr = Writer("stderr")
        self._said: dict[
            str, tuple[str, float]
        ] = {}  # what workers have said of themselves just now: words -> who, when
        self.problem_said = False
        self._launches = 0
        self._scratch = ""
        self._scratch_fd = -1
        self._late: list[Died] = []  # what an earlier supervisor had no time to say
        self._connection: Connection | None = None
        self._reached = asyncio.Event()  # set while there is one
        self._lost = asyncio.Event()  # set while there is none
        self._closing = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._news = asyncio.Event()  # somebody has joined or ended

    # --- for who drives it

    @property
    def connected(self) -> bool:
        """Whether the scheduler can be told something now."""
        return self._connection is not None and not self._connection.closed

    async def reached(self, patience: float = REACH) -> bool:
        """Whether the scheduler can be told something, now or within so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while not self.connected:
                    await self._reached.wait()
                    if not self.connected:  # it is closed, and that is not noted yet
                        await asyncio.sleep(0.01)
        return self.connected

    def ready(self) -> dict[str, Any]:
        """Whether all workers that there are to be have joined, and the scheduler is there; under "ready"."""
        joined = sum(bool(worker.joined) for worker in self.workers.values())
        return {
            "ready": self.connected and joined >= self._count > 0,
            "scheduler": self.connected,
            "workers": self._count,
            "joined": joined,
        }

    async def start(self) -> None:
        """Start the workers, and connect to the scheduler; does not wait for either."""
        parent = tempfile.gettempdir()
        if self.notes is not None:
            parent = self.notes
            os.makedirs(parent, exist_ok=True)
            self._late = _died_before(parent)
        self._scratch, self._scratch_fd = make_owned(parent, "running")
        # what processes that were killed have left here
        for folder in {parent, self.folder or parent}:
            self._tidy(folder)
        self._do(self._report())
        self._do(self._watch())
        self.scale(self._count)

    def scale(self, count: int) -> list[str]:
        """Have so many workers: start others, or end the newest ones.

        Returns:
            The names of those that are to end; they leave once the scheduler has retired them, or are ended by :meth:`end`.
        """
        self._count = count
        staying = [worker.name for worker in self.workers.values() if not worker.ending]
        for _ in range(count - len(staying)):
            self.finished.clear()
            number = self._numbers
            self._numbers += 1
            single = count == 1 and not number and not self._numbered
            worker = _Worker(self.name if single else f"{self.name}-{number}")
            self.workers[worker.name] = worker
            try:
                self._launch(worker)
            except BaseException:
                del self.workers[worker.name]
                raise
        surplus = staying[count:]
        for name in surplus:
            self.workers[name].ending = True
        return surplus

    async def joined(self, count: int | None = None) -> None:
        """Wait until so many workers have joined; by default all that there are to be.

        Raises:
            WorkerDiedError: they are of no use to start; says why.
        """
        while True:
            wanted = self._count if count is None else count
            staying = [worker for worker in self.workers.values() if not worker.ending]
            if sum(bool(worker.joined) for worker in staying) >= wanted:
                return
            if self.finished.is_set() or (self.problem and len(staying) < wanted):
                raise WorkerDiedError(self.problem or "the workers have left")
            await self._news.wait()

    async def end(self, names: Iterable[str], patience: float = PATIENCE) -> None:
        """End these workers, politely at first."""
        waiting = []
        for name in names:
            worker = self.workers.get(name)
            if worker is not None:
                worker.ending = True
                if worker.process is not None and worker.process.poll() is None:
                    worker.process.terminate()
                    waiting.append(worker)
        try:
            async with asyncio.timeout(patience):
                for worker in waiting:
                    await worker.gone.wait()
        except TimeoutError:
            for worker in waiting:
                if worker.process is not None:
                    worker.process.kill()
            for worker in waiting:
                await worker.gone.wait()

    async def retire(self, names: Sequence[str], patience: float = 60.0) -> None:
        """Have workers leave once others have what they hold; end those that have not by then."""
        workers = [self.workers[name] for name in names if name in self.workers]
        for worker in workers:
            worker.ending = True
        gone, lost = asyncio.ensure_future(_all_gone(workers)), None
        try:
            async with asyncio.timeout(patience):
                # Where the machine is busy, workers may be with the scheduler before this process is; and another scheduler
                # knows nothing of this.
                while not gone.done() and any(worker.joined for worker in workers) and await self.reached():
                    assert self._connection is not None
                    self._connection.send(Leaving([worker.launch for worker in workers]))
                    lost = asyncio.ensure_future(self._lost.wait())
                    await asyncio.wait([gone, lost], return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            pass
        finally:
            for task in (gone, lost):
                if task is not None:
                    task.cancel()
        await self.end([worker.name for worker in workers])

    async def close(self, patience: float = PATIENCE) -> None:
        """End them all."""
        self._closing = True
        await self.end(list(self.workers), patience)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._connection is not None:
            self._connection.close()
            await self._connection.wait_closed()
        self.workers.clear()
        self._remove_scratch()
        # of those that were killed or replaced
        await asyncio.get_running_loop().run_in_executor(None, remove_orphans, self.folder or tempfile.gettempdir())
        await asyncio.get_running_loop().run_in_executor(None, self._stderr.close)
        self.finished.set()
        self._announce()

    def kill(self) -> None:
        """End them all at once; for when there is no time."""
        self._closing = True
        for worker in self.workers.values():
            if worker.process is not None and worker.process.poll() is None:
                worker.process.kill()
                worker.process.wait()
        self._remove_scratch()

    # --- processes

    def _remove_scratch(self) -> None:
        scratch, self._scratch = self._scratch, ""
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)
            os.close(self._scratch_fd)

    def _tidy(self, folder: str) -> None:
        self._do(asyncio.get_running_loop().run_in_executor(None, remove_orphans, folder))

    def _tell(self, words: str) -> None:
        if self._listener is not None:
            try:
                self._listener(words)
            except (OSError, ValueError):  # nobody is there to read it: no reason to forget a worker
                pass

    def _do(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _announce(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _launch(self, worker: _Worker) -> None:
        # by what is before the dash, the scheduler knows that it takes the place of one that was ours
        worker.launch = f"{self._id}-{self._launches}"
        self._launches += 1
        worker.joined = ""
        worker.words = ""
        worker.excused = False
        worker.stopped_since = 0.0
        worker.lines.clear()
        worker.gone = asyncio.Event()
        worker.cells = os.path.join(self._scratch, f"{worker.launch}.running")
        ours, theirs = os.pipe()
        hello = {
            "scheduler": self.scheduler,
            "token": dump_token(self.token),
            "name": worker.name,
            "threads": self.threads,
            "limit": self.limit,
            "resources": self.resources,
            "listen_at": self.listen_at,
            "folder": self.folder,
            "cells": worker.cells,
            "launch": worker.launch,
            "tell": theirs,
            "path": sys.path,
            "argv": sys.argv,
            "pythonpath": os.environ.get("PYTHONPATH"),
            **self.options,
        }
        limits = thread_limits(self.threads * max(1, self._count))
        try:
            worker.process, worker.life = spawn("worker", hello, environ=limits, fds=(theirs,), stderr=subprocess.PIPE)
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        try:
            worker.about = psutil.Process(worker.process.pid)
        except psutil.NoSuchProcess:
            worker.about = None
        self._do(self._follow(worker, worker.process, ours))
        self._hello()

    async def _follow(self, worker: _Worker, process: subprocess.Popen[bytes], told: int) -> None:
        """See a process through to its end."""
        loop = asyncio.get_running_loop()
        assert process.stderr is not None
        stderr = Lines(loop, process.stderr.fileno(), lambda line: self._wrote(worker, line))
        words = Lines(loop, told, lambda line: self._joined(worker, line))
        try:
            await process_ended(loop, process)
            await stderr.ended(0.5)
        finally:
            stderr.close()
            words.close()
            process.stderr.close()
            os.close(told)
            os.close(worker.life)
            if process.poll() is None:  # we are being closed
                process.kill()
                process.wait()
            worker.gone.set()
        self._ended(worker, process.returncode)

    def _wrote(self, worker: _Worker, line: str) -> None:
        worker.lines.append(line)
        own = f"taskloom worker {worker.name}: "
        if line.startswith(own):  # of its own, not of a task's: what is wrong with all of them is said once
            words, now = line[len(own) :], time.monotonic()
            name, when = self._said.get(words, (worker.name, now))
            self._said = {known: said for known, said in self._said.items() if now - said[1] < ONCE}
            if name != worker.name and now - when < ONCE:
                return
            self._said[words] = worker.name, now
        self._stderr.say(line)

    def say(self, line: str) -> None:
        """Write a line to standard error, behind what workers have said before."""
        self._stderr.say(line)

    def _joined(self, worker: _Worker, line: str) -> None:
        if worker.about is not None:
            with contextlib.suppress(psutil.Error):
                self._limit(worker, worker.about)
        if worker.words:  # it takes too much before it has done anything: it will do so again
            return
        worker.joined = line
        worker.failures = 0
        self._tell(f"worker {worker.name} at {line}")
        self._announce()

    def _ended(self, worker: _Worker, code: int) -> None:
        """A process has ended: what was it, and what now?"""
        running: list[int] | None = None
        if worker.ending or worker.excused or code == LEFT:
            running = []
        else:
            try:
                running = list(read_running(worker.cells).tids)
            except (OSError, ValueError):
                if code == REPLACE:  # it has removed the file, so that nobody is blamed
                    running = []
        with contextlib.suppress(OSError):
            os.unlink(worker.cells)
        words = worker.words or _why(code)
        if code != LEFT and not self._closing:  # it had no time to remove what it had on disk
            self._tidy(self.folder or tempfile.gettempdir())
        if code not in (LEFT, REPLACE, MEMORY) and worker.lines:
            words += "; its last words: " + " | ".join(list(worker.lines)[-5:])[-1000:]
        if self._connection is not None:
            self._connection.send(Died(worker.launch, running, words))
        if self._closing or worker.ending or code == LEFT:
            self._remove(worker)
            return
        if worker.joined:
            self._tell(f"worker {worker.name} {words}; another one is started")
            self._launch_again(worker)
            return
        # of no use: it says so itself, or it needs more memory than it may have even before it does anything
        if code == REFUSED or (worker.words and not worker.excused):
            self.problem_said = code == REFUSED and bool(worker.lines)
            self.problem = worker.lines[-1] if self.problem_said else f"worker {worker.name} {words}"
            self._remove(worker)
            return
        self._try_later(worker, words)

    def _launch_again(self, worker: _Worker) -> None:
        try:
            self._launch(worker)
        except OSError as error:  # there is no process to be had, or no descriptor
            self._try_later(worker, f"cannot be started: {error}")

    def _try_later(self, worker: _Worker, words: str) -> None:
        worker.failures += 1
        if worker.failures > len(BACKOFF):
            self.problem_said = False
            self.problem = f"worker {worker.name} {words}"
            self._remove(worker)
            return
        self._tell(f"worker {worker.name} {words}; it is tried again")
        self._do(self._launch_later(worker, BACKOFF[worker.failures - 1]))

    async def _launch_later(self, worker: _Worker, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if not self._closing and not worker.ending:
            self._launch_again(worker)
        else:
            self._remove(worker)

    def _remove(self, worker: _Worker) -> None:
        self.workers.pop(worker.name, None)
        self._hello()
        if not self.workers and self._count:
            self.finished.set()
        self._announce()

    # --- the scheduler

    def _hello(self) -> None:
        if self._connection is not None:
            launches = [worker.launch for worker in self.workers.values()]
            self._connection.send(SupervisorHello(socket.gethostname(), os.getpid(), launches))

    async def _report(self) -> None:
        """Be connected to the scheduler, now and again."""
        timeout = SILENCE
        while True:
            try:
                connection = await connect(
                    self.scheduler,
                    token=self.token,
                    role="supervisor",
                    wants="scheduler",
                    timeout=timeout,
                    options=Options(kinds=KINDS),
                )
            except (CommError, OSError) as error:  # the workers say so, in their own words, in the end
                if isinstance(error, ConnectTimeoutError) and timeout == SILENCE:
                    self._tell(f"worker: {error} It is looked for further")
                timeout = 10.0
                await asyncio.sleep(1.0)
                continue
            timeout = 10.0
            lost = asyncio.Event()
            connection.start(self._heard, lambda reason, lost=lost: lost.set())  # type: ignore[misc]
            self._connection = connection
            self._lost.clear()
            self._reached.set()
            self._hello()
            late, self._late = self._late, []
            for died in late:
                connection.send(died)
            try:
                await lost.wait()
            finally:
                self._reached.clear()
                self._lost.set()
                if not self._closing:
                    self._connection = None
            await asyncio.sleep(0.05)

    def _heard(self, messages: list[Any]) -> None:
        for message in messages:
            if type(message) is Restart:
                for worker in self.workers.values():
                    if worker.launch in message.launches and worker.process is not None:
                        worker.excused = True
                        worker.words = "was restarted, as a client has asked for"
                        worker.process.kill()

    # --- looking after them

    async def _watch(self) -> None:
        signed = 0.0
        while True:
            await asyncio.sleep(LOOK)
            now = time.monotonic()
            for worker in list(self.workers.values()):
                if worker.process is not None and worker.process.returncode is None and worker.about is not None:
                    with contextlib.suppress(psutil.Error, OSError):
                        self._look(worker, worker.about, now)
            if self._connection is not None and now >= signed:
                signed = now + SIGN
                memory = psutil.virtual_memory()
                self._connection.send(
                    Vitals(
                        {"memory_bytes": memory.total, "available_bytes": memory.available, "cpus": os.cpu_count() or 1}
                    )
                )

    def _look(self, worker: _Worker, about: psutil.Process, now: float) -> None:
        if about.status() == psutil.STATUS_STOPPED:
            if not worker.stopped_since:
                worker.stopped_since = now
            elif now - worker.stopped_since >= STOPPED:
                # again and again: it may have gone on for a moment, and come back to the scheduler
                worker.stopped_since = now
                if not worker.stopped:
                    worker.stopped = True
                    self._tell(f"worker {worker.name} is stopped (SIGSTOP); what it was doing is done elsewhere")
                if self._connection is not None:
                    self._connection.send(Stopped(worker.launch))
        else:
            worker.stopped = False
            worker.stopped_since = 0.0
        self._limit(worker, about)

    def _limit(self, worker: _Worker, about: psutil.Process) -> None:
        """End a worker that takes more memory than it may."""
        if self.limit and worker.process is not None:
            memory = about.memory_info()
            # pages of mapped files, the store's on disk above all, are given back when they are wanted
            rss = memory.rss - getattr(memory, "shared", 0)
            if rss > TERMINATE * self.limit:
                taken, limit = f"{rss / 2**20:,.0f} MiB", f"{self.limit / 2**20:,.0f} MiB"
                worker.words = f"was ended as it took {taken} of memory, and its limit is {limit}"
                worker.process.kill()


async def _all_gone(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        await worker.gone.wait()


def _own_name() -> str:
    """What workers are called to which nobody has given a name: no two may have the same."""
    number = os.getpid()
    if (
        number <= 300
    ):  # a container, in which processes have numbers of its own; its host's name may be that of others too
        number = 1_000_000 + secrets.randbelow(9_000_000)
    return f"{socket.gethostname()}-{number}"


def _died_before(parent: str) -> list[Died]:
    """What workers of a supervisor before this one were at when they died together with it."""
    found = []
    for folder in take_orphans(parent):
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                launch, dot, kind = name.partition(".")
                if dot and kind == "running":
                    with contextlib.suppress(OSError, ValueError):
                        running = list(read_running(os.path.join(folder, name)).tids)
                        words = (
                            "its supervisor died with it: the container or the machine was ended, or ran out of memory"
                        )
                        found.append(Died(launch, running, words))
    return found


def _why(code: int) -> str:
    if code == LEFT:
        return "has left"
    if code == REPLACE:
        return "was replaced, as a task that was cancelled did not stop"
    if code == MEMORY:
        return "was replaced, as its memory was nearly full"
    return describe_exit(code)


async def process_ended(loop: asyncio.AbstractEventLoop, process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a process."""
    if hasattr(os, "pidfd_open"):
        try:
            fd = os.pidfd_open(process.pid)
        except OSError:
            fd = -1
        if fd >= 0:
            ended = asyncio.Event()
            loop.add_reader(fd, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(fd)
                os.close(fd)
            process.wait()
            return
    while process.poll() is None:
        await asyncio.sleep(0.05)


class Lines:
    """Reads lines from a pipe as they come."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, tell: Callable[[str], object]) -> None:
        self._loop = loop
        self._fd = fd
        self._tell = tell
        self._rest = b""
        self._end = asyncio.Event()
        os.set_blocking(fd, False)
        loop.add_reader(fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            if self._rest:
                self._say(self._rest)
                self._rest = b""
            self._loop.remove_reader(self._fd)
            self._end.set()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > 100_000:  # somebody who writes no lines
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._say(line)

    def _say(self, line: bytes) -> None:
        self._tell(line.decode("utf-8", "replace"))

    async def ended(self, seconds: float) -> None:
        """Wait for the end of the pipe, so long at most: a program that a task has started may still hold it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._end.wait()

    def close(self) -> None:
        """Read no more."""
        if not self._end.is_set():
            self._loop.remove_reader(self._fd)


def run_workers(
    scheduler: str,
    token: Token,
    *,
    leave: float,
    probe: tuple[str, int] | None = None,
    **options: Any,
) -> None:
    """Run workers until they are told to end, by a signal or by the scheduler.

    Args:
        leave: seconds for having their values moved.
        probe: host and port where health and readiness can be asked for; None: nowhere.
        options: those of :class:`Supervisor`.

    What happens is said on the standard output.

    Raises:
        WorkerDiedError: they are of no use to start; says why.
        SystemExit: a signal came; or they are of no use, and have said why.
    """

    def say(words: str) -> None:
        out.say(f"taskloom {words}")

    async def main() -> None:
        supervisor = Supervisor(scheduler, token, tell=say, **options)
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[int] = asyncio.Queue()
        for known in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(known, told.put_nowait, int(known))
        probes = None
        if probe is not None:
            from taskloom.node.http import ProbeServer

            probes = ProbeServer(supervisor.ready, *probe)
            say(f"worker: health and readiness at {await probes.start()}")
        await supervisor.start()
        signalled = asyncio.ensure_future(told.get())
        finished = asyncio.ensure_future(supervisor.finished.wait())
        await asyncio.wait([signalled, finished], return_when=asyncio.FIRST_COMPLETED)
        if signalled.done() and not finished.done():
            number = signalled.result()
            names = [worker.name for worker in supervisor.workers.values() if worker.joined]
            if names and await supervisor.reached():
                hint = "; Ctrl-C once more ends them at once" if number == signal.SIGINT else ""
                say(f"worker{'s' if len(names) > 1 else ''}: leaving, once others have what they hold{hint}")
                leaving = asyncio.ensure_future(supervisor.retire(names, leave))
                again = asyncio.ensure_future(told.get())
                await asyncio.wait([leaving, again], return_when=asyncio.FIRST_COMPLETED)
                for task in (leaving, again):
                    task.cancel()
            await supervisor.close(1.0)
            sys.exit(128 + number)
        signalled.cancel()
        await supervisor.close()
        if supervisor.problem_said:
            sys.exit(1)
        if supervisor.problem:
            raise WorkerDiedError(supervisor.problem)

    with Writer("stdout") as out:
        asyncio.run(main())
