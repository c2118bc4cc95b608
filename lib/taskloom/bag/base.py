"""What bags are made of: nodes that hold their own tasks and their parents, and the value of one task, the Item.

A node never holds the whole graph: an operation costs what its own tasks cost, however much is behind it. The graph is put
together when it is asked for.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from taskloom._collections.annotations import current as _annotations
from taskloom._collections.protocol import ITERATORS, Collection, is_collection, quote, unpack
from taskloom._collections.running import get_processes
from taskloom._collections.tokens import tokenize
from taskloom._delayed import Delayed, delayed
from taskloom._delayed import _first as first_value
from taskloom.bag.optimize import optimize
from taskloom.bag.steps import NO_DEFAULT, Step, concatenated, function_label
from taskloom.errors import MissingKeyError

if TYPE_CHECKING:
    from taskloom.bag.core import Bag

__all__ = ["NO_DEFAULT", "BagBase", "Item", "Node", "argument", "check_function", "merge"]

N = TypeVar("N", bound="Node")


class Node(Collection):
    """Tasks and the collections whose keys they refer to."""

    __slots__ = ("__weakref__", "_annotated", "_layer", "_parents")

    _layer: Mapping[Any, Any]
    _parents: tuple[Any, ...]  # Nodes and Delayed
    _annotated: Mapping[str, Any] | None  # the annotations of the block in which it was made

    def _fill(self, layer: Mapping[Any, Any], parents: Iterable[Any]) -> None:
        self._layer = layer
        self._parents = tuple(parents)
        self._annotated = _annotations.get()

    @property
    def dask(self) -> dict[Any, Any]:
        """The graph; dask's name for it."""
        return self.__dask_graph__()

    def __dask_graph__(self) -> dict[Any, Any]:
        return merge([self])

    __taskloom_merge__ = staticmethod(lambda members: merge(members))
    __dask_optimize__ = staticmethod(optimize)
    __dask_scheduler__ = staticmethod(get_processes)

    def __taskloom_annotations__(self) -> dict[Any, Mapping[str, Any]]:
        found: dict[Any, Mapping[str, Any]] = {}
        others: list[Any] = []
        for node in walk([self]):
            if not isinstance(node, Node):
                others.append(node)
            elif isinstance(node, Restored):
                found.update(node._notes)
            elif node._annotated is not None:
                found.update(dict.fromkeys(node._layer, node._annotated))
        for other in others:
            found.update(other.__taskloom_annotations__())
        return found


def walk(roots: Sequence[Any]) -> Iterator[Any]:
    """Nodes and all that they need, each once. A Delayed is not looked into."""
    seen = {id(root) for root in roots}
    stack = list(roots)
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, Node):
            for parent in node._parents:
                if id(parent) not in seen:
                    seen.add(id(parent))
                    stack.append(parent)


def merge(roots: Sequence[Any]) -> dict[Any, Any]:
    """The graph of nodes together."""
    graph: dict[Any, Any] = {}
    others: list[Any] = []
    for node in walk(roots):
        if isinstance(node, Node):
            graph.update(node._layer)
        else:
            others.append(node)
    if others:
        graph.update(Delayed.__taskloom_merge__(others))
    return graph


def argument(value: Any) -> tuple[Any, tuple[Any, ...]]:
    """What stands for an argument in a task, and the collections that it refers to.

    Collections inside of lists, dicts and so on are found too. A bag stands for the list of all its items.
    """
    if isinstance(value, (Item, Delayed)):
        return value.key, (value,)
    if isinstance(value, BagBase):
        key = f"list-{tokenize('list', value._name)}"
        whole = Item._make(key, {key: (Step(concatenated, "list"), value._keys())}, (value,))
        return key, (whole,)
    if type(value) in ITERATORS:
        value = list(value)
    if is_collection(value) or unpack((value,))[0]:
        made = delayed(value)
        return made.key, (made,)
    return quote(value), ()


def is_lazy(value: Any) -> bool:
    """Whether a value has collections in it, so that it is known only when they are computed."""
    return is_collection(value) or bool(type(value) not in ITERATORS and unpack((value,))[0])


def check_function(function: Any, where: str) -> None:
    """Refuse what is no function, where it is given and not in a task much later."""
    if not callable(function):
        hint = "; pluck(...) takes an item's field by its name" if isinstance(function, (str, int)) else ""
        raise TypeError(f"{where} takes a function, not {function!r:.60} of type {type(function).__name__}{hint}")


