"""Connections within one process: nothing is sent, and payloads are handed over where they lie.

Messages are encoded and decoded as elsewhere, so that what may stand in them, as what it arrives, and that a later change of a
list is not seen by the other side, is the same as over a socket. Only large buffers differ: both sides see the same memory, and
the receiver's views of it are read-only. A :class:`~taskloom.protocol.Reference` hands any object over as it is.

The two ends may belong to different loops in different threads. There is no token: who can reach this can read the process's
memory anyway.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from taskloom.errors import AddressError, CommError, ConnectError, ConnectionLostError, HandshakeError, ProtocolError
from taskloom.net.connection import Connection
from taskloom.protocol import Identity, Limits, Peer, Reader, Reference, Writer

__all__ = ["InprocConnection", "InprocListener", "connect_inproc"]

_END = object()


class InprocConnection(Connection):
    """One end; see :class:`~taskloom.net.connection.Connection`. Make both with :func:`connect_inproc`."""

    scheme = "inproc"

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        peer: Peer,
        local: str,
        remote: str,
        limits: Limits,
        kinds: Sequence[type],
    ) -> None:
        super().__init__(loop, peer, local, remote)
        self._writer = Writer(kinds, references=True)
        self._reader = Reader(limits, kinds, references=True)
        self.other: InprocConnection | None = None
        self._lock = threading.Lock()  # for what both ends use: _batch, _inbox, _queued, _awake
        self._batch: list[tuple[bytes, list[Any], int]] = []  # not flushed
        self._scheduled = False
        self._queued = 0  # bytes that were sent and the other side has not taken
        self._inbox: deque[Any] = deque()
        self._awake = False  # _receive is going to be called
        self._reading = False
        self._closing = False
        self._gone = False  # the other end is

    @property
    def pending(self) -> int:
        return self._queued

    def _encode(self, message: Any) -> tuple[bytes, list[Any], int]:
        apart: list[Any] = []
        data = self._writer.write(message, apart)
        size = len(data)
        for place, item in enumerate(apart):
            if type(item) is not Reference:
                view = memoryview(item).toreadonly()
                size += view.nbytes
                self.counters.bytes_out += view.nbytes
                apart[place] = view
        return data, apart, size

    def send(self, message: Any) -> None:
        if self._add(message):
            self.loop.call_soon(self._flush)

    def put(self, message: Any) -> None:
        self._add(message)

    def _add(self, message: Any) -> bool:
        """Whether a flush has to be asked for."""
        with self._lock:
            if self._closing or self._finished or self._gone:
                return False
            entry = self._encode(message)
            self._batch.append(entry)
            self._queued += entry[2]
            self.counters.messages_out += 1
            if self._scheduled:
                return False
            self._scheduled = True
            return True

    def post(self, message: Any) -> None:
        if self._add(message):
            self._flush()

    def _flush(self) -> None:
        other = self.other
        with self._lock:
            self._scheduled = False
            batch, self._batch = self._batch, []
            if not batch or other is None or self._finished:
                return
            self.counters.batches_out += 1
            other._put(batch)

    def _put(self, item: Any) -> None:
        """Called by the other end, in whatever thread."""
        self._inbox.append(item)  # before _awake is looked at; _receive looks at it in the other order
        if not self._awake:
            self._awake = True
            if not _call(self.loop, self._receive):
                self._inbox.clear()

    def _receive(self) -> None:
        self._awake = False
        if self._inbox and self._inbox[-1] is _END:
            with self._lock:
                self._gone = True
                self._queued = 0
            self._wake_drainers()
        while self._inbox and self._reading and not self._finished:
            batch = self._inbox.popleft()
            if batch is _END:
                self._finish(ConnectionLostError(f"the {self.peer.role} at {self.remote} closed the connection"))
                return
            messages: list[Any] = []
            total = 0
            try:
                for data, apart, size in batch:
                    messages.extend(self._reader.read(b"\x91" + data, apart))
                    self.counters.bytes_in += sum([item.nbytes for item in apart if type(item) is memoryview])
                    total += size
            except ProtocolError as error:
                self._finish(ProtocolError(f"the {self.peer.role} at {self.remote} sent what is no message: {error}"))
                return
            if self.other is not None:
                self.other._taken(total)
            self._deliver(messages)

    def _taken(self, size: int) -> None:
        with self._lock:
            self._queued -= size
            wake = bool(self._drainers)
        if wake:
            _call(self.loop, self._wake_drainers)

    def resume_reading(self) -> None:
        if self._reading or self._finished or self._closing or self._on_messages is None:
            return
        self._reading = True
        if self._inbox:
            self.loop.call_soon(self._receive)

    def pause_reading(self) -> None:
        self._reading = False

    def close(self) -> None:
        if self._finished or self._closing:
            return
        self._flush()
        self._closing = True
        self._finish(None)

    def abort(self) -> None:
        if self._finished:
            return
        with self._lock:
            self._batch.clear()
        self._finish(None)

    def _release(self) -> None:
        self._inbox.clear()
        other, self.other = self.other, None
        if other is not None:
            other._put(_END)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> bool:
    """Call it soon in its loop, from whatever thread; False: the loop is closed."""
    try:
        if asyncio._get_running_loop() is loop:
            loop.call_soon(function)
        else:
            loop.call_soon_threadsafe(function)
    except RuntimeError:
        return False
    return True


class InprocListener:
    """Takes connections under a name. Make it with :func:`taskloom.net.listen`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        handler: Callable[[Connection], object],
        identity: Identity,
        accepts: Sequence[str],
        kinds: Sequence[type],
    ) -> None:
        self.loop = loop
        self.name = name
        self.address = f"inproc://{name}"
        self.handler = handler
        self.identity = identity
        self.accepts = accepts
        self.kinds = kinds
        with _lock:
            if name in _listeners:
                raise AddressError(f"something in this process listens at inproc://{name} already")
            _listeners[name] = self

    def close(self) -> None:
        """Take no more connections; those that there are go on."""
        with _lock:
            if _listeners.get(self.name) is self:
                del _listeners[self.name]

    async def wait_closed(self) -> None:
        """There is nothing to wait for."""


