"""The shared pool of threads, and how a run gets its threads from it.

Threads wait on one queue of tickets. A ticket stands for a run that has more ready tasks than threads; the thread that
takes it works on that run until nothing of it can be taken. Who takes a task and leaves others ready behind asks for the
next thread, so they come one by one, and only for work that is there.

What holds:

- A lock is held for a few lines, never while a task, a callback or an executor of the user's runs. The lock of a run may
  be held when that of the pool is taken, not the other way round. They are RLocks: a Ctrl-C can strike anywhere.
- A thread that waits for a run which its own task has started works on that run meanwhile. So runs inside of tasks need
  no free thread and cannot wait for each other, however deep and with however few threads.
- A run that is over is forgotten: tickets and threads that still know it hold nothing of its data.
"""

from __future__ import annotations

import os
import threading
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from time import perf_counter
from typing import Any

from taskloom.local.frames import cut_frames
from taskloom.local.run import ABANDONED, DONE, WANTED_ELSEWHERE, Run, work

__all__ = ["ThreadPool", "inside_task", "run_on_executor", "run_on_pool", "shared_pool"]

# Seconds that a thread stays with its run while another run has none at all.
TURN = 0.01
# Seconds after which a caller whose run has not a single thread does something about it.
PATIENCE = 0.5

_here = threading.local()


def inside_task() -> bool:
    """Whether the calling thread runs a task of a threaded run just now."""
    return getattr(_here, "caller", None) is not None


class ThreadPool:
    """Daemon threads that serve runs; they are made when they are first needed and never end by themselves.

    Attributes:
        most: the workers of the run that had most of them so far: as many threads there may be.
        extra: how many more there may be, while all are in tasks that last.
        size: how many serve; those stuck in tasks of ended runs do not count.
        free: threads that wait, or are about to, less tickets that wait. Exact, unlike the length of a queue, as a
            ticket is counted before anybody can take it.
        runs: those that have the pool at their disposal just now.
    """

    def __init__(self, name: str = "taskloom") -> None:
        self.name = name
        self.tickets: SimpleQueue[_Caller] = SimpleQueue()
        self.lock = threading.RLock()
        self.most = 0
        self.extra = 0
        self.size = 0
        self.free = 0
        self.made = 0
        self.runs: tuple[Run, ...] = ()

    def enter(self, run: Run) -> None:
        """A run begins."""
        with self.lock:
            self.most = max(self.most, run.workers)
            self._set_runs(run)

    def leave(self, run: Run) -> None:
        """A run is over."""
        with self.lock:
            run.stopped = True
            self._set_runs()

    def stretch(self, count: int) -> None:
        """Have so many more threads, or (negative) fewer again."""
        with self.lock:
            self.extra += count
            self._hire()

    def _set_runs(self, *more: Run) -> None:
        # without those that are over: a Ctrl-C may have kept one from leaving
        self.runs = (*[run for run in self.runs if run.left and not run.stopped], *more)
        for run in self.runs:
            run.shared = len(self.runs) > 1

    def ask(self, caller: _Caller) -> None:
        """Get a run one more thread, as soon as there is one.

        Raises:
            RuntimeError: the pool has no thread and the system gives us none.
        """
        with self.lock:
            self.free -= 1
            try:
                self._hire()
            except BaseException:
                self.free += 1
                raise
            self.tickets.put(caller)

    def _hire(self) -> None:
        """Make threads for the tickets that no thread waits for (the lock is held)."""
        while self.free < 0 and self.size < self.most + self.extra:
            unwanted: list[bool] = []
            self.made += 1
            self.size += 1
            self.free += 1
            try:
                thread = threading.Thread(
                    target=self._main, args=(unwanted,), name=f"{self.name}-{self.made}", daemon=True
                )
                thread.start()
            except BaseException as error:
                # Too many threads, or the interpreter is ending; or a Ctrl-C, and the thread may be there already.
                unwanted.append(True)
                self.size -= 1
                self.free -= 1
                if self.size and isinstance(error, Exception):
                    return  # those that are there will do it
                raise

    def _main(self, unwanted: list[bool]) -> None:
        with self.lock:  # who made this thread holds it until all is counted
            if unwanted:
                return
        while True:
            caller = self.tickets.get()
            left = DONE
            try:
                left = _serve(caller, self.elsewhere)
            except BaseException as error:  # no memory for our own calls
                caller.refused(error)
            del caller  # an idle thread must not keep the last run alive
            if left == ABANDONED:
                return  # the pool has written it off already
            with self.lock:
                if self.size > self.most + self.extra:
                    self.size -= 1
                    return
                self.free += 1

    def elsewhere(self, run: Run, since: float) -> bool:
        """Whether a thread that has been at a run since then should go to another: a look without any lock.

        It goes where fewer threads are, and after its turn from the last place of one run to one that has none. Both
        make the shares more even, so threads do not run to and fro.
        """
        others = run.active - 1
        for other in self.runs:
            if other.tickets > 0 and other is not run:
                if other.active < others:
                    return True
                if not other.active and perf_counter() - since > TURN:
                    return True
        return False

    def abandon(self, run: Run) -> None:
        """Threads are stuck in tasks of a run that nobody waits for any more; nothing can stop them from outside.

        They count no longer, others are made in their place, and they go if they come back: each finds out by
        ``run.abandoned``. The run's lock is held, so none of them can leave meanwhile.
        """
        with self.lock:
            # no call between these two, so no Ctrl-C either
            self.size -= run.active
            run.abandoned = True
            try:
                self._hire()
            except RuntimeError:  # no thread can be had; whoever asks next will hear of it
                pass


