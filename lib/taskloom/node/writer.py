"""Writing lines for people, without ever waiting for them.

A terminal that is held (Ctrl-S), or a pipe that nobody reads, takes what is written for a while and then makes whoever writes
wait. An event loop must not: it has workers to look after. So a thread writes; where it is far behind, lines are left out, and
how many is said when there is somebody who reads again.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from collections import deque
from types import TracebackType
from typing import Self

__all__ = ["Writer"]

MOST = 1 << 20  # characters that wait to be written


class Writer:
    """Writes lines to a standard stream of this process, in a thread of its own.

    Args:
        name: "stdout" or "stderr"; whatever stands there in :mod:`sys` when something is written.
        most: characters that may wait; what comes when there are more is left out.

    >>> with Writer("stdout") as writer:
    ...     writer.say("one")
    one
    """

    def __init__(self, name: str, most: int = MOST) -> None:
        self._name = name
        self._most = most
        self._lines: deque[str] = deque()
        self._waiting = 0  # characters
        self._lost = 0  # lines that were left out since one was taken
        self._news = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def say(self, line: str) -> None:
        """Have a line written, or left out; returns at once. May be called by any thread."""
        with self._news:
            if self._closed:
                return
            if self._waiting + len(line) > self._most:
                self._lost += 1
                return
            self._note_lost()
            self._lines.append(line)
            self._waiting += len(line) + 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"taskloom-{self._name}", daemon=True)
                self._thread.start()
            self._news.notify()

    def _note_lost(self) -> None:
        """Say how many were left out, in the place of them (the lock is held)."""
        if self._lost:
            lost, self._lost = self._lost, 0
            self._lines.append(f"taskloom: {lost} line{'s' if lost > 1 else ''} left out here, as nobody read them")
            self._waiting += len(self._lines[-1]) + 1

    def close(self, timeout: float = 1.0) -> None:
        """Have what waits written, for so many seconds at most, and take no more."""
        with self._news:
            self._note_lost()
            self._closed = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            with self._news:
                while not self._lines:
                    if self._closed:
                        return
                    self._news.wait()
                batch = list(self._lines)
                self._lines.clear()
            for line in batch:
                try:
                    self._write(line + "\n")
                except (OSError, ValueError, AttributeError):  # there is nobody any more
                    pass
                with self._news:
                    self._waiting = max(0, self._waiting - len(line) - 1)

    def _write(self, text: str) -> None:
        stream = getattr(sys, self._name)
        if stream is not getattr(sys, f"__{self._name}__"):  # a notebook's, a test's
            stream.write(text)
            stream.flush()
            return
        # Straight to the descriptor: a thread that waits in the stream holds its lock, which Python wants at its end, and aborts.
        fd = stream.fileno()
        data = text.encode(stream.encoding or "utf-8", "backslashreplace")
        while data:
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:
                select.select([], [fd], [])
