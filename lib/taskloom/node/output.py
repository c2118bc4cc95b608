"""What tasks print, log and warn, by task.

``sys.stdout`` and ``sys.stderr`` are replaced by streams that write where they wrote before and, where a task writes, keep
a copy for the client. Whose it is says the context (:mod:`contextvars`), so that threads and asyncio code that a task has
started in its context write in its name. A task that prints nothing pays nothing.

How a worker drives it, beside :mod:`taskloom.node.executor`::

    output = Output()
    executor = Executor(4, notify, output=output)
    with output:
        ...
        outcomes = executor.collect()
        for piece in output.take():  # after collect, so that nothing comes after the outcome of its task
            ...

What goes past ``sys.stdout`` is not seen: bytes written to ``sys.stdout.buffer``, to descriptor 1 by native code, or by a
program that the task runs. It is where the worker's own output is.

A cancelled task can be interrupted at any point, in here too, so nothing here takes a lock.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, NamedTuple, TextIO

from taskloom.node.executor import current_ticket

__all__ = ["Output", "Piece"]


class Piece(NamedTuple):
    """Something that a task has said.

    Attributes:
        ticket: of the task.
        kind: "stdout", "stderr", "log" or "warning".
        text: what it is; of a log record, the formatted message; of a warning, its text.
        details: of a log record: (logger's name, level, file, line); of a warning: (category's name, file, line); else ().
    """

    ticket: Any
    kind: str
    text: str
    details: tuple[Any, ...] = ()


# How many characters the present task has said. A list, so that copies of the task's context count together.
_said: ContextVar[list[int] | None] = ContextVar("taskloom_said", default=None)
_quiet = threading.local()  # a warning is being shown: what that writes is known already


class Output:
    """Collects what tasks say while it is entered.

    Args:
        most_per_task: characters of one task that are kept; then comes one piece that says so, and no more.
        most_waiting: characters of all tasks that may wait to be fetched; while so many wait, what comes is dropped and counted.
        echo: whether what goes to ``sys.stdout``, and warnings, are written where they were before too: not where that is the
            console that the client shows them on. What goes to ``sys.stderr`` always is: it may be a process's last words.

    Attributes:
        dropped: characters that were dropped as too much was waiting. Never those of a task that has said too much.

    >>> with Output() as output:
    ...     print("nobody's task")
    nobody's task
    >>> output.take()
    []
    """

    def __init__(self, most_per_task: int = 100_000, most_waiting: int = 10_000_000, echo: bool = True) -> None:
        self.echo = echo
        self.most_per_task = most_per_task
        self.most_waiting = most_waiting
        self.dropped = 0
        self._pieces: deque[Piece] = deque()
        self._waiting = 0  # characters; a little off where threads meet, and exact again when all was fetched
        self._call: Callable[[], None] = lambda: None
        self._handler = _Handler(self)
        self._streams: dict[str, tuple[Any, _Tee]] = {}
        self._showwarning: Any = None

    def attach(self, call: Callable[[], None]) -> None:
        """Have this called, by the thread that writes, when there is something new to fetch."""
        self._call = call

    def waiting(self) -> bool:
        """Whether there is something to fetch."""
        return bool(self._pieces)

    def take(self) -> list[Piece]:
        """What has come since the last call, in order; what one task has written to one stream in a row, in one piece."""
        found: list[Piece] = []
        texts: list[str] = []
        self._waiting = 0
        pieces = self._pieces
        while True:
            try:
                piece = pieces.popleft()
            except IndexError:
                break
            if found and not piece.details and found[-1][:2] == piece[:2] and not found[-1].details:
                texts.append(piece.text)
                continue
            if len(texts) > 1:
                found[-1] = found[-1]._replace(text="".join(texts))
            found.append(piece)
            texts = [piece.text]
        if len(texts) > 1:
            found[-1] = found[-1]._replace(text="".join(texts))
        return found

    def __enter__(self) -> Output:
        for name in ("stdout", "stderr"):
            before = getattr(sys, name)
            tee = _Tee(self, name, before)
            self._streams[name] = before, tee
            setattr(sys, name, tee)
        logging.getLogger().addHandler(self._handler)
        self._showwarning = warnings.showwarning
        warnings.showwarning = self._show
        return self

    def __exit__(self, *exc_info: object) -> None:
        for name, (before, tee) in self._streams.items():
            if getattr(sys, name) is tee:
                setattr(sys, name, before)
            tee.output = None  # somebody may have kept it, a logging handler for example: it goes on as a plain stream
        self._streams.clear()
        logging.getLogger().removeHandler(self._handler)
        if warnings.showwarning == self._show:
            warnings.showwarning = self._showwarning

    def add(self, kind: str, text: str, details: tuple[Any, ...] = ()) -> bool:
        """Keep something in the name of the task that runs here, if any; whether that was done."""
        ticket = current_ticket()
        if ticket is None or not text:
            return False
        said = _said.get()
        if said is None:
            said = [0]
            _said.set(said)
        before = said[0]
        said[0] = before + len(text)
        if before > self.most_per_task:
            return False
        if self._waiting > self.most_waiting:
            self.dropped += len(text)
            return False
        room = self.most_per_task - before
        if len(text) > room:
            self._put(Piece(ticket, kind, text[:room], details))
            note = f"\n[this task has written more than {self.most_per_task:,} characters; the rest is on its worker]\n"
            self._put(Piece(ticket, "stderr", note))
        else:
            self._put(Piece(ticket, kind, text, details))
        return True

    def _put(self, piece: Piece) -> None:
        self._waiting += len(piece.text)
        first = not self._pieces
        self._pieces.append(piece)
        if first:
            self._call()

    def _show(
        self, message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: str | None = None
    ) -> None:
        if file is None and current_ticket() is not None:
            self.add("warning", str(message), (category.__name__, filename, lineno))
            if not self.echo:
                return
            _quiet.on = True
            try:
                self._showwarning(message, category, filename, lineno, file, line)
            finally:
                _quiet.on = False
        else:
            self._showwarning(message, category, filename, lineno, file, line)


class _Tee(io.TextIOBase):
    """A stream that writes to another one and tells of it."""

    def __init__(self, output: Output, name: str, stream: TextIO | None) -> None:
        self.output: Output | None = output
        self.stream: Any = io.StringIO() if stream is None else stream  # None: there is no console at all
        self.kind = name

    def write(self, text: str, /) -> int:
        output = self.output
        if output is None or current_ticket() is None or getattr(_quiet, "on", False):
            return int(self.stream.write(text))
        if output.echo or self.kind == "stderr":
            self.stream.write(text)
            output.add(self.kind, text)
        elif not output.add(self.kind, text):
            self.stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str], /) -> None:  # type: ignore[override]
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return bool(self.stream.isatty())

    def fileno(self) -> int:
        return int(self.stream.fileno())

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """A task has no business to close it; and this is called when the last one lets go of it."""

    @property
    def encoding(self) -> Any:  # type: ignore[override]
        return getattr(self.stream, "encoding", "utf-8")

    @property
    def errors(self) -> Any:  # type: ignore[override]
        return getattr(self.stream, "errors", "strict")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _Handler(logging.Handler):
    """Sees every record that reaches the root logger."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self.output = output

    def handle(self, record: logging.LogRecord) -> bool:
        # not the inherited one: that takes a lock, for each record, that nothing here needs
        if current_ticket() is not None and self.filter(record):
            self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self.output.add("log", text, (record.name, record.levelno, record.pathname, record.lineno))
