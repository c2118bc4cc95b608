"""Values on their way: asked of other workers, sent to those who ask, and in pieces by way of the scheduler."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from taskloom.core.messages import KINDS, Fetch, Give, PeerHello, Piece
from taskloom.errors import CommError, MessageTooLargeError, SerializationError, TaskloomError
from taskloom.net import Connection, Options, Token, connect
from taskloom.node.values import Values
from taskloom.protocol import Payload
from taskloom.serialize.errors import dump_error

__all__ = ["Pieces", "Sender", "Transfers"]

LARGE = 1 << 20  # bytes; a value of more is pickled in a thread, and sent when what was sent before has gone
MOST = 4 << 20  # bytes of smaller ones that go in one message
_KEPT = 30.0  # seconds that a pickle is kept for a client that fetches it in pieces
_MOST_KEPT = 4


class _Peering:
    """A connection by which this worker asks another one; made when it is needed."""

    def __init__(self, transfers: Transfers, number: int, address: str) -> None:
        self.transfers = transfers
        self.number = number
        self.waiting: list[Any] = []
        self.connection: Connection | None = None
        self.closed = False
        self.task = asyncio.ensure_future(self._connect(address))

    async def _connect(self, address: str) -> None:
        try:
            connection = await connect(
                address,
                token=self.transfers.token,
                role="worker",
                wants="worker",
                timeout=5.0,
                options=Options(kinds=KINDS),
            )
        except (CommError, OSError) as error:
            self._lost(error)
            return
        if self.closed:
            connection.close()
            return
        self.connection = connection
        connection.start(self._heard, self._lost)
        if self.transfers.held:
            connection.pause_reading()
        connection.send(PeerHello(self.number))
        for message in self.waiting:
            connection.send(message)
        self.waiting.clear()

    def send(self, message: Any) -> None:
        """Say something."""
        if self.connection is None:
            self.waiting.append(message)
        else:
            self.connection.send(message)

    def _heard(self, messages: list[Any]) -> None:
        for message in messages:
            if not self.closed and type(message) is Give:
                self.transfers.took(self.number, message)

    def _lost(self, reason: Any) -> None:
        if not self.closed:
            self.closed = True
            self.transfers.lost(self)

    def close(self) -> None:
        """Close it; nothing is told."""
        self.closed = True
        if self.connection is not None:
            self.connection.close()
        elif not self.task.done():
            self.task.cancel()


class Transfers:
    """What this worker asks of others.

    Args:
        token: what the other side has to know.
        took: called with the number of a worker and what it gives.
        lost: called with the number of a worker whose connection is gone, or could not be made.

    Attributes:
        addresses: number of a worker -> where it is.
        held: nothing is taken in just now.
    """

    def __init__(self, token: Token, took: Callable[[int, Give], object], lost: Callable[[int], object]) -> None:
        self.token = token
        self.took = took
        self.addresses: dict[int, str] = {}
        self.held = False
        self._told = lost
        self._peers: dict[int, _Peering] = {}

    def ask(self, number: int, message: Any) -> bool:
        """Say something to a worker; whether it is known where it is."""
        peering = self._peers.get(number)
        if peering is None:
            address = self.addresses.get(number)
            if address is None:
                return False
            peering = self._peers[number] = _Peering(self, number, address)
        peering.send(message)
        return True

    def hold(self, held: bool) -> None:
        """Take nothing in for a while, or go on; who sends finds that he cannot, and keeps it."""
        self.held = held
        for peering in self._peers.values():
            if peering.connection is not None and not peering.closed:
                if held:
                    peering.connection.pause_reading()
                else:
                    peering.connection.resume_reading()

    def lost(self, peering: _Peering) -> None:
        """A connection is gone."""
        if self._peers.get(peering.number) is peering:
            del self._peers[peering.number]
            self._told(peering.number)

    def forget_all(self) -> None:
        """Close all connections; nobody is told."""
        peers, self._peers = self._peers, {}
        for peering in peers.values():
            peering.close()

    close = forget_all


class Sender:
    """Sends values to those who ask.

    Small ones go at once, all that were asked for together in one message, while that does not become large. A large one is
    pickled in a thread and waits until few bytes wait on its connection, so that a worker of whom many want much does not hold it
    all twice; so do all that come after many bytes.
    """

    def __init__(self, values: Values, name: str = "") -> None:
        self.values = values
        self.name = name
        self._queues: dict[Connection, list[tuple[int, int]]] = {}  # large ones: (serial, tid)
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, connection: Connection, serial: int, tids: Any) -> None:
        """Give these, which are here."""
        give = Give(serial, [], [], [])
        nbytes = 0
        for tid in tids:
            if nbytes > MOST or _is_large(self.values, tid):
                queue = self._queues.get(connection)
                if queue is None:
                    self._queues[connection] = [(serial, tid)]
                    task = asyncio.ensure_future(self._send_large(connection))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                else:
                    queue.append((serial, tid))
            else:
                packed = _packed(self.name, self.values, tid)
                if packed is not None:
                    _add(give, tid, *packed)
                    nbytes += packed[1].nbytes
        if give.tids:
            self._say(connection, give)

    async def _send_large(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        queue = self._queues[connection]
        try:
            while queue:
                serial, tid = queue.pop(0)
                packed = await loop.run_in_executor(None, _packed, self.name, self.values, tid)
                if packed is None:
                    continue
                give = Give(serial, [], [], [])
                _add(give, tid, *packed)
                self._say(connection, give)
                await connection.drain()
        except CommError:  # it is gone, and whoever asked knows
            pass
        finally:
            del self._queues[connection]

    @staticmethod
    def _say(connection: Connection, give: Give) -> None:
        try:
            connection.send(give)
        except MessageTooLargeError as error:
            if len(give.tids) == 1:
                connection.send(Give(give.serial, [-abs(give.tids[0])], [0], [Payload([dump_error(error)])]))
                return
            for columns in zip(give.tids, give.sizes, give.values, strict=True):
                Sender._say(connection, Give(give.serial, *[[value] for value in columns]))


def _is_large(values: Values, tid: int) -> bool:
    try:
        return values.size_of(tid) > LARGE
    except KeyError:
        return False


def _packed(name: str, values: Values, tid: int) -> tuple[bool, Payload] | None:
    """A value, and True; the error of one that does not pickle, and False; None of one that was forgotten: nobody needs it."""
    try:
        return True, values.parts(tid)
    except Exception as error:
        if isinstance(error, KeyError) and tid not in values:
            return None
        return False, Payload([dump_error(_named(error, name, values, tid))])  # who asked has to know why


def _named(error: Exception, name: str, values: Values, tid: int) -> BaseException:
    """The error of pickling says what cannot be pickled, but not where it is."""
    if isinstance(error, TaskloomError):
        return error
    kind = type(values.get(tid)).__qualname__
    words = f"{kind} on worker {name!r} is needed elsewhere and does not pickle: {type(error).__name__}: {error}"
    found = SerializationError(f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {words}")
    found.__cause__ = error
    return found


def _add(give: Give, tid: int, fine: bool, payload: Payload) -> None:
    give.tids.append(tid if fine else -tid)  # type: ignore[attr-defined]
    give.sizes.append(payload.nbytes)  # type: ignore[attr-defined]
    give.values.append(payload)  # type: ignore[attr-defined]


class Pieces:
    """Values for clients that cannot come here themselves: in pieces, by way of the scheduler."""

    def __init__(self, values: Values, name: str = "") -> None:
        self.values = values
        self.name = name
        self._kept: dict[tuple[int, int], tuple[float, Payload]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, connection: Connection, fetch: Fetch) -> None:
        """Answer a question: at once, or, where there is much to pickle, when a thread has done that."""
        found = self._kept.get((fetch.client, fetch.tid))
        if found is not None:
            self._answer(connection, fetch, found[1])
        elif _is_large(self.values, fetch.tid):
            task = asyncio.ensure_future(self._send_large(connection, fetch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._send_packed(connection, fetch, _packed(self.name, self.values, fetch.tid))

    async def _send_large(self, connection: Connection, fetch: Fetch) -> None:
        packed = await asyncio.get_running_loop().run_in_executor(None, _packed, self.name, self.values, fetch.tid)
        if not connection.closed:  # with the next scheduler, the same numbers may mean something else
            self._send_packed(connection, fetch, packed)

    def _send_packed(self, connection: Connection, fetch: Fetch, packed: tuple[bool, Payload] | None) -> None:
        if packed is None:
            connection.send(Piece(fetch.client, fetch.serial, [], None))
        elif not packed[0]:
            connection.send(Piece(fetch.client, fetch.serial, [], None, packed[1]))
        else:
            self._answer(connection, fetch, packed[1])

    def forget_all(self) -> None:
        """Keep nothing any more."""
        self._kept.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        now = time.monotonic()
        for old in [key for key, (since, _) in self._kept.items() if now - since >= _KEPT]:
            del self._kept[old]
        self._timer = asyncio.get_running_loop().call_later(_KEPT / 2, self._expire) if self._kept else None

    def _answer(self, connection: Connection, fetch: Fetch, payload: Payload) -> None:
        key = fetch.client, fetch.tid
        sizes = [_length(part) for part in payload.parts]
        end = fetch.offset + fetch.size
        if end < sum(sizes):
            while len(self._kept) >= _MOST_KEPT and key not in self._kept:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = time.monotonic(), payload
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(_KEPT, self._expire)
        else:
            self._kept.pop(key, None)
        data = []
        start = 0
        for part, size in zip(payload.parts, sizes, strict=True):
            low, high = max(fetch.offset - start, 0), min(end - start, size)
            if low < high:
                data.append(memoryview(part).cast("B")[low:high])
            start += size
        connection.send(Piece(fetch.client, fetch.serial, sizes, Payload(data)))


def _length(part: Any) -> int:
    return part.nbytes if type(part) is memoryview else len(part)
