"""What supervisors say of the workers that they have started: why one has died, that one is stopped.

A supervisor is a process beside the workers of one machine (:mod:`taskloom.node.supervisor`). It sees how a process ended when
all that the scheduler sees is a closed connection. So when the connection of a worker that has a supervisor breaks, the scheduler
waits a moment for its word before anybody is blamed.

A machine whose supervisor is silent for long is taken to be gone, with its workers: their connections are cut. Workers
themselves may be silent, as code that holds the interpreter's lock keeps their event loop from running. If they are not gone,
they come back with what they have.

Where a supervisor has died together with its workers, as when their container ran out of memory, the next one in its place may
find a note of what they were at (:mod:`taskloom.node.cell`), and tell it late: who is to be blamed is blamed then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from taskloom.core.messages import Died, Leaving, Restart, Stopped, SupervisorHello, Vitals
from taskloom.net import Connection

__all__ = ["Host", "Hosts"]

PATIENCE = 2.0  # seconds to wait for a supervisor's word about a worker whose connection has broken
SILENCE = 15.0  # seconds after which a machine whose supervisor says nothing is given up
_REMEMBERED = 1000  # deaths that were told before the connection was seen to break


class Host:
    """A supervisor that is connected.

    Attributes:
        name: of its machine; ``pid``: its process.
        launches: what it calls the workers that it has now.
        vitals: what it has said of its machine.
        heard: when it last said something.
    """

    __slots__ = ("connection", "heard", "launches", "name", "pid", "vitals")

    def __init__(self, connection: Connection, hello: SupervisorHello) -> None:
        self.connection = connection
        self.name = hello.host
        self.pid = hello.pid
        self.launches = set(hello.launches)
        self.vitals: dict[str, float] = {}
        self.heard = time.monotonic()


class Hosts:
    """All supervisors of a scheduler.

    Args:
        left: called with a worker's number, the tids that it was running (None: nobody knows) and words, when it is gone.
        cut: called with a launch: the connection of that worker, if there is one, is to be cut.
        retire: called with launches: those workers are to go.
        late: called with the tids that a worker was running and words, when that is heard after all of one of which ``left`` was
            told that nobody knows.
    """

    def __init__(
        self,
        left: Callable[[int, Sequence[int] | None, str], object],
        cut: Callable[[str], object],
        retire: Callable[[Sequence[str]], object],
        late: Callable[[Sequence[int], str], object],
    ) -> None:
        self._left = left
        self._cut = cut
        self._retire = retire
        self._late = late
        self._unknown: dict[str, None] = {}  # launches of workers that are gone, and nobody knows why
        self.hosts: dict[Connection, Host] = {}
        self._deaths: dict[str, tuple[Sequence[int] | None, str]] = {}
        self._awaited: dict[str, tuple[int, asyncio.TimerHandle]] = {}
        self._watch: asyncio.TimerHandle | None = None

    def came(self, connection: Connection, hello: SupervisorHello) -> Host:
        """A supervisor has connected."""
        host = self.hosts[connection] = Host(connection, hello)
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(SILENCE / 3, self._look)
        return host

    def went(self, host: Host) -> None:
        """A supervisor's connection has ended. Its workers may live on; what they were awaited for is not to come."""
        self.hosts.pop(host.connection, None)
        for launch in host.launches:
            self._give_up(launch)

    def heard(self, host: Host, message: Any) -> None:
        """A supervisor says something."""
        host.heard = time.monotonic()
        kind = type(message)
        if kind is Vitals:
            host.vitals = dict(message.values)
        elif kind is SupervisorHello:  # it has other workers by now
            host.launches = set(message.launches)
        elif kind is Leaving:
            self._retire(message.launches)
        elif kind is Stopped:
            self._cut(message.launch)
        elif kind is Died:
            host.launches.discard(message.launch)
            awaited = self._awaited.pop(message.launch, None)
            if awaited is not None:
                awaited[1].cancel()
                self._left(awaited[0], message.running, message.words)
                return
            if message.launch in self._unknown:
                del self._unknown[message.launch]
                self._late(message.running or (), message.words)
                return
            self._deaths[message.launch] = message.running, message.words
            if len(self._deaths) > _REMEMBERED:
                del self._deaths[next(iter(self._deaths))]

    def lost(self, number: int, launch: str, words: str) -> None:
        """A worker's connection has broken: it is told when it is known why, or when nobody knows."""
        found = self._deaths.pop(launch, None)
        if found is not None:
            self._left(number, *found)
        elif not launch or not any(launch in host.launches for host in self.hosts.values()):
            self._left_unknown(number, launch, words)
        else:
            timer = asyncio.get_running_loop().call_later(PATIENCE, self._give_up, launch)
            self._awaited[launch] = number, timer

    def back(self, launch: str) -> None:
        """The worker has connected again: it has not died."""
        self._unknown.pop(launch, None)
        awaited = self._awaited.pop(launch, None)
        if awaited is not None:
            awaited[1].cancel()

    def silent(self, launch: str) -> float:
        """Seconds in which the supervisor of a worker has said nothing; 0.0 where it is not known."""
        for host in self.hosts.values():
            if launch in host.launches:
                return time.monotonic() - host.heard
        return 0.0

    def _give_up(self, launch: str) -> None:
        awaited = self._awaited.pop(launch, None)
        if awaited is not None:
            awaited[1].cancel()
            words = "its connection broke, and its supervisor does not say that it has ended"
            self._left_unknown(awaited[0], launch, words)

    def _left_unknown(self, number: int, launch: str, words: str) -> None:
        if launch:
            self._unknown[launch] = None
            if len(self._unknown) > _REMEMBERED:
                del self._unknown[next(iter(self._unknown))]
        self._left(number, None, words)

    def restart(self, launches: Sequence[str]) -> list[str]:
        """Have supervisors replace these processes; those that have none."""
        left = set(launches)
        for host in self.hosts.values():
            here = sorted(left & host.launches)
            if here:
                host.connection.send(Restart(here))
                left.difference_update(here)
        return sorted(left)

    def _look(self) -> None:
        now = time.monotonic()
        for host in list(self.hosts.values()):
            if now - host.heard > SILENCE:
                launches = list(host.launches)
                host.connection.abort()
                for launch in launches:
                    self._cut(launch)
        self._watch = asyncio.get_running_loop().call_later(SILENCE / 3, self._look) if self.hosts else None

    def close(self) -> None:
        """No more timers."""
        for _, timer in self._awaited.values():
            timer.cancel()
        self._awaited.clear()
        if self._watch is not None:
            self._watch.cancel()
