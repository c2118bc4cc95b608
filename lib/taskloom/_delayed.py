"""``delayed``: ordinary Python calls that are written down as a graph instead of being done.

A :class:`Delayed` holds its own task and its parents, never a whole graph: building a step costs the same however
much is behind it, and the graph is put together once, when it is asked for.

In the tasks, what the user gave as data stays data: whatever could be taken for a key, a task or a graph node is quoted.
Numbers are left bare, because no key made here is a number.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import os
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from taskloom import config
from taskloom._collections.annotations import current as _annotations
from taskloom._collections.protocol import (
    ITERATORS,
    Collection,
    cannot_rebuild,
    expression_of,
    is_collection,
    is_namedtuple,
    quote,
)
from taskloom._collections.running import get_threads
from taskloom._collections.tokens import name_by, tokenize
from taskloom.errors import MissingKeyError
from taskloom.graph.node import Literal, Named
from taskloom.graph.optimize import cull

__all__ = ["Delayed", "delayed"]

_NOTHING: Any = object()  # no argument was given; None is a value like any other


def delayed(
    obj: Any = _NOTHING,
    *,
    name: str | None = None,
    pure: bool | None = None,
    nout: int | None = None,
    traverse: bool = True,
) -> Any:
    """Make a function or value lazy; also a decorator, with or without arguments.

    Args:
        obj: a function or class, whose calls then become tasks; or any value, on which operators, attributes, methods
            and indexing become tasks. Lists, dicts and so on with collections in them become a task that makes the
            same with their values.
        name: the key of the object itself (not of calls of it); by default a new one each time, or, with ``pure``, one
            made from what it is.
        pure: whether equal calls are one task: their keys are then made from function and arguments. By default
            the setting ``delayed.pure``, False. Attributes, operators and indexing always are.
        nout: how many values a call returns, so that its result can be unpacked: ``a, b = f(x)``.
        traverse: whether to look for collections in a list or other container given as ``obj``.

    Returns:
        A :class:`Delayed`; what is one already, as it is. A collection of another kind becomes a Delayed of its value.

    Calls take two arguments that are not handed to the function: ``pure=``, as above, and ``task_key=`` (or, as in
    dask, ``dask_key_name=``), the key of the task.

    >>> @delayed
    ... def add(a, b):
    ...     return a + b
    >>> total = add(1, 2) * 10
    >>> total.compute()
    30
    >>> delayed(divmod, nout=2)(7, 2)[1].compute()
    1
    """
    if obj is _NOTHING:

        def decorate(obj: Any) -> Any:
            return delayed(obj, name=name, pure=pure, nout=nout, traverse=traverse)

        return decorate
    if isinstance(obj, Delayed):
        return obj
    if nout is not None and (isinstance(nout, bool) or not isinstance(nout, int) or nout < 0):
        raise ValueError(f"nout is how many values there are, a whole number of 0 or more, or None; not {nout!r}")
    if name is not None:
        _check_key(name)
    parents: list[Delayed] = []
    if traverse or is_collection(obj):
        task = _searched(obj, parents)
        if parents:
            if name is None and len(parents) == 1 and task == parents[0]._key:
                return parents[0]  # a collection of another kind
            label = type(obj).__name__
            key = name if name is not None else f"{label}-{tokenize(obj) if _is_pure(pure) else _unique()}"
            return _new(Delayed, key, task, tuple(parents), nout)
    if name is None:
        label = _label(obj)
        name = f"{label}-{tokenize(obj) if _is_pure(pure) else _unique()}"
    return DelayedLeaf(obj, name, pure, nout)


class Delayed(Collection):
    """A value that will be computed; made by :func:`delayed` and by what is done with such values.

    Args:
        key: a string, or a tuple that begins with one.
        graph: a graph that has the key.
        length: how many items the value has, if it is to be unpacked.

    Raises:
        TypeError: the key cannot be one.
        MissingKeyError: the graph has no such key.

    >>> Delayed("x", {"a": 1, "x": (sum, ["a", 10])}).compute()
    11
    """

    __slots__ = ("__weakref__", "_annotated", "_key", "_length", "_parents", "_task")

    _key: Any
    _task: Any  # the task of the key, or _GRAPH
    _parents: Any  # the Delayed whose keys the task refers to, or, with _GRAPH, the whole graph
    _length: int | None
    _annotated: Mapping[str, Any] | None  # the annotations of the block in which it was made

    def __init__(self, key: Any, graph: Mapping[Any, Any], length: int | None = None) -> None:
        _check_key(key)
        if key not in graph:
            raise MissingKeyError(f"the graph has no key {key!r} (it has {len(graph)} keys)")
        _fill(self, key, _GRAPH, graph, length)

    @property
    def key(self) -> Any:
        """The key of its task."""
        return self._key

    @property
    def dask(self) -> dict[Any, Any]:
        """The graph; dask's name for it."""
        return self.__dask_graph__()

    def __dask_graph__(self) -> dict[Any, Any]:
        return _merge([self])

    __taskloom_merge__ = staticmethod(lambda members: _merge(members))
    __dask_scheduler__ = staticmethod(get_threads)
    __dask_optimize__ = staticmethod(cull)

    def __dask_keys__(self) -> list[Any]:
        return [self._key]

    def __dask_tokenize__(self) -> Any:
        return self._key

    def __dask_postcompute__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _first, ()

    def __dask_postpersist__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _rebuilt, (self._key, self._length)

    def __taskloom_annotations__(self) -> dict[Any, Mapping[str, Any]]:
        return {node._key: node._annotated for node in _walk([self]) if node._annotated is not None}

    def __reduce__(self) -> tuple[Any, ...]:
        # flat, however long the chain of parents is
        return _restored, (self._key, self.__dask_graph__(), self._length, self.__taskloom_annotations__())

    def __repr__(self) -> str:
        return f"Delayed({self._key!r})"

    def __hash__(self) -> int:
        return hash(self._key)

    def __dir__(self) -> list[str]:
        return dir(type(self))

    def __call__(
        self, /, *args: Any, pure: bool | None = None, task_key: Any = None, dask_key_name: Any = None, **kwargs: Any
    ) -> Delayed:
        return _call(_apply, "call", self, args, kwargs, pure, task_key, dask_key_name, None)

    def __getattr__(self, name: str) -> Any:
        # what begins with an underscore is asked for by the machinery of Python and of libraries, not by users
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return DelayedAttr(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise TypeError(
            "a Delayed cannot be changed: make a new one, by a delayed function that returns what is wanted"
        )

    def __delattr__(self, name: str) -> None:
        raise TypeError("a Delayed cannot be changed")

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "a Delayed cannot be changed: make a new one, by a delayed function that returns what is wanted"
        )

    def __delitem__(self, index: Any) -> None:
        raise TypeError("a Delayed cannot be changed")

    def __iter__(self) -> Iterator[Delayed]:
        if self._length is None:
            raise TypeError(
                f"{self!r} cannot be iterated or unpacked, because how many items it has is known only when it is "
                "computed; say so with delayed(..., nout=2), or compute it first"
            )
        return iter([operator.getitem(self, place) for place in range(self._length)])

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError(
                f"{self!r} has no length before it is computed; say it with delayed(..., nout=2), or use delayed(len)(x)"
            )
        return self._length

    def __bool__(self) -> bool:
        raise TypeError(
            f"{self!r} is neither true nor false before it is computed: if, while, and, or, not and comparisons in a "
            "row cannot be delayed. Compute it first, or put the decision into a delayed function"
        )

    def __int__(self) -> int:
        raise TypeError(f"int() cannot be delayed; use delayed(int)({self!r:.40}), or compute it first")

    def __contains__(self, item: Any) -> bool:
        raise TypeError(f"'in' cannot be delayed; use delayed(operator.contains)(x, {item!r:.40})")

    def __pow__(self, other: Any, modulo: Any = None) -> Delayed:
        return _operation(pow, "pow", (self, other) if modulo is None else (self, other, modulo))

    def __rpow__(self, other: Any) -> Delayed:
        return _operation(pow, "pow", (other, self))

    # the other operators are added at the end of this module

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """A delayed function in a class is a method."""
        return self if instance is None else types.MethodType(self, instance)


