"""The real machines of scheduler, workers and clients on a simulated clock and network.

Everything that happens follows from the seed: how long messages and tasks take, what is delayed, which connection breaks, who
dies when. After every batch that the scheduler takes in, all its invariants are checked. At the end every value has to be what
plain evaluation says, every error one that had a reason, and nothing may be left anywhere.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from taskloom.core.client import FAILED, PENDING, READY, ClientMachine
from taskloom.core.messages import PIN, WISH, Functions, Lost, Options, Status
from taskloom.core.scheduler.checks import validate
from taskloom.core.scheduler.machine import CLIENT, WORKER, Scheduler
from taskloom.core.worker import (
    AskerLost,
    ClosePeers,
    Discard,
    Ended,
    Forget,
    Got,
    Keep,
    Leave,
    Paused,
    PeerAsks,
    PeerLost,
    Raised,
    Rename,
    Send,
    Start,
    Stop,
    WorkerMachine,
)

__all__ = ["Clock", "Link", "SimulatedCluster", "SimulationError"]

MOST_EVENTS = 40_000

# What can go wrong, and how often beside the others.
TROUBLES = {
    "scheduler dies": 4,
    "worker dies": 14,
    "worker loses scheduler": 10,
    "worker retires": 8,
    "workers lose each other": 12,
    "worker pauses": 10,
    "client loses scheduler": 8,
    "client goes": 3,
    "releases": 10,
    "cancels": 8,
    "retries": 8,
}


class SimulationError(AssertionError):
    """The cluster did what it must not; the message names the seed."""


class Clock:
    """Simulated time: what is to happen, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, seconds: float, what: Callable[[], None]) -> None:
        """Have something happen so many seconds from now."""
        self.when(self.now + seconds, what)

    def when(self, time: float, what: Callable[[], None]) -> None:
        """Have something happen at a time."""
        self._count += 1
        heapq.heappush(self._heap, (time, self._count, what))

    def step(self) -> bool:
        """Let the next thing happen; False when there is none."""
        if not self._heap:
            return False
        self.now, _, what = heapq.heappop(self._heap)
        what()
        return True


class Link:
    """One direction of a connection: in order, at its own pace, until it breaks."""

    def __init__(self, cluster: SimulatedCluster, deliver: Callable[[Any], None]) -> None:
        self.cluster = cluster
        self.deliver = deliver
        self.open = True
        self.stuck = False  # nothing gets through, and nobody knows
        self._last = 0.0

    def send(self, message: Any) -> None:
        """Hand a message in."""
        if not self.open or self.stuck:
            return
        clock = self.cluster.clock
        self._last = max(self._last, clock.now + self.cluster.delay())
        clock.when(self._last, lambda: self._arrive(message))

    def _arrive(self, message: Any) -> None:
        if self.open and not self.stuck:
            self.deliver(message)


class Peering:
    """A connection by which one worker asks another one."""

    def __init__(self, cluster: SimulatedCluster, asker: SimulatedWorker, giver: SimulatedWorker) -> None:
        self.cluster = cluster
        self.asker = asker
        self.giver = giver
        self.number = giver.number  # what the asker calls it, whatever it is called later
        self.there = Link(cluster, lambda message: giver.handle([PeerAsks(self, message)]))
        self.back = Link(cluster, lambda values: asker.take(self.number, *values))

    def fail(self) -> None:
        """It breaks: what is under way may be lost, and each end hears of it in its own time."""
        cluster, draw = self.cluster, self.cluster.draw
        self.there.stuck = draw.random() < 0.8
        self.back.stuck = draw.random() < 0.8
        cluster.clock.at(cluster.delay() + 0.05, self._asker_hears)
        cluster.clock.at(cluster.delay() + 0.05, self._giver_hears)

    def close(self) -> None:
        """The asker closes it; nothing that is under way arrives."""
        self.there.open = self.back.open = False
        self.cluster.clock.at(self.cluster.delay(), self._giver_hears)

    def _asker_hears(self) -> None:
        self.there.open = self.back.open = False
        if self.asker.peers.get(self.number) is self:
            del self.asker.peers[self.number]
            self.asker.handle([PeerLost(self.number)])

    def _giver_hears(self) -> None:
        self.there.open = self.back.open = False
        self.giver.handle([AskerLost(self)])


