"""What must hold in a scheduler between two batches of events, and the story of a task."""

from __future__ import annotations

from typing import Any

from taskloom.core.messages import KEEP
from taskloom.core.scheduler.machine import TRANSITIONS, Scheduler
from taskloom.core.scheduler.spreading import AT_ONCE
from taskloom.core.scheduler.state import ACTIVE, AWAY, DONE, ERRED, FREE, IDLE, NAMES, READY, SENT, WAITING

__all__ = ["CheckedScheduler", "InvariantError", "TransitionError", "story", "validate"]


class InvariantError(AssertionError):
    """The scheduler's state contradicts itself: a bug of ours."""


class TransitionError(AssertionError):
    """A task went from one state to another that it cannot go to from there: a bug of ours."""


class _States(bytearray):
    """The column of states, which lets only those transitions happen that are in the table.

    It is for tests: a look at the table costs as much as a tenth of all that a scheduler does for a task.
    """

    scheduler: CheckedScheduler

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(key) is int:
            pair = self[key], value
            if pair not in TRANSITIONS:
                lines = [f"slot {key} cannot go from {NAMES[pair[0]]} to {NAMES[value]}", *story(self.scheduler, key)]
                raise TransitionError("\n".join(lines))
            self.scheduler.transitions.add(pair)
        elif type(key) is slice:
            pairs = set(zip(self[key], value, strict=True)) - {(FREE, IDLE)}  # new tasks
            if not pairs <= TRANSITIONS.keys():
                raise TransitionError(f"slots {key.start} to {key.stop} cannot go {pairs - TRANSITIONS.keys()}")
            self.scheduler.transitions |= pairs
        super().__setitem__(key, value)


class CheckedScheduler(Scheduler):
    """A scheduler that raises a :class:`TransitionError`, with the task's story, at a transition that is not in the table.

    Attributes:
        transitions: those that have happened.
    """

    def __init__(self, incarnation: int = 0, grace: float = 0.0) -> None:
        super().__init__(incarnation, grace)
        self.transitions: set[tuple[int, int]] = set()
        states = _States()
        states.scheduler = self
        self.tasks.state = states


