"""The run state and the loop of the local schedulers.

A :class:`Run` is one call of ``get`` under way. :func:`work` is the loop: take the next task, run it, book it, until
nothing can be taken. The sync scheduler calls it once in the caller's thread; the threaded one calls it in several
threads at once, which share the run under one short lock. The multiprocessing scheduler takes and books tasks of the
same run state in blocks (see :mod:`taskloom.local.processes`).

Taking is cheap because the order is fixed: a cursor walks it, and passes over tasks that still wait; only those that
become ready behind the cursor go through a heap. So the ready task of the highest priority is always next, and with
one worker the heap stays empty.
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
from taskloom.local.frames import cut_frames

__all__ = ["Run", "evaluate", "function_name", "make", "name_of", "work"]


class _NoLock:
    """For a run that only one thread works on."""

    def acquire(self) -> None: ...

    def release(self) -> None: ...


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
        "active",
        "callbacks",
        "context",
        "crowded",
        "cursor",
        "error",
        "failed_key",
        "help",
        "info",
        "late",
        "left",
        "lock",
        "on_over",
        "plan",
        "positions",
        "posttask",
        "pretask",
        "ready",
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
        self.lock: Any = _NoLock() if lock is None else lock
        self.positions: list[int] = plan.positions()
        self.error: BaseException | None = None
        self.failed_key: Any = None
        self.stopped = False  # no further task is taken
        self.workers = workers
        self.active = 0  # threads in work()
        self.tickets = 0  # threads that were asked to come and have not come yet
        self.help: Callable[[], None] | None = None  # gets one more thread; called without the lock, counted in tickets
        self.crowded: Callable[[], bool] | None = None  # whether other runs want this run's threads
        self.on_over: Callable[[], None] | None = None  # called when nothing is left to take, maybe more than once
        self.context: Context | None = None
        self.info = RunInfo(backend, len(plan), workers)
        self.callbacks = active_callbacks(callbacks)
        self.pretask = _overridden(self.callbacks, "pretask")
        self.posttask = _overridden(self.callbacks, "posttask")

    def start(self) -> None:
        """Tell the callbacks."""
        for n, callback in enumerate(self.callbacks):
            try:
                callback.start(self.info)
            except BaseException:
                self.callbacks = self.callbacks[:n]
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
                raised = raised or exc
        if raised is not None and error is None:
            raise raised


def _overridden(callbacks: list[Callback], name: str) -> list[Callable[..., None]]:
    default = getattr(Callback, name)
    return [getattr(callback, name) for callback in callbacks if getattr(type(callback), name, None) is not default]


def work(run: Run) -> None:
    """Run tasks of a run until none can be taken; the calling thread has been counted in ``run.active``.

    Errors do not leave it: they are in ``run.error``.
    """
    plan = run.plan
    tasks, specs, deps, dependents, order = plan.tasks, plan.specs, plan.deps, plan.dependents, plan.order
    values, waiting, uses, late = run.values, run.waiting, run.uses, run.late
    positions = run.positions
    acquire, release = run.lock.acquire, run.lock.release
    watched = bool(run.pretask or run.posttask)
    help_wanted, crowded = run.help, run.crowded
    value: Any = None
    gone = False
    i = -1

    acquire()
    while True:
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
                    for f in followers:  # type: ignore[union-attr]
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
        if not ready or run.stopped:
            run.ready = ready
            break
        if crowded is not None and run.active > 1 and crowded():
            # Other runs want threads and this one has several: go there, and come back when it is this run's turn.
            run.ready = ready
            run.tickets += 1
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
                    value = evaluate(spec, values)  # type: ignore[arg-type]
        except BaseException as error:
            cut_frames(error)
            acquire()
            run.fail(plan.keys[i], error)
            break
        acquire()

    # Leave (the lock is held).
    run.active -= 1
    over = run.stopped or not run.left
    release()
    if gone:
        help_wanted()  # type: ignore[misc]  # a run that can be crowded can ask for help
    elif over and run.on_over is not None:
        run.on_over()


def _watched(run: Run, i: int) -> Any:
    """Run one task and tell the callbacks of it."""
    plan = run.plan
    key = plan.keys[i]
    for pretask in run.pretask:
        pretask(key)
    start = perf_counter()
    value = make(plan.tasks[i], plan.specs[i], plan.deps[i], run.values)
    stop = perf_counter()
    if run.posttask:
        record = Record(key, function_name(plan, i), start, stop, threading.current_thread().name)
        for posttask in run.posttask:
            posttask(key, record)
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