_set_key = vars(Delayed)["_key"].__set__
_set_task = vars(Delayed)["_task"].__set__
_set_parents = vars(Delayed)["_parents"].__set__
_set_length = vars(Delayed)["_length"].__set__
_set_annotated = vars(Delayed)["_annotated"].__set__
_make = object.__new__


def _name_of(node: Delayed) -> bytes:
    key = node._key
    text = (key if type(key) is str else repr(key)).encode("utf-8", "surrogatepass")
    return b"%b%d:%b" % (b"k" if type(key) is str else b"K", len(text), text)


name_by(Delayed, _name_of)


_GRAPH: Any = object()  # in the place of a task: the parents are a whole graph


def _fill(node: Delayed, key: Any, task: Any, parents: Any, length: int | None) -> None:
    """Set the slots of a new Delayed, past its own refusal to be changed."""
    _set_key(node, key)
    _set_task(node, task)
    _set_parents(node, parents)
    _set_length(node, length)
    _set_annotated(node, _annotations.get())


def _new(cls: type, key: Any, task: Any, parents: tuple[Delayed, ...], length: int | None = None) -> Delayed:
    node: Delayed = _make(cls)
    _fill(node, key, task, parents, length)
    return node


class DelayedLeaf(Delayed):
    """A function or value of the user's."""

    __slots__ = ("_callables", "_label", "_nout", "_obj", "_pure")

    def __init__(self, obj: Any, key: Any, pure: bool | None, nout: int | None) -> None:
        _fill(self, key, quote(obj), (), nout)
        put = object.__setattr__
        put(self, "_obj", obj)
        put(self, "_pure", pure)
        put(self, "_nout", nout)
        put(self, "_label", _label(obj))
        put(self, "_callables", None)

    def __call__(
        self, /, *args: Any, pure: bool | None = None, task_key: Any = None, dask_key_name: Any = None, **kwargs: Any
    ) -> Delayed:
        function = self._obj
        if not callable(function):  # a task with it in front would be no task but data
            raise TypeError(f"{type(function).__name__!r} object is not callable: {self!r} is no delayed function")
        if kwargs:
            function = self._with_names(tuple(kwargs))
        if pure is None:
            pure = self._pure
        return _call(function, self._label, None, args, kwargs, pure, task_key, dask_key_name, self._nout)

    def _with_names(self, names: tuple[str, ...]) -> Any:
        # one object for all calls with these names: schedulers send a function once
        made = self._callables
        if made is None:
            made = {}
            object.__setattr__(self, "_callables", made)
        function = made.get(names)
        if function is None:
            function = made[names] = Named(self._obj, names)
        return function

    @property
    def __name__(self) -> str:
        return self._obj.__name__  # type: ignore[no-any-return]

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self._obj.__doc__  # type: ignore[no-any-return]

    @property
    def __wrapped__(self) -> Any:
        if not callable(self._obj):
            raise AttributeError("'DelayedLeaf' object has no attribute '__wrapped__'")
        return self._obj

    def __reduce__(self) -> tuple[Any, ...]:
        obj = self._obj
        if isinstance(obj, types.FunctionType):
            place: Any = sys.modules.get(obj.__module__)
            for part in obj.__qualname__.split("."):
                place = getattr(place, part, None)
            if place is self and obj.__module__ != "__main__":  # decorated: its name in the module is ours
                return _imported, (obj.__module__, obj.__qualname__)
        return _restored_leaf, (obj, self._key, self._pure, self._nout, self._annotated)


