"""Values that are to be on all workers, not on one.

When such a value is there, the workers that may have it are told to fetch it: a few from the one that made it, then a few
from each of those, and so on, so that none has to send it to all. A worker that comes later gets it too. It is kept everywhere
for as long as somebody needs it.
"""

from __future__ import annotations

from itertools import islice

from taskloom.core.messages import Drop
from taskloom.core.scheduler.outbox import Outbox
from taskloom.core.scheduler.placing import Placing
from taskloom.core.scheduler.state import Spread, Tasks, Worker

__all__ = ["Spreading"]

AT_ONCE = 2  # workers that fetch a value from the same one at a time
LOOK = 8  # of those that could give it, so many are asked whether they can be reached


class Spreading:
    """Who is to get what, and from whom.

    Attributes:
        values: slot of a value that is there and is to be everywhere -> how far it has come.
        stirred: slots of those for which something may be done now.
    """

    def __init__(self, tasks: Tasks, workers: dict[int, Worker], placing: Placing, out: Outbox) -> None:
        self.tasks = tasks
        self.workers = workers
        self.placing = placing
        self.out = out
        self.values: dict[int, Spread] = placing.everywhere
        self.stirred: dict[int, None] = {}

    # --- what happens

    def there(self, slot: int) -> None:
        """A value is DONE."""
        spread = self.values[slot] = Spread()
        spread.left.update(dict.fromkeys(number for number, worker in self.workers.items() if worker.announced))
        for number in self.tasks.holders(slot):
            self._gives(spread, number)
        self.stirred[slot] = None

    def gone(self, slot: int) -> None:
        """A value is not DONE any more."""
        if self.values.pop(slot, None) is not None:
            self.stirred.pop(slot, None)

    def came(self, worker: Worker) -> None:
        """A worker has said what it has; it is to get the rest."""
        for slot, spread in self.values.items():
            if worker.number not in spread.asked:
                spread.left[worker.number] = None
                self.stirred[slot] = None

    def left(self, number: int) -> None:
        """A worker is gone; it was said before of each value that it had that it has lost it."""
        for slot, spread in self.values.items():
            spread.left.pop(number, None)
            if number in spread.asked:
                self._ends(spread, number)
                self.stirred[slot] = None

    def fetched(self, slot: int, number: int) -> None:
        """A worker has what it was told to fetch: it can give it to others."""
        spread = self.values.get(slot)
        if spread is not None:
            if number in spread.asked:
                self._ends(spread, number)
            self._gives(spread, number)
            self.stirred[slot] = None

    def missing(self, slot: int, number: int) -> None:
        """A worker could not get what it was told to fetch."""
        spread = self.values.get(slot)
        if spread is not None and number in spread.asked:
            self._again(slot, spread, number)

    def lost(self, slot: int, number: int) -> None:
        """A worker does not have a value any more that others still have.

        Whoever was told to fetch it and has not said that he has is told again: he may ask there. Where he was asking already,
        for a task, it is not where we said.
        """
        spread = self.values.get(slot)
        if spread is None:
            return
        spread.givers.pop(number, None)
        spread.free.pop(number, None)
        spread.left[number] = None
        self.stirred[slot] = None
        tid = self.tasks.tid(slot)
        copies = self.tasks.copies.get(slot, {})
        for asker in list(spread.asked):
            if self.tasks.place[slot] == asker or copies.get(asker):  # it has run a task with it meanwhile
                self._ends(spread, asker)
                self._gives(spread, asker)
                continue
            self.out.tids(asker, Drop, tid)
            if copies.get(asker) is False:
                del copies[asker]
            self._again(slot, spread, asker)

    @staticmethod
    def _gives(spread: Spread, number: int) -> None:
        """Others can get it from this worker."""
        spread.left.pop(number, None)
        if number not in spread.givers:
            spread.givers[number] = 0
            spread.free[number] = None

    @staticmethod
    def _ends(spread: Spread, asker: int) -> None:
        """A worker does not fetch it any more."""
        giver = spread.asked.pop(asker)
        if giver in spread.givers:
            spread.givers[giver] -= 1
            spread.free[giver] = None

    def _again(self, slot: int, spread: Spread, asker: int) -> None:
        self._ends(spread, asker)
        orders = self.tasks.orders.get(slot, {})
        orders.pop(asker, None)
        if not orders:
            self.tasks.orders.pop(slot, None)
        spread.left[asker] = None
        self.stirred[slot] = None

    # --- what is done

    def go_on(self) -> None:
        """Tell those to fetch it that can."""
        if self.placing.apart:  # it may be over
            self.stirred.update(dict.fromkeys(self.waiting()))
        stirred, self.stirred = self.stirred, {}
        for slot in stirred:
            self._go_on(slot, self.values[slot])

    def _go_on(self, slot: int, spread: Spread) -> None:
        tasks, placing = self.tasks, self.placing
        allowed = tasks.owner[slot].allowed
        copies = tasks.copies.get(slot, {})
        unreached: list[int] = []
        while spread.left and spread.free:
            number = next(iter(spread.left))
            del spread.left[number]
            worker = self.workers.get(number)
            if worker is None or worker.retiring or (allowed is not None and worker.name not in allowed):
                continue
            if tasks.place[slot] == number or copies.get(number):
                self._gives(spread, number)
                continue
            giver = next((n for n in islice(spread.free, LOOK) if placing.can_reach(number, n)), -1)
            if giver < 0:
                unreached.append(number)
                continue
            spread.asked[number] = giver
            spread.givers[giver] += 1
            if spread.givers[giver] >= AT_ONCE:
                del spread.free[giver]
            placing.copy(number, slot, giver)
        spread.left.update(dict.fromkeys(unreached))

    def waiting(self) -> list[int]:
        """Values that somebody has not been told to fetch who is to."""
        return [slot for slot, spread in self.values.items() if spread.left]
