"""Frames: batches of messages as bytes, and back. ``docs/protocol.md`` has the layout, byte by byte.

A frame is a prefix of 20 bytes, a table of its out-of-band buffers (16 bytes each), its header (msgpack, see
:mod:`taskloom.protocol.messages`) and the buffers themselves. All numbers are little-endian.

Neither side copies a large buffer. :class:`Encoder` gives a list of buffers, for ``sendmsg``. :class:`Decoder` says where the
next bytes are to be received: small things into a scratch buffer that all connections of a loop share, large ones at once
into the memory that they are going to stay in.

Rules of this file: nothing is allocated for a length before the length was held against the limits; memory for a large
buffer is asked for when its turn comes, and touched only by bytes that have come.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from typing import Any

from taskloom.errors import MessageTooLargeError, ProtocolError
from taskloom.protocol.compression import Codec, compress, decompress
from taskloom.protocol.limits import Limits
from taskloom.protocol.messages import Buffer, Reader, Writer

__all__ = ["Decoder", "Encoder"]

MARK = b"TLf\x01"
PREFIX = struct.Struct("<4sIIQ")  # mark, bytes of the header, number of buffers, bytes of all buffers as they travel
ENTRY = struct.Struct("<QQ")  # bytes of a buffer in memory; bytes as it travels and, in the top byte, its codec
_TRAVELS = (1 << 56) - 1

_SEAL = 1 << 20  # a frame with a header of so many bytes is closed, so that the receiver can begin
_LARGE = 1 << 20  # from here on memory comes from the system, not zeroed by us
_HUGE = (
    8 << 20
)  # and in large pages; of smaller buffers, several could share one, which goes only with the last of them
_DIRECT = 1 << 14  # what is missing of a buffer is received into it directly from here on
_SCRATCH = 1 << 18


class Encoder:
    """Messages in, buffers to send out.

    Args:
        limits: the receiver's.
        kinds: classes of named tuples, see :mod:`taskloom.protocol.messages`.
        codec: compresses large buffers.

    Attributes:
        messages: how many were added so far.

    >>> encoder = Encoder()
    >>> encoder.add(("hello", 1))
    >>> [part] = encoder.take()
    >>> Decoder().feed(part)
    [('hello', 1)]
    """

    def __init__(
        self,
        limits: Limits | None = None,
        kinds: Sequence[type] = (),
        codec: Codec | None = None,
    ) -> None:
        self.limits = Limits() if limits is None else limits
        self.codec = codec
        self.messages = 0
        self._writer = Writer(kinds)
        self._packed: list[bytes] = []  # the frame that is being made
        self._apart: list[Any] = []
        self._header = 5  # bytes: what _packed will have, with the array's head
        self._payload = 0  # bytes of _apart
        self._sealed: list[Buffer] = []
        self._sealed_size = 0

    @property
    def size(self) -> int:
        """How many bytes wait to be taken, about."""
        return self._header - 5 + self._payload + self._sealed_size

    def add(self, message: Any) -> None:
        """Append a message to the batch. It is encoded now: what is changed later does not change it, except for the
        contents of out-of-band buffers, which are to stay as they are until they are sent.

        Raises:
            TypeError, ValueError, OverflowError: it holds what cannot travel.
            MessageTooLargeError: it is beyond the receiver's limits.
        """
        apart = self._apart
        before = len(apart)
        data = self._writer.write(message, apart)
        if len(apart) > before:
            self._check(apart[before:], message)
        if len(data) + 5 > self.limits.header:
            del apart[before:]
            raise MessageTooLargeError(
                f"a message of {len(data):,} bytes, without its large buffers, is not sent: the other side takes "
                f"{self.limits.header:,}; {_name(message)}"
            )
        if len(apart) > before:
            size = sum([memoryview(buffer).nbytes for buffer in apart[before:]])
            if self._packed and (
                self._payload + size > self.limits.batch
                or len(apart) > self.limits.buffers
                or self._header + len(data) > self.limits.header
            ):
                self._again(message, before)
                return
            self._payload += size
        elif self._header + len(data) > self.limits.header:
            self._seal()
        self._packed.append(data)
        self._header += len(data)
        self.messages += 1
        if self._header > _SEAL:
            self._seal()

    def _again(self, message: Any, before: int) -> None:
        """Into a frame of its own: its buffers are to be counted from 0 there."""
        del self._apart[before:]
        self._seal()
        self.add(message)

    def _check(self, apart: list[Any], message: Any) -> None:
        limits = self.limits
        sizes = [memoryview(buffer).nbytes for buffer in apart]
        what = None
        if max(sizes) > limits.buffer:
            what = f"a buffer of {max(sizes):,} bytes; the other side takes {limits.buffer:,} in one"
        elif sum(sizes) > limits.batch:
            what = f"buffers of {sum(sizes):,} bytes together; the other side takes {limits.batch:,}"
        elif len(sizes) > limits.buffers:
            what = f"{len(sizes):,} buffers; the other side takes {limits.buffers:,}"
        if what is not None:
            del self._apart[len(self._apart) - len(apart) :]
            raise MessageTooLargeError(f"a message is not sent, it has {what}; {_name(message)}")

    def _seal(self) -> None:
        packed, apart = self._packed, self._apart
        if not packed:
            return
        count = len(packed)
        head = bytes([0x90 | count]) if count < 16 else b"\xdd" + count.to_bytes(4, "big")
        header = len(head) + self._header - 5
        if not apart:
            self._sealed.append(b"".join([PREFIX.pack(MARK, header, 0, 0), head, *packed]))
        else:
            table, payload = [], 0
            for place, buffer in enumerate(apart):
                size = travels = memoryview(buffer).nbytes
                if self.codec is not None:
                    smaller = compress(self.codec, memoryview(buffer))
                    if smaller is not None:
                        apart[place] = smaller
                        payload += len(smaller)
                        travels = len(smaller) | self.codec.number << 56
                        table.append(ENTRY.pack(size, travels))
                        continue
                payload += size
                table.append(ENTRY.pack(size, travels))
            self._sealed.append(b"".join([PREFIX.pack(MARK, header, len(apart), payload), *table, head, *packed]))
            self._sealed.extend(apart)
        self._sealed_size = self.size
        self._packed, self._apart = [], []
        self._header, self._payload = 5, 0

    def take(self) -> list[Buffer]:
        """What is to be sent for the messages that were added since the last call; the buffers themselves, not copies."""
        self._seal()
        sealed, self._sealed, self._sealed_size = self._sealed, [], 0
        return sealed

    def __bool__(self) -> bool:
        """Whether there is anything to take."""
        return bool(self._packed or self._sealed)


def _name(message: Any) -> str:
    text = type(message).__name__
    if type(message) is tuple and message and isinstance(message[0], str):
        text = f"tuple beginning with {message[0][:40]!r}"
    return f"it is a {text}"


def room(size: int) -> memoryview:
    """Writable memory of its own.

    Raises:
        ProtocolError: there is none.
    """
    try:
        if size < _LARGE:
            return memoryview(bytearray(size))
        # Not a bytearray: it would be zeroed first, which takes as long as receiving it from a fast peer. Private: shared
        # memory, which is the default here, has no large pages, and a forked process would write into it.
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                memory.madvise(mmap.MADV_HUGEPAGE)
            except OSError:  # a kernel without them
                pass
        return memoryview(memory)
    except (MemoryError, OSError) as error:
        raise ProtocolError(f"there is no memory for a buffer of {size:,} bytes: {error}") from error


# What the bytes that come next are.
_START, _HEAD, _BUFFER, _FAILED = range(4)


class Decoder:
    """Bytes in, messages out.

    Call :meth:`get_buffer`, receive some bytes into what it returns, say how many to :meth:`received`; or :meth:`feed`.

    Args:
        limits: what is taken.
        kinds: classes of named tuples, as the sender's.
        codecs: numbers of the codecs that may come.
        scratch: memory to receive small things into; decoders of one thread may share it.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        kinds: Sequence[type] = (),
        codecs: Sequence[int] = (),
        scratch: bytearray | None = None,
    ) -> None:
        self.limits = Limits() if limits is None else limits
        self.codecs = tuple(codecs)
        self._read = Reader(self.limits, kinds).read
        self._scratch = memoryview(bytearray(_SCRATCH) if scratch is None else scratch)
        self._state = _START
        self._target: memoryview | None = None  # being filled, up to _at
        self._at = 0
        self._direct = False  # get_buffer() has given a part of _target
        self._count = 0  # of the frame's buffers
        self._payload = 0
        self._header: memoryview | None = None
        self._sizes: list[tuple[int, int, int]] = []  # in memory, as it travels, codec
        self._buffers: list[memoryview] = []

    @property
    def inside(self) -> bool:
        """Whether a frame has begun and not ended: the end of the stream would cut it off."""
        return self._target is not None

    def get_buffer(self) -> memoryview:
        """Where the next bytes are to be received."""
        target = self._target
        if target is not None and target.nbytes - self._at >= _DIRECT:
            self._direct = True
            return target[self._at :]
        self._direct = False
        return self._scratch

    def received(self, count: int) -> list[Any]:
        """So many bytes are in what :meth:`get_buffer` returned last: the messages that are whole now.

        Raises:
            ProtocolError: the stream is damaged; nothing can be read from it any more.
        """
        messages: list[Any] = []
        try:
            if self._direct:
                self._direct = False
                self._at += count
                if self._target is not None and self._at == self._target.nbytes:
                    self._filled(messages)
            else:
                self._consume(self._scratch[:count], messages)
        except ProtocolError:
            self._fail()
            raise
        return messages

    def feed(self, data: Buffer) -> list[Any]:
        """The same for bytes that are somewhere else.

        Raises:
            ProtocolError: the stream is damaged; nothing can be read from it any more.
        """
        messages: list[Any] = []
        try:
            self._consume(memoryview(data), messages)
        except ProtocolError:
            self._fail()
            raise
        return messages

    def _fail(self) -> None:
        self._state, self._target, self._header, self._buffers = _FAILED, None, None, []

    def _consume(self, view: memoryview, messages: list[Any]) -> None:
        if self._state == _FAILED:
            raise ProtocolError("the stream was damaged before this")
        at, end = 0, view.nbytes
        while at < end:
            target = self._target
            if target is None:
                if end - at >= PREFIX.size:
                    header, count, payload = self._prefix(view, at)
                    at += PREFIX.size
                    if not count and end - at >= header:  # a whole frame: most are like this
                        messages.extend(self._read(view[at : at + header], ()))
                        at += header
                    else:
                        self._begin(header, count, payload)
                    continue
                self._target = target = memoryview(bytearray(PREFIX.size))
                self._at = 0
            step = min(target.nbytes - self._at, end - at)
            target[self._at : self._at + step] = view[at : at + step]
            self._at += step
            at += step
            if self._at == target.nbytes:
                self._filled(messages)

    def _prefix(self, view: memoryview, at: int) -> tuple[int, int, int]:
        mark, header, count, payload = PREFIX.unpack_from(view, at)
        limits = self.limits
        if mark != MARK:
            raise ProtocolError(f"where a frame should begin stand the bytes {bytes(view[at : at + 16])!r}")
        if header > limits.header:
            raise ProtocolError(f"a frame's header has {header:,} bytes; the limit is {limits.header:,}")
        if count > limits.buffers:
            raise ProtocolError(f"a frame has {count:,} buffers; the limit is {limits.buffers:,}")
        if payload > limits.batch:
            raise ProtocolError(f"a frame's buffers have {payload:,} bytes; the limit is {limits.batch:,}")
        if not header:
            raise ProtocolError("a frame has no header")
        if (not count) != (not payload):
            raise ProtocolError(f"a frame has {count:,} buffers of {payload:,} bytes together")
        return header, count, payload

    def _begin(self, header: int, count: int, payload: int) -> None:
        self._state = _HEAD
        self._count, self._payload = count, payload
        self._target, self._at = room(count * ENTRY.size + header), 0

    def _filled(self, messages: list[Any]) -> None:
        """The target is full: go on to what comes next."""
        target = self._target
        assert target is not None
        self._target = None
        if self._state == _START:
            self._begin(*self._prefix(target, 0))
            return
        if self._state == _HEAD:
            self._table(target)
        else:
            size, _, number = self._sizes[len(self._buffers)]
            self._buffers.append(decompress(number, target, size, self.codecs) if number else target)
        if len(self._buffers) < len(self._sizes):
            self._state = _BUFFER
            self._target, self._at = room(self._sizes[len(self._buffers)][1]), 0
            return
        header, buffers = self._header, self._buffers
        assert header is not None
        self._header, self._buffers, self._sizes = None, [], []
        self._state = _START
        messages.extend(self._read(header, buffers))

    def _table(self, head: memoryview) -> None:
        limits = self.limits
        split = self._count * ENTRY.size
        sizes = (
            [(size, packed & _TRAVELS, packed >> 56) for size, packed in ENTRY.iter_unpack(head[:split])]
            if split
            else []
        )
        total = 0
        for size, travels, number in sizes:
            if not size or not travels or (not number and size != travels) or (number and size <= travels):
                raise ProtocolError(f"a buffer of {size:,} bytes travels as {travels:,} by codec {number}")
            if size > limits.buffer:
                raise ProtocolError(f"a buffer has {size:,} bytes; the limit is {limits.buffer:,}")
            if number and number not in self.codecs:
                raise ProtocolError(f"a buffer is compressed by codec {number}, which was not agreed on")
            total += size
        if total > limits.batch:
            raise ProtocolError(f"a frame's buffers have {total:,} bytes; the limit is {limits.batch:,}")
        if sum([travels for _, travels, _ in sizes]) != self._payload:
            raise ProtocolError("a frame's buffers have another number of bytes together than its prefix says")
        self._sizes, self._header = sizes, head[split:]