class DelayedAttr(Delayed):
    """An attribute of a delayed value: called, it is a method."""

    __slots__ = ("_attr", "_of")

    def __init__(self, of: Delayed, attr: str) -> None:
        key = f"{attr}-{tokenize('getattr', of._key, attr)}"
        _fill(self, key, (getattr, of._key, quote(attr)), (of,), None)
        object.__setattr__(self, "_of", of)
        object.__setattr__(self, "_attr", attr)

    def __getattr__(self, name: str) -> Any:
        if name == "dtype" and self._attr == "dtype":  # numpy.dtype(x) would ask for ever
            raise AttributeError("'DelayedAttr' object has no attribute 'dtype'")
        return super().__getattr__(name)

    def __call__(
        self, /, *args: Any, pure: bool | None = None, task_key: Any = None, dask_key_name: Any = None, **kwargs: Any
    ) -> Delayed:
        attr = self._attr
        method = _methods.get(attr)
        if method is None:
            method = _methods[attr] = Method(attr)
        return _call(method, attr, self._of, args, kwargs, pure, task_key, dask_key_name, None)

    def __reduce__(self) -> tuple[Any, ...]:
        of = self._of
        return DelayedAttr, (
            _restored(of._key, of.__dask_graph__(), of._length, of.__taskloom_annotations__()),
            self._attr,
        )


