"""Operations that make one value, or one short partition, of a whole bag.

Each partition is made into one value by itself; then a tree of tasks joins these, some at a time, in their order. A
partition without items counts for nothing. The per-partition functions take their items one by one wherever possible.
"""

from __future__ import annotations

import copy
import heapq
import math
import types
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

from taskloom._collections.tokens import tokenize
from taskloom.bag import numbers
from taskloom.bag.base import NO_DEFAULT, BagBase, Item, check_function
from taskloom.bag.steps import EMPTY, Step, as_partition, function_label

if TYPE_CHECKING:
    from taskloom.bag.core import Bag

__all__ = ["Reductions", "as_key_function", "tree"]

SPLIT_EVERY = 8  # how many values one task of a tree joins


class Reductions(BagBase):
    """The part of :class:`taskloom.bag.Bag` that makes one value of all items."""

    __slots__ = ()

    def reduction(
        self,
        perpartition: Callable[[Any], Any],
        aggregate: Callable[[Any], Any],
        split_every: int | bool | None = None,
        out_type: type = Item,
        name: str | None = None,
    ) -> Any:
        """Any value that can be made of each partition and then joined.

        Args:
            perpartition: called with the list of a partition's items. Partitions without items are left out; if all are,
                it is called once, with an empty list.
            aggregate: called with a list of what ``perpartition`` or itself returned.
            split_every: how many values it gets at most, 8 by default; False: all at once.
            out_type: :class:`Item`, or :class:`Bag` where the value is an iterable: it then is the one partition.
            name: what the names of the tasks begin with.

        >>> from taskloom import bag
        >>> bag.range(10, npartitions=3).reduction(len, sum).compute(scheduler="sync")
        10
        """
        check_function(perpartition, "reduction")
        check_function(aggregate, "reduction")
        label = name or f"{function_label(perpartition)}-{function_label(aggregate)}"
        return tree(
            self,
            Step(PerPartition(perpartition), function_label(perpartition), loose=True),
            Aggregate(aggregate),
            Aggregate(aggregate, perpartition),
            label,
            ("reduction", perpartition, aggregate, name),
            split_every,
            out_type,
        )

    def fold(
        self,
        binop: Callable[[Any, Any], Any],
        combine: Callable[[Any, Any], Any] | None = None,
        initial: Any = NO_DEFAULT,
        split_every: int | bool | None = None,
        out_type: type = Item,
    ) -> Any:
        """One value, made by a function of two: of what has come together so far, and the next item.

        Args:
            binop: called with what has come together in a partition and an item.
            combine: called with what has come together in two partitions; by default ``binop``.
            initial: what each partition begins with (a copy of it, if it can be changed); by default its first item.
                It is the value for a bag without items, which is an error where there is none.
            split_every: how many values one task joins at most, 8 by default; False: all.
            out_type: :class:`Item`, or :class:`Bag` where the value is an iterable.

        >>> from taskloom import bag
        >>> bag.range(5, npartitions=2).fold(max).compute(scheduler="sync")
        4
        >>> words = bag.from_sequence(["a", "b", "a"], npartitions=2)
        >>> words.fold(lambda seen, x: seen | {x}, set.union, initial=set()).apply(len).compute(scheduler="sync")
        2
        """
        check_function(binop, "fold")
        if combine is None:
            combine = binop
        check_function(combine, "fold")
        return tree(
            self,
            Step(partial(_fold, binop, initial), f"fold({function_label(binop)})", streams=1),
            partial(_fold_values, combine),
            partial(_fold_last, combine, initial),
            f"fold-{function_label(binop)}",
            ("fold", binop, combine, *([] if initial is NO_DEFAULT else [initial])),
            split_every,
            out_type,
        )

    def sum(self, split_every: int | bool | None = None) -> Item:
        """The sum of the items; 0 if there are none."""
        return self._tree(sum, "sum", sum, sum, split_every)

    def count(self, split_every: int | bool | None = None) -> Item:
        """How many items there are."""
        return self._tree(numbers.count, "count", sum, sum, split_every)

    def max(self, split_every: int | bool | None = None) -> Item:
        """The greatest item. Raises ValueError, when it is computed, if there are none."""
        join, last = partial(_extreme_so_far, max), partial(_extreme_of, max)
        return self._tree(partial(_extreme, max), "max", join, last, split_every)

    def min(self, split_every: int | bool | None = None) -> Item:
        """The least item. Raises ValueError, when it is computed, if there are none."""
        join, last = partial(_extreme_so_far, min), partial(_extreme_of, min)
        return self._tree(partial(_extreme, min), "min", join, last, split_every)

    def any(self, split_every: int | bool | None = None) -> Item:
        """Whether an item is true."""
        return self._tree(any, "any", any, any, split_every)

    def all(self, split_every: int | bool | None = None) -> Item:
        """Whether all items are true."""
        return self._tree(all, "all", all, all, split_every)

    def mean(self) -> Item:
        """The mean of the items. Raises ValueError, when it is computed, if there are none."""
        return self._tree(numbers.total_and_count, "mean", _joined_totals, numbers.mean_of)

    def var(self, ddof: float = 0) -> Item:
        """The variance.

        Computed from the distances to the mean, so it is exact to some digits where the items are close to each other
        and far from zero.

        Args:
            ddof: the sum of squares is divided by the number of items less this; 1 for a sample's estimate.

        Raises:
            ValueError: when it is computed: there are not more than ``ddof`` items.

        >>> from taskloom import bag
        >>> bag.from_sequence([1e9 + 1, 1e9 + 2, 1e9 + 3], npartitions=2).var().compute(scheduler="sync")
        0.6666666666666666
        """
        last = partial(numbers.variance, ddof)
        return self._tree(numbers.moments, "var", numbers.join_moments, last, None, (ddof,))

    def std(self, ddof: float = 0) -> Item:
        """The standard deviation: the square root of :meth:`var`."""
        return self.var(ddof).apply(math.sqrt)

    def frequencies(self, split_every: int | bool | None = None, sort: bool = False) -> Bag:
        """How often each item is there: pairs of an item and a number, in one partition.

        Args:
            split_every: how many values one task joins at most.
            sort: whether the most frequent come first; otherwise in the order in which they first appear.

        >>> from taskloom import bag
        >>> bag.from_sequence(["a", "b", "c", "a"]).frequencies().compute(scheduler="sync")
        [('a', 2), ('b', 1), ('c', 1)]
        """
        return self._short(_counts, "frequencies", _merged_counts, partial(_pairs, sort), split_every, (sort,))

    def topk(self, k: int, key: Any = None, split_every: int | bool | None = None) -> Bag:
        """The greatest items, in descending order, in one partition. Of equal ones the first come first.

        Args:
            k: how many.
            key: what of an item is compared: a function of it, or what it is indexed with.
            split_every: how many values one task joins at most.

        >>> from taskloom import bag
        >>> bag.from_sequence([3, 1, 4, 1, 5], npartitions=2).topk(2).compute(scheduler="sync")
        [5, 4]
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 0:
            raise ValueError(f"k is how many items to take, a whole number of 0 or more; not {k!r}")
        by = None if key is None else as_key_function(key)
        top = partial(_top, k, by)
        join = partial(_top_of, k, by)
        return self._short(top, "topk", join, join, split_every, (k, key))

    def distinct(self, key: Any = None) -> Bag:
        """The items without repetition, in the order in which they first appear, in one partition.

        Args:
            key: what of an item counts: a function of it, or what it is indexed with; the first item of each is kept.

        >>> from taskloom import bag
        >>> bag.from_sequence([3, 1, 3, 2, 1], npartitions=2).distinct().compute(scheduler="sync")
        [3, 1, 2]
        """
        by = None if key is None else as_key_function(key)
        join = partial(_distinct_of, by)
        return self._short(partial(_distinct, by), "distinct", join, join, None, (key,))

    def _tree(
        self,
        first: Callable[..., Any],
        label: str,
        inner: Callable[[list[Any]], Any],
        last: Callable[[list[Any]], Any],
        split_every: int | bool | None = None,
        token: tuple[Any, ...] = (),
    ) -> Item:
        step = Step(first, label, streams=1)
        made: Item = tree(self, step, inner, last, label, (label, *token), split_every, Item)
        return made

    def _short(
        self,
        first: Callable[..., Any],
        label: str,
        inner: Callable[[list[Any]], Any],
        last: Callable[[list[Any]], Any],
        split_every: int | bool | None,
        token: tuple[Any, ...],
    ) -> Bag:
        step = Step(first, label, streams=1)
        made: Bag = tree(self, step, inner, last, label, (label, *token), split_every, BagBase)
        return made


def tree(
    bag: BagBase,
    first: Step,
    inner: Callable[[list[Any]], Any],
    last: Callable[[list[Any]], Any],
    label: str,
    token: tuple[Any, ...],
    split_every: int | bool | None,
    out_type: type,
) -> Any:
    """A tree of tasks over a bag: each partition by itself, then the values, some at a time.

    Args:
        bag: the bag.
        first: what is made of a partition.
        inner: joins a list of such values to one.
        last: the same for the last ones, and makes the result of them.
        label: what the names of the tasks begin with.
        token: what makes the result what it is, beside the bag.
        split_every: how many values are joined at a time.
        out_type: Item, or a class of bags.
    """
    every = _split_every(split_every, bag._npartitions)
    if not isinstance(out_type, type) or not issubclass(out_type, (Item, BagBase)):
        raise TypeError(f"out_type is taskloom.bag.Item or taskloom.bag.Bag, not {out_type!r}")
    name = f"{label}-{tokenize(label, bag._name, token, every if split_every is not None else None, out_type is Item)}"
    part = f"{label}-part-{name[len(label) + 1 :]}"
    layer: dict[Any, Any] = {(part, i): (first, (bag._name, i)) for i in range(bag._npartitions)}
    keys: list[Any] = [(part, i) for i in range(bag._npartitions)]
    join = Step(inner, f"{label}-join")
    level = 0
    while len(keys) > every:
        level += 1
        joined = []
        for n, at in enumerate(range(0, len(keys), every)):
            group = keys[at : at + every]
            if len(group) == 1:
                joined.append(group[0])
                continue
            key = (f"{label}-join-{name[len(label) + 1 :]}", level, n)
            layer[key] = (join, group)
            joined.append(key)
        keys = joined
    if issubclass(out_type, Item):
        layer[name] = (Step(last, label), keys)
        return Item._make(name, layer, (bag,))
    layer[name, 0] = (Step(last, label, loose=True), keys)
    return bag._make(name, 1, layer, (bag,))


def _split_every(split_every: int | bool | None, npartitions: int) -> int:
    if split_every is None:
        return SPLIT_EVERY
    if split_every is False:
        return max(npartitions, 1)
    if split_every is True or not isinstance(split_every, int) or split_every < 2:
        raise ValueError(
            f"split_every is how many values are joined at a time, 2 or more, or False; not {split_every!r}"
        )
    return split_every


def as_key_function(key: Any) -> Callable[[Any], Any]:
    """A function as it is; anything else is what an item is indexed with, or a list of several."""
    from taskloom.bag.elements import _getter

    return key if callable(key) else _getter(key, NO_DEFAULT)


class PerPartition:
    """A function of the user's on a partition; one without items is none of its business."""

    __slots__ = ("func",)

    def __init__(self, func: Callable[[Any], Any]) -> None:
        self.func = func

    def __call__(self, part: Any) -> Any:
        if isinstance(part, list) and not part:
            return EMPTY
        return self.func(part)


