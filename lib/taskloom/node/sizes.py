"""How many bytes a value takes, about, and fast.

Exact for what is large and simple: bytes, strings, arrays. Of containers a few items are looked at and the rest is taken to
be like them. Objects of other classes: what they say (``nbytes``), or their attributes. Never more than some hundred objects
are looked at, however large the value is, and no code of the value's is trusted: what raises counts as nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from types import ModuleType
from typing import Any

__all__ = ["sizeof"]

_SAMPLE = 16  # items of a container that are looked at
_DEPTH = 6
_MOST = 400  # objects that are looked at in all
_LEAVES = frozenset({int, float, complex, bool, type(None), str, bytes, range, type(...)})

_getsizeof = sys.getsizeof


def sizeof(value: Any) -> int:
    """Bytes of memory that a value takes, about.

    >>> sizeof(b"x" * 1000) >= 1000
    True
    >>> sizeof([b"x" * 1000] * 50) < 10_000  # the same object, fifty times
    True
    """
    if type(value) in _LEAVES:
        return _getsizeof(value)
    try:
        return int(_Walk().size(value, 0))
    except Exception:
        return 64


class _Walk:
    def __init__(self) -> None:
        self.left = _MOST
        self.seen: set[int] = set()

    def size(self, value: Any, depth: int) -> float:
        kind = type(value)
        if kind in _LEAVES:
            return _getsizeof(value)
        if id(value) in self.seen or self.left <= 0:
            return 8
        self.seen.add(id(value))
        self.left -= 1
        try:
            return self._one(value, kind, depth)
        except Exception:
            return 64

    def _one(self, value: Any, kind: type, depth: int) -> float:
        if isinstance(value, (bytearray, str, bytes)):
            return _getsizeof(value)
        if isinstance(value, memoryview):
            return value.nbytes + 200
        root = (kind.__module__ or "").partition(".")[0]
        if root == "numpy":
            return self._numpy(value, depth)
        if root == "pandas":
            return self._pandas(value, depth)
        if depth >= _DEPTH:
            return _getsizeof(value)
        if isinstance(value, (list, tuple, set, frozenset)):
            return _getsizeof(value) + self._sample(value, len(value), depth)
        if isinstance(value, dict):
            own = _getsizeof(value)
            count = len(value)
            return own + self._sample(value.keys(), count, depth) + self._sample(value.values(), count, depth)
        nbytes = getattr(value, "nbytes", None)  # arrays of others, arrow tables, xarray
        if isinstance(nbytes, int) and nbytes >= 0:
            return nbytes + _getsizeof(value)
        if isinstance(value, (type, ModuleType)):  # they belong to the program
            return 64
        size = float(_getsizeof(value))
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, Mapping):
            size += self.size(dict(attributes), depth + 1)
        for cls in kind.__mro__:
            slots = cls.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name in ("__dict__", "__weakref__"):
                    continue
                found = getattr(value, name, None)
                if found is not None:
                    size += self.size(found, depth + 1)
        return size

    def _sample(self, items: Iterable[Any], count: int, depth: int) -> float:
        if count <= 2 * _SAMPLE:
            return sum([self.size(item, depth + 1) for item in items])
        if isinstance(items, (list, tuple)):
            step = count // _SAMPLE
            chosen = [items[at] for at in range(step // 2, count, step)][:_SAMPLE]
        else:
            chosen = list(islice(items, _SAMPLE))
        distinct = {id(item): item for item in chosen}
        if len(distinct) == 1:  # the same, again and again
            return self.size(chosen[0], depth + 1)
        return sum([self.size(item, depth + 1) for item in chosen]) * count / len(chosen)

    def _numpy(self, array: Any, depth: int) -> float:
        strides = getattr(array, "strides", None)
        if strides is None:  # a scalar, a dtype
            return _getsizeof(array)
        size = int(array.nbytes)
        if 0 in strides and size:  # broadcast: the same memory, seen several times
            for length, stride in zip(array.shape, strides, strict=True):
                if stride == 0 and length:
                    size //= length
        if array.dtype.hasobject and array.dtype.names is None and array.size:
            flat = array.ravel()[: 4 * _SAMPLE] if array.flags.c_contiguous else array.flat[: 4 * _SAMPLE]
            chosen = list(flat)
            size += int(sum([self.size(item, depth + 1) for item in chosen]) * array.size / len(chosen))
        return size + 112

    def _pandas(self, value: Any, depth: int) -> float:
        usage = getattr(value, "memory_usage", None)
        if usage is None:
            return _getsizeof(value)
        try:
            found = usage(deep=False, index=True)
        except TypeError:  # an Index
            found = usage(deep=False)
        size = float(found.sum()) if hasattr(found, "sum") else float(found)
        columns = [value] if not hasattr(value, "columns") else [value.iloc[:, at] for at in range(value.shape[1])][:64]
        for column in columns:
            dtype = getattr(column, "dtype", None)
            in_python = str(dtype) == "object" or getattr(dtype, "storage", None) == "python"
            if in_python and len(column):
                some = column.iloc[:_SAMPLE] if hasattr(column, "iloc") else column[:_SAMPLE]
                chosen = list(some)
                size += sum([self.size(item, depth + 1) for item in chosen]) * len(column) / len(chosen)
        return size + 1000
