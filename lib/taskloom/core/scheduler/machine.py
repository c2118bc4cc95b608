"""The scheduler: messages of clients and workers in, messages to them out.

::

    scheduler.client_came(uuid), .worker_came(...)      who is there
    scheduler.handle([(CLIENT, number, Submit(...)), (WORKER, number, Report(...)), ...], now) -> actions

Every change of a task's state is one of the methods below whose name says which, and each is listed in ``TRANSITIONS``. Only
:mod:`taskloom.core.scheduler.placing` makes tasks SENT.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from taskloom.core.messages import (
    KEEP,
    PIN,
    WISH,
    Announce,
    Back,
    Cancel,
    CancelTasks,
    Drop,
    Fetched,
    ForgetFunctions,
    Functions,
    GaveBack,
    Lost,
    Missing,
    Release,
    Report,
    Retired,
    Retry,
    Status,
    Submit,
    Want,
)
from taskloom.core.scheduler.outbox import Action, Outbox
from taskloom.core.scheduler.placing import HORIZON, Placing
from taskloom.core.scheduler.spreading import Spreading
from taskloom.core.scheduler.state import (
    AWAY,
    DATA,
    DONE,
    ERRED,
    FREE,
    IDLE,
    PRIORITIES,
    READY,
    SENT,
    SLOT,
    WAITING,
    Block,
    Client,
    Counts,
    Function,
    Tasks,
    Worker,
    size_of,
)
from taskloom.core.scheduler.stories import Stories
from taskloom.errors import ProtocolError

__all__ = ["CLIENT", "TRANSITIONS", "WORKER", "OffenceError", "Scheduler"]

CLIENT, WORKER = "client", "worker"
MANY = 16  # so many tasks side by side are let go of column by column
# whether what a client says of a task makes it needed: a wish or a pin does, unless it has failed and is only kept
_NEEDS = bytes([bool(flags & (WISH | PIN)) and not flags & KEEP for flags in range(256)])
_ACTIVE = frozenset((WAITING, READY, SENT))

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


class Scheduler:
    """The scheduler's machine.

    Args:
        incarnation: greater than that of any scheduler that these workers have heard before; see the stale rule in
            :mod:`taskloom.core.messages`.
        grace: seconds from the first batch of events on in which nothing is sent to workers: after a restart those that
            come back say what they have, and clients what they want.
    """

    def __init__(self, incarnation: int = 0, grace: float = 0.0) -> None:
        self.tasks = Tasks()
        self.workers: dict[int, Worker] = {}
        self.clients: dict[int, Client] = {}
        self.out = Outbox()
        self.placing = Placing(self.tasks, self.workers, self.out, incarnation << 28)
        self.spreading = Spreading(self.tasks, self.workers, self.placing, self.out)
        self.counts = Counts()
        self.now = 0.0
        self.incarnation = incarnation
        self._numbers = incarnation << 20  # workers know each other by their numbers, also across a restart
        self._functions = 0
        self._going: list[
            tuple[Client, int]
        ] = []  # functions that clients have let go of, and of which there are tasks
        self._ranks = 0
        self._grace: float | None = grace or None
        self._grace_until: float | None = None
        # (client UUID, counter) -> (worker, size or -1 while it runs, its number for it): announced, and not claimed yet
        self._unclaimed: dict[tuple[bytes, int], list[tuple[int, int, int]]] = {}
        self._retiring = False  # somebody is
        self._retired: set[int] = set()  # that have been told so
        self._dead: list[Block] = []  # all of whose tasks are forgotten
        self.stories = Stories()
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

    def _tries(self, slot: int) -> list[int]:
        found = self.tasks.tries.get(slot)
        if found is None:
            options = self.tasks.owner[slot].options
            found = self.tasks.tries[slot] = [options.retries, options.deaths]
        return found

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

    # --- clients

    def _functions_came(self, client: Client, message: Functions) -> None:
        for number, payload in zip(message.numbers, message.payloads, strict=True):
            if number not in client.functions:  # else it was away, and says all that it has
                self._functions += 1
                client.functions[number] = Function(self._functions, payload)

    def _functions_go(self, client: Client, message: ForgetFunctions) -> None:
        self._let_functions_go([(client, number) for number in message.numbers])

    def _let_functions_go(self, going: Iterable[tuple[Client, int]]) -> None:
        """Forget functions, and have workers forget them, as soon as there is no task of them any more."""
        gone: set[int] = set()
        for client, number in going:
            function = client.functions.get(number)
            if function is None:
                continue
            if function.uses:
                self._going.append((client, number))
            else:
                del client.functions[number]
                gone.add(function.number)
        for worker in self.workers.values() if gone else ():
            known = worker.functions & gone
            if known:
                worker.functions -= known
                self.out.worker(worker.number, ForgetFunctions(sorted(known)))

    def _submit(self, client: Client, message: Submit) -> None:
        tasks = self.tasks
        count = len(message.functions)
        if not count == len(message.args) == len(message.deps) == len(message.wanted):
            raise ProtocolError(f"the columns of a Submit from client {client.number} are not of one length")
        if not count:
            self._unpin(client, message.unpin)
            return
        known = client.block_of(message.first)
        if known is not None:
            self._resync(known, message)
            return
        functions = client.functions
        try:
            made = [functions[n] for n in message.functions]
        except KeyError as error:
            raise ProtocolError(f"client {client.number} has not sent its function {error}, and submits it") from None
        base, high = tasks.allocate(count)
        options = message.options
        rank = self._ranks - (max(-PRIORITIES, min(PRIORITIES, options.priority)) << 44) - DATA * options.data
        self._ranks += count
        block = Block(client, message.first, base, count, high, rank, options)
        insort(client.blocks, block, key=lambda block: block.first)
        end = base + count
        tasks.owner[base:end] = [block] * count
        tasks.args[base:end] = message.args
        tasks.function[base:end] = made
        tasks.wanted[base:end] = message.wanted
        for function in made:
            function.uses += 1
        all_deps, link, first = tasks.deps, tasks.link, message.first
        unknown: list[int] = []
        for slot, needed in enumerate(message.deps, base):
            if needed:
                found = []
                for counter in needed:
                    d = base + counter - first if counter >= first else self._slot(client, counter)
                    if d < 0 or counter - first >= slot - base:
                        if not unknown or unknown[-1] != slot:
                            unknown.append(slot)
                        continue
                    found.append(d)
                    link(d, slot)
                all_deps[slot] = tuple(found)
        # From the last to the first, so that a task is known to be needed before its inputs are looked at.
        uses, wanted, state = tasks.uses, tasks.wanted, tasks.state
        outside: list[int] = []
        todo = runnable = 0
        for slot in range(end - 1, base - 1, -1):
            if _NEEDS[wanted[slot]]:
                uses[slot] += 1
            if not uses[slot]:
                continue
            missing = 0
            for d in all_deps[slot]:
                uses[d] += 1
                kind = state[d]
                if d < base or d >= end:
                    if kind == IDLE or kind == ERRED:
                        outside.append(d)
                    elif kind == SENT or kind == DONE:
                        if kind == SENT:
                            missing += 1 << 32
                        continue
                missing += (1 << 32) + 1
            tasks.undone[slot] = missing >> 32
            tasks.unplaced[slot] = missing & SLOT
            state[slot] = WAITING if missing & SLOT else READY
            todo += 1
            made[slot - base].active += 1
            if not missing:
                runnable += 1
        self.placing.todo += todo
        self.placing.runnable += runnable
        if block.everywhere:
            self.placing.broad = True
        if block.data:
            for slot, args in enumerate(message.args, base):
                tasks.nbytes[slot] = size_of(args)
            self.placing.spread([slot for slot in range(base, end) if state[slot] == READY], block)
            block.cursor = count
        elif block.bound:
            for slot in range(base, end):
                if state[slot] == READY:
                    self.placing.ready(slot)
            block.cursor = count
        else:
            self.placing.opened(block)
        for d in outside:
            if state[d] == ERRED:
                self._spread(d)
            elif state[d] == IDLE and uses[d]:
                self._wake(d)
        for slot in unknown:
            if state[slot] == ERRED:  # by another input, which may be tried again; this one may not
                state[slot] = IDLE
            self._fail(slot, Lost("unknown", "it needs a task that the scheduler does not know, or has forgotten"))
        if self._unclaimed:
            self._claim(block)
        self._unpin(client, message.unpin)
        for slot in range(end - 1, base - 1, -1):
            if state[slot] == IDLE or state[slot] == ERRED:
                self._forget(slot)

    def _back(self, client: Client, message: Back) -> None:
        firsts = set(message.firsts)
        for block in list(client.blocks):
            if block.first not in firsts:
                for slot in range(block.base, block.base + block.count):
                    if self.tasks.state[slot] != FREE:
                        self._set_wanted(slot, 0)
        left = set(message.functions)
        self._let_functions_go([(client, number) for number in client.functions if number not in left])

    def _resync(self, block: Block, message: Submit) -> None:
        """What a client that was away wants of a submission that is known; data of it that we have asked for."""
        tasks = self.tasks
        start = block.base + message.first - block.first
        for slot, wanted in enumerate(message.wanted[: block.base + block.count - start], start):
            if tasks.state[slot] == FREE:
                if wanted & WISH:
                    counter = block.first + slot - block.base
                    error = Lost("unknown", "the scheduler has forgotten it")
                    self.out.erred(block.client.number, counter, counter, error)
                continue
            if wanted & KEEP and tasks.wanted[slot] & WISH:
                # it may have been tried again since, and what was said of that crosses this: it is wanted as before
                wanted = wanted & ~KEEP | WISH
            if (
                wanted != PIN or tasks.wanted[slot]
            ):  # what is needed by a later one that is here too has no use for a pin
                self._set_wanted(slot, wanted)
            if wanted & WISH and tasks.state[slot] == DONE:
                self._tell_done(slot)
            elif wanted & WISH and tasks.state[slot] == ERRED:
                self._tell_erred(slot)
            if tasks.args[slot] is AWAY and tasks.state[slot] == WAITING:
                self._resent(slot, message.args[slot - start])
        self._unpin(block.client, message.unpin)

    def _resent(self, slot: int, args: Any) -> None:
        """WAITING -> READY: the client has sent data once more that no worker has any more."""
        tasks = self.tasks
        tasks.args[slot] = args
        tasks.nbytes[slot] = size_of(args)
        tasks.unplaced[slot] -= 1
        if not tasks.unplaced[slot]:
            tasks.state[slot] = READY
            self.placing.ready(slot)

    def _unpin(self, client: Client, counters: tuple[int, int]) -> None:
        """The pins of a graph that is here in whole end."""
        wanted = self.tasks.wanted
        first, end = counters
        for block in list(client.blocks) if first < end else ():
            for slot in range(
                block.base + max(0, first - block.first), block.base + min(block.count, end - block.first)
            ):
                if wanted[slot] & PIN:
                    self._set_wanted(slot, wanted[slot] & ~PIN)

    def _set_wanted(self, slot: int, wanted: int) -> None:
        """A client wants a value from now on, or not any more."""
        tasks = self.tasks
        old, tasks.wanted[slot] = tasks.wanted[slot], wanted
        if _NEEDS[old] == _NEEDS[wanted]:
            if not wanted:
                self._forget(slot)
            return
        if _NEEDS[wanted]:
            tasks.uses[slot] += 1
            if tasks.state[slot] == IDLE:
                self._wake(slot)
        else:
            uses = tasks.uses[slot] = tasks.uses[slot] - 1
            if not uses:
                self._let_go(slot)

    def _slot(self, client: Client, counter: int) -> int:
        """The slot of a client's task; -1 where it is forgotten."""
        block = client.block_of(counter)
        if block is None:
            return -1
        slot = block.base + counter - block.first
        return -1 if self.tasks.state[slot] == FREE else slot

    def _release(self, client: Client, message: Release) -> None:
        """DONE -> FREE where nothing is made of a value; else what :meth:`_set_wanted` does.

        A client that has what it wanted releases it in thousands, so the plain case is written out, and so are many plain ones
        side by side.
        """
        tasks = self.tasks
        counters = message.counters
        state, wanted, uses, deps, dependents = tasks.state, tasks.wanted, tasks.uses, tasks.deps, tasks.dependents
        place, copies, orders = tasks.place, tasks.copies, tasks.orders
        dropped: dict[int, list[int]] = {}
        first = end = shift = high = -1
        block: Block | None = None
        at = skip = -1
        for counter in counters:
            at += 1
            if at < skip:
                continue
            if not first <= counter < end:
                block = client.block_of(counter)
                if block is None:
                    first = end = -1
                    continue
                first, end, shift, high = block.first, block.first + block.count, block.base - block.first, block.high
                count = self._release_span(block, counters, at, dropped)
                if count:
                    skip = at + count
                    continue
            assert block is not None
            slot = counter + shift
            want = wanted[slot]
            if not want & (WISH | KEEP) or state[slot] == FREE:
                continue
            if (
                state[slot] != DONE
                or uses[slot] != 1
                or want != WISH
                or deps[slot]
                or dependents[slot] is not None
                or block.special
                or slot in copies
                or slot in orders
            ):
                self._set_wanted(slot, want & PIN)
                continue
            number = place[slot]
            if number in dropped:
                dropped[number].append(high + slot)
            else:
                dropped[number] = [high + slot]
            wanted[slot] = uses[slot] = 0
            worker = self.workers[number]
            worker.holds -= 1
            worker.nbytes -= tasks.nbytes[slot]
            tasks.nbytes[slot] = 0
            place[slot] = -1
            tasks.args[slot] = None
            tasks.function[slot].uses -= 1  # type: ignore[union-attr]
            tasks.function[slot] = None
            state[slot] = FREE
            tasks.live -= 1
            block.live -= 1
            if not block.live:
                self._dead.append(block)
        for number, tids in dropped.items():
            self.out.worker(number, Drop(tids))
            self._tidy(self.workers[number])

    def _release_span(self, block: Block, counters: Sequence[int], at: int, dropped: dict[int, list[int]]) -> int:
        """DONE -> FREE, of plain ones that stand side by side in a submission and in the message; column by column.

        Args:
            at: place of the first one in the message.
            dropped: number of a worker -> tids that it is to drop.

        Returns:
            How many they are; 0: it is better to go one by one.
        """
        tasks = self.tasks
        start = counters[at]
        count = min(len(counters) - at, block.first + block.count - start)
        if count < MANY or counters[at + count - 1] - start != count - 1:
            return 0
        if (
            block.special
            or tasks.copies
            or tasks.orders
            or list(counters[at : at + count]) != [*range(start, start + count)]
        ):
            return 0
        base = block.base + start - block.first
        span = slice(base, base + count)
        if not (
            tasks.state[span].count(DONE)
            == tasks.wanted[span].count(WISH)
            == tasks.uses[span].count(1)
            == tasks.deps[span].count(())
            == tasks.dependents[span].count(None)
            == count
        ):
            return 0
        freed: dict[int, int] = {}  # worker -> bytes; ``before``: how many it had to drop
        before: dict[int, int] = {}
        for tid, number, nbytes in zip(
            range(block.high + base, block.high + base + count), tasks.place[span], tasks.nbytes[span], strict=True
        ):
            if number in freed:
                freed[number] += nbytes
            else:
                freed[number] = nbytes
                before[number] = len(dropped.setdefault(number, []))
            dropped[number].append(tid)
        for number, nbytes in freed.items():
            worker = self.workers[number]
            worker.nbytes -= nbytes
            worker.holds -= len(dropped[number]) - before[number]
        for function in tasks.function[span]:
            function.uses -= 1  # type: ignore[union-attr]
        tasks.wanted[span] = tasks.state[span] = bytes(count)  # FREE is 0
        tasks.uses[span] = tasks.nbytes[span] = [0] * count
        tasks.place[span] = [-1] * count
        tasks.args[span] = tasks.function[span] = [None] * count
        tasks.live -= count
        block.live -= count
        if not block.live:
            self._dead.append(block)
        return count

    def _want(self, client: Client, message: Want) -> None:
        tasks = self.tasks
        for counter in message.counters:
            slot = self._slot(client, counter)
            if slot < 0:
                self.out.erred(client.number, counter, counter, Lost("unknown", "the scheduler has forgotten it"))
                continue
            self._set_wanted(slot, tasks.wanted[slot] & PIN | WISH)
            if tasks.state[slot] == DONE:
                self._tell_done(slot)
            elif tasks.state[slot] == ERRED:
                self._tell_erred(slot)

    def _tell_done(self, slot: int) -> None:
        """Where a value is that its client wants."""
        tasks = self.tasks
        number = tasks.owner[slot].client.number
        self.out.done(number, tasks.counter(slot), tasks.tid(slot), tasks.nbytes[slot], tasks.place[slot], None)

    def _cancel(self, client: Client, message: Cancel) -> None:
        for counter in message.counters:
            slot = self._slot(client, counter)
            if slot >= 0 and self.tasks.state[slot] in (IDLE, WAITING, READY, SENT):
                self.counts.cancelled += 1
                self._fail(slot, Lost("cancelled", "it was cancelled"))

    def _retry(self, client: Client, message: Retry) -> None:
        tasks = self.tasks
        again: dict[int, None] = {}
        stack: list[int] = []
        asked: list[int] = []
        for counter in message.counters:
            slot = self._slot(client, counter)
            if slot < 0:
                self.out.erred(client.number, counter, counter, Lost("unknown", "the scheduler has forgotten it"))
            elif tasks.state[slot] == DONE:
                self._tell_done(slot)
            else:
                self._set_wanted(slot, tasks.wanted[slot] & PIN | WISH)
                if tasks.state[slot] == ERRED:
                    stack.append(slot)
                    asked.append(slot)
        while stack:
            slot = stack.pop()
            if slot in again or tasks.state[slot] != ERRED or self._is_lame(slot):
                continue
            again[slot] = None
            stack.extend(tasks.deps[slot])
        for slot in again:
            tasks.state[slot] = IDLE
            tasks.errors.pop(slot, None)
            tasks.tries.pop(slot, None)
        for slot in again:
            if tasks.uses[slot] and tasks.state[slot] == IDLE:
                self._wake(slot)
        for slot in asked:
            if tasks.state[slot] == ERRED and slot not in again:
                self._tell_erred(slot)
        for slot in again:
            if tasks.state[slot] == IDLE:
                self._forget(slot)

    def _is_lame(self, slot: int) -> bool:
        """Whether a task that is ERRED lacks an input that nobody knows: there is nothing to try again."""
        culprit, _, error = self.tasks.errors[slot]
        return culprit == slot and isinstance(error, Lost) and error.kind == "unknown"

    # --- need comes and goes

    def _wake(self, slot: int) -> None:
        """IDLE -> WAITING or READY, of a task that somebody needs by now, and of what it needs."""
        tasks = self.tasks
        state, uses, all_deps = tasks.state, tasks.uses, tasks.deps
        awake: list[int] = []
        failed: list[int] = []
        stack = [slot]
        while stack:
            slot = stack.pop()
            if state[slot] != IDLE:
                continue
            if tasks.args[slot] is AWAY:
                client = tasks.owner[slot].client.number
                if client not in self.clients:
                    self._fail(
                        slot, Lost("data", "the workers that had it are gone, and so is the client that it came from")
                    )
                    continue
                self.out.resend(client, tasks.counter(slot))
            state[slot] = WAITING
            self._begins(slot)
            awake.append(slot)
            for d in all_deps[slot]:
                uses[d] += 1
                if state[d] == IDLE:
                    stack.append(d)
                elif state[d] == ERRED:
                    failed.append(d)
        for slot in awake:
            tasks.unplaced[slot] = sum(state[d] not in (SENT, DONE) for d in all_deps[slot])
            if tasks.args[slot] is AWAY:
                tasks.unplaced[slot] += 1
        for slot in awake:
            if state[slot] == WAITING and not tasks.unplaced[slot]:
                state[slot] = READY
                self.placing.ready(slot)
        for d in failed:
            self._spread(d)

    def _begins(self, slot: int) -> None:
        """IDLE -> WAITING, as far as what is counted goes."""
        tasks = self.tasks
        undone = tasks.undone[slot] = sum(tasks.state[d] != DONE for d in tasks.deps[slot])
        self.placing.todo += 1
        self.placing.runnable += not undone
        function = tasks.function[slot]
        assert function is not None
        function.active += 1

    def _ends(self, slot: int) -> None:
        """The other way round, of a task that leaves WAITING, READY and SENT: for good, or until it is needed again."""
        self.placing.runnable -= not self.tasks.undone[slot]
        function = self.tasks.function[slot]
        assert function is not None
        function.active -= 1

    def _let_go(self, slot: int) -> None:
        """Nobody needs a task any more: DONE, WAITING, READY, SENT -> IDLE, and what was needed for it alone."""
        tasks = self.tasks
        state, uses = tasks.state, tasks.uses
        stack = [slot]
        while stack:
            slot = stack.pop()
            kind = state[slot]
            if uses[slot]:
                continue
            if kind == DONE:
                self._drop(slot)
                state[slot] = IDLE
            elif kind in _ACTIVE:
                self._stop(slot)
                self._forget_copies(slot)
                state[slot] = IDLE
                for d in tasks.deps[slot]:
                    count = uses[d] = uses[d] - 1
                    if not count:
                        stack.append(d)
            self._forget(slot)

    def _stop(self, slot: int, ended: bool = False) -> None:
        """Leave WAITING, READY or SENT: the worker that has it stops it, unless it has ended. The caller sets the state."""
        tasks = self.tasks
        kind = tasks.state[slot]
        self._ends(slot)
        if kind == SENT:
            worker = self.workers[tasks.place[slot]]
            if not ended:
                self.out.tids(worker.number, CancelTasks, tasks.tid(slot))
            self._take_off(slot, worker)
            self._unplaced(slot, False)  # whoever needs it is stopped too
        else:
            self._unqueue(slot)

    def _take_off(self, slot: int, worker: Worker) -> None:
        """A worker has a task no longer."""
        tasks = self.tasks
        worker.load -= worker.sent.pop(slot)
        if not worker.sent:
            worker.load = 0.0
            worker.idle_since = self.now
        if worker.taking or worker.begun:
            worker.taking.discard(slot)
            worker.begun.discard(slot)
            self.placing.thieves.pop(slot, None)
        if tasks.owner[slot].resources:
            for name, amount in tasks.owner[slot].resources:
                worker.free[name] += amount
            self.placing.unblock(worker)
        if worker.coming:
            worker.expect_no_more(slot)
            if slot in self.placing.over:
                self.placing.over_no_more(slot)
        tasks.grant[slot] = 0
        tasks.place[slot] = -1
        self.placing.touched[worker.number] = None

    def _forget_copies(self, slot: int) -> None:
        """Workers that were told where to get a value need it no longer."""
        if self.spreading.values:
            self.spreading.gone(slot)
        self.tasks.orders.pop(slot, None)
        copies = self.tasks.copies.pop(slot, None)
        if copies:
            for number, sure in copies.items():
                worker = self.workers.get(number)
                if worker is not None:
                    self.out.tids(number, Drop, self.tasks.tid(slot))
                    if sure:
                        self._holds_no_more(worker, slot)

    def _drop(self, slot: int) -> None:
        """All workers forget the value of a task that is DONE. The caller sets the state."""
        tasks = self.tasks
        worker = self.workers.get(tasks.place[slot])
        if worker is not None:
            self.out.tids(worker.number, Drop, tasks.tid(slot))
            self._holds_no_more(worker, slot)
        self._forget_copies(slot)
        tasks.place[slot] = -1

    def _holds_no_more(self, worker: Worker, slot: int) -> None:
        worker.holds -= 1
        worker.nbytes -= self.tasks.nbytes[slot]
        self._tidy(worker)

    def _tidy(self, worker: Worker) -> None:
        """A worker holds less: let go of what it held once, now and then."""
        if worker.heavy or self.placing.heavy:
            self.placing.touched[worker.number] = None
        if len(worker.held) > 2 * worker.holds + 1000:
            number, state, place, copies = worker.number, self.tasks.state, self.tasks.place, self.tasks.copies
            size = len(state)
            worker.held = [  # those of which _has is true
                slot
                for slot in (dict.fromkeys(worker.held) if worker.holds else ())
                if slot < size
                and state[slot] == DONE
                and (place[slot] == number or (slot in copies and copies[slot].get(number, False)))
            ]

    def _has(self, worker: Worker, slot: int) -> bool:
        """Whether what a worker once held in a slot is still there, and still its."""
        tasks = self.tasks
        return slot < len(tasks.state) and tasks.state[slot] == DONE and worker.number in tasks.holders(slot)

    def _forget(self, slot: int) -> None:
        """IDLE, ERRED -> FREE, where nobody can need a task any more; then maybe its inputs."""
        tasks = self.tasks
        state, wanted, dependents, unlink = tasks.state, tasks.wanted, tasks.dependents, tasks.unlink
        if (state[slot] != IDLE and state[slot] != ERRED) or wanted[slot] or dependents[slot] is not None:
            return
        all_deps, args, functions, nbytes, owner = tasks.deps, tasks.args, tasks.function, tasks.nbytes, tasks.owner
        aside = bool(tasks.errors or tasks.tries)
        count = 0
        stack = [slot]
        while stack:
            slot = stack.pop()
            state[slot] = FREE
            count += 1
            deps = all_deps[slot]
            if deps:
                all_deps[slot] = ()
                for d in deps:
                    if type(dependents[d]) is int:  # as unlink does
                        dependents[d] = None
                    else:
                        unlink(d, slot)
                    if dependents[d] is None and not wanted[d] and (state[d] == IDLE or state[d] == ERRED):
                        stack.append(d)
            args[slot] = None
            function = functions[slot]
            if function is not None:
                functions[slot] = None
                function.uses -= 1
            if aside:
                tasks.errors.pop(slot, None)
                tasks.tries.pop(slot, None)
            nbytes[slot] = 0
            block = owner[slot]
            block.live -= 1
            if not block.live:
                self._dead.append(block)
        tasks.live -= count

    def _sweep(self) -> None:
        """Give the slots of submissions that are all forgotten back; at the end of an event, as others hold slots."""
        if not self._dead:
            return
        dead, self._dead = self._dead, []
        for block in dead:
            self.placing.closed(block)
            block.client.remove(block)
            self.tasks.free(block)
        if self._going:
            going, self._going = self._going, []
            self._let_functions_go(going)

    # --- workers

    def _report(self, worker: Worker, message: Report) -> None:
        """SENT -> DONE, for all that ended; what failed is tried again, or SENT -> ERRED.

        The loop does what :meth:`_done` does, for tasks about which there is nothing special. It is written out as it is where
        a scheduler spends most of its time.
        """
        tasks = self.tasks
        grants, grant, size, number = tasks.grant, message.grant, len(tasks.state), worker.number
        state, owner, deps, dependents, functions = (
            tasks.state,
            tasks.owner,
            tasks.deps,
            tasks.dependents,
            tasks.function,
        )
        wanted, undone, uses, nbytes_of, copies = tasks.wanted, tasks.undone, tasks.uses, tasks.nbytes, tasks.copies
        sent, hold = worker.sent, worker.held.append
        rows: list[tuple[int, int, int, int, Any]] = []  # what a client is to be told
        client = -1
        place, orders = tasks.place, tasks.orders
        dropped: dict[int, list[int]] = {}
        special = bool(worker.taking or worker.begun or worker.coming or tasks.tries)
        never_sent = -1
        stale = runnable = count = total = taught = taught_bytes = 0
        load, taught_seconds = worker.load, 0.0
        function: Any = None
        for tid, nbytes, seconds, result in zip(
            message.tids, message.sizes, message.seconds, message.results, strict=True
        ):
            slot = tid & SLOT
            if slot >= size or grants[slot] != grant:  # the worker was told to cancel it, and throws the value away
                stale += 1
                continue
            if slot not in sent:
                never_sent = tid
                break
            block = owner[slot]
            if special or block.special or slot in copies:
                worker.load = load
                if rows:
                    self.out.done_rows(client, rows)
                    rows = []
                self._done(slot, worker, nbytes, seconds, result)
                load = worker.load
                continue
            thought = sent.pop(slot)
            load -= thought
            if seconds > HORIZON and seconds > 4 * thought:
                self.placing.surprised[number] = None
            grants[slot] = 0
            if functions[slot] is not function:
                if taught:
                    function.learn(taught_seconds, taught_bytes, taught)
                    taught_seconds, taught_bytes, taught = 0.0, 0, 0
                function = functions[slot]
            taught += 1
            taught_seconds += seconds
            taught_bytes += nbytes
            function.active -= 1
            state[slot] = DONE
            nbytes_of[slot] = nbytes
            hold(slot)
            count += 1
            total += nbytes
            if not undone[slot]:
                runnable -= 1
            if dependents[slot] is not None:
                for f in tasks.followers(slot):
                    left = undone[f] = undone[f] - 1
                    if not left and state[f] in _ACTIVE:
                        runnable += 1
            if deps[slot]:
                worker.holds += count  # it may have to let go of some
                worker.nbytes += total
                count = total = 0
                for d in deps[slot]:
                    copied = copies.get(d)
                    if copied is not None and copied.get(number) is False and state[d] == DONE:
                        copied[number] = True  # it had it, to run this
                        self._holds(worker, d)
                    left = uses[d] = uses[d] - 1
                    if left:
                        continue
                    if copied is not None or state[d] != DONE or wanted[d] or owner[d].special or d in orders:
                        self._let_go(d)
                        continue
                    holder = self.workers[place[d]]  # as _let_go does: it stays IDLE, as this one is made of it
                    dropped.setdefault(holder.number, []).append(owner[d].high + d)
                    holder.holds -= 1
                    holder.nbytes -= nbytes_of[d]
                    place[d] = -1
                    state[d] = IDLE
            if wanted[slot] & WISH:
                if block.client.number != client:
                    if rows:
                        self.out.done_rows(client, rows)
                        rows = []
                    client = block.client.number
                rows.append((block.first + slot - block.base, tid, nbytes, number, result))
        if rows:
            self.out.done_rows(client, rows)
        for where, tids in dropped.items():
            self.out.worker(where, Drop(tids))
            self._tidy(self.workers[where])
        if taught:
            function.learn(taught_seconds, taught_bytes, taught)
        worker.holds += count
        worker.nbytes += total
        worker.load = load
        if not sent:
            worker.load = 0.0
            worker.idle_since = self.now
        self.placing.runnable += runnable
        self.placing.touched[number] = None
        if never_sent >= 0:
            raise self._never_sent(worker, never_sent, grant)
        self.counts.done += len(message.tids) - stale
        for tid, error in zip(message.failed, message.errors, strict=True):
            slot = tid & SLOT
            if slot < size and grants[slot] == grant:
                if slot not in sent:
                    raise self._never_sent(worker, tid, grant)
                tries = self._tries(slot)
                tries[0] -= 1
                if tries[0] >= 0:
                    self.counts.retried += 1
                    self._unsend(slot, worker)
                else:
                    self.counts.failed += 1
                    self._fail(slot, error, ended=True)

    @staticmethod
    def _never_sent(worker: Worker, tid: int, grant: int) -> ProtocolError:
        return ProtocolError(
            f"the worker {worker.name!r} speaks of the task {tid} under the grant {grant}, and was not sent it"
        )

    def _done(self, slot: int, worker: Worker, nbytes: int, seconds: float, result: Any) -> None:
        """SENT -> DONE."""
        tasks = self.tasks
        has_inputs = slot not in worker.begun and slot not in worker.taking
        if seconds > HORIZON and seconds > 4 * worker.sent[slot]:
            self.placing.surprised[worker.number] = None
        self._take_off(slot, worker)
        function = tasks.function[slot]
        if function is not None:
            function.learn(seconds, nbytes, 1)
        self._is_there(slot, worker, nbytes, has_inputs)
        if tasks.wanted[slot] & WISH:
            block = tasks.owner[slot]
            self.out.done(
                block.client.number, block.first + slot - block.base, block.high + slot, nbytes, worker.number, result
            )

    def _is_there(self, slot: int, worker: Worker, nbytes: int, has_inputs: bool) -> None:
        """To DONE: a worker has the value.

        Args:
            has_inputs: whether it surely has the inputs too. Not so where it was asked to give the task back, or came
                back with it: it may have let go of them since.
        """
        tasks = self.tasks
        tasks.state[slot] = DONE
        tasks.place[slot] = worker.number
        tasks.nbytes[slot] = nbytes
        worker.held.append(slot)
        worker.holds += 1
        worker.nbytes += nbytes
        copies = tasks.copies.get(slot)
        if copies is not None:
            copies.pop(worker.number, None)
        tasks.function[slot].active -= 1  # type: ignore[union-attr]  # with the next lines as _ends, at less cost
        undone = tasks.undone
        runnable = 0 if undone[slot] else -1
        if tasks.dependents[slot] is not None:
            state = tasks.state
            for f in tasks.followers(slot):
                left = undone[f] = undone[f] - 1
                if not left and state[f] in _ACTIVE:
                    runnable += 1
        if runnable:
            self.placing.runnable += runnable
        uses = tasks.uses
        for d in tasks.deps[slot]:
            copies = tasks.copies.get(d)
            # It had it, to run this. That the input is done may be news: its maker has told the worker first.
            if has_inputs and copies is not None and copies.get(worker.number) is False and tasks.state[d] == DONE:
                copies[worker.number] = True
                self._holds(worker, d)
            count = uses[d] = uses[d] - 1
            if not count:
                self._let_go(d)
        if tasks.tries:
            tasks.tries.pop(slot, None)
        block = tasks.owner[slot]
        if block.data:
            tasks.args[slot] = AWAY  # its client has it
        if block.everywhere:
            self.spreading.there(slot)

    def _holds(self, worker: Worker, slot: int) -> None:
        worker.held.append(slot)
        worker.holds += 1
        worker.nbytes += self.tasks.nbytes[slot]

    def _unsend(self, slot: int, worker: Worker) -> None:
        """SENT -> READY or WAITING: it did not run there."""
        tasks = self.tasks
        thief = self.placing.thieves.get(slot, -1)
        self.counts.stolen += thief >= 0
        self._take_off(slot, worker)
        self.placing.todo += 1
        tasks.state[slot] = WAITING
        self._unplaced(slot)
        if not tasks.unplaced[slot]:
            tasks.state[slot] = READY
            self.placing.ready(slot, thief)

    def _unplaced(self, slot: int, ask_back: bool = True) -> None:
        """A value is not on its way any more: what is made of it waits again, or is asked back from where it was sent."""
        tasks = self.tasks
        state = tasks.state
        for f in tasks.followers(slot):
            tasks.unplaced[f] += 1
            if state[f] == READY:
                self.placing.unqueued(f)
                state[f] = WAITING
            elif state[f] == SENT and ask_back:
                self.placing.take_back(self.workers[tasks.place[f]], f)

    def _lost(self, slot: int) -> None:
        """DONE -> WAITING or READY, or ERRED: nobody has the value any more."""
        tasks = self.tasks
        for f in tasks.followers(slot):
            if not tasks.undone[f] and tasks.state[f] in _ACTIVE:
                self.placing.runnable -= 1
            tasks.undone[f] += 1
        self._unplaced(slot)  # before others are told to drop it: what they could not begin comes back first
        self._forget_copies(slot)
        tasks.place[slot] = -1
        tasks.state[slot] = IDLE
        if not tasks.uses[slot]:
            self._forget(slot)
            return
        if tasks.wanted[slot] & WISH:
            self.out.pending(tasks.owner[slot].client.number, tasks.counter(slot))
        self._wake(slot)

    def _copy_lost(self, slot: int, number: int) -> None:
        """A worker does not have a value that it had."""
        tasks = self.tasks
        worker = self.workers.get(number)
        if worker is not None:
            self._holds_no_more(worker, slot)
            self.out.tids(number, Drop, tasks.tid(slot))  # it may only be out of reach for somebody
        self._recall(slot, number)
        copies = tasks.copies.get(slot, {})
        if tasks.place[slot] != number:
            copies.pop(number, None)
            self.spreading.lost(slot, number)
            if self.placing.apart or slot in self.spreading.values:  # somebody may have been told to get it there
                self._ask_back(slot)
            return
        copies.pop(number, None)
        for other, sure in copies.items():
            if sure and other in self.workers:
                tasks.place[slot] = other
                del copies[other]
                self.placing.copy(other, slot, other)
                self.spreading.lost(slot, number)
                if tasks.wanted[slot] & WISH:
                    self._tell_done(slot)
                break
        else:
            self._lost(slot)
            return
        self._ask_back(slot)

    def _ask_back(self, slot: int) -> None:
        """Where a value is has changed: whoever was to get it, and surely has not, is to give back what needs it."""
        tasks = self.tasks
        for f in tasks.followers(slot):
            if tasks.state[f] == SENT and tasks.place[f] not in tasks.holders(slot):
                self.placing.take_back(self.workers[tasks.place[f]], f)

    def _gave_back(self, worker: Worker, message: GaveBack) -> None:
        tasks = self.tasks
        grants, size = tasks.grant, len(tasks.state)
        for tid, grant in zip(message.tids, message.grants, strict=True):
            slot = tid & SLOT
            if slot < size and grants[slot] == grant:
                if slot not in worker.sent:
                    raise self._never_sent(worker, tid, grant)
                self._unsend(slot, worker)
        for tid, grant in zip(message.kept, message.kept_grants, strict=True):
            slot = tid & SLOT
            if slot < size and grants[slot] == grant:
                if slot not in worker.sent:
                    raise self._never_sent(worker, tid, grant)
                worker.taking.discard(slot)
                worker.begun.add(slot)
                self.placing.thieves.pop(slot, None)
        self.placing.touched[worker.number] = None

    def _fetched(self, worker: Worker, message: Fetched) -> None:
        tasks = self.tasks
        for tid, order in zip(message.tids, message.orders, strict=True):
            slot = tasks.slot_of(tid)
            if tasks.orders.get(slot, {}).get(worker.number) != order:
                continue  # stale: it was told since to drop it
            self._recall(slot, worker.number)
            for other in self.workers.values() if self._retiring else ():
                if other.copying.get(slot) == worker.number:
                    del other.copying[slot]
                    other.moved.add(slot)
            copies = tasks.copies.get(slot, {})
            if tasks.place[slot] != worker.number and not copies.get(worker.number):
                copies[worker.number] = True
                self._holds(worker, slot)
                self.placing.unpark()
            self.spreading.fetched(slot, worker.number)

    def _recall(self, slot: int, number: int) -> None:
        """An order to copy a value is carried out, or void."""
        orders = self.tasks.orders.get(slot)
        if orders is not None and number in orders:
            del orders[number]
            if not orders:
                del self.tasks.orders[slot]

    def _missing(self, worker: Worker, message: Missing) -> None:
        """A worker cannot get values where it was told to: it says itself that it lacks them, or cannot reach who has them."""
        tasks = self.tasks
        if message.source != worker.number and message.source in self.workers:
            self.placing.lost_each_other(worker.number, message.source)
        for tid in message.tids:
            slot = tasks.slot_of(tid)
            if slot < 0:
                continue
            if message.source == worker.number and tasks.state[slot] == DONE and worker.number in tasks.holders(slot):
                self._copy_lost(slot, worker.number)
            self.spreading.missing(slot, worker.number)
            for f in list(tasks.followers(slot)):
                if tasks.state[f] == SENT and tasks.place[f] == worker.number:
                    self.placing.take_back(worker, f)
            for other in self.workers.values() if self._retiring else ():
                if other.copying.get(slot) == worker.number:
                    del other.copying[slot]

    def _status(self, worker: Worker, message: Status) -> None:
        worker.running = set(message.running)
        if worker.paused != message.paused:
            worker.paused = message.paused
            if worker.paused:
                self.placing.emptied(worker)
            self.placing.came(worker)

    # --- who comes back

    def _announced(self, worker: Worker, message: Announce) -> None:
        worker.announced = True
        for uuid, counter, size, name in message.held:
            self._unclaimed.setdefault((uuid, counter), []).append((worker.number, size, name))
        for uuid, counter, name in message.running:
            self._unclaimed.setdefault((uuid, counter), []).append((worker.number, -1, name))
        clients = {client.uuid: client for client in self.clients.values()}
        announced = [(held[0], held[1]) for held in message.held] + [(ran[0], ran[1]) for ran in message.running]
        for uuid, counter in announced:
            client = clients.get(uuid)
            slot = -1 if client is None else self._slot(client, counter)
            if slot >= 0:
                self._claim_one(slot, (uuid, counter))
        self.spreading.came(worker)
        if self._grace_until is None:
            self._end_grace()

    def _claim(self, block: Block) -> None:
        """Take over what workers have announced of a submission's tasks."""
        uuid = block.client.uuid
        for counter in range(block.first, block.first + block.count):
            if (uuid, counter) in self._unclaimed:
                self._claim_one(block.base + counter - block.first, (uuid, counter))

    def _claim_one(self, slot: int, who: tuple[bytes, int]) -> None:
        for number, size, name in sorted(self._unclaimed.pop(who, []), key=lambda entry: -entry[1]):
            self._adopt(slot, self.workers[number], size, name)

    def _adopt(self, slot: int, worker: Worker, size: int, name: int) -> None:
        """WAITING, READY, SENT -> DONE, or WAITING, READY -> SENT: a worker has the value, or is at it."""
        tasks = self.tasks
        kind = tasks.state[slot]
        if size < 0:
            if kind not in (WAITING, READY):
                self.out.tids(worker.number, CancelTasks, name)
                return
            self._unqueue(slot)
            grant = self.placing.adopt(slot, worker)
            self.out.adopted(worker.number, name, tasks.tid(slot), grant)
            return
        if kind == DONE:
            if worker.number in tasks.holders(slot):
                self.out.tids(worker.number, Drop, name)
                return
            tasks.copies.setdefault(slot, {})[worker.number] = True
            self._holds(worker, slot)
        elif kind in _ACTIVE:
            if kind == SENT:
                self.out.tids(tasks.place[slot], CancelTasks, tasks.tid(slot))
                self._take_off(slot, self.workers[tasks.place[slot]])
                for f in tasks.followers(slot):  # they count on the other one
                    if tasks.state[f] == SENT:
                        self.placing.take_back(self.workers[tasks.place[f]], f)
            else:
                self._unqueue(slot)
                self.placing.placed(slot)
            self._is_there(slot, worker, size, False)
            if tasks.wanted[slot] & WISH:
                self._tell_done(slot)
        else:
            self.out.tids(worker.number, Drop, name)
            return
        self.out.adopted(worker.number, name, tasks.tid(slot))

    def _unqueue(self, slot: int) -> None:
        """Leave WAITING or READY. The caller sets the state."""
        if self.tasks.state[slot] == READY:
            self.placing.unqueued(slot)
        self.placing.todo -= 1

    def _end_grace(self) -> None:
        """What nobody has claimed is of no use."""
        unclaimed, self._unclaimed = self._unclaimed, {}
        for entries in unclaimed.values():
            for number, size, name in entries:
                self.out.tids(number, CancelTasks if size < 0 else Drop, name)

    # --- who is to go

    def retire(self, number: int) -> None:
        """A worker is to go: it gets no more tasks, its values move, then it is told so."""
        worker = self.workers[number]
        if worker.retiring:
            return
        worker.retiring = True
        self._retiring = True
        self.placing.emptied(worker)
        for slot in list(worker.sent):
            self.placing.take_back(worker, slot)

    def unretire(self, number: int) -> bool:
        """A worker is to stay after all; whether it can: not once it was told that it may go."""
        worker = self.workers[number]
        if number in self._retired:
            return False
        worker.retiring = False
        worker.copying.clear()
        worker.moved.clear()
        self.placing.came(worker)
        if worker.announced:
            self.spreading.came(worker)  # it was passed over
        return True

    def is_retired(self, number: int) -> bool:
        """Whether a worker was told that nothing is needed of it any more."""
        return number in self._retired

    @property
    def settled(self) -> bool:
        """Whether the grace is over: until then, workers and clients of an earlier scheduler may come back."""
        return self._grace is None and self._grace_until is None

    def _evacuate(self, worker: Worker) -> None:
        """Have others fetch what only a retiring worker has; tell it when nothing is left."""
        tasks = self.tasks
        # what it holds is known once it has said so, and once it was seen what of that anybody wants
        left = bool(worker.sent) or not worker.announced or self._grace_until is not None
        loads = {other.number: other.nbytes for other in self.workers.values() if not other.retiring}
        for slot, target in list(worker.copying.items()):
            if target not in loads or not self._has(worker, slot):
                del worker.copying[slot]
            else:
                loads[target] += tasks.nbytes[slot] + 1
        for slot in dict.fromkeys(worker.held):
            if not self._has(worker, slot):
                worker.moved.discard(slot)
                continue
            # a copy that was fetched for a task is not announced after a scheduler's death; one that was ordered is
            there = [n for n in tasks.holders(slot) if n in loads]
            if there and slot in worker.moved:
                continue
            left = True
            if slot in worker.copying:
                continue
            near = there or [n for n in loads if self.placing.can_reach(n, worker.number)]
            if not near:
                continue
            target = min(near, key=loads.__getitem__)
            loads[target] += tasks.nbytes[slot] + 1
            worker.copying[slot] = target
            self.placing.copy(target, slot, target if there else worker.number)
        if not left and worker.number not in self._retired:
            self._retired.add(worker.number)
            self.out.worker(worker.number, Retired())

    # --- failing

    def _fail(self, slot: int, error: Any, ended: bool = False) -> None:
        """WAITING, READY, SENT, IDLE -> ERRED, by an error of its own; so do those that need it.

        Args:
            ended: its worker has said so itself.
        """
        self._set_erred(slot, (slot, self.tasks.counter(slot), error), ended)
        self._spread(slot)
        self._forget_copies(
            slot
        )  # after all that wait for it were stopped: else one would take in what comes now, and keep it

    def _set_erred(self, slot: int, error: tuple[int, int, Any], ended: bool = False) -> None:
        tasks = self.tasks
        active = tasks.state[slot] in _ACTIVE
        if active:
            self._stop(slot, ended)
        tasks.state[slot] = ERRED
        tasks.errors[slot] = error
        if tasks.wanted[slot] & WISH:
            self._tell_erred(slot)
        if active:
            for d in tasks.deps[slot]:
                count = tasks.uses[d] = tasks.uses[d] - 1
                if not count:
                    self._let_go(d)

    def _tell_erred(self, slot: int) -> None:
        tasks = self.tasks
        block = tasks.owner[slot]
        _, culprit, error = tasks.errors[slot]
        self.out.erred(block.client.number, tasks.counter(slot), culprit, error)

    def _spread(self, slot: int) -> None:
        """Those that need a task which is ERRED fail by its error."""
        tasks = self.tasks
        error = tasks.errors[slot]
        stack = list(tasks.followers(slot))
        failed = []
        while stack:
            f = stack.pop()
            if tasks.state[f] in _ACTIVE:
                self._set_erred(f, error)
                failed.append(f)
                stack.extend(tasks.followers(f))
        for f in failed:
            self._forget_copies(f)
