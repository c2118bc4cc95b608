"""Other partitions of the same items."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from taskloom._collections.tokens import tokenize
from taskloom.bag.base import BagBase
from taskloom.bag.steps import Step, concatenated
from taskloom.bag.text import parse_bytes

if TYPE_CHECKING:
    from taskloom.bag.core import Bag

__all__ = ["memory_of", "repartition"]


def repartition(bag: Any, npartitions: int | None, partition_size: int | str | None) -> Bag:
    """See :meth:`taskloom.bag.Bag.repartition`."""
    if (npartitions is None) == (partition_size is None):
        raise ValueError("repartition takes npartitions or partition_size, one of them")
    if npartitions is not None:
        if isinstance(npartitions, bool) or not isinstance(npartitions, int) or npartitions < 1:
            raise ValueError(f"npartitions is a whole number of 1 or more, not {npartitions!r}")
        return _to_number(bag, npartitions)
    assert partition_size is not None
    return _to_size(bag, parse_bytes(partition_size, "partition_size"))


def _to_number(bag: Any, npartitions: int) -> Bag:
    """As many partitions: neighbours joined, or each divided into about as many."""
    n = bag.npartitions
    if npartitions <= n:
        cuts = [n * i // npartitions for i in range(npartitions + 1)]
        return _join(bag, cuts)
    pieces = [npartitions * (i + 1) // n - npartitions * i // n for i in range(n)]
    return _divide(bag, pieces)


def _join(bag: Any, cuts: Sequence[int]) -> Bag:
    """One partition of those from each cut to the next."""
    if len(cuts) - 1 == bag.npartitions:
        return bag  # type: ignore[no-any-return]
    name = f"repartition-{tokenize('join', bag.name, list(cuts))}"
    step = Step(concatenated, "repartition")
    keys = bag._keys()
    layer: dict[Any, Any] = {}
    for i in range(len(cuts) - 1):
        mine = keys[cuts[i] : cuts[i + 1]]
        layer[name, i] = mine[0] if len(mine) == 1 else (step, mine)
    return bag._make(name, len(cuts) - 1, layer, (bag,))  # type: ignore[no-any-return]


def _divide(bag: Any, pieces: Sequence[int]) -> Bag:
    """Each partition divided into so many, whose numbers of items differ by one at most."""
    if all(count == 1 for count in pieces):
        return bag  # type: ignore[no-any-return]
    name = f"repartition-{tokenize('divide', bag.name, list(pieces))}"
    layer: dict[Any, Any] = {}
    at = 0
    for key, count in zip(bag._keys(), pieces, strict=True):
        if count == 1:
            layer[name, at] = key
        else:
            layer.update({(name, at + i): (_piece, key, i, count) for i in range(count)})
        at += count
    return bag._make(name, at, layer, (bag,))  # type: ignore[no-any-return]


def _piece(part: Any, i: int, count: int) -> list[Any]:
    items = part if isinstance(part, list) else concatenated([part])
    return items[len(items) * i // count : len(items) * (i + 1) // count]


def _to_size(bag: Any, size: int) -> Bag:
    """Partitions of about ``size`` bytes at most: large ones are divided, then small neighbours joined."""
    sizes: list[int] = BagBase._each(bag, Step(_sizes, "memory", streams=1), "memory", ()).compute()
    pieces = [max(1, -(-total // size)) for total in sizes]
    divided = _divide(bag, pieces)
    small = [total / count for total, count in zip(sizes, pieces, strict=True) for _ in range(count)]
    cuts = [0]
    filled = 0.0
    for i, part in enumerate(small):
        if filled and filled + part > size:
            cuts.append(i)
            filled = 0.0
        filled += part
    cuts.append(len(small))
    return _join(divided, cuts)


def _sizes(items: Iterable[Any]) -> list[int]:
    return [sum(map(memory_of, items))]


def memory_of(value: Any, _depth: int = 0) -> int:
    """About how many bytes a value takes in memory, with what is in the containers that it consists of.

    What a large container holds is estimated from a part of it.

    >>> memory_of("x" * 1000) > 1000
    True
    """
    nbytes = getattr(value, "nbytes", None)
    size = sys.getsizeof(value, 64)
    if isinstance(nbytes, int):
        return max(size, nbytes)
    if _depth > 20:
        return size
    inner: Sequence[Any]
    if isinstance(value, dict):
        inner = [part for pair in value.items() for part in pair]
    elif isinstance(value, (list, tuple, set, frozenset)):
        inner = list(value)
    else:
        held = getattr(value, "__dict__", None)
        inner = list(held.values()) if isinstance(held, dict) else []
    if len(inner) > 100:
        sample = inner[:: len(inner) // 100]
        return size + sum([memory_of(part, _depth + 1) for part in sample]) * len(inner) // len(sample)
    return size + sum([memory_of(part, _depth + 1) for part in inner])
