"""A run on processes: what goes where, in blocks.

The parent keeps the run state of :mod:`taskloom.local.run` and does its booking; the processes run tasks in the order in
which they get them. What it decides:

- **Commit ahead.** A task may be sent to a process before its inputs are there if all that are missing are made by that
  same process, from tasks it has already. Neighbours in the order are related, so a process gets stretches of it, and
  most values never leave the process that made them.
- **Depth by time.** A process holds some 20 ms of work by the measured durations of each function, and is refilled before
  it runs dry. Toward the end the blocks get smaller, so that all processes end together.
- **Values move when they have to.** Small ones that a task elsewhere may need come with the report, as bytes that the
  parent does not open. Large ones are asked for, and go on to the other process by their descriptor.
- **Take back.** What was sent and not begun is taken back when another process has nothing to do.

Each process is lent to one run alone, and the loop is the caller's own thread: Ctrl-C ends it at once, wherever it is, by
killing the processes that run a task.
"""

from __future__ import annotations

import io
import itertools
import pickle
import selectors
from heapq import heappop, heappush
from typing import Any

from taskloom.diagnostics.events import Record
from taskloom.errors import SerializationError, WorkerDiedError
from taskloom.graph.compile import CALL, PLAIN, PUSH, REFS, VALUE
from taskloom.local.channel import materialize
from taskloom.local.child import OUTPUT, WANTED, _ResultError
from taskloom.local.pool import _MOST_BLOBS, Process, ProcessPool, describe_exit
from taskloom.local.run import Run, function_name, name_of
from taskloom.serialize.errors import load_error
from taskloom.serialize.objects import FunctionTable, Packer, dumps

__all__ = ["run_on_processes"]

HORIZON = 0.020  # seconds of work that a process holds
MOST = 2000  # tasks that a process holds
UNKNOWN = HORIZON / 4  # what a task of a function that was not measured yet counts as, in seconds
FLOOR = 2e-6  # seconds that the least task counts as
IDLE_WAIT = 0.005  # seconds that a process may be idle before work is taken back from another one

_serials = itertools.count(1)


class _Packed:
    """A value as bytes that the parent does not open: the pickle and its buffers."""

    __slots__ = ("buffers",)

    def __init__(self, buffers: list[Any]) -> None:
        self.buffers = buffers

    def load(self) -> Any:
        data, *rest = materialize(self.buffers)
        return pickle.loads(data, buffers=rest)


class _Elsewhere:
    """Stands for a value that only the process has which made it."""


_ELSEWHERE = _Elsewhere()

# What a task is, in `state`.
_OPEN = 0  # not sent
_SENT = 1
_DONE = 2
_QUEUED = 3  # not sent, in the queue of one process
_PARKED = 4  # not sent, waits for a value to arrive here


class _Lent:
    """A process, as this run sees it."""

    __slots__ = ("asked", "drops", "flight", "has", "index", "load", "loads", "process", "queue", "revoking")

    def __init__(self, index: int, process: Process) -> None:
        self.index = index
        self.process = process
        self.flight: list[int] = []  # ids sent and not reported, oldest first; `asked` have been reported already
        self.asked = 0
        self.loads: list[float] = []  # the seconds that each was counted as
        self.load = 0.0
        self.queue: list[int] = []  # heap of places in the order: tasks that belong here
        self.has: set[int] = set()  # ids of values that were sent here
        self.drops: list[int] = []
        self.revoking = False

    def pending(self) -> int:
        return len(self.flight) - self.asked


