"""A thread that calls things one after the other, in the order in which they came."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from taskloom.client.cells import in_running_cell

__all__ = ["Clerk"]

_log = logging.getLogger("taskloom.client")


class Clerk:
    """Calls things in a thread of its own, which is started when there is something to call.

    What they raise is logged: the next one is called all the same.

    Args:
        name: of the thread.

    >>> called = []
    >>> clerk = Clerk("example")
    >>> clerk.put(called.append, 1)
    >>> clerk.close(10.0)
    >>> called
    [1]
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._queue: queue.SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, function: Callable[..., object], *args: Any) -> None:
        """Have it called."""
        self._queue.put((function, args))
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name=self.name, daemon=True)
                self._thread.start()

    def _serve(self) -> None:
        while True:
            item = self._queue.get()
            if item is None:
                return
            function, args = item
            try:
                in_running_cell(function, *args)
            except BaseException:
                _log.exception("a callback failed: %r", function)
            del item, function, args  # a thread that waits holds nobody's future

    def close(self, timeout: float) -> None:
        """Call what is waiting, and end the thread; waits for it so many seconds at most."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            if thread is not threading.current_thread():
                thread.join(timeout)
