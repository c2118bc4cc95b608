"""Questions that clients ask the process of the scheduler, and their answers."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import taskloom
from taskloom.core.messages import Answer, Query
from taskloom.core.scheduler import reasons
from taskloom.core.scheduler.machine import WORKER
from taskloom.core.scheduler.state import DONE
from taskloom.node.process import versions

if TYPE_CHECKING:
    from taskloom.node.scheduler import SchedulerNode

__all__ = ["Queries"]


class Queries:
    """Answers questions.

    Args:
        node: of which process.
    """

    def __init__(self, node: SchedulerNode) -> None:
        self.node = node
        self._awaiting: list[
            tuple[Any, int, Callable[[], Any]]
        ] = []  # who, their serial, and what has the answer one day
        self._answers: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
            "scheduler_info": lambda peer, args: self.info(peer),
            "versions": lambda peer, args: self.versions(),
            "who_has": self.who_has,
            "why": self.why,
            "stuck": self.stuck,
        }

    def ask(self, peer: Any, query: Query) -> None:
        """A client asks something; it is answered now or when there is an answer."""
        serial, what, args = query
        try:
            if what == "wait_for_workers":
                self._await(peer, serial, self._workers(int(args["count"])))
            elif what == "restart":
                self._await(peer, serial, self.restart())
            elif what in self._answers:
                peer.connection.send(Answer(serial, self._answers[what](peer, args)))
            else:
                peer.connection.send(
                    Answer(
                        serial,
                        None,
                        f"the scheduler, of taskloom {taskloom.__version__}, does not know the question {what!r}: have both of "
                        "one version",
                    )
                )
        except (KeyError, TypeError, ValueError) as error:
            peer.connection.send(
                Answer(
                    serial, None, f"the question {what!r} is not put as it should be: {type(error).__name__}: {error}"
                )
            )

    def _await(self, peer: Any, serial: int, answer: Callable[[], Any]) -> None:
        self._awaiting.append((peer, serial, answer))
        self.changed()

    def changed(self) -> None:
        """Something may have changed."""
        if not self._awaiting:
            return
        waiting, self._awaiting = self._awaiting, []
        for peer, serial, answer in waiting:
            value = answer()
            if value is not None:
                peer.connection.send(Answer(serial, value))
            elif not peer.connection.closed:
                self._awaiting.append((peer, serial, answer))

    def _workers(self, count: int) -> Callable[[], int | None]:
        """How many workers there are, once there are so many."""

        def answer() -> int | None:
            found = len(self.node.machine.workers)
            return found if found >= count else None

        return answer

    def restart(self) -> Callable[[], int | None]:
        """Cancel everything, and have supervisors replace their workers.

        Returns:
            How many workers there are, once there are as many as before, and those that were to go are gone.
        """
        node = self.node
        node._flush()  # what was asked for before this, in the same moment
        node.machine.cancel_all("it was cancelled, as a client has restarted the cluster")
        node._flush()  # clients hear of it before the answer
        launches = {peer.launch: peer.number for peer in node.peers.values() if peer.kind == WORKER and peer.launch}
        count = len(node.machine.workers)
        gone = {launches[launch] for launch in launches.keys() - set(node.hosts.restart(list(launches)))}

        def answer() -> int | None:
            workers = node.machine.workers
            return len(workers) if len(workers) >= count and not gone & workers.keys() else None

        return answer

    def who_has(self, peer: Any, args: dict[str, Any]) -> list[list[str]]:
        """Names of the workers that have values of the client's, by its counters."""
        machine = self.node.machine
        client = machine.clients[peer.number]
        found = []
        for counter in args["counters"]:
            slot = machine._slot(client, counter)
            holders = machine.tasks.holders(slot) if slot >= 0 and machine.tasks.state[slot] == DONE else ()
            found.append([machine.workers[number].name for number in holders if number in machine.workers])
        return found

    def why(self, peer: Any, args: dict[str, Any]) -> dict[str, Any] | None:
        """Why tasks of the client's do not end, by its counters; see :class:`taskloom.core.scheduler.reasons.Reason`."""
        self.node._flush()  # what was submitted just before this
        found = reasons.why(self.node.machine, self.node.machine.clients[peer.number], args["counters"])
        return None if found is None else found._asdict()

    def stuck(self, peer: Any, args: dict[str, Any]) -> list[dict[str, Any]] | None:
        """What of the client's no worker here may run; see :func:`taskloom.core.scheduler.reasons.stuck`."""
        found = reasons.stuck(self.node.machine, self.node.machine.clients[peer.number])
        return None if found is None else [kind._asdict() for kind in found]

    def versions(self) -> dict[str, Any]:
        """The versions of this process, and those that the workers have told of."""
        workers = {
            peer.name: dict(peer.about.get("versions", {})) for peer in self.node.peers.values() if peer.kind == WORKER
        }
        return {"scheduler": versions(), "workers": workers}

    def info(self, peer: Any) -> dict[str, Any]:
        """What there is, as who asks can reach it."""
        workers = {}
        for other in self.node.peers.values():
            worker = self.node.machine.workers.get(other.number)
            if other.kind == WORKER and worker is not None:
                workers[other.name] = {
                    "number": other.number,
                    "address": other.address,
                    "threads": worker.threads,
                    "memory_limit": worker.limit,
                    "resources": worker.resources,
                    "pid": other.pid,
                    "paused": worker.paused,
                    "retiring": worker.retiring,
                    **other.about,
                    "vitals": other.vitals,
                }
        http, der = self.node.http_address, self.node.http_certificate
        return {
            "address": _reachable(self.node.address, peer),
            "http": None if http is None else _reachable(http, peer),
            # who hears this knows that it comes from who knows the token: so it can be trusted
            "http_certificate": ssl.DER_cert_to_PEM_cert(der) if der else None,
            "started": self.node.started,
            "workers": workers,
        }


def _reachable(address: str, peer: Any) -> str:
    """An address of this process as a client can use it: where it is all of this machine's, the one that it has connected to."""
    scheme, _, rest = address.partition("://")
    host, _, port = rest.rpartition(":")
    if host not in ("0.0.0.0", "[::]"):
        return address
    return f"{scheme}://{peer.connection.local.partition('://')[2].rpartition(':')[0]}:{port}"
