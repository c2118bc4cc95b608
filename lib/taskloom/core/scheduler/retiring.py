"""Workers that are to go: they get no more tasks, others fetch what only they have, then they are told that they may."""

from __future__ import annotations

from taskloom.core.messages import Retired
from taskloom.core.scheduler.state import Worker
from taskloom.core.scheduler.steps import Steps

__all__ = ["Retiring"]


class Retiring(Steps):
    """Sees to workers that are to go."""

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
