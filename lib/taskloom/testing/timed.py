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

from collections.abc import Iterable, Sequence
from functools import partial
from heapq import heappop, heappush
from typing import Any, NamedTuple

from taskloom.core.client import PENDING, ClientMachine
from taskloom.core.messages import WISH, Options
from taskloom.core.scheduler.machine import CLIENT, WORKER, Scheduler
from taskloom.core.worker import AskerLost, Ended, Got, PeerAsks, PeerLost, Start, WorkerMachine
from taskloom.testing.network import Clock
from taskloom.testing.threads import Threads

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


class TimedWorker(Threads):
    """A worker whose tasks take the time that their jobs say; its values are their bytes.

    Attributes:
        nbytes: what its values take now; ``peak``: what they took at most.
        busy: seconds that its threads have worked.
    """

    def __init__(self, cluster: TimedCluster, name: str, threads: int, limit: int) -> None:
        super().__init__(WorkerMachine(threads, ahead=cluster.ahead), threads)
        self.cluster = cluster
        self.name = name
        self.nbytes = self.peak = 0
        self.busy = 0.0
        self.number = cluster.scheduler.worker_came(name, threads, limit)
        cluster.workers[self.number] = self
        self.do(self.machine.connected(self.number))

    @property
    def now(self) -> float:
        return self.cluster.clock.now

    def store(self, tid: int, value: int) -> None:
        self.values[tid] = value
        self.nbytes += value
        self.peak = max(self.peak, self.nbytes)

    def discard(self, tid: int) -> None:
        self.nbytes -= self.values.pop(tid, 0)

    def say(self, message: Any) -> None:
        self.cluster.say(WORKER, self.number, message)

    def leave(self) -> None:
        self.cluster.kill(self)

    def give(self, peer: TimedWorker, serial: int, tids: Sequence[int], values: list[int]) -> None:
        seconds = self.cluster.latency + sum(values) / self.cluster.bandwidth
        self.cluster.clock.at(seconds, partial(peer.take, self.number, serial, tids, values))

    def ask(self, peer: int, message: Any) -> None:
        self.cluster.clock.at(self.cluster.latency, partial(self._ask, peer, message))

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
                    self.store(tid, size)
            self.handle([Got(number, serial, tids, sizes)])

    def begin(self, key: tuple[int, int], action: Start) -> None:
        self.cluster.ran += 1
        seconds, nbytes = action.args
        self.cluster.clock.at(seconds, partial(self._end, key, seconds, nbytes))

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