class Aggregate:
    """A function of the user's on values of partitions.

    Args:
        func: the function.
        perpartition: where it is the last one: what is called with an empty list if there are no items at all.
    """

    __slots__ = ("func", "perpartition")

    def __init__(self, func: Callable[[Any], Any], perpartition: Callable[[Any], Any] | None = None) -> None:
        self.func = func
        self.perpartition = perpartition

    def __call__(self, values: Sequence[Any]) -> Any:
        values = [value for value in values if value is not EMPTY]
        if not values:
            if self.perpartition is None:
                return EMPTY
            values = [as_partition(self.perpartition([]))]
        value = self.func(values)
        return as_partition(value) if self.perpartition is None else value


# Values of these types cannot be changed, so each partition can begin with the same one.
_FIXED = (int, float, complex, str, bytes, bool, type(None), frozenset, types.FunctionType, type)


def _fresh(value: Any) -> Any:
    """A value to begin with, which a function may change: no other partition sees it."""
    if isinstance(value, _FIXED):
        return value
    try:
        return copy.deepcopy(value)
    except Exception:  # some things cannot be copied; then it is the only one there is
        return value


def _fold(binop: Callable[[Any, Any], Any], initial: Any, part: Iterable[Any]) -> Any:
    items = iter(part)
    for item in items:
        first = item if initial is NO_DEFAULT else binop(_fresh(initial), item)
        return reduce(binop, items, first)
    return EMPTY


