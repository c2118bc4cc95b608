"""What calls of a client are given: whether it is what they take."""

from __future__ import annotations

import inspect
from typing import Any

from taskloom._collections.protocol import is_collection
from taskloom.client.future import Future
from taskloom.client.nested import futures_in, listed
from taskloom.client.signals import check_seconds

__all__ = ["DASKS", "check_call", "check_key", "futures_for", "without_dasks"]

DASKS = frozenset(("allow_other_workers", "fifo_timeout", "actor", "actors"))  # what dask's client takes, and ours not


def check_call(function: Any, timeout: Any) -> None:
    if not callable(function):
        raise TypeError(
            f"what the cluster is to call is a function, not {function!r:.200} of type {type(function).__name__}"
        )
    check_seconds(timeout)


def check_key(key: Any) -> None:
    try:
        hash(key)
    except TypeError as error:
        raise TypeError(f"a key is hashable, such as 'x' or ('x', 0); {key!r:.200} is not: {error}") from None


def futures_for(what: str, data: Any) -> list[Future]:
    """The futures in what a method was given, which takes nothing else."""
    found: list[Future] = []
    stack = [listed(data)]
    while stack:
        item = stack.pop()
        if isinstance(item, Future):
            found.append(item)
        elif isinstance(item, dict):
            stack.extend(reversed(item.values()))
        elif isinstance(item, (list, tuple, set, frozenset)):
            stack.extend(reversed(list(item)))
        elif is_collection(item):
            found += futures_in(dict(item.__dask_graph__()))
        else:
            raise TypeError(
                f"{what} takes a future, a collection made of futures, or lists and dicts of them; "
                f"{item!r:.200}, of type {type(item).__name__}, is none of these"
            )
    return found


def without_dasks(kwargs: dict[str, Any], workers: Any, function: Any = None) -> Any:
    """Take arguments of dask's client out that are not the function's.

    Args:
        kwargs: they are taken out of this.
        workers: who may run it.

    Returns:
        Who may run it after that.

    Raises:
        TypeError: what they ask for is not to be had.
    """
    for name in DASKS.intersection(kwargs):
        if function is not None and _takes(function, name):
            continue
        value = kwargs.pop(name)
        if name == "allow_other_workers" and value:
            if not workers:
                raise TypeError("allow_other_workers=True goes with workers=, and there is none: leave it away")
            workers = None
        elif name in ("actor", "actors") and value:
            raise TypeError(
                f"{name}={value!r}: this client makes no actors. Submit functions, and hand what is to be kept from one to the "
                "next on as a future"
            )
    return workers


def _takes(function: Any, name: str) -> bool:
    """Whether a function takes an argument of this name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin that does not tell
        return True
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return any(
        of.kind is inspect.Parameter.VAR_KEYWORD or (of.name == name and of.kind in by_name) for of in parameters
    )
