"""The bag itself, and how bags are made from data and from other bags."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from taskloom._collections.protocol import Collection, quote
from taskloom._collections.tokens import tokenize
from taskloom._delayed import Delayed, delayed
from taskloom.bag.base import BagBase
from taskloom.bag.elements import Elements, check_partitions, in_step
from taskloom.bag.grouping import Grouping
from taskloom.bag.optimize import optimize
from taskloom.bag.reductions import Reductions
from taskloom.bag.steps import Step
from taskloom.bag.text import Writing
from taskloom.errors import MissingKeyError

__all__ = ["Bag", "concat", "from_delayed", "from_sequence", "range", "zip"]


class Bag(Elements, Reductions, Grouping, Writing):
    """Many items in partitions: an unordered collection with repetition, of any Python objects.

    Nothing is computed before ``compute()`` is called. Each partition is worked on as a whole by one task, by default in a
    pool of processes. Bags are made by :func:`from_sequence`, :func:`read_text`, :func:`from_delayed` and by
    operations on other bags.

    Args:
        dsk: a graph that has the keys ``(name, 0)``, ``(name, 1)``, ..., whose values are iterables.
        name: what they begin with.
        npartitions: how many there are.

    Raises:
        MissingKeyError: the graph has not all of the keys.

    >>> from taskloom import bag
    >>> numbers = bag.from_sequence([1, 2, 3, 4], npartitions=2)
    >>> numbers.map(lambda x: x * x).filter(lambda x: x % 2 == 0).sum().compute(scheduler="sync")
    20
    """

    __slots__ = ()

    def __init__(self, dsk: Mapping[Any, Any], name: str, npartitions: int) -> None:
        if not isinstance(name, str) or not name:
            raise TypeError(f"the name of a bag is a string, not {name!r}")
        if isinstance(npartitions, bool) or not isinstance(npartitions, int) or npartitions < 1:
            raise ValueError(f"npartitions is how many partitions there are, 1 or more; not {npartitions!r}")
        for i in builtins.range(npartitions):
            if (name, i) not in dsk:
                raise MissingKeyError(
                    f"the graph has no key {(name, i)!r}, which a bag of {npartitions} partitions needs"
                )
        self._name = name
        self._npartitions = npartitions
        self._fill(dsk, ())

    def __repr__(self) -> str:
        return f"taskloom.bag<{self._name.rpartition('-')[0] or self._name}, npartitions={self._npartitions}>"

    def __iter__(self) -> Iterator[Any]:
        """Computes the bag: an iterator over its items."""
        return iter(self.compute())

    def __len__(self) -> int:
        raise TypeError(f"{self!r} has no length before it is computed; count() counts its items")

    # A bag is no value that an `if` could look at, and has no length; `if bag:` means that there is one.
    def __bool__(self) -> bool:
        return True

    def to_delayed(self, optimize_graph: bool = True) -> list[Delayed]:
        """The partitions, each as a :class:`taskloom.delayed` object whose value is a list.

        Args:
            optimize_graph: whether the bag's optimizations are applied first.

        >>> from taskloom import bag
        >>> [part.compute() for part in bag.range(3, npartitions=2).to_delayed()]
        [[0], [1, 2]]
        """
        keys = self._keys()
        graph = self.__dask_graph__()
        if optimize_graph:
            graph = optimize(graph, keys)
        return [Delayed(key, graph) for key in keys]


def from_sequence(seq: Iterable[Any], partition_size: int | None = None, npartitions: int | None = None) -> Bag:
    """A bag of the items of a sequence or another iterable.

    The items travel with the tasks: for data in files, :func:`read_text` or :func:`from_delayed` has it read where it
    is worked on.

    Args:
        seq: the items.
        partition_size: how many items a partition has.
        npartitions: how many partitions there are, instead; their sizes differ by one at most. By default about 100.

    Raises:
        TypeError: it is text, whose characters are hardly meant, or a collection.
        ValueError: both, or none that makes sense.

    >>> from taskloom import bag
    >>> names = bag.from_sequence(["Ada", "Alan", "Grace"], npartitions=2)
    >>> names.npartitions, names.map(len).compute(scheduler="sync")
    (2, [3, 4, 5])
    """
    if isinstance(seq, (str, bytes, bytearray)):
        raise TypeError(
            f"from_sequence takes a list or another iterable of items; this is {type(seq).__name__}: {seq[:40]!r}. For its "
            "characters give list(...) of it, for one item a list with it, for a file of this name use read_text"
        )
    if isinstance(seq, Collection):
        raise TypeError(
            f"from_sequence takes items that are there already; this is a {type(seq).__name__}, which is not computed yet: "
            "from_delayed makes a bag of delayed partitions"
        )
    if not isinstance(seq, Iterable):
        raise TypeError(
            f"from_sequence takes a list or another iterable of items; this is {type(seq).__name__}: {seq!r:.40}. For a bag "
            "with it as its one item give a list with it"
        )
    if partition_size is not None and npartitions is not None:
        raise ValueError("give partition_size or npartitions to from_sequence, not both")
    for what, number in (("partition_size", partition_size), ("npartitions", npartitions)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise ValueError(f"{what} is a whole number of 1 or more, not {number!r}")
    items = list(seq)
    if npartitions is not None:
        cuts = [len(items) * i // npartitions for i in builtins.range(npartitions + 1)]
    else:
        size = partition_size or max(1, -(-len(items) // 100))
        cuts = [*builtins.range(0, len(items), size), len(items)]
        if len(cuts) == 1:
            cuts = [0, 0]
    name = f"from-sequence-{tokenize(items, cuts)}"
    layer = {(name, i): quote(items[cuts[i] : cuts[i + 1]]) for i in builtins.range(len(cuts) - 1)}
    return Bag._make(name, len(cuts) - 1, layer, ())


def from_delayed(values: Any) -> Bag:
    """A bag whose partitions are delayed values.

    Args:
        values: a Delayed, or a list of them; the value of each is an iterable, whose items become those of one partition.

    >>> import taskloom
    >>> from taskloom import bag
    >>> read = taskloom.delayed(lambda n: [n, n + 1])
    >>> bag.from_delayed([read(1), read(5)]).sum().compute(scheduler="sync")
    14
    """
    if isinstance(values, Collection) or not isinstance(values, Iterable):
        values = [values]
    parts = [
        value if isinstance(value, Delayed) else delayed(value) if hasattr(value, "key") else value for value in values
    ]
    for value in parts:
        if not isinstance(value, Delayed):
            raise TypeError(f"from_delayed takes Delayed objects, not {type(value).__name__}: {value!r:.60}")
    if not parts:
        raise ValueError("from_delayed takes at least one Delayed: a bag has one partition or more")
    name = f"from-delayed-{tokenize([part.key for part in parts])}"
    step = Step(_items_of, "from_delayed", streams=1, lazy=True)
    layer = {(name, i): (step, part.key) for i, part in enumerate(parts)}
    return Bag._make(name, len(parts), layer, parts)


def _items_of(value: Any) -> Iterator[Any]:
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, bytearray)):
        raise TypeError(
            f"a partition of a bag is an iterable of items; the delayed value given to from_delayed is "
            f"{type(value).__name__}: {value!r:.60}"
        )
    return iter(value)


def range(n: int, npartitions: int) -> Bag:
    """The numbers from 0 to n - 1.

    >>> from taskloom import bag
    >>> bag.range(5, npartitions=2).compute(scheduler="sync")
    [0, 1, 2, 3, 4]
    """
    for what, number, least in (("n", n, 0), ("npartitions", npartitions, 1)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{what} is a whole number of {least} or more, not {number!r}")
    name = f"range-{tokenize('range', n, npartitions)}"
    step = Step(builtins.range, "range", lazy=True)
    layer = {(name, i): (step, n * i // npartitions, n * (i + 1) // npartitions) for i in builtins.range(npartitions)}
    return Bag._make(name, npartitions, layer, ())


def concat(bags: Sequence[Bag]) -> Bag:
    """One bag of the partitions of several, one after the other.

    >>> from taskloom import bag
    >>> bag.concat([bag.range(2, npartitions=1), bag.range(3, npartitions=2)]).compute(scheduler="sync")
    [0, 1, 0, 1, 2]
    """
    bags = _bags(bags, "concat")
    name = f"concat-{tokenize('concat', *bags)}"
    keys = [key for bag in bags for key in bag._keys()]
    return bags[0]._make(name, len(keys), {(name, i): key for i, key in enumerate(keys)}, bags)


def zip(*bags: Bag) -> Bag:
    """Tuples of the first items of several bags, of the second ones, and so on.

    Raises:
        TypeError: one of them is no bag.
        ValueError: they have different numbers of partitions; when it is computed: of items in one of them.

    >>> from taskloom import bag
    >>> a, b = bag.range(2, npartitions=1), bag.from_sequence(["x", "y"], npartitions=1)
    >>> bag.zip(a, b).compute(scheduler="sync")
    [(0, 'x'), (1, 'y')]
    """
    all_bags = _bags(bags, "zip")
    check_partitions(all_bags, "zip")
    name = f"zip-{tokenize('zip', *all_bags)}"
    n = all_bags[0]._npartitions
    step = Step(_zipped, "zip", streams=len(all_bags), lazy=True)
    layer = {(name, i): (step, *[(bag._name, i) for bag in all_bags]) for i in builtins.range(n)}
    return all_bags[0]._make(name, n, layer, all_bags)


def _zipped(*parts: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    return in_step(parts, "zip")


def _bags(bags: Iterable[Any], where: str) -> list[Bag]:
    if isinstance(bags, BagBase):
        raise TypeError(f"{where} takes several bags; this is one")
    bags = list(bags)
    for bag in bags:
        if not isinstance(bag, Bag):
            raise TypeError(f"{where} takes bags, not {type(bag).__name__}; from_sequence(...) makes one")
    if not bags:
        raise ValueError(f"{where} takes at least one bag")
    return bags
