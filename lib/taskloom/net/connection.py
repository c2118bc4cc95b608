"""What a connection is, whatever carries it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from taskloom.errors import CommError, ConnectionLostError
from taskloom.protocol import Peer

__all__ = ["Connection", "Counters", "OnClose", "OnMessages"]

OnMessages = Callable[[list[Any]], None]
OnClose = Callable[[CommError | None], None]

HIGH = 8 << 20  # bytes that wait to be sent; drain() waits above
LOW = 2 << 20  # and until there are no more than these


class Counters:
    """What has gone over a connection.

    Attributes:
        messages_in, messages_out: messages that were handed over, messages that were sent or are waiting.
        bytes_in, bytes_out: bytes on the wire, after the handshake and without TLS's own; on inproc those of payloads.
        batches_in, batches_out: calls of ``on_messages``, flushes.
    """

    __slots__ = ("batches_in", "batches_out", "bytes_in", "bytes_out", "messages_in", "messages_out")

    def __init__(self) -> None:
        self.messages_in = self.messages_out = 0
        self.bytes_in = self.bytes_out = 0
        self.batches_in = self.batches_out = 0

    def as_dict(self) -> dict[str, int]:
        """The same as a dict."""
        return {name: getattr(self, name) for name in self.__slots__}


class Connection(ABC):
    """Two processes that have proved to each other that they belong together, and send each other messages.

    Use it in the thread of its event loop; only :meth:`post` may be called from others. Messages arrive in the order in which
    they were sent. What a message may be, and as what it arrives, is in :mod:`taskloom.protocol.messages`. It is encoded when
    it is sent, so the sender may change it afterwards; but the contents of large buffers (8 KB or more) and payloads must stay
    as they are, since they are not copied.

    Attributes:
        peer: the other side: ``peer.role``, ``peer.identity``, ``peer.warnings``.
        scheme: "tcp", "tls" or "inproc".
        local, remote: the addresses of the two ends.
        counters: what has gone over it.
        loop: the event loop that it belongs to.
    """

    scheme: str

    def __init__(self, loop: asyncio.AbstractEventLoop, peer: Peer, local: str, remote: str) -> None:
        self.loop = loop
        self.peer = peer
        self.local = local
        self.remote = remote
        self.counters = Counters()
        self._on_messages: OnMessages | None = None
        self._on_close: OnClose | None = None
        self._early: list[Any] = []  # messages that came before start()
        self._finished = False
        self._told = False
        self._reason: CommError | None = None
        self._closed: asyncio.Future[None] = loop.create_future()
        self._drainers: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        state = "closed" if self._finished else "open"
        return f"<{type(self).__name__} of {self.local} to the {self.peer.role} at {self.remote}, {state}>"

    # --- what is the same for all

    @property
    def closed(self) -> bool:
        """Whether it is gone: nothing comes or goes any more."""
        return self._finished

    def start(self, on_messages: OnMessages, on_close: OnClose) -> None:
        """Say what is to be done with what comes; until then it waits.

        Args:
            on_messages: called with a list of messages, one or more, that have arrived together.
            on_close: called once, after the last messages: with None where this side has closed the connection, else with the
                error that says what has happened.
        """
        if self._on_messages is not None:
            raise RuntimeError("start() is called once")
        self._on_messages, self._on_close = on_messages, on_close
        early, self._early = self._early, []
        if early:
            self._deliver(early)
        if self._finished:
            self._tell()
        else:
            self.resume_reading()

    async def drain(self) -> None:
        """Wait until few bytes wait to be sent, so that a fast sender does not fill its memory.

        Raises:
            ConnectionLostError: the connection ended before.
        """
        self._flush()
        if self._finished:
            raise self._lost_error()
        if self.pending <= HIGH:
            return
        waiter: asyncio.Future[None] = self.loop.create_future()
        self._drainers.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._drainers:
                self._drainers.remove(waiter)

    async def wait_closed(self) -> None:
        """Wait until it is gone."""
        await asyncio.shield(self._closed)

    def _deliver(self, messages: list[Any]) -> None:
        self.counters.messages_in += len(messages)
        self.counters.batches_in += 1
        if self._on_messages is None:
            self._early.extend(messages)
            return
        try:
            self._on_messages(messages)
        except Exception as error:
            # A defect of ours. The peer would wait for an answer for ever if the connection were left open.
            self.loop.call_exception_handler(
                {"message": f"on_messages failed; {self!r} is closed", "exception": error, "connection": self}
            )
            lost = ConnectionLostError(
                f"messages of the {self.peer.role} at {self.remote} could not be dealt with: {error!r}"
            )
            lost.__cause__ = error
            self._finish(lost)

    def _finish(self, reason: CommError | None) -> None:
        """The end, in whatever way; only the first counts."""
        if self._finished:
            return
        self._finished = True
        self._reason = reason
        self._release()
        self._fail_drainers(self._lost_error())
        if not self._closed.done():
            self._closed.set_result(None)
        # not at once: whoever has just called send() or abort() is in the middle of something
        self.loop.call_soon(self._tell)

    def _tell(self) -> None:
        if self._on_close is not None and not self._told:
            self._told = True
            self._on_close(self._reason)

    def _lost_error(self) -> CommError:
        if self._reason is not None:
            return self._reason
        return ConnectionLostError(f"the connection to the {self.peer.role} at {self.remote} was closed here")

    def _fail_drainers(self, error: CommError) -> None:
        for waiter in self._drainers:
            if not waiter.done():
                waiter.set_exception(error)
        self._drainers.clear()

    def _wake_drainers(self) -> None:
        if self._drainers and self.pending <= LOW:
            for waiter in self._drainers:
                if not waiter.done():
                    waiter.set_result(None)

    # --- what each does in its own way

    @property
    @abstractmethod
    def pending(self) -> int:
        """How many bytes were given to :meth:`send` and are still here."""

    @abstractmethod
    def send(self, message: Any) -> None:
        """Append a message to the batch that goes out when the loop has done what it is about to do.

        On a connection that is closed nothing happens: what was sent just before its end is lost in the same way, and
        ``on_close`` tells.

        Raises:
            TypeError, ValueError, OverflowError: the message holds what cannot travel.
            MessageTooLargeError: it is beyond what the peer takes. Other messages are not affected.
        """

    @abstractmethod
    def put(self, message: Any) -> None:
        """The same, and the batch goes out at the next :meth:`flush`, for who knows when all is said: it saves the loop a turn.

        Raises:
            as :meth:`send` does.
        """

    @abstractmethod
    def post(self, message: Any) -> None:
        """The same from any thread, and at once: where that is possible, the calling thread itself hands it to the system."""

    @abstractmethod
    def pause_reading(self) -> None:
        """Take no more messages; the peer finds that it cannot send. What was received already still comes."""

    @abstractmethod
    def resume_reading(self) -> None:
        """Take messages again."""

    @abstractmethod
    def close(self) -> None:
        """Send what waits to be sent, then end; messages that come are not looked at any more."""

    @abstractmethod
    def abort(self) -> None:
        """End now; what waits to be sent is lost."""

    def flush(self) -> None:
        """Have what was said go out now."""
        self._flush()

    @abstractmethod
    def _flush(self) -> None: ...

    @abstractmethod
    def _release(self) -> None: ...
