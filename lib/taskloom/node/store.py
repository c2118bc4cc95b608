"""The values of a worker: in memory, and on disk where that gets full.

How a worker drives it, beside :mod:`taskloom.node.executor`::

    store = Store(limit, folder)
    size = store.put(tid, value)                # any thread: `finish` of the executor
    with store.pin(deps) as inputs:             # from Start to the end of the task, or while a transfer lasts
        value = inputs.get(tid)                 # reads from disk where it has to: `prepare` of the executor
    store.forget(tids); store.rename({old: new})  # the machine's Forget and Rename
    store.expect(ticket, nbytes)                # before a task that makes so much: waits while the disk is behind
    store.made(ticket, nbytes)                  # it has; until `arrived(ticket)`, after `put`, it counts beside the values
    for order in store.check():                 # every 200 ms or so: Pause, Resume, Terminate; it spills by itself
        ...

What holds:

- One thread, made when it is needed, writes and removes files. The event loop and the tasks do not wait for the disk, but
  for a value that is only there.
- What is pinned stays in memory, and can be got by who pinned it even when it has been forgotten or renamed meanwhile.
- A value that was read back keeps its file, so that it can be dropped again without writing. Values are not to be changed.
- What does not pickle, and what the disk has no room for, stays in memory; both are counted, and said once.
- No lock is held while a value is pickled, written, read, or thrown away: all of these may run the user's code.
- What the process takes is known at any time, about: what it took when it was measured last, what has come and gone since,
  and what is about to come. Who makes or reads large values waits (``expect``) while that is too much; for the disk, and
  for tasks that are under way, but for nothing else, and never longer than ``_PATIENCE``. So nobody waits for ever.
- What others have a reference to, a task that runs above all, does not go: to write it would free nothing.

Which value goes is nearly the one whose last use is longest ago (second chance: a use sets a mark, and who has one goes to
the end of the queue once instead of to disk); those above the target by themselves first, those of a few kilobytes last, as a
file costs as much for them as for larger ones. zict's LRU and Buffer would do the first exactly, but write in the calling
thread, know no pins, and take ten times as long to get a value. Its files are used, see :mod:`taskloom.node.spill`.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import tempfile
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from sys import getrefcount
from time import monotonic
from typing import Any, NamedTuple

from taskloom.node.memory import MemoryPolicy, Order, Pause, Spill
from taskloom.node.sizes import sizeof
from taskloom.node.spill import MAP_FROM, SpillError, SpillFolder
from taskloom.node.trim import trim_memory
from taskloom.serialize.objects import dumps, loads

__all__ = ["Counts", "Pins", "Store"]

_SMALL = 16 * 1024  # bytes; values below go to disk last
_RETRY = 5.0  # seconds until a disk that had no room is tried again
_TRIM_FROM = 8 << 20  # bytes that were freed, after which the allocator is asked to give back what it keeps
_LARGE = 64 * 1024  # bytes; who makes less need only wait when memory is full already
_FRESH = 0.003  # seconds for which who waits believes a measurement of the process
_PATIENCE = 4.0  # seconds that anybody waits at most: less than an executor gives a task that was cancelled

_log = logging.getLogger("taskloom.node.store")

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096

_ABSENT: Any = type("_Absent", (), {"__slots__": ()})()


class Counts(NamedTuple):
    """What a store has.

    Attributes:
        values: how many values there are, and ``on_disk``, how many of these only on disk.
        memory_bytes: of the values in memory, by estimate.
        disk_bytes: of all files.
        unpicklable, unpicklable_bytes: values that cannot be written as they do not pickle.
        written_bytes, read_bytes: to and from disk so far.
        failed_writes: how often the disk had no room, or refused for another reason.
    """

    values: int
    on_disk: int
    memory_bytes: int
    disk_bytes: int
    unpicklable: int
    unpicklable_bytes: int
    written_bytes: int
    read_bytes: int
    failed_writes: int


class _Entry:
    """A value.

    Attributes:
        value: _ABSENT when it is only on disk.
        file: its name on disk; "" where there is none.
        used: since it was last considered.
        leaving: it is being written.
        flat: bytes of its buffers in its file; ``mapped``: that many of the value in memory are pages of the file.
        gone: nobody can ask for it any more; who has it pinned still has it.
    """

    __slots__ = ("file", "flat", "gone", "leaving", "mapped", "pins", "size", "tid", "used", "value")

    def __init__(self, tid: int, value: Any, size: int) -> None:
        self.tid = tid
        self.value = value
        self.size = size
        self.pins = 0
        self.used = False
        self.leaving = False
        self.gone = False
        self.file = ""
        self.flat = self.mapped = 0


class Pins:
    """Values that stay in memory, or are brought there when they are asked for, until this is released."""

    __slots__ = ("_entries", "_store")

    def __init__(self, store: Store, entries: dict[int, _Entry]) -> None:
        self._store = store
        self._entries = entries

    def get(self, tid: int) -> Any:
        """A value, by the name that it had when it was pinned.

        Raises:
            KeyError: it was not pinned here.
            SpillError: it was on disk and cannot be read back.
        """
        return self._store._value(self._entries[tid])

    def release(self) -> None:
        """They may go to disk again; those that were forgotten meanwhile go altogether. May be called twice."""
        entries, self._entries = self._entries, {}
        if entries:
            self._store._release(entries.values())

    def __enter__(self) -> Pins:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class Store:
    """tid -> value. All methods may be called by any thread.

    Args:
        limit: bytes that this process may have; None: all values stay in memory.
        folder: the directory in which to make a folder for values on disk; by default that of temporary files.
        policy: what decides; by default a :class:`MemoryPolicy` of the limit.
        rss: what measures the bytes of the process; by default the system is asked.
        alarm: called, by any thread, when there seems to be more than from which on a worker pauses: best to :meth:`check` now.

    Attributes:
        full: whether there is so much that who makes values has to wait.
        spilled: whether anything was written to disk so far.

    >>> store = Store()
    >>> store.put(1, [1, 2, 3]) > 0
    True
    >>> store.get(1), 1 in store, 2 in store
    ([1, 2, 3], True, False)
    >>> store.close()
    """

    def __init__(
        self,
        limit: int | None = None,
        folder: str | None = None,
        *,
        policy: MemoryPolicy | None = None,
        rss: Callable[[], int] | None = None,
        alarm: Callable[[], object] | None = None,
    ) -> None:
        self.policy = MemoryPolicy(limit) if policy is None else policy
        self.limit = self.policy.limit
        mark = self.policy.mark
        self._mark: float = float("inf") if mark is None else mark
        self._spills = self.limit is not None
        self._folder = folder
        self._rss = self._process_rss if rss is None else rss
        self._process: Any = None
        self.alarm = alarm
        self.full = self.spilled = False
        self._alarmed = False
        self._pressure, self._gate, self._pause = self.policy.marks
        self._lock = threading.Lock()
        self._entries: dict[int, _Entry] = {}
        # larger than the target by themselves; others; small ones
        self._queues: tuple[OrderedDict[_Entry, None], ...] = (OrderedDict(), OrderedDict(), OrderedDict())
        self._managed = 0
        self._mapped = 0  # of these, pages of files
        self._leaving = 0
        self._rest = 0  # bytes of the process that are not of values, when it was measured
        self._measured = 0.0  # when
        self.coming: dict[Hashable, tuple[int, bool]] = {}  # of tasks under way: bytes, and whether they are made
        self._expected = self._made = 0  # bytes of these that are not made yet, and that are
        self._requested = self._waiting = 0  # the most that somebody waits for, and how many wait
        self._turn = 0  # who waited before it was changed goes on
        self._hurry = False
        self._freed = 0  # bytes since the allocator was asked to give back what it keeps
        self._disk: SpillFolder | None = None
        self._disk_bytes = self._written = self._read = self._failed = 0
        self._file_sizes: dict[_Entry, int] = {}
        self._reading: dict[_Entry, threading.Lock] = {}
        self._stuck: set[_Entry] = set()  # what does not pickle
        self._retry = 0.0
        self._said: set[str] = set()

        self._jobs: deque[_Entry | str] = deque()  # entries to write, names of files to remove
        self._bell = threading.Lock()
        self._bell.acquire()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._collect = False
        self._trim_soon = False
        self._quiet = threading.Condition(self._lock)  # a round is over
        self._room = threading.Condition(self._lock)  # a value has been written
        self._rounds = self._rounds_over = 0  # of the thread

    # --- values

    def put(self, tid: int, value: Any, size: int | None = None) -> int:
        """Have a value; one of that name that was there is replaced.

        Args:
            size: its bytes, if they are known; else they are estimated.

        Returns:
            Its bytes.
        """
        if size is None:
            size = sizeof(value)
        entry = _Entry(tid, value, size)
        dropped = None
        with self._lock:
            old = self._entries.get(tid)
            if old is not None:
                dropped = self._forget_one(old)
            self._entries[tid] = entry
            self._managed += size
            if self._spills:
                self._queue_of(entry)[entry] = None
                if not self._measured:
                    self._measure_again()
                # `_reckon` and `_needed`, written out
                managed, leaving = self._managed, self._leaving
                occupied = self._rest + managed - self._mapped + self._made
                self.full = occupied > self._gate
                if occupied > self._pause:
                    self._reckon()
                calls = (
                    managed - leaving > self._mark
                    or occupied + self._expected + self._requested - leaving > self._pressure
                )
            else:
                calls = False
        del dropped  # its destructor runs here, not under the lock
        if calls:
            self._call()
        return size

    # --- room

    def expect(self, ticket: Hashable, nbytes: int) -> None:
        """A task is about to begin that makes so much: wait until there is room for it, then count it as coming.

        What waits here holds up nobody but the thread that calls it. It goes on when there is room, when nothing can make
        room but that it goes on itself, and after a few seconds in any case.

        Args:
            ticket: of the task; say :meth:`arrived` of it in the end, whatever becomes of it.
            nbytes: about; as much as the last of its kind.
        """
        if not self._spills or (nbytes < _LARGE and not self.full):
            return
        self._wait(nbytes)
        with self._lock:
            self._count_coming(ticket, nbytes, False)

    def absent(self, tids: Iterable[int]) -> int:
        """Bytes of memory that it takes to read those of these that are only on disk, about; for :meth:`expect`."""
        entries = self._entries
        found = 0
        for tid in tids:
            entry = entries.get(tid)
            if entry is not None and entry.value is _ABSENT:
                objects = max(0, entry.size - entry.flat)
                found += objects + objects // 2  # they take more for a while, as those do that tasks make
        return found

    def read(self, ticket: Hashable, nbytes: int) -> None:
        """The inputs of a task are there, and count as values; so much of what was expected is still to come."""
        if ticket in self.coming:
            with self._lock:
                self._count_coming(ticket, nbytes, False)

    def made(self, ticket: Hashable, nbytes: int) -> None:
        """A task has made so much, which is not put yet."""
        if self._spills and (nbytes >= _LARGE or ticket in self.coming):
            with self._lock:
                self._count_coming(ticket, nbytes, True)
            if self._needed() > 0:
                self._call()

    def arrived(self, ticket: Hashable) -> None:
        """What a task has made was put, or it makes nothing; a ticket that is not known does not matter."""
        if ticket in self.coming:
            with self._lock:
                self._count_coming(ticket, 0, True)

    def _count_coming(self, ticket: Hashable, nbytes: int, made: bool) -> None:
        before, was_made = self.coming.pop(ticket, (0, False))
        if was_made:
            self._made -= before
        else:
            self._expected -= before
        if nbytes:
            self.coming[ticket] = nbytes, made
            if made:
                self._made += nbytes
            else:
                self._expected += nbytes
        self._reckon()
        self._room.notify_all()

    def let_go(self, for_good: bool = False) -> None:
        """Who waits for room goes on now: a task was cancelled, and is not to wait; or nobody is to wait any more."""
        with self._lock:
            self._turn += 1
            self._hurry = self._hurry or for_good
            self._room.notify_all()

    def is_behind(self) -> bool:
        """Whether there is too much, and it is about to become less; for who can put off what brings more."""
        if not self.full:
            return False
        with self._lock:
            self._measure_again()
            behind = self.full and (self._leaving > 0 or bool(self._jobs) or self._rounds_over < self._rounds)
        self._call()
        return behind

    def _wait(self, nbytes: int) -> None:
        """Wait for room; where nothing can be written, for tasks under way."""
        deadline = 0.0
        with self._lock:
            turn = self._turn
            self._waiting += 1
            try:
                wanted = -1
                while not self._closed and not self._hurry and turn == self._turn:
                    self._measure_again()
                    if self._occupied() + self._expected + nbytes <= self._gate and (
                        self._gate < float("inf") or self._managed <= self._mark
                    ):
                        return
                    if wanted < 0:
                        wanted = self._rounds + 1
                        deadline = monotonic() + _PATIENCE
                    elif self._rounds_over >= wanted and not self._leaving:
                        # a round that saw all this has found nothing to write
                        if not self.coming:
                            return
                        wanted = self._rounds + 1
                    if monotonic() >= deadline:
                        return
                    self._requested = max(self._requested, nbytes)
                    self._call()
                    self._room.wait(0.01)
            finally:
                self._waiting -= 1
                if not self._waiting:
                    self._requested = 0

    def _occupied(self) -> int:
        """Bytes that the process takes by now, about."""
        return self._rest + self._managed - self._mapped + self._made

    def _needed(self) -> float:
        """Bytes that have to go so that those go on who wait, and others need not."""
        return self._occupied() + self._expected + self._requested - self._leaving - self._pressure

    def _reckon(self) -> None:
        """What is there has changed (the lock is held)."""
        occupied = self._rest + self._managed - self._mapped + self._made
        self.full = occupied > self._gate
        if occupied > self._pause and not self._alarmed and self.alarm is not None:
            self._alarmed = True
            self.alarm()

    def _note(self, rss: int) -> None:
        """So much does the process take (the lock is held)."""
        self._measured = monotonic()
        self._rest = rss - (self._managed - self._mapped + self._made)
        self._reckon()
        if rss > self._pressure and self._freed >= _TRIM_FROM:
            self._trim_soon = True

    def _measure_again(self) -> None:
        if self._gate < float("inf") and monotonic() - self._measured > _FRESH:
            self._note(self._rss())

    @property
    def pressing(self) -> bool:
        """Whether there is so much that it is worth a look at the process every few milliseconds."""
        return self._spills and self._occupied() + self._expected > 0.8 * self._pressure

    def get(self, tid: int) -> Any:
        """A value, from disk if need be.

        Raises:
            KeyError: there is none of that name.
            SpillError: it was on disk and cannot be read back.
        """
        entry = self._entries[tid]
        value = entry.value
        if value is not _ABSENT:
            entry.used = True
            return value
        return self._value(entry)

    def parts(self, tid: int) -> tuple[Any, list[Any]]:
        """A value's pickle, to be sent: its stream and its buffers, not copied. From its file, unopened, where it is only there.

        Raises:
            KeyError: there is none of that name.
            SpillError: it was on disk and cannot be read back.
            Exception: it does not pickle.
        """
        entry = self._entries[tid]
        value = entry.value
        if value is _ABSENT:
            with self._lock:
                disk, file = self._disk, entry.file
            if file and disk is not None:
                return self._read_file(entry, disk, file)
            value = self._value(entry)
        entry.used = True
        return dumps(value)

    def pin(self, tids: Iterable[int]) -> Pins:
        """Keep these in memory, once they are there, until the pins are released.

        Raises:
            KeyError: one is not there; then none is pinned.
        """
        with self._lock:
            entries = {tid: self._entries[tid] for tid in tids}
            for entry in entries.values():
                entry.pins += 1
        return Pins(self, entries)

    def forget(self, tids: Iterable[int]) -> None:
        """Have these no longer; those that are not there do not matter."""
        dropped = []
        with self._lock:
            for tid in tids:
                entry = self._entries.pop(tid, None)
                if entry is not None:
                    dropped.append(self._forget_one(entry))
        del dropped  # destructors run here, not under the lock

    def rename(self, names: Mapping[int, int]) -> None:
        """Values have other names from now on: old -> new. Those that are not there do not matter.

        Where a value of the new name is there already, it stays, and the other one goes: it is the same.
        """
        dropped = []
        with self._lock:
            moving = [(new, self._entries.pop(old, None)) for old, new in names.items()]
            for new, entry in moving:
                if entry is None:
                    continue
                if new in self._entries:
                    dropped.append(self._forget_one(entry))
                else:
                    entry.tid = new
                    self._entries[new] = entry
        del dropped

    def size_of(self, tid: int) -> int:
        """Bytes of a value.

        Raises:
            KeyError: there is none of that name.
        """
        return self._entries[tid].size

    def __contains__(self, tid: object) -> bool:
        return tid in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._entries))

    def counts(self) -> Counts:
        """What there is, for people and metrics."""
        with self._lock:
            return Counts(
                len(self._entries),
                sum([entry.value is _ABSENT for entry in self._entries.values()]),
                self._managed,
                self._disk_bytes,
                len(self._stuck),
                sum([entry.size for entry in self._stuck]),
                self._written,
                self._read,
                self._failed,
            )

    # --- memory

    def check(self) -> list[Order]:
        """Measure the process and do what the policy says.

        Returns:
            The orders that are for others: Pause, Resume, Terminate.
        """
        if self.limit is None:
            return []
        rss = self._rss()
        if rss > self._pause and self._freed:  # what the allocator keeps is nobody's
            self._freed = 0
            trim_memory()
            rss = self._rss()
        with self._lock:
            self._alarmed = True  # it is being dealt with
            self._note(rss)
        orders = self._decide(rss)
        self._alarmed = self.policy.paused
        if orders and not self._closed:
            if any(type(order) is not Spill for order in orders):
                _log.info("memory: %s of %s bytes, values %s; %s", rss, self.limit, self._managed, orders)
            self._collect = self._collect or any(type(order) is Pause for order in orders)
            self._call()
        return [order for order in orders if type(order) is not Spill]

    def _decide(self, rss: int | None) -> list[Order]:
        """Ask the policy; what it wants written is put into the queue of jobs."""
        with self._lock:
            blocked = monotonic() < self._retry or self._closed
            taken: dict[int, _Entry] = {}

            def spillable() -> Iterator[tuple[int, int]]:
                if blocked:
                    return
                for entry in self._candidates():
                    taken[entry.tid] = entry
                    yield entry.tid, entry.size

            needed = max(0, int(self._needed())) if self._pressure < float("inf") else 0
            orders = self.policy.decide(self._managed, rss, spillable(), self._leaving, needed)
            chosen: set[int] = set()
            for order in orders:
                if type(order) is Spill:
                    chosen.update(order.tids)
            for tid, entry in taken.items():
                if tid in chosen:
                    entry.leaving = True
                    self._leaving += entry.size
                    self._queue_of(entry).pop(entry, None)
                    self._jobs.append(entry)
        return orders

    def _candidates(self) -> Iterator[_Entry]:
        """What may go to disk, in the order in which it should (the lock is held)."""
        for queue in self._queues:
            given: set[_Entry] = set()
            for _ in range(2 * len(queue)):
                if not queue:
                    break
                entry = next(iter(queue))
                queue.move_to_end(entry)
                if entry.used:
                    entry.used = False
                elif getrefcount(entry.value) > 2:  # ours, and that of the call: somebody else has it
                    pass
                elif not entry.pins and entry not in given:
                    given.add(entry)
                    yield entry

    def _queue_of(self, entry: _Entry) -> OrderedDict[_Entry, None]:
        size = entry.size
        return self._queues[2 if size < _SMALL else 1 if size <= self._mark else 0]

    def _forget_one(self, entry: _Entry) -> Any:
        """An entry is out of the table: what is to be thrown away when the lock is not held any more."""
        entry.gone = True
        if entry.pins or entry.leaving:
            return None  # who pinned or writes it does the rest
        return self._throw_away(entry)

    def _throw_away(self, entry: _Entry) -> Any:
        value = entry.value
        if value is not _ABSENT:
            entry.value = _ABSENT
            self._managed -= entry.size
            self._mapped -= entry.mapped
            entry.mapped = 0
            self._freed += entry.size
        if self._spills:
            if self.full:
                self._reckon()
            self._queue_of(entry).pop(entry, None)
            self._stuck.discard(entry)
            if entry.file:
                self._jobs.append(entry.file)
                self._disk_bytes -= self._file_sizes.pop(entry)
                self._reading.pop(entry, None)
                entry.file = ""
                self._call()
        return value

    def _release(self, entries: Iterable[_Entry]) -> None:
        dropped = []
        with self._lock:
            for entry in entries:
                entry.pins -= 1
                entry.used = True
                if entry.gone and not entry.pins and not entry.leaving:
                    dropped.append(self._throw_away(entry))
        del dropped
        if self._managed - self._leaving > self._mark:
            self._call()

    def _value(self, entry: _Entry) -> Any:
        value = entry.value
        if value is not _ABSENT:
            entry.used = True
            return value
        with self._lock:
            reading = self._reading.setdefault(entry, threading.Lock())
        with reading:  # one reads, the others wait for it
            with self._lock:
                value, disk, file = entry.value, self._disk, entry.file
            if value is not _ABSENT:
                return value
            if disk is None or not file:  # forgotten, between the look into the table and now
                raise KeyError(entry.tid)
            value = loads(*self._read_file(entry, disk, file))
            with self._lock:
                self._reading.pop(entry, None)
                if not entry.file:
                    return value  # forgotten meanwhile
                entry.value = value
                entry.used = True
                self._managed += entry.size
                if self._file_sizes[entry] >= MAP_FROM:
                    entry.mapped = entry.flat
                    self._mapped += entry.flat
                self._reckon()
                self._read += self._file_sizes[entry]
                self._queue_of(entry)[entry] = None
        if self._managed - self._leaving > self._mark:
            self._call()
        return value

    @staticmethod
    def _read_file(entry: _Entry, disk: SpillFolder, file: str) -> tuple[Any, list[Any]]:
        try:
            return disk.read(file)
        except SpillError:
            if entry.gone:  # and so is its file
                raise KeyError(entry.tid) from None
            raise

    def _process_rss(self) -> int:
        rss, shared = self._sizes()
        if self._disk is not None:
            # files that are mapped count as resident, and yet the kernel can have them back at any time
            rss -= min(self._disk.mapped(), shared)
        return rss

    def _sizes(self) -> tuple[int, int]:
        """Bytes of the process that are resident, and of these, pages of files."""
        if sys.platform == "linux":
            try:
                fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    words = os.read(fd, 200).split()
                finally:
                    os.close(fd)
                return int(words[1]) * _PAGE, int(words[2]) * _PAGE
            except (OSError, IndexError, ValueError):  # no /proc, or no descriptor left
                pass
        if self._process is None:
            import psutil

            self._process = psutil.Process()
        about = self._process.memory_info()
        return int(about.rss), int(getattr(about, "shared", 0))

    # --- the thread

    def _call(self) -> None:
        """Have the thread look for work."""
        if self._thread is None and not self._closed:
            thread = threading.Thread(target=self._work, name="taskloom-spill", daemon=True)
            self._thread = thread
            thread.start()
        try:
            self._bell.release()
        except RuntimeError:  # it has been called already
            pass

    def settle(self, timeout: float = 10.0) -> bool:
        """Wait until what is to be written and removed by now is done; whether it is."""
        deadline = monotonic() + timeout
        with self._lock:
            # a round that begins from now on sees all that there is now
            wanted = self._rounds + 1
            self._call()
            while self._rounds_over < wanted and not self._closed:
                if not self._quiet.wait(max(0.0, deadline - monotonic())):
                    return False
        return True

    def _work(self) -> None:
        while True:
            self._bell.acquire()
            with self._lock:
                self._rounds += 1
            while not self._closed:
                if not self._jobs:
                    self._decide(None)
                try:
                    job = self._jobs.popleft()
                except IndexError:
                    break
                if isinstance(job, str):
                    if self._disk is not None:
                        self._disk.remove(job)
                else:
                    self._write(job)
                    if self._freed >= _TRIM_FROM:
                        self._trim_soon = True
                del job
                self._tidy()
            self._tidy()
            with self._lock:
                self._rounds_over = self._rounds
                self._quiet.notify_all()
                self._room.notify_all()
            if self._closed:
                return

    def _tidy(self) -> None:
        """Have the system get back what is free, where that is worth while."""
        if self._collect:  # memory is scarce: what only the garbage collector finds counts too
            self._collect = False
            gc.collect()
            self._trim_soon = True
        if self._trim_soon:
            self._trim_soon = False
            self._freed = 0
            trim_memory()
            with self._lock:
                self._measured = 0.0
                self._room.notify_all()

    def _write(self, entry: _Entry) -> None:
        """Write an entry and drop its value."""
        if not entry.file and not entry.gone:
            problem: BaseException | None = None
            name, size, flat = "", 0, 0
            try:
                stream, buffers = dumps(entry.value)
            except MemoryError as error:
                self._cannot("there is too little memory to pickle values for the disk", error)
            except BaseException as error:
                problem = error
            else:
                try:
                    name, size = self._folder_of_ours().write(stream, buffers)
                    flat = sum([memoryview(buffer).nbytes for buffer in buffers])
                except Exception as error:
                    self._cannot(f"values cannot be written to {self._where()}, and stay in memory", error)
                del stream, buffers
            with self._lock:
                if name:
                    entry.file = name
                    entry.flat = flat if size >= MAP_FROM else 0
                    self._file_sizes[entry] = size
                    self._disk_bytes += size
                    self._written += size
                elif problem is not None:
                    self._stuck.add(entry)
            if problem is not None:
                self._say(
                    "unpicklable",
                    f"a {type(entry.value).__qualname__} does not pickle, so it stays in memory, whatever the limit: "
                    f"{type(problem).__name__}: {problem}",
                )
        dropped = None
        with self._lock:
            entry.leaving = False
            self._leaving -= entry.size
            if entry.gone and not entry.pins:
                dropped = self._throw_away(entry)
            elif entry in self._stuck:
                pass  # in no queue any more
            elif entry.file and not entry.pins and getrefcount(entry.value) <= 2:
                dropped, entry.value = entry.value, _ABSENT
                self._managed -= entry.size
                self._mapped -= entry.mapped
                entry.mapped = 0
                self._freed += entry.size
                self._reckon()
            else:  # it could not be written, or somebody needs it now; then it goes some other time, with its file
                self._queue_of(entry)[entry] = None
        del dropped
        with self._lock:
            self._room.notify_all()

    def _folder_of_ours(self) -> SpillFolder:
        if self._disk is None:
            disk = SpillFolder(self._where())
            with self._lock:
                self._disk = disk
            self.spilled = True
        return self._disk

    def _where(self) -> str:
        return self._folder or tempfile.gettempdir()

    def _cannot(self, words: str, error: BaseException) -> None:
        with self._lock:
            self._failed += 1
            self._retry = monotonic() + _RETRY
        self._say("disk", f"{words}: {error}. The worker goes on until its memory is full.")

    def _say(self, what: str, words: str) -> None:
        if what not in self._said:
            self._said.add(what)
            _log.warning("%s", words)

    def close(self) -> None:
        """Forget everything and remove the folder on disk."""
        with self._lock:
            self._closed = True
            self._room.notify_all()
            entries, self._entries = self._entries, {}
            for queue in self._queues:
                queue.clear()
            self._jobs.clear()
            self._managed = self._mapped = self._leaving = self._disk_bytes = 0
            self._stuck.clear()
        del entries
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._call()
            thread.join(10)
        if self._disk is not None:
            self._disk.close()