_lock = threading.Lock()
_listeners: dict[str, InprocListener] = {}
os.register_at_fork(after_in_child=_listeners.clear)
_counter = 0


def connect_inproc(
    loop: asyncio.AbstractEventLoop, name: str, identity: Identity, wants: str | None, kinds: Sequence[type]
) -> Connection:
    """Connect to what listens in this process under a name.

    Raises:
        ConnectError: nothing does, or it does not take this role, or has another one.
    """
    global _counter
    with _lock:
        listener = _listeners.get(name)
        _counter += 1
        number = _counter
    if listener is None:
        raise ConnectError(f"nothing in this process listens at inproc://{name}")
    problem = _problem(listener, identity, wants)
    if problem is not None:
        raise problem
    here, there = f"inproc://{name}#{number}", listener.address
    mine = InprocConnection(loop, Peer(listener.identity), here, there, identity.limits, kinds)
    theirs = InprocConnection(listener.loop, Peer(identity), there, here, listener.identity.limits, listener.kinds)
    mine.other, theirs.other = theirs, mine
    if not _call(listener.loop, lambda: listener.handler(theirs)):
        raise ConnectError(f"the loop of what listens at inproc://{name} is closed")
    return mine


def _problem(listener: InprocListener, identity: Identity, wants: str | None) -> CommError | None:
    if wants is not None and wants != listener.identity.role:
        return HandshakeError(
            f"at {listener.address} a {wants} was to be there, and it is a {listener.identity.role}", "role"
        )
    if identity.role not in listener.accepts:
        return HandshakeError(
            f"the {listener.identity.role} at {listener.address} takes no connections from a {identity.role}", "role"
        )
    return None
