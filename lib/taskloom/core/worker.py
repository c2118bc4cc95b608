"""The worker: what it has been sent, what it waits for, what it runs next.

The values themselves and the threads are the shell's; here are only the tids. A task waits until all its inputs are here: those
that this worker makes itself, and those that it asks other workers for. Waiting takes no thread. Of what can run, the task of the
highest priority is next, whatever else holds: a worker that is paused runs one at a time, but never none. So tasks that were
sent before their inputs were there cannot wait for each other for ever.

A value that somebody asks for and that is not here is answered when it is: the scheduler may have told others where a task goes
before the task itself has arrived here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import Any, NamedTuple

from taskloom.core.messages import (
    WISH,
    Adopted,
    Announce,
    Ask,
    CancelTasks,
    Copy,
    Drop,
    Fetched,
    ForgetFunctions,
    Functions,
    GaveBack,
    Missing,
    Report,
    Retired,
    Run,
    TakeBack,
    Unask,
)

__all__ = [
    "AskerLost",
    "ClosePeers",
    "Discard",
    "Ended",
    "Forget",
    "Got",
    "Keep",
    "Leave",
    "Paused",
    "PeerAsks",
    "PeerLost",
    "Raised",
    "Rename",
    "Say",
    "Send",
    "Spoiled",
    "Start",
    "Stop",
    "Unready",
    "Withdraw",
    "WorkerMachine",
]


# --- events beside the scheduler's messages


class Ended(NamedTuple):
    """A task has run well: the shell has its value, under grant and tid, until it is told to keep or discard it."""

    grant: int
    tid: int
    size: int
    seconds: float
    result: Any


class Raised(NamedTuple):
    """A task has raised."""

    grant: int
    tid: int
    error: Any


class Unready(NamedTuple):
    """A task that was handed over before its inputs were there could not run: one of them failed."""

    grant: int
    tid: int


class Got(NamedTuple):
    """Values of another worker are here, in the shell's store: the answer to the Ask with this serial."""

    peer: int
    serial: int
    tids: Sequence[int]
    sizes: Sequence[int]


class Spoiled(NamedTuple):
    """Another worker has a value and cannot send it: it does not pickle, or is too large. ``error``: opaque."""

    peer: int
    tid: int
    error: Any


class PeerAsks(NamedTuple):
    """Another worker, or a client, wants values; ``message`` is an Ask or an Unask.

    ``peer`` stands for the connection that it came by, not for who is at its other end: that one may have another by now.
    """

    peer: Any
    message: Any


class AskerLost(NamedTuple):
    """A connection by which others ask us is gone."""

    peer: Any


class PeerLost(NamedTuple):
    """The connection by which we asked another worker is gone, or could not be made."""

    peer: int


class Paused(NamedTuple):
    """Whether memory is too full to go on with all threads."""

    paused: bool


# --- actions


class Start:
    """Run a task on a free thread. It is the machine's own record of the task: do not change it.

    Attributes:
        grant, tid: which task; ``key`` is both, what its thread calls it.
        function, args, deps, wanted: what is to be called, and whether the client wants its value.
        priority, owner, resources: as they came in a Run.
        missing: how many of its inputs are not here; ``unhanded``, how many of these were not handed over here.
        running: it was handed over to the threads.
    """

    __slots__ = (
        "args",
        "deps",
        "function",
        "grant",
        "key",
        "missing",
        "owner",
        "priority",
        "resources",
        "running",
        "tid",
        "unhanded",
        "wanted",
    )

    def __init__(
        self,
        grant: int,
        tid: int,
        function: int,
        args: Any,
        deps: Sequence[int],
        wanted: bool,
        priority: int = 0,
        owner: tuple[bytes, int] = (b"", -1),
        resources: Sequence[tuple[str, float]] = (),
    ) -> None:
        self.grant = grant
        self.tid = tid
        self.function = function
        self.args = args
        self.deps = deps
        self.wanted = wanted
        self.priority = priority
        self.owner = owner
        self.resources = resources
        self.key = (grant, tid)
        self.missing = 0
        self.unhanded = 0
        self.running = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Start) and self._what() == other._what()

    __hash__ = None  # type: ignore[assignment]

    def _what(self) -> tuple[Any, ...]:
        return self.grant, self.tid, self.function, self.args, self.deps, self.wanted

    def __repr__(self) -> str:
        return f"Start{self._what()}"


