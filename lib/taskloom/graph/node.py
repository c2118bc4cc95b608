"""Graph nodes of our own: what the tuple form cannot say."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

__all__ = ["Literal", "Named"]


class Literal:
    """A value that is data, whatever it looks like: no key is looked for in it, no list walked, no tuple called.

    It has the shape of dask's ``DataNode``, so that graphs which hold it run there too.

    Args:
        value: any object; it is handed on as it is, not copied.
    """

    __slots__ = ("key", "value")

    dependencies: frozenset[Hashable] = frozenset()

    def __init__(self, value: Any, key: Hashable = None) -> None:
        self.value = value
        self.key = key

    def __call__(self, values: Any = ()) -> Any:
        return self.value

    def __repr__(self) -> str:
        return f"Literal({self.value!r})"


class Named:
    """A function called with its last arguments by name.

    The values stay in the task, where they can be references, and the function is the same for all such calls.
    """

    __slots__ = ("func", "names")

    def __init__(self, func: Callable[..., Any], names: tuple[str, ...]) -> None:
        self.func = func
        self.names = names

    def __call__(self, /, *args: Any) -> Any:
        names = self.names
        split = len(args) - len(names)
        return self.func(*args[:split], **dict(zip(names, args[split:], strict=True)))

    def __repr__(self) -> str:
        return f"Named({self.func!r}, {self.names!r})"
