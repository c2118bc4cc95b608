"""The scheduler: messages of clients and workers in, messages to them out.

::

    scheduler.client_came(uuid), .worker_came(...)      who is there
    scheduler.handle([(CLIENT, number, Submit(...)), (WORKER, number, Report(...)), ...], now) -> actions

Every change of a task's state is one of the methods that ``TRANSITIONS`` names: of this class and of those that it is put
together of, each of which takes in what belongs to one theme (see :mod:`taskloom.core.scheduler.steps`). Only
:mod:`taskloom.core.scheduler.placing` makes tasks SENT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from taskloom.core.messages import (
    WISH,
    Announce,
    Back,
    Cancel,
    Fetched,
    ForgetFunctions,
    Functions,
    GaveBack,
    Lost,
    Missing,
    Release,
    Report,
    Retry,
    Status,
    Submit,
    Want,
)
from taskloom.core.scheduler.outbox import Action
from taskloom.core.scheduler.reports import Reports
from taskloom.core.scheduler.requests import Requests
from taskloom.core.scheduler.retiring import Retiring
from taskloom.core.scheduler.state import DONE, ERRED, FREE, IDLE, READY, SENT, WAITING, Client, Worker
from taskloom.errors import ProtocolError

__all__ = ["CLIENT", "TRANSITIONS", "WORKER", "OffenceError", "Scheduler"]

CLIENT, WORKER = "client", "worker"

# (from, to) -> the method that does it, and when. What is not here does not happen: see checks.CheckedScheduler.
TRANSITIONS: dict[tuple[int, int], str] = {
    (IDLE, WAITING): "`_submit`, `_wake`: somebody needs it",
    (IDLE, READY): "`_submit`: the same, and its inputs are there or on their way",
    (
        WAITING,
        READY,
    ): "`_wake`, `_unsend`, `Placing.placed`: its last input is on its way; `_resent`: its client has sent it again",
    (READY, WAITING): "`_unplaced`: an input is not on its way any more",
    (READY, SENT): "`Placing.choose`: a worker gets it; `_adopt`: a worker came back that is at it",
    (WAITING, SENT): "`_adopt`: the same, and an input is missing",
    (SENT, WAITING): "`_unsend`: given back, its worker is gone, or it raised and is tried again",
    (SENT, DONE): "`_done`: a worker has the value; `_adopt`: another one came back with it",
    (WAITING, DONE): "`_adopt`",
    (READY, DONE): "`_adopt`",
    (DONE, IDLE): "`_let_go`: nobody needs it; `_lost`: no worker has it any more, and whoever needs it wakes it",
    (WAITING, IDLE): "`_let_go`",
    (READY, IDLE): "`_let_go`",
    (SENT, IDLE): "`_let_go`",
    (WAITING, ERRED): "`_fail`: it was cancelled; `_spread`: an input failed",
    (READY, ERRED): "`_fail`, `_spread`",
    (SENT, ERRED): "`_fail`: it raised, workers died of it, or it was cancelled; `_spread`",
    (IDLE, ERRED): "`_fail`: it was cancelled, needs what nobody knows, or is lost data of a client that is gone",
    (ERRED, IDLE): "`_retry`",
    (DONE, FREE): "`_release`: nobody needs it, and nobody can any more",
    (IDLE, FREE): "`_forget`: nobody can need it any more",
    (ERRED, FREE): "`_forget`",
}


class OffenceError(ProtocolError):
    """A peer said what it cannot say.

    Attributes:
        number: of the peer.
    """

    def __init__(self, words: str, number: int) -> None:
        super().__init__(words)
        self.number = number


class Scheduler(Requests, Reports, Retiring):
    """The scheduler's machine.

    Args:
        incarnation: greater than that of any scheduler that these workers have heard before; see the stale rule in
            :mod:`taskloom.core.messages`.
        grace: seconds from the first batch of events on in which nothing is sent to workers: after a restart those that
            come back say what they have, and clients what they want.
    """

    def __init__(self, incarnation: int = 0, grace: float = 0.0) -> None:
        super().__init__(incarnation, grace)
        self._of_clients: dict[type, Callable[[Any, Any], None]] = {
            Submit: self._submit,
            Functions: self._functions_came,
            ForgetFunctions: self._functions_go,
            Back: self._back,
            Release: self._release,
            Want: self._want,
            Cancel: self._cancel,
            Retry: self._retry,
        }
        self._of_workers: dict[type, Callable[[Any, Any], None]] = {
            Report: self._report,
            GaveBack: self._gave_back,
            Fetched: self._fetched,
            Missing: self._missing,
            Status: self._status,
            Announce: self._announced,
        }

    # --- who is there

    def client_came(self, uuid: bytes) -> int:
        """A client has connected, or come back; its number, which is that of the connection.

        What still comes from, or is said of, an earlier connection of the client's, is of nobody.
        """
        self._numbers += 1
        number = self._numbers
        for client in self.clients.values():
            if client.uuid == uuid:
                del self.clients[client.number]
                self.out.forget_client(client.number)
                client.number = number
                break
        else:
            client = Client(number, uuid)
        self.clients[number] = client
        return number

    def client_left(self, number: int) -> None:
        """A client has gone for good: nobody wants what it wanted. If it has come back since, it is another number's."""
        client = self.clients.pop(number, None)
        if client is None:
            return
        self.out.forget_client(number)
        for block in list(client.blocks):
            for slot in range(block.base, block.base + block.count):
                if self.tasks.state[slot] != FREE:
                    self._set_wanted(slot, 0)
        self._sweep()
        self._let_functions_go([(client, n) for n in client.functions])

    def cancel_all(self, words: str) -> None:
        """All that clients want is cancelled, and all values are dropped, those that are done too."""
        tasks = self.tasks
        for client in self.clients.values():
            for block in list(client.blocks):
                for slot in range(block.base, block.base + block.count):
                    wanted = 0 if tasks.state[slot] == FREE else tasks.wanted[slot]
                    if wanted & WISH:
                        counter = block.first + slot - block.base
                        self.out.erred(client.number, counter, counter, Lost("cancelled", words))
                    if wanted:
                        self._set_wanted(slot, 0)
        self._sweep()

    def worker_came(
        self,
        name: str,
        threads: int = 1,
        limit: int = 0,
        resources: dict[str, float] | None = None,
        before: int = -1,
    ) -> int:
        """A worker has connected; its number.

        Args:
            name: what users call it.
            threads: how many tasks it runs at a time.
            limit: bytes of memory that it may use; 0: no limit.
            resources: name -> amount.
            before: its number before it came back; -1: none. What still comes from there is of nobody.
        """
        if before in self.workers:
            self.worker_left(before, (), "it came back")
        self._numbers += 1
        worker = self.workers[self._numbers] = Worker(self._numbers, name, threads, limit, resources or {})
        worker.idle_since = self.now
        self.placing.came(worker)
        return worker.number

    def worker_left(
        self, number: int, running: Iterable[int] | None = None, words: str = "its connection broke"
    ) -> None:
        """A worker is gone, with all that it had.

        Args:
            running: tids of the tasks that it ran when it died, where somebody knows; else those of its last Status.
            words: how it ended.
        """
        worker = self.workers[number]
        self.counts.lost += 1
        worker.retiring = True  # so that nothing new goes there while what it had is seen to
        blamed = worker.running if running is None else set(running)
        self.placing.emptied(worker)
        tasks = self.tasks
        for slot in list(worker.sent):
            if tasks.grant[slot] and tasks.place[slot] == number and tasks.state[slot] == SENT:
                # one that was blamed too often, if too late for that worker, is not to take any more of them with it
                worn = slot in tasks.tries and tasks.tries[slot][1] < 0
                self._died_in(slot, worker, worn or tasks.tid(slot) in blamed, words)
        for slot in dict.fromkeys(worker.held):
            if self._has(worker, slot):
                self._copy_lost(slot, number)
        for copies in [tasks.copies[slot] for slot in list(tasks.copies) if number in tasks.copies[slot]]:
            copies.pop(number, None)
        for slot in [slot for slot, orders in tasks.orders.items() if number in orders]:
            self._recall(slot, number)
        for other in self.workers.values():
            for slot in [slot for slot, target in other.copying.items() if target == number]:
                del other.copying[slot]
        for key in list(self._unclaimed):
            self._unclaimed[key] = [entry for entry in self._unclaimed[key] if entry[0] != number]
        self.spreading.left(number)
        del self.workers[number]
        self._retired.discard(number)
        self.out.forget_worker(number)
        self.placing.left(number)
        self._sweep()

    def blame(self, running: Iterable[int]) -> None:
        """What a worker that is gone already was running when it died has become known.

        Args:
            running: tids of those tasks. They are tried again already: another death less is left to each.
        """
        tasks = self.tasks
        for tid in running:
            slot = tasks.slot_of(tid)
            if slot >= 0 and tasks.state[slot] in (WAITING, READY, SENT):
                self._tries(slot)[1] -= 1

    def _died_in(self, slot: int, worker: Worker, blamed: bool, words: str) -> None:
        """A worker died that had been sent a task."""
        if blamed:
            deaths = self._tries(slot)
            deaths[1] -= 1
            if deaths[1] < 0:
                count = self.tasks.owner[slot].options.deaths + 1
                self._fail(
                    slot,
                    Lost(
                        "died",
                        f"{count} worker{'s' if count > 1 else ''} died while running it, the last one {worker.name!r}: {words}",
                    ),
                )
                self.counts.failed += 1
                return
            self.counts.retried += 1
        self._unsend(slot, worker)

    # --- the loop

    def handle(self, events: Sequence[tuple[str, int, Any]], now: float) -> list[Action]:
        """Take in messages; what is to be said.

        Args:
            events: (CLIENT or WORKER, number, message) each; what comes from peers that are not there any more is dropped.
            now: seconds, of any clock that goes forward.

        Raises:
            OffenceError: a peer said what it cannot say. What it said before counts, and what others said; what is to be said
                comes with the next call.
        """
        self.now = self.placing.now = now
        if self._grace is not None:
            self._grace_until = now + self._grace
            self._grace = None
        problem: OffenceError | None = None
        for kind, number, message in events:
            peer: Any = (self.clients if kind == CLIENT else self.workers).get(number)
            if peer is None:
                continue
            self.stories.note(now, True, kind, number, message)
            take_in = (self._of_clients if kind == CLIENT else self._of_workers).get(type(message))
            try:
                if take_in is None:
                    raise ProtocolError(f"{kind} {number} says {type(message).__name__}, which no {kind} says")
                take_in(peer, message)
            except ProtocolError as error:
                problem = problem or OffenceError(str(error), number)
            self._sweep()
        if self._grace_until is not None and now >= self._grace_until:
            self._grace_until = None
            self._end_grace()
        if self._grace_until is None:
            if self.placing.parked and now >= self.placing.recheck:
                self.placing.unpark()
            if self.placing.surprised:
                self.placing.replan()
            self.placing.fill()
            self.placing.balance()
            if self.spreading.values:
                self.spreading.go_on()
        for worker in list(self.workers.values()) if self._retiring else ():
            if worker.retiring:
                self._evacuate(worker)
        if problem is not None:
            raise problem
        actions = self.out.take()
        for kind, number, message in actions:
            self.stories.note(now, False, kind, number, message)
        return actions

    def deadline(self) -> float | None:
        """When :meth:`handle` is to be called again even if nothing happens; None: then not."""
        later = [self._grace_until, self.placing.deadline(self._retiring or bool(self.spreading.waiting()))]
        return min([time for time in later if time is not None], default=None)
