"""Operations on the items of a bag, one by one or a partition at a time."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, chain, compress, filterfalse, islice, repeat, starmap
from random import Random
from typing import TYPE_CHECKING, Any

from taskloom._collections.protocol import quote
from taskloom._collections.tokens import tokenize
from taskloom.bag.base import NO_DEFAULT, BagBase, argument, check_function, is_lazy
from taskloom.bag.steps import EMPTY, Each, Step, Text, concatenated, function_label, guarded
from taskloom.graph.node import Named

if TYPE_CHECKING:
    from taskloom.bag.core import Bag

__all__ = ["Elements", "StringMethods", "map_items", "map_partitions"]


class Elements(BagBase):
    """The part of :class:`taskloom.bag.Bag` that works item by item."""

    __slots__ = ()

    def map(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Bag:
        """A function of each item.

        Args:
            func: called with an item, then ``args`` and ``kwargs``.
            args: further arguments: other bags, gone through side by side with this one; an Item, a Delayed or
                another collection, whose value is the same for all items; anything else, as it is.
            kwargs: likewise, by name.

        Raises:
            TypeError: ``func`` is no function.
            ValueError: another bag has not as many partitions; when it is computed: not as many items in one of them.

        >>> from taskloom import bag
        >>> numbers = bag.from_sequence([1, 2, 3], npartitions=2)
        >>> numbers.map(pow, 2).compute(scheduler="sync")
        [1, 4, 9]
        >>> numbers.map(lambda x, total: x / total, total=numbers.sum() * 1.5).compute(scheduler="sync")
        [0.1111111111111111, 0.2222222222222222, 0.3333333333333333]
        """
        return map_items(func, self, *args, **kwargs)

    def filter(self, predicate: Callable[[Any], Any]) -> Bag:
        """The items for which a function returns something true.

        Args:
            predicate: called with an item; None: the items that are true themselves.

        >>> from taskloom import bag
        >>> bag.range(6, npartitions=2).filter(lambda x: x % 2).compute(scheduler="sync")
        [1, 3, 5]
        """
        if predicate is not None:
            check_function(predicate, "filter")
        step = Step(Each(filter, predicate), f"filter({function_label(predicate)})", streams=1, lazy=True)
        return self._each(step, "filter", (predicate,))

    def remove(self, predicate: Callable[[Any], Any]) -> Bag:
        """The items for which a function returns nothing true: what ``filter`` leaves out.

        >>> from taskloom import bag
        >>> bag.range(6, npartitions=2).remove(lambda x: x % 2).compute(scheduler="sync")
        [0, 2, 4]
        """
        if predicate is not None:
            check_function(predicate, "remove")
        step = Step(Each(filterfalse, predicate), f"remove({function_label(predicate)})", streams=1, lazy=True)
        return self._each(step, "remove", (predicate,))

    def flatten(self) -> Bag:
        """The items of the items, each of which is an iterable.

        >>> from taskloom import bag
        >>> bag.from_sequence([[1, 2], [], [3]]).flatten().compute(scheduler="sync")
        [1, 2, 3]
        """
        return self._each(Step(chain.from_iterable, "flatten", streams=1, lazy=True), "flatten", ())

    def pluck(self, key: Any, default: Any = NO_DEFAULT) -> Bag:
        """One field of each item, or several.

        Args:
            key: what the items are indexed with; a list of such: the result's items are tuples.
            default: the value where an item has no such key or index; without it, that is an error.

        >>> from taskloom import bag
        >>> people = bag.from_sequence([{"name": "Ada", "age": 36}, {"name": "Alan"}])
        >>> people.pluck("name").compute(scheduler="sync")
        ['Ada', 'Alan']
        >>> people.pluck(["name", "age"], default=0).compute(scheduler="sync")
        [('Ada', 36), ('Alan', 0)]
        """
        getter = _getter(key, default)
        step = Step(partial(map, getter), f"pluck({key!r:.30})", streams=1, lazy=True)
        return self._each(step, "pluck", (key, *([] if default is NO_DEFAULT else [default])))

    def starmap(self, func: Callable[..., Any], **kwargs: Any) -> Bag:
        """A function of each item, which is a tuple of its arguments.

        Args:
            func: called with what is in an item, one by one, and ``kwargs``.
            kwargs: the same for all items; an Item, a Delayed or another collection is computed first.

        >>> from taskloom import bag
        >>> bag.from_sequence([(1, 2), (3, 4)]).starmap(max).compute(scheduler="sync")
        [2, 4]
        """
        check_function(func, "starmap")
        names, constants, extra, parents = _by_name(kwargs)
        function = partial(func, **constants) if constants else func
        run: Any = Starmapped(function, names) if names else Each(starmap, function)
        step = Step(run, f"starmap({function_label(func)})", streams=1, lazy=True)
        return self._each(step, f"starmap-{function_label(func)}", (func, kwargs), extra, parents)

    def map_partitions(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Bag:
        """A function of each partition: a list of items, in a call.

        Args:
            func: called with a list, which it must not change, then ``args`` and ``kwargs``; returns an iterable of
                items. (If it returns anything else, such as a number, then that is what ``compute`` has for this partition.)
            args: further arguments. For another bag, of as many partitions, the function gets the partition
                with the same number; for an Item, a Delayed or another collection its value.
            kwargs: likewise, by name.

        >>> from taskloom import bag
        >>> bag.range(4, npartitions=2).map_partitions(lambda part: [sum(part)]).compute(scheduler="sync")
        [1, 5]
        """
        return map_partitions(func, self, *args, **kwargs)

    @property
    def str(self) -> StringMethods:
        """The methods of strings, for bags of them: ``bag.str.upper()`` is a bag.

        >>> from taskloom import bag
        >>> bag.from_sequence(["Ada L", "Alan T"]).str.split().compute(scheduler="sync")
        [['Ada', 'L'], ['Alan', 'T']]
        """
        return StringMethods(self)

    def unzip(self, n: int) -> tuple[Bag, ...]:
        """Bags of the first, the second, ... field of items that have ``n`` of them.

        >>> from taskloom import bag
        >>> numbers, letters = bag.from_sequence([(1, "a"), (2, "b")]).unzip(2)
        >>> letters.compute(scheduler="sync")
        ['a', 'b']
        """
        return tuple([self.pluck(place) for place in range(n)])

    def random_sample(self, prob: float, random_state: Any = None) -> Bag:
        """Some of the items, each with the same chance.

        Args:
            prob: the chance of an item to be taken, between 0 and 1.
            random_state: an int, a string or bytes, or a ``random.Random``, from which the sample follows; None:
                another sample each time this is called. A bag, once made, always has the same sample.

        Raises:
            ValueError: ``prob`` is no number between 0 and 1.

        >>> from taskloom import bag
        >>> bag.range(10, npartitions=2).random_sample(0.5, random_state=42).count().compute(scheduler="sync")
        3
        """
        if isinstance(prob, bool) or not isinstance(prob, (int, float)) or not 0 <= prob <= 1:
            raise ValueError(f"prob is a number between 0 and 1, not {prob!r}")
        seed = _seed(random_state)
        name = f"random-sample-{tokenize(self._name, prob, seed)}"
        step = Step(partial(_sample, float(prob)), "random_sample", streams=1, lazy=True)
        layer = {(name, i): (step, (self._name, i), quote(f"{seed}-{i}")) for i in range(self._npartitions)}
        return self._make(name, self._npartitions, layer, (self,))

    def accumulate(self, binop: Callable[[Any, Any], Any], initial: Any = NO_DEFAULT) -> Bag:
        """What has come together up to each item: the first item, then ``binop`` of that and the second, and so on.

        Args:
            binop: called with what has come together so far and an item.
            initial: what to begin with; it is then the first item of the result, which is one longer.

        One partition has to wait for the one before it.

        >>> from taskloom import bag
        >>> bag.range(5, npartitions=2).accumulate(int.__add__).compute(scheduler="sync")
        [0, 1, 3, 6, 10]
        """
        check_function(binop, "accumulate")
        token = tokenize(self._name, binop, *([] if initial is NO_DEFAULT else [initial]))
        name, last = f"accumulate-{token}", f"accumulate-last-{token}"
        begin, parents = (quote(EMPTY), ()) if initial is NO_DEFAULT else argument(initial)
        first = Step(Accumulated(binop, initial is not NO_DEFAULT), "accumulate", streams=1, lazy=True)
        later = Step(Accumulated(binop, False), "accumulate", streams=1, lazy=True)
        layer: dict[Any, Any] = {}
        before: Any = begin
        for i in range(self._npartitions):
            layer[name, i] = (later if i else first, (self._name, i), before)
            if i + 1 < self._npartitions:
                layer[last, i] = (_last, (name, i), before)
                before = (last, i)
        return self._make(name, self._npartitions, layer, (self, *parents))

    def take(self, k: int, npartitions: int = 1, compute: bool = True, warn: bool = True) -> Any:
        """The first items.

        Args:
            k: how many.
            npartitions: from how many partitions, from the front; -1: all. No more of them is read than ``k`` items take.
            compute: whether to compute them; otherwise the result is a bag of one partition.
            warn: whether to warn where there are fewer, and partitions that were not looked through.

        Returns:
            A tuple of items, or a bag.

        >>> from taskloom import bag
        >>> bag.range(1000, npartitions=10).take(3)
        (0, 1, 2)
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 0:
            raise ValueError(f"k is how many items to take, a whole number of 0 or more; not {k!r}")
        if npartitions == -1:
            npartitions = self._npartitions
        if not 1 <= npartitions <= self._npartitions:
            raise ValueError(
                f"npartitions={npartitions}: items can be taken from 1 to {self._npartitions} partitions, as many as "
                "this bag has, or, with -1, from all"
            )
        name = f"take-{tokenize(self._name, k, npartitions)}"
        head = Step(partial(_head, k), f"take({k})", streams=1, lazy=True)
        layer: dict[Any, Any]
        if npartitions == 1:
            layer = {(name, 0): (head, (self._name, 0))}
        else:
            part = f"{name}-part"
            layer = {(part, i): (head, (self._name, i)) for i in range(npartitions)}
            join = Step(partial(_head_of, k), f"take({k})")
            layer[name, 0] = (join, [(part, i) for i in range(npartitions)])
        bag = self._make(name, 1, layer, (self,))
        if not compute:
            if warn and npartitions < self._npartitions:
                return bag._each(Step(partial(_enough, k, npartitions), "take", loose=True), "take-checked", (k,))
            return bag
        items = tuple(bag.compute())
        if warn and len(items) < k and npartitions < self._npartitions:
            _warn_few(len(items), k, npartitions, stacklevel=3)
        return items

    def repartition(self, npartitions: int | None = None, partition_size: int | Text | None = None) -> Bag:
        """The same items in other partitions, in the same order.

        Args:
            npartitions: how many; neighbours are joined, or partitions divided.
            partition_size: instead: about how large they are to be in memory, as bytes or in words such as "64 MB". The
                partitions are computed at once to see how large they are; ``persist()`` the bag before if that is slow.

        >>> from taskloom import bag
        >>> bag.range(6, npartitions=3).repartition(npartitions=2).npartitions
        2
        """
        from taskloom.bag.partitions import repartition

        return repartition(self, npartitions, partition_size)