def _fold_values(combine: Callable[[Any, Any], Any], values: Sequence[Any]) -> Any:
    values = [value for value in values if value is not EMPTY]
    return reduce(combine, values) if values else EMPTY


def _fold_last(combine: Callable[[Any, Any], Any], initial: Any, values: Sequence[Any]) -> Any:
    value = _fold_values(combine, values)
    if value is not EMPTY:
        return value
    if initial is NO_DEFAULT:
        raise ValueError("fold of an empty bag: it has no items; initial= says what the value is then")
    return _fresh(initial)


def _extreme(choose: Callable[..., Any], items: Iterable[Any]) -> Any:
    return choose(items, default=EMPTY)


def _extreme_so_far(choose: Callable[..., Any], values: list[Any]) -> Any:
    return choose([value for value in values if value is not EMPTY], default=EMPTY)


def _extreme_of(choose: Callable[..., Any], values: list[Any]) -> Any:
    value = _extreme_so_far(choose, values)
    if value is EMPTY:
        raise ValueError(f"the {choose.__name__} of an empty bag: it has no items")
    return value


def _joined_totals(pairs: Iterable[tuple[Any, int]]) -> tuple[Any, int]:
    pairs = [pair for pair in pairs if pair[1]]
    return sum([total for total, _ in pairs]), sum([n for _, n in pairs])


