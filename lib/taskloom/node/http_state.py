"""What the HTTP interface says and does, without HTTP: plain values of a scheduler's process, retirements, waiting for wishes."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import taskloom
from taskloom.core.scheduler import views
from taskloom.core.scheduler.machine import CLIENT, WORKER

if TYPE_CHECKING:
    from taskloom.node.scheduler import SchedulerNode

__all__ = ["Refused", "Retirements", "State", "Terms", "Wishes"]

INTERVAL = 0.25  # seconds between two looks at what the cluster wishes, while somebody waits for news
WAITING = 1000  # who may wait at a time
TERMS = 32  # for how many different terms
REMEMBERED = 1000  # retirements that have ended
SHOWN = 1000  # functions, submissions and unmet needs in a dump
CHUNK = 500  # slots of tasks between which others have their turn


class Refused(Exception):
    """What was asked for is not done.

    Args:
        status: of HTTP.
        error: what is wrong; ``hint``: what to do.
        more: other fields of the answer.
    """

    def __init__(self, status: int, error: str, hint: str, **more: Any) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.hint = hint
        self.more = more


class State:
    """What there is.

    Args:
        node: of which process.
    """

    def __init__(self, node: SchedulerNode) -> None:
        self.node = node
        self.address = ""  # of the HTTP interface
        self.retirements = Retirements(node)
        self.wishes = Wishes(node)

    def changed(self) -> None:
        """Something may have changed."""
        self.retirements.changed()
        self.wishes.changed()

    def ready(self) -> dict[str, Any]:
        """Whether the scheduler takes connections, and whether all are back that an earlier one had."""
        return self.node.ready()

    def info(self) -> dict[str, Any]:
        """The whole, in numbers."""
        node, machine = self.node, self.node.machine
        states = dict.fromkeys(("running", "paused", "retiring", "retired"), 0)
        for worker in machine.workers.values():
            states[views.worker_view(machine, worker, machine.now).state] += 1
        connected = sum(peer.kind == CLIENT for peer in node.peers.values())
        return {
            "version": taskloom.__version__,
            "address": node.address,
            "http": self.address,
            "started": node.started,
            "incarnation": self.incarnation,
            "settled": machine.settled,
            "workers": states,
            "threads": sum(worker.threads for worker in machine.workers.values()),
            "supervisors": len(node.hosts.hosts),
            "clients": {"connected": connected, "away": len(machine.clients) - connected},
            "tasks": views.counts(machine),
            "runnable": machine.placing.runnable,
            "nbytes": sum(worker.nbytes for worker in machine.workers.values()),
            "totals": self.totals(),
        }

    @property
    def incarnation(self) -> int:
        """What tells this scheduler from those before it, and after."""
        return self.node.machine.incarnation

    def totals(self) -> dict[str, int]:
        """What has happened since the scheduler began."""
        counts = self.node.machine.counts
        return {name: getattr(counts, name) for name in counts.__slots__}

    def workers(self) -> list[dict[str, Any]]:
        """Each worker."""
        machine, peers, now = self.node.machine, self.node.peers, time.monotonic()
        found = []
        for worker in machine.workers.values():
            view = views.worker_view(machine, worker, now)._asdict()
            peer = peers.get(worker.number)
            if peer is None:  # its connection broke just now, and its supervisor has not said yet what that means
                view.update(connected=False)
            else:
                view.update(
                    connected=True,
                    address=peer.address,
                    pid=peer.pid,
                    since=peer.since,
                    host=peer.about.get("host"),
                    pod_uid=peer.about.get("pod_uid"),
                    about=peer.about,
                    vitals=peer.vitals,
                )
            found.append(view)
        return found

    def clients(self) -> list[dict[str, Any]]:
        """Each client, also those that were here a moment ago and may come back."""
        found = []
        for client in self.node.machine.clients.values():
            peer = self.node.peers.get(client.number)
            found.append(
                {
                    "number": client.number,
                    "uuid": client.uuid.hex(),
                    "connected": peer is not None,
                    "since": None if peer is None else peer.since,
                    "address": None if peer is None else peer.connection.remote,
                    "tasks": sum(block.live for block in client.blocks),
                    "functions": len(client.functions),
                }
            )
        return found

    def task(self, client: str, counter: int) -> dict[str, Any]:
        """A task, and what is remembered of it.

        Raises:
            Refused: there is none.
        """
        machine = self.node.machine
        slot = views.find_task(machine, client, counter)
        if slot < 0:
            raise Refused(
                404,
                f"the scheduler does not know the task {counter} of the client {client}, or has forgotten it",
                "clients are listed at /api/v1/clients; a task is forgotten when nobody can want its value any more",
            )
        found = views.task(machine, slot)
        number = machine.tasks.owner[slot].client.number
        found["story"] = machine.stories.tell(found["tid"], number, counter)
        return found

    def dump(self) -> dict[str, Any]:
        """All but the tasks, for a report of a bug."""
        machine = self.node.machine
        placing = machine.placing
        functions: list[dict[str, Any]] = []
        blocks: list[dict[str, Any]] = []
        for client in machine.clients.values():
            for function in list(client.functions.values())[: SHOWN - len(functions)]:
                functions.append(
                    {
                        "number": function.number,
                        "client": client.number,
                        "runs": function.count,
                        "seconds": function.seconds,
                        "nbytes": function.nbytes,
                        "tasks": function.uses,
                        "active": function.active,
                    }
                )
            for block in client.blocks[: SHOWN - len(blocks)]:
                blocks.append(
                    {
                        "client": client.number,
                        "first": block.first,
                        "count": block.count,
                        "live": block.live,
                        "base": block.base,
                        "cursor": block.cursor,
                        "rank": block.rank,
                        "options": block.options._asdict(),
                    }
                )
        names = {worker.number: worker.name for worker in machine.workers.values()}
        return {
            "made": time.time(),
            "info": self.info(),
            "workers": self.workers(),
            "clients": self.clients(),
            "supervisors": [
                {"host": host.name, "pid": host.pid, "workers": len(host.launches), "vitals": host.vitals}
                for host in self.node.hosts.hosts.values()
            ],
            "retirements": self.retirements.list(),
            "wish": self.wishes.answer(Terms())[0],
            "placing": {
                "todo": placing.todo,
                "runnable": placing.runnable,
                "open": len(placing.open),
                "late": len(placing.late),
                "stuck": len(placing.stuck),
                "parked": len(placing.parked),
                "unmet": [
                    {"workers": workers, "resources": dict(resources), "tasks": tasks}
                    for (workers, resources), tasks in list(placing.unmet.items())[:SHOWN]
                ],
                "asked_back_for_others": len(placing.thieves),
                "idle": [names[number] for number in placing.idle if number in names],
                "cannot_reach": [
                    [names.get(asker, asker), names.get(giver, giver)] for asker, giver in list(placing.apart)[:SHOWN]
                ],
            },
            "functions": functions,
            "submissions": blocks,
        }

    def tasks(self, most: int | None) -> Iterator[list[dict[str, Any]]]:
        """Tasks, in pieces; between two of them things may change.

        Args:
            most: so many of each state; None: all.
        """
        machine = self.node.machine
        if most is not None:
            yield list(views.some_tasks(machine, most))
            return
        start = 0
        while start < len(machine.tasks.state):
            yield views.tasks_between(machine, start, start + CHUNK)
            start += CHUNK


# --- what the cluster wishes


class Terms(NamedTuple):
    """How a wish is made; see :func:`taskloom.core.scheduler.views.wish`."""

    target_seconds: float = views.TARGET
    threads: int | None = None
    assumed: float = views.ASSUMED


class Wishes:
    """What the cluster wishes, and who waits for it to change.

    Each answer has a version: the same as long as there is nothing new to act on. While somebody waits, the cluster is looked at
    when something has happened, at most every quarter of a second; when nobody waits or nothing happens, it costs nothing.
    """

    def __init__(self, node: SchedulerNode) -> None:
        self._node = node
        self._waiting: dict[asyncio.Future[None], tuple[Terms, str]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()  # that answer those
        self._timer: asyncio.TimerHandle | None = None
        self._looked = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def answer(self, terms: Terms) -> tuple[dict[str, Any], str]:
        """The wish as plain values, and its version."""
        machine = self._node.machine
        wish = views.wish(machine, time.monotonic(), *terms)
        # not hash(): the same in all processes, and no two wishes have the same in practice
        digest = hashlib.sha256(repr((terms, wish.essence)).encode()).hexdigest()[:16]
        version = f"{machine.incarnation}-{digest}"
        found: dict[str, Any] = {"version": version, **wish._asdict()}
        found["unmet"] = [need._asdict() for need in wish.unmet]
        found["spare"] = [worker._asdict() for worker in wish.spare]
        for worker in found["spare"]:
            peer = self._node.peers.get(worker["number"])
            worker["pod_uid"] = None if peer is None else peer.about.get("pod_uid")
        return found, version

    async def wait(self, terms: Terms, since: str, timeout: float) -> dict[str, Any]:
        """The wish once its version is another one than ``since``, or after so many seconds.

        Raises:
            Refused: too many wait already.
        """
        found, version = self.answer(terms)
        if version != since or timeout <= 0:
            return found
        others = {waiting[0] for waiting in self._waiting.values()}
        if len(self._waiting) >= WAITING or len(others | {terms}) > TERMS:
            raise Refused(
                503,
                f"{len(self._waiting)} wait already, for {len(others)} different terms; {WAITING} and {TERMS} may",
                "ask without since=, some seconds apart",
            )
        loop = asyncio.get_running_loop()
        news: asyncio.Future[None] = loop.create_future()
        self._waiting[news] = terms, since
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self.changed()  # what happens from now on is seen; what has happened is in the answer above
        try:
            async with asyncio.timeout(timeout):
                await news
        except TimeoutError:
            pass
        finally:
            self._waiting.pop(news, None)
        return self.answer(terms)[0]

    def changed(self) -> None:
        """Something may have changed: look, but not more often than is of use."""
        if self._waiting and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, self._looked + INTERVAL - loop.time()), self._look)

    def _look(self) -> None:
        self._timer = None
        self._looked = asyncio.get_running_loop().time()
        versions: dict[Terms, str] = {}
        for news, (terms, since) in self._waiting.items():
            if terms not in versions:
                versions[terms] = self.answer(terms)[1]
            if versions[terms] != since and not news.done():
                news.set_result(None)

    async def close(self) -> None:
        """Nobody waits any longer: all are answered."""
        if self._timer is not None:
            self._timer.cancel()
        for news in self._waiting:
            if not news.done():
                news.set_result(None)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)


# --- who is to go


class _Retirement:
    """A retirement that was asked for here."""

    __slots__ = ("ended", "name", "number", "pid", "pod_uid", "ready", "since")

    def __init__(self, number: int, name: str, pid: int, pod_uid: Any) -> None:
        self.number = number
        self.name = name
        self.pid = pid
        self.pod_uid = pod_uid
        self.since = time.time()
        self.ready = False
        self.ended: float | None = None


class Retirements:
    """Workers that are to go, and those that have gone.

    Like everything of a scheduler they are soft state: one that starts anew knows of none, and is asked again. A worker whose
    connection breaks in between is still to go when it is back.
    """

    def __init__(self, node: SchedulerNode) -> None:
        self._node = node
        self._going: dict[int, _Retirement] = {}
        self._gone: dict[int, _Retirement] = {}
        self._newest = 0

    def retire(self, names: Iterable[str] = (), pod_uids: Iterable[str] = (), count: int = 0) -> list[dict[str, Any]]:
        """Have workers go; how far they are.

        Args:
            names, pod_uids: which. Those that are to go already stay so.
            count: so many others that can be spared best.

        Raises:
            Refused: one is not known, or there are not so many. Nothing was done then.
        """
        machine, peers = self._node.machine, self._node.peers
        by_name: dict[str, list[int]] = {}
        by_uid: dict[Any, list[int]] = {}
        for worker in machine.workers.values():
            by_name.setdefault(worker.name, []).append(worker.number)
            peer = peers.get(worker.number)
            if peer is not None and peer.about.get("pod_uid"):
                by_uid.setdefault(peer.about["pod_uid"], []).append(worker.number)
        names, pod_uids = list(dict.fromkeys(names)), list(dict.fromkeys(pod_uids))
        unknown = {
            "workers": [name for name in names if name not in by_name],
            "pod_uids": [uid for uid in pod_uids if uid not in by_uid],
        }
        if unknown["workers"] or unknown["pod_uids"]:
            raise Refused(
                404,
                "no worker here is called " + ", ".join(unknown["workers"] + unknown["pod_uids"]),
                "nothing was done. Leave these out: they have gone, or never came. Workers are listed at /api/v1/workers",
                unknown=unknown,
            )
        chosen = dict.fromkeys(
            [n for name in names for n in by_name[name]] + [n for uid in pod_uids for n in by_uid[uid]]
        )
        others = [worker.number for worker in views.expendable(machine) if worker.number not in chosen]
        if count > len(others):
            raise Refused(
                409,
                f"{count} workers are to go, and only {len(others)} are here that are not to go already",
                "nothing was done. Ask for fewer",
            )
        chosen.update(dict.fromkeys(others[:count]))
        for number in chosen:
            worker = machine.workers[number]
            if number not in self._going:
                peer = peers.get(number)
                pid, about = (-1, {}) if peer is None else (peer.pid, peer.about)
                self._going[number] = _Retirement(number, worker.name, pid, about.get("pod_uid"))
            machine.retire(number)
        if chosen:
            self._node.call()
        return [self._one(number) for number in chosen]

    def cancel(self, name: str) -> list[dict[str, Any]]:
        """A worker that is to go is to stay; how it is now.

        Raises:
            Refused: there is none of that name, or it was told that it may go.
        """
        machine = self._node.machine
        numbers = [worker.number for worker in machine.workers.values() if worker.name == name and worker.retiring]
        if not numbers:
            raise Refused(
                404,
                f"no worker called {name} is to go",
                "those that are, are listed at /api/v1/retirements",
            )
        if any(machine.is_retired(number) for number in numbers):
            raise Refused(
                409,
                f"{name} was told that it may go, and is leaving",
                "start another worker in its place",
            )
        for number in numbers:
            machine.unretire(number)
            self._going.pop(number, None)
        self._node.call()
        return [{"number": number, "worker": name, "state": "cancelled"} for number in numbers]

    def list(self) -> list[dict[str, Any]]:
        """All that are to go, whoever has asked for it, and the last thousand of those that have gone."""
        machine = self._node.machine
        going = [worker.number for worker in machine.workers.values() if worker.retiring]
        return [self._one(number) for number in going] + [self._ended(record) for record in self._gone.values()]

    def _one(self, number: int) -> dict[str, Any]:
        machine = self._node.machine
        record = self._going.get(number)
        found = views.retirement(machine, machine.workers[number])._asdict()
        peer = self._node.peers.get(number)
        found["pod_uid"] = None if peer is None else peer.about.get("pod_uid")
        found["since"] = None if record is None else record.since
        found["ended"] = None
        return found

    @staticmethod
    def _ended(record: _Retirement) -> dict[str, Any]:
        gone = views.Retirement(record.number, record.name, "gone", 0, 0, 0, ())._asdict()
        # without having been told that it may: it died, or has lost us
        return {
            **gone,
            "pod_uid": record.pod_uid,
            "since": record.since,
            "ended": record.ended,
            "was_ready": record.ready,
        }

    def changed(self) -> None:
        """Something may have changed."""
        peers = self._node.peers
        newest = next(reversed(peers), 0)
        came, self._newest = newest != self._newest, newest
        if not self._going and not (came and self._gone):
            return
        machine = self._node.machine
        for number, record in list(self._going.items()):
            if number in machine.workers:
                record.ready = machine.is_retired(number)
            else:
                del self._going[number]
                record.ended = time.time()
                self._gone[number] = record
                came = True
                if len(self._gone) > REMEMBERED:
                    del self._gone[next(iter(self._gone))]
        if not came:
            return
        back = {(record.name, record.pid): record for record in self._gone.values() if not record.ready}
        for peer in list(peers.values()) if back else ():
            found = back.get((peer.name, peer.pid))
            if found is not None and peer.kind == WORKER and peer.number in machine.workers:
                del self._gone[found.number]
                found.number, found.ended = peer.number, None
                self._going[peer.number] = found
                machine.retire(peer.number)
                self._node.call()