_shared: ThreadPool | None = None
_making = threading.RLock()


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
    _making = threading.RLock()
    _here.__dict__.clear()


os.register_at_fork(after_in_child=_forget)


class _Executor:
    """Somebody else's threads.

    Args:
        executor: has ``submit`` as concurrent.futures' executors, or ``apply_async`` as multiprocessing's ThreadPool;
            its workers share our memory.
    """

    def __init__(self, executor: Any) -> None:
        self.executor = executor
        self.pending: set[Any] = set()

    def ask(self, caller: _Caller) -> None:
        submit = getattr(self.executor, "submit", None)
        if submit is None:
            self.executor.apply_async(_serve_as_guest, (caller,), error_callback=caller.refused)
            return
        future = submit(_serve_as_guest, caller)
        if hasattr(future, "add_done_callback"):
            self.pending.add(future)
            future.add_done_callback(partial(self._ended, caller))

    def _ended(self, caller: _Caller, future: Any) -> None:
        # what the thread cannot say itself: it was cancelled, or could not be run
        self.pending.discard(future)
        if future.cancelled():
            caller.refused(RuntimeError("the executor was shut down before the graph was done"))
        elif future.exception() is not None:
            caller.refused(future.exception())

    def is_gone(self) -> bool:
        """Whether what was handed in will never be run and nobody has said so: a ThreadPool that was terminated."""
        return getattr(self.executor, "_state", None) == "TERMINATE"

    def withdraw(self) -> None:
        """Take back what no thread has come for."""
        for future in tuple(self.pending):
            if hasattr(future, "cancel"):
                future.cancel()

    def has_this_thread(self) -> bool:
        """Whether waiting for the executor would be waiting for ourselves."""
        thread = threading.current_thread()
        # ThreadPoolExecutor keeps its threads in `_threads`, ThreadPool in `_pool`
        for threads in (getattr(self.executor, "_threads", ()), getattr(self.executor, "_pool", ())):
            if isinstance(threads, (set, list, tuple)) and thread in threads:
                return True
        caller = getattr(_here, "caller", None)
        while caller is not None:
            if caller.executor is not None and caller.executor.executor is self.executor:
                return True
            caller = caller.outer
        return False