name_by(DelayedLeaf, _name_of)
name_by(DelayedAttr, _name_of)


class Method:
    """``Method("upper")(x, ...)`` is ``x.upper(...)``: what the task of a method call calls."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        return getattr(obj, self.name)(*args, **kwargs)

    @property
    def __name__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Method({self.name!r})"


_methods: dict[str, Method] = {}


def _apply(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """The task of calling a value that is itself computed."""
    return function(*args, **kwargs)


def _call(
    function: Callable[..., Any],
    label: str,
    head: Delayed | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    pure: bool | None,
    key: Any,
    dask_key: Any,
    nout: int | None,
) -> Delayed:
    """The Delayed of a call; ``head`` is a first argument, before ``args``."""
    if key is None:
        key = dask_key
    if key is not None:
        _check_key(key)
    elif config.get("delayed.pure") if pure is None else pure:
        head_key = None if head is None else head._key
        key = f"{label}-{tokenize(function, head_key, args, kwargs)}"
    else:
        key = f"{label}-{_seed}-{next(_numbers)}"
    task: list[Any] = [function]
    parents: list[Delayed] = []
    if head is not None:
        task.append(head._key)
        parents.append(head)
    if kwargs:
        args = (*args, *kwargs.values())
        if type(function) is not Named:  # a method or a computed function
            task[0] = Named(function, tuple(kwargs))
    kind_at = _kinds.get
    for arg in args:
        kind = kind_at(type(arg))
        if kind == _BARE:
            task.append(arg)
        elif kind == _DELAYED:
            task.append(arg._key)
            parents.append(arg)
        else:
            task.append(_searched(arg, parents))
    return _new(Delayed, key, tuple(task), tuple(parents), nout)


# What an argument is, by its type.
_BARE = 0  # stands in the graph as it is: no key, nothing inside that counts
_DELAYED = 1
_QUOTED = 2  # data that could be taken for a key or a task
_NESTED = 3  # a container: looked into
_COLLECTION = 4  # of another kind
_REFERENCE = 5  # a future or another reference to a key that the scheduler knows

_kinds: dict[type, int] = {
    **dict.fromkeys((bool, int, float, complex, type(None), type(...), bytearray), _BARE),
    **dict.fromkeys((types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type), _BARE),
    **dict.fromkeys((Delayed, DelayedLeaf, DelayedAttr), _DELAYED),
    **dict.fromkeys((str, bytes), _QUOTED),
    **dict.fromkeys((list, tuple, dict, OrderedDict, set, frozenset, slice, *ITERATORS), _NESTED),
}


def _kind_of(value: Any) -> int:
    """The kind of a value whose type is not in the table yet; added to it where the type alone decides."""
    cls = type(value)
    if isinstance(value, Delayed):
        kind = _DELAYED
    elif hasattr(cls, "__dask_graph__"):
        if is_collection(value):
            return _COLLECTION
        return _NESTED if dataclasses.is_dataclass(cls) else _QUOTED
    elif getattr(value, "__dask_future__", False) is True or any(
        base.__name__ == "TaskRef" and base.__module__.startswith("dask") for base in cls.__mro__
    ):
        return _REFERENCE
    elif dataclasses.is_dataclass(cls) or is_namedtuple(cls):
        kind = _NESTED
    elif isinstance(value, type) or (cls.__hash__ is None and not hasattr(cls, "dependencies")):
        kind = _BARE
    else:
        kind = _QUOTED
    if len(_kinds) > 2000:  # a program that makes classes without end
        for old in list(_kinds)[1000:]:
            _kinds.pop(old, None)
    _kinds[cls] = kind
    return kind


def _searched(value: Any, parents: list[Delayed]) -> Any:
    """The same as _computation, for what the user gave as a whole."""
    try:
        return _computation(value, parents)
    except RecursionError:
        raise RecursionError(
            f"an argument of type {type(value).__name__} is nested too deep to be searched for delayed values, or has "
            "itself inside; if there are none in it, hand it over as delayed(argument, traverse=False)"
        ) from None


def _computation(value: Any, parents: list[Delayed]) -> Any:
    """What stands for an argument in a graph; the Delayed that it refers to are added to ``parents``."""
    kind = _kinds.get(type(value))
    if kind is None:
        kind = _kind_of(value)
    if kind in (_BARE, _REFERENCE):
        return value
    if kind == _DELAYED:
        parents.append(value)
        return value._key
    if kind == _QUOTED:
        return (Literal(value),)
    if kind == _COLLECTION:
        node = _value_of(value)
        parents.append(node)
        return node._key
    before = len(parents)
    made = _nested(value, parents)
    # nothing lazy inside: the very object that was given
    return made if len(parents) > before or type(value) in ITERATORS else (Literal(value),)


def _nested(value: Any, parents: list[Delayed]) -> Any:
    cls = type(value)
    if cls in ITERATORS:
        value, cls = list(value), list
        return _computation(value, parents)
    if cls is list:
        return [_computation(item, parents) for item in value]
    if cls is tuple or cls is set or cls is frozenset:
        return (cls, [_computation(item, parents) for item in value])
    if cls is dict or cls is OrderedDict:
        return (cls, [[_computation(key, parents), _computation(item, parents)] for key, item in value.items()])
    if cls is slice:
        return (slice, *[_computation(item, parents) for item in (value.start, value.stop, value.step)])
    if is_namedtuple(cls):
        return (cls._make, [_computation(item, parents) for item in value])
    # a dataclass
    before = len(parents)
    fields = [field for field in dataclasses.fields(cls) if hasattr(value, field.name)]
    items = [_computation(getattr(value, field.name), parents) for field in fields]
    if len(parents) == before:
        return None
    wrong = [field.name for field in fields if not field.init]
    if wrong or "__init__" not in vars(cls) or not cls.__dataclass_params__.init:
        reason = f"the field {wrong[0]!r} has init=False" if wrong else "it has an __init__ of its own"
        raise TypeError(cannot_rebuild(cls, reason))
    return (Named(cls, tuple([field.name for field in fields])), *items)


def _value_of(collection: Any) -> Delayed:
    """The value of a collection of another kind, as a Delayed."""
    expression = expression_of(collection)
    if expression is not None:
        # dask's expressions know how to join their parts
        final = expression.finalize_compute().optimize(fuse=True)
        keys = final.__dask_keys__()
        if len(keys) == 1 and type(keys[0]) is not list:
            return Delayed(keys[0], dict(final.__dask_graph__()))
    keys = collection.__dask_keys__()
    graph = collection.__dask_graph__()
    how = getattr(collection, "__dask_optimize__", None)
    if how is not None:
        graph = how(graph, keys)
    finalize, args = collection.__dask_postcompute__()
    if finalize is _first and not args:
        return Delayed(keys[0], graph)
    key = f"finalize-{tokenize(keys, finalize, args)}"
    return Delayed(key, {**graph, key: (finalize, keys, *[quote(arg) for arg in args])})


def _walk(roots: Sequence[Delayed]) -> Iterator[Delayed]:
    """Delayed values and all that they need, each key once."""
    seen = {root._key: root for root in roots}
    stack = list(seen.values())
    while stack:
        node = stack.pop()
        yield node
        if node._task is not _GRAPH:
            for parent in node._parents:
                if parent._key not in seen:
                    seen[parent._key] = parent
                    stack.append(parent)


def _merge(roots: Sequence[Delayed]) -> dict[Any, Any]:
    """The graph of Delayed values together. What is shared, graphs handed in as such too, is visited once."""
    graph: dict[Any, Any] = {}
    merged: set[int] = set()
    for node in _walk(roots):
        if node._task is not _GRAPH:
            graph[node._key] = node._task
        elif id(node._parents) not in merged:
            merged.add(id(node._parents))
            graph.update(node._parents)
    return graph


def _first(values: Sequence[Any]) -> Any:
    return values[0]


def _rebuilt(
    graph: Mapping[Any, Any], key: Any, length: int | None, *, rename: Mapping[str, str] | None = None
) -> Delayed:
    if rename:
        key = (rename.get(key[0], key[0]), *key[1:]) if type(key) is tuple else rename.get(key, key)
    return Delayed(key, graph, length)


def _restored(key: Any, graph: Mapping[Any, Any], length: int | None, annotated: Mapping[Any, Any]) -> Delayed:
    node = Delayed(key, graph, length)
    _set_annotated(node, annotated.get(key))
    return node


def _restored_leaf(obj: Any, key: Any, pure: bool | None, nout: int | None, annotated: Any) -> DelayedLeaf:
    node = DelayedLeaf(obj, key, pure, nout)
    _set_annotated(node, annotated)
    return node


def _imported(module: str, qualname: str) -> Any:
    import importlib

    place: Any = importlib.import_module(module)
    for part in qualname.split("."):
        place = getattr(place, part)
    return place


def _check_key(key: Any) -> None:
    if not (isinstance(key, str) and key) and not (type(key) is tuple and key and isinstance(key[0], str)):
        raise TypeError(
            f"a key is a string such as 'x', or a tuple that begins with one, such as ('x', 0); not {key!r}"
        )


def _is_pure(pure: bool | None) -> bool:
    return bool(config.get("delayed.pure") if pure is None else pure)


def _label(obj: Any) -> str:
    """What keys of an object or of its calls begin with: a readable name."""
    for _ in range(8):
        inner = getattr(obj, "func", None) if not isinstance(obj, type) else None
        if inner is None or not callable(inner):
            break
        obj = inner
    name = getattr(obj, "__name__", None)
    if not isinstance(name, str):
        name = type(obj).__name__
    return "lambda" if name == "<lambda>" else name


# Keys that are made nowhere else: a number of this process's own, and a count.
_seed = os.urandom(6).hex()
_numbers = count()


def _unique() -> str:
    return f"{_seed}-{next(_numbers)}"


def _reseed() -> None:
    global _seed
    _seed = os.urandom(6).hex()


os.register_at_fork(after_in_child=_reseed)


def _operation(function: Callable[..., Any], label: str, args: tuple[Any, ...]) -> Delayed:
    """The Delayed of an operator. Operators are pure: ``x + y`` twice is one task."""
    return _call(function, label, None, args, {}, None, f"{label}-{tokenize('operator', label, args)}", None, None)


def _unary(function: Callable[[Any], Any], label: str) -> Callable[[Any], Delayed]:
    return lambda self: _operation(function, label, (self,))


def _binary(function: Callable[[Any, Any], Any], label: str, swapped: bool) -> Callable[[Any, Any], Delayed]:
    if swapped:
        return lambda self, other: _operation(function, label, (other, self))
    return lambda self, other: _operation(function, label, (self, other))


def _add_operators() -> None:
    for name in ("abs", "neg", "pos", "invert"):
        setattr(Delayed, f"__{name}__", _unary(getattr(operator, name), name))
    for name in ("trunc", "floor", "ceil"):
        setattr(Delayed, f"__{name}__", _unary(getattr(math, name), name))
    for name in ("eq", "ne", "lt", "le", "gt", "ge", "getitem"):
        setattr(Delayed, f"__{name}__", _binary(getattr(operator, name), name, False))
    both = {name: getattr(operator, name) for name in ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod")}
    both |= {"and": operator.and_, "or": operator.or_, "xor": operator.xor, "divmod": divmod}
    both |= {"lshift": operator.lshift, "rshift": operator.rshift}
    for name, function in both.items():
        setattr(Delayed, f"__{name}__", _binary(function, name, False))
        setattr(Delayed, f"__r{name}__", _binary(function, name, True))


_add_operators()
