"""A run on processes: carries out what :mod:`taskloom.local.placement` decides.

::

    caller's thread                              a process (taskloom.local.child)
    Placement.choose() -> block of tasks  --->   runs it; keeps values that others may need
    Placement.book()   <--- report: values of outputs, small values, durations
    "fetch" a large value that a task elsewhere needs ---> "value": by its descriptor, unopened
    "revoke" what has not begun, for a process that is idle ---> "revoked": how many

Values move when they have to. Small ones that a task elsewhere may need come with the report, as bytes that the parent
does not open. Large ones are asked for, and go on to the other process by their descriptor.

Each process is lent to one run alone, and the loop is the caller's own thread: Ctrl-C ends it at once, wherever it is, by
killing the processes.
"""

from __future__ import annotations

import io
import itertools
import pickle
import selectors
import threading
from time import perf_counter
from typing import Any

from taskloom.diagnostics.events import Record
from taskloom.errors import SerializationError, WorkerDiedError
from taskloom.graph.compile import CALL, PLAIN, PUSH, REFS, VALUE
from taskloom.local.channel import materialize
from taskloom.local.child import LONG, NONE_BEGUN, OUTPUT, REPORT_EVERY, WANTED, ResultError
from taskloom.local.placement import DONE, ELSEWHERE, SENT, Packed, Placement, Share
from taskloom.local.pool import MOST_BLOBS, Process, ProcessPool, describe_exit
from taskloom.local.run import Run, function_name, name_of
from taskloom.serialize.errors import load_error
from taskloom.serialize.objects import FunctionTable, Packer, dumps

__all__ = ["run_on_processes"]

IDLE_WAIT = 0.005  # seconds that a process may be idle before work is taken back from another one

_serials = itertools.count(1)


