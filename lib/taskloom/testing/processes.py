"""The processes of a simulated cluster: the real machines, and around each what a process does with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Any

from taskloom.core.client import FAILED, READY, ClientMachine
from taskloom.core.messages import PIN, WISH, Ask, Done, ForgetFunctions, Functions, Options, Pending, Status, Unask
from taskloom.core.scheduler.checks import CheckedScheduler
from taskloom.core.scheduler.machine import CLIENT, WORKER
from taskloom.core.worker import Ended, Got, Paused, PeerLost, Raised, Start, WorkerMachine
from taskloom.testing.network import Link, Peering
from taskloom.testing.threads import Threads

if TYPE_CHECKING:
    from taskloom.testing.cluster import SimulatedCluster

__all__ = ["SimulatedClient", "SimulatedScheduler", "SimulatedWorker"]


class SimulatedScheduler:
    """A scheduler process."""

    def __init__(self, cluster: SimulatedCluster, incarnation: int, grace: float = 0.0) -> None:
        self.cluster = cluster
        self.alive = True
        self.machine = CheckedScheduler(incarnation, grace)
        self.machine.transitions = cluster.transitions
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
            self.cluster.check()
        for action in actions:
            link = self.links.get(action.number)
            if link is not None:
                link.send(action.message)
        deadline = self.machine.deadline()
        if deadline is not None and deadline != self._deadline:
            self._deadline = deadline
            self.cluster.clock.at(max(0.0, deadline - self.cluster.clock.now), self.work)

    def lost(self, kind: str, number: int, running: Sequence[int] | None = None) -> None:
        """A connection has broken; a client that does not come back has gone."""
        if not self.alive:
            return
        link = self.links.pop(number, None)
        if link is not None:
            link.open = False
        if kind == WORKER and number in self.machine.workers:
            self.machine.worker_left(number, running)
        elif kind == CLIENT:
            self.machine.client_left(number)
        self.work()


class SimulatedWorker(Threads):
    """A worker process: its connections, what slows it, what of it dies."""

    def __init__(self, cluster: SimulatedCluster, name: str, threads: int, resources: dict[str, float]) -> None:
        self.cluster = cluster
        self.name = name
        self.resources = resources
        self.speed = cluster.draw.choice((1.0, 1.0, 1.0, 0.3, 5.0))
        self.limit = cluster.draw.choice((0, 0, 10**5, 10**6, 5 * 10**6))  # of its memory: values take up to 10**6
        self.slow = 1.0  # for some time, so many times slower
        super().__init__(WorkerMachine(threads, resources, cluster.draw.choice((0.0, 0.0, 0.002, 0.05))), threads)
        self.functions: dict[int, Any] = {}
        self.joined: SimulatedScheduler | None = None
        self.up: Link | None = None
        self.down: Link | None = None
        self.peers: dict[int, Peering] = {}
        self.incoming: dict[Peering, None] = {}

    @property
    def number(self) -> int:
        """The scheduler's number of it."""
        return self.machine.number

    def join(self) -> None:
        """Connect to the scheduler, with what it has."""
        cluster, scheduler = self.cluster, self.cluster.scheduler
        if not self.alive or self.up is not None:
            return
        before = self.number if cluster.draw.random() < 0.7 else -1  # one that does not say so has to do as well
        self.joined = scheduler
        number = scheduler.machine.worker_came(self.name, self.threads, self.limit, self.resources, before)
        cluster.workers.pop(self.number, None)
        cluster.workers[number] = self
        self.functions.clear()
        down = self.down = scheduler.links[number] = Link(cluster, lambda message: self.heard(down, message))
        self.up = Link(cluster, lambda message: scheduler.take(WORKER, number, message))
        self.do(self.machine.connected(number))
        if self.machine.paused:
            self.up.send(Status(True, []))
        scheduler.work()

    def lose_scheduler(self, up: Link | None, looks_alive: bool = False) -> None:
        """A connection to the scheduler is gone; make another one soon. The scheduler hears of it some time.

        Args:
            up: the connection; it may not be the present one any more.
            looks_alive: what was sent before still arrives there, and nothing is heard of the end for long.
        """
        if not self.alive or up is None or self.up is not up:
            return
        cluster, scheduler, number = self.cluster, self.cluster.scheduler, self.number
        cluster.reasons += (
            self.joined is scheduler
        )  # not where the scheduler has died: within its grace all is found again
        assert self.down is not None
        up.open = looks_alive
        self.down.open = False
        self.up = self.down = None
        withdrawn = [(action.grant, action.tid) for action in self.queue]
        self.queue.clear()
        self.stopped.difference_update(withdrawn)
        self.do(self.machine.disconnected(withdrawn))
        cluster.clock.at(cluster.draw.choice((0.001, 0.05, 0.3)), self.join)
        late = 1.0 if looks_alive else cluster.delay() * cluster.draw.choice((1, 10))
        cluster.clock.at(late, lambda: scheduler.lost(WORKER, number))

    def heard(self, down: Link, message: Any) -> None:
        """A message of the scheduler."""
        if down is not self.down:
            return
        if type(message) is Functions:
            self.functions.update(zip(message.numbers, message.payloads, strict=True))
        self.handle([message])
        if type(message) is ForgetFunctions:
            for number in message.numbers:
                del self.functions[number]

    def pause(self, paused: bool) -> None:
        """Memory is full, or not any more."""
        self.handle([Paused(paused)])
        if self.up is not None:
            self.up.send(Status(paused, []))

    @property
    def now(self) -> float:
        return self.cluster.clock.now

    def handle(self, events: Sequence[Any]) -> None:
        """Let the machine take events in, and do what it says."""
        super().handle(events)
        machine = self.machine
        # Whatever pauses or waits: something runs where something can.
        if self.alive and machine.tasks and not machine.running:
            for task in machine.tasks.values():
                assert task.missing or any(d not in machine.data for d in task.deps), (
                    f"worker {self.number} runs nothing and could run {task.tid}"
                )

    def close_peers(self) -> None:
        peers, self.peers = self.peers, {}
        for peering in peers.values():
            peering.close()
        incoming, self.incoming = self.incoming, {}
        for peering in incoming:
            peering.refuse()

    def leave(self) -> None:
        self.cluster.note(f"worker {self.number} leaves")
        self.cluster.kill(self, leaves=True)

    def give(self, peer: Peering, serial: int, tids: Sequence[int], values: list[Any]) -> None:
        peer.back.send((serial, list(tids), values))

    def say(self, message: Any) -> None:
        if self.up is not None:
            self.up.send(message)

    def begin(self, key: tuple[int, int], action: Start) -> None:
        cluster = self.cluster
        function = self.functions[action.function]
        inputs = [self.values[d] for d in action.deps]
        cluster.began(self, action)
        seconds = cluster.duration(function) * self.speed * self.slow

        def end() -> None:
            if not self.alive:
                return
            cancelled = key in self.stopped
            self.stopped.discard(key)
            if not cancelled and function[0] == "kill":
                cluster.kill(self)
                return
            del self.executing[key]
            if cancelled and cluster.draw.random() < 0.7:
                self.handle([Raised(*key, "stopped")])
                return
            try:
                value = cluster.evaluate(function, action.args, inputs)
            except ArithmeticError as error:
                self.handle([Raised(*key, str(error))])
                return
            self.results[key] = value
            size = cluster.draw.choice((8, 1000, 10**6))
            result = value if action.wanted and size < 10**6 else None
            self.handle([Ended(*key, size, seconds, result)])

        cluster.clock.at(seconds, end)

    def ask(self, peer: int, message: Any) -> None:
        """Say something to another worker; the connection is made when it is needed."""
        peering = self.peers.get(peer)
        if peering is None:
            other = self.cluster.workers.get(peer)
            if other is None or not other.alive or other is self or self.cluster.is_cut(self.name, other.name):
                self.cluster.clock.at(self.cluster.delay(), lambda: self.peer_lost(peer))
                return
            peering = self.peers[peer] = Peering(self.cluster, self, other)
        peering.there.send(message)

    def peer_lost(self, peer: int) -> None:
        """A connection by which we asked is gone."""
        self.handle([PeerLost(peer)])

    def take(self, peer: int, serial: int, tids: list[int], values: list[Any]) -> None:
        """Values of another worker have arrived."""
        if self.alive:
            for tid, value in zip(tids, values, strict=True):
                self.values.setdefault(tid, value)
            self.handle([Got(peer, serial, tids, [8] * len(tids))])