class SimulatedScheduler:
    """A scheduler process."""

    def __init__(self, cluster: SimulatedCluster, incarnation: int, grace: float = 0.0) -> None:
        self.cluster = cluster
        self.alive = True
        self.machine = Scheduler(incarnation, grace)
        self.links: dict[int, Link] = {}
        self._inbox: list[tuple[str, int, Any]] = []
        self._deadline = -1.0

    def take(self, kind: str, number: int, message: Any) -> None:
        """A message has arrived; it is looked at with those that arrive a little later."""
        if not self.alive:
            return
        if not self._inbox:
            self.cluster.clock.at(self.cluster.draw.choice((0.0, 0.0, 0.0005)), self.work)
        self._inbox.append((kind, number, message))

    def work(self) -> None:
        """Handle what has arrived."""
        if not self.alive:
            return
        inbox, self._inbox = self._inbox, []
        actions = self.machine.handle(inbox, self.cluster.clock.now)
        self.cluster.steps += 1
        if self.cluster.steps % self.cluster.validate_every == 0:
            validate(self.machine)
        for action in actions:
            link = self.links.get(action.number)
            if link is not None:
                link.send(action.message)
        deadline = self.machine.deadline()
        if deadline is not None and deadline != self._deadline:
            self._deadline = deadline
            self.cluster.clock.at(max(0.0, deadline - self.cluster.clock.now), self.work)

    def lost(self, kind: str, number: int, running: Sequence[int] | None = None) -> None:
        """A connection has broken."""
        if not self.alive:
            return
        link = self.links.pop(number, None)
        if link is not None:
            link.open = False
        if kind == WORKER and number in self.machine.workers:
            self.machine.worker_left(number, running)
        elif kind == CLIENT and number in self.machine.clients:
            self.machine.client_left(number)
        self.work()


