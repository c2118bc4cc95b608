"""What workers say: tasks ended, were given back, values were fetched or could not be, memory is full."""

from __future__ import annotations

from typing import Any

from taskloom.core.messages import WISH, Drop, Fetched, GaveBack, Missing, Report, Status
from taskloom.core.scheduler.placing import HORIZON
from taskloom.core.scheduler.state import ACTIVE, DONE, IDLE, SENT, SLOT, Worker
from taskloom.core.scheduler.steps import Steps
from taskloom.errors import ProtocolError

__all__ = ["Reports"]


class Reports(Steps):
    """Takes in what workers say."""

    # --- tasks

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
                    if not left and state[f] in ACTIVE:
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

    # --- values

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

    # --- the worker

    def _status(self, worker: Worker, message: Status) -> None:
        worker.running = set(message.running)
        if worker.paused != message.paused:
            worker.paused = message.paused
            if worker.paused:
                self.placing.emptied(worker)
            self.placing.came(worker)
