"""A worker's values: tiny ones in a dict, all others in the store that can spill them to disk.

A value that has come from another worker is opened (unpickled) where it is used first, if it is tiny; else when it comes,
in a thread where that may take long. What cannot be opened raises where it is asked for: in the task that needs it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from taskloom.errors import SerializationError
from taskloom.node import calls
from taskloom.node.memory import Order
from taskloom.node.sizes import sizeof
from taskloom.node.store import Store
from taskloom.protocol import Payload

__all__ = ["TINY", "Values"]

TINY = 512  # bytes; a value below is not worth a place in the store, and is never written to disk
SLOW = 64 * 1024  # bytes of pickle, buffers not counted, that are not to be opened in the event loop


_ABSENT: Any = type("_Absent", (), {"__slots__": ()})()


class _Broken:
    """Stands for a value that could not be opened."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Values:
    """tid -> value. All methods may be called by any thread.

    Args:
        limit: bytes of memory that this process may have; None: no limit.
        folder: where values go on disk; by default where temporary files are.

    >>> values = Values()
    >>> values.put(1, "one", 52)
    >>> values.get(1), 1 in values
    ('one', True)
    >>> values.close()
    """

    def __init__(self, limit: int | None = None, folder: str | None = None) -> None:
        self._tiny: dict[int, Any] = {}
        self.store = Store(limit, folder)
        self._process: Any = None

    def put(self, tid: int, value: Any, size: int) -> None:
        """Have a value that was made here, of so many bytes."""
        if size < TINY:
            self._tiny[tid] = value
        else:
            self.store.put(tid, value, size)

    def get(self, tid: int) -> Any:
        """A value; from disk if need be, which may take long: not for the event loop.

        Raises:
            KeyError: there is none of that name.
            Exception: it could not be opened.
        """
        try:
            value = self._tiny[tid]
        except KeyError:
            return self.store.get(tid)
        kind = type(value)
        if kind is Payload:
            value = self._tiny[tid] = self.open(value)[0]
            kind = type(value)
        if kind is _Broken:
            raise SerializationError(
                f"an input came from another worker and cannot be unpickled here: {type(value.error).__name__}: {value.error}"
            ) from value.error
        return value

    @staticmethod
    def is_slow(payload: Payload) -> bool:
        """Whether a value may take long to open."""
        part = payload.parts[0]
        return (part.nbytes if type(part) is memoryview else len(part)) > SLOW

    @staticmethod
    def open(payload: Payload) -> tuple[Any, int]:
        """A value that has come, and its bytes; for :meth:`receive`."""
        try:
            value = calls.open_value(payload)
            return value, sizeof(value)
        except Exception as error:
            return _Broken(error), 0

    def receive(self, tid: int, payload: Payload, opened: tuple[Any, int] | None = None) -> None:
        """Have a value that has come from another worker; one that is here already stays.

        Args:
            opened: what :meth:`open` has made of it, if that was done already.
        """
        if tid in self:
            return
        if payload.nbytes < TINY:
            self._tiny[tid] = payload
            return
        value, size = self.open(payload) if opened is None else opened
        if type(value) is _Broken:
            self._tiny[tid] = value
        else:
            self.put(tid, value, size)

    def parts(self, tid: int) -> Payload:
        """A value as it is sent.

        Raises:
            KeyError: there is none of that name.
            SerializationError: it does not pickle.
        """
        value = self._tiny.get(tid, _ABSENT)
        if value is _ABSENT:
            stream, buffers = self.store.parts(tid)
            return Payload([stream, *buffers])
        if type(value) is Payload:
            return value
        return calls.pack_value(self.get(tid))

    def size_of(self, tid: int) -> int:
        """Bytes of a value, about; 0 of a tiny one.

        Raises:
            KeyError: there is none of that name.
        """
        return 0 if tid in self._tiny else self.store.size_of(tid)

    def forget(self, tids: Iterable[int]) -> None:
        """Have these no longer."""
        tiny, others = self._tiny, []
        for tid in tids:
            if tid in tiny:
                del tiny[tid]
            else:
                others.append(tid)
        if others:
            self.store.forget(others)

    def rename(self, names: Mapping[int, int]) -> None:
        """Values have other names from now on: old -> new."""
        tiny = self._tiny
        moving = [(new, tiny.pop(old)) for old, new in names.items() if old in tiny]
        tiny.update(moving)
        self.store.rename(names)

    def check(self) -> list[Order]:
        """Look at the memory; see :meth:`taskloom.node.store.Store.check`."""
        return self.store.check()

    def vitals(self) -> dict[str, float]:
        """What there is and what this process takes: name -> number."""
        if self._process is None:
            import psutil

            self._process = psutil.Process()
        with self._process.oneshot():
            times = self._process.cpu_times()
            rss = self._process.memory_info().rss
        counts = self.store.counts()
        return {
            "rss_bytes": rss,
            "cpu_seconds": times.user + times.system,
            "values": counts.values + len(self._tiny),
            "managed_bytes": counts.memory_bytes,
            "spilled_bytes": counts.disk_bytes,
            "spilled_values": counts.on_disk,
            "pid": os.getpid(),
        }

    def close(self) -> None:
        """Forget everything, and remove what is on disk."""
        self._tiny.clear()
        self.store.close()

    def __contains__(self, tid: object) -> bool:
        return tid in self._tiny or tid in self.store

    def __len__(self) -> int:
        return len(self._tiny) + len(self.store)