class Item(Node):
    """One value that will be computed, such as the sum of a bag.

    Operators on it give another Item: ``bag.sum() / bag.count()``. ``int()``, ``float()``, ``complex()`` and ``bool()``
    compute it, and so does ``if``.

    Args:
        dsk: a graph that has the key.
        key: a string or a tuple that begins with one.

    >>> from taskloom import bag
    >>> numbers = bag.from_sequence([1, 2, 3, 4], npartitions=2)
    >>> (numbers.sum() / numbers.count()).compute(scheduler="sync")
    2.5
    """

    __slots__ = ("_key",)

    _key: Any

    def __init__(self, dsk: Mapping[Any, Any], key: Any) -> None:
        if key not in dsk:
            raise MissingKeyError(f"the graph has no key {key!r} (it has {len(dsk)} keys)")
        self._key = key
        self._fill(dsk, ())

    @classmethod
    def _make(cls, key: Any, layer: Mapping[Any, Any], parents: Iterable[Any]) -> Item:
        item = object.__new__(cls)
        item._key = key
        item._fill(layer, parents)
        return item

    @staticmethod
    def from_delayed(value: Any) -> Item:
        """The Item of a delayed value.

        >>> import taskloom
        >>> Item.from_delayed(taskloom.delayed(abs)(-1)).compute()
        1
        """
        if not isinstance(value, Delayed) and hasattr(value, "key"):
            value = delayed(value)
        if not isinstance(value, Delayed):
            raise TypeError(f"from_delayed takes a Delayed, not {type(value).__name__}")
        return Item._make(value.key, {}, (value,))

    @property
    def key(self) -> Any:
        """The key of its task."""
        return self._key

    def __dask_keys__(self) -> list[Any]:
        return [self._key]

    def __dask_tokenize__(self) -> Any:
        return self._key

    def __dask_postcompute__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return first_value, ()

    def __dask_postpersist__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _rebuilt_item, (self._key,)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored_item, (self._key, self.__dask_graph__(), self.__taskloom_annotations__())

    def __repr__(self) -> str:
        return f"Item({self._key!r})"

    def __hash__(self) -> int:
        return hash(self._key)

    def apply(self, func: Callable[..., Any]) -> Item:
        """The Item of what a function makes of the value.

        >>> from taskloom import bag
        >>> bag.from_sequence([3, 4]).sum().apply(str).compute(scheduler="sync")
        '7'
        """
        check_function(func, "apply")
        return _operation(func, f"{function_label(func)}-apply", (self,))

    def to_delayed(self, optimize_graph: bool = True) -> Delayed:
        """The value as a :class:`taskloom.delayed` object.

        Args:
            optimize_graph: whether the bag's optimizations are applied to what is behind it.
        """
        graph = self.__dask_graph__()
        return Delayed(self._key, optimize(graph, [self._key]) if optimize_graph else graph)

    def __int__(self) -> int:
        return int(self.compute())

    def __float__(self) -> float:
        return float(self.compute())

    def __complex__(self) -> complex:
        return complex(self.compute())

    def __bool__(self) -> bool:
        return bool(self.compute())

    def __iter__(self) -> Iterator[Any]:
        raise TypeError(f"{self!r} is one value that is not computed yet: compute() it before it is iterated")

    # the operators are added below


def _operation(function: Callable[..., Any], label: str, args: tuple[Any, ...]) -> Item:
    parents: list[Any] = []
    task: list[Any] = [function]
    for arg in args:
        place, needed = argument(arg)
        task.append(place)
        parents += needed
    key = f"{label}-{tokenize('item', label, function, args)}"
    return Item._make(key, {key: tuple(task)}, parents)


def _unary(function: Callable[[Any], Any], label: str) -> Callable[[Item], Item]:
    return lambda self: _operation(function, label, (self,))


def _binary(function: Callable[[Any, Any], Any], label: str, swapped: bool) -> Callable[[Item, Any], Item]:
    if swapped:
        return lambda self, other: _operation(function, label, (other, self))
    return lambda self, other: _operation(function, label, (self, other))


