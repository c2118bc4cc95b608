"""Objects as bytes: pickle protocol 5 with large buffers out of band, and functions by hash.

What pickle can't send by name (lambdas, closures, functions and classes of ``__main__`` or of a notebook) cloudpickle
sends by value. Such a value can be large, and the same function comes with thousands of tasks, so it travels apart:
the sender's :class:`FunctionTable` pickles it once, and in the stream stands only its hash; the receiver's
:class:`FunctionStore` has it under that hash. Who sends keeps account of which hashes the other side has already.

Within the pickle of a function, other functions are by value in place: a recursive function, or two that call each
other, have no hash before they are pickled.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Iterable, Sequence
from types import FunctionType
from typing import Any

import cloudpickle
from cloudpickle.cloudpickle import _should_pickle_by_reference

__all__ = ["IN_BAND", "FunctionStore", "FunctionTable", "Packer", "dumps", "loads"]

PROTOCOL = 5
# Buffers smaller than this are cheaper inside the pickle than apart: bytes.
IN_BAND = 8192

Buffer = bytes | bytearray | memoryview


class FunctionTable:
    """The sender's side: functions and classes by value, pickled once, by hash.

    One table serves one run, so that a function whose globals have changed since the last run is pickled anew.

    Attributes:
        blobs: hash -> pickle.
    """

    def __init__(self) -> None:
        self.blobs: dict[bytes, bytes] = {}
        self._known: dict[int, tuple[Any, bytes | None]] = {}  # id -> (it, kept alive; hash or None: by name)

    def hash_of(self, obj: Any) -> bytes | None:
        """The hash under which a function or class travels; None if it goes by name.

        Raises:
            Exception: it does not pickle.
        """
        known = self._known.get(id(obj))
        if known is not None:
            return known[1]
        digest = None
        if not _should_pickle_by_reference(obj):
            blob = cloudpickle.dumps(obj, protocol=PROTOCOL)
            digest = hashlib.blake2b(blob, digest_size=16).digest()
            self.blobs[digest] = blob
        self._known[id(obj)] = (obj, digest)
        return digest


class FunctionStore:
    """The receiver's side: hash -> pickle, unpickled at the first use."""

    def __init__(self) -> None:
        self._blobs: dict[bytes, bytes] = {}
        self._made: dict[bytes, Any] = {}

    def add(self, blobs: dict[bytes, bytes]) -> None:
        self._blobs.update(blobs)

    def forget(self, digests: Iterable[bytes]) -> None:
        for digest in digests:
            self._blobs.pop(digest, None)
            self._made.pop(digest, None)

    def get(self, digest: bytes) -> Any:
        """The function or class. Raises whatever its unpickling raises."""
        try:
            return self._made[digest]
        except KeyError:
            made = self._made[digest] = pickle.loads(self._blobs[digest])
            return made


# What stands in a stream for a function by hash. The store belongs to the process: the unpickler has no other way in.
_store = FunctionStore()


def store() -> FunctionStore:
    """The store that this process unpickles from."""
    return _store


def _by_hash(digest: bytes) -> Any:
    return _store.get(digest)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc, name-defined, unused-ignore]
    """cloudpickle's, with functions and classes by hash; only the outermost ones, see the module's text."""

    def __init__(self, file: Any, table: FunctionTable, buffer_callback: Any) -> None:
        super().__init__(file, protocol=PROTOCOL, buffer_callback=buffer_callback)
        self.table = table
        self.used: set[bytes] = set()

    def reducer_override(self, obj: Any) -> Any:
        # called for what is no plain builtin value only
        if isinstance(obj, (FunctionType, type)):
            digest = self.table.hash_of(obj)
            if digest is not None:
                self.used.add(digest)
                return _by_hash, (digest,)
        return super().reducer_override(obj)


class Packer:
    """Pickles one object after another into one stream.

    What an earlier object held is referred to by the later ones. Each can be loaded by itself, in order, so an error
    while loading is known to be that object's.

    Args:
        table: for functions by hash; None: by value, in place.

    Attributes:
        buffers: the large buffers of all objects so far, in order, as they are in memory: not copied.
        used: hashes of the functions that the stream refers to.
    """

    def __init__(self, table: FunctionTable | None = None) -> None:
        self._file = io.BytesIO()
        self.buffers: list[memoryview] = []
        self.used: set[bytes] = set()
        if table is None:
            self._pickler: Any = cloudpickle.Pickler(self._file, protocol=PROTOCOL, buffer_callback=self._buffer)
        else:
            self._pickler = _Pickler(self._file, table, self._buffer)
            self.used = self._pickler.used
        self.dump = self._pickler.dump

    def _buffer(self, buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if raw.nbytes < IN_BAND:
            return True
        self.buffers.append(raw)
        return False

    def getvalue(self) -> bytes:
        """The stream so far."""
        return self._file.getvalue()

    def size(self) -> int:
        """Bytes so far, buffers included."""
        return self._file.tell() + sum(buffer.nbytes for buffer in self.buffers)


def dumps(obj: Any, table: FunctionTable | None = None) -> tuple[bytes, list[memoryview]]:
    """Pickle one object: the stream, and its large buffers out of band, not copied.

    Raises:
        Exception: it does not pickle; whatever pickle or the object raises.
    """
    packer = Packer(table)
    packer.dump(obj)
    return packer.getvalue(), packer.buffers


def loads(data: Buffer, buffers: Sequence[Buffer] = ()) -> Any:
    """The object that :func:`dumps` made these of; arrays use the memory of ``buffers``, read-only if they are."""
    return pickle.loads(data, buffers=buffers)