class ProcessRun:
    def __init__(self, run: Run, processes: list[Process]) -> None:
        self.run = run
        self.plan = run.plan
        self.serial = next(_serials)
        count = len(run.plan)
        self.lent = [_Lent(n, process) for n, process in enumerate(processes)]
        self.state = bytearray(count)
        self.place = [-1] * count  # id -> process that makes or made the value
        self.mark = [0] * count  # id -> number of the block it was sent in
        self.block = 0
        self.shared: dict[int, list[_Lent]] = {}  # id -> other processes that use or have the value
        self.fetching: dict[int, list[tuple[int, _Lent]]] = {}  # id -> tasks that wait for it
        self.missing: dict[int, int] = {}  # parked task -> how many values it waits for
        self.wanted = bytearray(count)  # 1: an output
        for i in self.plan.outputs:
            self.wanted[i] = 1
        self.table = FunctionTable()
        self.costs: dict[Any, float] = {}  # function -> seconds, measured
        self.alone: set[int] = set()  # tasks to be sent one by one, to find which of them can't be read
        self.selector = selectors.DefaultSelector()
        for lent in self.lent:
            self.selector.register(lent.process.sock, selectors.EVENT_READ, lent)
        self.writing: set[int] = set()

    # --- the loop

    def loop(self) -> None:
        run = self.run
        self.literals()
        select = self.selector.select
        try:
            while run.left and not run.stopped:
                idle = self.feed()
                timeout = IDLE_WAIT if idle else None
                events = select(timeout)
                if not events:
                    self.take_back()
                for key, mask in events:
                    lent = key.data
                    if mask & selectors.EVENT_WRITE:
                        lent.process.flush()
                    if mask & selectors.EVENT_READ:
                        messages = lent.process.receive()
                        if messages is None:
                            self.died(lent)
                            break
                        for header, buffers in messages:
                            self.handle(lent, header, buffers)
                            if run.stopped:
                                return
        finally:
            self.selector.close()

    def literals(self) -> None:
        """What is data needs no process."""
        plan, run = self.plan, self.run
        for i, spec in enumerate(plan.specs):
            if spec == VALUE:
                run.values[i] = plan.tasks[i]
                self.state[i] = _DONE
        for i, spec in enumerate(plan.specs):
            if spec == VALUE:
                self.book(i)

    def feed(self) -> bool:
        """Give each process work; whether one has none while another has some to give back."""
        idle = busy = False
        # the emptiest first
        for lent in sorted(self.lent, key=lambda lent: lent.load):
            pending = lent.pending()
            if pending == 0 or (lent.load < HORIZON * 0.75 and pending < MOST * 3 // 4):
                block = self.choose(lent)
                if block:
                    self.send(lent, block)
                    pending = lent.pending()
            if lent.drops and not pending:
                lent.process.post(("drop", self.serial, lent.drops))
                lent.drops = []
            if pending == 0:
                idle = True
            elif pending > 1:
                busy = True
            self.watch(lent)
        return idle and busy

    def watch(self, lent: _Lent) -> None:
        """Hear of the socket's being writable while there is something to write."""
        waits = bool(lent.process.outbox)
        if waits != (lent.index in self.writing):
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            self.selector.modify(lent.process.sock, both if waits else selectors.EVENT_READ, lent)
            (self.writing.add if waits else self.writing.discard)(lent.index)

    # --- what goes where

    def choose(self, lent: _Lent) -> list[int]:
        """The next tasks for a process, in order."""
        run, plan = self.run, self.plan
        tasks, costs = plan.tasks, self.costs
        room = HORIZON - lent.load
        most = MOST - lent.pending()
        # the end is near: leave something for the others
        fair = max(1, run.left // (2 * len(self.lent)))
        block: list[int] = []
        while room > 0 and len(block) < most:
            i = self.next_for(lent)
            if i < 0:
                break
            task = tasks[i]
            cost = costs.get(task[0] if type(task) is tuple and task and callable(task[0]) else None, UNKNOWN)
            if (len(block) >= fair and cost * len(block) > HORIZON / 100) or (self.alone and i in self.alone and block):
                self.put_back(lent, i)
                break
            block.append(i)
            lent.loads.append(cost)
            lent.load += cost
            room -= cost
            self.state[i] = _SENT
            self.place[i] = lent.index
            if self.alone and i in self.alone:
                break
        return block

    def put_back(self, lent: _Lent, i: int) -> None:
        self.state[i] = _QUEUED
        self.place[i] = lent.index
        heappush(lent.queue, self.run.positions[i])

    def next_for(self, lent: _Lent) -> int:
        """The task of the highest priority that this process can be sent now; -1: none."""
        run, state, waiting = self.run, self.state, self.run.waiting
        order = self.plan.order
        queue, late = lent.queue, run.late
        while True:
            if queue and (not late or queue[0] < late[0]) and queue[0] < run.cursor:
                i = order[heappop(queue)]
                if state[i] != _QUEUED:
                    continue
                state[i] = _OPEN
                if waiting[i] and not self.follows(lent, i):
                    continue  # its inputs went elsewhere; it comes back when they are there
            elif late:
                i = order[heappop(late)]
                if state[i] != _OPEN:
                    continue
            else:
                i = self.advance(lent)
                if i < 0:
                    return self.steal(lent)
            if self.gather(lent, i):
                return i

    def advance(self, lent: _Lent) -> int:
        """Walk on in the order to a task for this process; those on the way that belong to others go to them."""
        run, state, waiting = self.run, self.state, self.run.waiting
        order = self.plan.order
        cursor, total = run.cursor, len(order)
        try:
            while cursor < total:
                i = order[cursor]
                cursor += 1
                if state[i] != _OPEN:
                    continue
                if not waiting[i]:
                    return i
                where = self.where(i)
                if where == lent.index:
                    return i
                if where >= 0:
                    state[i] = _QUEUED
                    self.place[i] = where
                    heappush(self.lent[where].queue, cursor - 1)
                # else: ready some day, then it is late
            return -1
        finally:
            run.cursor = cursor

    def where(self, i: int) -> int:
        """The one process that makes or will make all inputs of a task that are not there yet; -1: there is none."""
        state, place = self.state, self.place
        found = -1
        for d in self.plan.deps[i]:
            kind = state[d]
            if kind == _DONE:
                continue
            if kind == _SENT or kind == _QUEUED:
                here = place[d]
            else:
                return -1
            if here != found and found >= 0:
                return -1
            found = here
        return found

    def follows(self, lent: _Lent, i: int) -> bool:
        """Whether all inputs that are not there yet have been sent to this process."""
        for d in self.plan.deps[i]:
            if self.state[d] != _DONE and not (self.state[d] == _SENT and self.place[d] == lent.index):
                return False
        return True

    def gather(self, lent: _Lent, i: int) -> bool:
        """Whether all inputs of a task can go to this process now; what is elsewhere is asked for."""
        values, place, state = self.run.values, self.place, self.state
        missing = 0
        for d in self.plan.deps[i]:
            if state[d] == _DONE and values[d] is _ELSEWHERE and place[d] != lent.index and d not in lent.has:
                waiters = self.fetching.get(d)
                if waiters is None:
                    owner = self.lent[place[d]]
                    owner.process.post(("fetch", self.serial, [d]))
                    self.watch(owner)
                    waiters = self.fetching[d] = []
                waiters.append((i, lent))
                missing += 1
        if missing:
            state[i] = _PARKED
            self.missing[i] = missing
            return False
        return True

    def steal(self, lent: _Lent) -> int:
        """A ready task from another process's queue, for one that has nothing to do."""
        if lent.pending():
            return -1
        for other in self.lent:
            if other is lent or not other.pending():
                continue
            for place in sorted(other.queue)[:16]:
                i = self.plan.order[place]
                if self.state[i] == _QUEUED and not self.run.waiting[i] and self.gather(lent, i):
                    return i
        return -1

    # --- sending

    def send(self, lent: _Lent, block: list[int]) -> None:
        run, plan = self.run, self.plan
        self.block += 1
        number = self.block
        mark, wanted, dependents, uses = self.mark, self.wanted, plan.dependents, run.uses
        for i in block:
            mark[i] = number
        wants = bytearray(len(block))
        left = []
        for n, i in enumerate(block):
            followers = dependents[i]
            if wanted[i]:
                wants[n] = OUTPUT
                left.append(uses[i] - 1)
                continue
            left.append(uses[i])
            if type(followers) is int:
                if mark[followers] != number:
                    wants[n] = WANTED
            elif not all(mark[f] == number for f in followers):  # type: ignore[union-attr]
                wants[n] = WANTED
        for pretask in run.pretask:
            for i in block:
                pretask(plan.keys[i])
        self.note_inputs(lent, block)
        try:
            packer, buffers = self.pack(lent, block, wants, left)
        except BaseException as error:
            self.blame_pickle(lent, block, error)
            return
        process = lent.process
        known = process.digests
        new = [digest for digest in packer.used if digest not in known]
        for digest in packer.used:
            known.pop(digest, None)
            known[digest] = None
        forget = []
        while len(known) > _MOST_BLOBS + len(packer.used):
            oldest = next(iter(known))
            del known[oldest]
            forget.append(oldest)
        header = ("tasks", self.serial, len(block), new, forget, lent.drops)
        lent.drops = []
        process.post(header, [*[self.table.blobs[d] for d in new], packer.getvalue(), *packer.buffers, *buffers])
        lent.flight += block

    def note_inputs(self, lent: _Lent, block: list[int]) -> None:
        """Remember which values are used away from where they were made: their makers must be told when to drop them."""
        place, index, deps = self.place, lent.index, self.plan.deps
        for i in block:
            for d in deps[i]:
                if place[d] != index and place[d] >= 0:
                    users = self.shared.setdefault(d, [])
                    if lent not in users:
                        users.append(lent)

    def pack(self, lent: _Lent, block: list[int], wants: Any, left: list[int]) -> tuple[Packer, list[Any]]:
        plan, values = self.plan, self.run.values
        tasks, all_specs, all_deps = plan.tasks, plan.specs, plan.deps
        specs, functions, args, deps = [], [], [], []
        data: dict[int, Any] = {}
        packed: list[tuple[int, int]] = []
        buffers: list[Any] = []
        for i in block:
            spec = all_specs[i]
            task = tasks[i]
            needed = all_deps[i]
            specs.append(spec)
            deps.append(needed)
            if spec == PLAIN:
                functions.append(task[0])
                args.append(task[1:])
            elif spec == REFS:
                functions.append(task[0])
                args.append(None)
            else:
                functions.append(None)
                args.append(None)
            for d in needed:
                if self.state[d] == _DONE and self.place[d] != lent.index and d not in lent.has:
                    value = values[d]
                    if type(value) is _Packed:
                        packed.append((d, len(value.buffers)))
                        buffers += value.buffers
                    else:
                        data[d] = value
                    lent.has.add(d)
        packer = Packer(self.table)
        watched = bool(self.run.posttask)
        packer.dump((watched, packed, data, block, specs, functions, args, deps, bytes(wants), left))
        return packer, buffers

    def blame_pickle(self, lent: _Lent, block: list[int], error: BaseException) -> None:
        """Find the task of a block that does not pickle, and end the run with an error that names it."""
        plan = self.plan
        for i in block:
            spec, task = plan.specs[i], plan.tasks[i]
            parts: list[tuple[str, Any]] = []
            if spec in (PLAIN, REFS):
                parts.append((f"the function {name_of(task[0])}", task[0]))
                if spec == PLAIN:
                    parts += [(f"argument {n} ({type(x).__name__})", x) for n, x in enumerate(task[1:], 1)]
            else:
                for step, operand in spec:  # type: ignore[union-attr]
                    if step == CALL:
                        parts.append((f"the function {name_of(operand[0])}", operand[0]))
                    elif step == PUSH:
                        parts.append((f"an argument ({type(operand).__name__})", operand))
            for d in plan.deps[i]:
                if self.state[d] == _DONE and self.place[d] < 0:
                    parts.append((f"its input {plan.keys[d]!r} ({type(plan.tasks[d]).__name__})", self.run.values[d]))
            for what, part in parts:
                try:
                    dumps(part, FunctionTable())
                except BaseException as problem:
                    self.fail(i, _unpicklable(f"{what} of the task {plan.keys[i]!r}", problem))
                    return
        self.fail(block[0], _unpicklable("a task of this block", error))

    def fail(self, i: int, error: BaseException) -> None:
        self.run.fail(self.plan.keys[i] if i >= 0 else None, error)

    # --- what comes back

    def handle(self, lent: _Lent, header: Any, buffers: list[Any]) -> None:
        kind, serial = header[:2]
        if kind == "reset":
            lent.process.dirty -= 1
        elif serial != self.serial:
            return  # of a run that failed
        elif kind == "done":
            self.done(lent, header, buffers)
        elif kind == "value":
            self.arrived(lent, header[2], header[3], buffers)
        elif kind == "revoked":
            self.revoked(lent, header[2])
        elif kind == "unreadable":
            self.unreadable(lent, header[2], buffers)

    def done(self, lent: _Lent, header: Any, buffers: list[Any]) -> None:
        _, _, count, seconds, times, atom_ids, out_ids, out_buffers, packed, failure = header
        run = self.run
        values = run.values
        stream = io.BytesIO(materialize(buffers[:1])[0])
        unpickler = pickle.Unpickler(stream, buffers=iter(materialize(buffers[1 : 1 + out_buffers])))
        load = unpickler.load
        atoms = load()
        flight = lent.flight
        start = lent.asked
        ids = flight[start : start + count]
        for i in ids:
            values[i] = _ELSEWHERE
        for i, value in zip(atom_ids, atoms, strict=True):
            values[i] = value
        for i in out_ids:
            try:
                values[i] = load()
            except BaseException as error:
                self.fail(i, _unpicklable(f"the result of the task {self.plan.keys[i]!r}, when it arrived,", error))
                return
        at = 1 + out_buffers
        for i, parts in packed:
            values[i] = _Packed(buffers[at : at + parts])
            at += parts
        lent.asked += count
        spent = sum(lent.loads[:count])
        del lent.loads[:count]
        lent.load = lent.load - spent if lent.loads else 0.0
        if lent.asked > 1000 or lent.asked == len(flight):
            del flight[: lent.asked]
            lent.asked = 0
        self.measure(lent, ids, seconds, times)
        self.book_all(ids)
        if failure is not None:
            i, place = failure
            cause = load_error(bytes(materialize(buffers[place : place + 1])[0]))
            if isinstance(cause, _ResultError):
                what, why = cause.args
                cause = SerializationError(
                    f"the result of the task {self.plan.keys[i]!r} ({what}) does not pickle, so it cannot come back "
                    f"from its process: {why}"
                )
            self.fail(i, cause)

    def measure(self, lent: _Lent, ids: list[int], seconds: float, times: Any) -> None:
        """Learn from a report how long functions take, and tell the callbacks."""
        if not ids:
            return
        tasks, costs = self.plan.tasks, self.costs
        if times is None:
            mean = max(FLOOR, seconds / len(ids))
            function: Any = _ELSEWHERE
            for i in ids:
                task = tasks[i]
                new = task[0] if type(task) is tuple and task and callable(task[0]) else None
                if new is not function:
                    function = new
                    old = costs.get(function)
                    costs[function] = mean if old is None else old + (mean - old) / 2
            return
        begun, stops = times
        worker = f"process-{lent.process.pid}"
        for i, stop in zip(ids, stops, strict=True):
            task = tasks[i]
            function = task[0] if type(task) is tuple and task and callable(task[0]) else None
            took = max(FLOOR, stop - begun)
            old = costs.get(function)
            costs[function] = took if old is None else old + (took - old) / 4
            if self.run.posttask:
                record = Record(self.plan.keys[i], function_name(self.plan, i), begun, stop, worker)
                for posttask in self.run.posttask:
                    posttask(record.key, record)
            begun = stop

    def book_all(self, ids: list[int]) -> None:
        for i in ids:
            self.book(i)

    def book(self, i: int) -> None:
        """A task is done: those that wait for it, and values that nothing needs any more."""
        run, plan, state = self.run, self.plan, self.state
        waiting, uses = run.waiting, run.uses
        state[i] = _DONE
        run.left -= 1
        followers = plan.dependents[i]
        if followers is not None:
            for f in (followers,) if type(followers) is int else followers:  # type: ignore[union-attr]
                count = waiting[f] = waiting[f] - 1
                if not count and state[f] == _OPEN:
                    place = run.positions[f]
                    if place < run.cursor:
                        self.became_ready(f, place)
        for d in plan.deps[i]:
            count = uses[d] = uses[d] - 1
            if not count:
                run.values[d] = None
                self.release(d)

    def became_ready(self, i: int, place: int) -> None:
        """A task behind the cursor: to the process that has a large input of it, else to whoever comes first."""
        values = self.run.values
        for d in self.plan.deps[i]:
            if values[d] is _ELSEWHERE:
                self.state[i] = _QUEUED
                self.place[i] = self.place[d]
                heappush(self.lent[self.place[d]].queue, place)
                return
        heappush(self.run.late, place)

    def release(self, i: int) -> None:
        """Nobody needs a value any more: tell the processes that can't know."""
        users = self.shared.pop(i, None)
        if users is not None:
            owner = self.lent[self.place[i]]
            owner.drops.append(i)
            for user in users:
                user.has.discard(i)
                user.drops.append(i)
        elif self.place[i] < 0:
            for lent in self.lent:
                if i in lent.has:
                    lent.has.discard(i)
                    lent.drops.append(i)

    def arrived(self, lent: _Lent, i: int, good: bool, buffers: list[Any]) -> None:
        """A value that was asked for."""
        waiters = self.fetching.pop(i)
        if not good:
            error = load_error(bytes(buffers[0]))
            self.fail(
                i, _unpicklable(f"the result of the task {self.plan.keys[i]!r}, which another process needs,", error)
            )
            return
        self.run.values[i] = _Packed(buffers)
        for task, target in waiters:
            self.missing[task] -= 1
            if not self.missing[task]:
                del self.missing[task]
                self.put_back(target, task)

    def revoked(self, lent: _Lent, count: int) -> None:
        lent.revoking = False
        if not count:
            return
        ids = lent.flight[-count:]
        del lent.flight[-count:]
        del lent.loads[-count:]
        lent.load = sum(lent.loads)
        self.reopen(ids)

    def reopen(self, ids: list[int]) -> None:
        """Tasks that were sent and will not run there."""
        for i in ids:
            self.state[i] = _OPEN
            self.place[i] = -1
        for i in ids:
            place = self.run.positions[i]
            if not self.run.waiting[i]:
                heappush(self.run.late, place)

    def take_back(self) -> None:
        """A process is idle: have the one with the most to do give back half of what it has not begun."""
        most = max(self.lent, key=lambda lent: lent.pending())
        if most.pending() > 1 and not most.revoking:
            most.revoking = True
            most.process.post(("revoke", self.serial, max(1, (most.pending() - 1) // 2)))
            self.watch(most)

    def unreadable(self, lent: _Lent, count: int, buffers: list[Any]) -> None:
        """A block that could not be unpickled over there: one by one shows which task it is."""
        start = lent.asked
        ids = lent.flight[start : start + count]
        del lent.flight[start : start + count]
        lent.load -= sum(lent.loads[:count])
        del lent.loads[:count]
        error = load_error(bytes(buffers[0]))
        if len(ids) == 1:
            self.fail(ids[0], _unpicklable(f"the task {self.plan.keys[ids[0]]!r}, in its process,", error))
            return
        self.alone.update(ids)
        for i in ids:
            for d in self.plan.deps[i]:
                lent.has.discard(d)
        self.reopen(ids)

    def died(self, lent: _Lent) -> None:
        """A process is gone; its cell tells what it was running."""
        process = lent.process
        i = process.cell[0]
        code = process.exit_code()
        process.kill()
        what = describe_exit(code)
        if i >= 0 and self.state[i] == _SENT:
            key = self.plan.keys[i]
            message = f"process {process.pid} {what}, while it ran the task {key!r} ({function_name(self.plan, i)})"
        else:
            key = None
            message = f"process {process.pid} {what}, between two tasks"
        self.run.fail(key, WorkerDiedError(message, key, code))

    def end(self, failed: bool) -> None:
        """Leave the processes as the next run wants them."""
        for lent in self.lent:
            process = lent.process
            if not process.dead:
                process.reset(self.serial)

    def kill_busy(self) -> None:
        for lent in self.lent:
            if not lent.process.dead and (lent.pending() or lent.process.outbox):
                lent.process.kill()


def _unpicklable(what: str, error: BaseException) -> SerializationError:
    made = SerializationError(
        f"{what} does not pickle, so it cannot go from one process to another: {type(error).__name__}: {error}. "
        "Threads have no need to: taskloom.threaded.get, or scheduler='threads'."
    )
    made.__cause__ = error
    return made


def run_on_processes(run: Run, pool: ProcessPool) -> None:
    """Do a run on the processes of a pool."""
    run.start()
    processes: list[Process] = []
    state: ProcessRun | None = None
    try:
        if run.left:
            processes = pool.lend(min(run.workers, run.left))
            state = ProcessRun(run, processes)
            state.loop()
    except BaseException as error:
        # Ctrl-C, or a callback's error: what runs is not waited for
        for process in processes:
            if not process.dead:
                process.kill()
        run.finish(error)
        raise
    if state is not None:
        state.end(run.error is not None)
        pool.take_back(processes)
    run.finish(run.error)