class ProcessRun:
    """One run on processes that are lent to it.

    Args:
        run: the run; its ``values`` are filled in.
        processes: idle ones, for this run alone; one that is found to be dead before it has begun a task is replaced.
        pool: where they are from.
    """

    def __init__(self, run: Run, processes: list[Process], pool: ProcessPool) -> None:
        self.run = run
        self.pool = pool
        self.plan = run.plan
        self.serial = next(_serials)
        self.processes = processes
        self.placement = Placement(run, len(processes))
        self.table = FunctionTable()
        self.mark = [0] * len(run.plan)  # id -> number of the block it was sent in
        self.block = 0
        self.wanted = bytearray(len(run.plan))  # 1: an output
        for i in self.plan.outputs:
            self.wanted[i] = 1
        self.selector = selectors.DefaultSelector()
        for process, share in zip(processes, self.placement.shares, strict=True):
            process.cell[0] = NONE_BEGUN
            self.selector.register(process.sock, selectors.EVENT_READ, share)
        self.writing: set[int] = set()
        self.told: set[int] = set()  # ids that pretask has been called with; some are sent twice

    def loop(self) -> None:
        """Run until all is done or something has failed."""
        run = self.run
        if run.pretask or run.posttask:
            self.tell_of_literals()
        select = self.selector.select
        try:
            while run.left:
                idle = self.feed()
                if run.stopped:  # a task does not pickle: nothing may be under way, so nothing would wake us
                    return
                events = select(IDLE_WAIT if idle else None)
                if not events:
                    self.take_back()
                for key, mask in events:
                    share = key.data
                    process = self.processes[share.index]
                    if mask & selectors.EVENT_WRITE:
                        process.flush()
                    if mask & selectors.EVENT_READ:
                        messages = process.receive()
                        if messages is None:
                            self.died(share)
                            if run.stopped:
                                return
                            continue
                        for header, buffers in messages:
                            self.handle(share, header, buffers)
                            if run.stopped:
                                return
        finally:
            self.selector.close()

    def tell_of_literals(self) -> None:
        """The callbacks hear of every task; data needs no process."""
        worker = threading.current_thread().name
        for i, spec in enumerate(self.plan.specs):
            if spec == VALUE:
                key = self.plan.keys[i]
                now = perf_counter()
                for pretask in self.run.pretask:
                    pretask(key)
                for posttask in self.run.posttask:
                    posttask(key, Record(key, "literal", now, now, worker))

    # --- sending

    def feed(self) -> bool:
        """Give each process work; whether one has none while another may have some to give back."""
        placement = self.placement
        idle = busy = False
        shares = placement.shares
        # the emptiest first
        for share in sorted(shares, key=lambda share: share.load) if len(shares) > 1 else shares:
            if placement.wants_more(share):
                block = placement.choose(share)
                if block:
                    self.send(share, block)
                    if self.run.stopped:  # it does not pickle
                        return False
            pending = share.pending()
            if pending == 0:
                idle = True
            elif pending > 1:
                busy = True
        for share in shares:
            process = self.processes[share.index]
            if share.fetches:
                process.post(("fetch", self.serial, share.fetches))
                share.fetches = []
            if share.drops and not share.pending():
                process.post(("drop", self.serial, share.drops))
                share.drops = []
            self.watch(share)
        return idle and busy

    def watch(self, share: Share) -> None:
        """Hear of the socket's being writable while there is something to write."""
        process = self.processes[share.index]
        waits = bool(process.outbox)
        if waits != (share.index in self.writing):
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            self.selector.modify(process.sock, both if waits else selectors.EVENT_READ, share)
            (self.writing.add if waits else self.writing.discard)(share.index)

    def send(self, share: Share, block: list[int]) -> None:
        """Send a block of tasks, with what they need and the process does not have."""
        run, plan = self.run, self.plan
        if run.pretask:
            for i in block:
                if i not in self.told:
                    self.told.add(i)
                    for pretask in run.pretask:
                        pretask(plan.keys[i])
        try:
            packer, buffers = self.pack(share, block)
        except BaseException as error:
            if not isinstance(error, Exception):  # Ctrl-C
                raise
            self.blame_pickle(block, error)
            return
        process = self.processes[share.index]
        known = process.digests
        new = [digest for digest in packer.used if digest not in known]
        for digest in packer.used:
            known.pop(digest, None)
            known[digest] = None
        forget = []
        while len(known) > MOST_BLOBS + len(packer.used):
            oldest = next(iter(known))
            del known[oldest]
            forget.append(oldest)
        header = ("tasks", self.serial, len(block), new, forget, share.drops)
        share.drops = []
        process.post(header, [*[self.table.blobs[d] for d in new], packer.getvalue(), *packer.buffers, *buffers])

    def wants(self, share: Share, block: list[int]) -> tuple[bytes, list[int]]:
        """What becomes of each value of a block, and how many uses of it are to come."""
        self.block += 1
        number, mark, wanted = self.block, self.mark, self.wanted
        dependents, uses = self.plan.dependents, self.run.uses
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
        for n, cost in enumerate(share.loads[-len(block) :]):
            if cost > REPORT_EVERY:
                wants[n] |= LONG
        return bytes(wants), left

    def pack(self, share: Share, block: list[int]) -> tuple[Packer, list[Any]]:
        plan, values, placement = self.plan, self.run.values, self.placement
        tasks, all_specs, all_deps = plan.tasks, plan.specs, plan.deps
        state, place, has, index = placement.state, placement.place, share.has, share.index
        wants, left = self.wants(share, block)
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
                if state[d] == DONE and place[d] != index and d not in has:
                    value = values[d]
                    if type(value) is Packed:
                        packed.append((d, len(value.buffers)))
                        buffers += value.buffers
                    else:
                        data[d] = value
                    has.add(d)
                    placement.used(share, d)
        packer = Packer(self.table)
        packer.dump((bool(self.run.posttask), packed, data, block, specs, functions, args, deps, wants, left))
        return packer, buffers

    def blame_pickle(self, block: list[int], error: BaseException) -> None:
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
                if self.placement.state[d] == DONE and self.placement.place[d] < 0:
                    parts.append((f"its input {plan.keys[d]!r} ({type(plan.tasks[d]).__name__})", self.run.values[d]))
            for what, part in parts:
                try:
                    dumps(part, FunctionTable())
                except Exception as problem:
                    self.fail(i, _unpicklable(f"{what} of the task {plan.keys[i]!r}", problem))
                    return
        self.fail(block[0], _unpicklable("a task of this block", error))

    def fail(self, i: int, error: BaseException) -> None:
        self.run.fail(self.plan.keys[i] if i >= 0 else None, error)

    # --- what comes back

    def handle(self, share: Share, header: Any, buffers: list[Any]) -> None:
        """A message of a process."""
        kind, serial = header[:2]
        if serial != self.serial:
            return  # an answer to an earlier run
        if kind == "done":
            self.done(share, header, buffers)
        elif kind == "value":
            self.arrived(header[2], header[3], buffers)
        elif kind == "revoked":
            self.placement.taken_back(share, header[2])
        elif kind == "unreadable":
            self.unreadable(share, header[2], buffers)

    def done(self, share: Share, header: Any, buffers: list[Any]) -> None:
        """Tasks have run."""
        _, _, count, seconds, times, atom_ids, out_ids, out_buffers, packed, failure = header
        values = self.run.values
        ids = share.take(count, 0)
        for i in ids:
            values[i] = ELSEWHERE
        stream = io.BytesIO(materialize(buffers[:1])[0])
        load = pickle.Unpickler(stream, buffers=iter(materialize(buffers[1 : 1 + out_buffers]))).load
        for i, value in zip(atom_ids, load(), strict=True):
            values[i] = value
        for i in out_ids:
            try:
                values[i] = load()
            except Exception as error:
                self.fail(i, _unpicklable(f"the result of the task {self.plan.keys[i]!r}, when it arrived,", error))
                return
        at = 1 + out_buffers
        for i, parts in packed:
            values[i] = Packed(buffers[at : at + parts])
            at += parts
        if times is None:
            if ids:
                self.placement.learn_mean(ids, seconds / len(ids))
        else:
            begun, stops = times
            starts = [begun, *stops][: len(stops)]  # none, if the first task of the block raised an error
            self.placement.learn(ids, [stop - start for start, stop in zip(starts, stops, strict=True)])
            if self.run.posttask:
                self.tell(share, ids, starts, stops)
        self.placement.book(ids)
        if failure is not None:
            i, place = failure
            self.fail(i, self.failure(i, load_error(bytes(materialize(buffers[place : place + 1])[0]))))

    def tell(self, share: Share, ids: list[int], starts: list[float], stops: list[float]) -> None:
        """Tell the callbacks of tasks that have run."""
        worker = f"process-{self.processes[share.index].pid}"
        for i, start, stop in zip(ids, starts, stops, strict=True):
            record = Record(self.plan.keys[i], function_name(self.plan, i), start, stop, worker)
            for posttask in self.run.posttask:
                posttask(record.key, record)

    def failure(self, i: int, cause: BaseException) -> BaseException:
        """The error that people see, of one that came from a process."""
        if not isinstance(cause, ResultError):
            return cause
        what, why = cause.args
        return SerializationError(
            f"the result of the task {self.plan.keys[i]!r} ({what}) does not pickle, so it cannot come back "
            f"from its process: {why}. Threads have no need to: taskloom.threaded.get, or scheduler='threads'."
        )

    def arrived(self, i: int, good: bool, buffers: list[Any]) -> None:
        """A value that was asked for."""
        if good:
            self.placement.arrived(i, Packed(buffers))
        else:
            what = f"the result of the task {self.plan.keys[i]!r}, which another process needs,"
            self.fail(i, _unpicklable(what, load_error(bytes(buffers[0]))))

    def take_back(self) -> None:
        """A process is idle: have the one with the most to do give back half of what it has not begun."""
        found = self.placement.to_take_back()
        if found is not None:
            share, count = found
            self.processes[share.index].post(("revoke", self.serial, count))
            self.watch(share)

    def unreadable(self, share: Share, count: int, buffers: list[Any]) -> None:
        """A block that could not be unpickled over there: one by one shows which task it is."""
        ids = self.placement.unreadable(share, count)
        if len(ids) == 1:
            what = f"the task {self.plan.keys[ids[0]]!r}, in its process,"
            self.fail(ids[0], _unpicklable(what, load_error(bytes(buffers[0]))))
        else:
            self.processes[share.index].post(("resume", self.serial))

    def died(self, share: Share) -> None:
        """A process is gone; its cell tells what it was running."""
        process = self.processes[share.index]
        i = process.cell[0]
        if i == NONE_BEGUN and not process.fresh:
            # It was killed while nobody used it, and the system took its time: a large process lives on for a while.
            self.replace(share)
            return
        code = process.exit_code()
        process.kill()
        what = describe_exit(code)
        if i >= 0 and self.placement.state[i] == SENT:
            key = self.plan.keys[i]
            message = f"process {process.pid} {what}, while it ran the task {key!r} ({function_name(self.plan, i)})"
        else:
            key = None
            message = (
                f"process {process.pid} {what}, {'before its first task' if i == NONE_BEGUN else 'between two tasks'}"
            )
        self.run.fail(key, WorkerDiedError(message, key, code))

    def replace(self, share: Share) -> None:
        """Another process in place of one that has died and had not begun anything."""
        dead = self.processes[share.index]
        self.selector.unregister(dead.sock)
        self.writing.discard(share.index)
        process = self.processes[share.index] = self.pool.replace(dead, len(self.processes))
        process.cell[0] = NONE_BEGUN
        self.selector.register(process.sock, selectors.EVENT_READ, share)
        self.placement.lost(share)

    def end(self) -> None:
        """Leave the processes as the next run wants them."""
        for process in self.processes:
            if not process.dead:
                process.reset(self.serial, self.run.error is not None)


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
    try:
        if run.left:
            processes = pool.lend(min(run.workers, run.left))
            state = ProcessRun(run, processes, pool)
            state.loop()
            state.end()
    except BaseException as error:
        # Ctrl-C, or a callback's error: what runs is not waited for
        for process in processes:
            if not process.dead:
                process.kill()
        pool.take_back(processes)
        run.finish(error)
        raise
    pool.take_back(processes)
    run.finish(run.error)
