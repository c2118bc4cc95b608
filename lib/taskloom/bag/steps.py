"""What a bag's tasks call. A step takes a partition, an iterable of items, and makes another partition or a value of it.

Between tasks a partition is a list: it can be used several times and sent to another process. Within a task it need not
be one. A step that makes its items one by one has a function that returns an iterator, and a step that takes items one
by one says so; where the optimizer puts two such steps into one task (see :mod:`taskloom.bag.optimize`), items stream from
the one to the other, and no list is made. Called as a task by itself, a step returns a list, so a graph that was
not optimized is right too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import partial
from itertools import chain
from typing import Any, Final, Literal, TypeAlias

__all__ = [
    "EMPTY",
    "NO_DEFAULT",
    "Each",
    "Empty",
    "Pipeline",
    "Step",
    "Text",
    "as_partition",
    "concatenated",
    "function_label",
    "guarded",
]


class Empty(Enum):
    """What an aggregation makes of no items at all, where it has no value for that. A member pickles as itself."""

    EMPTY = "no items"


EMPTY: Final = Empty.EMPTY


class _Default(Enum):
    NONE = "no default"


NO_DEFAULT: Any = _Default.NONE  # an argument that was not given, where None is a value like any other
IsEmpty: TypeAlias = Literal[Empty.EMPTY]
Text: TypeAlias = str  # in classes where `str` is a method


def function_label(function: Any) -> str:
    """A short name of a function, for the names of tasks."""
    for _ in range(8):
        inner = getattr(function, "func", None)
        if inner is None or not callable(inner):
            break
        function = inner
    name = getattr(function, "__name__", None)
    if not isinstance(name, str):
        name = type(function).__name__
    return "lambda" if name == "<lambda>" else name


def as_partition(value: Any) -> Any:
    """A value that can be kept and sent: an iterator becomes a list, anything else stays what it is."""
    return list(value) if isinstance(value, Iterator) else value


class Each:
    """A builtin that calls a function of the user's for each item, such as ``map``, as the function of a step.

    The builtins take a StopIteration out of the function for the end of their items, and what is left would be lost
    without a word. So the items are followed by a mark that says that their end was reached, and what is made of them by
    a look at it: two links in a chain, which cost no Python code an item.

    Args:
        builtin: called with the function and the items.
        func: the function.
    """

    __slots__ = ("builtin", "func")

    def __init__(self, builtin: Callable[[Any, Any], Iterable[Any]], func: Callable[..., Any] | None) -> None:
        self.builtin = builtin
        self.func = func

    def __call__(self, items: Iterable[Any]) -> Iterator[Any]:
        return guarded(partial(self.builtin, self.func), items, self.func)


def guarded(make: Callable[[Any], Iterable[Any]], items: Iterable[Any], func: Any) -> Iterator[Any]:
    """What ``make`` makes of items, and an error if it ends before they do."""
    seen: list[None] = []
    return chain(make(chain(items, _mark(seen))), _look(seen, func))


def _mark(seen: list[None]) -> Iterator[Any]:
    seen.append(None)
    return
    yield


def _look(seen: list[None], func: Any) -> Iterator[Any]:
    if not seen:
        raise RuntimeError(
            f"{function_label(func)} raised StopIteration, which would have ended the partition before its last item; "
            "next(..., default) does not raise it"
        )
    return
    yield


class Step:
    """The function of a task of a bag.

    Args:
        function: takes partitions, then maybe other values.
        label: what people call it.
        streams: how many of its first arguments may be iterators: it goes over each once, from the front.
        lazy: whether it returns an iterator that goes over its input as it is gone over itself.
        loose: whether it may return an iterator or not: a function of the user's.
    """

    __slots__ = ("function", "label", "lazy", "loose", "streams")

    def __init__(
        self, function: Callable[..., Any], label: str, *, streams: int = 0, lazy: bool = False, loose: bool = False
    ) -> None:
        self.function = function
        self.label = label
        self.streams = streams
        self.lazy = lazy
        self.loose = loose

    def __call__(self, *args: Any) -> Any:
        value = self.function(*args)
        if self.lazy:
            return list(value)
        return as_partition(value) if self.loose else value

    def __reduce__(self) -> tuple[Any, ...]:
        return _step, (self.function, self.label, self.streams, self.lazy, self.loose)

    @property
    def __name__(self) -> str:
        return self.label

    def __repr__(self) -> str:
        return f"<step {self.label}>"


def _step(function: Callable[..., Any], label: str, streams: int, lazy: bool, loose: bool) -> Step:
    return Step(function, label, streams=streams, lazy=lazy, loose=loose)


_DEEPEST = 200  # iterators in a row


class Pipeline:
    """Several steps as the function of one task: each takes what the one before it made.

    The arguments are those of the first step, then, for each of the others, those after its first.

    Args:
        steps: pairs of a step and how many arguments it takes from the task.
        ends: whether the value leaves the task, so that it must be no iterator.
    """

    __slots__ = ("ends", "steps")

    def __init__(self, steps: tuple[tuple[Step, int], ...], ends: bool = True) -> None:
        self.steps = steps
        self.ends = ends

    def __call__(self, *args: Any) -> Any:
        try:
            step, at = self.steps[0]
            value = step.function(*args[:at])
            for n, (following, taken) in enumerate(self.steps[1:], 1):
                if step.lazy or step.loose:
                    # iterators that call each other use the C stack: a long chain of them would overflow it
                    if not following.streams or not n % _DEEPEST:
                        value = as_partition(value)
                step = following
                value = step.function(value, *args[at : at + taken])
                at += taken
            if self.ends and (step.lazy or step.loose):
                value = as_partition(value)
        except Exception as error:
            self.note(error)
            raise
        return value

    def note(self, error: Exception) -> None:
        # What raises is often a builtin, which leaves no line in the traceback, and which step called it
        # cannot be told: all of them are under way at the same time.
        try:
            error.add_note(f"raised while items went through {self.__name__}")
        except Exception:  # a class of errors may forbid it; its message is worth more than our note
            pass

    def __reduce__(self) -> tuple[Any, ...]:
        return Pipeline, (self.steps, self.ends)

    @property
    def __name__(self) -> str:
        labels = [step.label for step, _ in self.steps]
        if len(labels) > 8:
            labels = [*labels[:4], "...", *labels[-3:]]
        return " > ".join(labels)

    def __repr__(self) -> str:
        return f"<pipeline {self.__name__}>"


def concatenated(parts: Iterable[Any]) -> list[Any]:
    """The items of all partitions. What is no partition, because a function of the user's returned it, is an item."""
    items: list[Any] = []
    for part in parts:
        if isinstance(part, list):
            items += part
        elif isinstance(part, Iterable) and not isinstance(part, (str, bytes, bytearray)):
            items.extend(part)
        else:
            items.append(part)
    return items
