"""What a task goes through, whatever was said for it to: needed, let go of, there, lost, failed, forgotten.

It is what the parts of the scheduler's machine have in common, with all that the scheduler knows. Each part is a class above
this one: :mod:`~taskloom.core.scheduler.requests` takes in what clients say, :mod:`~taskloom.core.scheduler.reports` what workers
say, :mod:`~taskloom.core.scheduler.returning` what those say that come back, and :mod:`~taskloom.core.scheduler.retiring` sees to
those that are to go. :mod:`taskloom.core.scheduler.machine` puts them together, and has the table of all changes of state.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from taskloom.core.messages import WISH, CancelTasks, Drop, ForgetFunctions, Lost
from taskloom.core.scheduler.outbox import Outbox
from taskloom.core.scheduler.placing import Placing
from taskloom.core.scheduler.spreading import Spreading
from taskloom.core.scheduler.state import (
    ACTIVE,
    AWAY,
    DONE,
    ERRED,
    FREE,
    IDLE,
    NEEDS,
    READY,
    SENT,
    WAITING,
    Block,
    Client,
    Counts,
    Tasks,
    Worker,
)
from taskloom.core.scheduler.stories import Stories

__all__ = ["Steps"]


class Steps:
    """What a scheduler knows, and the changes that all others are made of. For its arguments see ``machine.Scheduler``."""

    def __init__(self, incarnation: int, grace: float) -> None:
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

    # --- who needs it

    def _slot(self, client: Client, counter: int) -> int:
        """The slot of a client's task; -1 where it is forgotten."""
        block = client.block_of(counter)
        if block is None:
            return -1
        slot = block.base + counter - block.first
        return -1 if self.tasks.state[slot] == FREE else slot

    def _set_wanted(self, slot: int, wanted: int) -> None:
        """A client wants a value from now on, or not any more."""
        tasks = self.tasks
        old, tasks.wanted[slot] = tasks.wanted[slot], wanted
        if NEEDS[old] == NEEDS[wanted]:
            if not wanted:
                self._forget(slot)
            return
        if NEEDS[wanted]:
            tasks.uses[slot] += 1
            if tasks.state[slot] == IDLE:
                self._wake(slot)
        else:
            uses = tasks.uses[slot] = tasks.uses[slot] - 1
            if not uses:
                self._let_go(slot)

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
            elif kind in ACTIVE:
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

    def _unqueue(self, slot: int) -> None:
        """Leave WAITING or READY. The caller sets the state."""
        if self.tasks.state[slot] == READY:
            self.placing.unqueued(slot)
        self.placing.todo -= 1

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

    def _drop(self, slot: int) -> None:
        """All workers forget the value of a task that is DONE. The caller sets the state."""
        tasks = self.tasks
        worker = self.workers.get(tasks.place[slot])
        if worker is not None:
            self.out.tids(worker.number, Drop, tasks.tid(slot))
            self._holds_no_more(worker, slot)
        self._forget_copies(slot)
        tasks.place[slot] = -1

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

    # --- where it is

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
                if not left and state[f] in ACTIVE:
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
            if not tasks.undone[f] and tasks.state[f] in ACTIVE:
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

    def _recall(self, slot: int, number: int) -> None:
        """An order to copy a value is carried out, or void."""
        orders = self.tasks.orders.get(slot)
        if orders is not None and number in orders:
            del orders[number]
            if not orders:
                del self.tasks.orders[slot]

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
        active = tasks.state[slot] in ACTIVE
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

    def _spread(self, slot: int) -> None:
        """Those that need a task which is ERRED fail by its error."""
        tasks = self.tasks
        error = tasks.errors[slot]
        stack = list(tasks.followers(slot))
        failed = []
        while stack:
            f = stack.pop()
            if tasks.state[f] in ACTIVE:
                self._set_erred(f, error)
                failed.append(f)
                stack.extend(tasks.followers(f))
        for f in failed:
            self._forget_copies(f)

    def _tries(self, slot: int) -> list[int]:
        found = self.tasks.tries.get(slot)
        if found is None:
            options = self.tasks.owner[slot].options
            found = self.tasks.tries[slot] = [options.retries, options.deaths]
        return found

    # --- what its client is told

    def _tell_done(self, slot: int) -> None:
        """Where a value is that its client wants."""
        tasks = self.tasks
        number = tasks.owner[slot].client.number
        self.out.done(number, tasks.counter(slot), tasks.tid(slot), tasks.nbytes[slot], tasks.place[slot], None)

    def _tell_erred(self, slot: int) -> None:
        tasks = self.tasks
        block = tasks.owner[slot]
        _, culprit, error = tasks.errors[slot]
        self.out.erred(block.client.number, tasks.counter(slot), culprit, error)
