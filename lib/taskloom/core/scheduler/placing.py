"""Which worker gets which task.

Workers pull: one that will soon have nothing to do gets the next tasks of the order. What is next is found by a cursor in each
submission; what the cursor has passed, because it was not ready, comes into a queue when it is: that of the worker where most of
its inputs are, or, if it has none, one for all.

A task is sent when its inputs are there **or on their way** (SENT): the worker asks whoever makes them. So a chain goes to one
worker in one message, and no worker waits for a round trip to the scheduler between two tasks.

How much a worker has is measured in time: about 20 ms for each of its threads, at least two tasks for each, at most 2,000 in all.
Toward the end of all work the shares get smaller. A worker that has nothing left to do makes the busiest one give back tasks that
it has not begun.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from itertools import islice

from taskloom.core.messages import Functions, Run
from taskloom.core.scheduler.outbox import Outbox
from taskloom.core.scheduler.state import DATA, DONE, READY, SENT, SLOT, WAITING, Block, Function, Spread, Tasks, Worker

__all__ = ["Placing"]

HORIZON = 0.020  # seconds of work that a thread of a worker has
MOST = 2000  # tasks that a worker has
BANDWIDTH = 500e6  # bytes a second between two workers, for weighing
AT_ONCE = 8  # workers with nothing to do that are looked after in one go
END = 1 << 200  # behind every priority
DATA_END = -(DATA >> 1) << 32  # behind that of all data, in a queue
LOOK = 64  # tasks of a worker that are looked at to see whether it has enough that can begin
LARGE = 64 * 1024  # bytes of a value that counts when it is asked whether there is room for it
SHARE = 0.5  # of a worker's memory for values: from 0.6 on it moves some to disk
AGAIN = 0.1  # seconds until a worker that could not reach another one is told to again, at first
LONGEST = 10.0  # and at last
SPAN = 16  # tasks, from which on it is worth while to look whether they stand side by side
LATENCY = 0.002  # seconds that any transfer costs, for weighing

Need = tuple[tuple[str, ...], tuple[tuple[str, float], ...]]  # names of workers (none: all), and resources


class Placing:
    """Sends READY tasks to workers.

    Attributes:
        open: (rank, base, block): submissions whose cursor is not at their end.
        late: heap of (priority << 32 | slot): READY tasks behind their cursors, for any worker.
        stuck: slots of READY tasks that no worker here may run; ``unmet``: of how many tasks with which (workers, resources).
        parked: slots of READY tasks whose inputs no worker that may run them can reach just now.
        apart: (who asks, who has) -> [until when it is not tried again, seconds]: workers that could not reach each other.
        thieves: slot of a task that is asked back -> the worker with nothing to do that it is asked back for.
        todo: how many tasks are WAITING or READY.
        runnable: how many are WAITING, READY or SENT and have all their inputs: so many could run at a time.
        touched: workers whose share has changed.
        idle: workers that could not be given as much as they could take.
        surprised: workers at which a task took much longer than was thought.
        heavy: as ``late``, of those that are held back: there was no room for what they make where they could have gone.
        over: slots of tasks that were sent though there was no room; ``holding``: some are held back, or were of late.
        everywhere: slots of values that are on all workers or on their way there, see :mod:`taskloom.core.scheduler.spreading`;
            ``broad``: there were such tasks.
    """

    def __init__(self, tasks: Tasks, workers: dict[int, Worker], out: Outbox, first_grant: int) -> None:
        self.tasks = tasks
        self.workers = workers
        self.out = out
        self.grant = first_grant
        self.open: list[tuple[int, int, Block]] = []
        self.late: list[int] = []
        self.stuck: dict[int, None] = {}
        self.unmet: dict[Need, int] = {}
        self.parked: dict[int, None] = {}
        self.thieves: dict[int, int] = {}
        self.apart: dict[tuple[int, int], list[float]] = {}
        self.now = self.recheck = 0.0
        self.todo = 0
        self.runnable = 0
        self.touched: dict[int, None] = {}
        self.idle: dict[int, None] = {}
        self.surprised: dict[int, None] = {}
        self.heavy: list[int] = []
        self.over: dict[int, None] = {}
        self.holding = False
        self.everywhere: dict[int, Spread] = {}
        self.broad = False

    # --- becoming ready

    def opened(self, block: Block) -> None:
        """A submission has come."""
        insort(self.open, (block.rank, block.base, block), key=lambda entry: entry[:2])

    def closed(self, block: Block) -> None:
        """All tasks of a submission are forgotten."""
        at = bisect_left(self.open, (block.rank, block.base), key=lambda entry: entry[:2])
        if at < len(self.open) and self.open[at][2] is block:
            del self.open[at]

    def ready(self, slot: int, thief: int = -1) -> None:
        """A task has become READY: see that it is found. ``thief``: number of the worker that is to get it, if it still can."""
        tasks = self.tasks
        block = tasks.owner[slot]
        robber = self.workers.get(thief)
        if robber is not None and not robber.paused and self._has_too_little(robber) and self.may_run(robber, block):
            self._queue(robber, slot)
        elif block.data:
            self.spread([slot], block)
        elif block.bound:
            self._constrained(slot, block)
        elif slot - block.base < block.cursor:
            best = self._where(slot)
            if best is None or best.paused:
                heappush(self.late, tasks.priority(slot) << 32 | slot)
            else:
                self._queue(best, slot)
        # else: the cursor will come by

    def _queue(self, worker: Worker, slot: int) -> None:
        tasks = self.tasks
        if tasks.place[slot] >= 0:
            self.left_queue(slot)
        tasks.place[slot] = worker.number
        heappush(worker.queue, tasks.priority(slot) << 32 | slot)
        worker.waiting_load += self._cost(slot)
        if tasks.owner[slot].data:
            worker.expect(slot, tasks.nbytes[slot])
        self.touched[worker.number] = None

    def _constrained(self, slot: int, block: Block) -> None:
        """A task that not every worker may run goes to the one of those that may which has the least to do."""
        best: Worker | None = None
        for worker in self.workers.values():
            if not self.may_run(worker, block):
                continue
            if best is None or (worker.paused, self._backlog(worker)) < (best.paused, self._backlog(best)):
                best = worker
        if best is None:
            self._stick(slot, block)
        else:
            self._queue(best, slot)

    def _stick(self, slot: int, block: Block) -> None:
        """No worker here may run a task."""
        self.tasks.place[slot] = -1
        self.stuck[slot] = None
        need = block.options.workers, block.resources
        self.unmet[need] = self.unmet.get(need, 0) + 1

    def _unstick(self, slot: int) -> None:
        block = self.tasks.owner[slot]
        need = block.options.workers, block.resources
        self.unmet[need] -= 1
        if not self.unmet[need]:
            del self.unmet[need]

    def spread(self, slots: Iterable[int], block: Block) -> None:
        """Data that a client has goes to those that have, and will have, the fewest bytes."""
        heap = [
            (worker.paused, worker.nbytes + worker.due, worker.number)
            for worker in self.workers.values()
            if self.may_run(worker, block)
        ]
        heapify(heap)
        for slot in slots:
            if not heap:
                self._stick(slot, block)
                continue
            paused, nbytes, number = heap[0]
            self._queue(self.workers[number], slot)
            heapreplace(heap, (paused, nbytes + self.tasks.nbytes[slot] + 1, number))

    @staticmethod
    def may_run(worker: Worker, block: Block) -> bool:
        """Whether a worker is one that the tasks of a submission may run on."""
        if worker.retiring or (block.allowed is not None and worker.name not in block.allowed):
            return False
        return all(worker.resources.get(name, 0.0) >= amount for name, amount in block.resources)

    def came(self, worker: Worker) -> None:
        """A worker has come, or may be used again."""
        self.touched[worker.number] = None
        stuck, self.stuck = self.stuck, {}
        self.unmet = {}
        for slot in stuck:
            self.ready(slot)

    def left(self, number: int) -> None:
        """A worker is gone."""
        self.touched.pop(number, None)
        self.idle.pop(number, None)
        for pair in [pair for pair in self.apart if number in pair]:
            del self.apart[pair]
        self.unpark()

    def emptied(self, worker: Worker) -> None:
        """A worker is not to be used any more: its queue goes to others."""
        queue = worker.queue + worker.blocked + worker.heavy
        worker.queue = []
        worker.blocked = []
        worker.heavy = []
        self.touched.pop(worker.number, None)
        self.idle.pop(worker.number, None)
        for entry in queue:
            if self._is_queued(worker, entry):
                worker.expect_no_more(entry & SLOT)
                self.tasks.place[entry & SLOT] = -1
                self.ready(entry & SLOT)
        worker.waiting_load = 0.0

    def _is_queued(self, worker: Worker, entry: int) -> bool:
        """Whether an entry of a worker's queue still says what is true."""
        slot = entry & SLOT
        tasks = self.tasks
        if slot >= len(tasks.state) or tasks.state[slot] != READY or tasks.place[slot] != worker.number:
            return False
        block = tasks.owner[slot]
        return block.rank + slot - block.base == entry >> 32

    # --- weighing

    def _cost(self, slot: int) -> float:
        function = self.tasks.function[slot]
        return 0.0 if function is None else function.seconds

    @staticmethod
    def _backlog(worker: Worker) -> float:
        return (worker.load + worker.waiting_load) / worker.threads

    def _where(self, slot: int) -> Worker | None:
        """The worker where most bytes of a task's inputs are or will be; None: it has no inputs, or none can be used."""
        tasks, workers = self.tasks, self.workers
        deps = tasks.deps[slot]
        if self.broad:  # it does not matter where is what is everywhere
            deps = tuple([d for d in deps if not tasks.owner[d].everywhere])
        if not deps:
            return None
        if len(deps) == 1:
            worker = workers.get(tasks.place[deps[0]])
            return None if worker is None or worker.retiring else worker
        place = tasks.place
        number = place[deps[0]]
        for d in deps:
            if place[d] != number:
                break
        else:  # all are on one
            worker = workers.get(number)
            if worker is not None and not worker.retiring:
                return worker
        bytes_at: dict[int, float] = {}
        for d in deps:
            nbytes = self._bytes(d)
            bytes_at[tasks.place[d]] = bytes_at.get(tasks.place[d], 0.0) + nbytes
            for number in tasks.copies.get(d, ()):
                bytes_at[number] = bytes_at.get(number, 0.0) + nbytes
        best: Worker | None = None
        most = 0.0
        for number, nbytes in bytes_at.items():
            worker = workers.get(number)
            if worker is None or worker.retiring:
                continue
            if best is None or nbytes > most or (nbytes == most and self._backlog(worker) < self._backlog(best)):
                best, most = worker, nbytes
        return best

    def _bytes(self, slot: int) -> float:
        """The size of a value, or what it is likely to be."""
        tasks = self.tasks
        if tasks.state[slot] == DONE or tasks.owner[slot].data:
            return tasks.nbytes[slot] + 1.0
        function = tasks.function[slot]
        return 1.0 if function is None else function.nbytes + 1.0

    def _is_better_here(self, slot: int, best: Worker, here: Worker) -> bool:
        """Whether a task is worth moving its inputs from the worker that has most of them to one that has less to do."""
        if best.paused and not here.paused:
            return True
        moving = LATENCY + sum(self._bytes(d) for d in self.tasks.deps[slot] if d not in self.everywhere) / BANDWIDTH
        return self._backlog(best) > self._backlog(here) + max(moving, HORIZON)

    def _is_worth_moving(self, slot: int, busy: Worker, idle: Worker) -> bool:
        """Whether a task begins sooner where there is nothing to do, its inputs having moved there, than where it is."""
        tasks = self.tasks
        away = sum(
            self._bytes(d)
            for d in tasks.deps[slot]
            if tasks.place[d] != idle.number and not tasks.copies.get(d, {}).get(idle.number)
        )
        return LATENCY + away / BANDWIDTH < max(self._backlog(busy), HORIZON) or not self._fits(busy, slot)

    # --- sending

    def fill(self) -> None:
        """Give the workers that can take more what there is; have work given back where one has nothing."""
        exceed = False
        while True:
            todo = list(self.touched)
            if self.open or self.late or self.heavy:
                todo += [number for number in self.idle if number not in self.touched]
            self.touched.clear()
            # the one with the least first
            found = [self.workers[number] for number in todo if number in self.workers]
            if len(found) > 1:
                found.sort(key=self._backlog)
            sent = False
            for worker in found:
                if not self.is_hungry(worker):
                    self.idle.pop(worker.number, None)
                    continue
                slots = self.choose(worker, exceed)
                if slots:
                    self.send(worker, slots)
                    sent = True
                if self.is_hungry(worker):
                    self.idle[worker.number] = None
                else:
                    self.idle.pop(worker.number, None)
            if not sent and not self.touched:
                if exceed or not self.holding:
                    return
                # all that have room have had their chance; those that have none, and a thread at rest, may go on
                exceed = True
                self.touched.update(dict.fromkeys(n for n in self.idle if self.heavy or self.workers[n].heavy))
                if not self.touched:
                    self.holding = bool(self.heavy) or any(worker.heavy for worker in self.workers.values())

    def is_hungry(self, worker: Worker) -> bool:
        """Whether a worker should be given tasks now."""
        if worker.retiring or worker.taking:
            return False
        count = len(worker.sent)
        if worker.paused:
            # its memory is full: one task at a time, and only where nobody else could do it
            return not count and (bool(worker.queue or worker.heavy) or self._all_paused())
        return self._has_too_little(worker) or (bool(worker.coming) and self._has_data(worker))

    @staticmethod
    def _has_too_little(worker: Worker) -> bool:
        """Whether a worker has been sent less than it should have."""
        count, threads = len(worker.sent), worker.threads
        return count < 2 * threads or (worker.load < HORIZON * 0.75 * threads and count < MOST * 3 // 4)

    @staticmethod
    def _has_data(worker: Worker) -> bool:
        """Whether data is next, which is sent however much a worker has to do: it goes before all that has not begun."""
        return bool(worker.queue) and worker.queue[0] < DATA_END

    def _all_paused(self) -> bool:
        return all(worker.paused or worker.retiring for worker in self.workers.values())

    def choose(self, worker: Worker, exceed: bool = False) -> list[int]:
        """The next tasks for a worker; they count as SENT. ``exceed``: also those that are held back, see :meth:`_exceeding`."""
        tasks = self.tasks
        state, place, functions = tasks.state, tasks.place, tasks.function
        threads = worker.threads
        room = HORIZON * threads - worker.load
        count = len(worker.sent)
        least, most = 2 * threads, (1 if worker.paused else MOST)
        fair = max(1, self.todo // (2 * len(self.workers)))
        own = worker.paused and not self._all_paused()
        apart = bool(self.apart)
        if self.heavy or worker.heavy:
            self._let_in(worker)
        chosen: list[int] = []
        if not (apart or own or worker.queue or worker.coming or self.late or self.heavy or worker.heavy):
            self._take_ahead(worker, chosen, room, least, most, fair)
            count += len(chosen)
            room = HORIZON * threads - worker.load
        while count < most and (room > 0 or count < least or (worker.coming and self._has_data(worker))):
            slot = self._next(worker, own)
            exceeds = slot < 0
            if exceeds:
                slot = self._exceeding(worker, own) if exceed and count < threads else -1
                if slot < 0:
                    break
            if apart:
                if not self._reaches(worker, slot):
                    self._elsewhere(slot)
                    continue
                self.parked.pop(slot, None)
            function = functions[slot]
            assert function is not None
            cost = function.seconds
            block = tasks.owner[slot]
            large = not block.data and function.nbytes > LARGE
            if large and not exceeds and self._is_too_much(worker, slot, function.nbytes):
                self._hold_back(worker, slot)
                continue
            if block.data:
                worker.expect(slot, tasks.nbytes[slot])
            elif (
                len(chosen) >= fair
                and count >= threads
                and not tasks.undone[slot]
                and cost * len(chosen) > HORIZON / 100
            ):
                # the end is near: leave something for the others, of what they could begin
                if tasks.deps[slot] or block.bound:
                    self._queue(worker, slot)
                else:
                    heappush(self.late, tasks.priority(slot) << 32 | slot)
                break
            elif large:
                worker.expect(slot, function.nbytes)
                if exceeds:
                    self.over[slot] = None
            for name, amount in block.resources:
                worker.free[name] -= amount
            chosen.append(slot)
            count += 1
            room -= cost
            state[slot] = SENT
            place[slot] = worker.number
            worker.sent[slot] = cost
            worker.load += cost
            self.todo -= 1
            if tasks.dependents[slot] is not None:
                self.placed(slot)
        return chosen

    def _take_ahead(self, worker: Worker, chosen: list[int], room: float, least: int, most: int, fair: int) -> None:
        """What :meth:`choose` does, for the plain tasks that come next: of small values, for any worker, with all inputs there.

        It is written out as a scheduler's work for such tasks is little else.
        """
        tasks = self.tasks
        state, place, functions, deps, dependents = (
            tasks.state,
            tasks.place,
            tasks.function,
            tasks.deps,
            tasks.dependents,
        )
        sent, number, queue, late = worker.sent, worker.number, worker.queue, self.late
        undone = tasks.undone
        count = len(sent)
        load, threads = worker.load, worker.threads
        while self.open and not queue and not late:
            block = self.open[0][2]
            if block.bound:
                break
            base, cursor, end = block.base, block.cursor, block.count
            while cursor < end and count < most and (room > 0 or count < least):
                slot = base + cursor
                if state[slot] == READY:
                    function = functions[slot]
                    assert function is not None
                    cost = function.seconds
                    if function.nbytes > LARGE:
                        break
                    away = False
                    for d in deps[slot]:
                        if place[d] != number:
                            away = True
                            break
                    if away or (
                        len(chosen) >= fair
                        and count >= threads
                        and not undone[slot]
                        and cost * len(chosen) > HORIZON / 100
                    ):
                        break
                    chosen.append(slot)
                    count += 1
                    room -= cost
                    load += cost
                    state[slot] = SENT
                    place[slot] = number
                    sent[slot] = cost
                    if dependents[slot] is not None:
                        block.cursor = cursor + 1
                        self.placed(slot)
                        if queue or late:
                            cursor += 1
                            break
                cursor += 1
            block.cursor = cursor
            if cursor < end:
                break
            del self.open[0]
        worker.load = load
        self.todo -= len(chosen)

    def placed(self, slot: int) -> None:
        """A task is on its way: what is made of it may be sent too."""
        tasks = self.tasks
        unplaced, state = tasks.unplaced, tasks.state
        for f in tasks.followers(slot):
            count = unplaced[f] = unplaced[f] - 1
            if not count and state[f] == WAITING:
                state[f] = READY
                self.ready(f)

    def _next(self, worker: Worker, own: bool) -> int:
        """The next task for a worker; -1: there is none. ``own``: of those that nobody else is to run."""
        queue, late, tasks = worker.queue, self.late, self.tasks
        while True:
            ahead = self.open[0] if self.open and not own else None
            at = END if ahead is None else (ahead[0] + ahead[2].cursor) << 32
            queued = queue[0] if queue else END
            passed = late[0] if late and not own else END
            if queued < passed and queued < at:
                heappop(queue)
                slot = queued & SLOT
                if not self._is_queued(worker, queued):
                    continue
                if tasks.owner[slot].resources and not self._fits(worker, slot):
                    worker.blocked.append(queued)
                    continue
                self.left_queue(slot)
                return slot
            if passed < at:
                heappop(late)
                slot = passed & SLOT
                if (
                    slot < len(tasks.state)
                    and tasks.state[slot] == READY
                    and tasks.place[slot] < 0
                    and tasks.priority(slot) == passed >> 32
                ):
                    return slot
                continue
            if ahead is None:
                return -1
            slot = self._advance(worker, ahead[2])
            if slot >= 0:
                return slot

    def left_queue(self, slot: int) -> None:
        """A READY task is not in a worker's queue any more; its entry there is void."""
        worker = self.workers.get(self.tasks.place[slot])
        if worker is not None:
            worker.waiting_load = max(0.0, worker.waiting_load - self._cost(slot)) if worker.queue else 0.0
            if worker.coming:
                worker.expect_no_more(slot)
        self.tasks.place[slot] = -1

    def unqueued(self, slot: int) -> None:
        """A task is not READY any more."""
        self.left_queue(slot)
        if self.stuck and self.stuck.pop(slot, 0) is None:
            self._unstick(slot)
        self.parked.pop(slot, None)

    def unblock(self, worker: Worker) -> None:
        """Resources of a worker are free again."""
        for entry in worker.blocked:
            heappush(worker.queue, entry)
        worker.blocked.clear()

    def _fits(self, worker: Worker, slot: int) -> bool:
        """Whether a worker has what a task takes while it runs."""
        return all(worker.free[name] >= amount for name, amount in self.tasks.owner[slot].resources)

    def _advance(self, worker: Worker, block: Block) -> int:
        """Walk on in the first open submission to a task for this worker; -1: go on with what there is by then."""
        tasks = self.tasks
        state, base = tasks.state, block.base
        cursor, count = block.cursor, block.count
        try:
            while cursor < count:
                slot = base + cursor
                cursor += 1
                if state[slot] != READY:
                    continue
                best = self._where(slot) if tasks.deps[slot] else None
                if best is None or best is worker or self._is_better_here(slot, best, worker):
                    return slot
                self._queue(best, slot)
            del self.open[0]
            return -1
        finally:
            block.cursor = cursor

    def send(self, worker: Worker, slots: list[int]) -> None:
        """Tell a worker of tasks that were chosen for it."""
        tasks = self.tasks
        self.grant += 1
        grant, number = self.grant, worker.number
        if len(slots) >= SPAN and self._send_span(worker, slots):
            return
        tids, priorities, functions, owners, resources = [], [], [], [], []
        deps: list[Sequence[int]] = []
        sources: dict[int, int] = {}
        wanted = bytearray()
        new: list[Function] = []
        for slot in slots:
            block = tasks.owner[slot]
            tasks.grant[slot] = grant
            tids.append(block.high + slot)
            priorities.append(block.rank + slot - block.base)
            function = tasks.function[slot]
            assert function is not None
            functions.append(function.number)
            if function.number not in worker.functions:
                worker.functions.add(function.number)
                new.append(function)
            needed = tasks.deps[slot]
            names: list[int] = []
            for d in needed:
                tid = tasks.owner[d].high + d
                names.append(tid)
                place = tasks.place[d]
                if place != number:
                    copies = tasks.copies.get(d)
                    if copies is None:
                        copies = tasks.copies[d] = {}
                    if not copies.get(number):
                        if d in self.everywhere:
                            place = self._giver(d, number)
                        elif self.apart and not self.can_reach(number, place):
                            place = next(n for n in tasks.holders(d) if self.can_reach(number, n))
                        sources[tid] = place
                        copies.setdefault(number, False)
            deps.append(names)
            wanted.append(tasks.wanted[slot])
            owners.append((block.client.uuid, block.first + slot - block.base))
            resources.append(block.resources)
        if new:
            self.out.worker(number, Functions([f.number for f in new], [f.payload for f in new]))
        args = [tasks.args[slot] for slot in slots]
        self.out.worker(
            number,
            Run(grant, tids, priorities, functions, args, deps, bytes(wanted), sources, owners, resources),
        )

    def _send_span(self, worker: Worker, slots: list[int]) -> bool:
        """The same for tasks of one submission, side by side and without inputs; False: they are not."""
        tasks = self.tasks
        first, count = slots[0], len(slots)
        end = first + count
        block = tasks.owner[first]
        if slots[-1] != end - 1 or end > block.base + block.count or any(tasks.deps[first:end]):
            return False
        functions = tasks.function[first:end]
        new = [function for function in dict.fromkeys(functions) if function.number not in worker.functions]  # type: ignore[union-attr]
        if new:
            worker.functions.update([function.number for function in new])  # type: ignore[union-attr]
            self.out.worker(worker.number, Functions([f.number for f in new], [f.payload for f in new]))  # type: ignore[union-attr]
        tasks.grant[first:end] = [self.grant] * count
        rank, counter, uuid = block.rank + first - block.base, block.first + first - block.base, block.client.uuid
        run = Run(
            self.grant,
            range(block.high + first, block.high + end),
            range(rank, rank + count),
            [function.number for function in functions],  # type: ignore[union-attr]
            tasks.args[first:end],
            [()] * count,
            bytes(tasks.wanted[first:end]),
            {},
            [(uuid, n) for n in range(counter, counter + count)],
            [block.resources] * count,
        )
        self.out.worker(worker.number, run)
        return True

    def _giver(self, slot: int, number: int) -> int:
        """From whom a worker gets a value that is to be everywhere: not all from the same one."""
        asked = self.everywhere[slot].asked.get(number)
        if asked is not None:
            return asked
        givers = [n for n in self.tasks.holders(slot) if self.can_reach(number, n)]
        return givers[number % len(givers)]

    def adopt(self, slot: int, worker: Worker) -> int:
        """A worker is at a task that it came back with; the grant for it."""
        tasks = self.tasks
        self.grant += 1
        cost = self._cost(slot)
        tasks.state[slot] = SENT
        tasks.place[slot] = worker.number
        tasks.grant[slot] = self.grant
        worker.sent[slot] = cost
        worker.load += cost
        worker.begun.add(slot)
        if tasks.owner[slot].data:
            worker.expect(slot, tasks.nbytes[slot])
        for name, amount in tasks.owner[slot].resources:
            worker.free[name] -= amount
        self.placed(slot)
        return self.grant

    # --- holding back

    def _is_too_much(self, worker: Worker, slot: int, nbytes: float) -> bool:
        """Whether a worker has no room for what a task makes, and it does not free as much as that."""
        if not worker.limit or worker.nbytes + worker.due + nbytes <= SHARE * worker.limit:
            return False
        tasks, number = self.tasks, worker.number
        for d in tasks.deps[slot]:
            here = tasks.place[d] == number or tasks.copies.get(d, {}).get(number)
            if here and tasks.uses[d] == 1:
                nbytes -= self._bytes(d)
        return nbytes > 0

    def _hold_back(self, worker: Worker, slot: int) -> None:
        """A task waits until there is room for what it makes: at this worker if it is for this one, else anywhere."""
        tasks = self.tasks
        entry = tasks.priority(slot) << 32 | slot
        self.holding = True
        # where some cannot reach each other it may have been sent here for that: handed on, it would go round
        if tasks.owner[slot].bound or self.apart or self._where(slot) is worker:
            tasks.place[slot] = worker.number
            heappush(worker.heavy, entry)
        else:
            heappush(self.heavy, entry)

    def _let_in(self, worker: Worker) -> None:
        """Of what is held back, that for which a worker has room by now is to be found like all else."""
        room = SHARE * worker.limit - worker.nbytes - worker.due if worker.limit else float("inf")
        for heap, into in ((worker.heavy, worker.queue), (self.heavy, self.late)):
            count = 0
            while heap and room > 0 and count < MOST:
                entry = heap[0]
                if self._is_held(worker, entry):
                    room -= self._bytes(entry & SLOT)
                    if room < 0:
                        break
                    heappush(into, entry)
                    count += 1
                heappop(heap)

    def _is_held(self, worker: Worker, entry: int) -> bool:
        """Whether an entry of one of the two heaps of what is held back still says what is true."""
        slot, tasks = entry & SLOT, self.tasks
        return (
            slot < len(tasks.state)
            and tasks.state[slot] == READY
            and (tasks.place[slot] < 0 or tasks.place[slot] == worker.number)
            and tasks.priority(slot) == entry >> 32
        )

    def _exceeding(self, worker: Worker, own: bool) -> int:
        """The first task of those that are held back, for a worker with a thread at rest; -1: it is better to wait.

        One such task at a time goes on in any case, the first of its worker: else all could wait for each other. More do
        where no task under way elsewhere is about to free what is here: then nothing but to go on makes room.
        """
        if self.over and self._is_about_to_be_freed(worker):
            return -1
        while worker.heavy or (self.heavy and not own):
            mine = worker.heavy[0] if worker.heavy else END
            heap = worker.heavy if own or not self.heavy or mine < self.heavy[0] else self.heavy
            entry = heappop(heap)
            if not self._is_held(worker, entry):
                continue
            slot = entry & SLOT
            if not self._fits(worker, slot):
                worker.blocked.append(entry)
                continue
            self.left_queue(slot)
            return slot
        return -1

    def over_no_more(self, slot: int) -> None:
        """A task for which there was no room is not under way any more: others may go on that waited for this."""
        del self.over[slot]
        for number in self.idle:
            if self.workers[number].heavy:
                self.touched[number] = None

    def _is_about_to_be_freed(self, worker: Worker) -> bool:
        """Whether tasks under way at other workers are the last that need large values of this one."""
        tasks = self.tasks
        for slot in islice(reversed(worker.held), 64):
            if slot >= len(tasks.state) or tasks.state[slot] != DONE or tasks.place[slot] != worker.number:
                continue
            if tasks.nbytes[slot] <= LARGE or tasks.uses[slot] != 1:
                continue
            for f in islice(tasks.followers(slot), 16):
                if tasks.state[f] == SENT and tasks.place[f] != worker.number:
                    return True
        return False

    # --- taking back

    def replan(self) -> None:
        """Tasks took much longer than was thought: who has more of them than it should gives back what it has not begun.

        They come before all that is sent from now on: else others would be done with what comes after them long before them.
        """
        surprised, self.surprised = self.surprised, {}
        for number in surprised:
            worker = self.workers.get(number)
            if worker is None:
                continue
            for slot in worker.sent:
                worker.sent[slot] = self._cost(slot)
            worker.load = sum(worker.sent.values())
            room = HORIZON * worker.threads
            for place, (slot, cost) in enumerate(worker.sent.items()):
                if place >= 2 * worker.threads and room <= 0 and slot not in worker.begun:
                    self.take_back(worker, slot)
                room -= cost

    def balance(self) -> None:
        """Have busy workers give up tasks that those with a thread that has nothing to do could begin."""
        if not self.idle:
            return
        queued, busy = self._busiest()
        if queued is None and busy is None:
            return
        looked_after = 0
        for number in list(self.idle):
            if looked_after == AT_ONCE or (queued is None and busy is None):
                break
            idle = self.workers.get(number)
            if idle is None or not self._rests(idle) or idle.queue or not self.is_hungry(idle):
                continue
            looked_after += 1
            if queued is not None and queued is not idle and self._steal_queued(queued, idle):
                queued, busy = self._busiest()
                continue
            self.idle[number] = self.idle.pop(number)  # others first, the next time
            if busy is not None:
                self._steal_sent(busy, idle)
                queued, busy = self._busiest()
        self.fill()

    def _rests(self, worker: Worker) -> bool:
        """Whether a thread of a worker has nothing to do: what waits for its inputs keeps none busy."""
        if len(worker.sent) < worker.threads:
            return True
        undone, count = self.tasks.undone, 0
        for slot in islice(worker.sent, LOOK):
            count += not undone[slot]
            if count == worker.threads:
                return False
        return len(worker.sent) <= LOOK

    def _busiest(self) -> tuple[Worker | None, Worker | None]:
        """Who has the most READY tasks waiting for it, and who of those that could give some back has been sent the most."""
        queued: Worker | None = None
        busy: Worker | None = None
        most = 0
        for worker in self.workers.values():
            if worker.queue or worker.blocked or worker.heavy:
                count = len(worker.queue) + len(worker.blocked) + len(worker.heavy)
                if count > most:
                    queued, most = worker, count
            if (
                len(worker.sent) > worker.threads
                and not worker.taking
                and len(worker.sent) > len(worker.begun)
                and (busy is None or worker.load > busy.load)
            ):
                busy = worker
        return queued, busy

    def _steal_sent(self, busy: Worker, idle: Worker) -> None:
        """Have a worker give back, for one that has nothing, half of what it can begin and may not have begun."""
        tasks = self.tasks
        undone, owner, deps = tasks.undone, tasks.owner, tasks.deps
        # of those that it has once said it had begun there is no use in asking again
        begun = busy.begun
        may = [slot for slot in busy.sent if slot not in begun] if begun else list(busy.sent)
        spare = [slot for slot in may[max(0, busy.threads - len(begun)) :] if not undone[slot]]
        checked: Block | None = None  # that it may run
        for slot in spare[len(spare) // 2 :]:
            if owner[slot] is not checked and not self.may_run(idle, owner[slot]):
                continue
            checked = owner[slot]
            if not deps[slot] or self._is_worth_moving(slot, busy, idle):
                self.thieves[slot] = idle.number
                self.take_back(busy, slot)

    def take_back(self, worker: Worker, slot: int) -> None:
        """Ask a worker to give back a task if it has not begun it."""
        if slot not in worker.taking:
            worker.taking.add(slot)
            self.out.take_back(worker.number, self.tasks.tid(slot), self.tasks.grant[slot])

    def _steal_queued(self, busy: Worker, idle: Worker) -> bool:
        """Give a worker that has nothing READY tasks that wait for another one."""
        tasks = self.tasks
        moved = False
        for entry in [*busy.queue[:64], *busy.blocked[:64], *busy.heavy[:64]]:
            slot = entry & SLOT
            if not self._is_queued(busy, entry) or tasks.undone[slot] or not self.may_run(idle, tasks.owner[slot]):
                continue
            if not self._fits(idle, slot) or not self._is_worth_moving(slot, busy, idle):
                continue
            if busy.heavy and self._is_too_much(idle, slot, self._bytes(slot)):
                continue
            if self.apart and not self._reaches(idle, slot):
                continue
            self._queue(idle, slot)
            moved = True
            if idle.waiting_load > HORIZON * idle.threads / 2:
                break
        return moved

    # --- who cannot reach whom

    def lost_each_other(self, asker: int, giver: int) -> None:
        """A worker could not get a value from another one: for some time it is not told to again, each time longer."""
        entry = self.apart.setdefault((asker, giver), [0.0, AGAIN / 2])
        if entry[0] > self.now:
            return
        entry[1] = min(entry[1] * 2, LONGEST) if self.now < entry[0] + 4 * entry[1] or not entry[0] else AGAIN
        entry[0] = self.now + entry[1]

    def can_reach(self, asker: int, giver: int) -> bool:
        """Whether a worker may be told to get values from another one now."""
        entry = self.apart.get((asker, giver))
        return entry is None or entry[0] <= self.now

    def _reaches(self, worker: Worker, slot: int) -> bool:
        """Whether a worker can get the inputs of a task."""
        tasks, number = self.tasks, worker.number
        for d in tasks.deps[slot]:
            place = tasks.place[d]
            if place == number or tasks.copies.get(d, {}).get(number) or self.can_reach(number, place):
                continue
            if tasks.state[d] != DONE or not any(self.can_reach(number, n) for n in tasks.holders(d)):
                return False
        return True

    def _elsewhere(self, slot: int) -> None:
        """A task whose inputs the worker that it was for cannot reach goes where they are, or waits."""
        tasks = self.tasks
        block = tasks.owner[slot]
        for number in dict.fromkeys([n for d in tasks.deps[slot] for n in (tasks.place[d], *tasks.copies.get(d, ()))]):
            worker = self.workers.get(number)
            if worker is not None and self.may_run(worker, block) and self._reaches(worker, slot):
                self._queue(worker, slot)
                return
        for worker in self.workers.values():
            if self.may_run(worker, block) and self._reaches(worker, slot):
                self._queue(worker, slot)
                return
        self.parked[slot] = None
        self.recheck = min([until for until, _ in self.apart.values() if until > self.now], default=self.now)
        self._relay(slot)

    def _relay(self, slot: int) -> None:
        """Have a worker that reaches an input fetch it from which one that may run the task can get it."""
        tasks = self.tasks
        block = tasks.owner[slot]
        able = [worker for worker in self.workers.values() if self.may_run(worker, block)]
        for d in tasks.deps[slot]:
            if tasks.state[d] != DONE:
                continue
            for between in self.workers.values():
                copies = tasks.copies.get(d, {})
                if between.number == tasks.place[d] or between.number in copies or between.retiring:
                    continue
                source = next((n for n in tasks.holders(d) if self.can_reach(between.number, n)), -1)
                if source >= 0 and any(self.can_reach(worker.number, between.number) for worker in able):
                    self.copy(between.number, d, source)
                    break

    def copy(self, number: int, slot: int, source: int) -> None:
        """Have a worker fetch a value that is DONE from another one, and keep it."""
        tasks = self.tasks
        block = tasks.owner[slot]
        self.grant += 1
        if tasks.place[slot] != number:
            tasks.copies.setdefault(slot, {}).setdefault(number, False)
        tasks.orders.setdefault(slot, {})[number] = self.grant
        self.out.copy(number, tasks.tid(slot), source, self.grant, (block.client.uuid, tasks.counter(slot)))

    def unpark(self) -> None:
        """Something has changed: those that wait because of who cannot reach whom are looked at again."""
        parked, self.parked = self.parked, {}
        for slot in parked:
            block = self.tasks.owner[slot]
            if block.bound:
                self._constrained(slot, block)
            else:
                heappush(self.late, self.tasks.priority(slot) << 32 | slot)

    def deadline(self, anyway: bool) -> float | None:
        """When workers that could not reach each other may try again, if somebody waits for it; None: nobody does."""
        if not self.apart or not (anyway or self.parked):
            return None
        return min([until for until, _ in self.apart.values() if until > self.now], default=None)