def _hashable(error: TypeError, what: str) -> None:
    if "unhashable" in str(error):
        try:
            error.add_note(f"{what} needs items that can be hashed: make tuples of lists, for instance with map(tuple)")
        except Exception:
            pass


def _counts(items: Iterable[Any]) -> dict[Any, int]:
    try:
        return Counter(iter(items))
    except TypeError as error:
        _hashable(error, "frequencies")
        raise


def _merged_counts(many: Iterable[dict[Any, int]]) -> dict[Any, int]:
    made: dict[Any, int] = {}
    for counts in many:
        if not made:
            made = dict(counts)
            continue
        get = made.get
        for item, n in counts.items():
            made[item] = get(item, 0) + n
    return made


def _pairs(sort: bool, many: Iterable[dict[Any, int]]) -> list[tuple[Any, int]]:
    pairs = list(_merged_counts(many).items())
    if sort:
        pairs.sort(key=_second, reverse=True)
    return pairs


def _second(pair: tuple[Any, Any]) -> Any:
    return pair[1]


def _top(k: int, key: Callable[[Any], Any] | None, items: Iterable[Any]) -> list[Any]:
    return heapq.nlargest(k, items, key)


def _top_of(k: int, key: Callable[[Any], Any] | None, many: Iterable[list[Any]]) -> list[Any]:
    return heapq.nlargest(k, [item for items in many for item in items], key)


def _distinct(key: Callable[[Any], Any] | None, items: Iterable[Any]) -> list[Any]:
    try:
        if key is None:
            return list(dict.fromkeys(items))
        made: dict[Any, Any] = {}
        for item in items:
            made.setdefault(key(item), item)
        return list(made.values())
    except TypeError as error:
        _hashable(error, "distinct (or its key)")
        raise


def _distinct_of(key: Callable[[Any], Any] | None, many: Iterable[list[Any]]) -> list[Any]:
    return _distinct(key, [item for items in many for item in items])
