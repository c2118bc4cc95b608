"""Objects as bytes: pickle protocol 5 with large buffers out of band, and functions by hash.

What pickle can't send by name (lambdas, closures, functions and classes of ``__main__`` or of a notebook) cloudpickle
sends by value. Such a value can be large, and the same function comes with thousands of tasks, so it travels apart:
the sender's :class:`FunctionTable` pickles it once, and in the stream stands only its hash; the receiver's
:class:`FunctionStore` has it under that hash. Who sends keeps account of which hashes the other side has already.

Within the pickle of a function, other functions are by value in place: a recursive function, or two that call each
other, have no hash before they are pickled.

A class that travels by value is one class in each process, however often it arrives: ``isinstance`` holds from one task
to the next, and back at home. Who defined it keeps it as it is there: an instance that comes home brings no second
version of its class's methods. Elsewhere, what arrives last counts.
"""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
import sys
import weakref
from collections import ChainMap
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType, ModuleType
from typing import Any, ClassVar

import cloudpickle

# What follows is not public there; the tests of this room would show a change.
from cloudpickle.cloudpickle import (
    _DYNAMIC_CLASS_TRACKER_BY_ID,
    _class_setstate,
    _is_registered_pickle_by_value,
    _lookup_module_and_qualname,
    _should_pickle_by_reference,
)

from taskloom.serialize.modules import note_module

__all__ = ["IN_BAND", "FunctionStore", "FunctionTable", "Packer", "dumps", "dumps_whole", "loads", "store"]

PROTOCOL = 5
# Buffers smaller than this are cheaper inside the pickle than apart: bytes.
IN_BAND = 8192

Buffer = bytes | bytearray | memoryview


class FunctionTable:
    """The sender's side: functions and classes by value, pickled once, by hash.

    One table serves one run, so that a function whose globals have changed since the last run is pickled anew. It keeps
    alive what it has pickled. Threads may share it.

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
        if not _goes_by_name(obj):
            blob = dumps_whole(obj)
            digest = hashlib.blake2b(blob, digest_size=16).digest()
            self.blobs[digest] = blob
        self._known[id(obj)] = (obj, digest)
        return digest


class FunctionStore:
    """The receiver's side: hash -> pickle, unpickled at the first use."""

    def __init__(self) -> None:
        self._blobs: dict[bytes, bytes] = {}
        self._made: dict[bytes, Any] = {}
        self._with_class: set[bytes] = set()  # those that set attributes of a class

    def add(self, blobs: dict[bytes, bytes]) -> None:
        """Have these, hash -> pickle."""
        self._blobs.update(blobs)
        self._with_class.update([digest for digest, blob in blobs.items() if _SETS_CLASS in blob])

    def forget(self, digests: Iterable[bytes]) -> None:
        """Have these no longer; nothing happens for one that is not there."""
        for digest in digests:
            self._blobs.pop(digest, None)
            self._made.pop(digest, None)
            self._with_class.discard(digest)

    def begin(self) -> None:
        """A new run begins: what holds a class is unpickled again when it is used next.

        A class is one object here, whichever pickle of it arrived. If the last run brought it with other attributes,
        then a function that was unpickled before that has to bring its own back.
        """
        for digest in list(self._with_class):
            self._made.pop(digest, None)

    def get(self, digest: bytes) -> Any:
        """The function or class.

        Raises:
            LookupError: it was not sent.
            Exception: whatever its unpickling raises.
        """
        try:
            return self._made[digest]
        except KeyError:
            pass
        try:
            blob = self._blobs[digest]
        except KeyError:
            raise LookupError(f"function {digest.hex()} was not sent to this process, or forgotten by it") from None
        # threads that come here at once get the same one
        return self._made.setdefault(digest, pickle.loads(blob))


# What stands in a stream for a function by hash. The store belongs to the process: the unpickler has no other way in.
_store = FunctionStore()


def store() -> FunctionStore:
    """The store that this process unpickles from."""
    return _store


