"""The run state and the loop of the local schedulers.

A :class:`Run` is one call of ``get`` under way. :func:`work` is the loop: take the next task, run it, book it, until
nothing can be taken. The sync scheduler calls it once in the caller's thread; the threaded one calls it in several
threads at once, which share the run under one short lock. The multiprocessing scheduler takes and books tasks of the
same run state in blocks (see :mod:`taskloom.local.processes`).

Taking is cheap because the order is fixed: a cursor walks it, and passes over tasks that still wait; only those that
become ready behind the cursor go through a heap. So the ready task of the highest priority is always next, and with
one worker the heap stays empty.

What holds at any time, and what keeps threads from waiting for each other:

- A ticket stands for a thread that was asked to come. It is counted before the thread is asked, and handed in by
  :func:`work` or, where no thread will come, by who finds that out. Tickets and threads together are never more than
  the run may have.
- As long as tasks are ready, a thread is at work or a ticket is out. Whether there is work, and whether a thread goes, is
  decided under the same hold of the lock.
- Once ``stopped`` is set, nothing is taken or booked any more.
- No function of the user's is called under the lock; only what a value does when it is released may run there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import Context
from heapq import heappop, heappush
from time import perf_counter
from typing import Any

from taskloom.diagnostics.events import Callback, Record, RunInfo, active_callbacks
from taskloom.graph.compile import CALL, LIST_OF, LOAD, MAKE, PLAIN, PUSH, REFS, VALUE, Plan, Spec
from taskloom.local.frames import note_callback, note_task

__all__ = ["ABANDONED", "DONE", "WANTED_ELSEWHERE", "Run", "evaluate", "function_name", "make", "name_of", "work"]


class _NoLock:
    """For a run that only one thread works on."""

    def acquire(self) -> None: ...

    def release(self) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *exc_info: object) -> None: ...


class Run:
    """One call of ``get`` under way.

    Attributes:
        plan: the compiled graph; not changed.
        values: id -> value; an item is None again once nothing needs it.
        waiting: id -> how many of its inputs are not there yet.
        uses: id -> how many uses of its value are still to come.
        cursor: place in the order up to which all was taken or passed over.
        late: heap of places behind the cursor that have become ready.
        ready: how many tasks are ready and not taken.
        left: how many tasks have not ended.
        error: what ended the run before its time, and the key of the task that raised it.
    """

    __slots__ = (
        "abandoned",
        "active",
        "callbacks",
        "context",
        "cursor",
        "error",
        "failed_key",
        "help",
        "info",
        "late",
        "left",
        "lock",
        "plan",
        "positions",
        "posttask",
        "pretask",
        "ready",
        "shared",
        "stopped",
        "tickets",
        "uses",
        "values",
        "waiting",
        "workers",
    )

    def __init__(self, plan: Plan, backend: str, workers: int, callbacks: Any = None, lock: Any = None) -> None:
        self.plan = plan
        self.values: list[Any] = [None] * len(plan)
        self.waiting = [len(needed) for needed in plan.deps]
        self.uses = plan.uses.copy()
        self.cursor = 0
        self.late: list[int] = []
        self.ready = self.waiting.count(0)
        self.left = len(plan)
        # Where threads share the run: an RLock, since a thread that was interrupted has to know whether it holds it.
        self.lock: Any = _NoLock() if lock is None else lock
        self.positions: list[int] = plan.positions()
        self.error: BaseException | None = None
        self.failed_key: Any = None
        self.stopped = False  # no further task is taken
        self.abandoned = False  # nobody waits for the threads in work() any more
        self.workers = workers
        self.active = 0  # threads in work()
        self.tickets = 0  # threads that were asked to come and have not come yet
        self.help: Callable[[], None] | None = None  # gets one more thread; called without the lock, counted in tickets
        self.shared = False  # whether the threads are those of other runs too
        self.context: Context | None = None
        self.info = RunInfo(backend, len(plan), workers)
        self.callbacks = active_callbacks(callbacks)
        self.pretask = _overridden(self.callbacks, "pretask")
        self.posttask = _overridden(self.callbacks, "posttask")

    def start(self) -> None:
        """Tell the callbacks. If one fails, those that have been told hear that the run is over."""
        for n, callback in enumerate(self.callbacks):
            try:
                callback.start(self.info)
            except BaseException as error:
                self.callbacks = self.callbacks[:n]
                self.finish(error)
                raise

    def fail(self, key: Any, error: BaseException) -> None:
        """End the run with an error; the first one counts. The caller holds the lock."""
        if self.error is None:
            self.error = error
            self.failed_key = key
        self.stopped = True

    def finish(self, error: BaseException | None) -> None:
        """Tell the callbacks, all of them, that the run is over; the first error of theirs is raised."""
        raised: BaseException | None = None
        for callback in self.callbacks:
            try:
                callback.finish(self.info, error)
            except BaseException as exc:
                raised = exc if raised is None else raised
        if raised is not None and error is None:
            raise raised

    def outcome(self) -> Any:
        """What the caller gets when the run is over: its results; or what a task raised is raised, with a note."""
        if self.error is not None:
            if self.failed_key is not None:
                note_task(self.error, self.failed_key)
            raise self.error
        return self.plan.results(self.values)

    def forget(self) -> None:
        """Let go of everything, since threads, tickets and tracebacks may know the run for a long time yet.

        A thread that comes late finds a run that is stopped; one whose task goes on finds that nobody wants its value.
        """
        with self.lock:
            self.stopped = True
            values = self.values.copy()
            self.values.clear()  # in place: threads in work() have the same list
        values.clear()  # without the lock: this may run the users' code
        self.plan = _NOTHING
        self.error = self.help = self.context = None
        self.callbacks = []


_NOTHING = Plan()


def _overridden(callbacks: list[Callback], name: str) -> list[Callable[..., None]]:
    default = getattr(Callback, name)
    return [getattr(callback, name) for callback in callbacks if getattr(type(callback), name, None) is not default]


# How a thread leaves work().
DONE = 0  # nothing could be taken
WANTED_ELSEWHERE = 1  # and a ticket is counted for the thread that is to come in its place
ABANDONED = 2  # its task had been given up, and the thread with it


def work(run: Run, elsewhere: Callable[[Run, float], bool] | None = None) -> int:
    """Hand in a ticket, and run tasks of a run until none can be taken.

    Errors do not leave it: they are in ``run.error``.

    Args:
        elsewhere: whether this thread is needed more by another run, given the time at which it came here; asked only
            while the run is ``shared``.

    Returns:
        ``DONE``, ``WANTED_ELSEWHERE`` or ``ABANDONED``.
    """
    plan: Any = run.plan
    tasks, specs, deps, dependents, order = plan.tasks, plan.specs, plan.deps, plan.dependents, plan.order
    values: Any = run.values
    waiting, uses, late, positions = run.waiting, run.uses, run.late, run.positions
    acquire, release = run.lock.acquire, run.lock.release
    watched = bool(run.pretask or run.posttask)
    help_wanted = run.help
    value: Any = None
    since = 0.0 if elsewhere is None else perf_counter()
    joined = gone = False
    left = DONE
    i = -1

    try:
        acquire()
        run.tickets -= 1
        if run.stopped or not run.ready or run.active >= run.workers:
            release()
            return DONE
        run.active += 1
        joined = True
        while not run.stopped:
            # Book the task that has just run (the lock is held).
            if i >= 0:
                values[i] = value
                value = None
                ready = run.ready
                followers = dependents[i]
                if followers is not None:
                    if type(followers) is int:
                        count = waiting[followers] = waiting[followers] - 1
                        if not count:
                            ready += 1
                            if positions[followers] < run.cursor:
                                heappush(late, positions[followers])
                    else:
                        for f in followers:
                            count = waiting[f] = waiting[f] - 1
                            if not count:
                                ready += 1
                                if positions[f] < run.cursor:
                                    heappush(late, positions[f])
                for d in deps[i]:
                    count = uses[d] = uses[d] - 1
                    if not count:
                        values[d] = None
                run.left -= 1
            else:
                ready = run.ready

            # Take the next.
            if not ready:
                run.ready = 0
                break
            if run.shared and elsewhere is not None and elsewhere(run, since):
                run.ready = ready
                gone = True
                break
            if late:
                i = order[heappop(late)]
            else:
                cursor = run.cursor
                i = order[cursor]
                while waiting[i]:
                    cursor += 1
                    i = order[cursor]
                run.cursor = cursor + 1
            ready -= 1
            run.ready = ready
            if ready and help_wanted is not None and run.active + run.tickets < run.workers:
                run.tickets += 1
                release()
                help_wanted()
                if run.stopped:  # by now: an executor may run at once what it is given
                    acquire()
                    break
            else:
                release()

            # Run it.
            try:
                if watched:
                    value = _watched(run, i)
                else:
                    spec = specs[i]
                    if spec == 0:  # PLAIN
                        task = tasks[i]
                        value = task[0](*task[1:])
                    elif spec == 1:  # REFS
                        value = tasks[i][0](*[values[d] for d in deps[i]])
                    elif spec == 2:  # VALUE
                        value = tasks[i]
                    else:
                        value = evaluate(spec, values)
            except BaseException as error:
                acquire()
                if not run.stopped:
                    run.error = error
                    run.failed_key = plan.keys[i]
                    run.stopped = True
                break
            acquire()

        # Leave (the lock is held).
        run.active -= 1
        joined = False
        if run.abandoned:
            left = ABANDONED
        elif gone and run.active + run.tickets < run.workers:
            run.tickets += 1
            left = WANTED_ELSEWHERE
        release()
    except BaseException as error:
        # Not a task's: a Ctrl-C between two of them, no memory or stack for our own calls.
        try:
            release()
        except RuntimeError:  # it was not held
            pass
        acquire()
        left = DONE
        if joined:
            run.active -= 1
            left = ABANDONED if run.abandoned else DONE
        if not run.stopped:
            run.error = error
            run.stopped = True
        release()
    # A traceback that somebody keeps has this frame in it, under the task's (`f_back`).
    plan = tasks = specs = deps = dependents = order = values = value = task = None
    return left


def _watched(run: Run, i: int) -> Any:
    """Run one task and tell the callbacks of it."""
    plan = run.plan
    key = plan.keys[i]
    tell: Any = None
    try:
        for tell in run.pretask:
            tell(key)
    except BaseException as error:
        note_callback(error, name_of(tell), key)
        raise
    start = perf_counter()
    value = make(plan.tasks[i], plan.specs[i], plan.deps[i], run.values)
    stop = perf_counter()
    if run.posttask and not run.stopped:
        record = Record(key, function_name(plan, i), start, stop, threading.current_thread().name)
        try:
            for tell in run.posttask:
                tell(key, record)
        except BaseException as error:
            note_callback(error, name_of(tell), key)
            raise
    return value


def make(task: Any, spec: Spec, deps: tuple[int, ...], values: Any) -> Any:
    """The value of one task; see :mod:`taskloom.graph.compile` for the four forms.

    Args:
        values: list or dict, id -> value; has all of ``deps``.
    """
    if spec == PLAIN:
        return task[0](*task[1:])
    if spec == REFS:
        return task[0](*[values[d] for d in deps])
    if spec == VALUE:
        return task
    return evaluate(spec, values)  # type: ignore[arg-type]


def evaluate(program: tuple[tuple[int, Any], ...], values: Any) -> Any:
    """Run a program of :mod:`taskloom.graph.compile` on a stack and return what it leaves there."""
    stack: list[Any] = []
    push = stack.append
    for step, operand in program:
        if step == LOAD:
            push(values[operand])
        elif step == PUSH:
            push(operand)
        elif step == CALL:
            function, count = operand
            if count:
                args = stack[-count:]
                del stack[-count:]
                push(function(*args))
            else:
                push(function())
        elif step == LIST_OF:
            push([values[i] for i in operand])
        elif step == MAKE:
            args = stack[len(stack) - operand :]
            del stack[len(stack) - operand :]
            push(args)
        else:  # RUN
            node, keys, ids = operand
            push(node({key: values[i] for key, i in zip(keys, ids, strict=True)}))
    return stack[0]


def function_name(plan: Plan, i: int) -> str:
    """What people call the function of a task: for profiles and messages."""
    spec = plan.specs[i]
    if spec == VALUE:
        return "literal"
    task = plan.tasks[i]
    if type(task) is tuple and task:
        return name_of(task[0])
    if type(task) is list:
        return "list"
    return name_of(getattr(task, "func", task))


def name_of(function: Any) -> str:
    """A readable name for any callable: partials and methods by what they wrap, objects by their type."""
    for _ in range(8):
        inner = getattr(function, "func", None)
        if inner is None or not callable(inner):
            break
        function = inner
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__
