"""What tasks on the cluster print, log and warn, shown here.

Where a cluster's processes belong to this program, what tasks write to ``sys.stderr`` is shown already: their supervisor does.

Text appears in whole lines, so that lines of tasks that print at the same time do not mix; what a task has begun to write and not
ended is shown when the task has ended, or when very much is waiting. In a notebook it appears below the cell that is running.
Nothing here raises: a closed ``sys.stdout`` is no reason to lose results.
"""

from __future__ import annotations

import builtins
import logging
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from taskloom.client.cells import in_running_cell
from taskloom.core.messages import Heard

__all__ = ["Screen"]

_MOST_OPEN = 1000  # lines that are not ended
_LONGEST = 100_000  # characters of one


class Screen:
    """Shows what tasks say, in this process.

    Args:
        stderr: whether to show what they write to ``sys.stderr``.

    Attributes:
        name: the key of a task by its counter.
    """

    def __init__(self, stderr: bool = True) -> None:
        self.name: Callable[[int], Any] = int
        self._streams = ("stdout", "stderr") if stderr else ("stdout",)
        self._open: dict[tuple[int, str], str] = {}  # (counter, stream) -> what stands after the last end of a line
        self._registry: dict[Any, Any] = {}  # of warnings that were shown, as modules have one

    @property
    def has_open(self) -> bool:
        """Whether a task has begun a line and not ended it."""
        return bool(self._open)

    def show(self, heard: Heard) -> None:
        """Show it."""
        in_running_cell(self._show, heard)

    def _show(self, heard: Heard) -> None:
        columns = zip(heard.counters, heard.workers, heard.kinds, heard.texts, heard.details, strict=True)
        for counter, worker, kind, text, details in columns:
            try:
                if kind == "log":
                    self._log(counter, worker, text, *details)
                elif kind == "warning":
                    self._warn(text, *details)
                elif kind in self._streams:
                    self._print(counter, kind, text)
            except Exception:  # whatever the user's streams, handlers and filters do
                pass

    def _print(self, counter: int, stream: str, text: str) -> None:
        key = counter, stream
        text = self._open.pop(key, "") + text
        end = text.rfind("\n") + 1
        if len(text) - end > _LONGEST:
            end = len(text)
        if end < len(text):
            self._open[key] = text[end:]
            if len(self._open) > _MOST_OPEN:
                self.ended([next(iter(self._open))[0]])
        if end:
            self._write(stream, text[:end])

    @staticmethod
    def _write(stream: str, text: str) -> None:
        out = getattr(sys, stream)
        if out is not None:
            out.write(text)
            out.flush()

    def _log(self, counter: int, worker: str, text: str, name: str, level: int, path: str, line: int) -> None:
        logger = logging.getLogger(name)
        if logger.isEnabledFor(level):
            extra = {"taskloom_worker": worker, "taskloom_key": self.name(counter)}
            logger.handle(logger.makeRecord(name, level, path, line, text, (), None, extra=extra))

    def _warn(self, text: str, name: str, path: str, line: int) -> None:
        category = getattr(builtins, name, None)
        if not (isinstance(category, type) and issubclass(category, Warning)):
            category = UserWarning
        warnings.warn_explicit(text, category, path, line, registry=self._registry)

    def ended(self, counters: Iterable[int]) -> None:
        """These have ended: what they have not ended with a new line is shown too."""
        if not self._open:
            return
        for counter in counters:
            for stream in ("stdout", "stderr"):
                text = self._open.pop((counter, stream), "")
                if text:
                    try:
                        in_running_cell(self._write, stream, text + "\n")
                    except Exception:
                        pass

    def flush(self) -> None:
        """Show everything."""
        self.ended([counter for counter, _ in self._open])