def _add_operators() -> None:
    for name in ("abs", "neg", "pos", "invert"):
        setattr(Item, f"__{name}__", _unary(getattr(operator, name), name))
    for name in ("trunc", "floor", "ceil"):
        setattr(Item, f"__{name}__", _unary(getattr(math, name), name))
    for name in ("eq", "ne", "lt", "le", "gt", "ge", "getitem"):
        setattr(Item, f"__{name}__", _binary(getattr(operator, name), name, False))
    both: dict[str, Callable[[Any, Any], Any]] = {"and": operator.and_, "or": operator.or_, "divmod": divmod}
    for name in ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "xor", "lshift", "rshift"):
        both[name] = getattr(operator, name)
    for name, function in both.items():
        setattr(Item, f"__{name}__", _binary(function, name, False))
        setattr(Item, f"__r{name}__", _binary(function, name, True))


_add_operators()


class BagBase(Node):
    """The state of a bag, and how its operations make others."""

    __slots__ = ("_name", "_npartitions")

    _name: str
    _npartitions: int

    @property
    def name(self) -> str:
        """What the keys of its partitions begin with: they are ``(name, 0)``, ``(name, 1)``, ..."""
        return self._name

    @property
    def npartitions(self) -> int:
        """How many partitions it has."""
        return self._npartitions

    @classmethod
    def _make(cls, name: str, npartitions: int, layer: Mapping[Any, Any], parents: Iterable[Any]) -> Bag:
        bag = object.__new__(cls)
        bag._name = name
        bag._npartitions = npartitions
        bag._fill(layer, parents)
        return bag  # type: ignore[return-value]

    def _keys(self) -> list[tuple[str, int]]:
        name = self._name
        return [(name, i) for i in range(self._npartitions)]

    def _each(
        self, step: Step, label: str, token: tuple[Any, ...], extra: Sequence[Any] = (), parents: Iterable[Any] = ()
    ) -> Bag:
        """The bag that a step makes of each partition.

        Args:
            step: called with a partition and ``extra``.
            label: what the name begins with.
            token: what makes the step what it is.
            extra: further arguments, as they stand in a task.
            parents: the collections that they refer to.
        """
        name = f"{label}-{tokenize(label, self._name, *token)}"
        mine = self._name
        layer = {(name, i): (step, (mine, i), *extra) for i in range(self._npartitions)}
        return self._make(name, self._npartitions, layer, (self, *parents))

    def __dask_keys__(self) -> list[Any]:
        return self._keys()

    def __dask_tokenize__(self) -> Any:
        return self._name

    def __dask_postcompute__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return concatenated, ()

    def __dask_postpersist__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _rebuilt_bag, (type(self), self._name, self._npartitions)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored_bag, (
            type(self),
            self._name,
            self._npartitions,
            self.__dask_graph__(),
            self.__taskloom_annotations__(),
        )


class Restored(Node):
    """The graph behind an unpickled bag or item, with the annotations that its tasks had."""

    __slots__ = ("_notes",)

    _notes: Mapping[Any, Mapping[str, Any]]

    def __init__(self, graph: Mapping[Any, Any], notes: Mapping[Any, Mapping[str, Any]]) -> None:
        self._fill(graph, ())
        self._annotated = None
        self._notes = notes


def _renamed(name: str, rename: Mapping[str, str] | None) -> str:
    return rename.get(name, name) if rename else name


def _rebuilt_item(graph: Mapping[Any, Any], key: Any, *, rename: Mapping[str, str] | None = None) -> Item:
    key = (_renamed(key[0], rename), *key[1:]) if type(key) is tuple else _renamed(key, rename)
    return Item(graph, key)


def _restored_item(key: Any, graph: Mapping[Any, Any], notes: Mapping[Any, Mapping[str, Any]]) -> Item:
    item = Item._make(key, {}, (Restored(graph, notes),))
    item._annotated = None
    return item


def _rebuilt_bag(
    graph: Mapping[Any, Any],
    cls: type[BagBase],
    name: str,
    npartitions: int,
    *,
    rename: Mapping[str, str] | None = None,
) -> Bag:
    return cls._make(_renamed(name, rename), npartitions, graph, ())


def _restored_bag(
    cls: type[BagBase], name: str, npartitions: int, graph: Mapping[Any, Any], notes: Mapping[Any, Mapping[str, Any]]
) -> Bag:
    bag = cls._make(name, npartitions, {}, (Restored(graph, notes),))
    bag._annotated = None
    return bag
