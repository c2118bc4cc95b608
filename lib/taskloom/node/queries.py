"""Questions that clients ask the process of the scheduler, and their answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskloom.core.messages import Answer, Query
from taskloom.core.scheduler.machine import WORKER

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
        self._awaiting: list[tuple[Any, Query]] = []  # who wants to know when so many workers are there

    def ask(self, peer: Any, query: Query) -> None:
        """A client asks something; it is answered now or when there is an answer."""
        if query.what == "scheduler_info":
            peer.connection.send(Answer(query.serial, self.info()))
        elif query.what == "wait_for_workers":
            self._awaiting.append((peer, query))
            self.changed()
        else:
            peer.connection.send(
                Answer(query.serial, None, f"this scheduler does not know the question {query.what!r}")
            )

    def changed(self) -> None:
        """Something may have changed."""
        if not self._awaiting:
            return
        count = len(self.node.machine.workers)
        waiting, self._awaiting = self._awaiting, []
        for peer, query in waiting:
            if count >= query.args["count"]:
                peer.connection.send(Answer(query.serial, count))
            elif not peer.connection.closed:
                self._awaiting.append((peer, query))

    def info(self) -> dict[str, Any]:
        """What there is."""
        workers = {}
        for peer in self.node.peers.values():
            worker = self.node.machine.workers.get(peer.number)
            if peer.kind == WORKER and worker is not None:
                workers[peer.name] = {
                    "number": peer.number,
                    "address": peer.address,
                    "threads": worker.threads,
                    "memory_limit": worker.limit,
                    "resources": worker.resources,
                    "pid": peer.pid,
                    "paused": worker.paused,
                    "retiring": worker.retiring,
                    **peer.about,
                    "vitals": peer.vitals,
                }
        return {"address": self.node.address, "started": self.node.started, "workers": workers}
