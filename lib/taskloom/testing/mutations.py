"""Rules of the machines, broken on purpose: whether the simulation would notice.

Each of :data:`MUTATIONS` breaks one rule in all machines of the process while it is in force. A rule whose breaking no seed
finds is one that nobody guards.

>>> find(BY_NAME["a release is forgotten"])[0] < 100
True
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from taskloom.core.client import ClientMachine
from taskloom.core.messages import KEEP, PIN, WISH, Adopted, Fetched, ForgetFunctions
from taskloom.core.scheduler.machine import Scheduler
from taskloom.core.scheduler.outbox import Outbox
from taskloom.core.scheduler.placing import Placing
from taskloom.core.scheduler.spreading import Spreading
from taskloom.core.scheduler.state import DONE, SENT, SLOT
from taskloom.core.worker import WorkerMachine
from taskloom.testing.cluster import QUICK, TROUBLES, Profile, SimulatedCluster, SimulationError

__all__ = ["BY_NAME", "MUTATIONS", "Mutation", "find"]


class Mutation(NamedTuple):
    """A rule that is broken.

    Attributes:
        name: what is done wrong.
        owner: the class that it is done in.
        method: which of its methods is another one; ``make`` makes that of the right one.
        troubles: what goes wrong in the clusters that are to notice; where it takes a rare meeting, only what leads to it.
    """

    name: str
    owner: type
    method: str
    make: Callable[[Callable[..., Any]], Callable[..., Any]]
    troubles: tuple[str, ...] = tuple(TROUBLES)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Break the rule for a while."""
        with replaced(self.owner, self.method, self.make):
            yield