def validate(scheduler: Scheduler) -> None:
    """Check everything; it looks at every task, so it is for tests.

    Raises:
        InvariantError: says what is wrong with which task, with its story.
    """
    tasks, workers, placing = scheduler.tasks, scheduler.workers, scheduler.placing

    def require(condition: bool, slot: int, what: str) -> None:
        if not condition:
            raise InvariantError(
                f"slot {slot} ({NAMES[tasks.state[slot]]}): {what}\n" + "\n".join(story(scheduler, slot))
            )

    size = len(tasks.state)
    live = todo = runnable = 0
    active: dict[int, int] = {}
    functions = {}
    unmet: dict[object, int] = {}
    free = {slot for base, count in tasks.holes for slot in range(base, base + count)}
    sent: dict[int, set[int]] = {number: set() for number in workers}
    held: dict[int, set[int]] = {number: set() for number in workers}
    queued: dict[int, set[int]] = {}
    for number, worker in workers.items():
        entries = {
            entry & 0xFFFFFFFF
            for entry in worker.queue + worker.blocked + worker.heavy
            if placing._is_queued(worker, entry)
        }
        queued[number] = entries
    late = set()
    for entry in placing.late + placing.heavy:
        slot = entry & 0xFFFFFFFF
        if slot < size and tasks.owner[slot] is not None and tasks.priority(slot) == entry >> 32:
            late.add(slot)
    opened = {id(block) for _, _, block in placing.open}
    for slot in range(size):
        state = tasks.state[slot]
        if state == FREE:
            require(not tasks.deps[slot] and tasks.dependents[slot] is None, slot, "is free and linked")
            require(tasks.args[slot] is None and tasks.function[slot] is None, slot, "is free and keeps something")
            require(not tasks.uses[slot] and not tasks.wanted[slot], slot, "is free and needed")
            require(slot not in tasks.copies and slot not in tasks.errors, slot, "is free and keeps something aside")
            continue
        block = tasks.owner[slot]
        functions[id(tasks.function[slot])] = tasks.function[slot]
        require(slot not in free, slot, "is used, and counted as free")
        live += 1
        deps = tasks.deps[slot]
        followers = list(tasks.followers(slot))
        for d in deps:
            require(tasks.state[d] != FREE, slot, f"needs {d}, which is forgotten")
            require(slot in tasks.followers(d), slot, f"needs {d}, which does not know")
        for f in followers:
            require(slot in tasks.deps[f], slot, f"has the dependent {f}, which does not need it")
        uses = (0 < tasks.wanted[slot] < KEEP) + sum(tasks.state[f] in ACTIVE for f in followers)
        require(tasks.uses[slot] == uses, slot, f"is counted {tasks.uses[slot]} times as needed, and is {uses} times")
        require(
            not (tasks.wanted[slot] and block.client.number not in scheduler.clients), slot, "is wanted by nobody there"
        )
        if state in ACTIVE:
            undone = sum(tasks.state[d] != DONE for d in deps)
            unplaced = sum(tasks.state[d] not in (SENT, DONE) for d in deps) + (tasks.args[slot] is AWAY)
            require(state == WAITING or tasks.args[slot] is not AWAY, slot, "is to run, and its data is not here")
            require(
                tasks.undone[slot] == undone, slot, f"counts {tasks.undone[slot]} inputs undone, there are {undone}"
            )
            require(
                tasks.unplaced[slot] == unplaced, slot, f"counts {tasks.unplaced[slot]} unplaced, there are {unplaced}"
            )
            require(uses > 0, slot, "is needed by nobody")
            runnable += not undone
            active[id(tasks.function[slot])] = active.get(id(tasks.function[slot]), 0) + 1
            require(not any(tasks.state[d] in (IDLE, ERRED) for d in deps), slot, "has an input that will never come")
        if state in (WAITING, READY):
            todo += 1
            require(not tasks.grant[slot], slot, "was not sent and has a grant")
            require((state == READY) == (tasks.unplaced[slot] == 0), slot, "is ready or not, against its inputs")
        if state == READY:
            ahead = id(block) in opened and slot - block.base >= block.cursor
            aside = (slot in placing.stuck) + (slot in placing.parked)
            there = sum([ahead, slot in late and tasks.place[slot] < 0, aside])
            there += sum(slot in entries for entries in queued.values())
            require(there == 1, slot, f"is found in {there} places")
            if slot in placing.stuck:
                need = block.options.workers, block.resources
                unmet[need] = unmet.get(need, 0) + 1
        if state == SENT:
            require(tasks.grant[slot] > 0, slot, "was sent without a grant")
            require(tasks.place[slot] in workers, slot, "was sent to nobody there")
            require(slot in workers[tasks.place[slot]].sent, slot, "was sent to a worker that does not know")
            sent[tasks.place[slot]].add(slot)
            if tasks.unplaced[slot]:
                worker = workers[tasks.place[slot]]
                asked = slot in worker.taking or slot in worker.begun
                require(asked, slot, "was sent, its inputs are not on their way, and is not asked back")
        if state == DONE:
            require(uses > 0, slot, "is there and needed by nobody")
            for number in tasks.holders(slot):
                require(number in workers, slot, f"is on worker {number}, which is gone")
                require(slot in workers[number].held, slot, f"is on worker {number}, which does not know")
                held[number].add(slot)
            require(tasks.place[slot] not in tasks.copies.get(slot, {}), slot, "is a copy of itself")
            require(
                (tasks.args[slot] is AWAY) == block.data,
                slot,
                "is data of a client's that is kept here, or is none and is not",
            )
        if state == ERRED:
            require(slot in tasks.errors, slot, "has failed by nothing")
            require(bool(tasks.wanted[slot]) or tasks.dependents[slot] is not None, slot, "could be forgotten")
        if state == IDLE:
            require(not uses, slot, "is idle and needed")
            require(bool(tasks.wanted[slot]) or tasks.dependents[slot] is not None, slot, "could be forgotten")
            require(slot not in tasks.copies, slot, "is idle and has copies")
        if state != DONE:
            require(slot not in tasks.orders, slot, "is not there, and is to be copied")
        for number in tasks.copies.get(slot, ()):
            require(number in workers, slot, f"has a copy on worker {number}, which is gone")
    for slot, spread in scheduler.spreading.values.items():
        require(tasks.state[slot] == DONE, slot, "is not there, and is spread")
        holders, allowed = tasks.holders(slot), tasks.owner[slot].allowed
        for number, worker in workers.items():
            if worker.announced and not worker.retiring and (allowed is None or worker.name in allowed):
                found = (number in holders) + (number in spread.left) + (number in spread.asked)
                require(found > 0, slot, f"is to be everywhere, and worker {number} is forgotten")
        for number, giver in spread.asked.items():
            require(number in tasks.orders.get(slot, ()), slot, f"is fetched by worker {number} without an order")
            require(giver in holders, slot, f"is fetched by worker {number} from {giver}, which does not have it")
        for giver, count in spread.givers.items():
            require(giver in holders, slot, f"is given by worker {giver}, which does not have it")
            require(count == list(spread.asked.values()).count(giver), slot, f"counts {count} that get it from {giver}")
            require((giver in spread.free) == (count < AT_ONCE), slot, f"counts {giver} as free, or does not")
    if live != tasks.live:
        raise InvariantError(f"{live} tasks are there, {tasks.live} are counted")
    if todo != placing.todo:
        raise InvariantError(f"{todo} tasks are to be sent, {placing.todo} are counted")
    if runnable != placing.runnable:
        raise InvariantError(f"{runnable} tasks could run, {placing.runnable} are counted")
    if unmet != placing.unmet:
        raise InvariantError(f"{unmet} are what tasks need that nobody here has, {placing.unmet} are counted")
    for name, function in functions.items():
        if function is None or function.active != active.get(name, 0):
            raise InvariantError(
                f"{active.get(name, 0)} tasks of a function are active, {function and function.active} are counted"
            )
    for slot in placing.over:
        require(tasks.state[slot] == SENT, slot, "is over what there is room for, and is not under way")
    for number, worker in workers.items():
        if set(worker.sent) != sent[number]:
            raise InvariantError(f"{worker!r} was sent {sent[number]}, it counts {set(worker.sent)}")
        if worker.holds != len(held[number]):
            raise InvariantError(f"{worker!r} holds {len(held[number])} values, it counts {worker.holds}")
        total = sum(tasks.nbytes[slot] for slot in held[number])
        if worker.nbytes != total:
            raise InvariantError(f"{worker!r} holds {total} bytes, it counts {worker.nbytes}")
        data = {s for s in {*worker.sent, *queued[number]} if tasks.owner[s].data}
        if (
            not data <= set(worker.coming) <= {*worker.sent, *queued[number]}
            or abs(worker.due - sum(worker.coming.values())) > 1e-6
        ):
            raise InvariantError(f"{worker!r} is to get data {data}, it counts {worker.coming}, {worker.due} bytes")
        if abs(worker.load - sum(worker.sent.values())) > 1e-6:
            raise InvariantError(f"{worker!r} has {sum(worker.sent.values())} s to do, it counts {worker.load}")
        if not worker.taking | worker.begun <= set(worker.sent):
            raise InvariantError(f"{worker!r} is asked back what it does not have: {worker.taking - set(worker.sent)}")
        for resource, amount in worker.resources.items():
            unused = worker.free[resource]
            taken = sum(dict(tasks.owner[slot].resources).get(resource, 0) for slot in worker.sent)
            if abs(unused + taken - amount) > 1e-6:
                raise InvariantError(f"{worker!r} has {amount} {resource}, {taken} are taken and {unused} free")


def story(scheduler: Scheduler, slot: int) -> list[str]:
    """What the events that are still remembered say of a task, oldest first."""
    tasks = scheduler.tasks
    tid, counter, client = tasks.tid(slot), tasks.counter(slot), tasks.owner[slot].client.number
    return scheduler.stories.tell(tid, client, counter)