class _Caller:
    """The caller's side of a run on threads: sleeps until the run is over or, if it helps, until there is work.

    Args:
        run: has not been started.
        place: whose threads: a pool of ours or an executor. Its ``ask`` hands a ticket for the run to a thread.

    Attributes:
        outer: the caller of the run whose task this thread runs, if any.
        inner: callers of runs that tasks of this run have started.
        helps: whether the calling thread works on the run too.
        may_help: whether it does where no other thread can.
        sleeping: it waits for the bell, or is about to: who sets this to False rings it.
        over: the run was found to be over; there is nothing to wait for.
        stretched: threads by which the pool was made larger for this run.
    """

    def __init__(self, run: Run, place: ThreadPool | _Executor) -> None:
        self.run = run
        self.outer: _Caller | None = getattr(_here, "caller", None)
        self.inner: set[_Caller] = set()
        self.pool = self.executor = None
        if isinstance(place, _Executor):
            self.executor = place
            self.helps = self.may_help = place.has_this_thread()
        else:
            self.pool = place
            self.helps = self.outer is not None
            self.may_help = True
        self.place = place
        self.sleeping = not self.helps
        self.over = False
        self.stretched = 0
        self.bell = threading.Lock()
        self.bell.acquire()
        run.help = self.help

    def help(self) -> None:
        """Get the run one more thread: the caller itself if it may and sleeps. A ticket has been counted for it."""
        if self.helps and self._wake():
            return
        try:
            self.place.ask(self)
        except BaseException as error:
            self.refused(error)
            if not isinstance(error, Exception):
                raise

    def _wake(self) -> bool:
        with self.run.lock:
            wake = self.sleeping
            self.sleeping = False
        if wake:
            self.bell.release()
        return wake

    def refused(self, error: BaseException) -> None:
        """No thread will come for a ticket. If none is at work either, the caller does it or the run has failed."""
        run = self.run
        with run.lock:
            run.tickets -= 1
            if run.stopped or not run.left or run.active or run.tickets:
                return
            ring = self.sleeping
            self.sleeping = False
            if not self.may_help:
                run.fail(None, error)
                self.over = True
            else:
                self.helps = True
                if ring:
                    run.tickets += 1  # else it looks for work itself before it goes to sleep
        if ring:
            self.bell.release()

    def on_over(self) -> None:
        """The run has been found to be over; may be called more than once."""
        self.over = True
        self._wake()

    def cancel(self) -> None:
        """End the run, as the one that it belongs to has ended."""
        with self.run.lock:
            if self.run.left and not self.run.stopped:
                self.run.fail(None, _orphaned())
        self.on_over()

    def conduct(self) -> None:
        """Start the run, wait for its end, and leave nothing behind."""
        run = self.run
        run.context = copy_context()
        try:
            self._attach()
            run.start()
            try:
                if run.left:
                    self._wait()
            except BaseException as error:  # Ctrl-C, while the tasks run elsewhere
                try:
                    self._stop()
                finally:
                    run.finish(error)
                raise
            if run.error is not None:
                self._stop()
                cut_frames(run.error)
            run.finish(run.error)
        finally:
            self._detach()

    def _attach(self) -> None:
        if self.outer is not None:
            with self.outer.run.lock:
                if self.outer.run.stopped:
                    raise _orphaned()
                self.outer.inner.add(self)
        if self.pool is not None:
            self.pool.enter(self.run)

    def _detach(self) -> None:
        if self.outer is not None:
            with self.outer.run.lock:
                self.outer.inner.discard(self)
        if self.pool is not None:
            self.pool.leave(self.run)
            if self.stretched:
                self.pool.stretch(-self.stretched)
        if self.executor is not None:
            self.executor.withdraw()

    def _wait(self) -> None:
        run = self.run
        run.tickets = 1
        if not self.helps:
            self.help()
            self._sleep()
            if self.over:
                return
        while True:
            _serve(self)
            with run.lock:
                if run.stopped or not run.left:
                    return
                if run.ready and run.active < run.workers:
                    run.tickets += 1
                    continue
                self.sleeping = True
            self.bell.acquire()
            if self.over:
                return

    def _sleep(self) -> None:
        """Wait for the end of the run, or for the news that no thread will come."""
        run = self.run
        # An executor's new thread may be at its first work before the executor knows of the thread: ask again soon.
        patience = PATIENCE if self.executor is None else 0.01
        while not self.bell.acquire(timeout=patience):
            patience = PATIENCE
            if self.executor is not None and not self.may_help:
                self.may_help = self.executor.has_this_thread()
            with run.lock:
                if not self.sleeping or run.active or run.stopped:
                    continue
                if self.pool is not None and not self.stretched:
                    # All threads are in tasks that last. One of these may even wait for us: in a thread of its own, or
                    # as it belongs to a run that nobody could stop.
                    self.stretched = run.workers
                    self.pool.stretch(run.workers)
                elif self.may_help:  # there is no thread to be had
                    self.helps = True
                    self.sleeping = False
                    run.tickets += 1
                    return
                elif self.executor is not None and self.executor.is_gone():
                    run.fail(None, RuntimeError("the pool was terminated before the graph was done"))
                    self.over = True
                    return

    def _stop(self) -> None:
        """Nothing of the run is to be begun any more; what has begun is left to itself."""
        with self.run.lock:
            self.run.stopped = True
            inner = tuple(self.inner)
            if self.pool is not None:
                self.pool.abandon(self.run)
        for caller in inner:
            caller.cancel()


def _orphaned() -> RuntimeError:
    return RuntimeError("this computation was stopped: the one whose task has started it was interrupted or has failed")


def _serve(caller: _Caller, elsewhere: Any = None) -> int:
    """Hand in a ticket: one thread's share of a run, in the context of the run's caller; how it left :func:`work`."""
    run = caller.run
    context = run.context
    if context is None:
        return DONE  # it was over before a thread came
    before = getattr(_here, "caller", None)
    _here.caller = caller
    try:
        # a context can be entered once at a time, so each thread has a copy
        left = context.copy().run(work, run, elsewhere)
    finally:
        _here.caller = before
    if left == WANTED_ELSEWHERE:
        caller.help()
    elif run.stopped or not run.left:
        caller.on_over()
    return left


def _serve_as_guest(caller: _Caller) -> None:
    """What an executor's thread runs."""
    try:
        _serve(caller)
    except BaseException as error:
        caller.refused(error)
        if not isinstance(error, Exception):
            raise


def run_on_pool(run: Run, pool: ThreadPool) -> None:
    """Do a run on the threads of a pool of ours."""
    _Caller(run, pool).conduct()


def run_on_executor(run: Run, executor: Any) -> None:
    """Do a run on somebody else's threads, see :class:`_Executor`.

    Raises:
        RuntimeError: it takes no more work, or threw ours away.
    """
    _Caller(run, _Executor(executor)).conduct()
