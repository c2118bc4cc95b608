"""The real machines of scheduler, workers and clients on a simulated clock and network.

Everything that happens follows from the seed: how long messages and tasks take, what is delayed, which connection breaks, who
dies when. After every batch that the scheduler takes in, all its invariants are checked, and every transition is. At the end
every value has to be what plain evaluation says, also where a client fetches it from a worker; every error one that had a
reason; every run of a task beyond its first one too; and nothing may be left anywhere.

>>> cluster = SimulatedCluster(7).run()
>>> any("submits" in line for line in cluster.log)
True
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from taskloom.core.client import PENDING, READY
from taskloom.core.messages import Lost
from taskloom.core.scheduler.checks import validate
from taskloom.core.scheduler.machine import WORKER
from taskloom.core.scheduler.state import DONE
from taskloom.core.worker import Start
from taskloom.testing.network import Clock, Link, Peering
from taskloom.testing.processes import SimulatedClient, SimulatedScheduler, SimulatedWorker

__all__ = ["HARMLESS", "LONG", "QUICK", "TROUBLES", "Profile", "SimulatedCluster", "SimulationError"]

GRACE = 0.5  # seconds that a scheduler waits for those that come back

# What can go wrong, and how often beside the others.
TROUBLES = {
    "scheduler dies": 4,
    "scheduler dies twice": 2,
    "worker dies": 14,
    "all workers die": 1,
    "worker loses scheduler": 10,
    "worker comes back twice": 5,
    "scheduler is deaf": 4,
    "worker retires": 8,
    "all workers but one retire": 2,
    "retirement is called off": 6,
    "workers lose each other": 12,
    "workers are cut off": 6,
    "worker pauses": 10,
    "memory is full": 3,
    "worker slows": 5,
    "client loses scheduler": 8,
    "client comes back twice": 4,
    "client goes": 3,
    "releases": 10,
    "cancels": 8,
    "retries": 8,
}
# After these, nothing may be computed again.
HARMLESS = (
    "scheduler dies",
    "scheduler dies twice",
    "scheduler is deaf",
    "worker retires",
    "all workers but one retire",
    "retirement is called off",
    "worker pauses",
    "memory is full",
    "worker slows",
    "client loses scheduler",
    "client comes back twice",
)


class Profile(NamedTuple):
    """How large simulated clusters are; of each pair the seed draws one between the two.

    Attributes:
        workers, clients: how many at first.
        tasks: how many, about, in all submissions together.
        widest: how many in one.
        troubles: how often something goes wrong.
        seconds: in which it all begins.
    """

    workers: tuple[int, int] = (1, 4)
    clients: tuple[int, int] = (1, 2)
    tasks: tuple[int, int] = (1, 60)
    widest: int = 25
    troubles: tuple[int, int] = (0, 12)
    seconds: float = 0.6


QUICK = Profile()
LONG = Profile((1, 8), (1, 4), (1, 400), 120, (0, 50), 2.5)


class SimulationError(AssertionError):
    """The cluster did what it must not; the message names the seed."""


class SimulatedCluster:
    """A cluster whose every event follows from a seed.

    Args:
        seed: any integer.
        workers, clients, tasks: how many there are, if the profile is not to say it.
        chaos: whether things break.
        validate_every: how many batches of the scheduler pass between two checks of all its invariants; by default one for
            each 20 tasks.
        profile: how large it is, and how much goes wrong.
        troubles: what goes wrong, and how often; by default all of ``TROUBLES``.
    """

    def __init__(
        self,
        seed: int,
        workers: int | None = None,
        clients: int | None = None,
        tasks: int | None = None,
        chaos: bool = True,
        validate_every: int | None = None,
        profile: Profile = QUICK,
        troubles: Mapping[str, int] | Iterable[str] = TROUBLES,
    ) -> None:
        self.seed = seed
        self.draw = draw = random.Random(seed)
        self.clock = Clock()
        self.chaos = chaos
        self.profile = profile
        self.troubles = {name: TROUBLES[name] for name in troubles}
        self.kills = chaos and "worker dies" in self.troubles
        self.steps = 0
        self.quiet = False
        self.incarnation = 1
        self.reasons = 0  # to run any task again
        self.grace_ends = 0.0
        self.transitions: set[tuple[int, int]] = set()  # of tasks, by all schedulers
        self.scheduler = SimulatedScheduler(self, 1)
        self.workers: dict[int, SimulatedWorker] = {}
        self.clients: list[SimulatedClient] = []
        self.cut: set[tuple[str, str]] = set()
        self.staying: set[SimulatedWorker] = set()  # which were to go, and are to stay
        self.crashes: dict[tuple[bytes, int], int] = {}  # (client, counter) -> workers that died while running it
        self.ran: dict[tuple[bytes, int], int] = {}
        self.log: list[str] = []
        self.tasks = draw.randint(*profile.tasks) if tasks is None else tasks
        self.validate_every = validate_every or 1 + self.tasks // 20
        self._workers = draw.randint(*profile.workers) if workers is None else workers
        self._clients = draw.randint(*profile.clients) if clients is None else clients

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
        if function[0] == "data":
            return args
        return hash((function, args, *inputs)) & 0xFFFFFFFF

    def began(self, worker: SimulatedWorker, action: Start) -> None:
        """A worker has begun a task."""
        owner = worker.machine.running[action.grant, action.tid].owner
        client = next(client for client in self.clients if client.machine.uuid == owner[0])
        options, name = client.options[owner[1]], f"client {client.number}, task {owner[1]}"
        assert not options.workers or worker.name in options.workers, (
            f"{name} runs on {worker.name}, not {options.workers}"
        )
        taken: dict[str, float] = {}
        for key in worker.executing:
            task = worker.machine.running[key]
            for resource, amount in task.resources:
                taken[resource] = taken.get(resource, 0.0) + amount
        for resource, amount in taken.items():
            assert amount <= worker.resources.get(resource, 0.0), f"{name}: {worker.name} has not so much {resource}"
        self.ran[owner] = self.ran.get(owner, 0) + 1

    # --- what goes wrong

    def note(self, text: str) -> None:
        """For the story of a seed that failed."""
        self.log.append(f"{self.clock.now:.6f} {text}")

    def is_cut(self, asker: str, giver: str) -> bool:
        """Whether one process cannot reach another one."""
        return (asker, giver) in self.cut

    def kill(self, worker: SimulatedWorker, leaves: bool = False) -> None:
        """A worker process dies at once; another one may come. ``leaves``: it was told that it may go."""
        if not worker.alive:
            return
        assert not (leaves and worker in self.staying), (
            f"worker {worker.number} was to stay, and was told that it may go"
        )
        worker.alive = False
        self.reasons += not leaves
        running = [worker.machine.running[key].tid for key in worker.executing if key not in worker.machine.stopping]
        self.note(f"worker {worker.number} {worker.name} dies, running {running}")
        for task in [worker.machine.running[key] for key in worker.executing]:
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

    @staticmethod
    def peerings(worker: SimulatedWorker) -> list[Peering]:
        """The connections between a worker and others."""
        return [*worker.peers.values(), *worker.incoming]

    def _alive(self) -> list[SimulatedWorker]:
        return [worker for worker in self.workers.values() if worker.alive]

    def trouble(self) -> None:
        """Something goes wrong."""
        what = self.draw.choices(list(self.troubles), list(self.troubles.values()))[0]
        late = (
            "client" in what or what == "scheduler is deaf"
        )  # somebody may come back too late for a scheduler's grace
        if what not in HARMLESS or (late and self.clock.now < self.grace_ends):
            self.reasons += 1
        getattr(self, "_" + what.replace(" ", "_"))()

    def _scheduler_dies(self) -> None:
        """It dies with all that it knows; another one comes at its address."""
        self.note("the scheduler dies")
        old = self.scheduler
        old.alive = False
        for link in old.links.values():
            link.open = False
        self.incarnation += 1
        self.grace_ends = self.clock.now + GRACE
        self.scheduler = SimulatedScheduler(self, self.incarnation, GRACE)
        for worker in list(self.workers.values()):
            self.clock.at(self.delay(), partial(worker.lose_scheduler, worker.up))
        for client in self.clients:
            self.clock.at(self.delay(), partial(client.lose_scheduler, client.up))
        self.clock.at(0.0, self.scheduler.work)

    def _scheduler_dies_twice(self) -> None:
        """The next one too, before all have come back to it."""
        self._scheduler_dies()
        self.clock.at(self.draw.random() * GRACE, self._scheduler_dies)

    def _worker_dies(self) -> None:
        for worker in self._some(1):
            self.kill(worker)

    def _all_workers_die(self) -> None:
        for worker in self._alive():
            self.kill(worker)

    def _some(self, count: int) -> list[SimulatedWorker]:
        """Workers, if there are so many."""
        alive = self._alive()
        return self.draw.sample(alive, count) if len(alive) >= count else []

    def _worker_loses_scheduler(self) -> None:
        for worker in self._some(1):
            if worker.up is None or worker.down is None:
                continue
            self.note(f"worker {worker.number} and the scheduler lose each other")
            worker.up.stuck = self.draw.random() < 0.8
            worker.down.stuck = self.draw.random() < 0.8
            self.clock.at(self.delay(), partial(worker.lose_scheduler, worker.up))

    def _worker_comes_back_twice(self) -> None:
        """It makes a new connection while the old one still delivers what it has sent."""
        for worker in self._some(1):
            if worker.up is not None:
                self.note(f"worker {worker.number} connects anew")
                worker.lose_scheduler(worker.up, looks_alive=True)

    def _scheduler_is_deaf(self) -> None:
        """Between the scheduler and a worker, or a client, nothing gets through one way, or both, for a time."""
        for worker in self._some(1):
            client = self.draw.choice(self.clients)
            peer: Any = worker if self.draw.random() < 0.8 else client
            seconds = self.draw.random()
            self.note(f"{peer.name} ({peer.number}) and the scheduler do not hear each other for {seconds:.3f} s")
            for link in self.draw.choice(((peer.up,), (peer.down,), (peer.up, peer.down))):
                if link is not None:
                    link.stall(seconds)

    def _worker_retires(self) -> None:
        for worker in self._some(1):
            self._retire(worker)

    def _all_workers_but_one_retire(self) -> None:
        for worker in self._alive()[1:]:
            self._retire(worker)

    def _retire(self, worker: SimulatedWorker, replaced: bool = True) -> None:
        """A worker is to go. ``replaced``: another one comes, lest there be nobody to take its values."""
        if worker.number not in self.scheduler.machine.workers:
            return
        self.note(f"worker {worker.number} is to retire")
        self.staying.discard(worker)
        if replaced:
            self.clock.at(1.0, partial(self._come_back, len(self.workers)))
        self.scheduler.machine.retire(worker.number)
        self.scheduler.work()

    def _retirement_is_called_off(self) -> None:
        """Workers are to go, and after a while, if they were not told yet that they may, they are to stay; maybe for a while."""
        for worker in self._some(self.draw.choice((1, 1, 2))):
            self._retire(worker, replaced=False)
            seconds = self.draw.choice((0.0, 0.0005, 0.005, 0.05, 0.2))
            self.clock.at(seconds, partial(self._stay, self.scheduler, worker.number))

    def _stay(self, scheduler: SimulatedScheduler, number: int) -> None:
        if not scheduler.alive or number not in scheduler.machine.workers:
            return
        stays = scheduler.machine.unretire(number)
        self.note(f"worker {number} is to stay{'' if stays else ', and was told that it may go'}")
        worker = self.workers.get(number)
        if stays and worker is not None:
            self.staying.add(worker)
            if self.draw.random() < 0.3:
                self.clock.at(self.draw.choice((0.0, 0.005, 0.05)), partial(self._retire, worker))
        scheduler.work()

    def _workers_lose_each_other(self) -> None:
        for worker, other in [self._some(2)] if len(self._alive()) > 1 else ():
            self.note(f"workers {worker.number} and {other.number} lose each other")
            for peering in self.peerings(worker):
                if other in (peering.asker, peering.giver):
                    peering.fail()

    def _workers_are_cut_off(self) -> None:
        """Two workers, or a client and a worker, cannot reach each other, or one not the other, for long."""
        for worker, other in [self._some(2)] if len(self._alive()) > 1 else ():
            seconds = self.draw.choice((0.1, 0.5, 2.0))
            pairs = [(worker.name, other.name)]
            if self.draw.random() < 0.5:
                pairs.append((other.name, worker.name))
            if self.draw.random() < 0.2:
                pairs = [(self.draw.choice(self.clients).name, worker.name)]
            self.note(f"{pairs} cannot reach each other for {seconds} s")
            self.cut.update(pairs)
            for peering in self.peerings(worker):
                if (peering.asker.name, peering.giver.name) in pairs:
                    peering.fail()
            self.clock.at(seconds, partial(self.cut.difference_update, pairs))

    def _worker_pauses(self) -> None:
        for worker in self._some(1):
            paused = not worker.machine.paused
            self.note(f"worker {worker.number} {'pauses' if paused else 'goes on'}")
            worker.pause(paused)

    def _memory_is_full(self) -> None:
        """All workers pause, and go on one after the other."""
        self.note("all workers pause")
        for worker in self._alive():
            worker.pause(True)
            self.clock.at(self.draw.random(), partial(worker.pause, False))

    def _worker_slows(self) -> None:
        for worker in self._some(1):
            self.note(f"worker {worker.number} becomes slow")
            worker.slow = 20.0
            self.clock.at(0.5, partial(setattr, worker, "slow", 1.0))

    def _someone(self) -> list[SimulatedClient]:
        """A client that is there, if any is."""
        here = [client for client in self.clients if not client.gone and client.up is not None]
        return [self.draw.choice(here)] if here else []

    def _client_loses_scheduler(self) -> None:
        for client in self._someone():
            self.note(f"client {client.number} and the scheduler lose each other")
            up, down = client.up, client.down
            assert isinstance(up, Link)
            assert isinstance(down, Link)
            up.stuck = self.draw.random() < 0.5
            down.stuck = self.draw.random() < 0.5
            self.clock.at(self.delay(), partial(client.lose_scheduler, up))

    def _client_comes_back_twice(self) -> None:
        """It makes a new connection while the old one still delivers what it has sent."""
        for client in self._someone():
            self.note(f"client {client.number} connects anew")
            client.lose_scheduler(client.up, looks_alive=True)

    def _client_goes(self) -> None:
        for client in self._someone() if sum(not client.gone for client in self.clients) > 1 else ():
            self.note(f"client {client.number} goes for good")
            client.gone = True
            client.lose_scheduler(client.up)

    def _wishes(self, most: int = 4) -> tuple[SimulatedClient, list[int]] | None:
        """A client, which may be away, and some of what it wants."""
        here = [client for client in self.clients if not client.gone]
        if not here:
            return None
        client = self.draw.choice(here)
        wishes = sorted(client.machine.wishes)
        return client, self.draw.sample(wishes, min(len(wishes), self.draw.randint(1, most)))

    def _releases(self) -> None:
        for client, some in filter(None, [self._wishes(self.draw.choice((4, 1000)))]):
            some = [counter for counter in some if counter not in client.holding]
            self.note(f"client {client.number} releases {some}")
            client.release(some)

    def _cancels(self) -> None:
        for client, some in filter(None, [self._wishes()]):
            if client.machine.next_counter and self.draw.random() < 0.5:  # it may be one that is not needed just now
                some.append(self.draw.randrange(client.machine.next_counter))
            self.note(f"client {client.number} cancels {some}")
            client.cancelled.update(some)
            client.say(client.machine.cancel(some))

    def _retries(self) -> None:
        for client, some in filter(None, [self._wishes()]):
            self.note(f"client {client.number} retries {some}")
            client.say(client.machine.retry(some))

    # --- the run

    def run(self) -> SimulatedCluster:
        """Let it all happen, and check what came out.

        Raises:
            SimulationError: it went wrong; the message names the seed and tells the story.
        """
        try:
            self._run()
        except Exception as error:
            story = "\n".join(self.log[-40:])
            what = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise SimulationError(f"seed {self.seed}: {what}\n\n{story}") from error
        return self

    def _run(self) -> None:
        draw, seconds = self.draw, self.profile.seconds
        for n in range(self._workers):
            self.new_worker(n)
        for n in range(self._clients):
            client = SimulatedClient(self, f"c{n}", bytes([n]) * 16)
            self.clients.append(client)
            client.join()
        left = self.tasks
        while left > 0:
            client = draw.choice(self.clients)
            self.clock.at(draw.random() * seconds / 2, client.submit)
            left -= 15
        if self.chaos:
            for _ in range(draw.randint(*self.profile.troubles)):
                self.clock.at(draw.random() * seconds, self.trouble)
        self._drain()
        self.quiet = True
        self.cut.clear()
        for worker in self._alive():
            if worker.machine.paused:
                assert worker.up is not None, f"worker {worker.number} never came back"
                worker.pause(False)
        self._drain()
        validate(self.scheduler.machine)
        self._check_places()
        here = [client for client in self.clients if not client.gone]
        for client in here:
            for counter in client.machine.wishes:
                client.fetch(counter)
        self._drain()
        for client in here:
            self._check(client)
        self._check_runs()
        for client in here:
            client.release(list(client.machine.wishes))
        self._drain()
        self._check_empty()

    def _drain(self) -> None:
        most = 20_000 + 500 * self.tasks + 2000 * self.profile.troubles[1]
        step: Callable[[], bool] = self.clock.step
        for _ in range(most):
            if not step():
                return
        raise AssertionError("it goes on for ever")

    # --- what must have come out

    def check(self) -> None:
        """What must hold at every moment: the scheduler's invariants, and that workers have what it thinks they surely have.

        Raises:
            AssertionError: says what does not.
        """
        machine = self.scheduler.machine
        validate(machine)
        tasks = machine.tasks
        for number, worker in self.workers.items():
            if not worker.alive or worker.up is None or not worker.up.open or number not in machine.workers:
                continue
            data = worker.machine.data
            renamed = {worker.machine.owners[tid] for tid in data if tid < 0} if data and min(data) < 0 else ()
            for slot in machine.workers[number].held:
                if slot < len(tasks.state) and tasks.state[slot] == DONE and tasks.tid(slot) not in data:
                    if number in tasks.holders(slot):
                        owner = tasks.owner[slot].client.uuid, tasks.counter(slot)
                        assert owner in renamed, f"slot {slot}, {tasks.tid(slot)}, is not on worker {number}"

    def _check_places(self) -> None:
        """Workers have what the scheduler thinks that they surely have, and nothing that it does not know of."""
        tasks = self.scheduler.machine.tasks
        known: dict[int, set[int]] = {number: set() for number in self.workers}
        for slot in range(len(tasks.state)):
            if tasks.state[slot] == DONE:
                for number in tasks.holders(slot):
                    worker, name = self.workers[number], f"slot {slot}, {tasks.tid(slot)},"
                    assert tasks.tid(slot) in worker.machine.data, f"{name} is not on worker {number}"
                    assert tasks.tid(slot) in worker.values, f"{name} is on worker {number} in name only"
                block = tasks.owner[slot]
                for number, able in self.scheduler.machine.workers.items() if block.everywhere else ():
                    if not able.retiring and (block.allowed is None or able.name in block.allowed):
                        assert number in tasks.holders(slot), (
                            f"slot {slot} should be everywhere, is not on worker {number}"
                        )
            for number in {tasks.place[slot], *tasks.copies.get(slot, ())} & known.keys():
                known[number].add(tasks.tid(slot))
        for worker in self._alive():
            lost = worker.machine.data.keys() - known[worker.number]
            assert not lost, f"worker {worker.number} has {lost}, of which the scheduler does not know"

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
                fetched = client.fetched.get(counter)
                assert fetched == (wish.place, wish.tid), f"{name} cannot be fetched from {wish.place}: {fetched}"
            else:
                self._check_error(client, counter, wish.culprit, wish.error, kind, what)

    def _check_error(
        self, client: SimulatedClient, counter: int, culprit: int, error: Any, kind: str, what: Any
    ) -> None:
        name = f"client {client.number}, task {counter}"
        assert culprit in client.ancestors(counter), f"{name} failed by {culprit}, which it does not need"
        if isinstance(error, Lost):
            if error.kind == "cancelled":
                assert culprit in client.cancelled, f"{name} was cancelled by nobody"
            elif error.kind == "died":
                crashes = self.crashes.get((client.machine.uuid, culprit), 0)
                assert crashes, f"{name} failed by the death of workers that never ran {culprit}"
            else:
                raise AssertionError(f"{name}: {error}")
        else:
            assert kind == "error", f"{name} should be {what} and failed: {error}"
            assert culprit in what, f"{name} failed by {culprit}, not one of {what}"
            assert error == f"raised by {client.calls[culprit][1]}", f"{name}: another one's error, {error}"

    def _check_runs(self) -> None:
        """Nothing ran more often than there were reasons to run it again since it was submitted."""
        clients = {client.machine.uuid: client for client in self.clients}
        # Where something fails, what it is made of is let go. If word of the failure goes down with the scheduler, all is done
        # once more: no worker keeps errors.
        failing = {client.machine.uuid: client.failing() for client in self.clients}
        for (uuid, counter), runs in self.ran.items():
            client = clients[uuid]
            reasons = self.reasons - client.since[counter]
            if counter in failing[uuid]:
                reasons += self.incarnation - 1
            allowed = (1 + reasons) * (1 + client.retries[counter])
            name = f"client {client.number}, task {counter}"
            assert runs <= allowed, f"{name} ran {runs} times, and there was reason for {allowed}"

    def _check_functions(self) -> None:
        """Of functions nothing is kept but the few that clients may call again."""
        machine = self.scheduler.machine
        assert not machine._going, f"functions never go: {machine._going}"
        numbers: set[int] = set()
        for client in self.clients:
            inner, known = client.machine, machine.clients.get(client.number)
            assert client.gone or len(inner._payloads) <= 2 * inner.spare, (
                f"client {client.number} keeps the functions {sorted(inner._payloads)}"
            )
            there = {} if known is None else known.functions
            kept = set() if client.gone else inner._payloads.keys()
            assert there.keys() == kept, (
                f"client {client.number} has the functions {sorted(kept)}, the scheduler {sorted(there)} of them"
            )
            numbers.update(function.number for function in there.values())
        for worker in self._alive():
            told = machine.workers[worker.number].functions
            assert told == worker.functions.keys(), (
                f"worker {worker.number} has the functions {sorted(worker.functions)}, and was told {sorted(told)}"
            )
            assert told <= numbers, f"worker {worker.number} keeps the functions {sorted(told - numbers)}"

    def _check_empty(self) -> None:
        machine = self.scheduler.machine
        validate(machine)
        assert machine.tasks.live == 0, f"{machine.tasks.live} tasks are never forgotten"
        assert not machine.tasks.state, "slots are never given back"
        aside: list[Any] = [machine.tasks.copies, machine.tasks.orders, machine.tasks.errors, machine.tasks.tries]
        assert not any(aside), f"something is kept aside: {aside}"
        assert not machine.placing.stuck
        self._check_functions()
        for client in machine.clients.values():
            assert not client.blocks
        for worker in self._alive():
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
                "failures": inner._failures,
                "kept": inner._kept,
            }
            for what, content in left.items():
                assert not content, f"worker {worker.number} keeps {what}: {content}"
