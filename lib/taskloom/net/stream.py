"""Connections over a socket, with TLS or without.

The socket is used directly, under the loop's watch, and not through a transport of asyncio: that would copy what it can't send
at once, and join buffers that the system could take as they are. An ``SSLSocket`` that does not block works in the same way.

- What is sent within one turn of the loop goes out as one frame, by one system call, before the loop waits again. There is no
  timer.
- Large buffers are received into the memory in which they stay, and sent from where they are.
- At most a few megabytes are received or sent in one go, then others have their turn.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any

from taskloom.errors import CommError, ConnectionLostError, ProtocolError
from taskloom.net.connection import Connection
from taskloom.protocol import Decoder, Encoder, Limits, Peer
from taskloom.protocol.compression import Codec

__all__ = ["StreamConnection", "set_options"]

_TURN = 4 << 20  # bytes that are received or sent before others have their turn
_PARTS = 256  # buffers in one system call; the system takes 1,024
_TLS_CHUNK = 1 << 17
_SCRATCH = 1 << 18
_LINGER = 2.0  # seconds that a closed connection waits for its peer to take what was sent

# These are for peers whose machine or network is gone; whether a peer is well is for those to judge who talk to it.
_IDLE, _INTERVAL, _COUNT = 30, 10, 6  # seconds, seconds, probes
_USER_TIMEOUT = 120_000  # ms. Generous: it also ends a connection to a process that was stopped, or is busy in C code


def set_options(sock: socket.socket) -> None:
    """No delay for small messages; an end for connections whose other end has vanished."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # not all systems have them
    for name, value in (
        ("TCP_KEEPIDLE", _IDLE),
        ("TCP_KEEPINTVL", _INTERVAL),
        ("TCP_KEEPCNT", _COUNT),
        ("TCP_USER_TIMEOUT", _USER_TIMEOUT),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


_local = threading.local()


def _scratch() -> bytearray:
    """What all connections of a thread receive small things into; nothing stays in it from one call to the next."""
    found: bytearray | None = getattr(_local, "scratch", None)
    if found is None:
        found = _local.scratch = bytearray(_SCRATCH)
    return found


class StreamConnection(Connection):
    """See :class:`~taskloom.net.connection.Connection`.

    Args:
        sock: connected, not blocking; an ``SSLSocket`` after its handshake.
        rest: bytes that came behind the handshake.
        limits: what this side takes. kinds: see :class:`~taskloom.protocol.Encoder`.
        codec: what both sides have agreed on.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        peer: Peer,
        local: str,
        remote: str,
        *,
        rest: bytes = b"",
        limits: Limits | None = None,
        kinds: Sequence[type] = (),
        codec: Codec | None = None,
    ) -> None:
        super().__init__(loop, peer, local, remote)
        self._sock = sock
        self._fd = sock.fileno()
        self._tls = isinstance(sock, ssl.SSLSocket)
        self.scheme = "tls" if self._tls else "tcp"
        self._encoder = Encoder(peer.identity.limits, kinds, codec)
        codecs = () if codec is None else (codec.number,)
        self._decoder = Decoder(limits, kinds, codecs, _scratch())
        self._rest = rest
        self._lock = threading.Lock()  # for what send() and post() use: the encoder, the queue, the sending side
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._scheduled = False  # a flush
        self._writing = False  # the loop watches whether the socket takes more
        self._error: OSError | None = None  # of sending: nothing can be sent any more
        self._reading = False
        self._closing = False
        self._shut = False  # our side of the stream is at its end
        self._linger: asyncio.TimerHandle | None = None

    # --- out

    async def drain(self) -> None:
        await super().drain()
        if self._error is not None:
            raise self._broken_error(self._error)

    @property
    def pending(self) -> int:
        return self._queued + self._encoder.size

    def send(self, message: Any) -> None:
        with self._lock:
            if self._closing or self._finished:
                return
            self._encoder.add(message)
            if self._scheduled:
                return
            self._scheduled = True
        self.loop.call_soon(self._flush)

    def put(self, message: Any) -> None:
        with self._lock:
            if not self._closing and not self._finished:
                self._encoder.add(message)

    def post(self, message: Any) -> None:
        with self._lock:
            if self._closing or self._finished:
                return
            self._encoder.add(message)
            if self._scheduled:
                return  # it goes out with the others, in their order
            if self._tls:  # one thread at a time may use such a socket, for reading and writing
                self._scheduled = True
                call = self._flush
            else:
                self._take()
                if self._writing or not self._queue or (self._write() and not self._queue):
                    return
                call = self._after_post
        try:
            self.loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop is closed, and with it everything of it
            pass

    def _after_post(self) -> None:
        """The system did not take all of it, or an error came up in another thread."""
        with self._lock:
            if self._finished:
                return
            fine = self._write()
        self._written(fine)

    def _flush(self) -> None:
        with self._lock:
            self._scheduled = False
            if self._finished:
                return
            self._take()
            fine = self._writing or self._write()
        self._written(fine)

    def _take(self) -> None:
        """Frame what was added, and queue it (the lock is held)."""
        if not self._encoder:
            return
        counters = self.counters
        counters.batches_out += 1
        parts = self._encoder.take()
        counters.messages_out = self._encoder.messages
        size = 0
        for part in parts:
            view = memoryview(part)
            size += view.nbytes
            self._queue.append(view)
        self._queued += size
        counters.bytes_out += size

    def _write(self) -> bool:
        """Send what the socket takes; False: it is broken (the lock is held)."""
        queue, sock, total = self._queue, self._sock, 0
        if self._error is not None:
            queue.clear()
            self._queued = 0
            return False
        try:
            while queue and total < _TURN:
                if self._tls:
                    sent = sock.send(queue[0][:_TLS_CHUNK])
                elif len(queue) == 1:
                    sent = sock.send(queue[0])
                else:
                    sent = sock.sendmsg(islice(queue, _PARTS))
                total += sent
                while queue and sent >= queue[0].nbytes:
                    sent -= queue.popleft().nbytes
                if sent:
                    queue[0] = queue[0][sent:]
        except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError as error:
            self._error = error
            queue.clear()
            self._queued = 0
            return False
        self._queued -= total
        return True

    def _written(self, fine: bool) -> None:
        """After writing, in the loop's thread."""
        if self._finished:
            return
        if not fine:
            self._stop_writing()
            # Reading will find the end too, after the last messages of the peer: they may say why.
            if self._closing:
                self._finish(None)
            else:
                self._fail_drainers(self._broken_error(self._error))
            return
        if self._queue:
            if not self._writing:
                self._writing = True
                self.loop.add_writer(self._fd, self._writable)
        else:
            self._stop_writing()
            if self._closing:
                self._shut_down()
        self._wake_drainers()

    def _writable(self) -> None:
        with self._lock:
            if self._finished:
                return
            fine = self._write()
        self._written(fine)

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self.loop.remove_writer(self._fd)

    # --- in

    def resume_reading(self) -> None:
        if self._reading or self._finished or self._closing or self._on_messages is None:
            return
        self._reading = True
        self.loop.add_reader(self._fd, self._readable)
        if self._rest or self._tls:  # these have bytes that the loop does not see
            self.loop.call_soon(self._readable)

    def pause_reading(self) -> None:
        if self._reading and not self._closing:
            self._reading = False
            self.loop.remove_reader(self._fd)

    def _readable(self) -> None:
        if not self._reading or self._finished:
            return
        if self._shut or self._closing:
            self._discard()
            return
        decoder, sock, tls = self._decoder, self._sock, self._tls
        messages: list[Any] = []
        total = 0
        end: CommError | None = None
        try:
            if self._rest:
                rest, self._rest = self._rest, b""
                self.counters.bytes_in += len(rest)
                messages = decoder.feed(rest)
            while True:
                buffer = decoder.get_buffer()
                if tls:
                    with self._lock:
                        count = sock.recv_into(buffer)
                else:
                    count = sock.recv_into(buffer)
                if not count:
                    end = self._eof()
                    break
                total += count
                found = decoder.received(count)
                if found:
                    messages = messages + found if messages else found
                if total >= _TURN:
                    if tls:  # it may have bytes that the loop does not see
                        self.loop.call_soon(self._readable)
                    break
                if count < buffer.nbytes and not tls:
                    break
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except ProtocolError as error:
            end = ProtocolError(f"the {self.peer.role} at {self.remote} sent what is no message: {error}")
        except OSError as error:
            end = self._broken_error(error)
        self.counters.bytes_in += total
        if messages:
            self._deliver(messages)
        if end is not None:
            self._finish(end)
        elif self._tls and self._queue and not self._finished:
            self._writable()  # sending may have waited for something to be read

    def _discard(self) -> None:
        """Of a closed connection: wait for the peer's end, so that what was sent to it last is not thrown away."""
        try:
            for _ in range(64):
                if not self._sock.recv(65536):
                    self._finish(None)
                    return
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self._finish(None)

    def _eof(self) -> CommError:
        if self._error is not None:
            return self._broken_error(self._error)
        where = " in the middle of a message" if self._decoder.inside else ""
        return ConnectionLostError(f"the {self.peer.role} at {self.remote} closed the connection{where}")

    def _broken_error(self, error: OSError | None) -> CommError:
        what = "" if error is None else f": {error.strerror or error}"
        if isinstance(error, ssl.SSLEOFError):  # which some Pythons make of every error of the socket below
            what = " off"
        lost = ConnectionLostError(f"the connection to the {self.peer.role} at {self.remote} broke{what}")
        lost.__cause__ = error
        return lost

    # --- the end

    def close(self) -> None:
        if self._finished or self._closing:
            return
        self._closing = True
        if not self._reading:
            self._reading = True
            self.loop.add_reader(self._fd, self._readable)
        self._linger = self.loop.call_later(_LINGER, self._give_up)
        self._flush()

    def _shut_down(self) -> None:
        """All is sent: end our side of the stream."""
        if self._shut:
            return
        self._shut = True
        try:
            if isinstance(self._sock, ssl.SSLSocket):
                try:
                    self._sock.unwrap()  # says that this is the end; the answer is not waited for
                except (OSError, ValueError):
                    pass
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._finish(None)

    def _give_up(self) -> None:
        self._linger = None
        if self._queue and self._writing:
            # it still takes something, if slowly
            before = self._queued
            self._linger = self.loop.call_later(_LINGER, self._give_up_unless_moved, before)
            return
        self._finish(None)

    def _give_up_unless_moved(self, before: int) -> None:
        if self._queued < before:
            self._give_up()
        else:
            self._finish(None)

    def abort(self) -> None:
        if self._finished:
            return
        try:
            # the peer is told by a reset, and does not take it for an end in order
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        except OSError:
            pass
        self._finish(None)

    def _release(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if not self.loop.is_closed():
            self.loop.remove_reader(self._fd)
            self.loop.remove_writer(self._fd)
        self._reading = self._writing = False
        with self._lock:  # no other thread is sending
            self._queue.clear()
            self._queued = 0
            self._sock.close()
