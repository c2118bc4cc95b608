"""The scheduler process: connections around :class:`taskloom.core.scheduler.machine.Scheduler`.

What arrives within one turn of the event loop is one batch for the machine; what it says goes out before the loop waits again.
Questions of clients are answered by :mod:`taskloom.node.queries`; what supervisors say goes to :mod:`taskloom.node.hosts`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from taskloom.core.messages import (
    KINDS,
    Bye,
    ClientHello,
    Copy,
    Done,
    Fetch,
    Heard,
    Leaving,
    Peers,
    Piece,
    Query,
    Refused,
    Retired,
    Run,
    Said,
    SupervisorHello,
    Vitals,
    Welcome,
    WorkerHello,
)
from taskloom.core.scheduler.machine import CLIENT, WORKER, OffenceError, Scheduler
from taskloom.errors import CommError, ProtocolError
from taskloom.net import Connection, Listener, Options, Token, listen
from taskloom.net.inproc import InprocListener
from taskloom.net.security import Security, own_security
from taskloom.node.hosts import Host, Hosts
from taskloom.node.process import collect_seldom, tell_defects
from taskloom.node.queries import Queries
from taskloom.node.trim import trim_memory

__all__ = ["SchedulerNode", "run_scheduler", "serve"]

FEW = 8  # peers: with more, the machine hears all that has come in one turn of the loop together; with fewer, at once
REST = 2.0  # seconds with nothing to do, after which memory that is free goes back to the system
CLIENT_GRACE = 10.0  # seconds that what a client wanted is kept when its connection broke
SILENT = 5.0  # seconds after which a worker whose supervisor says nothing makes room for another one of its name

_log = logging.getLogger("taskloom.scheduler")


def new_incarnation() -> int:
    """Sixteenths of seconds since 2025: greater than that of any scheduler that was started before, if clocks go forward."""
    return max(1, int((time.time() - 1735689600) * 16))


class _Peer:
    """A client or worker that is connected, and has said who it is.

    Attributes:
        kind: CLIENT or WORKER; ``number``, the machine's number of it.
        name: what users call it; of a client, its UUID in hexadecimal.
        address: where other workers and clients reach a worker.
        launch: what its supervisor calls a worker.
        about, vitals: what a worker has said of itself.
        knows: numbers of the workers whose addresses it has been told.
    """

    __slots__ = (
        "about",
        "address",
        "connection",
        "kind",
        "knows",
        "launch",
        "name",
        "number",
        "pid",
        "since",
        "vitals",
    )

    def __init__(self, kind: str, number: int, connection: Connection, name: str) -> None:
        self.kind = kind
        self.number = number
        self.connection = connection
        self.name = name
        self.address = ""
        self.launch = ""
        self.pid = -1
        self.about: dict[str, Any] = {}
        self.vitals: dict[str, float] = {}
        self.knows: set[int] = set()
        self.since = time.time()


class SchedulerNode:
    """A scheduler that listens at an address.

    Args:
        token: what everybody has to know who connects.
        incarnation: greater than that of any scheduler that these workers have heard before; by default the time.
        grace: seconds in which workers and clients of an earlier scheduler may come back before anything is computed anew.

    Attributes:
        machine: decides everything.
        peers: number -> client or worker that is connected.
        hosts: the supervisors.
        after: called without arguments whenever something has happened.
        http_address: the URL of its HTTP interface; None: it has none.
        http_certificate: what that shows (DER); empty: it is plain HTTP.
        started: when, seconds since the epoch.
    """

    def __init__(self, token: Token, incarnation: int | None = None, grace: float = 0.0) -> None:
        self.token = token
        self.machine = Scheduler(new_incarnation() if incarnation is None else incarnation, grace)
        self.listener: Listener | InprocListener | None = None
        self.http_address: str | None = None
        self.http_certificate = b""
        self.peers: dict[int, _Peer] = {}
        self.hosts = Hosts(self._worker_left, self._cut, self._retire, lambda tids, words: self.machine.blame(tids))
        self.queries = Queries(self)
        self.after: list[Callable[[], object]] = [self.queries.changed]
        self.started = time.time()
        self._inbox: list[tuple[str, int, Any]] = []
        self._called = False
        self._timer: asyncio.TimerHandle | None = None
        self._rest: asyncio.TimerHandle | None = None  # until it is seen whether there is nothing to do any more
        self._worked = False  # since then
        self._leaving: dict[int, asyncio.TimerHandle] = {}  # clients that may come back
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(
        self,
        address: str = "tcp://127.0.0.1:0",
        sock: socket.socket | None = None,
        security: Security | None = None,
    ) -> str:
        """Listen.

        Args:
            address: where.
            sock: a socket that is bound there and listens already.
            security: certificates; None: one that this process makes itself.

        Returns:
            The address, with its port.

        Raises:
            CommError: as :func:`taskloom.net.listen` does.
        """
        self._loop = asyncio.get_running_loop()
        self.listener = await listen(
            address,
            self._came,
            token=self.token,
            role="scheduler",
            options=Options(kinds=KINDS, security=security),
            sock=sock,
        )
        return str(self.listener.address)

    @property
    def address(self) -> str:
        """Where it listens."""
        assert self.listener is not None
        return str(self.listener.address)

    def ready(self) -> dict[str, bool]:
        """Whether it takes connections, under "ready"; and whether all are back that an earlier one had, under "settled"."""
        return {"ready": self.listener is not None, "settled": self.machine.settled}

    async def close(self) -> None:
        """End all connections."""
        if self.listener is not None:
            self.listener.close()
        self.hosts.close()
        for handle in [*self._leaving.values(), self._timer, self._rest]:
            if handle is not None:
                handle.cancel()
        connections = [peer.connection for peer in self.peers.values()]
        connections += [host.connection for host in self.hosts.hosts.values()]
        for connection in connections:
            connection.close()
        if self.listener is not None:
            await self.listener.wait_closed()

    # --- who comes and goes

    def _came(self, connection: Connection) -> None:
        peer: _Peer | Host | None = None

        def on_messages(messages: list[Any]) -> None:
            nonlocal peer
            if peer is None:
                if connection.closed:  # it was refused
                    return
                peer = self._welcome(connection, messages[0])
                messages = messages[1:]
                if peer is None:
                    return
            if type(peer) is _Peer:
                kind, number = peer.kind, peer.number
                for message in messages:
                    handler = _ASIDE.get(type(message))
                    if handler is None:
                        self._inbox.append((kind, number, message))
                    else:
                        handler(self, peer, message)
                if len(self.peers) > FEW or self._called:
                    self.call()
                elif self._inbox:
                    self._work()
            else:
                for message in messages:
                    self.hosts.heard(peer, message)  # type: ignore[arg-type]

        def on_close(reason: CommError | None) -> None:
            if type(peer) is Host:
                self.hosts.went(peer)
            elif type(peer) is _Peer and self.peers.get(peer.number) is peer:
                self._went(peer, reason)

        connection.start(on_messages, on_close)

    def _welcome(self, connection: Connection, hello: Any) -> _Peer | Host | None:
        """Take somebody in; None: it was refused."""
        machine = self.machine
        if type(hello) is SupervisorHello:
            return self.hosts.came(connection, hello)
        if type(hello) is WorkerHello:
            before = hello.before
            old = self.peers.get(before)
            if old is None:
                old = next((p for p in self.peers.values() if p.kind == WORKER and p.name == hello.name), None)
                if old is not None:
                    if _is_same(old, hello):  # it lost its connection before it was told its number
                        before = old.number
                    elif self._may_live(old, hello):
                        _log.warning("worker %s at %s is refused: its name is taken", hello.name, hello.address)
                        connection.send(Refused(_names_clash(old, hello)))
                        connection.close()
                        return None
            if old is not None:
                del self.peers[old.number]
                old.connection.abort()
                if old.number != before:
                    self.hosts.lost(old.number, old.launch, "another one has come in its place")
            self.hosts.back(hello.launch)
            number = machine.worker_came(hello.name, hello.threads, hello.limit, dict(hello.resources), before=before)
            peer = _Peer(WORKER, number, connection, hello.name)
            peer.address, peer.pid, peer.launch, peer.about = hello.address, hello.pid, hello.launch, dict(hello.about)
            _log.info("worker %s has come from %s", hello.name, hello.address)
        elif type(hello) is ClientHello:
            number = machine.client_came(bytes(hello.uuid))
            peer = _Peer(CLIENT, number, connection, bytes(hello.uuid).hex())
        else:
            raise ProtocolError(f"the first message of a connection says who it is; this is {type(hello).__name__}")
        self.peers[number] = peer
        connection.send(Welcome(number))
        return peer

    def _may_live(self, old: _Peer, hello: WorkerHello) -> bool:
        """Whether the worker that has the name of another one, which comes, is there as far as anybody knows."""
        supervisor, dash, _ = hello.launch.partition("-")
        if dash and old.launch.startswith(f"{supervisor}-"):  # who has started the new one has seen the end of this one
            return False
        return not old.connection.closed and self.hosts.silent(old.launch) < SILENT

    def _went(self, peer: _Peer, reason: CommError | None) -> None:
        del self.peers[peer.number]
        if peer.kind == WORKER:
            self.hosts.lost(peer.number, peer.launch, "its connection was closed" if reason is None else str(reason))
        elif self._loop is not None:
            self._leaving[peer.number] = self._loop.call_later(CLIENT_GRACE, self._forget_client, peer.number)
        self.call()

    def _worker_left(self, number: int, running: Sequence[int] | None, words: str) -> None:
        worker = self.machine.workers.get(number)
        if worker is not None:
            _log.info("worker %s is gone: %s", worker.name, words)
            self.machine.worker_left(number, running, words)
        self.call()

    def _forget_client(self, number: int) -> None:
        timer = self._leaving.pop(number, None)
        if timer is not None:
            timer.cancel()
        self.machine.client_left(number)
        self.call()

    def _cut(self, launch: str) -> None:
        """A worker does not run, whatever its connection says."""
        for peer in list(self.peers.values()):
            if peer.launch == launch and peer.kind == WORKER:
                del self.peers[peer.number]
                peer.connection.abort()
                self._worker_left(peer.number, (), "its process is stopped, or its machine is out of reach")

    def _retire(self, launches: Sequence[str]) -> None:
        for peer in self.peers.values():
            if peer.launch in launches and peer.kind == WORKER:
                self.machine.retire(peer.number)
        self.call()

    # --- what is not the machine's

    def _wants_to_leave(self, peer: _Peer, message: Leaving) -> None:
        """A worker wants another process in its place, and its values moved before."""
        machine = self.machine
        if peer.kind != WORKER:
            return
        self._flush()  # what it said before counts
        if peer.number not in machine.workers:
            return
        if any(not other.retiring for other in machine.workers.values() if other.number != peer.number):
            machine.retire(peer.number)
            self.call()
        else:
            peer.connection.send(Retired(moved=False))

    def _bye(self, peer: _Peer, message: Bye) -> None:
        self.peers.pop(peer.number, None)
        if peer.kind == WORKER:
            self._flush()  # what it said before counts
            self._worker_left(peer.number, (), "it has left")
        else:
            self._flush()
            self._forget_client(peer.number)
        peer.connection.close()

    def _query(self, peer: _Peer, message: Query) -> None:
        self.queries.ask(peer, message)

    def _vitals(self, peer: _Peer, message: Vitals) -> None:
        peer.vitals = dict(message.values)

    def _fetch(self, peer: _Peer, message: Fetch) -> None:
        """A client cannot reach a worker: its question goes by here."""
        worker = self.peers.get(message.worker)
        if worker is None or worker.kind != WORKER:
            peer.connection.send(Piece(peer.number, message.serial, [], None))
        else:
            worker.connection.send(message._replace(client=peer.number))

    def _piece(self, peer: _Peer, message: Piece) -> None:
        client = self.peers.get(message.client)
        if client is not None and client.kind == CLIENT:
            client.connection.send(message)

    def _said(self, peer: _Peer, message: Said) -> None:
        tasks = self.machine.tasks
        heard: dict[int, Heard] = {}
        for tid, kind, text, details in zip(message.tids, message.kinds, message.texts, message.details, strict=True):
            slot = tasks.slot_of(tid)
            if slot < 0:
                continue  # nobody wants it any more
            number = tasks.owner[slot].client.number
            columns: Any = heard.setdefault(number, Heard([], [], [], [], []))
            for column, value in zip(columns, (tasks.counter(slot), peer.name, kind, text, details), strict=True):
                column.append(value)
        for number, out in heard.items():
            client = self.peers.get(number)
            if client is not None:
                client.connection.send(out)

    # --- the loop

    def call(self) -> None:
        """Have the machine work when the loop has taken in what is there."""
        if not self._called and self._loop is not None:
            self._called = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        self._called = False
        self._flush()
        for notify in self.after:
            notify()

    def _flush(self) -> None:
        inbox, self._inbox = self._inbox, []
        if inbox:
            self._worked = True
            if self._rest is None and self._loop is not None:
                self._rest = self._loop.call_later(REST, self._rested)
        peers = self.peers
        told: dict[Connection, None] = {}
        try:
            actions = self.machine.handle(inbox, time.monotonic())
        except OffenceError as error:
            actions = self._turn_out(error)
        for action in actions:
            peer = peers.get(action.number)
            if peer is not None:
                self._say(peer, action.message)
                told[peer.connection] = None
        for connection in told:
            connection.flush()
        deadline = self.machine.deadline()
        if deadline is not None and self._loop is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(max(0.0, deadline - time.monotonic()) + 0.001, self.call)

    def _turn_out(self, error: OffenceError) -> list[Any]:
        """Part with a peer that does not keep to the rules; what is to be said to the others."""
        peer = self.peers.get(error.number)
        if peer is not None:
            _log.error("%s at %s is cut off: %s", peer.name, peer.connection.remote, error)
            peer.connection.abort()
        return self.machine.handle([], time.monotonic())

    def _rested(self) -> None:
        """Some seconds have passed. If nobody has said anything in them, what the work took goes back to the system."""
        self._rest = None
        if self._worked and self._loop is not None:
            self._worked = False
            self._rest = self._loop.call_later(REST, self._rested)
        else:
            self.machine.stories.pack()
            trim_memory()

    def _say(self, peer: _Peer, message: Any) -> None:
        kind = type(message)
        if kind is Run or kind is Copy:
            if message.sources:
                self._introduce(peer, message.sources.values())
        elif kind is Done:
            self._introduce(peer, message.places)
        peer.connection.put(message)

    def _introduce(self, peer: _Peer, numbers: Any) -> None:
        """Tell somebody where workers are, once."""
        new = {n: self.peers[n].address for n in set(numbers) - peer.knows if n in self.peers}
        if new:
            peer.knows.update(new)
            peer.connection.put(Peers(new))


def _is_same(old: _Peer, hello: WorkerHello) -> bool:
    """Whether a worker that comes is the one that is here already, and its old connection is not known to be lost."""
    return (old.launch, old.pid, old.address) == (hello.launch, hello.pid, hello.address)


def _names_clash(old: _Peer, hello: WorkerHello) -> str:
    def who(pid: int, about: Any, address: str) -> str:
        return f"process {pid} on {about.get('host', 'an unknown host')}, at {address}"

    return (
        f"there are two workers called {hello.name!r}: {who(old.pid, old.about, old.address)}, which was here before, and "
        f"{who(hello.pid, hello.about, hello.address)}, which is refused. Give it another name: --name, or name="
    )


_ASIDE: dict[type, Callable[[SchedulerNode, _Peer, Any], None]] = {
    Bye: SchedulerNode._bye,
    Leaving: SchedulerNode._wants_to_leave,
    Query: SchedulerNode._query,
    Vitals: SchedulerNode._vitals,
    Fetch: SchedulerNode._fetch,
    Piece: SchedulerNode._piece,
    Said: SchedulerNode._said,
}


async def serve(
    address: str,
    token: Token,
    *,
    fd: int | None = None,
    grace: float = 0.0,
    incarnation: int | None = None,
    http: tuple[str, int] | None = None,
    http_may_fail: bool = False,
    each_worker: bool = False,
    probe_port: int | None = None,
    certificate: str | None = None,
    key: str | None = None,
    tell: Callable[[str, str | None], object] | None = None,
) -> None:
    """Be a scheduler until this is cancelled.

    Args:
        address: where to listen.
        token: what everybody has to know who connects.
        fd: a socket that listens there already.
        grace, incarnation: see :class:`SchedulerNode`.
        http: host and port of the HTTP interface; None: there is none.
        http_may_fail: whether to go on without it where its port is taken.
        each_worker: whether there are metrics of single workers.
        probe_port: where health and readiness can be asked for in plain HTTP, at all addresses; None: nowhere.
        certificate, key: PEM files with what it shows off loopback; None: it makes a certificate itself.
        tell: called with its address and that of the HTTP interface (None: there is none) when it listens.
    """
    collect_seldom()
    tell_defects(asyncio.get_running_loop(), "taskloom scheduler")
    sock = None if fd is None else socket.socket(fileno=fd)
    security = None if certificate is None else own_security(certificate, key)
    node = SchedulerNode(token, incarnation, grace)
    found = await node.start(address, sock, security)
    server = None
    if http is not None:
        from taskloom.node.http import HttpServer

        server = HttpServer(node, *http, token=token, security=security, each_worker=each_worker)
        try:
            await server.start()
        except OSError as error:
            if not http_may_fail:
                raise
            print(f"taskloom scheduler: no HTTP at port {http[1]}: {error.strerror}. See --http-port", file=sys.stderr)
            server = None
    probes = None
    if probe_port is not None:
        from taskloom.node.http import ProbeServer

        probes = ProbeServer(node.ready, "", probe_port)
        await probes.start()
    if tell is not None:
        tell(found, node.http_address)
    try:
        await asyncio.Event().wait()
    finally:
        if probes is not None:
            await probes.close()
        if server is not None:
            await server.close()
        await node.close()


def run_scheduler(
    address: str,
    token: Token,
    tell: Callable[[str, str | None], object],
    grace: float = 0.0,
    http: tuple[str, int] | None = None,
    http_may_fail: bool = False,
    **more: Any,
) -> None:
    """Run a scheduler in this process until it is stopped; the arguments are those of :func:`serve`."""
    asyncio.run(serve(address, token, grace=grace, http=http, http_may_fail=http_may_fail, tell=tell, **more))