def _by_hash(digest: bytes) -> Any:
    return _store.get(digest)


# Classes by value: those that were defined here, and those that came from elsewhere.
_home: weakref.WeakSet[type] = weakref.WeakSet()
_foreign: weakref.WeakSet[type] = weakref.WeakSet()


def _make_class(make: Callable[..., type], *args: Any) -> type:
    """The class with no attributes yet; the one that is here already where there is one.

    cloudpickle makes a new one each time, and throws it away if it knows the class. That runs ``__init_subclass__`` and
    the metaclass again, which may keep a list of all classes, or refuse one whose name is taken.
    """
    known = _DYNAMIC_CLASS_TRACKER_BY_ID.get(args[-2])
    return make(*args) if known is None else known


def _set_class(cls: type, state: Any) -> Any:
    """Give a class its attributes, unless it is ours: then it has them, maybe newer ones."""
    if cls in _home:
        return cls
    _foreign.add(cls)
    _blobs.pop(cls, None)
    return _class_setstate(cls, state)


# Classes from elsewhere go on, or home, as bytes that are made once and read once: each of a thousand small values that
# travel by themselves has its class with it.
_blobs: weakref.WeakKeyDictionary[type, bytes] = weakref.WeakKeyDictionary()  # the class as it is here now
_read: weakref.WeakValueDictionary[bytes, type] = weakref.WeakValueDictionary()


def _blob_of(cls: type) -> bytes:
    blob = _blobs.get(cls)
    if blob is None:
        file = io.BytesIO()
        _InPlacePickler(file, protocol=PROTOCOL).dump(cls)
        blob = _blobs[cls] = file.getvalue()
        _read[blob] = cls
    return blob


def _read_class(blob: bytes) -> type:
    cls = _read.get(blob)
    if cls is None or (cls not in _home and _blobs.get(cls) != blob):
        cls = _read[blob] = pickle.loads(blob)
        if cls in _foreign:
            _blobs[cls] = blob  # and on it goes as it came
    return cls


_SETS_CLASS = b"_set_class"


def _goes_by_name(obj: Any) -> bool:
    if not isinstance(obj, (FunctionType, type, functools._lru_cache_wrapper)):
        return True
    note_module(getattr(obj, "__module__", None))
    if isinstance(obj, functools._lru_cache_wrapper):
        found = _lookup_module_and_qualname(obj)
        return found is not None and not _is_registered_pickle_by_value(found[0])
    return bool(_should_pickle_by_reference(obj))


def _reduce_cached(function: Any) -> Any:
    """A function under ``lru_cache``: the function, with an empty cache over there."""
    if _goes_by_name(function):
        return function.__qualname__
    parameters = function.cache_parameters()
    state = {name: value for name, value in vars(function).items() if name != "__wrapped__"}
    return _make_cached, (function.__wrapped__, parameters["maxsize"], parameters["typed"]), state


def _make_cached(function: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


def _reduce_cached_property(found: Any) -> Any:
    # before Python 3.12 it has a lock, which each process makes for itself
    state = {name: value for name, value in vars(found).items() if name != "lock"}
    return functools.cached_property, (found.func,), state


def _reduce_weak(found: Any) -> Any:
    """A weak dictionary: ``singledispatch`` has one. What nothing else holds over there goes at once, as here."""
    return type(found), (dict(found.items()),)


def _reduce_weak_set(found: Any) -> Any:
    return type(found), (list(found),)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc, name-defined, unused-ignore]
    """cloudpickle's, with what it lacks; see the functions above."""

    in_place = False  # classes from elsewhere too

    dispatch_table: ClassVar[Any] = ChainMap(
        {
            functools._lru_cache_wrapper: _reduce_cached,
            functools.cached_property: _reduce_cached_property,
            weakref.WeakKeyDictionary: _reduce_weak,
            weakref.WeakValueDictionary: _reduce_weak,
            weakref.WeakSet: _reduce_weak_set,
        },
        cloudpickle.Pickler.dispatch_table,
    )

    def reducer_override(self, obj: Any) -> Any:
        # called for what is no plain builtin value only
        if not self.in_place and isinstance(obj, type) and obj in _foreign:
            return _read_class, (_blob_of(obj),)
        if isinstance(obj, (FunctionType, type)):
            note_module(obj.__module__)
        elif isinstance(obj, ModuleType):
            note_module(obj.__name__)
        found = super().reducer_override(obj)
        if type(found) is tuple and len(found) == 6 and found[5] is _class_setstate:
            if obj not in _foreign:
                _home.add(obj)
            make, args, state = found[:3]
            return _make_class, (make, *args), state, None, None, _set_class
        return found


