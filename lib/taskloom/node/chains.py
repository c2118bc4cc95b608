"""Tasks that were handed over together with those that make their inputs: each goes to the threads when its inputs are made.

The thread that makes a value looks here for who waits for it, so the next task of a chain begins without a round trip through the
event loop. Where there is one thread only, none of this is needed: it takes tasks in the order in which they were handed over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["Chains"]


class _Held:
    __slots__ = ("item", "left", "tids")

    def __init__(self, item: Any, tids: tuple[int, ...]) -> None:
        self.item = item
        self.tids = tids
        self.left = len(tids)


class Chains:
    """Tasks that wait for values which tasks before them are making.

    A value is made before :meth:`made` is called, and a task is entered before it is looked whether its inputs are there: so one
    of the two sees the other.

    Args:
        is_there: whether a value is there.
        submit: called, in any thread, with items whose inputs are all there. The first of an item is its key, the second its tid.
    """

    def __init__(self, is_there: Callable[[int], bool], submit: Callable[[list[Any]], object]) -> None:
        self._is_there = is_there
        self._submit = submit
        self._lock = threading.Lock()
        self._waiting: dict[int, list[_Held]] = {}
        self._held: dict[Any, _Held] = {}

    def add(self, item: Any, tids: Iterable[int]) -> None:
        """A task that waits for these."""
        held = _Held(item, tuple(dict.fromkeys(tids)))
        with self._lock:
            self._held[item[0]] = held
            for tid in held.tids:
                self._waiting.setdefault(tid, []).append(held)
        for tid in held.tids:
            if self._is_there(tid):
                self.made(tid)

    def made(self, tid: int) -> None:
        """A value is there."""
        if tid not in self._waiting:
            return
        ready = []
        with self._lock:
            for held in self._waiting.pop(tid, ()):
                held.left -= 1
                if not held.left and self._held.pop(held.item[0], None) is not None:
                    ready.append(held.item)
        if ready:
            self._submit(ready)

    def failed(self, tid: int) -> list[Any]:
        """A value will not be made: the keys of the tasks that cannot begin therefore, and of those that wait for them."""
        keys = []
        stack = [tid]
        while stack and self._waiting:
            for held in self._waiting.get(stack.pop(), [])[:]:
                if self.remove(held.item[0]):
                    keys.append(held.item[0])
                    stack.append(held.item[1])
        return keys

    def remove(self, key: Any) -> bool:
        """A task is not to begin; whether it had not."""
        with self._lock:
            held = self._held.pop(key, None)
            if held is None:
                return False
            for tid in held.tids:
                waiting = self._waiting.get(tid)
                if waiting is not None and held in waiting:
                    waiting.remove(held)
                    if not waiting:
                        del self._waiting[tid]
            return True

    def withdraw(self) -> list[Any]:
        """Take back all of them: the keys."""
        with self._lock:
            keys = list(self._held)
            self._held.clear()
            self._waiting.clear()
            return keys
