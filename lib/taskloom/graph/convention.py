"""The graph convention, dask's, in both of its forms, told apart by duck typing: dask itself is never imported.

A graph is a mapping ``key -> computation``. A computation is

- a task: a tuple whose first item is callable; the rest are its arguments, computations themselves;
- a key of the graph: an alias;
- a list of computations, nested as deep as one likes;
- a graph node: an object that has ``dependencies`` (keys) and is called with a mapping of their values, as
  ``dask._task_spec``'s ``Task``, ``List`` or ``Dict`` are; one with ``target`` is an alias, one with ``value`` is data;
- anything else: a literal. So is a tuple that is neither a task nor a key, and what is inside of it.

A key is hashable; by habit a string or a tuple such as ``("x", 0, 1)``. ``True``, ``False`` and ``None`` as arguments are
never taken for keys, although ``True == 1``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

from taskloom.errors import InvalidGraphError

__all__ = [
    "ATOM",
    "HASHABLE",
    "LIST",
    "NODE",
    "REF",
    "TUPLE",
    "Graph",
    "Key",
    "as_mapping",
    "flatten_keys",
    "is_task",
    "kind_of",
    "new_kinds",
    "short",
]

Key: TypeAlias = Hashable
Graph: TypeAlias = Mapping[Any, Any]

# What a value can be in a graph, decided by its type alone.
ATOM = 0  # never a key and never looked into
HASHABLE = 1  # a key if the graph has it, else a literal
TUPLE = 2  # a task if its first item is callable, else like HASHABLE
LIST = 3  # computations inside
NODE = 4  # a graph node of dask's newer form
REF = 5  # a reference to a key (dask's TaskRef, a future): an object that is nothing but a key

_KINDS: dict[type, int] = {
    bool: ATOM,
    type(None): ATOM,
    bytearray: ATOM,
    memoryview: ATOM,
    dict: ATOM,
    set: ATOM,
    slice: ATOM,
    type(...): ATOM,
    type: ATOM,
    FunctionType: ATOM,
    BuiltinFunctionType: ATOM,
    MethodType: ATOM,
    ModuleType: ATOM,
    str: HASHABLE,
    bytes: HASHABLE,
    int: HASHABLE,
    float: HASHABLE,
    complex: HASHABLE,
    tuple: TUPLE,
    list: LIST,
}


def new_kinds() -> dict[type, int]:
    """A table type -> kind to begin with; :func:`kind_of` adds to it the types that a graph shows."""
    return _KINDS.copy()


def kind_of(value: Any, kinds: dict[type, int]) -> int:
    """The kind of a value whose type is not in ``kinds`` yet, which is added."""
    cls = type(value)
    if getattr(value, "__dask_future__", False) is True or _is_reference(cls):
        kind = REF
    elif not isinstance(value, type) and hasattr(cls, "dependencies") and callable(value):
        kind = NODE
    elif cls.__hash__ is None:
        kind = ATOM
    else:
        kind = HASHABLE
    kinds[cls] = kind
    return kind


def _is_reference(cls: type) -> bool:
    return any(base.__name__ == "TaskRef" and base.__module__.startswith("dask") for base in cls.__mro__)


def is_task(value: Any) -> bool:
    """Whether a value of a graph is a task in the tuple form: a tuple whose first item is callable."""
    return type(value) is tuple and bool(value) and callable(value[0])


def as_mapping(graph: Any) -> Graph:
    """The mapping behind a graph, or behind a collection that has one.

    Args:
        graph: a mapping, or an object with ``__dask_graph__()`` (a collection, an expression).

    Raises:
        InvalidGraphError: it is neither.
    """
    if type(graph) is dict:
        return graph
    method: Callable[[], Any] | None = getattr(graph, "__dask_graph__", None)
    if method is not None and not isinstance(graph, (Mapping, type)):
        graph = method()
        if graph is None:
            raise InvalidGraphError("__dask_graph__() returned None: this is no collection that can be computed")
    if not isinstance(graph, Mapping):
        raise InvalidGraphError(
            "a graph is a mapping such as {'x': 1, 'y': (func, 'x')}, or a collection with __dask_graph__(); "
            f"this is {type(graph).__name__}: {short(graph)}"
        )
    # dask's HighLevelGraph and friends look a key up through their layers each time: one pass makes a plain dict
    return graph if isinstance(graph, dict) else dict(graph)


def flatten_keys(keys: Any) -> Iterable[Key]:
    """The keys in arbitrarily nested lists of keys, from left to right."""
    if type(keys) is not list:
        yield keys
        return
    stack = [iter(keys)]
    while stack:
        for item in stack[-1]:
            if type(item) is list:
                stack.append(iter(item))
                break
            yield item
        else:
            stack.pop()


def short(value: object, most: int = 80) -> str:
    """The repr of a value for a message, cut where it is long; never an error."""
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= most else text[: most - 3] + "..."
