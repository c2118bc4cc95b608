"""Why a task does not end: what it waits for, in words for the user whose task it is. Nothing here changes anything.

What is said is true of the moment in which it is asked. Only a task that no worker here may run is **stuck**: it may wait for
ever, so its user is told without asking, see :func:`stuck`. All others go on by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from taskloom.core.scheduler.machine import Scheduler
from taskloom.core.scheduler.state import AWAY, DONE, ERRED, FREE, IDLE, READY, SENT, WAITING, Block, Client, Worker

__all__ = ["Reason", "Stuck", "stuck", "why"]

_STEPS = 10_000  # tasks that are looked at for one answer
_NAMES = 5  # so many names of workers are said


class Reason(NamedTuple):
    """Why a task does not end.

    Attributes:
        counter: which task, as its client counts; of several that were asked for, the one with the most to say.
        words: why, as a sentence about "it".
        culprit: the counter of the task that it waits for in the end; its own where it waits for none.
        of_culprit: why that one does not end; "" where it is the same task.
        is_stuck: whether no worker here may run the culprit.
    """

    counter: int
    words: str
    culprit: int
    of_culprit: str
    is_stuck: bool


class Stuck(NamedTuple):
    """Tasks of a client that no worker here may run.

    Attributes:
        counter: of one of them.
        words: why, as a sentence about "it".
        tasks: how many there are of the same kind, of all clients.
        workers, resources: the kind: what was said with them.
    """

    counter: int
    words: str
    tasks: int
    workers: tuple[str, ...]
    resources: tuple[tuple[str, float], ...]


def why(scheduler: Scheduler, client: Client, counters: Iterable[int]) -> Reason | None:
    """Why the first of these tasks of a client has not ended; rather one that is stuck, if there is one.

    Returns:
        None where there is nothing to ask about.
    """
    first: Reason | None = None
    steps = _STEPS
    seen: set[int] = set()
    for counter in counters:
        slot = scheduler._slot(client, counter)
        last, looked = _last(scheduler, slot, steps, seen)
        steps -= looked
        is_stuck = last >= 0 and _is_stuck(scheduler, last)
        if is_stuck or first is None:
            other = last not in (slot, -1)
            found = Reason(
                counter,
                _words(scheduler, slot),
                scheduler.tasks.counter(last) if other else counter,
                _words(scheduler, last) if other else "",
                is_stuck,
            )
            if is_stuck:
                return found
            first = found
        if steps <= 0:
            break
    return first


def stuck(scheduler: Scheduler, client: Client) -> list[Stuck] | None:
    """What a client is to be told without asking.

    Returns:
        One for each kind of tasks that no worker here may run; None where the client has nothing that is to be run.
    """
    if not any(function.active for function in client.functions.values()):
        return None
    if not scheduler.settled:
        return []
    tasks = scheduler.tasks
    placing = scheduler.placing
    found: dict[object, Stuck] = {}
    if not scheduler.workers:
        for block in client.blocks:
            slot = tasks.state.find(READY, block.base, block.base + block.count)
            if slot >= 0:
                return [Stuck(tasks.counter(slot), _nobody(scheduler, block), placing.todo, (), ())]
    for slot in placing.stuck:
        block = tasks.owner[slot]
        if block.client is client:
            need = block.options.workers, block.resources
            if need not in found:
                words = _nobody(scheduler, block)
                found[need] = Stuck(tasks.counter(slot), words, placing.unmet[need], *need)
                if len(found) == len(placing.unmet):
                    break
    return list(found.values())


def _is_stuck(scheduler: Scheduler, slot: int) -> bool:
    if scheduler.tasks.state[slot] != READY or not scheduler.settled:
        return False
    return slot in scheduler.placing.stuck or not _here(scheduler)


def _last(scheduler: Scheduler, slot: int, steps: int, seen: set[int]) -> tuple[int, int]:
    """The task that one waits for in the end: one that is stuck if there is one, else the first that waits for no other.

    Returns:
        It, and how many tasks were looked at; ``seen`` are not looked at again.
    """
    if slot < 0:
        return -1, 1
    last = -1
    looked = 0
    stack = [slot]
    while stack and looked < steps:
        at = stack.pop()
        if at in seen:
            continue
        seen.add(at)
        looked += 1
        inputs = list(_missing(scheduler, at))
        if inputs:
            stack.extend(reversed(inputs))
        elif _is_stuck(scheduler, at):
            return at, looked
        elif last < 0:
            last = at
    return (slot if last < 0 else last), max(looked, 1)


def _missing(scheduler: Scheduler, slot: int) -> Iterator[int]:
    """The inputs of a task that are still to come."""
    tasks = scheduler.tasks
    if tasks.state[slot] in (WAITING, READY, SENT) and tasks.undone[slot]:
        for d in tasks.deps[slot]:
            if tasks.state[d] != DONE:
                yield d


def _words(scheduler: Scheduler, slot: int) -> str:
    """What a task does, or waits for."""
    tasks, placing = scheduler.tasks, scheduler.placing
    state = FREE if slot < 0 else tasks.state[slot]
    if state == FREE:
        return "the scheduler does not know it, or has forgotten it"
    if state == DONE:
        worker = scheduler.workers.get(tasks.place[slot])
        return "it is done" if worker is None else f"it is done, and its value is at {worker.name}"
    if state == ERRED:
        return "it has failed"
    if state == IDLE:
        return "nobody wants it"
    count = tasks.undone[slot]
    if count:
        return f"it waits for {count} other task{'s' if count > 1 else ''}"
    if state == SENT:
        worker = scheduler.workers[tasks.place[slot]]
        if tasks.tid(slot) in worker.running:
            return f"it runs on {worker.name}"
        others = len(worker.sent) - 1
        if others < worker.threads:
            return f"it was sent to {worker.name}, where it runs or is about to"
        if others == 1:
            return f"it was sent to {worker.name}, where another one runs or waits too"
        return f"it was sent to {worker.name}, where {others} others run or wait too"
    if state == WAITING:
        if tasks.args[slot] is AWAY:
            return "it is data whose worker is gone, and which this client is to send once more"
        return "it waits for its inputs to be sent on their way"
    block = tasks.owner[slot]
    if not scheduler.settled:
        return "the scheduler has just started anew, and waits for those that may come back"
    if _is_stuck(scheduler, slot):
        return _nobody(scheduler, block)
    if slot in placing.parked:
        return "no worker that may run it can reach the workers that have its inputs just now"
    able = [worker for worker in _here(scheduler) if placing.may_run(worker, block)]
    if able and all(worker.paused for worker in able):
        return f"the memory of {_some(able)}, where it may run, is full"
    place = scheduler.workers.get(tasks.place[slot])
    if block.resources and place is not None and not placing._fits(place, slot):
        return f"it waits for {_amounts(block.resources)} of {place.name}, which other tasks take"
    return f"it waits for its turn: {placing.todo} tasks are to be sent to {_workers(len(able))} that may run it"


# --- nobody may run it


def _here(scheduler: Scheduler) -> list[Worker]:
    return [worker for worker in scheduler.workers.values() if not worker.retiring]


def _nobody(scheduler: Scheduler, block: Block) -> str:
    """Why no worker here may run the tasks of a submission."""
    here = _here(scheduler)
    if not here:
        going = len(scheduler.workers)
        return (
            f"no workers are connected but {going} that {'is' if going == 1 else 'are'} to go"
            if going
            else ("no workers are connected")
        )
    there = f"{_workers(len(here))} {'is' if len(here) == 1 else 'are'} connected"
    able = here
    whose = ""
    if block.allowed is not None:
        able = [worker for worker in here if worker.name in block.allowed]
        names = ", ".join(sorted(block.allowed))
        if not able:
            named = "no worker of this name is" if len(block.allowed) == 1 else "no worker of these names is"
            return f"{named} connected: {names}; {there}: {_some(here)}"
        whose = f" of those that may run it ({_some(able)})"
    for name, amount in block.resources:
        most = max([worker.resources.get(name, 0.0) for worker in able], default=0.0)
        if most >= amount:
            continue
        if most:
            return f"no worker{whose} has {amount:g} of the resource {name}: the most that one has is {most:g}; {there}"
        return f"no worker{whose} has the resource {name}; {there}, {_offers(here)}"
    return f"no worker{whose} has {_amounts(block.resources)} together; {there}, {_offers(here)}"


def _offers(workers: list[Worker]) -> str:
    most: dict[str, float] = {}
    for worker in workers:
        for name, amount in worker.resources.items():
            most[name] = max(amount, most.get(name, 0.0))
    who = "it offers" if len(workers) == 1 else "they offer"
    return f"{who} {_amounts(sorted(most.items()))}" if most else f"{who} no resources"


def _amounts(resources: Iterable[tuple[str, float]]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources)


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


def _some(workers: list[Worker]) -> str:
    names = sorted(worker.name for worker in workers)
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {more} more" if more > 0 else "")
