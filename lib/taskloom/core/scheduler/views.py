"""What others may see of a scheduler: counts, wishes, workers that are to go, tasks. Nothing here changes anything.

A view of the whole looks at counters, workers and functions, never at all tasks; only :func:`counts` counts the bytes of one
column, which takes a millisecond for a million tasks. No view shows arguments, results or what a task has raised.

**What a cluster wishes.** As many workers as there is work for: the seconds of all work that is known, by what its functions took
so far, are to be done in about ``target_seconds``; but no more threads than tasks that could run at a time; and enough memory for
the values that are held. Work that no worker here may do (:class:`Unmet`) is counted apart, as more workers like these do
not help it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any, NamedTuple

from taskloom.core.messages import KEEP, PIN, WISH, Lost
from taskloom.core.scheduler.machine import Scheduler
from taskloom.core.scheduler.state import FREE, NAMES, Worker

__all__ = [
    "ASSUMED",
    "TARGET",
    "Retirement",
    "Spare",
    "Unmet",
    "Wish",
    "WorkerView",
    "counts",
    "expendable",
    "find_task",
    "retirement",
    "some_tasks",
    "task",
    "tasks_between",
    "wish",
    "worker_view",
]

TARGET = 5.0  # seconds in which what there is to do is to be done
ASSUMED = 0.5  # seconds that a task of a function that has never run counts as
FULL = 0.6  # of the memory limits: so much values may take; above, workers write them to disk
_SHOWN = 100  # inputs of a task that are shown


class WorkerView(NamedTuple):
    """A worker.

    Attributes:
        number: the scheduler's number of it; ``name``: what users call it.
        state: "running", "paused" (its memory is full), "retiring" (it is to go) or "retired" (it may go).
        threads, memory_limit (bytes; 0: none), resources: what it has.
        resources_free: what of these no task takes that it was sent.
        sent: tasks that it was sent and has not reported; ``queued``: those that wait here to be sent to it.
        seconds: what these are likely to take, one after the other.
        values, nbytes: what it holds.
        idle_seconds: since it last had something to do; None: it has.
    """

    number: int
    name: str
    state: str
    threads: int
    memory_limit: int
    resources: dict[str, float]
    resources_free: dict[str, float]
    sent: int
    queued: int
    seconds: float
    values: int
    nbytes: int
    idle_seconds: float | None


class Unmet(NamedTuple):
    """Tasks that could run, and that no worker here may run.

    Attributes:
        workers: names of those that may; empty: all that have the resources.
        resources: name -> amount that one takes.
        tasks: how many.
        wanted: how many workers that may run them the cluster could use.
    """

    workers: tuple[str, ...]
    resources: dict[str, float]
    tasks: int
    wanted: int


class Spare(NamedTuple):
    """A worker that could go: it has nothing to do.

    Attributes:
        name, number: which.
        idle_seconds: since when.
        nbytes: what would have to move to others first.
    """

    name: str
    number: int
    idle_seconds: float
    nbytes: int


class Wish(NamedTuple):
    """How many workers the cluster could use now, and why.

    Attributes:
        workers: so many, like those that are here, beside what ``unmet`` wants.
        why: "work"; "memory": the values need so many; "settling": those of an earlier scheduler may still come back, so not
            fewer than are here; "nothing": there is nothing to do.
        present: workers that are here, without those that are to go; ``retiring``: those.
        threads: of those present.
        runnable: tasks that could run at a time.
        seconds: what all work that is there is likely to take on one thread; ``tasks``: how many tasks that is, of which
            ``unmeasured`` are of functions that have never run.
        nbytes: bytes of values; ``memory_limit``: of those present, bytes; 0: there is none.
        unmet: see there.
        spare: who could go now, the first one first: who holds least, then who has been idle longest. No more than there
            are too many.
        settled: whether all are here that were here before.
    """

    workers: int
    why: str
    present: int
    retiring: int
    threads: int
    runnable: int
    seconds: float
    tasks: int
    unmeasured: int
    nbytes: int
    memory_limit: int
    unmet: tuple[Unmet, ...]
    spare: tuple[Spare, ...]
    settled: bool

    @property
    def essence(self) -> tuple[Any, ...]:
        """What somebody acts on; the same as long as there is nothing new to do."""
        unmet = tuple((need.workers, tuple(need.resources.items()), need.wanted) for need in self.unmet)
        spare = tuple(worker.number for worker in self.spare)
        return self.workers, self.why, self.present, self.retiring, unmet, spare, self.settled


class Retirement(NamedTuple):
    """How far a worker is that is to go.

    Attributes:
        number, worker: which.
        state: "moving" or "ready".
        tasks: those that it still has.
        values, nbytes: what it holds that is not elsewhere yet.
        targets: names of the workers that fetch it.
    """

    number: int
    worker: str
    state: str
    tasks: int
    values: int
    nbytes: int
    targets: tuple[str, ...]


# --- workers


def _is_idle(worker: Worker) -> bool:
    return not (worker.sent or worker.queue or worker.blocked)


def worker_view(scheduler: Scheduler, worker: Worker, now: float) -> WorkerView:
    """What there is to say of a worker.

    Args:
        now: of the same clock as the scheduler's events.
    """
    if scheduler.is_retired(worker.number):
        state = "retired"
    elif worker.retiring:
        state = "retiring"
    else:
        state = "paused" if worker.paused else "running"
    return WorkerView(
        worker.number,
        worker.name,
        state,
        worker.threads,
        worker.limit,
        dict(worker.resources),
        dict(worker.free),
        len(worker.sent),
        len(worker.queue) + len(worker.blocked),
        worker.load + worker.waiting_load,
        worker.holds,
        worker.nbytes,
        max(0.0, now - worker.idle_since) if _is_idle(worker) else None,
    )


def _left(scheduler: Scheduler, worker: Worker) -> tuple[int, int]:
    """How many values of a worker that is to go are not elsewhere, and their bytes."""
    nbytes = scheduler.tasks.nbytes
    left = [
        nbytes[slot] for slot in dict.fromkeys(worker.held) if slot not in worker.moved and scheduler._has(worker, slot)
    ]
    return len(left), sum(left)


def retirement(scheduler: Scheduler, worker: Worker) -> Retirement:
    """How far a worker is that is to go. It looks at each value that the worker holds."""
    ready = scheduler.is_retired(worker.number)
    values, nbytes = (0, 0) if ready else _left(scheduler, worker)
    workers = scheduler.workers
    targets = {workers[number].name for number in worker.copying.values() if number in workers}
    return Retirement(
        worker.number,
        worker.name,
        "ready" if ready else "moving",
        len(worker.sent),
        values,
        nbytes,
        tuple(sorted(targets)),
    )


def expendable(scheduler: Scheduler) -> list[Worker]:
    """Who can go most easily, first: who has nothing to do, then who holds least, then who is idle longest."""
    here = [worker for worker in scheduler.workers.values() if not worker.retiring]
    return sorted(here, key=lambda worker: (not _is_idle(worker), worker.nbytes, worker.idle_since, worker.number))


# --- what the cluster wishes


def wish(
    scheduler: Scheduler,
    now: float,
    target_seconds: float = TARGET,
    threads: int | None = None,
    assumed: float = ASSUMED,
) -> Wish:
    """How many workers the cluster could use now.

    Args:
        now: of the same clock as the scheduler's events.
        target_seconds: seconds in which what there is to do is to be done.
        threads: how many a worker has that may come; None: as many as those here, on average, or one.
        assumed: seconds that a task of a function that has never run counts as.
    """
    placing = scheduler.placing
    here = [worker for worker in scheduler.workers.values() if not worker.retiring]
    going = [worker for worker in scheduler.workers.values() if worker.retiring]

    seconds = 0.0
    active = unmeasured = 0
    for client in scheduler.clients.values():
        for function in client.functions.values():
            if function.active:
                active += function.active
                if function.count:
                    seconds += function.active * function.seconds
                else:
                    unmeasured += function.active
    seconds += unmeasured * assumed

    have = sum(worker.threads for worker in here)
    each = threads or (have / len(here) if here else 1.0)
    average = seconds / active if active else 0.0

    def needed(tasks: int, parallel: int) -> int:
        """Workers for so many tasks of which so many can run at a time."""
        if not tasks:
            return 0
        return ceil(max(1, min(parallel, ceil(tasks * average / target_seconds))) / each)

    unmet = []
    stuck = 0
    for (names, resources), tasks in placing.unmet.items():
        stuck += tasks
        wanted = needed(tasks, tasks)
        unmet.append(Unmet(names, dict(resources), tasks, min(wanted, len(names)) if names else wanted))
    by_work = needed(active - stuck, placing.runnable - stuck)

    nbytes = sum(worker.nbytes for worker in here)
    holds = sum(worker.holds for worker in here)
    for worker in going:
        values, left = (0, 0) if scheduler.is_retired(worker.number) else _left(scheduler, worker)
        holds += values
        nbytes += left
    limits = [worker.limit for worker in here if worker.limit]
    by_memory = 1 if holds else 0
    if limits:
        by_memory = max(by_memory, ceil(nbytes / (FULL * sum(limits) / len(limits))))
    if here and active > stuck and all(worker.paused for worker in here):
        by_memory = max(by_memory, len(here) + 1)  # memory that we know nothing of

    workers = max(by_work, by_memory)
    why = "nothing" if not workers else "memory" if by_memory > by_work else "work"
    if not scheduler.settled and workers < len(here):
        workers, why = len(here), "settling"
    idle = [worker for worker in expendable(scheduler) if _is_idle(worker)]
    spare = [
        Spare(worker.name, worker.number, max(0.0, now - worker.idle_since), worker.nbytes)
        for worker in idle[: max(0, len(here) - workers)]
    ]
    return Wish(
        workers,
        why,
        len(here),
        len(going),
        have,
        placing.runnable,
        seconds,
        active,
        unmeasured,
        nbytes,
        sum(limits),
        tuple(unmet),
        tuple(spare),
        scheduler.settled,
    )


# --- tasks


def counts(scheduler: Scheduler) -> dict[str, int]:
    """How many tasks are in each state. It looks at one byte for each task."""
    state = scheduler.tasks.state
    return {name: state.count(number) for number, name in enumerate(NAMES) if number != FREE}


def find_task(scheduler: Scheduler, client: str, counter: int) -> int:
    """The slot of a task; -1: there is none, or it is forgotten.

    Args:
        client: its client's UUID in hexadecimal, or the scheduler's number of it.
        counter: its client's number of it.
    """
    for found in scheduler.clients.values():
        if client in (found.uuid.hex(), str(found.number)):
            return scheduler._slot(found, counter)
    return -1


def task(scheduler: Scheduler, slot: int) -> dict[str, Any]:
    """What there is to say of a task, as plain values; of its inputs the first hundred."""
    tasks, workers = scheduler.tasks, scheduler.workers
    block = tasks.owner[slot]
    function = tasks.function[slot]
    place = workers.get(tasks.place[slot])
    wanted = tasks.wanted[slot]
    _, culprit, error = tasks.errors.get(slot, (-1, -1, None))
    tries = tasks.tries.get(slot) or (block.options.retries, block.options.deaths)
    deps = tasks.deps[slot]
    copies = tasks.copies.get(slot, {})
    followers = tasks.followers(slot)
    return {
        "client": block.client.uuid.hex(),
        "counter": tasks.counter(slot),
        "tid": tasks.tid(slot),
        "state": NAMES[tasks.state[slot]],
        "function": None if function is None else function.number,
        "priority": tasks.priority(slot),
        "worker": None if place is None else place.name,
        "copies": [workers[number].name for number, sure in copies.items() if sure and number in workers],
        "grant": tasks.grant[slot],
        "nbytes": tasks.nbytes[slot],
        "wanted": [word for word, bit in (("wish", WISH), ("pin", PIN), ("keep", KEEP)) if wanted & bit],
        "uses": tasks.uses[slot],
        "inputs": len(deps),
        "inputs_not_done": tasks.undone[slot],
        "inputs_not_sent": tasks.unplaced[slot],
        "input_counters": [tasks.counter(d) for d in deps[:_SHOWN]],
        "dependents": len(followers),  # type: ignore[arg-type]  # a tuple, list or dict
        "retries_left": tries[0],
        "deaths_left": tries[1],
        "culprit": culprit if culprit >= 0 else None,
        # what a task has raised is its user's
        "error": f"{error.kind}: {error.words}" if isinstance(error, Lost) else None if error is None else "raised",
        "may_run": {"workers": list(block.options.workers), "resources": dict(block.resources)},
    }


def tasks_between(scheduler: Scheduler, start: int, stop: int) -> list[dict[str, Any]]:
    """Those of the slots from ``start`` on and before ``stop`` that hold a task."""
    state = scheduler.tasks.state
    return [task(scheduler, slot) for slot in range(start, min(stop, len(state))) if state[slot] != FREE]


def some_tasks(scheduler: Scheduler, most: int) -> Iterator[dict[str, Any]]:
    """The first so many tasks of each state."""
    state = scheduler.tasks.state
    for number in range(len(NAMES)):
        slot = -1
        for _ in range(most if number != FREE else 0):
            slot = state.find(number, slot + 1)
            if slot < 0:
                break
            yield task(scheduler, slot)
