"""Annotations: what the user says about tasks beyond what they compute, for schedulers that heed it.

The local schedulers do not: every annotation is a wish about a cluster. A collection keeps the annotations of the
block that it was made in, for the tasks that were made with it; :func:`annotations_of` collects them by key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Real
from typing import Any

__all__ = ["annotate", "annotations_of", "current", "get_annotations"]

# Never changed in place, so collections may keep what they read from it.
current: ContextVar[Mapping[str, Any] | None] = ContextVar("taskloom_annotations", default=None)


@contextmanager
def annotate(
    *,
    priority: float | None = None,
    retries: int | None = None,
    workers: str | Iterable[str] | None = None,
    resources: Mapping[str, float] | None = None,
    **others: Any,
) -> Iterator[None]:
    """Annotate the tasks of every collection made in this block, in this thread or asyncio task.

    Blocks nest; the inner one adds to the outer, and overrides what both say.

    Args:
        priority: tasks with a greater number go first.
        retries: how many times a task that raised is tried again.
        workers: addresses or names of the workers that may run the tasks.
        resources: how much of what a task takes while it runs, such as ``{"GPU": 1}``.
        others: anything else, handed on as it is.

    Raises:
        TypeError, ValueError: one of the four is not what it has to be.

    >>> import taskloom
    >>> with annotate(priority=10, retries=2):
    ...     x = taskloom.delayed(abs)(-1)
    >>> annotations_of(x)[x.key]
    {'priority': 10, 'retries': 2}
    """
    added: dict[str, Any] = dict(others)
    if priority is not None:
        added["priority"] = _number("priority", priority)
    if retries is not None:
        if isinstance(retries, bool) or not isinstance(retries, int):
            raise TypeError(f"retries is a whole number, not {retries!r}")
        if retries < 0:
            raise ValueError(f"retries is 0 or more, not {retries}")
        added["retries"] = retries
    if workers is not None:
        added["workers"] = [workers] if isinstance(workers, str) else list(workers)
        if not all(isinstance(worker, str) for worker in added["workers"]):
            raise TypeError(f"workers are addresses or names of workers, not {workers!r}")
    if resources is not None:
        if not isinstance(resources, Mapping):
            raise TypeError(f"resources is a mapping such as {{'GPU': 1}}, not {resources!r}")
        added["resources"] = {name: _number(f"the resource {name!r}", amount) for name, amount in resources.items()}
    token = current.set({**(current.get() or {}), **added})
    try:
        yield
    finally:
        current.reset(token)


def _number(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is a number, not {value!r}")
    return value


def get_annotations() -> dict[str, Any]:
    """The annotations that a collection made here and now would get.

    >>> with annotate(retries=1):
    ...     get_annotations()
    {'retries': 1}
    """
    return dict(current.get() or {})


def annotations_of(*collections: Any) -> dict[Any, dict[str, Any]]:
    """The annotations of the tasks of collections: key -> annotations, only for keys that have any.

    A collection of ours tells them by a method ``__taskloom_annotations__()`` that returns such a mapping; one without
    it has none.
    """
    found: dict[Any, dict[str, Any]] = {}
    for collection in collections:
        tell: Callable[[], Mapping[Any, Mapping[str, Any]]] | None
        tell = getattr(collection, "__taskloom_annotations__", None)
        if tell is not None:
            found.update({key: dict(annotations) for key, annotations in tell().items()})
    return found