@contextmanager
def replaced(owner: type, method: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Have a class, or that of its bases which has the method, do something else for a while."""
    owner = next(base for base in owner.__mro__ if method in base.__dict__)
    right = owner.__dict__[method]
    setattr(owner, method, staticmethod(make(right.__func__)) if isinstance(right, staticmethod) else make(right))
    try:
        yield
    finally:
        setattr(owner, method, right)


def find(mutation: Mutation, seeds: range = range(1000), profile: Profile = QUICK) -> tuple[int, str]:
    """The first seed that notices that a rule is broken, and what it says; -1 and nothing where none does."""
    with mutation.in_force():
        for seed in seeds:
            try:
                SimulatedCluster(seed, profile=profile, troubles=mutation.troubles).run()
            except SimulationError as error:
                return seed, str(error).split("\n", 1)[0].split(": ", 1)[1]
    return -1, ""


# --- how each is done wrong


def _nothing(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *args: None


def _empty(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *args: []


def _nowhere(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *args: -1


def _always(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: True


def _without(owner: type, method: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The same, but another method does nothing in the meantime."""

    def make(right: Callable[..., Any]) -> Callable[..., Any]:
        def wrong(self: Any, *args: Any) -> Any:
            with replaced(owner, method, _nothing):
                return right(self, *args)

        return wrong

    return make


def _grant_twice(right: Callable[..., Any]) -> Callable[..., Any]:
    def send(self: Placing, *args: Any) -> None:
        right(self, *args)
        self.grant -= 1

    return send


def _accept_stale(right: Callable[..., Any]) -> Callable[..., Any]:
    def report(self: Scheduler, worker: Any, message: Any) -> None:
        tasks = self.tasks
        for tid in message.tids:
            slot = tid & SLOT
            if slot < len(tasks.state) and tasks.state[slot] == SENT:
                right(self, worker, _part(message, tid)._replace(grant=tasks.grant[slot]))
        right(self, worker, message)

    return report


def _part(message: Any, tid: int) -> Any:
    """What a Report says of one task that is done."""
    n = message.tids.index(tid)
    columns = {name: getattr(message, name)[n : n + 1] for name in ("tids", "sizes", "seconds", "results")}
    return message._replace(**columns, failed=(), errors=())


def _accept_stale_copies(right: Callable[..., Any]) -> Callable[..., Any]:
    def fetched(self: Scheduler, worker: Any, message: Fetched) -> None:
        right(self, worker, message)
        tasks = self.tasks
        for slot in map(tasks.slot_of, message.tids):
            if slot >= 0 and tasks.state[slot] == DONE and worker.number not in tasks.holders(slot):
                tasks.copies.setdefault(slot, {})[worker.number] = True
                worker.held.append(slot)
                worker.holds += 1
                worker.nbytes += tasks.nbytes[slot]

    return fetched


def _surely(right: Callable[..., Any]) -> Callable[..., Any]:
    def send(self: Placing, worker: Any, slots: list[int]) -> None:
        right(self, worker, slots)
        for slot in slots:
            for d in self.tasks.deps[slot]:
                copies = self.tasks.copies.get(d, {})
                if self.tasks.state[d] == DONE and copies.get(worker.number) is False:
                    copies[worker.number] = True
                    worker.held.append(d)
                    worker.holds += 1
                    worker.nbytes += self.tasks.nbytes[d]

    return send


def _keep_waiters(right: Callable[..., Any]) -> Callable[..., Any]:
    def remove(self: WorkerMachine, task: Any) -> None:
        waiters = {tid: list(waiting) for tid, waiting in self.waiters.items()}
        right(self, task)
        self.waiters = waiters

    return remove


def _silent_unask(right: Callable[..., Any]) -> Callable[..., Any]:
    def unask(self: WorkerMachine, tid: int) -> None:
        self.asked.pop(tid, None)

    return unask


def _no_grace(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, incarnation=0, grace=0.0: right(self, incarnation, 0.0)


def _no_pins(right: Callable[..., Any]) -> Callable[..., Any]:
    def submit(self: ClientMachine, functions: Any, args: Any, deps: Any, wanted: bytes, *more: Any) -> Any:
        return right(self, functions, args, deps, bytes(flag & ~PIN for flag in wanted), *more)

    return submit


def _no_pins_again(right: Callable[..., Any]) -> Callable[..., Any]:
    def connected(self: ClientMachine) -> Any:
        pinned, self._pinned = self._pinned, {}
        messages = right(self)
        self._pinned = pinned
        return messages

    return connected


def _keep_resources(right: Callable[..., Any]) -> Callable[..., Any]:
    def take_off(self: Scheduler, slot: int, worker: Any) -> None:
        free = dict(worker.free)
        right(self, slot, worker)
        worker.free = free

    return take_off


def _blame(all_of_them: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def make(right: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, slot, worker, blamed, words: right(self, slot, worker, all_of_them, words)

    return make


def _retired_at_once(right: Callable[..., Any]) -> Callable[..., Any]:
    def evacuate(self: Scheduler, worker: Any) -> None:
        held, worker.held = worker.held, []
        right(self, worker)
        worker.held = held

    return evacuate


def _stays_in_word_only(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, number: number not in self._retired


def _stays_too_late(right: Callable[..., Any]) -> Callable[..., Any]:
    def unretire(self: Scheduler, number: int) -> Any:
        self._retired.discard(number)
        return right(self, number)

    return unretire


def _same_number(right: Callable[..., Any]) -> Callable[..., Any]:
    def came(self: Scheduler, uuid: bytes) -> int:
        known = [client.number for client in self.clients.values() if client.uuid == uuid]
        return known[0] if known else right(self, uuid)

    return came


def _no_askers(right: Callable[..., Any]) -> Callable[..., Any]:
    def arrived(self: WorkerMachine, tid: int, *more: Any) -> None:
        self.askers.pop(tid, None)
        right(self, tid, *more)

    return arrived


def _keep_askers(right: Callable[..., Any]) -> Callable[..., Any]:
    def disconnected(self: WorkerMachine, *withdrawn: Any) -> Any:
        askers = {tid: list(found) for tid, found in self.askers.items()}
        actions = right(self, *withdrawn)
        self.askers.update(askers)
        return actions

    return disconnected


def _no_running(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, message: right(self, Adopted(message.held, {}))


def _needed_or_not(right: Callable[..., Any]) -> Callable[..., Any]:
    def forget(self: ClientMachine, spare: int) -> Any:
        blocks, self._blocks = self._blocks, []
        messages = right(self, spare)
        self._blocks = blocks
        return messages

    return forget


def _back_without_functions(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, client, message: right(self, client, message._replace(functions=list(client.functions)))


def _wish_dropped(right: Callable[..., Any]) -> Callable[..., Any]:
    def resync(self: Scheduler, block: Any, message: Any) -> None:
        start = block.base + message.first - block.first
        for slot, wanted in enumerate(message.wanted, start):
            if wanted & KEEP and self.tasks.wanted[slot] & WISH:
                self._set_wanted(slot, wanted)
        right(self, block, message)

    return resync


def _keep_functions(right: Callable[..., Any]) -> Callable[..., Any]:
    def worker(self: Outbox, number: int, message: Any) -> None:
        if type(message) is not ForgetFunctions:
            right(self, number, message)

    return worker


def _sleep_when_paused(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: None if self.paused else right(self)


_MOVING = (
    "worker retires",
    "all workers but one retire",
    "worker loses scheduler",
    "worker comes back twice",
    "scheduler is deaf",
)

MUTATIONS = (
    Mutation("a release is forgotten", Scheduler, "_release", _nothing),
    Mutation("a grant is given twice", Placing, "send", _grant_twice),
    Mutation("stale reports count", Scheduler, "_report", _accept_stale, ("cancels", "retries", "scheduler is deaf")),
    Mutation("stale copies count", Scheduler, "_fetched", _accept_stale_copies, _MOVING),
    Mutation("no taking back when an input is lost", Scheduler, "_unplaced", _without(Placing, "take_back")),
    Mutation("who cannot get an input is left alone", Scheduler, "_missing", _nothing),
    Mutation("nobody is told that he is not asked any more", WorkerMachine, "_unask", _silent_unask),
    Mutation("copies on their way count as there", Placing, "send", _surely),
    Mutation("waiters are not cleared", WorkerMachine, "_remove", _keep_waiters),
    Mutation("who asked before the value was there gets none", WorkerMachine, "_arrived", _no_askers),
    Mutation(
        "a dead worker's values stay where they were", Scheduler, "worker_left", _without(Scheduler, "_copy_lost")
    ),
    Mutation("a dead worker's tasks are not sent again", Scheduler, "_died_in", _nothing),
    Mutation("all that a dead worker was sent is blamed", Scheduler, "_died_in", _blame(True)),
    Mutation("nobody is blamed for a worker's death", Scheduler, "_died_in", _blame(False)),
    Mutation("no grace after a restart", Scheduler, "__init__", _no_grace),
    Mutation("a worker that comes back says nothing", WorkerMachine, "connected", _empty),
    Mutation("what nobody claims is kept", Scheduler, "_end_grace", _nothing),
    Mutation("what runs is not adopted by the worker", WorkerMachine, "_adopted", _no_running),
    Mutation("nothing is pinned", ClientMachine, "submit", _no_pins),
    Mutation("a client that comes back pins nothing", ClientMachine, "connected", _no_pins_again),
    Mutation("pins never end", Scheduler, "_unpin", _nothing),
    Mutation("what a client has dropped while it was away is kept", Scheduler, "_back", _nothing),
    Mutation(
        "what a client that comes back has not heard of yet is forgotten",
        Scheduler,
        "_resync",
        _wish_dropped,
        ("cancels", "retries", "client comes back twice"),
    ),
    Mutation("an old connection speaks for a client that came back", Scheduler, "client_came", _same_number),
    Mutation("askers outlive their scheduler", WorkerMachine, "disconnected", _keep_askers),
    Mutation("workers keep what is dropped", WorkerMachine, "_drop", _nothing),
    Mutation("workers go on with what is cancelled", WorkerMachine, "_cancel", _nothing),
    Mutation("an error does not spread", Scheduler, "_spread", _nothing),
    Mutation("resources are not given back", Scheduler, "_take_off", _keep_resources),
    Mutation("restrictions to workers do not count", Placing, "may_run", _always),
    Mutation("a worker that is to go goes with its values", Scheduler, "_evacuate", _retired_at_once),
    Mutation("a worker that is to stay after all goes", Scheduler, "unretire", _stays_in_word_only),
    Mutation("a worker that was told to go is to stay", Scheduler, "unretire", _stays_too_late),
    Mutation(
        "a worker that stays gets nothing that waited for it",
        Scheduler,
        "unretire",
        _without(Placing, "came"),
        ("retirement is called off",),
    ),
    Mutation(
        "a worker that stays does not get what is everywhere",
        Scheduler,
        "unretire",
        _without(Spreading, "came"),
        ("retirement is called off",),
    ),
    Mutation("a worker that is paused runs nothing", WorkerMachine, "_begin", _sleep_when_paused),
    Mutation("nobody is asked for data that is lost", Outbox, "resend", _nothing),
    Mutation("a client that is asked for data does not answer", ClientMachine, "to_send", _empty),
    Mutation("data that is sent again is not taken", Scheduler, "_resent", _nothing),
    Mutation("who could not fetch what is to be everywhere is left alone", Spreading, "missing", _nothing),
    Mutation("whoever fetched it from one that lost it is left alone", Spreading, "lost", _nothing),
    Mutation("who comes late does not get what is everywhere", Spreading, "came", _nothing),
    Mutation("nobody goes over what there is room for", Placing, "_exceeding", _nowhere),
    Mutation("slots are not given back", Scheduler, "_sweep", _nothing),
    Mutation("clients keep all functions", ClientMachine, "_forget_functions", _empty),
    Mutation("functions go while there are tasks of them", ClientMachine, "_forget_functions", _needed_or_not),
    Mutation("the scheduler keeps all functions", Scheduler, "_let_functions_go", _nothing),
    Mutation("functions that a client forgot while it was away are kept", Scheduler, "_back", _back_without_functions),
    Mutation("workers are not told which functions go", Outbox, "worker", _keep_functions),
)

BY_NAME = {mutation.name: mutation for mutation in MUTATIONS}
