"""Values on their way: asked of other workers, sent to those who ask, and in pieces by way of the scheduler."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from taskloom.core.messages import KINDS, Fetch, Give, PeerHello, Piece
from taskloom.errors import CommError, MessageTooLargeError
from taskloom.net import Connection, Options, connect
from taskloom.node.values import Values
from taskloom.protocol import Payload
from taskloom.serialize.errors import dump_error

__all__ = ["Pieces", "Sender", "Transfers"]

LARGE = 1 << 20  # bytes; a value of more is pickled in a thread, and sent when what was sent before has gone
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
    """

    def __init__(self, token: str, took: Callable[[int, Give], object], lost: Callable[[int], object]) -> None:
        self.token = token
        self.took = took
        self.addresses: dict[int, str] = {}
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

    Small ones go at once, all that were asked for together in one message. A large one is pickled in a thread and waits until few
    bytes wait on its connection, so that a worker of whom many want much does not hold it all twice.
    """

    def __init__(self, values: Values) -> None:
        self.values = values
        self._queues: dict[Connection, list[tuple[int, int]]] = {}  # large ones: (serial, tid)
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, connection: Connection, serial: int, tids: Any) -> None:
        """Give these, which are here."""
        give = Give(serial, [], [], [])
        for tid in tids:
            try:
                large = self.values.size_of(tid) > LARGE
            except KeyError:
                continue  # forgotten just now: nobody needs it
            if large:
                queue = self._queues.get(connection)
                if queue is None:
                    self._queues[connection] = [(serial, tid)]
                    task = asyncio.ensure_future(self._send_large(connection))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                else:
                    queue.append((serial, tid))
            else:
                _add(give, tid, *self._packed(tid))
        if give.tids:
            self._say(connection, give)

    async def _send_large(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        queue = self._queues[connection]
        try:
            while queue:
                serial, tid = queue.pop(0)
                if tid not in self.values:
                    continue
                give = Give(serial, [], [], [])
                _add(give, tid, *await loop.run_in_executor(None, self._packed, tid))
                self._say(connection, give)
                await connection.drain()
        except CommError:  # it is gone, and whoever asked knows
            pass
        finally:
            del self._queues[connection]

    def _packed(self, tid: int) -> tuple[bool, Payload]:
        try:
            return True, self.values.parts(tid)
        except Exception as error:  # it does not pickle: who asked has to know why
            return False, Payload([dump_error(error)])

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


def _add(give: Give, tid: int, fine: bool, payload: Payload) -> None:
    give.tids.append(tid if fine else -tid)  # type: ignore[attr-defined]
    give.sizes.append(payload.nbytes)  # type: ignore[attr-defined]
    give.values.append(payload)  # type: ignore[attr-defined]


class Pieces:
    """Values for clients that cannot come here themselves: in pieces, by way of the scheduler."""

    def __init__(self, values: Values) -> None:
        self.values = values
        self._kept: dict[tuple[int, int], tuple[float, Payload]] = {}

    def send(self, connection: Connection, fetch: Fetch) -> None:
        """Answer a question."""
        key = fetch.client, fetch.tid
        found = self._kept.get(key)
        now = time.monotonic()
        for old in [k for k, (since, _) in self._kept.items() if now - since > _KEPT]:
            del self._kept[old]
        try:
            payload = self.values.parts(fetch.tid) if found is None else found[1]
        except KeyError:
            connection.send(Piece(fetch.client, fetch.serial, [], None))
            return
        except Exception as error:
            connection.send(Piece(fetch.client, fetch.serial, [], None, Payload([dump_error(error)])))
            return
        sizes = [_length(part) for part in payload.parts]
        end = fetch.offset + fetch.size
        if end < sum(sizes):
            while len(self._kept) >= _MOST_KEPT and key not in self._kept:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = now, payload
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
