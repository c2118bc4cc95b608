"""Futures in nested data, and values in their places."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import GeneratorType
from typing import Any

from taskloom.client.packing import Handle

__all__ = ["futures_in", "with_values"]

_SEQUENCES = (list, tuple, set, frozenset)
_ITERATORS: tuple[type, ...] = (
    GeneratorType,
    map,
    zip,
    filter,
    type(iter([])),
    type(iter(())),
    type({}.values()),
    type({}.keys()),
)


def listed(data: Any) -> Any:
    """The same; what can be read once only, and views of dicts, as lists."""
    if isinstance(data, (*_ITERATORS, Iterator)):
        items: Any = data
        return list(items)
    return data


def futures_in(data: Any) -> list[Any]:
    """All futures in lists, tuples, sets and dicts, as deep as they are."""
    found: list[Any] = []
    stack = [data]
    while stack:
        item = stack.pop()
        if isinstance(item, Handle):
            found.append(item)
        elif isinstance(item, dict):
            stack.extend(reversed(item.values()))
        elif isinstance(item, _SEQUENCES):
            stack.extend(reversed(list(item)))
    return found


def with_values(data: Any, value_of: Callable[[Any], Any], skipped: Any) -> Any:
    """The same data with values instead of futures.

    Args:
        value_of: the value of a future.
        skipped: such values are left out, with the key in a dict.
    """
    if isinstance(data, Handle):
        return value_of(data)
    if isinstance(data, dict):
        pairs = [(key, with_values(item, value_of, skipped)) for key, item in data.items()]
        made = {key: item for key, item in pairs if item is not skipped}
        return made if type(data) is dict else _like(data, made)
    if isinstance(data, _SEQUENCES):
        items = [with_values(item, value_of, skipped) for item in data]
        kept = [item for item in items if item is not skipped]
        if isinstance(data, tuple) and hasattr(type(data), "_make"):
            return type(data)._make([None if item is skipped else item for item in items])  # type: ignore[attr-defined]
        return kept if type(data) is list else _like(data, kept)
    return data


def _like(data: Any, made: Any) -> Any:
    """What was made, as what the data was; a subclass that is made otherwise, as its base."""
    try:
        return type(data)(made)
    except Exception:
        return made
