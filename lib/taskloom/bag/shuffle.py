"""groupby: every item moves to the partition of its key.

Which partition that is, is decided by a hash of the key that is the same in every process; Python's own hash of text is
not. Keys that are equal must have equal hashes, also where their types differ (``1 == 1.0 == True``), or the
items of one key would become two groups.

Two ways for the items to move:

- **disk**: each partition is divided, and its parts are written one after the other to one file; then each
  new partition reads its part of every file. N + M tasks for N and M partitions, one partition at a time in memory, and
  nothing but file names and offsets goes through the scheduler.
- **tasks**: parts are the values of tasks, in as many rounds as keep the number of parts small.
"""

from __future__ import annotations

import dataclasses
import datetime
import numbers
import operator
import os
import pickle
import shutil
import tempfile
import types
import weakref
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias
from zlib import crc32

import cloudpickle

from taskloom._collections.protocol import quote
from taskloom._collections.running import runs_on_cluster
from taskloom._collections.tokens import tokenize
from taskloom.bag.reductions import _hashable, as_key_function
from taskloom.bag.steps import Step

if TYPE_CHECKING:
    from taskloom.bag.core import Bag

__all__ = ["groupby", "place_of"]

# The items of one key from one partition: (hash, key, items).
Group: TypeAlias = tuple[int, Any, list[Any]]

_BRANCH = 32


def groupby(bag: Any, grouper: Any, method: str | None, npartitions: int | None, max_branch: int | None) -> Bag:
    """See :meth:`taskloom.bag.Bag.groupby`."""
    if method not in (None, "disk", "tasks"):
        raise ValueError(f"method is 'disk' or 'tasks', not {method!r}")
    for what, number, least in (("npartitions", npartitions, 1), ("max_branch", max_branch, 2)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < least):
            raise ValueError(f"{what} is a whole number of {least} or more, not {number!r}")
    key = as_key_function(grouper)
    n = bag.npartitions if npartitions is None else npartitions
    if method is None and runs_on_cluster():
        method = "tasks"  # its machines may have no files in common
    if method == "tasks":
        return _through_tasks(bag, grouper, key, n, max_branch or _BRANCH)
    return _through_files(bag, grouper, key, n)


# --- which partition


