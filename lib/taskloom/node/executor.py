"""Threads that run tasks one after the other, and that can be made to stop in the midst of one.

How a worker drives it, from its event loop::

    executor = Executor(4, lambda: loop.call_soon_threadsafe(collect), prepare=unpickle, finish=keep)
    executor.submit([(ticket, tid, payload, ()), ...])     # a batch: one lock, one thread woken
    executor.stop([ticket])                                # queued or running; unknown ones do not matter

    def collect():                                         # called once for each batch of results
        for ticket, kind, value, seconds in executor.collect():
            ...                                            # DONE, RAISED, CANCELLED; STUCK: it does not let itself be stopped

``prepare`` and ``finish`` run in the thread, before and after the user's function, where no cancel can strike: unpickling
the arguments and pinning the inputs belongs into the one, measuring and storing the result into the other.

**How a task is stopped.** ``PyThreadState_SetAsyncExc`` makes the interpreter raise an exception in another thread, at some
point soon. It must be raised in the user's function or not at all: not in the code of this file, not in the next task. What
holds:

1. Each thread has a *gate*, an RLock. The thread holds it all the time but for the call of the user's function. Who wants
   to strike a thread takes its gate without waiting, looks whether the thread is still at that task, strikes, lets go. So no
   strike is set outside of the call.
2. A strike that was set in the call may still be raised after it, until it is absorbed. That is done after the gate
   is closed. Until then the exception is caught and means the same as one raised inside. What is done in that stretch can
   be done again at any point (close the gate if it is open, absorb what is pending), for an exception may come in the
   midst of it.
3. A task is struck at most ``STRIKES`` times (those not counted that were raised where Python forgets an exception, see
   ``_unraisable``), so at most so many exceptions can come. The stretch is in one ``try`` more
   than that, lexically, as a handler is as open to an exception as what it handles. (A loop around one ``try`` would not do:
   the interpreter raises at backward jumps too.) The outermost handler can therefore not be interrupted any more.
4. Only one thread strikes, the *clerk*, which is never struck. What tasks may call (``secede``, printing) takes no lock:
   it appends to a deque and wakes the clerk.

**Results** are reported when a thread finds the queue empty, or a millisecond after the last report. If a thread holds some
back and is now at a task that lasts, then the clerk reports them.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, MutableSequence
from contextvars import ContextVar, copy_context
from time import perf_counter, sleep
from typing import Any, Protocol

from taskloom.local.frames import cut_frames
from taskloom.node.cell import NOBODY, RunningCells
from taskloom.system import thread_limits

__all__ = ["CANCELLED", "DONE", "RAISED", "STUCK", "Executor", "current_ticket", "limit_numeric_threads", "secede"]

#: What has become of a task. STUCK is no end: the task still runs though it was told to stop; its end may come later.
DONE, RAISED, CANCELLED, STUCK = range(4)

STRIKES = 3  # there is one `try` more than that in Executor._serve
_WAITS = (0.1, 0.5)  # seconds between one strike and the next: a task may have swallowed it
_TICK = 0.001  # seconds between reports, and between looks of a clerk that has something to look after
_IDLE_TICKS = 20  # after so many with nothing to do the clerk sleeps until it is called

Task = tuple[Hashable, int, Any, tuple[Any, ...]]
Outcome = tuple[Hashable, int, Any, float]

_TAKING: Any = type("_Taking", (), {"__slots__": ()})()  # a thread is about to take a task, or has taken it


class _Stopped(BaseException):
    """Raised in a task that is to stop. Nobody outside of this module makes one or waits for it."""


# PYFUNCTYPE: the interpreter's lock stays held during the call
_set_pending = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)

_ticket: ContextVar[Any] = ContextVar("taskloom_ticket", default=None)
_slot: ContextVar[_Slot | None] = ContextVar("taskloom_slot", default=None)


def current_ticket() -> Any:
    """The ticket of the task that calls this, also from threads to which it has handed its context; None outside of one.

    >>> current_ticket() is None
    True
    """
    return _ticket.get()


def secede() -> bool:
    """Give back the place of the task that calls this: another task may run while it goes on.

    Returns:
        Whether the caller is a task's own thread. That another thread can be had is not promised, see ``most`` of
        :class:`Executor`.

    >>> secede()
    False
    """
    slot = _slot.get()
    if slot is None or slot.ident != threading.get_ident():
        return False
    slot.executor._request(("secede", slot, slot.ticket))
    return True


def limit_numeric_threads(threads: int) -> dict[str, str]:
    """Set the environment variables by which BLAS and OpenMP learn how many threads each of ours may have.

    Args:
        threads: how many tasks run at a time on this machine, in all processes.

    Returns:
        What was set. Libraries that are loaded already do not see it, so call this before.

    >>> isinstance(limit_numeric_threads(2), dict)
    True
    """
    limits = thread_limits(threads)
    os.environ.update(limits)
    return limits


_hook_before: Any = None


def _unraisable(about: Any) -> None:
    """In place of ``sys.unraisablehook``: a strike can hit where Python can only print and forget an exception.

    That is in a ``__del__``, in a callback of a weak reference or of the garbage collector. It is lost then, so the task is to be
    struck again, and there is nothing to print.
    """
    if about.exc_type is not _Stopped:
        _hook_before(about)
        return
    slot = _slot.get()
    if slot is not None and slot.ident == threading.get_ident():
        slot.executor._request(("lost", slot, slot.ticket))


def _hook_in() -> None:
    global _hook_before
    if sys.unraisablehook is not _unraisable:
        _hook_before = sys.unraisablehook
        sys.unraisablehook = _unraisable


class Held(Protocol):
    """What collects things that tasks have printed; see :class:`taskloom.node.output.Output`."""

    def waiting(self) -> bool:
        """Whether there is something to fetch."""

    def attach(self, call: Callable[[], None]) -> None:
        """Have this called, by the thread of a task, when there is something new."""


class _Slot:
    """A thread and what it is at.

    Attributes:
        ticket: of its task; _TAKING while it takes one; None while it waits.
        gate: held by the thread but for the call of the user's function.
        strikes: how often the present task was struck; changed by whoever has the gate.
        seceded: its task has given back its place.
        bell: released to wake it.
    """

    __slots__ = ("bell", "executor", "gate", "ident", "number", "seceded", "strikes", "thread", "ticket")

    def __init__(self, executor: Executor, number: int) -> None:
        self.executor = executor
        self.number = number
        self.gate: Any = threading.RLock()
        self.bell = threading.Lock()
        self.bell.acquire()
        self.ident = 0
        self.ticket: Any = None
        self.strikes = 0
        self.seceded = False
        self.thread: threading.Thread | None = None


class _Stopping:
    """A task that is to stop, in the clerk's book."""

    __slots__ = ("due", "since", "slot", "strikes", "told")

    def __init__(self, slot: _Slot, now: float) -> None:
        self.slot = slot
        self.since = now
        self.due = now
        self.strikes = 0
        self.told = False


