"""Collections as objects: what is one, which are inside of nested data, and the methods that all of ours have."""

from __future__ import annotations

import dataclasses
import operator
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import GeneratorType
from typing import Any

from taskloom.graph.node import Literal
from taskloom.local.frames import quiet_frames

__all__ = ["Collection", "cannot_rebuild", "expression_of", "is_collection", "is_namedtuple", "quote", "unpack"]

# Read to their end and taken for lists: nothing else can be done with what is inside of them.
ITERATORS: tuple[type, ...] = (GeneratorType, type(iter([])), type(iter(())), type(iter({0})))
_MAPPINGS = (dict, OrderedDict)
_SETS = (set, frozenset)


class Collection:
    """Base class of collections: the methods that follow from the protocol (see :mod:`taskloom._collections`).

    It has no state of its own, and ``__slots__`` in a subclass stay effective.
    """

    __slots__ = ()

    @quiet_frames
    def compute(self, *, scheduler: Any = None, optimize_graph: bool = True, **kwargs: Any) -> Any:
        """Run the graph and return the value.

        Args:
            scheduler: "threads", "processes", "sync", a get function, or a client; by default the setting
                ``scheduler``, a live client, or what suits the collection.
            optimize_graph: whether the collection's own optimizations are applied first.
            kwargs: handed to the scheduler, such as ``num_workers=``.

        Raises:
            Exception: whatever a task raises.
        """
        from taskloom._collections.running import compute

        return compute(self, traverse=False, scheduler=scheduler, optimize_graph=optimize_graph, **kwargs)[0]

    @quiet_frames
    def persist(self, *, scheduler: Any = None, optimize_graph: bool = True, **kwargs: Any) -> Any:
        """Run the graph and return a collection of the same kind that holds the values. Arguments as for compute."""
        from taskloom._collections.running import persist

        return persist(self, traverse=False, scheduler=scheduler, optimize_graph=optimize_graph, **kwargs)[0]

    def visualize(self, filename: str | None = "taskloom", format: str | None = None, **kwargs: Any) -> Any:
        """Draw the graph; see :func:`taskloom.visualize`."""
        from taskloom._collections.running import visualize

        return visualize(self, filename=filename, format=format, **kwargs)


def is_collection(value: Any) -> bool:
    """Whether a value is a collection, of ours or of dask: something with a graph, to be computed.

    Args:
        value: anything; a container with collections in it is none itself.

    >>> import taskloom
    >>> is_collection(taskloom.delayed(1)), is_collection([1])
    (True, False)
    """
    if isinstance(value, Collection):
        return True
    cls = type(value)
    if isinstance(value, type) or not hasattr(cls, "__dask_graph__") or not hasattr(cls, "__dask_keys__"):
        return False
    # Wrappers such as xarray's have the methods always, and say None where nothing in them is lazy. Asking dask's
    # own collections for their graph would build it for nothing.
    return cls.__module__.partition(".")[0] == "dask" or value.__dask_graph__() is not None


def expression_of(collection: Any) -> Any:
    """The expression behind one of dask's newer collections (its data frames), else None.

    It knows better than the protocol's methods can say how it is optimized and how its parts become one value.
    """
    # asked of the class: a Delayed has every attribute that one asks for
    if isinstance(collection, Collection) or not hasattr(type(collection), "expr"):
        return None
    expression = collection.expr
    return expression if callable(getattr(expression, "finalize_compute", None)) else None


def is_namedtuple(cls: type) -> bool:
    """Whether a class is one of ``collections.namedtuple``'s or ``typing.NamedTuple``'s."""
    return issubclass(cls, tuple) and hasattr(cls, "_fields") and hasattr(cls, "_make")


def quote(value: Any) -> tuple[Literal]:
    """A task whose value is this very object, whatever it looks like: a key, a task, a list with keys in it.

    As an argument in a graph it is safe in dask as well as here.

    >>> from taskloom import get_sync
    >>> get_sync({"x": 1, "y": (list, quote("x"))}, "y")
    ['x']
    """
    return (Literal(value),)


# Given the values of all collections, by number, a maker returns the data with values instead of collections.
Maker = Callable[[Sequence[Any]], Any]


def _maker(value: Any, number: Callable[[Any], int | None]) -> Maker | None:
    """How to make nested data again with values instead of collections; None where it holds none.

    Args:
        number: tells the number of a collection; None for anything else.
    """
    place = number(value)
    if place is not None:
        return operator.itemgetter(place)
    cls = type(value)
    join: Callable[[list[Any]], Any]
    if cls in ITERATORS:
        items: list[Any] = list(value)
        inner = _maker(items, number)
        return (lambda values: items) if inner is None else inner
    if cls is list or cls is tuple or cls in _SETS:
        items, join = list(value), cls
    elif cls in _MAPPINGS:
        items = [part for pair in value.items() for part in pair]

        def join(made: list[Any]) -> Any:
            return cls(zip(made[::2], made[1::2], strict=True))

    elif dataclasses.is_dataclass(cls):
        names = [field.name for field in dataclasses.fields(cls) if hasattr(value, field.name)]
        items = [getattr(value, name) for name in names]

        def join(made: list[Any]) -> Any:
            pairs = zip(names, items, made, strict=True)
            try:
                return dataclasses.replace(value, **{name: new for name, old, new in pairs if new is not old})
            except (TypeError, ValueError) as error:
                raise TypeError(cannot_rebuild(cls, error)) from error

    elif is_namedtuple(cls):
        items, join = list(value), cls._make
    else:
        return None
    makers = [_maker(item, number) for item in items]
    if not any(makers):
        return None

    def make(values: Sequence[Any]) -> Any:
        return join([item if maker is None else maker(values) for item, maker in zip(items, makers, strict=True)])

    return make


def cannot_rebuild(cls: type, error: object) -> str:
    """What to say of a dataclass that has collections in it and cannot be made again with their values."""
    return (
        f"a collection inside of the dataclass {cls.__qualname__} cannot be replaced by its value, because the class "
        f"cannot be made again from its fields: {error}. Fields with init=False, InitVar without default and an own "
        "__init__ stand in the way; pass the collections as arguments of their own"
    )


def unpack(
    args: tuple[Any, ...], traverse: bool = True
) -> tuple[list[Any], Callable[[Sequence[Any]], tuple[Any, ...]]]:
    """Find the collections in arguments.

    Args:
        args: anything. Lists, tuples, sets, dicts, dataclasses, named tuples and (taken for lists) generators are
            searched; subclasses of the containers are not.
        traverse: whether to search in the arguments; otherwise only they themselves can be collections.

    Returns:
        The collections, each object once, and a function: given as many values in their place, it returns the
        arguments with values instead of collections. What holds no collection is returned as it is.
    """
    collections: list[Any] = []
    numbers: dict[int, int] = {}

    def number(value: Any) -> int | None:
        if not is_collection(value):
            return None
        place = numbers.get(id(value))
        if place is None:
            place = numbers[id(value)] = len(collections)
            collections.append(value)
        return place

    makers: list[Maker | None] = []
    for arg in args:
        if traverse:
            try:
                makers.append(_maker(arg, number))
            except RecursionError:
                raise RecursionError(
                    f"an argument of type {type(arg).__name__} is nested too deep to be searched for collections, or has "
                    "itself inside; with traverse=False arguments are not searched"
                ) from None
        else:
            place = number(arg)
            makers.append(None if place is None else operator.itemgetter(place))

    def repack(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple([arg if maker is None else maker(values) for arg, maker in zip(args, makers, strict=True)])

    return collections, repack