class SimulatedWorker:
    """A worker process: its machine, values, and threads that take their time."""

    def __init__(self, cluster: SimulatedCluster, name: str, threads: int, resources: dict[str, float]) -> None:
        self.cluster = cluster
        self.name = name
        self.threads = threads
        self.resources = resources
        self.speed = cluster.draw.choice((1.0, 1.0, 1.0, 0.3, 5.0))
        self.alive = True
        self.machine = WorkerMachine(threads, resources)
        self.values: dict[int, Any] = {}
        self.results: dict[tuple[int, int], Any] = {}
        self.functions: dict[int, Any] = {}
        self.stopped: set[tuple[int, int]] = set()
        self.up: Link | None = None
        self.down: Link | None = None
        self.peers: dict[int, Peering] = {}

    @property
    def number(self) -> int:
        """The scheduler's number of it."""
        return self.machine.number

    def join(self) -> None:
        """Connect to the scheduler, with what it has."""
        cluster, scheduler = self.cluster, self.cluster.scheduler
        if not self.alive or self.up is not None:
            return
        number = scheduler.machine.worker_came(self.name, self.threads, 0, self.resources)
        cluster.workers.pop(self.number, None)
        cluster.workers[number] = self
        self.functions.clear()
        self.down = scheduler.links[number] = Link(cluster, self.heard)
        self.up = Link(cluster, lambda message: scheduler.take(WORKER, number, message))
        self.do(self.machine.connected(number))
        if self.machine.paused:
            self.up.send(Status(True, []))
        scheduler.work()

    def lose_scheduler(self, up: Link | None) -> None:
        """A connection to the scheduler is gone; make another one soon. The scheduler hears of it some time."""
        if not self.alive or up is None or self.up is not up:
            return
        cluster, scheduler, number = self.cluster, self.cluster.scheduler, self.number
        assert self.down is not None
        up.open = self.down.open = False
        self.up = self.down = None
        self.do(self.machine.disconnected())
        cluster.clock.at(cluster.draw.choice((0.001, 0.05, 0.3)), self.join)
        cluster.clock.at(cluster.delay() * cluster.draw.choice((1, 10)), lambda: scheduler.lost(WORKER, number))

    def heard(self, message: Any) -> None:
        """A message of the scheduler."""
        if type(message) is Functions:
            self.functions.update(zip(message.numbers, message.payloads, strict=True))
        self.handle([message])

    def handle(self, events: list[Any]) -> None:
        """Let the machine take events in, and do what it says."""
        if not self.alive:
            return
        self.do(self.machine.handle(events, self.cluster.clock.now))

    def do(self, actions: list[Any]) -> None:
        """Do what the machine says."""
        for action in actions:
            kind = type(action)
            if kind is Start:
                self._start(action)
            elif kind is Stop:
                self.stopped.add((action.grant, action.tid))
            elif kind is Keep:
                self.values[action.name] = self.results.pop((action.grant, action.tid))
            elif kind is Discard:
                del self.results[action.grant, action.tid]
            elif kind is Forget:
                for tid in action.tids:
                    self.values.pop(tid, None)
            elif kind is Send:
                values = [self.values[tid] for tid in action.tids]
                action.peer.back.send((action.serial, list(action.tids), values))
            elif kind is Rename:
                for old, new in action.names.items():
                    self.values[new] = self.values.pop(old)
            elif kind is ClosePeers:
                peers, self.peers = self.peers, {}
                for peering in peers.values():
                    peering.close()
            elif kind is Leave:
                self.cluster.note(f"worker {self.number} leaves")
                self.cluster.kill(self)
            elif action.peer is None:
                if self.up is not None:
                    self.up.send(action.message)
            else:
                self._ask(action.peer, action.message)

    def _start(self, action: Start) -> None:
        cluster = self.cluster
        function = self.functions[action.function]
        inputs = [self.values[d] for d in action.deps]
        cluster.began(self, action)
        seconds = cluster.duration(function) * self.speed

        def end() -> None:
            if not self.alive:
                return
            cancelled = (action.grant, action.tid) in self.stopped
            self.stopped.discard((action.grant, action.tid))
            if cancelled and cluster.draw.random() < 0.7:
                self.handle([Raised(action.grant, action.tid, "stopped")])
                return
            if function[0] == "kill":
                cluster.kill(self)
                return
            try:
                value = cluster.evaluate(function, action.args, inputs)
            except ArithmeticError as error:
                self.handle([Raised(action.grant, action.tid, str(error))])
                return
            self.results[action.grant, action.tid] = value
            size = cluster.draw.choice((8, 1000, 10**6))
            result = value if action.wanted and size < 10**6 else None
            self.handle([Ended(action.grant, action.tid, size, seconds, result)])

        cluster.clock.at(seconds, end)

    def _ask(self, peer: int, message: Any) -> None:
        """Say something to another worker; the connection is made when it is needed."""
        peering = self.peers.get(peer)
        if peering is None:
            other = self.cluster.workers.get(peer)
            if other is None or not other.alive or other is self:
                self.cluster.clock.at(self.cluster.delay(), lambda: self.handle([PeerLost(peer)]))
                return
            peering = self.peers[peer] = Peering(self.cluster, self, other)
        peering.there.send(message)

    def take(self, peer: int, serial: int, tids: list[int], values: list[Any]) -> None:
        """Values of another worker have arrived."""
        if self.alive:
            for tid, value in zip(tids, values, strict=True):
                self.values.setdefault(tid, value)
            self.handle([Got(peer, serial, tids, [8] * len(tids))])


class SimulatedClient:
    """A client process."""

    def __init__(self, cluster: SimulatedCluster, uuid: bytes) -> None:
        self.cluster = cluster
        self.machine = ClientMachine(uuid)
        self.number = -1
        self.up: Link | None = None
        self.down: Link | None = None
        self.gone = False
        self.expected: list[Any] = []  # by counter: ("value", x) or ("error", culprits)
        self.cancelled: set[int] = set()
        self.calls: list[tuple[Any, Any, list[int]]] = []

    def join(self) -> None:
        """Connect to the scheduler, with what it wants."""
        scheduler = self.cluster.scheduler
        if self.gone or self.up is not None:
            return
        number = self.number = scheduler.machine.client_came(self.machine.uuid)
        self.down = scheduler.links[number] = Link(self.cluster, self.heard)
        self.up = Link(self.cluster, lambda message: scheduler.take(CLIENT, number, message))
        self.say(self.machine.connected())

    def lose_scheduler(self, up: Link | None) -> None:
        """A connection to the scheduler is gone; make another one soon."""
        if up is None or self.up is not up:
            return
        assert self.down is not None
        up.open = self.down.open = False
        self.up = self.down = None
        self.cluster.clock.at(self.cluster.draw.choice((0.001, 0.05, 0.3)), self.join)

    def heard(self, message: Any) -> None:
        """A message of the scheduler."""
        self.machine.handle([message])

    def say(self, messages: Sequence[Any]) -> None:
        """Send messages to the scheduler; they are lost while it is not there."""
        for message in messages:
            if self.up is not None:
                self.up.send(message)