class _InPlacePickler(_Pickler):
    in_place = True


def _reduce_array(array: Any) -> Any:
    """A numpy array. One that is not contiguous, such as a block of a matrix, is copied once; numpy does it twice."""
    if not array.flags.forc and array.nbytes >= IN_BAND and not array.dtype.hasobject:
        array = array.copy()
    return array.__reduce_ex__(PROTOCOL)


def _learn_of_arrays() -> None:
    numpy = sys.modules.get("numpy")
    if numpy is not None and hasattr(numpy, "ndarray"):  # it may be half imported
        _Pickler.dispatch_table.setdefault(numpy.ndarray, _reduce_array)


class _Bytes:
    """Pickles as bytes do not by themselves: out of band. (A bytearray could not grow while somebody sends it.)"""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        return bytes, (pickle.PickleBuffer(self.data),)


class _HashPickler(_Pickler):
    """With functions and classes by hash; only the outermost ones, see the module's text."""

    def __init__(self, file: Any, table: FunctionTable, buffer_callback: Any) -> None:
        super().__init__(file, protocol=PROTOCOL, buffer_callback=buffer_callback)
        self.table = table
        self.used: set[bytes] = set()

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (FunctionType, type, functools._lru_cache_wrapper)):
            digest = self.table.hash_of(obj)
            if digest is not None:
                self.used.add(digest)
                return _by_hash, (digest,)
        return super().reducer_override(obj)


def _keep_apart(buffers: list[memoryview], buffer: pickle.PickleBuffer) -> bool:
    try:
        raw = buffer.raw()
    except BufferError:  # not contiguous
        return True
    if raw.nbytes < IN_BAND:
        return True
    buffers.append(raw)
    return False


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
        _learn_of_arrays()
        self._file = io.BytesIO()
        self.buffers: list[memoryview] = []
        self.used: set[bytes] = set()
        # Not a method of ours: the pickler would hold us as we hold it, and all the buffers with us would live until
        # the next run of the garbage collector.
        keep = functools.partial(_keep_apart, self.buffers)
        if table is None:
            self._pickler: Any = _Pickler(self._file, protocol=PROTOCOL, buffer_callback=keep)
        else:
            self._pickler = _HashPickler(self._file, table, keep)
            self.used = self._pickler.used
        self._dump = self._pickler.dump
        self._bytes: dict[int, _Bytes] = {}

    def dump(self, obj: Any) -> None:
        """Append an object.

        Raises:
            Exception: it does not pickle; whatever pickle or the object raises. The stream is of no use then.
        """
        if type(obj) is bytes and len(obj) >= IN_BAND:
            # the same wrapper each time, so that the same bytes go once
            obj = self._bytes.setdefault(id(obj), _Bytes(obj))
        self._dump(obj)

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


def dumps_whole(obj: Any) -> bytes:
    """Pickle one object in one piece: functions and buffers in place.

    Raises:
        Exception: it does not pickle; whatever pickle or the object raises.
    """
    file = io.BytesIO()
    _Pickler(file, protocol=PROTOCOL).dump(obj)
    return file.getvalue()


def loads(data: Buffer, buffers: Sequence[Buffer] = ()) -> Any:
    """The object that :func:`dumps` made these of; arrays use the memory of ``buffers``, read-only if they are."""
    return pickle.loads(data, buffers=buffers)