class SimulatedClient:
    """A client process.

    Attributes:
        expected: by counter: ("value", x) or ("error", culprits).
        calls: by counter: function, arguments, counters of the inputs.
        options: by counter: what else was said of it.
        since: by counter: how many reasons to run things again there had been when it was submitted.
        fetched: counter -> what it was last told of the value that it has fetched from a worker since.
    """

    def __init__(self, cluster: SimulatedCluster, name: str, uuid: bytes) -> None:
        self.cluster = cluster
        self.name = name
        self._fresh = Random(f"{cluster.seed} {name}")
        self._few = self._fresh.choice((0.0, 0.3, 1.0))  # what part of its functions is called a few times at most
        self.machine = ClientMachine(uuid, spare=self._fresh.choice((0, 1, 5, 256)))
        self.number = -1
        self.up: Link | None = None
        self.down: Link | None = None
        self.gone = False
        self.expected: list[Any] = []
        self.cancelled: set[int] = set()
        self.calls: list[tuple[Any, Any, list[int]]] = []
        self.since: list[int] = []
        self.options: list[Options] = []
        self.retries: list[int] = []
        self.fetched: dict[int, tuple[int, int]] = {}
        self.peers: dict[int, Peering] = {}
        self.holding: set[int] = set()  # what a graph needs that is half submitted
        self._submitting = False
        self._asks: dict[int, tuple[int, int, int]] = {}  # serial -> (worker, tid, counter)
        self._serial = 0

    def join(self) -> None:
        """Connect to the scheduler, with what it wants."""
        scheduler = self.cluster.scheduler
        if self.gone or self.up is not None:
            return
        number = self.number = scheduler.machine.client_came(self.machine.uuid)
        down = self.down = scheduler.links[number] = Link(self.cluster, lambda message: self.heard(down, message))
        self.up = Link(self.cluster, lambda message: scheduler.take(CLIENT, number, message))
        self.say(self.machine.connected())

    def lose_scheduler(self, up: Link | None, looks_alive: bool = False) -> None:
        """A connection to the scheduler is gone; make another one soon. See :meth:`SimulatedWorker.lose_scheduler`."""
        if up is None or self.up is not up:
            return
        assert self.down is not None
        scheduler, number, clock = self.cluster.scheduler, self.number, self.cluster.clock
        up.open = looks_alive
        self.down.open = False
        self.up = self.down = None
        peers, self.peers = self.peers, {}
        for peering in peers.values():
            peering.close()
        self._asks.clear()
        self.fetched.clear()
        clock.at(self.cluster.draw.choice((0.001, 0.05, 0.3)), self.join)
        clock.at(1.0, lambda: scheduler.lost(CLIENT, number))

    def heard(self, down: Link, message: Any) -> None:
        """A message of the scheduler."""
        if down is not self.down:
            return
        self.machine.handle([message])
        self.say(self.machine.to_send())
        if type(message) is Done:
            for counter, result in zip(message.counters, message.results, strict=True):
                if result is None or self.cluster.draw.random() < 0.2:
                    self.fetch(counter)
        elif type(message) is Pending:
            for counter in message.counters:
                self.fetched.pop(counter, None)
                self.ask_no_more(counter)

    def ask_no_more(self, counter: int) -> None:
        """A value is not there any more, or somewhere else, or not wanted."""
        for serial, (place, tid, asked) in list(self._asks.items()):
            if asked == counter:
                del self._asks[serial]
                if place in self.peers:
                    self.peers[place].there.send(Unask([tid]))

    def release(self, counters: Sequence[int]) -> None:
        """Values are not wanted any more."""
        for counter in counters:
            self.ask_no_more(counter)
        self.say(self.machine.release(counters))

    def fetch(self, counter: int) -> None:
        """Get a value from the worker that is said to have it."""
        wish = self.machine.wishes.get(counter)
        if wish is None or wish.state != READY or wish.place < 0:
            return
        self.ask_no_more(counter)
        peering = self.peers.get(wish.place)
        if peering is None:
            other = self.cluster.workers.get(wish.place)
            if other is None or not other.alive or self.cluster.is_cut(self.name, other.name):
                return
            peering = self.peers[wish.place] = Peering(self.cluster, self, other)
        self._serial += 1
        self._asks[self._serial] = wish.place, wish.tid, counter
        peering.there.send(Ask(self._serial, [wish.tid]))

    def take(self, peer: int, serial: int, tids: list[int], values: list[Any]) -> None:
        """Values of a worker have arrived."""
        asked = self._asks.pop(serial, None)
        if asked is not None:
            counter = asked[2]
            for tid, value in zip(tids, values, strict=True):
                kind, what = self.expected[counter]
                name = f"client {self.number}, task {counter}"
                assert (kind, what) == ("value", value), f"{name} was fetched as {value}, and should be {kind} {what}"
                self.fetched[counter] = (peer, tid)

    def peer_lost(self, peer: int) -> None:
        """A connection to a worker is gone: the scheduler says what that means."""

    def say(self, messages: Sequence[Any]) -> None:
        """Send messages to the scheduler; they are lost while it is not there."""
        for message in messages:
            if self.up is not None:
                self.up.send(message)

    # --- work

    def submit(self) -> None:
        """Submit a random graph, which may need what was submitted before."""
        cluster, draw = self.cluster, self.cluster.draw
        if self.gone:
            return
        if self._submitting:
            cluster.clock.at(0.01, self.submit)
            return
        count = draw.randint(1, cluster.profile.widest)
        first = self.machine.next_counter
        functions, args, deps = [], [], []
        shape = draw.choice(("any", "chain", "wide", "any", "fan", "data"))
        is_data = shape == "data"
        alive = [c for c in self.machine.wishes if self.machine.wishes[c].state != FAILED]
        for k in range(count):
            function: tuple[Any, ...] = ("f", draw.randrange(3))
            if self._fresh.random() < self._few:
                function = ("f", 3 + self._fresh.randrange(first + k + 1) // 3)
            if draw.random() < 0.02:
                function = ("raise",)
            elif cluster.kills and draw.random() < 0.005:
                function = ("kill",)
            if is_data:
                function, needed = ("data",), set()
            elif shape == "chain":
                needed = {first + k - 1} if k else set()
            elif shape == "wide":
                needed = set() if k < count - 1 else set(range(first, first + k))
            elif shape == "fan":
                needed = {first} if k else set()
            else:
                low = max(0, k - 8)
                needed = {first + draw.randrange(low, k) for _ in range(draw.randrange(4))} if k else set()
            if alive and not is_data and draw.random() < 0.15:
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
            data=is_data,
            everywhere=draw.random() < (0.5 if is_data else 0.05),
        )
        for k in range(count):
            self.calls.append((functions[k][1], args[k], deps[k]))
            self.expected.append(self._expected(first + k))
            self.since.append(cluster.reasons)
            self.options.append(options)
            self.retries.append(options.retries if functions[k][0][0] == "raise" else 0)
        cluster.note(f"client {self.number} submits {first}..{first + count - 1} {shape} {options}")
        # in one block or in several, at once or one after the other, as a large graph comes
        cuts = sorted({0, count, *(draw.randrange(count) for _ in range(draw.choice((0, 0, 1, 2))))})
        blocks: list[Callable[[], None]] = []
        for start, end in pairwise(cuts):
            later = {d for needed in deps[end:] for d in needed}
            flags = bytes([WISH * bool(wanted[k]) + PIN * (first + k in later) for k in range(start, end)])
            unpin = (first, first + count) if end == count and len(cuts) > 2 else (0, 0)
            columns = functions[start:end], args[start:end], deps[start:end], flags, options, unpin
            blocks.append(lambda columns=columns: self.say(self.machine.submit(*columns)[1]))  # type: ignore[misc]
        pause = draw.choice((0.0, 0.0, 0.02, 0.2))
        if not pause:
            for block in blocks:
                block()
            return
        self._submitting = True
        self.holding.update(d for needed in deps for d in needed if d < first)

        def go_on() -> None:
            if self.gone:
                return
            blocks.pop(0)()
            if blocks:
                cluster.clock.at(pause, go_on)
            else:
                self._submitting = False
                self.holding.clear()

        go_on()

    def _expected(self, counter: int) -> tuple[str, Any]:
        function, args, deps = self.calls[counter]
        culprits: set[int] = set()
        for d in deps:
            kind, what = self.expected[d]
            if kind == "error":
                culprits |= what
        if function[0] in ("raise", "kill"):
            culprits.add(counter)
        if culprits:
            return "error", culprits
        return "value", self.cluster.evaluate(function, args, [self.expected[d][1] for d in deps])

    def ancestors(self, counter: int) -> set[int]:
        """A task and all that it is made of."""
        seen = {counter}
        stack = [counter]
        while stack:
            for d in self.calls[stack.pop()][2]:
                if d not in seen:
                    seen.add(d)
                    stack.append(d)
        return seen

    def failing(self) -> set[int]:
        """All tasks that fail, and what they are made of."""
        found: set[int] = set()
        for counter in range(len(self.calls) - 1, -1, -1):
            if counter in found or self.expected[counter][0] == "error":
                found.add(counter)
                found.update(self.calls[counter][2])
        return found
