"""Workers that come back say what they have and run; what of that anybody wants is taken over.

After a restart the scheduler knows no tasks when the first ones come back. So what they announce is kept until its client
has come too, at most until the grace is over.
"""

from __future__ import annotations

from taskloom.core.messages import WISH, Announce, CancelTasks, Drop
from taskloom.core.scheduler.state import ACTIVE, DONE, READY, SENT, WAITING, Block, Worker
from taskloom.core.scheduler.steps import Steps

__all__ = ["Returning"]


class Returning(Steps):
    """Takes over what workers that come back have."""

    @property
    def settled(self) -> bool:
        """Whether the grace is over: until then, workers and clients of an earlier scheduler may come back."""
        return self._grace is None and self._grace_until is None

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
        elif kind in ACTIVE:
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

    def _end_grace(self) -> None:
        """What nobody has claimed is of no use."""
        unclaimed, self._unclaimed = self._unclaimed, {}
        for entries in unclaimed.values():
            for number, size, name in entries:
                self.out.tids(number, CancelTasks if size < 0 else Drop, name)
