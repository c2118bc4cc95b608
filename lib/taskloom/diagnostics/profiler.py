"""What each task cost: a record of every one, summed up by function, and as a trace for a viewer."""

from __future__ import annotations

import html
import json
import os
from typing import Any, NamedTuple

from taskloom.diagnostics.events import Callback, Record

__all__ = ["FunctionSummary", "Profiler"]

_ROWS = 20  # functions in a printed table


class FunctionSummary(NamedTuple):
    """All tasks of one function. Times are in seconds.

    Attributes:
        function: its name, as in :class:`taskloom.diagnostics.Record`.
        tasks: how many tasks of it ended.
        total, mean, max: how long they took together, on average, and the longest.
    """

    function: str
    tasks: int
    total: float
    mean: float
    max: float


class Profiler(Callback):
    """Records when each task began and ended, and what ran it.

    The records of all runs that it hears are kept until :meth:`clear`. Printed, it is a table of the functions that
    took most time; in a notebook too.

    Attributes:
        results: list of :class:`taskloom.diagnostics.Record`, in the order in which the tasks ended.

    >>> import taskloom
    >>> with Profiler() as profile:
    ...     taskloom.get_sync({"x": 1, "y": (sum, ["x", 10])}, "y")
    11
    >>> [record.function for record in profile.results]
    ['literal', 'sum']
    """

    def __init__(self) -> None:
        self.results: list[Record] = []

    def posttask(self, key: Any, record: Record) -> None:
        self.results.append(record)  # one step, so no lock is needed, though threads come here at once

    def clear(self) -> None:
        """Forget all records."""
        self.results.clear()

    def summary(self) -> list[FunctionSummary]:
        """The records summed up: one item a function, the one that took most time first."""
        counts: dict[str, int] = {}
        totals: dict[str, float] = {}
        longest: dict[str, float] = {}
        for record in list(self.results):
            name = record.function
            seconds = record.stop - record.start
            counts[name] = counts.get(name, 0) + 1
            totals[name] = totals.get(name, 0.0) + seconds
            longest[name] = max(longest.get(name, 0.0), seconds)
        found = [FunctionSummary(name, n, totals[name], totals[name] / n, longest[name]) for name, n in counts.items()]
        found.sort(key=lambda item: (-item.total, item.function))
        return found

    def to_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the records as a trace file, with a row for each thread or process that ran tasks.

        Open it in https://ui.perfetto.dev or in chrome://tracing. The format is the JSON object form of Chrome's "Trace
        Event Format": complete events (``ph`` is "X"), times in microseconds from the first task's begin.

        Args:
            path: the file to write, usually ending in ``.json``.

        Raises:
            OSError: it could not be written.
        """
        records = list(self.results)
        begin = min((record.start for record in records), default=0.0)
        rows: dict[str, int] = {}
        events: list[dict[str, Any]] = []
        for record in records:
            row = rows.setdefault(record.worker, len(rows) + 1)
            events.append(
                {
                    "name": record.function,
                    "cat": "task",
                    "ph": "X",
                    "ts": round((record.start - begin) * 1e6, 3),
                    "dur": round((record.stop - record.start) * 1e6, 3),
                    "pid": 1,
                    "tid": row,
                    "args": {"key": _short(record.key)},
                }
            )
        names = [
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": row, "args": {"name": worker}}
            for worker, row in rows.items()
        ]
        names.append({"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "taskloom"}})
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"traceEvents": names + events, "displayTimeUnit": "ms"}, file)

    def __repr__(self) -> str:
        head, *body = self._table()
        names = [row[0] if len(row[0]) <= 40 else row[0][:37] + "..." for row in body]
        width = max([len(head[0]), *map(len, names)])
        lines = [f"{head[0]:<{width}} {head[1]:>9} {head[2]:>11} {head[3]:>11} {head[4]:>11}"]
        for name, row in zip(names, body, strict=True):
            lines.append(f"{name:<{width}} {row[1]:>9} {row[2]:>11} {row[3]:>11} {row[4]:>11}")
        hidden = len({record.function for record in self.results}) - len(body)
        if hidden:
            lines.append(f"and {hidden} more functions; .summary() has them all")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head, *body = self._table()
        cells = "".join(f"<th>{name}</th>" for name in head)
        rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body)
        return f"<table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>"

    def _table(self) -> list[tuple[str, str, str, str, str]]:
        table = [("function", "tasks", "total", "mean", "longest")]
        table.extend(
            (item.function, f"{item.tasks:,}", _time(item.total), _time(item.mean), _time(item.max))
            for item in self.summary()[:_ROWS]
        )
        return table


def _time(seconds: float) -> str:
    if seconds < 0.001:
        return f"{seconds * 1e6:.1f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds:.2f} s"


def _short(key: Any) -> str:
    try:
        text = repr(key)
    except Exception:
        text = f"<{type(key).__qualname__}, which has no repr>"
    return text if len(text) <= 200 else text[:197] + "..."
