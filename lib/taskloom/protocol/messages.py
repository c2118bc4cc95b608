"""Messages as msgpack, with what is large beside it.

A message is a plain value: None, bool, int (64 bits), float, str, bytes-like, and tuples, lists and dicts of these. Three
classes of this room may stand in it: :class:`Payload`, ``range`` objects, and, within one process, :class:`Reference`. A
named tuple of the ``kinds`` that both sides agree on arrives as what it was, wherever it stands.

What arrives differs from what was sent in this:

- lists and tuples arrive as tuples, other bytes-like objects as ``bytes``;
- bytes-like objects of :data:`OUT_OF_BAND` bytes or more arrive as a ``memoryview`` of memory of its own, one-dimensional,
  writable, of format ``B``. They are copied on neither side;
- in a list of 32 or more that begins with an integer and has integers only, a ``bool`` arrives as an ``int``.

Rules of this file: it opens no pickle. What a peer sends can make plain values, or a :class:`ProtocolError`, nothing else.

What was measured (us per thousand items, to encode and to decode): a list of integers as msgpack 12-26 and 4-11, as an array
of fixed width 4.4 and 8; deltas cost 30 more and save nothing on a local network. So long columns of integers are arrays. Pairs
of bytes and an integer as msgpack 200 and 60, by columns 75 and 40.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import msgpack

from taskloom.errors import ProtocolError
from taskloom.protocol.limits import Limits

__all__ = ["OUT_OF_BAND", "Buffer", "Payload", "Reader", "Reference", "Writer"]

Buffer = bytes | bytearray | memoryview

#: Bytes-like objects of so many bytes or more stand out of band. A buffer of its own costs 4 us more than being copied three
#: times does at 2 KB, 3 at 8 KB, and less from 12 KB on (at 64 KB: 19 us, not 61). It is not more than what pickles leave
#: out of band (``taskloom.serialize.objects.IN_BAND``), so that such a buffer always arrives writable.
OUT_OF_BAND = 8192

# msgpack's extension types. In APART stands the number of an out-of-band buffer; they are used in their order, each once.
APART, PAYLOAD, INTS, RANGE, KIND, ROWS, REPEAT = 1, 2, 3, 4, 5, 6, 7
# Where both sides have kinds, each message of a frame is an array that begins with its kind, or with this and the message.
OTHER = -1

_PLAIN = frozenset({int, str, float, bool, type(None)})
_PLAIN_OR_BYTES = _PLAIN | {bytes}
_BYTES = frozenset({bytes})
_ROWS = frozenset({tuple, list})
# What is written once where it fills a column; of equal ones, each is what the others are, which 1 and True are not.
_REPEATED = frozenset({bytes, str, type(None)})
_LONG = 32  # from here on a list is looked at as a column
_INDEX = struct.Struct("<I")
# Extensions within extensions: each level takes some 40 KB of the C stack, which has no limit of its own but its end.
_DEEPEST = 16
_WIDEST = 16  # rows that are written by columns
_WIDTHS = {"B": 1, "I": 4, "q": 8}


class Payload:
    """A value that nobody between its two ends opens: a pickle and its buffers, or any bytes.

    Args:
        parts: bytes-like objects; the first is the pickle, the others its out-of-band buffers in their order.

    >>> Payload([b"pickle", b"buffer"]).nbytes
    12
    """

    __slots__ = ("nbytes", "parts")

    def __init__(self, parts: Iterable[Buffer]) -> None:
        self.parts = tuple(parts)
        self.nbytes = sum([part.nbytes if type(part) is memoryview else len(part) for part in self.parts])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Payload):
            return NotImplemented
        # byte by byte, whatever format a memoryview has
        return [bytes(part) for part in self.parts] == [bytes(part) for part in other.parts]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Payload of {self.nbytes} bytes in {len(self.parts)} parts>"


class Reference:
    """An object that is handed over as it is. It can go to another part of the same process only (``inproc://``).

    >>> Reference([1]).value
    [1]
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"Reference({self.value!r})"


class _Apart:
    """Marks what goes out of band, for :meth:`Writer._default`, which sees them in their order."""

    __slots__ = ("data",)

    def __init__(self, data: Any) -> None:
        self.data = data


class _Ints:
    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class _Repeat:
    __slots__ = ("count", "item")

    def __init__(self, count: int, item: Any) -> None:
        self.count = count
        self.item = item


class _Rows:
    __slots__ = ("columns",)

    def __init__(self, columns: list[Any]) -> None:
        self.columns = columns


class _Kind:
    __slots__ = ("fields",)

    def __init__(self, fields: Sequence[Any]) -> None:
        self.fields = fields


def flat(data: Any) -> memoryview:
    """The bytes of a bytes-like object, one-dimensional, not copied.

    Raises:
        TypeError: they are not contiguous.
    """
    view = memoryview(data)
    if view.ndim == 1 and view.format == "B" and view.c_contiguous:
        return view
    if not view.c_contiguous:
        if not view.f_contiguous:
            raise TypeError("a buffer that is not contiguous can't stand in a message; send bytes(it)")
        raise TypeError("a buffer in Fortran order can't stand in a message; pickle it, or send a flat view of it")
    return view.cast("B")


class Writer:
    """Messages to msgpack.

    Args:
        kinds: classes of named tuples; the receiver has the same ones in the same order.
        references: whether :class:`Reference` may stand in messages.
    """

    def __init__(self, kinds: Sequence[type] = (), references: bool = False) -> None:
        self._tags = {kind: tag for tag, kind in enumerate(kinds)}
        self._references = references
        self._apart: list[Any] = []
        self._depth = 0  # of extensions, while they are written
        self._in_rows = False
        self._pack: Callable[[Any], bytes] = msgpack.Packer(default=self._default, unicode_errors="surrogatepass").pack

    def write(self, message: Any, apart: list[Any]) -> bytes:
        """One message as msgpack; what is large is appended to ``apart``.

        Raises:
            TypeError, ValueError, OverflowError, RecursionError: it holds what cannot travel, or is nested hundreds of levels
                deep; ``apart`` is as before.
        """
        self._apart = apart
        before = len(apart)
        try:
            if not self._tags:
                return self._pack(self._prepared(message))
            # what is sent a thousand times a second is without the extension that it has elsewhere
            tag = self._tags.get(type(message))
            if tag is None:
                return self._pack((OTHER, self._prepared(message)))
            return self._pack([tag, *self._items(message)])
        except BaseException:
            del apart[before:]
            raise
        finally:
            self._apart = []
            self._depth = 0
            self._in_rows = False

    def _prepared(self, value: Any) -> Any:
        """The same with markers for what msgpack alone would write in another way; the value itself where there is none."""
        cls = type(value)
        if cls in _PLAIN:
            return value
        if cls is bytes:
            return value if len(value) < OUT_OF_BAND else _Apart(value)
        if cls is tuple or cls is list:
            return self._sequence(value)
        if cls is dict:
            out = None
            for key, item in value.items():
                new = item if type(item) in _PLAIN else self._prepared(item)
                if new is not item:
                    if out is None:
                        out = value.copy()
                    out[key] = new
            return value if out is None else out
        if cls is memoryview or cls is bytearray:
            view = flat(value)
            return view if view.nbytes < OUT_OF_BAND else _Apart(view)
        tag = self._tags.get(cls)
        if tag is not None:
            return _Kind([tag, *self._items(value)])
        if isinstance(value, (tuple, list)):
            return self._items(value)
        if isinstance(value, dict):
            return self._prepared(dict(value))
        return value

    def _sequence(self, items: Any) -> Any:
        if len(items) >= _LONG:
            # one look at a column in C is several times cheaper than one at each item
            first = type(items[0])
            if first is int:
                column = _ints(items)
                if column is not None:
                    return column
            elif first in _REPEATED and items[0] == items[-1] and items.count(items[0]) == len(items):
                return _Repeat(len(items), self._prepared(items[0]))
            elif first is bytes:
                if _BYTES.issuperset(map(type, items)) and max(map(len, items)) < OUT_OF_BAND:
                    return items
            elif (first is tuple or first is list) and _ROWS.issuperset(map(type, items)):
                width = len(items[0])
                if width <= _WIDEST and len(items[-1]) == width and len(set(map(len, items))) == 1:
                    if not width:
                        return _Repeat(len(items), ())
                    if not self._in_rows:
                        self._in_rows = True
                        columns = [self._sequence(column) for column in zip(*items, strict=True)]
                        self._in_rows = False
                        return _Rows(columns)
                if _all_plain(items):
                    return items
        return self._items(items)

    def _items(self, items: Any) -> Any:
        out = None
        for place, item in enumerate(items):
            cls = type(item)
            if cls in _PLAIN or (cls is bytes and len(item) < OUT_OF_BAND):
                continue
            new = self._prepared(item)
            if new is not item:
                if out is None:
                    out = list(items)
                out[place] = new
        return items if out is None else out

    def _default(self, value: Any) -> Any:
        """What msgpack calls for what it does not know, in the order of the stream."""
        cls = type(value)
        if cls is _Ints:
            return msgpack.ExtType(INTS, value.data)
        if cls is _Apart:
            self._apart.append(value.data)
            return msgpack.ExtType(APART, _INDEX.pack(len(self._apart) - 1))
        if cls is _Kind:
            return msgpack.ExtType(KIND, self._nested(value.fields))
        if cls is _Rows:
            return msgpack.ExtType(ROWS, self._nested(value.columns))
        if cls is _Repeat:
            return msgpack.ExtType(REPEAT, self._nested((value.count, value.item)))
        if cls is Payload:
            return msgpack.ExtType(PAYLOAD, self._nested([self._prepared(part) for part in value.parts]))
        if cls is range:
            return msgpack.ExtType(RANGE, self._nested((value.start, value.stop, value.step)))
        if cls is Reference:
            if not self._references:
                raise TypeError(f"{value!r} can't leave this process; pickle it into a Payload")
            self._apart.append(value)
            return msgpack.ExtType(APART, _INDEX.pack(len(self._apart) - 1))
        if cls is int:
            raise OverflowError(f"an integer of {value.bit_length()} bits can't stand in a message, only 64; pickle it")
        raise TypeError(
            f"an object of type {cls.__module__}.{cls.__qualname__} can't stand in a message; pickle it into a Payload"
        )

    def _nested(self, fields: Sequence[Any]) -> bytes:
        if self._depth >= _DEEPEST:
            raise ValueError(
                f"named tuples in a message are nested deeper than {_DEEPEST} levels; pickle them into a Payload"
            )
        self._depth += 1
        # a packer of its own: the one that is at work is not to be entered again
        found: bytes = msgpack.packb(fields, default=self._default, unicode_errors="surrogatepass")
        self._depth -= 1
        return found


def _all_plain(rows: Any) -> bool:
    """Whether in these lists and tuples is only what msgpack alone writes as it should be."""
    found = set(map(type, chain.from_iterable(rows)))
    if found <= _PLAIN:
        return True
    if found <= _PLAIN_OR_BYTES:
        return all(len(item) < OUT_OF_BAND for item in chain.from_iterable(rows) if type(item) is bytes)
    return False


def _ints(column: Any) -> _Ints | None:
    """A column of integers as an array, the narrowest of three; None where it is something else."""
    first, last = column[0], column[-1]
    if type(last) is not int:
        return None
    if 0 <= first < 256 and 0 <= last < 256:
        try:
            return _Ints(b"B" + bytes(column))
        except (TypeError, ValueError):
            pass
    if 0 <= first < 1 << 32 and 0 <= last < 1 << 32:
        try:
            return _Ints(b"I" + struct.pack(f"<{len(column)}I", *column))
        except struct.error:
            pass
    try:
        return _Ints(b"q" + struct.pack(f"<{len(column)}q", *column))
    except struct.error:
        return None


class Reader:
    """msgpack to messages.

    Args:
        kinds, references: as the sender's.
    """

    def __init__(self, limits: Limits, kinds: Sequence[type] = (), references: bool = False) -> None:
        self._limits = limits
        self._kinds = tuple(kinds)
        self._references = references
        self._apart: Sequence[Any] = ()
        self._next = self._repeated = self._depth = 0

    def read(self, header: Buffer, apart: Sequence[Any]) -> tuple[Any, ...]:
        """The messages of a frame.

        Args:
            header: msgpack: one array.
            apart: its out-of-band buffers.

        Raises:
            ProtocolError: it is damaged, or was made to harm.
        """
        self._apart = apart
        self._next = self._repeated = self._depth = 0
        try:
            found = self._unpack(header)
        except ProtocolError:
            raise
        # RecursionError, UnicodeDecodeError (a ValueError), an unhashable key (TypeError), a hook's struct.error, ...
        except Exception as error:
            what = str(error) or type(error).__name__
            raise ProtocolError(f"the header of a frame is no valid msgpack: {what}") from error
        finally:
            self._apart = ()
        if type(found) is not tuple:
            raise ProtocolError(f"the header of a frame is not an array of messages but of type {type(found).__name__}")
        if self._next != len(apart):
            raise ProtocolError(f"a frame has {len(apart)} buffers, and its messages use {self._next} of them")
        return tuple([self._message(item) for item in found]) if self._kinds else found

    def _message(self, item: Any) -> Any:
        if type(item) is tuple and len(item) == 2 and item[0] == OTHER:
            return item[1]
        return self._kind(item)

    def _unpack(self, data: Buffer) -> Any:
        # its limits on lengths are those of the data; it makes no room for more items than have come
        return msgpack.unpackb(
            data, use_list=False, ext_hook=self._ext, strict_map_key=False, unicode_errors="surrogatepass"
        )

    def _inner(self, data: bytes) -> Any:
        """What stands in an extension."""
        if self._depth >= _DEEPEST:
            raise ProtocolError(f"extensions stand in each other deeper than {_DEEPEST} levels")
        self._depth += 1
        found = self._unpack(data)
        self._depth -= 1
        return found

    def _ext(self, code: int, data: bytes) -> Any:
        if code == INTS:
            letter = chr(data[0]) if data else ""
            width = _WIDTHS.get(letter)
            count, rest = divmod(len(data) - 1, width or 1)
            if width is None or rest:
                raise ProtocolError(f"a column of integers has {len(data)} bytes and the format {letter!r}")
            return struct.unpack_from(f"<{count}{letter}", data, 1)
        if code == APART:
            if len(data) != 4 or _INDEX.unpack(data)[0] != self._next or self._next >= len(self._apart):
                raise ProtocolError(f"a message refers to buffer {data[:4].hex()}, expected number {self._next}")
            found = self._apart[self._next]
            self._next += 1
            return found
        if code == PAYLOAD:
            parts = self._inner(data)
            if type(parts) is not tuple or not {bytes, memoryview}.issuperset(map(type, parts)):
                raise ProtocolError("a payload has parts that are no bytes")
            return Payload(parts)
        if code == KIND:
            return self._kind(self._inner(data))
        if code == ROWS:
            columns = self._inner(data)
            if type(columns) is not tuple or not columns or not {tuple}.issuperset(map(type, columns)):
                raise ProtocolError("rows have columns that are none")
            return tuple(zip(*columns, strict=True))
        if code == REPEAT:
            pair = self._inner(data)
            if type(pair) is not tuple or len(pair) != 2 or type(pair[0]) is not int or pair[0] < 0:
                raise ProtocolError("a repeated item does not say how often it comes")
            count, item = pair
            self._repeated += count
            if self._repeated > self._limits.span:
                raise ProtocolError(
                    f"the items of a frame are repeated more often than the limit of {self._limits.span}"
                )
            return (item,) * count
        if code == RANGE:
            bounds = self._inner(data)
            if (
                type(bounds) is not tuple
                or len(bounds) != 3
                or not {int}.issuperset(map(type, bounds))
                or not bounds[2]
            ):
                raise ProtocolError("a range has wrong bounds")
            start, stop, step = bounds
            # not len(): it has a limit of its own, and raises another error beyond it
            if (stop - start) // step > self._limits.span:
                raise ProtocolError(f"{range(*bounds)} is longer than the limit of {self._limits.span}")
            return range(*bounds)
        raise ProtocolError(f"a message holds an extension of the unknown type {code}")

    def _kind(self, fields: Any) -> Any:
        if type(fields) is not tuple or not fields or type(fields[0]) is not int:
            raise ProtocolError("a message does not begin with the number of its kind")
        tag = fields[0]
        if not 0 <= tag < len(self._kinds):
            raise ProtocolError(f"a message is of the unknown kind {tag}; there are {len(self._kinds)}")
        kind: Any = self._kinds[tag]
        if len(fields) - 1 != len(kind._fields):
            raise ProtocolError(f"a {kind.__name__} has {len(kind._fields)} fields, and {len(fields) - 1} came")
        return kind._make(fields[1:])
