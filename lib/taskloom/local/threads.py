"""The shared pool of threads, and how a run gets its threads from it.

Threads wait on one queue of tickets. A ticket is a run that has more ready tasks than threads; the thread that takes it
works on that run until nothing of it can be taken. Who takes a task and leaves others ready behind asks for the next
thread, so they come one by one, and only for work that is there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any

from taskloom.local.run import Run, work

__all__ = ["ThreadPool", "inside_task", "run_on_executor", "run_on_pool", "shared_pool"]

_here = threading.local()


def inside_task() -> bool:
    """Whether the calling thread is one of a pool's and runs a task just now.

    Such a thread works on the runs that its task starts, instead of only waiting for them: that way runs inside of
    tasks need no free thread and cannot wait for each other.
    """
    return getattr(_here, "depth", 0) > 0


class ThreadPool:
    """Daemon threads that serve runs; they are made when they are first needed and never end by themselves."""

    def __init__(self, name: str = "taskloom") -> None:
        self.name = name
        self.tickets: SimpleQueue[Run] = SimpleQueue()
        self.lock = threading.Lock()
        self.size = 0  # threads that serve; those stuck in tasks of ended runs do not count
        self.idle = 0  # of them, those that wait for a ticket
        self.stuck = 0
        self.made = 0

    def grow(self, size: int) -> None:
        """Have at least so many threads."""
        if self.size >= size:
            return
        with self.lock:
            while self.size < size:
                self.made += 1
                self.size += 1
                threading.Thread(target=self._main, name=f"{self.name}-{self.made}", daemon=True).start()

    def _main(self) -> None:
        while True:
            with self.lock:
                self.idle += 1
            run = self.tickets.get()
            with self.lock:
                self.idle -= 1
            if _join(run):
                _serve(run)
                if run.stopped and self._is_replaced():
                    return
            del run  # an idle thread must not keep the last run's data alive

    def crowded(self) -> bool:
        """Whether more threads are asked for than wait."""
        return self.tickets.qsize() > self.idle

    def abandon(self, count: int) -> None:
        """So many threads are stuck in tasks that nobody waits for any more; nothing can stop them from outside.

        They count no longer, others are made when they are needed, and as many go as come back.
        """
        with self.lock:
            self.size -= count
            self.stuck += count

    def _is_replaced(self) -> bool:
        with self.lock:
            if not self.stuck:
                return False
            self.stuck -= 1
            return True


_shared: ThreadPool | None = None
_making = threading.Lock()


def shared_pool() -> ThreadPool:
    """The pool of this process, made on first use; a forked child makes its own."""
    global _shared
    if _shared is None:
        with _making:
            if _shared is None:
                _shared = ThreadPool()
    return _shared


def _forget() -> None:
    global _shared, _making
    _shared = None
    _making = threading.Lock()
    _here.depth = 0


os.register_at_fork(after_in_child=_forget)


def _join(run: Run) -> bool:
    """Hand a ticket in; whether there is still something to do for it."""
    with run.lock:
        run.tickets -= 1
        if run.stopped or not run.ready:
            return False
        run.active += 1
        return True


def _serve(run: Run) -> None:
    """One thread's share of a run that it has joined, in the context of the run's caller."""
    _here.depth = getattr(_here, "depth", 0) + 1
    try:
        # a context can be entered once at a time, so each thread has a copy
        run.context.copy().run(work, run)  # type: ignore[union-attr]
    finally:
        _here.depth -= 1


class _Caller:
    """The caller's side of a run on threads: sleeps until the run is over or, inside a task, until it can help.

    Args:
        ask: hands a ticket for the run to a thread.
        helps: whether the caller works too.
    """

    def __init__(self, run: Run, ask: Callable[[Run], Any], helps: bool) -> None:
        self.run = run
        self.ask = ask
        self.helps = helps
        self.sleeping = not helps
        self.over = False
        self.bell = threading.Lock()
        self.bell.acquire()
        run.help = self.help
        run.on_over = self.on_over

    def help(self) -> None:
        """Get the run one more thread: the caller itself if it may and sleeps. A ticket has been counted for it."""
        run = self.run
        if self.helps:
            with run.lock:
                wake = self.sleeping
                if wake:
                    self.sleeping = False
                    run.tickets -= 1
                    run.active += 1
            if wake:
                self.bell.release()
                return
        try:
            self.ask(run)
        except BaseException as error:  # an executor that was shut down
            self.refused(error)

    def refused(self, error: BaseException) -> None:
        """A ticket that nobody will take: fatal only if nobody else works on the run."""
        run = self.run
        with run.lock:
            run.tickets -= 1
            fatal = bool(run.left) and not run.active and not run.tickets
            if fatal:
                run.fail(None, error)
        if fatal:
            self.on_over()

    def on_over(self) -> None:
        with self.run.lock:
            ring = self.sleeping and not self.over
            self.over = True
            self.sleeping = False
        if ring:
            self.bell.release()

    def conduct(self, abandon: Callable[[int], None] | None) -> None:
        """Start the run, wait for its end, and leave nothing behind."""
        run = self.run
        run.context = copy_context()
        run.start()
        try:
            if run.left:
                self._wait()
        except BaseException as error:  # Ctrl-C, while the tasks run elsewhere
            self._stop(abandon)
            run.finish(error)
            raise
        if run.error is not None:
            self._stop(abandon)
        run.finish(run.error)

    def _wait(self) -> None:
        run = self.run
        if not self.helps:
            run.tickets += 1
            self.help()
            self.bell.acquire()
            return
        run.active += 1
        while True:
            _serve(run)
            with run.lock:
                if run.stopped or not run.left:
                    return
                self.sleeping = True
            self.bell.acquire()
            if self.over:
                return

    def _stop(self, abandon: Callable[[int], None] | None) -> None:
        run = self.run
        with run.lock:
            run.stopped = True
            stuck = run.active
        if stuck and abandon is not None:
            abandon(stuck)


def run_on_pool(run: Run, pool: ThreadPool) -> None:
    """Do a run on the threads of a pool of ours."""
    pool.grow(run.workers)
    run.crowded = pool.crowded
    _Caller(run, pool.tickets.put, inside_task()).conduct(pool.abandon)


def run_on_executor(run: Run, executor: Any) -> None:
    """Do a run on somebody else's threads.

    Args:
        executor: has ``submit`` as concurrent.futures' executors, or ``apply_async`` as multiprocessing's ThreadPool;
            its workers share our memory.

    Raises:
        RuntimeError: it takes no more work, or threw ours away.
    """

    def serve() -> None:
        if _join(run):
            _serve(run)

    def ended(future: Any) -> None:
        # what serve() cannot say itself: it was cancelled, or could not be run
        if future.cancelled():
            caller.refused(RuntimeError("the executor was shut down before the graph was done"))
        elif future.exception() is not None:
            caller.refused(future.exception())

    def ask(run: Run) -> None:
        if hasattr(executor, "submit"):
            future = executor.submit(serve)
            if hasattr(future, "add_done_callback"):
                future.add_done_callback(ended)
        else:
            executor.apply_async(serve, error_callback=caller.refused)

    caller = _Caller(run, ask, inside_task())
    caller.conduct(None)