class StringMethods:
    """The methods of strings as methods of bags; see :attr:`taskloom.bag.Bag.str`."""

    def __init__(self, bag: Elements) -> None:
        self._bag = bag

    def __dir__(self) -> list[str]:
        return sorted({*vars(type(self)), *dir(str)})

    def __getattr__(self, name: str) -> Callable[..., Bag]:
        if name.startswith("_") or not callable(getattr(str, name, None)):
            raise AttributeError(f"strings have no method {name!r}")
        bag = self._bag

        def method(*args: Any, **kwargs: Any) -> Bag:
            function = operator.methodcaller(name, *args, **kwargs) if args or kwargs else getattr(str, name)
            step = Step(partial(map, function), f"str.{name}", streams=1, lazy=True)
            return bag._each(step, f"str-{name}", (name, args, kwargs))

        method.__name__ = name
        method.__doc__ = getattr(str, name).__doc__
        return method

    def match(self, pattern: str) -> Bag:
        """The strings that match a pattern as file names do in a shell: ``*.txt``; see :mod:`fnmatch`.

        >>> from taskloom import bag
        >>> bag.from_sequence(["a.txt", "b.csv"]).str.match("*.txt").compute(scheduler="sync")
        ['a.txt']
        """
        import re
        from fnmatch import translate

        bag = self._bag
        step = Step(partial(filter, re.compile(translate(pattern)).match), "str.match", streams=1, lazy=True)
        return bag._each(step, "str-match", (pattern,))