class Executor:
    """A pool of daemon threads that run tasks in the order in which they were handed in.

    ``submit``, ``collect`` and ``close`` are for one thread, that of the event loop; ``stop`` may be called by any.

    A task is ``(ticket, tid, function, arguments)``. The ticket is any hashable value, used once; ``tid`` goes into the
    running cells. Each task runs in a context of its own (:mod:`contextvars`), a copy of the one that the executor was made in.

    An outcome is ``(ticket, kind, value, seconds)``: of a task that is DONE, its value; of one that RAISED, the exception; of one
    that was CANCELLED or is STUCK, None. Each task has exactly one outcome that is not STUCK.

    Args:
        threads: how many tasks run at a time.
        notify: called without arguments by threads of the executor when there is something to collect; not again before
            :meth:`collect` was called. Has to be quick; what it raises is ignored (the loop may be closed).
        prepare: ``prepare(ticket, function, arguments) -> (function, arguments)``, in the task's thread before it begins.
            What it raises, the task has raised.
        finish: ``finish(ticket, value, seconds) -> value``, in the task's thread when it is done. What it raises, the task
            has raised.
        cells: where the tids of running tasks are written; it has at least ``most`` cells. Closed by whoever made it.
        output: what tasks print, to be collected along with the results.
        most: how many threads there may be at all, those of seceded tasks included; by default ``threads`` + 64.
        patience: seconds after which a task that was told to stop and still runs is reported as STUCK.
        name: what the threads are called, with a number each.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        threads: int,
        notify: Callable[[], object],
        *,
        prepare: Callable[[Any, Any, Any], tuple[Any, Any]] | None = None,
        finish: Callable[[Any, Any, float], Any] | None = None,
        cells: RunningCells | None = None,
        output: Held | None = None,
        most: int | None = None,
        patience: float = 5.0,
        name: str = "taskloom-task",
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads is a whole number of 1 or more, not {threads}")
        self.threads = threads
        self.most = threads + 64 if most is None else most
        if self.most < threads:
            raise ValueError(f"most is at least threads, {threads}, not {self.most}")
        words: MutableSequence[int] = [NOBODY] * self.most
        if cells is not None:
            words = cells.words  # type: ignore[assignment]
            if len(words) < self.most:
                raise ValueError(f"{cells.path} has {len(words)} cells, and there may be {self.most} threads")
        self.patience = patience
        self.name = name
        self.faults = 0  # threads that died of an error of our own; always 0, but who would know otherwise
        self.strikes = 0  # exceptions that were set in threads so far
        self._words = words
        self._notify = notify
        self._prepare = prepare
        self._finish = finish
        self._output = output
        self._context = copy_context()
        self._lock = threading.Lock()  # for what follows, up to the empty line
        self._todo: deque[Task] = deque()  # threads take from it without the lock
        self._idle: list[_Slot] = []
        self._slots: tuple[_Slot, ...] = ()
        self._numbers = list(range(self.most - 1, -1, -1))  # cells that are free
        self._serving = 0  # threads that take tasks
        self._made = 0
        self._closing = False

        self._out: list[Outcome] = []  # only ever appended to, and cut at its front by collect
        self._notified = False
        self._due = 0.0  # when results are to be reported
        self._spare = threads  # threads that could be woken or made; a hint
        self._requests: deque[Any] = deque()
        self._bell = threading.Lock()
        self._bell.acquire()
        self._watched = False  # the clerk is going to look within a tick or so
        self._stopping: dict[Any, _Stopping] = {}  # the clerk's
        self._ended = False
        if output is not None:
            output.attach(self._call_clerk)
        self._clerk = threading.Thread(target=self._tend, name=f"{name}-clerk", daemon=True)
        self._clerk.start()
        _hook_in()

    # --- for the event loop

    def submit(self, tasks: Iterable[Task]) -> None:
        """Run these, after all that were handed in before.

        Raises:
            RuntimeError: the executor was closed, or it has no thread and the system gives it none.
        """
        with self._lock:
            if self._closing:
                raise RuntimeError("the executor is closed: it takes no more tasks")
            self._todo.extend(tasks)
            if self._todo:
                self._wake_one()

    def withdraw(self, tickets: Iterable[Hashable] | None = None) -> list[Any]:
        """Take back those of these, or of all, that no thread has taken yet: they have no outcome. The tickets."""
        wanted = None if tickets is None else set(tickets)
        found: list[Any] = []
        kept = []
        take = self._todo.popleft
        with self._lock:
            try:
                while True:
                    task = take()
                    if wanted is None or task[0] in wanted:
                        found.append(task[0])
                    else:
                        kept.append(task)
            except IndexError:
                pass
            self._todo.extend(kept)
        return found

    def collect(self) -> list[Outcome]:
        """What has become of tasks since the last call, in the order in which they ended.

        Where an ``output`` was given, fetch what it holds after this and use it before: then a task's output never comes after
        its outcome.
        """
        self._notified = False
        out = self._out
        count = len(out)
        batch = out[:count]
        del out[:count]
        return batch

    def stop(self, tickets: Collection[Hashable]) -> None:
        """Stop these. Those that have not begun are CANCELLED at once, those that run as soon as they can be.

        This returns immediately, and the outcome comes as any other. A task may end otherwise: it can be DONE already, or
        raise something of its own. Where it still runs after ``patience`` seconds it is reported as STUCK, once: it swallows
        the exception, or is in native code that does not return. Tickets that are not known, or not any more, do not matter.
        """
        if tickets:
            self._request(("stop", tuple(tickets), None))

    def running(self) -> list[Hashable]:
        """The tickets of the tasks that threads are at just now."""
        return [
            ticket for ticket in [slot.ticket for slot in self._slots] if ticket is not None and ticket is not _TAKING
        ]

    def size(self) -> int:
        """How many threads there are."""
        return len(self._slots)

    def close(self, timeout: float = 1.0) -> list[Hashable]:
        """Take no more tasks, cancel those that are queued, stop those that run, and end the threads.

        Args:
            timeout: seconds to wait for all that.

        Returns:
            The tickets of tasks that still run. Their threads are daemons: they end with the process.
        """
        deadline = perf_counter() + timeout
        with self._lock:
            self._closing = True
            self._cancel_queued(None)
            idle, self._idle = self._idle, []
            slots = self._slots
            self._spare = 0
        for slot in idle:
            slot.bell.release()
        here = threading.current_thread()
        self.stop(self.running())
        again = perf_counter() + 0.05
        while any(slot in self._slots for slot in slots) and perf_counter() < deadline:
            if perf_counter() >= again:  # one may just have been between two tasks
                self.stop(self.running())
                again = perf_counter() + 0.05
            sleep(0.0005)
        left = self.running()
        for slot in slots:
            if slot not in self._slots and slot.thread is not None and slot.thread is not here:
                slot.thread.join(max(0.0, deadline - perf_counter()) + 0.1)
        self._ended = True
        self._call_clerk()
        self._clerk.join(max(0.0, deadline - perf_counter()) + 0.1)
        return left

    # --- threads come and go (the lock is held)

    def _wake_one(self) -> None:
        """Get one more thread to look at the queue."""
        if self._idle:
            self._idle.pop().bell.release()
        elif self._serving < self.threads and self._numbers:
            self._hire()
        self._spare = self._how_many()

    def _how_many(self) -> int:
        return len(self._idle) + min(self.threads - self._serving, len(self._numbers))

    def _hire(self) -> None:
        self._made += 1
        slot = _Slot(self, self._numbers.pop())
        slot.thread = threading.Thread(target=self._main, args=(slot,), name=f"{self.name}-{self._made}", daemon=True)
        self._serving += 1
        self._slots += (slot,)
        try:
            slot.thread.start()
        except RuntimeError:  # the system has no more threads
            self._serving -= 1
            self._leave(slot)
            if not self._serving:
                raise

    def _leave(self, slot: _Slot) -> None:
        self._slots = tuple([other for other in self._slots if other is not slot])
        self._numbers.append(slot.number)

    def _cancel_queued(self, tickets: set[Hashable] | None) -> None:
        """Cancel what is queued of these, or all; what is found is taken out of the set."""
        kept = []
        take = self._todo.popleft
        try:
            while True:
                task = take()
                if tickets is None or task[0] in tickets:
                    self._out.append((task[0], CANCELLED, None, 0.0))
                    if tickets is not None:
                        tickets.discard(task[0])
                else:
                    kept.append(task)
        except IndexError:
            pass
        self._todo.extend(kept)

    # --- a thread

    def _main(self, slot: _Slot) -> None:
        slot.gate.acquire()
        slot.ident = threading.get_ident()
        context = self._context.copy()
        while True:
            try:
                context.run(self._serve, slot)
            except BaseException as error:  # no memory for our own calls
                if self._ended:  # and its cells are closed: it was stuck in a task until now
                    return
                self.faults += 1
                _shut(slot)
                if slot.ticket is not None and slot.ticket is not _TAKING:
                    self._out.append((slot.ticket, RAISED, error, 0.0))
            else:
                return

    def _serve(self, slot: _Slot) -> None:
        take = self._todo.popleft
        todo = self._todo
        add = self._out.append
        open_gate = slot.gate.release
        close_gate = slot.gate.acquire
        closed = slot.gate._is_owned
        words = self._words
        number = slot.number
        prepare = self._prepare
        finish = self._finish
        set_ticket = _ticket.set
        _slot.set(slot)
        value: Any
        failure: BaseException | None
        stop = perf_counter()
        while True:
            slot.ticket = _TAKING
            try:
                ticket, tid, function, arguments = take()
            except IndexError:
                if not self._wait(slot):
                    return
                stop = perf_counter()
                continue
            slot.ticket = ticket
            words[number] = tid
            if self._spare and todo:
                with self._lock:
                    self._wake_one()
                stop = perf_counter()
            if not self._watched and self._out:  # this task may last, and others have ended
                self._call_clerk()
            set_ticket(ticket)
            start = stop
            value = failure = None
            # One try more than STRIKES; see the module's text.
            try:
                try:
                    try:
                        try:
                            if prepare is not None:
                                function, arguments = prepare(ticket, function, arguments)
                                start = perf_counter()
                            run = copy_context().run
                            open_gate()
                            value = run(function, *arguments)
                            stop = perf_counter()
                            if not closed():
                                close_gate()
                            if slot.strikes:
                                _absorb(slot.ident)
                        except BaseException as error:
                            failure = error
                            _shut(slot)
                    except BaseException as error:
                        failure = error
                        _shut(slot)
                except BaseException as error:
                    failure = error
                    _shut(slot)
            except BaseException as error:
                failure = error
                _shut(slot)
            # From here on nothing can strike.
            if failure is None:
                kind = DONE
                if finish is not None:
                    try:
                        value = finish(ticket, value, stop - start)
                    except BaseException as error:
                        kind = RAISED
                        value = _without_our_frames(error)
            else:
                stop = perf_counter()
                kind = RAISED
                if slot.strikes and _is_stop(failure):
                    kind = CANCELLED
                    value = None
                else:
                    value = _without_our_frames(failure)
                failure = None
            slot.strikes = 0
            add((ticket, kind, value, stop - start))
            # nothing of a task is kept alive by the thread that ran it
            run = value = function = arguments = None  # type: ignore[assignment]
            if slot.seceded:
                slot.ticket = None
                with self._lock:
                    stays = self._return(slot)
                if not stays:
                    self._report(perf_counter())
                    return
            if finish is not None:
                stop = perf_counter()
            if stop >= self._due:
                self._report(stop)
                stop = perf_counter()

    def _wait(self, slot: _Slot) -> bool:
        """Wait for tasks; whether the thread is to go on."""
        slot.ticket = None
        self._words[slot.number] = NOBODY
        if self._out:
            self._report(perf_counter())
        with self._lock:
            # It may have seceded just when its task ended: the clerk saw the task, and the thread did not see that.
            if slot.seceded and not self._return(slot):
                return False
            if self._todo:
                return True
            if self._closing:
                self._serving -= 1
                self._leave(slot)
                return False
            self._idle.append(slot)
            self._spare = self._how_many()
        slot.bell.acquire()
        return True

    def _return(self, slot: _Slot) -> bool:
        """The task of a thread that gave back its place has ended: whether there is a place again (the lock is held)."""
        if self._serving < self.threads and not self._closing:
            self._serving += 1
            slot.seceded = False
            self._spare = self._how_many()
            return True
        self._words[slot.number] = NOBODY
        self._leave(slot)
        return False

    def _report(self, now: float) -> None:
        self._due = now + _TICK
        if not self._notified:
            self._notified = True
            try:
                self._notify()
            except Exception:  # the loop is closed
                pass

    # --- the clerk

    def _request(self, request: Any) -> None:
        self._requests.append(request)
        self._call_clerk()

    def _call_clerk(self) -> None:
        try:
            self._bell.release()
        except RuntimeError:  # he has been called already
            pass

    def _tend(self) -> None:
        idle = 0
        wait = -1.0
        while True:
            self._bell.acquire(timeout=wait)
            if self._ended:
                return
            self._watched = True
            while self._requests:
                self._take_requests()
            now = perf_counter()
            if self._stopping:
                self._strike(now)
            held = self._out or (self._output is not None and self._output.waiting())
            if held and now >= self._due and not self._notified:
                self._report(now)
            idle = 0 if held else idle + 1
            if idle <= _IDLE_TICKS:
                wait = _TICK
            else:
                self._watched = False
                if self._out or self._requests:  # held back before the thread could see that nobody watches
                    idle = 0
                    continue
                wait = -1.0
            if self._stopping:
                nearest = min(entry.due for entry in self._stopping.values()) - now
                nearest = max(nearest, _TICK)
                wait = nearest if wait < 0 else min(wait, nearest)

    def _take_requests(self) -> None:
        stops: set[Hashable] = set()
        while self._requests:
            what, subject, ticket = self._requests.popleft()
            if what == "stop":
                stops.update(subject)
            elif what == "lost":
                entry = self._stopping.get(ticket)
                if entry is not None and entry.strikes:
                    entry.strikes -= 1  # it cannot come any more
                    entry.due = 0.0
            else:
                with self._lock:
                    if subject.ticket == ticket and not subject.seceded:
                        subject.seceded = True
                        self._serving -= 1
                        if self._todo:
                            self._wake_one()
                        self._spare = self._how_many()
        if not stops:
            return
        self._find_running(stops)
        if stops:
            with self._lock:
                self._cancel_queued(stops)
        # A thread may have taken one just before, and not have said so yet.
        for slot in self._slots if stops else ():
            while slot.ticket is _TAKING:
                sleep(20e-6)
        self._find_running(stops)
        # whatever is left is unknown, or has ended

    def _find_running(self, stops: set[Hashable]) -> None:
        now = perf_counter()
        for slot in self._slots:
            ticket = slot.ticket
            if ticket is not None and ticket in stops:
                stops.discard(ticket)
                if ticket not in self._stopping:
                    self._stopping[ticket] = _Stopping(slot, now)

    def _strike(self, now: float) -> None:
        for ticket, entry in list(self._stopping.items()):
            slot = entry.slot
            if slot.ticket != ticket:
                del self._stopping[ticket]
                continue
            if not entry.told and now - entry.since >= self.patience:
                entry.told = True
                self._out.append((ticket, STUCK, None, now - entry.since))
            if now < entry.due:
                continue
            entry.due = now + _TICK
            if entry.strikes < STRIKES:
                if slot.gate.acquire(blocking=False):
                    try:
                        if slot.ticket == ticket:
                            _set_pending(slot.ident, _Stopped)
                            slot.strikes += 1
                            self.strikes += 1
                            entry.strikes += 1
                            entry.due = now + (_WAITS[entry.strikes - 1] if entry.strikes < STRIKES else 1.0)
                    finally:
                        slot.gate.release()
            else:
                entry.due = now + 1.0
            if not entry.told:
                entry.due = min(entry.due, max(now + _TICK, entry.since + self.patience))


def _shut(slot: _Slot) -> None:
    """Close the gate and absorb what is pending. May be interrupted and called again at any point."""
    if not slot.gate._is_owned():
        slot.gate.acquire()
    if slot.strikes:
        _absorb(slot.ident)


def _absorb(ident: int) -> None:
    """See to it that no exception is pending in the calling thread.

    CPython raises what is pending at the next call, so by now there is nothing left; but nobody has promised that. The thread
    strikes itself: that takes the place of what is pending, and is raised at once. Setting NULL would take it back too, but
    CPython 3.11 and 3.12 then go on to look for an exception at every jump, in all threads, until one is raised somewhere.
    """
    try:
        while True:
            _set_pending(ident, _Stopped)
    except _Stopped:
        pass


def _is_stop(error: BaseException) -> bool:
    """Whether an error is a strike of ours, holds one in a group, or was raised on account of one."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left and len(seen) < 1000:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        if type(one) is _Stopped:
            return True
        seen.add(id(one))
        left += (one.__cause__, one.__context__)
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions
    return False


def _without_our_frames(error: BaseException) -> BaseException:
    try:
        cut_frames(error)
    except Exception:  # a class that forbids it
        pass
    return error
