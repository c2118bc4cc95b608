"""Operations that bring items together: by a key, or with those of another bag."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from taskloom._collections.tokens import tokenize
from taskloom.bag.base import NO_DEFAULT, BagBase, argument, check_function
from taskloom.bag.reductions import _fresh, _hashable, as_key_function, tree
from taskloom.bag.steps import Step

if TYPE_CHECKING:
    from taskloom.bag.core import Bag

__all__ = ["Grouping"]


class Grouping(BagBase):
    """The part of :class:`taskloom.bag.Bag` that brings items together."""

    __slots__ = ()

    def foldby(
        self,
        key: Any,
        binop: Callable[[Any, Any], Any],
        initial: Any = NO_DEFAULT,
        combine: Callable[[Any, Any], Any] | None = None,
        combine_initial: Any = NO_DEFAULT,
        split_every: int | bool | None = None,
    ) -> Bag:
        """A fold of the items of each key: pairs of a key and a value, in one partition.

        It needs no more memory than the values of all keys do, and moves nothing else, so it is to be preferred to
        :meth:`groupby` wherever it can do the work.

        Args:
            key: a function of an item, or what it is indexed with.
            binop: called with what has come together so far and an item.
            initial: what each key begins with in each partition (a copy, if it can be changed); by default its first
                item.
            combine: called with what has come together in two partitions; by default ``binop``.
            combine_initial: what the joining of partitions begins with, once a key; by default the first one's value.
            split_every: how many partitions one task joins at most, 8 by default; False: all.

        >>> from taskloom import bag
        >>> numbers = bag.range(10, npartitions=3)
        >>> numbers.foldby(lambda x: x % 2, int.__add__).compute(scheduler="sync")
        [(0, 20), (1, 25)]
        """
        check_function(binop, "foldby")
        if combine is None:
            combine = binop
        check_function(combine, "foldby")
        token = (key, binop, initial, combine, combine_initial)
        made: Bag = tree(
            self,
            Step(partial(_fold_by, as_key_function(key), binop, initial), "foldby", streams=1),
            partial(_join_by, combine, NO_DEFAULT),
            partial(_join_last, combine, combine_initial),
            "foldby",
            token,
            split_every,
            BagBase,
        )
        return made

    def groupby(
        self,
        grouper: Any,
        method: str | None = None,
        npartitions: int | None = None,
        max_branch: int | None = None,
        shuffle: str | None = None,
    ) -> Bag:
        """All items of each key together: pairs of a key and a list of items.

        Every item moves, so this costs more than :meth:`foldby`. The items of a key keep their order. On processes, keys
        are told apart by their content: text, numbers, tuples, dates, dataclasses and the like are fine.

        Args:
            grouper: a function of an item, or what it is indexed with.
            method: how items move. "disk": through files in the directory for temporary files, so that not all of them have
                to fit into memory; "tasks": through the tasks' values, for where the tasks run on machines that have no
                files in common. By default "tasks" where collections run on a live client just now, else "disk".
            npartitions: how many partitions the result has; by default as many as this bag.
            max_branch: for "tasks": into how many parts a partition is divided at a time, 32 by default.
            shuffle: dask's older name for ``method``.

        >>> from taskloom import bag
        >>> groups = bag.range(5, npartitions=2).groupby(lambda x: x % 2)
        >>> sorted(groups.compute(scheduler="sync"))
        [(0, [0, 2, 4]), (1, [1, 3])]
        """
        from taskloom.bag.shuffle import groupby

        return groupby(self, grouper, method if method is not None else shuffle, npartitions, max_branch)

    def join(self, other: Any, on_self: Any, on_other: Any = None) -> Bag:
        """Pairs of items with equal keys: first one of ``other``, then one of this bag.

        Args:
            other: a bag, a list or another iterable, a Delayed or an Item. All of it is held in memory, by each process.
            on_self: a function of an item of this bag, or what it is indexed with.
            on_other: the same for ``other``; by default ``on_self``.

        >>> from taskloom import bag
        >>> fruit = bag.from_sequence(["plum", "fig"])
        >>> fruit.join(["Anna", "Bob"], len).compute(scheduler="sync")
        [('Anna', 'plum'), ('Bob', 'fig')]
        """
        if on_other is None:
            on_other = on_self
        token = tokenize("join", self._name, other, on_self, on_other)
        place, parents = argument(other)
        name, index = f"join-{token}", f"join-index-{token}"
        step = Step(partial(_joined, as_key_function(on_self)), "join", streams=1, lazy=True)
        layer: dict[Any, Any] = {index: (Step(partial(_index, as_key_function(on_other)), "join-index"), place)}
        layer.update({(name, i): (step, (self._name, i), index) for i in range(self._npartitions)})
        return self._make(name, self._npartitions, layer, (self, *parents))

    def product(self, other: Bag) -> Bag:
        """All pairs of an item of this bag and one of another.

        >>> from taskloom import bag
        >>> bag.range(2, npartitions=1).product(bag.range(2, npartitions=1)).compute(scheduler="sync")
        [(0, 0), (0, 1), (1, 0), (1, 1)]
        """
        if not isinstance(other, BagBase):
            raise TypeError(f"product takes a bag, not {type(other).__name__}; from_sequence(...) makes one")
        name = f"product-{tokenize('product', self._name, other._name)}"
        n, m = self._npartitions, other._npartitions
        step = Step(product, "product", lazy=True)
        layer = {(name, i * m + j): (step, (self._name, i), (other._name, j)) for i in range(n) for j in range(m)}
        return self._make(name, n * m, layer, (self, other))


def _fold_by(
    key: Callable[[Any], Any], binop: Callable[[Any, Any], Any], initial: Any, items: Iterable[Any]
) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    try:
        if initial is NO_DEFAULT:
            for item in items:
                group = key(item)
                made[group] = binop(made[group], item) if group in made else item
        else:
            for item in items:
                group = key(item)
                made[group] = binop(made[group] if group in made else _fresh(initial), item)
    except TypeError as error:
        _hashable(error, "the key of foldby")
        raise
    return made


def _join_by(combine: Callable[[Any, Any], Any], initial: Any, many: Iterable[dict[Any, Any]]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for values in many:
        for group, value in values.items():
            if group in made:
                made[group] = combine(made[group], value)
            else:
                made[group] = value if initial is NO_DEFAULT else combine(_fresh(initial), value)
    return made


def _join_last(
    combine: Callable[[Any, Any], Any], initial: Any, many: Iterable[dict[Any, Any]]
) -> list[tuple[Any, Any]]:
    return list(_join_by(combine, initial, many).items())


def _index(key: Callable[[Any], Any], items: Iterable[Any]) -> dict[Any, list[Any]]:
    made: dict[Any, list[Any]] = {}
    try:
        for item in items:
            made.setdefault(key(item), []).append(item)
    except TypeError as error:
        _hashable(error, "the key of join")
        raise
    return made


def _joined(key: Callable[[Any], Any], items: Iterable[Any], index: dict[Any, list[Any]]) -> Iterator[tuple[Any, Any]]:
    nothing: Sequence[Any] = ()
    for item in items:
        for other in index.get(key(item), nothing):
            yield other, item
