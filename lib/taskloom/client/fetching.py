"""Large values on their way here: from the workers that have them, or, where those cannot be reached, by way of the scheduler.

All of it runs in the client's event loop. Nothing is tried again by the clock. A value that does not come from where it was said
to be waits for the scheduler's word: that it is elsewhere, is computed again, or cannot be had. The word comes by
:meth:`Fetching.changed`, also where a question was asked of a worker that will never answer.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from taskloom.client.signals import Signal
from taskloom.core.client import Wish
from taskloom.core.messages import KINDS, Ask, Fetch, Give, PeerHello, Piece, Unask
from taskloom.errors import CommError
from taskloom.net import Connection, connect
from taskloom.net import Options as NetOptions
from taskloom.protocol import Payload

if TYPE_CHECKING:
    from taskloom.client.engine import Engine

__all__ = ["Delivery", "Fetching", "Refused"]

PIECE = 4 << 20  # bytes of a value that are asked for at a time by way of the scheduler
OUTSTANDING = 64 << 20  # bytes that are asked for and have not come
AT_ONCE = 4  # values of more than one piece: a worker keeps as many pickles
REACH = 3.0  # seconds to reach a worker

_log = logging.getLogger("taskloom.client")


class Refused(NamedTuple):
    """In place of a value: it cannot be sent; the error says why, as :func:`taskloom.serialize.errors.dump_error` has it."""

    error: bytes


class Delivery:
    """Values that somebody waits for.

    Args:
        wishes: counter -> where its value is, as it was known when this was asked for.
        direct: False: by way of the scheduler; True: from the workers, also from those that could not be reached before.

    Attributes:
        found: counter -> payload or :class:`Refused`. What is missing there at the end is to be asked for again.
        signal: comes when each was found, or has changed.
    """

    __slots__ = ("direct", "found", "left", "signal", "wishes")

    def __init__(self, wishes: dict[int, Wish], direct: bool | None) -> None:
        self.wishes = wishes
        self.direct = direct
        self.found: dict[int, Any] = {}
        self.left = set(wishes)
        self.signal = Signal()


class Fetching:
    """See the module's text.

    Args:
        engine: of the client.
        direct: what counts where a delivery does not say it.

    Attributes:
        addresses: number of a worker -> where it is.
        wanted: counter -> deliveries that wait for it.
        unreachable: addresses that were tried in vain.
    """

    def __init__(self, engine: Engine, direct: bool | None) -> None:
        self.engine = engine
        self.direct = direct
        self.addresses: dict[int, str] = {}
        self.wanted: dict[int, list[Delivery]] = {}
        self.unreachable: set[str] = set()
        self._workers: dict[str, _Worker] = {}
        self._relay = _Relay(self)
        self._ended = False

    def start(self, delivery: Delivery) -> None:
        """Begin to fetch."""
        places: dict[int, list[int]] = {}
        for counter in list(delivery.left):
            wish = delivery.wishes[counter]
            if self._ended or self.engine.wish(counter) is not wish:
                self._settle(delivery, counter)
                continue
            self.wanted.setdefault(counter, []).append(delivery)
            places.setdefault(wish.place, []).append(counter)
        for number, counters in places.items():
            self._begin(delivery, number, counters)

    def _begin(self, delivery: Delivery, number: int, counters: Sequence[int]) -> None:
        address = self.addresses.get(number)
        direct = self.direct if delivery.direct is None else delivery.direct
        if address is None or direct is False or (direct is None and address in self.unreachable):
            self._relay.fetch(delivery, counters)
            return
        worker = self._workers.get(address)
        if worker is None:
            worker = self._workers[address] = _Worker(self, address)
        worker.ask(delivery, counters)

    def stop(self, delivery: Delivery) -> None:
        """Nobody waits any more."""
        for counter in list(delivery.left):
            self._settle(delivery, counter)
        self._relay.go_on()

    def changed(self, counters: Iterable[int]) -> None:
        """The scheduler has said something of these: what was asked for may be of no use."""
        some = False
        for counter in counters:
            for delivery in list(self.wanted.get(counter, ())):
                if self.engine.wish(counter) is not delivery.wishes[counter]:
                    self._settle(delivery, counter)
                    some = True
        if some:
            self._relay.go_on()

    def got(self, delivery: Delivery, counter: int, value: Any) -> None:
        """A value has come, or word that it will not."""
        if counter in delivery.left:
            delivery.found[counter] = value
            self._settle(delivery, counter)

    def _settle(self, delivery: Delivery, counter: int) -> None:
        delivery.left.discard(counter)
        waiting = self.wanted.get(counter)
        if waiting is not None and delivery in waiting:
            waiting.remove(delivery)
            if not waiting:
                del self.wanted[counter]
        if not delivery.left:
            delivery.signal.set()

    # --- workers

    def lost(self, worker: _Worker, asked: Iterable[tuple[Delivery, Sequence[int]]], reached: bool) -> None:
        """A worker could not be reached, or its connection has ended."""
        if self._workers.get(worker.address) is worker:
            del self._workers[worker.address]
        if not reached:
            self.unreachable.add(worker.address)
        for delivery, counters in asked:
            # It may be dead, which the scheduler will find out; or only out of reach for us.
            self._relay.fetch(delivery, [counter for counter in counters if counter in delivery.left])

    def piece(self, piece: Piece) -> None:
        """A piece has come by way of the scheduler."""
        self._relay.took(piece)

    # --- the scheduler comes and goes

    def forget(self) -> None:
        """A scheduler that knows nothing of what was asked of the one before."""
        self.addresses.clear()
        self._relay.forget()

    def connected(self) -> None:
        """All that was wanted may have changed."""
        self.changed(list(self.wanted))

    def end(self) -> None:
        """Nothing comes any more."""
        self._ended = True
        for worker in list(self._workers.values()):
            worker.close()
        self._workers.clear()
        for counter, deliveries in list(self.wanted.items()):
            for delivery in list(deliveries):
                self._settle(delivery, counter)


class _Worker:
    """A connection to a worker; made when it is needed."""

    def __init__(self, fetching: Fetching, address: str) -> None:
        self.fetching = fetching
        self.address = address
        self._connection: Connection | None = None
        self._closed = False
        self._serials = itertools.count(1)
        self._asked: dict[int, tuple[Delivery, dict[int, int]]] = {}  # serial -> what: tid -> counter
        self._task = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        try:
            connection = await connect(
                self.address,
                token=self.fetching.engine.token,
                role="client",
                wants="worker",
                timeout=REACH,
                options=NetOptions(kinds=KINDS),
            )
        except (CommError, OSError) as error:
            _log.info("values of the worker at %s come by way of the scheduler: %s", self.address, error)
            self._over(False)
            return
        if self._closed:
            connection.close()
            return
        self._connection = connection
        connection.start(self._heard, lambda reason: self._over(True))
        connection.send(PeerHello(-1))
        for serial, (_, tids) in self._asked.items():
            connection.send(Ask(serial, list(tids)))

    def ask(self, delivery: Delivery, counters: Sequence[int]) -> None:
        """Ask for values."""
        serial = next(self._serials)
        tids = {delivery.wishes[counter].tid: counter for counter in counters}
        self._asked[serial] = delivery, tids
        if self._connection is not None:
            self._connection.send(Ask(serial, list(tids)))

    def _heard(self, messages: list[Any]) -> None:
        for message in messages:
            if type(message) is not Give or message.serial not in self._asked:
                continue
            delivery, tids = self._asked[message.serial]
            for tid, value in zip(message.tids, message.values, strict=True):
                counter = tids.pop(abs(tid), None)
                if counter is not None:
                    self.fetching.got(delivery, counter, value if tid >= 0 else Refused(bytes(value.parts[0])))
            gone = [tid for tid, counter in tids.items() if counter not in delivery.left]
            if gone and self._connection is not None:
                self._connection.send(Unask(gone))
                for tid in gone:
                    del tids[tid]
            if not tids:
                del self._asked[message.serial]

    def _over(self, reached: bool) -> None:
        if self._closed:
            return
        self._closed = True
        asked = [(delivery, list(tids.values())) for delivery, tids in self._asked.values()]
        self._asked.clear()
        self.fetching.lost(self, asked, reached)

    def close(self) -> None:
        """Close it: at once, as there is nothing more to say and the event loop ends."""
        self._closed = True
        if self._connection is not None:
            self._connection.abort()
        else:
            self._task.cancel()


class _Parcel:
    """A value that comes in pieces.

    Attributes:
        sizes: of its parts, once that is known.
        parts: their bytes, as far as they have come.
        next: offset of the piece to be asked for next.
        missing: bytes that have not come.
    """

    __slots__ = ("counter", "delivery", "missing", "next", "parts", "sizes")

    def __init__(self, delivery: Delivery, counter: int) -> None:
        self.delivery = delivery
        self.counter = counter
        self.sizes: tuple[int, ...] | None = None
        self.parts: list[bytearray] = []
        self.next = 0
        self.missing = 0

    @property
    def is_wanted(self) -> bool:
        return self.counter in self.delivery.left

    def put(self, offset: int, data: Any) -> None:
        """Some bytes of it, from an offset on."""
        for view in data:
            view = memoryview(view).cast("B")
            self.missing -= view.nbytes
            start = 0
            for part in self.parts:
                end = start + len(part)
                if start <= offset < end and view.nbytes:
                    count = min(view.nbytes, end - offset)
                    part[offset - start : offset - start + count] = view[:count]
                    view = view[count:]
                    offset += count
                start = end


class _Relay:
    """Values by way of the scheduler, in pieces, few bytes of them under way at a time."""

    def __init__(self, fetching: Fetching) -> None:
        self.fetching = fetching
        self._serials = itertools.count(1)
        self._queue: deque[_Parcel] = deque()  # not begun
        self._open: list[_Parcel] = []  # begun, with pieces that were not asked for yet
        self._asked: dict[int, tuple[_Parcel, int, int]] = {}  # serial -> what, offset, size
        self._bytes = 0

    def fetch(self, delivery: Delivery, counters: Sequence[int]) -> None:
        """Get these."""
        self._queue.extend([_Parcel(delivery, counter) for counter in counters])
        self.go_on()

    def go_on(self) -> None:
        """Ask for more, as far as there is room."""
        # Of what nobody wants any more the answer may never come: its worker is gone.
        for serial, (parcel, _, size) in list(self._asked.items()):
            if not parcel.is_wanted:
                del self._asked[serial]
                self._bytes -= size
        while True:
            self._open = [parcel for parcel in self._open if parcel.is_wanted]
            if self._open:
                parcel = self._open[0]
                assert parcel.sizes is not None
                size = min(PIECE, sum(parcel.sizes) - parcel.next)
                if self._bytes + size > OUTSTANDING:
                    return
                self._ask(parcel, size)
                if parcel.next >= sum(parcel.sizes):
                    del self._open[0]
                continue
            if not self._queue or len({id(parcel) for parcel, _, _ in self._asked.values()}) >= 16 * AT_ONCE:
                return
            if self._large() >= AT_ONCE and self._queue[0].delivery.wishes[self._queue[0].counter].size > PIECE:
                return
            parcel = self._queue[0]
            if parcel.is_wanted:
                # its pickle may be larger than the value was thought to be
                size = min(PIECE, parcel.delivery.wishes[parcel.counter].size * 2 + 65536)
                if self._bytes + size > OUTSTANDING:
                    return
                self._ask(parcel, size)
            self._queue.popleft()

    def _large(self) -> int:
        found = {id(parcel) for parcel, _, size in self._asked.values() if parcel.sizes is not None or size == PIECE}
        return len(found)

    def _ask(self, parcel: _Parcel, size: int) -> None:
        wish = parcel.delivery.wishes[parcel.counter]
        serial = next(self._serials)
        self._asked[serial] = parcel, parcel.next, size
        self._bytes += size
        self.fetching.engine._say([Fetch(-1, serial, wish.place, wish.tid, parcel.next, size)])
        parcel.next += size

    def took(self, piece: Piece) -> None:
        """A piece."""
        found = self._asked.pop(piece.serial, None)
        if found is None:
            return
        parcel, offset, size = found
        self._bytes -= size
        if parcel.is_wanted:
            self._took(parcel, offset, size, piece)
        self.go_on()

    def _took(self, parcel: _Parcel, offset: int, size: int, piece: Piece) -> None:
        got = self.fetching.got
        if piece.error is not None:
            got(parcel.delivery, parcel.counter, Refused(bytes(piece.error.parts[0])))
            return
        sizes = tuple(piece.sizes)
        if not sizes:
            return  # it is not there: the scheduler will say where it is, or that it is computed again
        if parcel.sizes is None:
            parcel.sizes = sizes
            parcel.parts = [bytearray(length) for length in sizes]
            parcel.missing = sum(sizes)
            parcel.next = min(size, parcel.missing)
            if parcel.next < parcel.missing:
                self._open.append(parcel)
        elif parcel.sizes != sizes:  # it was pickled once more, and came out otherwise: from the beginning
            self._queue.append(_Parcel(parcel.delivery, parcel.counter))
            parcel.delivery = Delivery({}, None)
            return
        parcel.put(offset, piece.data.parts)
        if not parcel.missing:
            got(parcel.delivery, parcel.counter, Payload(parcel.parts))

    def forget(self) -> None:
        """Nothing of what was asked will come; what is wanted is asked for again when it is known where it is."""
        self._queue.clear()
        self._open.clear()
        self._asked.clear()
        self._bytes = 0