class SimulatedCluster:
    """A cluster whose every event follows from a seed.

    Args:
        seed: any integer.
        workers: how many, at first.
        clients: how many.
        tasks: how many, about, in all submissions together.
        chaos: whether things break.
        validate_every: how many batches of the scheduler pass between two checks of all its invariants.
    """

    def __init__(
        self,
        seed: int,
        workers: int | None = None,
        clients: int | None = None,
        tasks: int | None = None,
        chaos: bool = True,
        validate_every: int = 1,
    ) -> None:
        self.seed = seed
        self.draw = random.Random(seed)
        self.clock = Clock()
        self.chaos = chaos
        self.validate_every = validate_every
        self.steps = 0
        self.quiet = False
        self.incarnation = 1
        self.scheduler = SimulatedScheduler(self, 1)
        self.workers: dict[int, SimulatedWorker] = {}
        self.clients: list[SimulatedClient] = []
        self.crashes: dict[tuple[bytes, int], int] = {}  # (client, counter) -> workers that died while running it
        self.ran: dict[tuple[bytes, int], int] = {}
        self.log: list[str] = []
        draw = self.draw
        self.tasks = draw.randint(1, 60) if tasks is None else tasks
        for n in range(draw.randint(1, 4) if workers is None else workers):
            self.new_worker(n)
        for n in range(draw.randint(1, 2) if clients is None else clients):
            client = SimulatedClient(self, bytes([n]) * 16)
            self.clients.append(client)
            client.join()

    # --- what is drawn

    def delay(self) -> float:
        """Seconds that a message takes."""
        if self.quiet:
            return 0.0005
        return self.draw.choice((0.0001, 0.0005, 0.002, 0.02, 0.05))

    def duration(self, function: Any) -> float:
        """Seconds that a task takes."""
        return float(self.draw.choice((0.0, 0.0001, 0.003, 0.05)))

    def new_worker(self, n: int) -> SimulatedWorker:
        """Start a worker."""
        resources = {"GPU": 1.0} if self.draw.random() < 0.5 or n == 0 else {}
        worker = SimulatedWorker(self, f"w{n}", self.draw.choice((1, 1, 2, 4)), resources)
        worker.join()
        return worker

    # --- work

    @staticmethod
    def evaluate(function: Any, args: Any, inputs: Sequence[Any]) -> Any:
        """The value of a task: it depends on everything that it should."""
        if function[0] == "raise":
            raise ArithmeticError(f"raised by {args}")
        return hash((function, args, *inputs)) & 0xFFFFFFFF

    def began(self, worker: SimulatedWorker, action: Start) -> None:
        """A worker has begun a task."""
        owner = worker.machine.running[action.grant, action.tid].owner
        self.ran[owner] = self.ran.get(owner, 0) + 1

    def submit(self, client: SimulatedClient) -> None:
        """Have a client submit a random graph, which may need what it submitted before."""
        draw = self.draw
        if client.gone:
            return
        count = draw.randint(1, 25)
        first = client.machine.next_counter
        functions, args, deps = [], [], []
        shape = draw.choice(("any", "chain", "wide", "any"))
        alive = [c for c in client.machine.wishes if client.machine.wishes[c].state != FAILED]
        for k in range(count):
            function: tuple[Any, ...] = ("f", draw.randrange(3))
            if draw.random() < 0.02:
                function = ("raise",)
            elif self.chaos and draw.random() < 0.005:
                function = ("kill",)
            if shape == "chain":
                needed = {first + k - 1} if k else set()
            elif shape == "wide":
                needed = set() if k < count - 1 else set(range(first, first + k))
            else:
                low = max(0, k - 8)
                needed = {first + draw.randrange(low, k) for _ in range(draw.randrange(4))} if k else set()
            if alive and draw.random() < 0.15:
                needed.add(draw.choice(alive))
            functions.append((function, function))
            args.append(draw.randrange(1000))
            deps.append(sorted(needed))
        used = {d for needed in deps for d in needed}
        wanted = bytes([first + k not in used or draw.random() < 0.2 for k in range(count)])
        options = Options(
            priority=draw.choice((0, 0, 0, 1, -1)),
            retries=draw.choice((0, 0, 2)),
            workers=draw.choice(((), (), (), ("w0", "w1"))),
            resources=draw.choice(((), (), (), (("GPU", 1.0),))),
            deaths=draw.choice((3, 3, 1, 0)),
        )
        for k in range(count):
            client.calls.append((functions[k][1], args[k], deps[k]))
            client.expected.append(self._expected(client, first + k, options))
        self.note(f"client {client.number} submits {first}..{first + count - 1} {shape} {options}")
        # in one block or in several, as a large graph comes
        cuts = sorted({0, count, *(draw.randrange(count) for _ in range(draw.choice((0, 0, 1, 2))))})
        for start, end in pairwise(cuts):
            later = {d for needed in deps[end:] for d in needed}
            flags = [WISH * bool(wanted[k]) + PIN * (first + k in later) for k in range(start, end)]
            unpin = (first, first + count) if end == count and len(cuts) > 2 else (0, 0)
            client.say(
                client.machine.submit(
                    functions[start:end], args[start:end], deps[start:end], bytes(flags), options, unpin
                )[1]
            )

    def _expected(self, client: SimulatedClient, counter: int, options: Options) -> tuple[str, Any]:
        function, args, deps = client.calls[counter]
        culprits: set[int] = set()
        for d in deps:
            kind, what = client.expected[d]
            if kind == "error":
                culprits |= what
        if function[0] in ("raise", "kill"):
            culprits.add(counter)
        if culprits:
            return "error", culprits
        return "value", self.evaluate(function, args, [client.expected[d][1] for d in deps])

    # --- what goes wrong

    def note(self, text: str) -> None:
        """For the story of a seed that failed."""
        self.log.append(f"{self.clock.now:.6f} {text}")

    def kill(self, worker: SimulatedWorker) -> None:
        """A worker process dies at once; another one may come."""
        if not worker.alive:
            return
        worker.alive = False
        running = [tid for (grant, tid) in worker.machine.running if (grant, tid) not in worker.machine.stopping]
        self.note(f"worker {worker.number} {worker.name} dies, running {running}")
        for task in worker.machine.running.values():
            self.crashes[task.owner] = self.crashes.get(task.owner, 0) + 1
        if worker.up is not None:
            up = worker.up
            # what it had sent may still arrive before its end is heard of
            if self.draw.random() < 0.5:
                up.open = False
        number = worker.number
        scheduler = self.scheduler
        link = scheduler.links.get(number)
        if link is not None:
            link.open = False

        def heard() -> None:
            if worker.up is not None:
                worker.up.open = False
            scheduler.lost(WORKER, number, running)

        if worker.up is not None:
            self.clock.at(self.delay() + 0.05, heard)
        for peering in self.peerings(worker):
            peering.fail()
        name = int(worker.name[1:])
        self.clock.at(self.draw.choice((0.01, 0.1, 1.0)), lambda: self._come_back(name))

    def _come_back(self, n: int) -> None:
        self.new_worker(n)

    def peerings(self, worker: SimulatedWorker) -> list[Peering]:
        """The connections between a worker and others."""
        found = list(worker.peers.values())
        for other in self.workers.values():
            if other.alive and worker.number in other.peers:
                found.append(other.peers[worker.number])
        return found

    def trouble(self) -> None:
        """Something goes wrong."""
        draw = self.draw
        alive = [worker for worker in self.workers.values() if worker.alive]
        here = [client for client in self.clients if not client.gone and client.up is not None]
        what = draw.choices(list(TROUBLES), list(TROUBLES.values()))[0]
        worker = draw.choice(alive) if alive else None
        client = draw.choice(here) if here else None
        if what == "scheduler dies":
            self.restart_scheduler()
        elif what == "worker dies" and worker is not None:
            self.kill(worker)
        elif what == "worker loses scheduler" and worker is not None and worker.up is not None:
            self.note(f"worker {worker.number} and the scheduler lose each other")
            up = worker.up
            up.stuck = draw.random() < 0.8
            assert worker.down is not None
            worker.down.stuck = draw.random() < 0.8
            self.clock.at(self.delay(), lambda: worker.lose_scheduler(up))
        elif what == "worker retires" and worker is not None and worker.number in self.scheduler.machine.workers:
            self.note(f"worker {worker.number} is to retire")
            self.clock.at(1.0, lambda: self._come_back(len(self.workers)))
            self.scheduler.machine.retire(worker.number)
            self.scheduler.work()
        elif what == "workers lose each other" and worker is not None and len(alive) > 1:
            other = draw.choice([w for w in alive if w is not worker])
            self.note(f"workers {worker.number} and {other.number} lose each other")
            for peering in self.peerings(worker):
                if other in (peering.asker, peering.giver):
                    peering.fail()
        elif what == "worker pauses" and worker is not None:
            paused = not worker.machine.paused
            worker.handle([Paused(paused)])
            if worker.up is not None:
                worker.up.send(Status(paused, []))
            self.note(f"worker {worker.number} {'pauses' if paused else 'goes on'}")
        elif what == "client loses scheduler" and client is not None:
            self.note(f"client {client.number} and the scheduler lose each other")
            link = client.up
            assert link is not None
            assert client.down is not None
            link.stuck = draw.random() < 0.5
            client.down.stuck = draw.random() < 0.5
            self.clock.at(self.delay(), partial(client.lose_scheduler, link))
        elif what == "client goes" and client is not None and len(here) > 1:
            self.note(f"client {client.number} goes for good")
            client.gone = True
            client.lose_scheduler(client.up)
            scheduler, number = self.scheduler, client.number
            self.clock.at(self.delay() * 10, lambda: scheduler.lost(CLIENT, number))
        elif client is not None and client.machine.wishes:
            wishes = client.machine.wishes
            some = draw.sample(sorted(wishes), min(len(wishes), draw.randint(1, 4)))
            self.note(f"client {client.number} {what} {some}")
            if what == "releases":
                client.say(client.machine.release(some))
            elif what == "cancels":
                client.cancelled.update(some)
                client.say(client.machine.cancel(some))
            elif what == "retries":
                client.say(client.machine.retry(some))

    def restart_scheduler(self) -> None:
        """The scheduler dies with all that it knows; another one comes at its address."""
        self.note("the scheduler dies")
        old = self.scheduler
        old.alive = False
        for link in old.links.values():
            link.open = False
        self.incarnation += 1
        self.scheduler = SimulatedScheduler(self, self.incarnation, grace=0.5)
        for worker in list(self.workers.values()):
            self.clock.at(self.delay(), partial(worker.lose_scheduler, worker.up))
        for client in self.clients:
            self.clock.at(self.delay(), partial(client.lose_scheduler, client.up))
        self.clock.at(0.0, self.scheduler.work)

    # --- the run

    def run(self) -> SimulatedCluster:
        """Let it all happen, and check what came out.

        Raises:
            SimulationError: it went wrong; the message names the seed and tells the story.
        """
        try:
            self._run()
        except AssertionError as error:
            story = "\n".join(self.log[-40:])
            raise SimulationError(f"seed {self.seed}: {error}\n\n{story}") from error
        return self

    def _run(self) -> None:
        draw = self.draw
        left = self.tasks
        while left > 0:
            client = draw.choice(self.clients)
            self.clock.at(draw.random() * 0.3, lambda client=client: self.submit(client))  # type: ignore[misc]
            left -= 15
        if self.chaos:
            for _ in range(draw.randint(0, 12)):
                self.clock.at(draw.random() * 0.6, self.trouble)
        self._drain()
        self.quiet = True
        for worker in self.workers.values():
            if worker.alive and worker.machine.paused:
                worker.handle([Paused(False)])
                assert worker.up is not None, f"worker {worker.number} never came back"
                worker.up.send(Status(False, []))
        self._drain()
        validate(self.scheduler.machine)
        for client in self.clients:
            if not client.gone:
                self._check(client)
        for client in self.clients:
            client.say(client.machine.release(list(client.machine.wishes)))
        self._drain()
        self._check_empty()

    def _drain(self) -> None:
        for _ in range(MOST_EVENTS):
            if not self.clock.step():
                return
        raise AssertionError("it goes on for ever")

    def _check(self, client: SimulatedClient) -> None:
        for counter, wish in client.machine.wishes.items():
            kind, what = client.expected[counter]
            name = f"client {client.number}, task {counter}"
            assert wish.state != PENDING, f"{name} waits for ever"
            if wish.state == READY:
                assert kind == "value", f"{name} has a value and should have failed by one of {what}"
                assert wish.result in (None, what), f"{name} was told {wish.result}, not {what}"
                if wish.place < 0:
                    assert wish.result == what, f"{name} is nowhere"
                    continue
                assert wish.place in self.workers, f"{name} is said to be on worker {wish.place}, which there is not"
                worker = self.workers[wish.place]
                assert worker.alive, f"{name} is said to be on a worker that is dead"
                assert wish.tid in worker.values, f"{name} is said to be on a worker that does not have it"
                assert worker.values[wish.tid] == what, f"{name} is {worker.values[wish.tid]}, not {what}"
            else:
                self._check_error(client, counter, wish.culprit, wish.error, kind, what)

    def _check_error(
        self, client: SimulatedClient, counter: int, culprit: int, error: Any, kind: str, what: Any
    ) -> None:
        name = f"client {client.number}, task {counter}"
        assert culprit in self._ancestors(client, counter), f"{name} failed by {culprit}, which it does not need"
        if isinstance(error, Lost):
            if error.kind == "cancelled":
                assert culprit in client.cancelled, f"{name} was cancelled by nobody"
            elif error.kind == "died":
                crashes = self.crashes.get((client.machine.uuid, culprit), 0)
                assert crashes, f"{name} failed by the death of workers that never ran {culprit}"
            else:
                # given up on purpose, let go of while the client was away, and then wanted after all
                assert error.kind == "unknown", f"{name}: {error}"
                assert self._ancestors(client, culprit) & client.cancelled, f"{name}: {error}"
        else:
            assert kind == "error", f"{name} should be {what} and failed: {error}"
            assert culprit in what, f"{name} failed by {culprit}, not one of {what}"
            assert error == f"raised by {client.calls[culprit][1]}", f"{name}: another one's error, {error}"

    def _ancestors(self, client: SimulatedClient, counter: int) -> set[int]:
        seen = {counter}
        stack = [counter]
        while stack:
            for d in client.calls[stack.pop()][2]:
                if d not in seen:
                    seen.add(d)
                    stack.append(d)
        return seen

    def _check_empty(self) -> None:
        machine = self.scheduler.machine
        validate(machine)
        assert machine.tasks.live == 0, f"{machine.tasks.live} tasks are never forgotten"
        assert not machine.tasks.state, "slots are never given back"
        aside: list[Any] = [machine.tasks.copies, machine.tasks.errors, machine.tasks.tries]
        assert not any(aside), f"something is kept aside: {aside}"
        assert not machine.placing.stuck
        for client in machine.clients.values():
            assert not client.blocks
        for worker in self.workers.values():
            if worker.alive:
                inner = worker.machine
                left = {
                    "tasks": inner.tasks,
                    "data": inner.data,
                    "values": worker.values,
                    "results": worker.results,
                    "owners": inner.owners,
                    "running": inner.running,
                    "waiters": inner.waiters,
                    "asked": inner.asked,
                    "askers": inner.askers,
                    "copying": inner.copying,
                }
                for what, content in left.items():
                    assert not content, f"worker {worker.number} keeps {what}: {content}"
