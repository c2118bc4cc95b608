"""The real machines on a simulated clock on which nothing goes wrong: how long a graph takes, and how much memory.

Each task takes the time and makes the bytes that its :class:`Job` says. Messages take ``latency``, values that and their bytes
over ``bandwidth``. What a thread or a machine of ours costs does not count.

>>> cluster = TimedCluster(workers=2)
>>> cluster.submit([Job(1.0), Job(1.0), Job(2.0, deps=(0, 1))])
range(0, 3)
>>> round(cluster.run(), 1)
3.0
>>> list_schedule([1.0, 1.0, 1.0], threads=2)
2.0
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import islice
from typing import Any, NamedTuple

from taskloom.core.client import PENDING, ClientMachine
from taskloom.core.messages import WISH, Options
from taskloom.core.scheduler.machine import CLIENT, WORKER, Scheduler
from taskloom.core.worker import (
    AskerLost,
    Discard,
    Ended,
    Forget,
    Got,
    Keep,
    Leave,
    PeerAsks,
    PeerLost,
    Raised,
    Say,
    Send,
    Start,
    Stop,
    Unready,
    Withdraw,
    WorkerMachine,
)
from taskloom.testing.network import Clock

__all__ = ["Job", "TimedCluster", "TimedWorker", "list_schedule"]

AHEAD = 0.002  # seconds of work that a worker's threads have in hand, as in a real one


class Job(NamedTuple):
    """A task: how long it takes, what it makes, what it is made of, and its function, by any name."""

    seconds: float
    nbytes: int = 8
    deps: Sequence[int] = ()
    function: Any = 0


def list_schedule(seconds: Iterable[float], threads: int) -> float:
    """How long independent tasks take where each thread that is free at once begins the next one of them, in their order.

    Reference: R. L. Graham, Bounds on multiprocessing timing anomalies, SIAM J. Appl. Math. 17 (1969).
    """
    free = [0.0] * threads
    end = 0.0
    for needed in seconds:
        ended = heappop(free) + needed
        end = max(end, ended)
        heappush(free, ended)
    return end


class TimedWorker:
    """A worker that takes its time.

    Attributes:
        nbytes: what its values take now; ``peak``: what they took at most.
        busy: seconds that its threads have worked.
    """

    def __init__(self, cluster: TimedCluster, name: str, threads: int, limit: int) -> None:
        self.cluster = cluster
        self.name = name
        self.threads = threads
        self.alive = True
        self.machine = WorkerMachine(threads, ahead=cluster.ahead)
        self.values: dict[int, int] = {}
        self.results: dict[tuple[int, int], int] = {}
        self.queue: deque[Start] = deque()
        self.executing: dict[tuple[int, int], None] = {}
        self.stopped: set[tuple[int, int]] = set()
        self.nbytes = self.peak = 0
        self.busy = 0.0
        self.number = cluster.scheduler.worker_came(name, threads, limit)
        cluster.workers[self.number] = self
        self._do(self.machine.connected(self.number))

    def handle(self, events: Sequence[Any]) -> None:
        """Let the machine take events in, and do what it says."""
        if self.alive:
            self._do(self.machine.handle(events, self.cluster.clock.now))
            self._next()

    def _holds(self, tid: int, size: int) -> None:
        self.values[tid] = size
        self.nbytes += size
        self.peak = max(self.peak, self.nbytes)

    def _do(self, actions: Sequence[Any]) -> None:
        cluster = self.cluster
        withdrawn: list[Any] = []
        for action in actions:
            kind = type(action)
            if kind is Withdraw:
                keys = [task.key for task in self.queue if task.key in action.keys and task.key not in self.stopped]
                self.queue = deque([task for task in self.queue if task.key not in keys])
                withdrawn += [Unready(*key) for key in keys]
            elif kind is Start:
                self.queue.append(action)
            elif kind is Stop:
                self.stopped.add((action.grant, action.tid))
            elif kind is Keep:
                self._holds(action.name, self.results.pop((action.grant, action.tid)))
            elif kind is Discard:
                del self.results[action.grant, action.tid]
            elif kind is Forget:
                for tid in action.tids:
                    self.nbytes -= self.values.pop(tid, 0)
            elif kind is Send:
                sizes = [self.values[tid] for tid in action.tids]
                seconds = cluster.latency + sum(sizes) / cluster.bandwidth
                cluster.clock.at(seconds, partial(action.peer.take, self.number, action.serial, action.tids, sizes))
            elif kind is Leave:
                cluster.kill(self)
            elif kind is Say and action.peer is None:
                cluster.say(WORKER, self.number, action.message)
            elif kind is Say:
                cluster.clock.at(cluster.latency, partial(self._ask, action.peer, action.message))
        if withdrawn:
            self.handle(withdrawn)

    def _ask(self, number: int, message: Any) -> None:
        other = self.cluster.workers.get(number)
        if other is None:
            self.handle([PeerLost(number)])
        else:
            other.handle([PeerAsks(self, message)])

    def take(self, number: int, serial: int, tids: Sequence[int], sizes: Sequence[int]) -> None:
        """Values of another worker have arrived."""
        if self.alive:
            for tid, size in zip(tids, sizes, strict=True):
                if tid not in self.values:
                    self._holds(tid, size)
            self.handle([Got(number, serial, tids, sizes)])

    def _next(self) -> None:
        at = 0
        while at < len(self.queue) and len(self.executing) < self.threads and self.alive:
            action = self.queue[at]
            key = action.grant, action.tid
            if key not in self.stopped and any(d not in self.values for d in action.deps):
                coming = {tid for _, tid in self.executing} | {other.tid for other in islice(self.queue, at)}
                if any(d in coming for d in action.deps):
                    at += 1  # it was handed over together with what makes its input
                    continue
            del self.queue[at]
            if key in self.stopped:
                self.stopped.discard(key)
                self.handle([Raised(*key, "stopped")])
            elif all(d in self.values for d in action.deps):
                self.executing[key] = None
                self.cluster.ran += 1
                seconds, nbytes = action.args
                self.cluster.clock.at(seconds, partial(self._end, key, seconds, nbytes))
            else:
                self.handle([Unready(*key)])

    def _end(self, key: tuple[int, int], seconds: float, nbytes: int) -> None:
        if not self.alive:
            return
        del self.executing[key]
        self.stopped.discard(key)
        self.busy += seconds
        self.results[key] = nbytes
        self.handle([Ended(*key, nbytes, seconds, None)])


class TimedCluster:
    """One client, one scheduler, some workers.

    Args:
        workers: how many at first.
        threads: of each.
        limit: bytes of memory that each may use; 0: nobody says.
        latency: seconds that a message takes.
        bandwidth: bytes a second between two workers.
        scheduler: the machine; by default a plain one.
        ahead: seconds of work that the threads of a worker have in hand, see
            :class:`taskloom.core.worker.WorkerMachine`.

    Attributes:
        ran: how many tasks were begun.
        pending: what the client wants and does not have.
    """

    def __init__(
        self,
        workers: int = 2,
        threads: int = 1,
        limit: int = 0,
        latency: float = 0.0002,
        bandwidth: float = 500e6,
        scheduler: Scheduler | None = None,
        ahead: float = AHEAD,
    ) -> None:
        self.ahead = ahead
        self.clock = Clock()
        self.latency = latency
        self.bandwidth = bandwidth
        self.scheduler = scheduler or Scheduler()
        self.workers: dict[int, TimedWorker] = {}
        self.client = ClientMachine(b"client of " + b"timed.")
        self.pending: set[int] = set()
        self.ran = 0
        self._inbox: list[tuple[str, int, Any]] = []
        self._deadline = -1.0
        for n in range(workers):
            TimedWorker(self, f"w{n}", threads, limit)
        self.number = self.scheduler.client_came(self.client.uuid)
        for message in self.client.connected():
            self.say(CLIENT, self.number, message)

    def say(self, kind: str, number: int, message: Any) -> None:
        """Somebody says something to the scheduler."""
        self.clock.at(self.latency, partial(self._arrive, kind, number, message))

    def _arrive(self, kind: str, number: int, message: Any) -> None:
        if not self._inbox:
            self.clock.at(0.0, self._work)
        self._inbox.append((kind, number, message))

    def _work(self) -> None:
        inbox, self._inbox = self._inbox, []
        now = self.clock.now
        for action in self.scheduler.handle(inbox, now):
            if action.kind == CLIENT:
                self.clock.at(self.latency, partial(self._heard, action.message))
            elif action.number in self.workers:
                self.clock.at(self.latency, partial(self.workers[action.number].handle, [action.message]))
        deadline = self.scheduler.deadline()
        if deadline is not None and deadline != self._deadline:
            self._deadline = deadline
            self.clock.at(max(0.0, deadline - now), self._work)

    def _heard(self, message: Any) -> None:
        for counter in self.client.handle([message]):
            if self.client.wishes[counter].state == PENDING:
                self.pending.add(counter)
            else:
                self.pending.discard(counter)
        for answer in self.client.to_send():
            self.say(CLIENT, self.number, answer)

    def submit(self, jobs: Sequence[Job], wanted: Iterable[int] | None = None, **options: Any) -> range:
        """Submit tasks, in one block.

        Args:
            jobs: their inputs count from the first task that this client has ever submitted.
            wanted: which of them the client wants, counted from the first of these; by default those that none of them needs.
            options: as in :class:`taskloom.core.messages.Options`.

        Returns:
            The client's numbers of them.
        """
        first = self.client.next_counter
        used = {d - first for job in jobs for d in job.deps}
        keep = set(range(len(jobs))) - used if wanted is None else set(wanted)
        _, messages = self.client.submit(
            [(job.function, job.function) for job in jobs],
            [(job.seconds, job.nbytes) for job in jobs],
            [tuple(job.deps) for job in jobs],
            bytes([WISH * (k in keep) for k in range(len(jobs))]),
            Options(**options),
        )
        self.pending.update(first + k for k in keep)
        for message in messages:
            self.say(CLIENT, self.number, message)
        return range(first, first + len(jobs))

    def release(self, counters: Iterable[int]) -> None:
        """The client wants values no more."""
        counters = list(counters)
        self.pending.difference_update(counters)
        for message in self.client.release(counters):
            self.say(CLIENT, self.number, message)

    def came(self, name: str, threads: int = 1, limit: int = 0) -> TimedWorker:
        """Another worker comes."""
        worker = TimedWorker(self, name, threads, limit)
        self._work()
        return worker

    def kill(self, worker: TimedWorker) -> None:
        """A worker dies, and everybody hears of it at once."""
        worker.alive = False
        del self.workers[worker.number]
        running = [worker.machine.running[key].tid for key in worker.executing]
        self._inbox = [entry for entry in self._inbox if entry[:2] != (WORKER, worker.number)]
        self.scheduler.worker_left(worker.number, running)
        for other in list(self.workers.values()):
            other.handle([AskerLost(worker), PeerLost(worker.number)])
        self._work()

    def retire(self, worker: TimedWorker) -> None:
        """A worker is to go."""
        self.scheduler.retire(worker.number)
        self._work()

    def run(self, most: float = float("inf")) -> float:
        """Go on until the client has all that it wants; the time by then.

        Args:
            most: stop at this time, if it is not done before.

        Raises:
            RuntimeError: it never will.
        """
        while self.pending:
            if self.clock.next > most:
                self.clock.now = most
                return most
            if not self.clock.step():
                raise RuntimeError(f"nothing happens any more, and the client waits for {len(self.pending)} values")
        return self.clock.now