class _Hashes:
    """Hashes of keys that are the same in all processes.

    Attributes:
        own: a class whose keys say their hash themselves, met so far. Whether that is the same in every process cannot
            be told from here.
    """

    def __init__(self) -> None:
        self.own: type | None = None

    def of(self, key: Any) -> int:
        cls = type(key)
        if cls is str:
            return crc32(key.encode("utf-8", "surrogatepass"))
        if cls is int or cls is float or cls is bool:
            return hash(key) & _MASK
        return self.other(key)

    def other(self, key: Any) -> int:
        if key is None:
            return 0x5F3759DF
        if isinstance(key, str):
            return crc32(str.encode(key, "utf-8", "surrogatepass"))
        if isinstance(key, (bytes, bytearray, memoryview)):
            return crc32(key)
        cls = type(key)
        how: Any = cls.__hash__
        # nan is equal to nothing, and each has a hash of its own
        if isinstance(key, (numbers.Number, datetime.timedelta)):
            return hash(key) & _MASK if key == key else 0
        if cls.__module__ == "numpy" and hasattr(key, "item") and type(key.item()) is not cls:
            return self.of(key.item())
        if isinstance(key, tuple) and how is tuple.__hash__:
            made = 0x345678
            for part in key:
                made = (made * 1000003 ^ self.of(part)) & _MASK
            return made
        if isinstance(key, frozenset) and how is frozenset.__hash__:
            return sum([self.of(part) * 0x9E3779B1 + 1 & _MASK for part in key]) & _MASK
        if isinstance(key, datetime.datetime):
            if key.utcoffset() is not None:
                return self.of((key - _EPOCH) // _MICROSECOND)  # equal in every time zone
            key = key.replace(fold=0)
        if isinstance(key, (type, types.FunctionType)):
            return crc32(f"{key.__module__}.{key.__qualname__}".encode())
        if isinstance(key, Enum) and how is Enum.__hash__:
            return crc32(key.name.encode())
        if dataclasses.is_dataclass(cls) and _is_generated(how):
            fields = [
                field for field in dataclasses.fields(cls) if (field.compare if field.hash is None else field.hash)
            ]
            return self.of(tuple([getattr(key, field.name) for field in fields]))
        if isinstance(how, types.FunctionType) and cls.__module__.partition(".")[0] not in _STRUCTURAL:
            self.own = cls
            return hash(key) & _MASK
        return int(tokenize(key)[:15], 16) & _MASK


_MASK = (1 << 61) - 1
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
# Classes of these modules are equal where what they consist of is.
_STRUCTURAL = frozenset({"datetime", "pathlib", "uuid", "ipaddress", "collections"})


def _is_generated(function: Any) -> bool:
    """Whether the dataclass decorator made a method, and not the class's author."""
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename == "<string>"


def place_of(key: Any, npartitions: int) -> int:
    """The number of the partition where a key belongs: the same in every process.

    >>> place_of(1, 10) == place_of(1.0, 10), place_of("x", 1)
    (True, 0)
    """
    return _mixed(_Hashes().of(key)) % npartitions


def _mixed(number: int) -> int:
    """Numbers with something in common, such as a factor, spread out: the first step of splitmix64's last part."""
    return ((number ^ number >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF) >> 20


def _fingerprint() -> int:
    """Differs between processes whose hashes of text or None differ."""
    return hash(("taskloom", None))


# What comes from each partition beside its groups: a class whose own hash was relied on, and the fingerprint.
Relied: TypeAlias = tuple[str, int] | None


def _relied(hashes: _Hashes) -> Relied:
    return None if hashes.own is None else (f"{hashes.own.__module__}.{hashes.own.__qualname__}", _fingerprint())


def _check(relied: Iterable[Relied]) -> None:
    """Refuse groups that may have been torn apart."""
    found = [one for one in relied if one is not None]
    if len({fingerprint for _, fingerprint in found}) > 1:
        raise TypeError(
            f"groupby: keys of the class {found[0][0]} define their hash themselves, and it may differ from process to "
            "process, so equal keys might not come together. Let the grouper return text, numbers or tuples of "
            "them, or use scheduler='threads'"
        )


def _grouped(key: Callable[[Any], Any], items: Iterable[Any]) -> tuple[list[Group], Relied]:
    """The items of a partition by key, in the order in which the keys appear."""
    made: dict[Any, list[Any]] = {}
    try:
        for item in items:
            group = key(item)
            if group in made:
                made[group].append(item)
            else:
                made[group] = [item]
    except TypeError as error:
        _hashable(error, "the key of groupby")
        raise
    hashes = _Hashes()
    return [(_mixed(hashes.of(group)), group, its) for group, its in made.items()], _relied(hashes)


def _together(parts: Iterable[Iterable[tuple[int, Any, list[Any]]]]) -> list[tuple[Any, list[Any]]]:
    """Groups with equal keys made one, in the order in which the keys appear."""
    made: dict[Any, list[Any]] = {}
    for part in parts:
        for _, group, items in part:
            known = made.get(group)
            if known is None:
                made[group] = items.copy()  # the list may be another task's value
            else:
                known += items
    return list(made.items())


# --- through files


class Folder:
    """A directory for the files of shuffles, in the directory for temporary files.

    It belongs to the graph that it is in, and goes with it, at the latest when the process ends. Pickled it is just its path:
    a copy deletes nothing.
    """

    def __init__(self) -> None:
        self.path = os.path.join(tempfile.gettempdir(), f"taskloom-shuffle-{os.getpid()}-{os.urandom(6).hex()}")
        weakref.finalize(self, _remove, self.path, os.getpid())

    def __fspath__(self) -> str:
        return self.path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.fspath, (self.path,)

    def __dask_tokenize__(self) -> Any:
        return "shuffle folder"


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked child
        shutil.rmtree(path, ignore_errors=True)


# Where a partition's parts are: the file, the offset at which each begins and the last one ends, what was relied on.
Written: TypeAlias = tuple[str, list[int], Relied]


def _write(key: Callable[[Any], Any], n: int, items: Iterable[Any], folder: os.PathLike[str] | str) -> Written:
    """Divide a partition and write its parts to a file, whose name no other run has."""
    groups, relied = _grouped(key, items)
    parts: list[list[Group]] = [[] for _ in range(n)]
    for group in groups:
        parts[group[0] % n].append(group)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    path = os.path.join(folder, os.urandom(12).hex())
    offsets = [0]
    with open(path, "xb") as file:
        for part in parts:
            if part:
                file.write(_pickled(part))
            offsets.append(file.tell())
    return path, offsets, relied


def _pickled(part: list[Group]) -> bytes:
    try:
        return pickle.dumps(part, protocol=5)
    except Exception:  # classes of the user's program have no module in this process: by value
        data: bytes = cloudpickle.dumps(part, protocol=5)
        return data


def _read(number: int, n: int, written: Sequence[Written]) -> list[tuple[Any, list[Any]]]:
    """One new partition, from the files of all old ones."""
    _check([relied for _, _, relied in written])
    made = _together(_parts(number, written))
    # Whoever sees that all are done cleans up. Whatever this misses goes with the folder.
    done = f"{written[0][0]}.done"
    os.makedirs(done, exist_ok=True)
    open(os.path.join(done, str(number)), "wb").close()
    try:
        last = len(os.listdir(done)) == n
    except FileNotFoundError:  # another one saw it first
        last = False
    if last:
        for path, _, _ in written:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
        shutil.rmtree(done, ignore_errors=True)
    return made


def _parts(number: int, written: Sequence[Written]) -> Iterable[list[Group]]:
    for path, offsets, _ in written:
        begin, end = offsets[number], offsets[number + 1]
        if begin < end:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(file, end - begin, begin)
                while len(data) < end - begin:  # one call reads 2 GB at most
                    more = os.pread(file, end - begin - len(data), begin + len(data))
                    if not more:
                        raise EOFError(f"the file {path} of a groupby has been cut: is the disk full?")
                    data += more
            finally:
                os.close(file)
            yield pickle.loads(data)


def _through_files(bag: Any, grouper: Any, key: Callable[[Any], Any], n: int) -> Bag:
    token = tokenize("groupby", bag.name, grouper, n)
    name, part, written = (f"groupby{what}-{token}" for what in ("", "-write", "-written"))
    write = Step(partial(_write, key, n), "groupby-write", streams=1)
    folder = quote(Folder())
    layer: dict[Any, Any] = {(part, i): (write, (bag.name, i), folder) for i in range(bag.npartitions)}
    # one task between, or there would be N * M dependencies
    layer[written] = (list, [(part, i) for i in range(bag.npartitions)])
    read = Step(_read, "groupby")
    for j in range(n):
        layer[name, j] = (read, j, n, written)
    return bag._make(name, n, layer, (bag,))  # type: ignore[no-any-return]


# --- through tasks

# What moves: groups, and what was relied on for their hashes.
Moved: TypeAlias = tuple[list[Group], set[Relied]]


def _through_tasks(bag: Any, grouper: Any, key: Callable[[Any], Any], n: int, branch: int) -> Bag:
    """Rounds, as a radix sort has them: in each one, a place of the number where a group belongs is put right.

    Numbers are written in a base of at most ``branch``, from the last place to the first, so that the groups of a key meet
    in the order of the partitions that they come from.
    """
    token = tokenize("groupby-tasks", bag.name, grouper, n, branch)
    name, start, divide, piece, meet = (
        f"groupby{what}-{token}" for what in ("", "-start", "-divide", "-piece", "-meet")
    )
    width = max(bag.npartitions, n)
    rounds = 1
    while branch**rounds < width:
        rounds += 1
    base = max(2, next(base for base in range(1, branch + 1) if base**rounds >= width))
    first = Step(partial(_start, key), "groupby", streams=1)
    layer: dict[Any, Any] = {(start, i): (first, (bag.name, i)) for i in range(bag.npartitions)}
    here: dict[int, Any] = {i: (start, i) for i in range(bag.npartitions)}
    for place in range(rounds):
        unit = base**place
        split = partial(_divide, n, unit, base)
        arriving: dict[int, list[Any]] = {}
        for slot in sorted(here):
            layer[divide, place, slot] = (split, here[slot])
            for digit in range(base):
                target = slot + (digit - slot // unit % base) * unit
                layer[piece, place, slot, digit] = (operator.getitem, (divide, place, slot), digit)
                arriving.setdefault(target, []).append((piece, place, slot, digit))
        here = {}
        for slot, pieces in arriving.items():
            layer[meet, place, slot] = (_meet, pieces)
            here[slot] = (meet, place, slot)
    for j in range(n):
        # nothing arrives only where the partitions are fewer than the places of the last round
        layer[name, j] = (_finish, here[j]) if j in here else []
    return bag._make(name, n, layer, (bag,))  # type: ignore[no-any-return]


def _start(key: Callable[[Any], Any], items: Iterable[Any]) -> Moved:
    groups, relied = _grouped(key, items)
    return groups, {relied}


def _divide(n: int, unit: int, base: int, moved: Moved) -> list[Moved]:
    groups, relied = moved
    parts: list[list[Group]] = [[] for _ in range(base)]
    for group in groups:
        parts[group[0] % n // unit % base].append(group)
    return [(part, relied) for part in parts]


def _meet(pieces: Sequence[Moved]) -> Moved:
    return [group for groups, _ in pieces for group in groups], {one for _, relied in pieces for one in relied}


def _finish(moved: Moved) -> list[tuple[Any, list[Any]]]:
    groups, relied = moved
    _check(relied)
    return _together([groups])
