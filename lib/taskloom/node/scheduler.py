"""The scheduler process: connections around :class:`taskloom.core.scheduler.machine.Scheduler`.

What arrives within one turn of the event loop is one batch for the machine; what it says goes out before the loop waits again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from taskloom.core.messages import (
    KINDS,
    ClientHello,
    Copy,
    Done,
    Peers,
    Run,
    Welcome,
    WorkerHello,
)
from taskloom.core.scheduler.machine import CLIENT, WORKER, Scheduler
from taskloom.errors import CommError, ProtocolError
from taskloom.net import Connection, Listener, Options, listen
from taskloom.net.inproc import InprocListener

__all__ = ["SchedulerNode", "run_scheduler"]

CLIENT_GRACE = 30.0  # seconds that what a client wanted is kept when its connection broke


class _Peer:
    """A connection that has said who it is."""

    __slots__ = ("address", "connection", "kind", "knows", "number", "pid")

    def __init__(self, kind: str, number: int, connection: Connection, address: str, pid: int = -1) -> None:
        self.pid = pid
        self.kind = kind
        self.number = number
        self.connection = connection
        self.address = address
        self.knows: set[int] = set()  # numbers of the workers whose addresses it has been told


class SchedulerNode:
    """A scheduler that listens at an address.

    Args:
        token: what everybody has to know who connects.
        incarnation: greater than that of any scheduler that these workers have heard before; by default the time.
        grace: seconds in which workers and clients of an earlier scheduler may come back before anything is computed anew.
        post_mortem: called with the process id of a worker whose connection has ended; says which tids it was running when it
            died (None: nobody knows), and how it ended, in words.
    """

    def __init__(
        self,
        token: str,
        incarnation: int | None = None,
        grace: float = 0.0,
        post_mortem: Callable[[int], tuple[list[int] | None, str]] | None = None,
    ) -> None:
        self.token = token
        self.post_mortem = post_mortem
        self.machine = Scheduler(int(time.time()) & 0x7FFFFFFF if incarnation is None else incarnation, grace)
        self.listener: Listener | InprocListener | None = None
        self._peers: dict[int, _Peer] = {}
        self._inbox: list[tuple[str, int, Any]] = []
        self._called = False
        self._timer: asyncio.TimerHandle | None = None
        self._leaving: dict[int, asyncio.TimerHandle] = {}  # clients that may come back
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self, address: str = "tcp://127.0.0.1:0") -> str:
        """Listen.

        Returns:
            The address, with its port.

        Raises:
            CommError: as :func:`taskloom.net.listen` does.
        """
        self._loop = asyncio.get_running_loop()
        self.listener = await listen(
            address, self._came, token=self.token, role="scheduler", options=Options(kinds=KINDS)
        )
        return str(self.listener.address)

    @property
    def address(self) -> str:
        """Where it listens."""
        assert self.listener is not None
        return str(self.listener.address)

    async def close(self) -> None:
        """End all connections."""
        if self.listener is not None:
            self.listener.close()
        for handle in [*self._leaving.values(), *([self._timer] if self._timer else [])]:
            handle.cancel()
        for peer in list(self._peers.values()):
            peer.connection.close()
        if self.listener is not None:
            await self.listener.wait_closed()

    # --- who comes and goes

    def _came(self, connection: Connection) -> None:
        peer: _Peer | None = None

        def on_messages(messages: list[Any]) -> None:
            nonlocal peer
            if peer is None:
                peer = self._welcome(connection, messages[0])
                messages = messages[1:]
            kind, number = peer.kind, peer.number
            self._inbox += [(kind, number, message) for message in messages]
            self._call()

        def on_close(reason: CommError | None) -> None:
            if peer is not None and self._peers.get(peer.number) is peer:
                self._went(peer, reason)

        connection.start(on_messages, on_close)

    def _welcome(self, connection: Connection, hello: Any) -> _Peer:
        machine = self.machine
        if type(hello) is WorkerHello:
            number = machine.worker_came(hello.name, hello.threads, hello.limit, dict(hello.resources))
            peer = _Peer(WORKER, number, connection, hello.address, hello.pid)
        elif type(hello) is ClientHello:
            number = machine.client_came(bytes(hello.uuid))
            timer = self._leaving.pop(number, None)
            if timer is not None:
                timer.cancel()
            old = self._peers.pop(number, None)
            if old is not None:
                old.connection.abort()
            peer = _Peer(CLIENT, number, connection, "")
        else:
            raise ProtocolError(f"the first message of a connection says who it is; this is {type(hello).__name__}")
        self._peers[number] = peer
        connection.send(Welcome(number))
        return peer

    def _went(self, peer: _Peer, reason: CommError | None) -> None:
        del self._peers[peer.number]
        if peer.kind == WORKER:
            running, words = None, "its connection was closed" if reason is None else str(reason)
            if self.post_mortem is not None:
                running, words = self.post_mortem(peer.pid)
            self.machine.worker_left(peer.number, running, words)
        elif self._loop is not None:
            self._leaving[peer.number] = self._loop.call_later(CLIENT_GRACE, self._forget_client, peer.number)
        self._call()

    def _forget_client(self, number: int) -> None:
        self._leaving.pop(number, None)
        self.machine.client_left(number)
        self._call()

    # --- the loop

    def _call(self) -> None:
        """Have the machine work when the loop has taken in what is there."""
        if not self._called and self._loop is not None:
            self._called = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        self._called = False
        inbox, self._inbox = self._inbox, []
        peers = self._peers
        for action in self.machine.handle(inbox, time.monotonic()):
            peer = peers.get(action.number)
            if peer is not None:
                self._say(peer, action.message)
        deadline = self.machine.deadline()
        if deadline is not None and self._loop is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(max(0.0, deadline - time.monotonic()) + 0.001, self._call)

    def _say(self, peer: _Peer, message: Any) -> None:
        kind = type(message)
        if kind is Run or kind is Copy:
            if message.sources:
                self._introduce(peer, message.sources.values())
        elif kind is Done:
            self._introduce(peer, message.places)
        peer.connection.send(message)

    def _introduce(self, peer: _Peer, numbers: Any) -> None:
        """Tell somebody where workers are, once."""
        new = {n: self._peers[n].address for n in set(numbers) - peer.knows if n in self._peers}
        if new:
            peer.knows.update(new)
            peer.connection.send(Peers(new))


def run_scheduler(address: str, token: str, tell: Callable[[str], None], grace: float = 0.0) -> None:
    """Run a scheduler in this process until it is stopped.

    Args:
        tell: called with the address when it listens.
        grace: see :class:`SchedulerNode`.
    """

    async def main() -> None:
        node = SchedulerNode(token, grace=grace)
        tell(await node.start(address))
        await asyncio.Event().wait()

    asyncio.run(main())
