"""What a run on processes sends where: decisions only, no socket and no clock.

:class:`Placement` keeps the run state of :mod:`taskloom.local.run` and what each process has, and says which tasks a
process gets next; :mod:`taskloom.local.processes` carries that out. What it decides:

- **Commit ahead.** A task may be sent to a process before its inputs are there if all that are missing are made by that
  same process, from tasks it has already. Neighbours in the order are related, so a process gets stretches of it, and
  most values never leave the process that made them.
- **Depth by time.** A process holds some 20 ms of work, by the measured durations of each kind of function, but two tasks
  at least, so that it need not wait for the next one. Toward the end the blocks get smaller, so that all processes end
  together.
- **Take back.** What was sent and not begun is taken back when another process has nothing to do and could begin some
  of it.

As in the other schedulers a cursor walks the order. What it passes over goes into the queue of the process that makes its
inputs, or stays open until it is ready, or until its last missing input is sent to where the others are.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from types import FunctionType
from typing import Any

from taskloom.graph.compile import VALUE
from taskloom.local.run import Run

__all__ = ["ELSEWHERE", "HORIZON", "MOST", "Packed", "Placement", "Share"]

HORIZON = 0.020  # seconds of work that a process holds
MOST = 2000  # tasks that a process holds
LEAST = 2  # tasks that it holds however long they take: it need not wait for the next one
UNKNOWN = HORIZON / 4  # what a task of a function that was not measured yet counts as, in seconds
CROWDED = (
    16  # tasks in the queue of a process from which on others fetch large values from it, rather than leave it the task
)
FLOOR = 2e-6  # seconds that the least task counts as

# What a task is, in `state`.
OPEN = 0  # not sent
SENT = 1
DONE = 2
QUEUED = 3  # not sent, in the queue of one process
PARKED = 4  # not sent, waits for a value to arrive here


class Packed:
    """A value as bytes that the parent does not open: the pickle and its buffers."""

    __slots__ = ("buffers",)

    def __init__(self, buffers: list[Any]) -> None:
        self.buffers = buffers


class _Elsewhere:
    """Stands for a value that only the process has which made it."""


ELSEWHERE = _Elsewhere()


class Share:
    """A process, as its run sees it.

    Attributes:
        flight: ids sent and not reported, oldest first; the first ``reported`` of them have been reported already.
        load: seconds that what it holds will take; ``loads``, of each task.
        queue: heap of places in the order: tasks that will be sent here.
        has: ids of values that were sent here.
        fetches: ids of values that this process is to be asked for.
        drops: ids of values that it is to be told to forget.
        revoking: tasks are being taken back; until it has said how many, it gets no others. ``ignore``: what it will
            say has been overtaken.
    """

    __slots__ = (
        "drops",
        "fetches",
        "flight",
        "has",
        "ignore",
        "index",
        "load",
        "loads",
        "queue",
        "reported",
        "revoking",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.flight: list[int] = []
        self.reported = 0
        self.loads: list[float] = []
        self.load = 0.0
        self.queue: list[int] = []
        self.has: set[int] = set()
        self.fetches: list[int] = []
        self.drops: list[int] = []
        self.revoking = False
        self.ignore = False

    def pending(self) -> int:
        """How many tasks it holds."""
        return len(self.flight) - self.reported

    def take(self, count: int, place: int) -> list[int]:
        """Strike ``count`` tasks off its flight: from the oldest (``place`` 0) or the newest (-1) on; which they were."""
        if place:
            start = len(self.flight) - count
            ids = self.flight[start:]
            del self.flight[start:]
            del self.loads[len(self.loads) - count :]
        else:
            start = self.reported
            ids = self.flight[start : start + count]
            self.reported += count
            if self.reported > 1000 or self.reported == len(self.flight):
                del self.flight[: self.reported]
                self.reported = 0
            del self.loads[:count]
        self.load = sum(self.loads)  # anew each time: differences would add up rounding errors
        return ids


class Placement:
    """The state of a run on processes.

    Args:
        run: its ``values`` hold, for a task that is done, the value, a :class:`Packed`, or ``ELSEWHERE``.
        count: how many processes there are.

    Attributes:
        shares: one a process.
        state: id -> what the task is, see above.
        place: id -> number of the process that makes or made the value; -1: none, it is data.
    """

    def __init__(self, run: Run, count: int) -> None:
        plan = run.plan
        total = len(plan)
        self.run = run
        self.plan = plan
        self.shares = [Share(n) for n in range(count)]
        self.state = bytearray(total)
        self.place = [-1] * total
        self.users: dict[int, list[Share]] = {}  # id -> processes beside its maker that use or have the value
        self.fetching: dict[int, list[tuple[int, Share]]] = {}  # id -> tasks that wait for it, and where they go
        self.missing: dict[int, int] = {}  # parked task -> how many values it waits for
        self.costs: dict[Any, float] = {}  # kind of function -> seconds, measured
        self.kinds: dict[int, Any] = {}  # id() of a function -> its kind
        self.alone: set[int] = set()  # tasks to be sent one by one, to find which of them can't be read
        for i, spec in enumerate(plan.specs):
            if spec == VALUE:  # data needs no process
                run.values[i] = plan.tasks[i]
                self.state[i] = DONE
        if any(self.state):
            self.book([i for i, spec in enumerate(plan.specs) if spec == VALUE])

    # --- what goes where

    def wants_more(self, share: Share) -> bool:
        """Whether a process should be given tasks now."""
        if share.revoking:
            return False
        pending = share.pending()
        return pending < LEAST or (share.load < HORIZON * 0.75 and pending < MOST * 3 // 4)

    def choose(self, share: Share) -> list[int]:
        """The next tasks for a process, in order; they count as sent."""
        tasks, state, place, alone = self.plan.tasks, self.state, self.place, self.alone
        waiting = self.run.waiting
        costs, kinds, loads = self.costs, self.kinds, share.loads
        index = share.index
        room = HORIZON - share.load
        pending = share.pending()
        most, least = MOST - pending, LEAST - pending
        # the end is near: leave something for the others, of what they could begin
        fair = max(1, self.run.left // (2 * len(self.shares)))
        block: list[int] = []
        while (room > 0 or len(block) < least) and len(block) < most:
            i = self._next_for(share)
            if i < 0:
                break
            task = tasks[i]
            what = task[0] if type(task) is tuple else getattr(task, "func", task)
            cost = costs.get(kinds.get(id(what)) or self._kind(what), UNKNOWN)
            if (len(block) >= fair and not waiting[i] and cost * len(block) > HORIZON / 100) or (
                alone and i in alone and block
            ):
                self._queue(share, i)
                break
            block.append(i)
            loads.append(cost)
            room -= cost
            state[i] = SENT
            place[i] = index
            if alone and i in alone:
                break
        share.load = HORIZON - room
        share.flight += block
        return block

    def _next_for(self, share: Share) -> int:
        """The task of the highest priority that this process can be sent now; -1: none."""
        run, state, waiting = self.run, self.state, self.run.waiting
        order = self.plan.order
        queue, late = share.queue, run.late
        while True:
            if queue and (not late or queue[0] < late[0]) and queue[0] < run.cursor:
                i = order[heappop(queue)]
                if state[i] != QUEUED or self.place[i] != share.index:
                    continue
                state[i] = OPEN
                if waiting[i] and not self._follows(share, i):
                    self._pass(i)  # its inputs went elsewhere
                    continue
                self._draw_after(share, i)
            elif late:
                i = order[heappop(late)]
                if state[i] != OPEN or waiting[i]:
                    continue
                self._draw_after(share, i)
            else:
                i = self._advance(share)
                if i < 0:
                    if queue:  # the cursor has passed it now
                        continue
                    return self._steal(share)
            if self._gather(share, i):
                return i

    def _advance(self, share: Share) -> int:
        """Walk on in the order to a task for this process; those on the way that belong to others go to them."""
        run, state, waiting = self.run, self.state, self.run.waiting
        order = self.plan.order
        cursor, total = run.cursor, len(order)
        try:
            while cursor < total:
                i = order[cursor]
                cursor += 1
                if state[i] != OPEN:
                    continue
                if not waiting[i]:
                    home = self._home(share, i)
                    if home is None or len(home.queue) >= CROWDED:
                        return i
                    self._queue(home, i)  # who has nothing to do may steal it there
                    continue
                where = self._where(i)
                if where == share.index and (not share.queue or self._follows(share, i)):
                    return i  # nothing that it needs can be in an empty queue
                if where >= 0:
                    self._queue(self.shares[where], i)
                # else: ready some day, or drawn after its last input
            return -1
        finally:
            run.cursor = cursor

    def _home(self, share: Share, i: int) -> Share | None:
        """The process that alone has an input of a ready task, where that is another one than this."""
        values, place, index = self.run.values, self.place, share.index
        for d in self.plan.deps[i]:
            if values[d] is ELSEWHERE and place[d] != index and d not in share.has:
                return self.shares[place[d]]
        return None

    def _where(self, i: int) -> int:
        """The one process that makes or will make all inputs of a task that are not there yet; -1: there is none."""
        state, place = self.state, self.place
        found = -1
        for d in self.plan.deps[i]:
            kind = state[d]
            if kind == DONE:
                continue
            if kind == SENT or kind == QUEUED:
                here = place[d]
            else:
                return -1
            if here != found and found >= 0:
                return -1
            found = here
        return found

    def _follows(self, share: Share, i: int) -> bool:
        """Whether all inputs that are not there yet have been sent to this process."""
        state, place, index = self.state, self.place, share.index
        for d in self.plan.deps[i]:
            kind = state[d]
            if kind != DONE and not (kind == SENT and place[d] == index):
                return False
        return True

    def _pass(self, i: int) -> None:
        """A task behind the cursor that is not ready: into the queue of the process that makes all that it waits for."""
        where = self._where(i)
        if where >= 0:
            self._queue(self.shares[where], i)

    def _queue(self, share: Share, i: int) -> None:
        self.state[i] = QUEUED
        self.place[i] = share.index
        heappush(share.queue, self.run.positions[i])

    def _draw_after(self, share: Share, i: int) -> None:
        """A task that the cursor had passed is about to be sent: what comes after it, and was passed too, goes along."""
        followers = self.plan.dependents[i]
        if followers is None:
            return
        state, place, positions, cursor = self.state, self.place, self.run.positions, self.run.cursor
        state[i] = QUEUED  # as if: _where() looks at it
        place[i] = share.index
        for f in (followers,) if type(followers) is int else followers:  # type: ignore[union-attr]
            if state[f] == OPEN and positions[f] < cursor and self._where(f) == share.index:
                self._queue(share, f)
        state[i] = OPEN

    def _gather(self, share: Share, i: int) -> bool:
        """Whether all inputs of a task can go to this process now; what is elsewhere is asked for."""
        values, place, index = self.run.values, self.place, share.index
        missing = 0
        for d in self.plan.deps[i]:
            if values[d] is ELSEWHERE and place[d] != index and d not in share.has:
                waiters = self.fetching.get(d)
                if waiters is None:
                    self.shares[place[d]].fetches.append(d)
                    waiters = self.fetching[d] = []
                waiters.append((i, share))
                missing += 1
        if missing:
            self.state[i] = PARKED
            self.place[i] = index
            self.missing[i] = missing
            return False
        return True

    def _steal(self, share: Share) -> int:
        """A ready task from another process's queue, for one that has nothing to do."""
        if share.pending():
            return -1
        for other in self.shares:
            if other is share or not other.pending():
                continue
            for place in other.queue[:16]:  # a heap begins with its least, or nearly
                i = self.plan.order[place]
                if self.state[i] == QUEUED and self.place[i] == other.index and not self.run.waiting[i]:
                    self._draw_after(share, i)
                    if self._gather(share, i):
                        return i
        return -1

    # --- taking back

    def to_take_back(self) -> tuple[Share, int] | None:
        """Somebody has nothing to do: of whom to take back how many tasks, so that one of them could begin elsewhere."""
        most = max(self.shares, key=Share.pending)
        count = most.pending() // 2
        if most.pending() < 2 or most.revoking:
            return None
        waiting = self.run.waiting
        if all(waiting[i] for i in most.flight[-count:]):
            return None
        most.revoking = True
        return most, count

    def taken_back(self, share: Share, count: int) -> None:
        """The newest ``count`` tasks of a process will not run there."""
        share.revoking = False
        if count and not share.ignore:
            self._reopen(share, share.take(count, -1))
        share.ignore = False

    def unreadable(self, share: Share, count: int) -> list[int]:
        """The oldest ``count`` tasks of a process, a block, could not be unpickled there: they will be sent one by one.

        It throws away what was sent to it after that, which may need what the block brought, until it is told to go on.

        Returns:
            The ids of the block.
        """
        ids = share.take(count, 0)
        share.ignore = share.revoking
        self.alone.update(ids)
        self._reopen(share, ids + share.take(share.pending(), 0))
        return ids

    def lost(self, share: Share) -> None:
        """A process is gone that had not begun any task, and another one, which has nothing, stands in its place."""
        share.revoking = share.ignore = False
        share.fetches, share.drops = [], []
        self._reopen(share, share.take(share.pending(), 0))
        share.has.clear()

    def _reopen(self, share: Share, ids: list[int]) -> None:
        """Tasks that were sent to a process and will not run there: the cursor goes back to them."""
        state, deps, has = self.state, self.plan.deps, share.has
        for i in ids:
            state[i] = OPEN
            self.place[i] = -1
            for d in deps[i]:
                has.discard(d)  # it may have thrown the value away with the task
        if ids:
            positions = self.run.positions
            self.run.cursor = min(self.run.cursor, min([positions[i] for i in ids]))

    # --- what has happened

    def learn(self, ids: Iterable[int], seconds: Iterable[float]) -> None:
        """The durations of tasks, measured one by one."""
        for i, took in zip(ids, seconds, strict=True):
            self._learn(i, took, 0.25)

    def learn_mean(self, ids: Iterable[int], seconds: float) -> None:
        """The mean duration of tasks that were measured together."""
        tasks = self.plan.tasks
        last: Any = ELSEWHERE
        for i in ids:
            task = tasks[i]
            what = task[0] if type(task) is tuple else getattr(task, "func", task)
            if what is not last:
                last = what
                self._learn(i, seconds, 0.5)

    def _learn(self, i: int, took: float, weight: float) -> None:
        task = self.plan.tasks[i]
        what = task[0] if type(task) is tuple else getattr(task, "func", task)
        kind = self.kinds.get(id(what)) or self._kind(what)
        old = self.costs.get(kind)
        took = max(FLOOR, took)
        self.costs[kind] = took if old is None else old + (took - old) * weight

    def _kind(self, what: Any) -> Any:
        """What durations are kept under: functions with the same code are one, and objects of the same class."""
        found = what
        for _ in range(8):
            inner = getattr(found, "func", None)
            if inner is None or not callable(inner):
                break
            found = inner
        if isinstance(found, FunctionType):
            kind = id(found.__code__)
        else:
            kind = id(found) if hasattr(found, "__name__") else id(type(found))
        self.kinds[id(what)] = kind  # the graph keeps it alive, so its id stays its own
        return kind

    def book(self, ids: list[int]) -> None:
        """Tasks are done: those that wait for them, and values that nothing needs any more."""
        run, plan, state = self.run, self.plan, self.state
        waiting, uses, values, positions = run.waiting, run.uses, run.values, run.positions
        all_deps, all_dependents = plan.deps, plan.dependents
        for i in ids:
            state[i] = DONE
            followers = all_dependents[i]
            if followers is not None:
                for f in (followers,) if type(followers) is int else followers:  # type: ignore[union-attr]
                    count = waiting[f] = waiting[f] - 1
                    if not count and state[f] == OPEN and positions[f] < run.cursor:
                        self._became_ready(f)
            for d in all_deps[i]:
                count = uses[d] = uses[d] - 1
                if not count:
                    values[d] = None
                    self._release(d)
        run.left -= len(ids)

    def _became_ready(self, i: int) -> None:
        """A task behind the cursor: to the process that has a large input of it, else to whoever comes first."""
        values = self.run.values
        for d in self.plan.deps[i]:
            if values[d] is ELSEWHERE:
                self._queue(self.shares[self.place[d]], i)
                return
        heappush(self.run.late, self.run.positions[i])

    def _release(self, i: int) -> None:
        """Nobody needs a value any more: the processes that can't know are to be told."""
        users = self.users.pop(i, None)
        maker = self.place[i]
        if users is not None:
            if maker >= 0:
                self.shares[maker].drops.append(i)
            for user in users:
                user.has.discard(i)
                user.drops.append(i)

    def used(self, share: Share, i: int) -> None:
        """A process is sent a task that uses a value which it did not make."""
        users = self.users.setdefault(i, [])
        if share not in users:
            users.append(share)

    def arrived(self, i: int, value: Packed) -> None:
        """A value that was asked for is here."""
        self.run.values[i] = value
        for task, target in self.fetching.pop(i):
            self.missing[task] -= 1
            if not self.missing[task]:
                del self.missing[task]
                self._queue(target, task)