class Stop(NamedTuple):
    """Stop a task that runs; what it ends with is of no interest."""

    grant: int
    tid: int


class Withdraw(NamedTuple):
    """Take these back from the threads if none has begun them: :class:`Unready` for each; otherwise nothing."""

    keys: Sequence[tuple[int, int]]


class Keep(NamedTuple):
    """Store what a task has ended with, by this name."""

    grant: int
    tid: int
    name: int


class Discard(NamedTuple):
    """Throw away what a task has ended with."""

    grant: int
    tid: int


class Forget(NamedTuple):
    """Throw values away."""

    tids: Sequence[int]


class Rename(NamedTuple):
    """Values have other names from now on: old -> new."""

    names: dict[int, int]


class ClosePeers(NamedTuple):
    """Close the connections to and from those who ask us, and whom we ask.

    What still comes through them speaks of an earlier scheduler's tids: the same number may be another task by now.
    """


class Leave(NamedTuple):
    """The scheduler needs nothing of this worker any more."""


class Say(NamedTuple):
    """A message to the scheduler (``peer`` None) or to another worker."""

    peer: int | None
    message: Any


class Send(NamedTuple):
    """Send values that are here to who asked for them."""

    peer: Any
    serial: int
    tids: Sequence[int]


class WorkerMachine:
    """The worker's machine.

    Args:
        threads: how many tasks run at a time.
        resources: name -> amount.
        ahead: seconds of work that are handed over beyond what the threads are at, so that a short task needs no round trip
            through this machine; they begin in the order in which they were handed over. A task is also handed over
            together with those that make its inputs, to begin when these have ended.

    Attributes:
        tasks: tid -> task that it was sent and that has not ended.
        data: tid -> bytes, of the values that are here.
        owners: tid -> (client UUID, counter), of values that were made here.
        running: tasks that were handed over, by (grant, tid); those that nobody wants any more are in ``stopping`` too.
        asked: tid -> (worker that was asked for a value, serial).
        waiters: tid -> tids of tasks here that wait for it.
        askers: tid -> [(who has asked for a value that is not here, serial)].
        copying: tids that the scheduler wants a copy of here -> (the number of the order, whose the value is).
    """

    def __init__(self, threads: int = 1, resources: dict[str, float] | None = None, ahead: float = 0.0) -> None:
        self.number = -1
        self.threads = threads
        self.free = dict(resources or {})
        self.paused = False
        self.ahead = ahead
        self._chains = ahead > 0
        self._mean = ahead  # seconds that a task takes, of late
        self.tasks: dict[int, Start] = {}
        self.data: dict[int, int] = {}
        self.owners: dict[int, tuple[bytes, int]] = {}
        self.running: dict[tuple[int, int], Start] = {}
        self.stopping: set[tuple[int, int]] = set()
        self.asked: dict[int, tuple[int, int]] = {}
        self.waiters: dict[int, list[int]] = {}
        self.askers: dict[int, list[tuple[Any, int]]] = {}
        self._kept: set[tuple[int, int]] = (
            set()
        )  # of those handed over, which were asked back: one may not have begun yet
        self._serial = 0
        self._failures: dict[int, Any] = {}  # of tasks that raised while there was no scheduler
        self._names = 0  # below 0: what values are called while there is no scheduler
        self.copying: dict[int, tuple[int, tuple[bytes, int]]] = {}
        self._ready: list[tuple[int, int, int, Start]] = []  # heap of (priority, tid, grant, task)
        self._actions: list[Any] = []
        self._report: dict[int, Report] = {}
        self._handlers: dict[type, Any] = {
            Run: self._run,
            TakeBack: self._take_back,
            CancelTasks: self._cancel,
            Drop: self._drop,
            Copy: self._copy,
            Adopted: self._adopted,
            Retired: self._retired,
            Functions: lambda message: None,  # the shell's
            ForgetFunctions: lambda message: None,
            Ended: self._ended,
            Raised: self._raised,
            Unready: self._unready,
            Got: self._got,
            Spoiled: self._spoiled,
            PeerAsks: self._peer_asks,
            AskerLost: self._asker_lost,
            PeerLost: self._peer_lost,
            Paused: self._set_paused,
        }

    def handle(self, events: Sequence[Any], now: float) -> list[Any]:
        """Take in messages of the scheduler and events; what is to be done."""
        for event in events:
            self._handlers[type(event)](event)
        self._begin()
        actions, self._actions = self._actions, []
        if self._report:
            actions += [Say(None, report) for report in self._report.values()]
            self._report = {}
        return actions

    # --- the scheduler comes and goes

    def disconnected(self, withdrawn: Iterable[tuple[int, int]] = ()) -> list[Any]:
        """The scheduler is not there: what to do. Tasks that were not begun are forgotten, the others go on.

        Args:
            withdrawn: (grant, tid) of tasks that were handed over and that no thread had begun. The shell takes them back
                from its threads before: by the names of their functions and inputs others may be meant soon.
        """
        for key in withdrawn:
            task = self.running.pop(key)
            for name, amount in task.resources:
                self.free[name] += amount
            self.stopping.discard(key)
            task.running = False
        for task in list(self.tasks.values()):
            if not task.running:
                self._remove(task)
        self._report = {}
        self.copying.clear()
        self.asked.clear()
        self.askers.clear()
        self._failures.clear()
        self._kept.clear()
        self._actions.append(ClosePeers())
        names: dict[int, int] = {}
        for tid in list(self.data):
            if tid not in self.owners:  # a copy: it is of no use to somebody who does not know whose it is
                self._forget([tid])
                continue
            self._names -= 1
            names[tid] = self._names
            self.data[self._names] = self.data.pop(tid)
            self.owners[self._names] = self.owners.pop(tid)
        self.waiters.clear()
        tasks, self.tasks = self.tasks, {}
        for task in tasks.values():
            task.missing = task.unhanded = 0
            self._names -= 1
            task.tid = self._names
            self.tasks[task.tid] = task
        if names:
            self._actions.append(Rename(names))
        actions, self._actions = self._actions, []
        return actions

    def connected(self, number: int) -> list[Any]:
        """A scheduler is there, and calls this worker by this number: what to say to it."""
        self.number = number
        self._failures.clear()  # of what is not announced nobody will ask
        held = [(*self.owners[name], size, name) for name, size in self.data.items()]
        running = [(*task.owner, name) for name, task in self.tasks.items()]
        return [Say(None, Announce(held, running))]

    def _adopted(self, message: Adopted) -> None:
        names = {name: tid for name, tid in message.held.items() if name in self.data}
        if names:
            self._actions.append(Rename(names))
        for name, tid in names.items():
            size, owner = self.data.pop(name), self.owners.pop(name)
            if tid in self.data:  # it was fetched meanwhile
                continue
            self.data[tid] = size
            self.owners[tid] = owner
            self._unask(tid)
            self._arrived(tid)
        for name, (tid, grant) in message.running.items():
            task = self.tasks.pop(name, None)
            if task is not None:
                task.tid = tid
                task.grant = grant
                self.tasks[tid] = task
            elif name in self.data:  # it has ended since
                self._actions.append(Rename({name: tid}))
                self.data[tid] = self.data.pop(name)
                self.owners[tid] = self.owners.pop(name)
                self._done(grant, tid, 0.0, None)
            elif name in self._failures:
                report = self._reporting(grant)
                report.failed.append(tid)  # type: ignore[attr-defined]
                report.errors.append(self._failures.pop(name))  # type: ignore[attr-defined]

    def _retired(self, message: Retired) -> None:
        self._actions.append(Leave())

    # --- the scheduler's messages

    def _run(self, message: Run) -> None:
        self._serial += 1
        asks: dict[int, list[int]] = {}
        missing: list[int] = []
        grant, wanted = message.grant, message.wanted
        tasks, data, ready = self.tasks, self.data, self._ready
        columns = zip(
            message.tids,
            message.priorities,
            message.functions,
            message.args,
            message.deps,
            wanted,
            message.owners,
            message.resources,
            strict=True,
        )
        # Tasks in the order of their priorities that need nothing begin as they come, where nothing is before them.
        running, waiters, act = self.running, self.waiters, self._actions.append
        in_order = type(message.priorities) is range and not ready
        limit = self._limit() if in_order else 0
        for tid, priority, function, args, deps, want, owner, resources in columns:
            task = tasks[tid] = Start(grant, tid, function, args, deps, bool(want & WISH), priority, owner, resources)
            if not deps and not resources:
                if len(running) < limit and tid not in waiters:
                    task.running = True
                    running[task.key] = task
                    act(task)
                else:
                    limit = 0
                    heappush(ready, (priority, tid, grant, task))
                continue
            limit = 0
            for d in deps:
                if d in data:
                    continue
                task.missing += 1
                if not (self._chains and d in tasks and self._is_handed(d)):
                    task.unhanded += 1
                self.waiters.setdefault(d, []).append(tid)
                source = message.sources.get(d)
                if source is None:
                    if d not in tasks and d not in self.asked:
                        missing.append(d)
                elif d not in self.asked or self.asked[d][0] != source:
                    self._unask(d)
                    self.asked[d] = source, self._serial
                    asks.setdefault(source, []).append(d)
            if not task.unhanded:
                heappush(ready, (priority, tid, grant, task))
        for source, tids in asks.items():
            self._actions.append(Say(source, Ask(self._serial, tids)))
        if missing:
            self._actions.append(Say(None, Missing(missing, self.number)))

    def _take_back(self, message: TakeBack) -> None:
        answer = GaveBack([], [], [], [])
        handed = []
        for tid, grant in zip(message.tids, message.grants, strict=True):
            task = self.tasks.get(tid)
            if task is None or task.running or task.grant != grant:
                answer.kept.append(tid)  # type: ignore[attr-defined]
                answer.kept_grants.append(grant)  # type: ignore[attr-defined]
                if task is not None and task.running:
                    self._kept.add(task.key)
                    if task.grant == grant:
                        handed.append(task.key)
            else:
                self._remove(task)
                answer.tids.append(tid)  # type: ignore[attr-defined]
                answer.grants.append(grant)  # type: ignore[attr-defined]
        self._actions.append(Say(None, answer))
        if self.ahead and handed:  # one may not have been begun; if so, it is given back after all
            self._actions.append(Withdraw(handed))

    def _cancel(self, message: CancelTasks) -> None:
        for tid in message.tids:
            task = self.tasks.get(tid)
            if task is not None:
                if task.running:
                    self.stopping.add(task.key)
                    self._actions.append(Stop(*task.key))
                    if self._is_handed(tid):
                        self._not_handed(tid)
                self._remove(task)
            elif tid in self.data:
                self._forget([tid])
            self._failures.pop(tid, None)

    def _remove(self, task: Start) -> None:
        """A task will not run here, or what it ends with does not count."""
        del self.tasks[task.tid]
        if not task.missing:
            return
        for d in task.deps:
            waiting = self.waiters.get(d)
            if waiting is not None and task.tid in waiting:
                waiting.remove(task.tid)
                if not waiting:
                    del self.waiters[d]
                    if d not in self.copying:
                        self._unask(d)

    def _unask(self, tid: int) -> None:
        found = self.asked.pop(tid, None)
        if found is not None:
            self._actions.append(Say(found[0], Unask([tid])))

    def _drop(self, message: Drop) -> None:
        self._forget([tid for tid in dict.fromkeys(message.tids) if tid in self.data])
        for tid in message.tids:
            if tid in self.copying:
                del self.copying[tid]
                if tid not in self.waiters:
                    self._unask(tid)

    def _forget(self, tids: Sequence[int]) -> None:
        for tid in tids:
            del self.data[tid]
            self.owners.pop(tid, None)
        if tids:
            self._actions.append(Forget(tids))

    def _copy(self, message: Copy) -> None:
        for tid, source in message.sources.items():
            self.copying[tid] = message.orders[tid], message.owners[tid]
            if tid in self.data:
                self._fetched(tid)
            elif tid not in self.asked and tid not in self.tasks:
                self._serial += 1
                self.asked[tid] = source, self._serial
                self._actions.append(Say(source, Ask(self._serial, [tid])))

    def _fetched(self, tid: int) -> None:
        """A copy is here: from now on it is as good as if it had been made here."""
        order, self.owners[tid] = self.copying.pop(tid)
        self._actions.append(Say(None, Fetched([tid], [order])))

    # --- what happens here

    def _limit(self) -> int:
        """How many tasks the threads may have been given."""
        return 1 if self.paused else self.threads + int(self.ahead * self.threads / max(self._mean, 2e-6))

    def _begin(self) -> None:
        """Start what can be started: the highest priority first."""
        ready = self._ready
        held: list[tuple[int, int, int, Start]] = []
        limit = self._limit()
        running, tasks, data, act = self.running, self.tasks, self.data, self._actions.append
        while ready and len(running) < limit:
            entry = heappop(ready)
            tid, task = entry[1], entry[3]
            if tasks.get(tid) is not task or task.running or task.unhanded:
                continue
            if task.missing:
                if not all(d in data or (d in tasks and self._is_handed(d)) for d in task.deps):
                    continue
            elif task.deps and any(d not in data for d in task.deps):
                # dropped meanwhile: the scheduler is asking for the task back
                continue
            if task.resources:
                if not all(self.free.get(name, 0.0) >= amount for name, amount in task.resources):
                    held.append(entry)
                    continue
                for name, amount in task.resources:
                    self.free[name] -= amount
            task.running = True
            running[task.key] = task
            act(task)
            if self._chains and tid in self.waiters:
                for waiting in self.waiters[tid]:
                    other = tasks[waiting]
                    other.unhanded -= 1
                    if not other.unhanded:
                        heappush(ready, (other.priority, waiting, other.grant, other))
        for entry in held:
            heappush(ready, entry)

    def _stopped(self, key: tuple[int, int]) -> Start | None:
        """A thread is free again; the task, if it still counts."""
        task = self.running.pop(key)
        if task.resources:
            for name, amount in task.resources:
                self.free[name] += amount
        if self._kept:
            self._kept.discard(key)
        if self.stopping and key in self.stopping:
            self.stopping.discard(key)
            return None
        del self.tasks[task.tid]
        return task

    def ended(self, key: tuple[int, int], size: int, seconds: float, result: Any) -> int | None:
        """A task has run well: what the event :class:`Ended` says, for who has many of them; :meth:`handle` follows.

        Returns:
            By what name to keep its value; None: throw it away.
        """
        task = self._stopped(key)
        if task is None:
            return None
        tid = task.tid
        self._mean += (seconds - self._mean) * 0.1
        self.data[tid] = size
        self.owners[tid] = task.owner
        if tid >= 0:  # else there is nobody to tell, or nobody that has said yet whether it wants it
            self._done(task.grant, tid, seconds, result, key == (task.grant, tid))
        return tid

    def _ended(self, event: Ended) -> None:
        grant, tid, size, seconds, result = event
        before = len(self._actions)
        name = self.ended((grant, tid), size, seconds, result)
        self._actions.insert(before, Discard(grant, tid) if name is None else Keep(grant, tid, name))

    def _done(self, grant: int, tid: int, seconds: float, result: Any, made_here: bool = True) -> None:
        report = self._report.get(grant) or self._reporting(grant)
        report.tids.append(tid)  # type: ignore[attr-defined]
        report.sizes.append(self.data[tid])  # type: ignore[attr-defined]
        report.seconds.append(seconds)  # type: ignore[attr-defined]
        report.results.append(result)  # type: ignore[attr-defined]
        if tid in self.waiters or tid in self.askers or self.copying:
            self._arrived(tid, made_here)

    def _raised(self, event: Raised) -> None:
        task = self._stopped((event.grant, event.tid))
        if task is None:
            return
        if task.key == (task.grant, task.tid):
            self._not_handed(task.tid)
        if task.tid < 0:
            self._failures[task.tid] = event.error
            return
        report = self._reporting(task.grant)
        report.failed.append(task.tid)  # type: ignore[attr-defined]
        report.errors.append(event.error)  # type: ignore[attr-defined]

    def _unready(self, event: Unready) -> None:
        task = self.running.pop((event.grant, event.tid))
        for name, amount in task.resources:
            self.free[name] += amount
        kept = task.key in self._kept
        self._kept.discard(task.key)
        if task.key in self.stopping:
            self.stopping.discard(task.key)
            return
        if task.tid < 0:  # there is no scheduler that would send what it lacks
            del self.tasks[task.tid]
            return
        # It waits again; the scheduler, which hears of the failure, will take it from here, or has wanted it back already.
        if self._is_handed(task.tid):
            self._not_handed(task.tid)
        task.running = False
        if kept:
            self._remove(task)
            self._actions.append(Say(None, GaveBack([task.tid], [task.grant], [], [])))
            return
        task.unhanded = sum(d not in self.data and not self._is_handed(d) for d in task.deps)
        if not task.unhanded:
            heappush(self._ready, (task.priority, task.tid, task.grant, task))

    def _is_handed(self, tid: int) -> bool:
        """Whether a task was handed over, by this name: one that was before the scheduler died has another one there."""
        task = self.tasks.get(tid)
        return self._chains and task is not None and task.running and task.key == (task.grant, tid)

    def _not_handed(self, tid: int) -> None:
        """A task that was handed over has not made its value: those that wait for it wait for somebody to make it."""
        if self._chains:
            for waiting in self.waiters.get(tid, ()):
                self.tasks[waiting].unhanded += 1

    def _reporting(self, grant: int) -> Report:
        found = self._report.get(grant)
        if found is None:
            found = self._report[grant] = Report(grant, [], [], [], [], [], [])
        return found

    def _arrived(self, tid: int, made_here: bool = False) -> None:
        """A value is here: for tasks that wait for it, and for those who asked."""
        handed = self._chains and (made_here or self._is_handed(tid))
        for waiting in self.waiters.pop(tid, ()):
            task = self.tasks.get(waiting)
            if task is None:  # handed over behind this one, and another thread's word that it has ended came first
                continue
            task.missing -= 1
            if not handed:
                task.unhanded -= 1
                if not task.unhanded and not task.running:
                    heappush(self._ready, (task.priority, waiting, task.grant, task))
        askers = self.askers.pop(tid, None)
        if askers:
            for peer, serial in askers:
                self._actions.append(Send(peer, serial, [tid]))
        if tid in self.copying:
            self._fetched(tid)

    def _got(self, event: Got) -> None:
        for tid, size in zip(event.tids, event.sizes, strict=True):
            if self.asked.get(tid) == (event.peer, event.serial):
                del self.asked[tid]
            if tid in self.data:
                continue
            if tid not in self.waiters and tid not in self.copying:
                self._actions.append(Forget([tid]))
                continue
            self._unask(tid)  # it is an answer to an earlier question
            self.data[tid] = size
            self._arrived(tid)

    def _spoiled(self, event: Spoiled) -> None:
        """A value cannot come here: the tasks here that need it fail by that."""
        tid = event.tid
        if self.asked.get(tid, (-1,))[0] != event.peer:
            return
        del self.asked[tid]
        self.copying.pop(tid, None)
        for waiting in list(self.waiters.get(tid, ())):
            task = self.tasks[waiting]
            if task.running:  # handed over already, and about to find that its input is not there
                continue
            self._remove(task)
            report = self._reporting(task.grant)
            report.failed.append(waiting)  # type: ignore[attr-defined]
            report.errors.append(event.error)  # type: ignore[attr-defined]

    def _peer_asks(self, event: PeerAsks) -> None:
        if type(event.message) is Unask:
            for tid in event.message.tids:
                self._forget_asker(tid, event.peer)
            return
        here = []
        for tid in event.message.tids:
            if tid in self.data:
                here.append(tid)
            else:
                self.askers.setdefault(tid, []).append((event.peer, event.message.serial))
        if here:
            self._actions.append(Send(event.peer, event.message.serial, here))

    def _forget_asker(self, tid: int, peer: Any) -> None:
        askers = [asker for asker in self.askers.get(tid, ()) if asker[0] != peer]
        if askers:
            self.askers[tid] = askers
        else:
            self.askers.pop(tid, None)

    def _peer_lost(self, event: PeerLost) -> None:
        lost = [tid for tid, (source, _) in self.asked.items() if source == event.peer]
        for tid in lost:
            del self.asked[tid]
        lost = [tid for tid in lost if tid in self.waiters or tid in self.copying]
        for tid in lost:
            self.copying.pop(tid, None)
        if lost:
            self._actions.append(Say(None, Missing(lost, event.peer)))

    def _asker_lost(self, event: AskerLost) -> None:
        for tid in list(self.askers):
            self._forget_asker(tid, event.peer)

    def _set_paused(self, event: Paused) -> None:
        self.paused = event.paused
