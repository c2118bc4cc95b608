"""The pool of processes: starting, lending, returning, ending them.

A run borrows processes for itself alone, so runs at the same time never disturb each other: idle ones first, else new
ones. What comes back beyond the pool's size is ended. A process that was lent to a run which failed comes back dirty; if
it has not finished its last task when it is wanted next, it is killed and another one started.
"""

from __future__ import annotations

import atexit
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from mmap import mmap
from time import perf_counter
from typing import Any

from taskloom.config import positive_int
from taskloom.errors import SerializationError, WorkerDiedError
from taskloom.local.channel import Part, Receiver, encode, send_some
from taskloom.serialize.errors import load_error
from taskloom.serialize.objects import dumps_whole
from taskloom.system import cpu_count, thread_limits

__all__ = ["MOST_BLOBS", "Process", "ProcessPool", "describe_exit", "shared_pool"]

MOST_BLOBS = 512  # functions by value that a process keeps
SETTLE = 0.05  # seconds to wait for a process to end a task of a run that failed: less than starting another one takes
TIMES = 4  # runs at the same time may have so many times the pool's processes together, before they wait for each other


class Process:
    """The parent's end of one process of the pool.

    Attributes:
        pid: its process id.
        digests: functions that it has, oldest first.
        dirty: how many resets it has not acknowledged.
        fresh: it has never been lent before.
        cell: one integer that both sides see: the id of the task that runs, so that it is known when it dies.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        life, self._life = os.pipe()
        cell = _shared_cell()
        pythonpath = os.environ.get("PYTHONPATH")
        environ = {**os.environ, **environment, "PYTHONPATH": _package_path(pythonpath)}
        fds = (theirs.fileno(), life, cell)
        command = [
            sys.executable,
            *subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]
            "-P",  # what lies in the working directory must not stand in for a module that the child needs
            "-m",
            "taskloom.local",
            *map(str, fds),
        ]
        # A Ctrl-C before the child has its handler must not be its end, with a traceback on everybody's terminal.
        old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.popen = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL, env=environ)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)
            theirs.close()
            os.close(life)
        self._memory = mmap(cell, 8)
        os.close(cell)
        self.cell = memoryview(self._memory).cast("q")
        self.cell[0] = -1
        self.pid = self.popen.pid
        self.sock.setblocking(False)
        self.receiver = Receiver(self.sock)
        self.outbox: deque[Part] = deque()
        self.digests: dict[bytes, None] = {}
        self.dirty = 0
        self.fresh = True
        self.dead = False
        _processes.add(self)
        self.place = _place()
        self.post({"place": self.place, "pythonpath": pythonpath, "argv": list(sys.argv)})

    def follow(self) -> None:
        """Tell it where this program is by now, if it has moved: working directory and sys.path."""
        place = _place()
        if place != self.place:
            self.place = place
            self.post(("place", 0, place))

    def post(self, header: Any, buffers: Any = ()) -> None:
        """Send a message, as much of it as goes now; the rest waits in the outbox."""
        self.outbox.extend(encode(header, buffers))
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes of the outbox. A dead process shows itself at the next read."""
        try:
            while self.outbox:
                if send_some(self.sock, self.outbox[0]):
                    self.outbox.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self.outbox.clear()

    def receive(self) -> list[tuple[Any, list[Any]]] | None:
        """Messages that are there; None: it has died."""
        try:
            return self.receiver.receive()
        except BlockingIOError:
            return []
        except OSError:
            return None

    def reset(self, run: int, failed: bool) -> None:
        """Have it forget a run. After one that failed it may still be in a task, and says when it is not any more."""
        self.dirty += failed
        self.post(("reset", run, failed))

    def is_clean(self) -> bool:
        """Whether it is there and in no task of a run that failed; it has a moment to get there."""
        deadline = perf_counter() + SETTLE
        while not self.dead:
            messages = self.receive()
            if messages is None:
                self.dead = True
                break
            self.dirty -= sum(header[0] == "reset" for header, _ in messages)
            self.flush()
            if not self.dirty and not self.outbox and not messages:
                return True
            left = deadline - perf_counter()
            if left <= 0:
                break
            if not messages:
                select.select([self.sock], [self.sock] if self.outbox else [], [], left)
        return False

    def exit_code(self) -> int | None:
        """Its exit code, once it has died; negative: the signal."""
        try:
            return self.popen.wait(5)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End it at once."""
        self.dead = True
        self.popen.kill()
        self.close()
        self.popen.wait()

    def close(self) -> None:
        """Let go of it: it ends by itself when its socket is closed."""
        self.dead = True
        self.outbox.clear()
        self.receiver.close()
        self.sock.close()
        if self._life >= 0:
            os.close(self._life)
            self._life = -1


def _place() -> tuple[str, list[str]]:
    try:
        folder = os.getcwd()
    except OSError:  # it was removed
        folder = os.sep
    return folder, list(sys.path)


def _shared_cell() -> int:
    from taskloom.local.channel import SharedBuffer

    shared = SharedBuffer.of(b"\0" * 8)
    return os.dup(shared.fd)


def _package_path(old: str | None) -> str:
    ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return ours if not old else ours + os.pathsep + old


def describe_exit(code: int | None) -> str:
    """An exit code in words."""
    if code is None:
        return "closed its connection"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = "unknown"
        text = f"was killed by signal {-code} ({name})"
        if -code == signal.SIGKILL:
            text += "; that is what the system does to a process when memory runs out, or somebody used kill -9"
        elif -code == signal.SIGSEGV:
            text += "; native code went wrong: a bug in an extension module, or the C stack overflowed"
        return text
    return f"ended with exit code {code}"


class ProcessPool:
    """Processes that run tasks, kept from one call of ``get`` to the next.

    Args:
        num_workers: how many processes; by default as many as this process may use CPUs.
        initializer: called in each process before its first task; sent by value.
        initargs: its arguments.

    The processes' BLAS and OpenMP threads are limited, so that together they use each CPU once: by OMP_NUM_THREADS and
    its likes, unless they are set already.
    """

    def __init__(
        self,
        num_workers: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        self.num_workers = cpu_count() if num_workers is None else positive_int("num_workers", num_workers)
        self.initializer = initializer
        self._start_call = None
        if initializer is not None:
            if not callable(initializer):
                raise TypeError(
                    f"initializer= takes a function, not {initializer!r} of type {type(initializer).__name__}"
                )
            try:
                self._start_call = dumps_whole((initializer, initargs))
            except Exception as error:
                raise SerializationError(f"the initializer {initializer!r} does not pickle: {error}") from error
        self._idle: list[Process] = []
        self._keep = self.num_workers  # so many stay when they are idle: as many as a run has asked for
        self._lent = 0
        self._lock = threading.Lock()
        self._free = threading.Condition(self._lock)
        self._closed = False
        _pools.add(self)

    def lend(self, count: int) -> list[Process]:
        """Up to so many processes, for the caller alone until :meth:`take_back`.

        Fewer, or after a while, where other runs have many times the pool's size already.

        Raises:
            RuntimeError: the pool is closed.
            Exception: whatever the initializer raises.
        """
        with self._free:
            while not self._closed and self._lent >= TIMES * self.num_workers:
                self._free.wait()
            if self._closed:
                raise RuntimeError(
                    "this pool is closed, so its processes have ended; make another ProcessPool, or leave out pool="
                )
            count = max(1, min(count, max(TIMES * self.num_workers, count) - self._lent))
            self._lent += count
            self._keep = max(self._keep, count)
            taken = self._idle[-count:]
            del self._idle[-count:]
        good: list[Process] = []
        try:
            for process in taken:
                if process.is_clean():
                    process.follow()
                    good.append(process)
                else:
                    process.kill()
            limits = thread_limits(max(count, self.num_workers))
            fresh = []
            while len(good) < count:
                fresh.append(Process(limits))
                good.append(fresh[-1])
            if self._start_call is not None:
                for process in fresh:
                    process.post(("call", 0), [self._start_call])
                for process in fresh:
                    self._await_call(process)
        except BaseException:
            for process in {*taken, *good}:
                process.kill()
            self._returned(count)
            raise
        return good

    def replace(self, dead: Process, count: int) -> Process:
        """A new process in place of one that was lent and has died; one of so many that the caller has."""
        dead.kill()
        process = Process(thread_limits(max(count, self.num_workers)))
        if self._start_call is not None:
            try:
                process.post(("call", 0), [self._start_call])
                self._await_call(process)
            except BaseException:
                process.kill()
                raise
        return process

    def _returned(self, count: int) -> None:
        with self._free:
            self._lent -= count
            self._free.notify_all()

    def _await_call(self, process: Process) -> None:
        process.sock.setblocking(True)
        try:
            process.flush()
            found: list[Any] = []
            while not found:
                messages = process.receive()
                if messages is None:
                    raise WorkerDiedError(
                        f"process {process.pid} {describe_exit(process.exit_code())} in the initializer "
                        f"{self.initializer!r}",
                        exitcode=process.popen.returncode,
                    )
                found += messages
        finally:
            process.sock.setblocking(False)
        header, buffers = found[0]
        if not header[2]:
            error = load_error(bytes(buffers[0]))
            error.add_note(f"raised in the initializer {self.initializer!r} of a process")
            raise error

    def take_back(self, processes: list[Process]) -> None:
        """The end of :meth:`lend`; dead ones may be among them."""
        extra: list[Process] = []
        with self._lock:
            for process in processes:
                if process.dead:
                    continue
                process.fresh = False
                if self._closed or len(self._idle) >= self._keep:
                    extra.append(process)
                else:
                    self._idle.append(process)
        for process in extra:
            process.kill()
        self._returned(len(processes))

    def close(self) -> None:
        """End the processes that are not lent now; those that are end when they come back."""
        with self._free:
            self._closed = True
            taken, self._idle = self._idle, []
            self._free.notify_all()
        for process in taken:
            process.kill()

    def __enter__(self) -> ProcessPool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        # of a pool that nobody closed and nobody has any more; no run uses it, so all are idle
        for process in getattr(self, "_idle", ()):
            process.kill()

    def _forget(self) -> None:
        # in a forked child
        self._lock = threading.Lock()
        self._free = threading.Condition(self._lock)
        self._lent = 0
        self._idle = []


_pools: weakref.WeakSet[ProcessPool] = weakref.WeakSet()
_processes: weakref.WeakSet[Process] = weakref.WeakSet()
_shared: ProcessPool | None = None
_with_initializer: dict[bytes, ProcessPool] = {}
_making = threading.Lock()


def shared_pool(initializer: Callable[..., Any] | None = None) -> ProcessPool:
    """The pool of this process, made on first use; one more for the last initializer that was used."""
    global _shared
    with _making:
        if initializer is None:
            if _shared is None:
                _shared = ProcessPool()
            return _shared
        pool = ProcessPool(initializer=initializer)
        key = pickle.dumps(pool._start_call)
        found = _with_initializer.get(key)
        if found is not None:
            return found
        for old in _with_initializer.values():
            old.close()
        _with_initializer.clear()
        _with_initializer[key] = pool
        return pool


def _at_exit() -> None:
    for pool in list(_pools):
        pool.close()


def _after_fork() -> None:
    global _shared, _making
    # The processes are the parent's, the lent ones too: while a copy of its end is open they do not hear that it has gone.
    for process in list(_processes):
        process.popen.returncode = 0  # not ours to wait for
        process.close()
    for pool in list(_pools):
        pool._forget()
    _shared = None
    _with_initializer.clear()
    _making = threading.Lock()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)
