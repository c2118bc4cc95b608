"""Time and the network between simulated processes."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from taskloom.core.worker import AskerLost, PeerAsks

if TYPE_CHECKING:
    from taskloom.testing.cluster import SimulatedCluster
    from taskloom.testing.processes import SimulatedClient, SimulatedWorker

__all__ = ["Clock", "Link", "Peering"]


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

    @property
    def next(self) -> float:
        """When the next thing happens; never: infinity."""
        return self._heap[0][0] if self._heap else float("inf")

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

    def stall(self, seconds: float) -> None:
        """What is sent from now on arrives after so many seconds: a partition that ends before the connection breaks."""
        self._last = max(self._last, self.cluster.clock.now + seconds)

    def _arrive(self, message: Any) -> None:
        if self.open and not self.stuck:
            self.deliver(message)


class Peering:
    """A connection by which a worker or a client asks a worker."""

    def __init__(
        self, cluster: SimulatedCluster, asker: SimulatedWorker | SimulatedClient, giver: SimulatedWorker
    ) -> None:
        self.cluster = cluster
        self.asker = asker
        self.giver = giver
        self.number = giver.number  # what the asker calls it, whatever it is called later
        self.there = Link(cluster, lambda message: giver.handle([PeerAsks(self, message)]))
        self.back = Link(cluster, lambda values: asker.take(self.number, *values))
        giver.incoming[self] = None

    def __repr__(self) -> str:
        return f"<{self.asker.name} asks {self.giver.name}>"

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

    def refuse(self) -> None:
        """The giver closes it."""
        self.there.open = self.back.open = False
        self.cluster.clock.at(self.cluster.delay(), self._asker_hears)

    def _asker_hears(self) -> None:
        self.there.open = self.back.open = False
        if self.asker.peers.get(self.number) is self:
            del self.asker.peers[self.number]
            self.asker.peer_lost(self.number)

    def _giver_hears(self) -> None:
        self.there.open = self.back.open = False
        if self in self.giver.incoming:
            del self.giver.incoming[self]
            self.giver.handle([AskerLost(self)])