def map_items(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Bag:
    """A function of the items of several bags, gone through side by side; see :meth:`Bag.map`.

    >>> from taskloom import bag
    >>> a, b = bag.range(3, npartitions=1), bag.from_sequence([10, 20, 30], npartitions=1)
    >>> bag.map(int.__add__, a, b).compute(scheduler="sync")
    [10, 21, 32]
    """
    check_function(func, "map")
    bags = _bags_among(args, kwargs, "map")
    parts: list[BagBase] = []
    values: list[Any] = []
    parents: list[Any] = []

    def place_of(value: Any) -> tuple[int, Any]:
        if isinstance(value, BagBase):
            parts.append(value)
            return _PART, len(parts) - 1
        if not is_lazy(value):
            return _CONSTANT, value
        place, needed = argument(value)
        values.append(place)
        parents.extend(needed)
        return _VALUE, len(values) - 1

    pattern = [place_of(value) for value in args]
    named = {name: place_of(value) for name, value in kwargs.items()}
    label = function_label(func)
    run: Any
    if pattern == [(_PART, 0)] and all(kind == _CONSTANT for kind, _ in named.values()):
        run = Each(map, partial(func, **kwargs) if kwargs else func)
    else:
        run = Mapped(func, pattern, named, len(parts))
    step = Step(run, f"map({label})", streams=len(parts), lazy=True)
    name = f"{label}-{tokenize('map', func, args, kwargs)}"
    layer = {(name, i): (step, *[(part._name, i) for part in parts], *values) for i in range(bags[0]._npartitions)}
    return bags[0]._make(name, bags[0]._npartitions, layer, (*parts, *parents))


def map_partitions(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Bag:
    """A function of the partitions of bags; see :meth:`Bag.map_partitions`.

    >>> from taskloom import bag
    >>> a, b = bag.range(4, npartitions=2), bag.range(4, npartitions=2)
    >>> bag.map_partitions(lambda x, y: x + y, a, b).compute(scheduler="sync")
    [0, 1, 0, 1, 2, 3, 2, 3]
    """
    check_function(func, "map_partitions")
    bags = _bags_among(args, kwargs, "map_partitions")
    names: list[str] = []
    constants: dict[str, Any] = {}
    places: list[Any] = []  # a bag, or what stands in the task
    parents: list[Any] = []
    for name, value in (*[("", value) for value in args], *kwargs.items()):
        if isinstance(value, BagBase):
            places.append(value)
            parents.append(value)
        elif name and not is_lazy(value):
            constants[name] = value
            continue
        else:
            place, needed = argument(value)
            places.append(place)
            parents += needed
        if name:
            names.append(name)
    function = partial(func, **constants) if constants else func
    run: Any = Named(function, tuple(names)) if names else function
    label = function_label(func)
    streams = 1 if len(args) == 1 and not kwargs and any(func is one for one in _SINGLE_PASS) else 0
    step = Step(run, label, loose=True, streams=streams)
    name = f"{label}-{tokenize('map_partitions', func, args, kwargs)}"
    layer = {
        (name, i): (step, *[(place._name, i) if isinstance(place, BagBase) else place for place in places])
        for i in range(bags[0]._npartitions)
    }
    return bags[0]._make(name, bags[0]._npartitions, layer, parents)


# Functions that are known to go over their argument once: they need no list.
_SINGLE_PASS: tuple[Any, ...] = (sum, min, max, any, all, list, tuple, set, frozenset, dict, sorted, enumerate)


def _bags_among(args: Sequence[Any], kwargs: dict[str, Any], where: str) -> list[BagBase]:
    bags = [value for value in (*args, *kwargs.values()) if isinstance(value, BagBase)]
    if not bags:
        raise TypeError(f"{where} takes at least one bag; there is none among its arguments")
    check_partitions(bags, where)
    return bags


def check_partitions(bags: Sequence[BagBase], where: str) -> None:
    """Refuse bags that cannot be gone through side by side."""
    if len({bag._npartitions for bag in bags}) > 1:
        counts = ", ".join([f"{bag._name} has {bag._npartitions}" for bag in bags])
        raise ValueError(
            f"{where} goes through bags side by side, so they need the same number of partitions: {counts}. "
            "repartition(npartitions=...) changes it"
        )


def _by_name(kwargs: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any], list[Any], list[Any]]:
    """Arguments by name: the names of those that are computed, the others, what stands for the former, its parents."""
    names: list[str] = []
    constants: dict[str, Any] = {}
    extra: list[Any] = []
    parents: list[Any] = []
    for name, value in kwargs.items():
        if is_lazy(value):
            place, needed = argument(value)
            names.append(name)
            extra.append(place)
            parents += needed
        else:
            constants[name] = value
    return tuple(names), constants, extra, parents


def _getter(key: Any, default: Any) -> Callable[[Any], Any]:
    if isinstance(key, list):
        if default is NO_DEFAULT:
            if len(key) > 1:
                return operator.itemgetter(*key)
            return SeveralOf(tuple(key), default, False)
        return SeveralOf(tuple(key), default, True)
    if default is NO_DEFAULT:
        return operator.itemgetter(key)
    return OneOf(key, default)


class OneOf:
    """``item[key]``, or a default."""

    __slots__ = ("default", "key")

    def __init__(self, key: Any, default: Any) -> None:
        self.key = key
        self.default = default

    def __call__(self, item: Any) -> Any:
        try:
            return item[self.key]
        except (KeyError, IndexError):
            return self.default


class SeveralOf:
    """A tuple of ``item[key]`` for several keys, maybe with a default."""

    __slots__ = ("default", "given", "keys")

    def __init__(self, keys: tuple[Any, ...], default: Any, given: bool) -> None:
        self.keys = keys
        self.default = default
        self.given = given

    def __call__(self, item: Any) -> Any:
        if not self.given:
            return tuple([item[key] for key in self.keys])
        found = []
        for key in self.keys:
            try:
                found.append(item[key])
            except (KeyError, IndexError):
                found.append(self.default)
        return tuple(found)


class Starmapped:
    """``starmap`` with arguments by name that come with the call."""

    __slots__ = ("func", "names")

    def __init__(self, func: Callable[..., Any], names: tuple[str, ...]) -> None:
        self.func = func
        self.names = names

    def __call__(self, part: Iterable[Any], *values: Any) -> Iterator[Any]:
        function = partial(self.func, **dict(zip(self.names, values, strict=True)))
        return guarded(partial(starmap, function), part, function)


# Where an argument of a mapped function comes from: (one of these, which one of them; the constant itself).
_PART = 0
_VALUE = 1
_CONSTANT = 2


class Mapped:
    """A function over partitions side by side, with other arguments beside them.

    Args:
        func: the function.
        pattern: where each of its arguments comes from.
        named: the same for arguments by name.
        parts: how many partitions the call begins with; values follow.
    """

    __slots__ = ("func", "named", "parts", "pattern")

    def __init__(
        self, func: Callable[..., Any], pattern: list[tuple[int, Any]], named: dict[str, tuple[int, Any]], parts: int
    ) -> None:
        self.func = func
        self.pattern = pattern
        self.named = named
        self.parts = parts

    def __call__(self, *args: Any) -> Iterator[Any]:
        parts, values = args[: self.parts], args[self.parts :]
        func = self.func
        fixed = {name: self.fixed(place, values) for name, place in self.named.items() if place[0] != _PART}
        if fixed:
            func = partial(func, **fixed)
        moving = {name: place[1] for name, place in self.named.items() if place[0] == _PART}
        if not moving and [place for place in self.pattern if place[0] == _PART] == self.pattern:
            # the parts alone, in their order
            if len(parts) == 1:
                return guarded(partial(map, func), parts[0], func)
            return guarded(partial(starmap, func), in_step(parts, "map"), func)
        if not moving and len(parts) == 1:

            def mapped(items: Iterable[Any]) -> Iterable[Any]:
                columns = [items if place[0] == _PART else repeat(self.fixed(place, values)) for place in self.pattern]
                return map(func, *columns)

            return guarded(mapped, parts[0], func)
        return self.rows(func, in_step(parts, "map"), moving, values)

    def rows(
        self, func: Callable[..., Any], rows: Iterator[tuple[Any, ...]], moving: dict[str, int], values: Sequence[Any]
    ) -> Iterator[Any]:
        pattern = [place if place[0] == _PART else (_CONSTANT, self.fixed(place, values)) for place in self.pattern]
        for row in rows:
            args = [row[what] if kind == _PART else what for kind, what in pattern]
            yield func(*args, **{name: row[n] for name, n in moving.items()})

    @staticmethod
    def fixed(place: tuple[int, Any], values: Sequence[Any]) -> Any:
        return values[place[1]] if place[0] == _VALUE else place[1]


def in_step(parts: Sequence[Iterable[Any]], where: str) -> Iterator[tuple[Any, ...]]:
    """``zip``; parts of different lengths are an error, because else items would be lost without a word."""
    try:
        yield from zip(*parts, strict=True)
    except ValueError as error:
        if str(error).startswith("zip() argument"):
            raise ValueError(
                f"{where}: partitions with the same number hold different numbers of items ({error}), so their items "
                "cannot be gone through side by side; nothing was left out silently. Filter before bags part, or after "
                "they are zipped"
            ) from None
        raise


def _seed(random_state: Any) -> str:
    """A text that a sample follows from."""
    if random_state is None:
        from os import urandom

        return urandom(16).hex()
    if isinstance(random_state, Random):
        return f"{random_state.getrandbits(128):032x}"
    if isinstance(random_state, (int, str, bytes)):
        return tokenize(random_state)
    if isinstance(random_state, tuple):
        draw = Random()
        try:
            draw.setstate(random_state)
        except (TypeError, ValueError) as error:
            raise ValueError(f"random_state is a tuple, but no state of a random.Random: {error}") from error
        return f"{draw.getrandbits(128):032x}"
    raise TypeError(
        f"random_state is an int, a string, bytes, a random.Random or the state of one, not {type(random_state).__name__}"
    )


def _sample(prob: float, part: Iterable[Any], seed: str) -> Iterator[Any]:
    if prob >= 1:
        return iter(part)
    # random() never returns 2: it is called as long as there are items
    return compress(part, map(prob.__gt__, iter(Random(seed).random, 2.0)))


class Accumulated:
    """One partition of :meth:`Elements.accumulate`."""

    __slots__ = ("binop", "shown")

    def __init__(self, binop: Callable[[Any, Any], Any], shown: bool) -> None:
        self.binop = binop
        self.shown = shown  # whether what it begins with is part of the result

    def __call__(self, part: Iterable[Any], before: Any) -> Iterator[Any]:
        if before is EMPTY:
            return guarded(lambda items: accumulate(items, self.binop), part, self.binop)
        made = guarded(lambda items: accumulate(items, self.binop, initial=before), part, self.binop)
        return made if self.shown else islice(made, 1, None)


def _last(part: Sequence[Any], before: Any) -> Any:
    return part[-1] if part else before


def _head(k: int, part: Iterable[Any]) -> Iterator[Any]:
    return islice(part, k)


def _head_of(k: int, parts: Iterable[Any]) -> list[Any]:
    return concatenated(parts)[:k]


def _enough(k: int, npartitions: int, part: list[Any]) -> list[Any]:
    if len(part) < k:
        _warn_few(len(part), k, npartitions, stacklevel=2)
    return part


def _warn_few(found: int, k: int, npartitions: int, stacklevel: int) -> None:
    where = "the first partition" if npartitions == 1 else f"the first {npartitions} partitions"
    warnings.warn(
        f"take({k}) found only {found} items in {where}; npartitions= says how many to look through, -1 is all",
        UserWarning,
        stacklevel=stacklevel,
    )
