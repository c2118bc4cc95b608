"""Progress bars, in a terminal, in a notebook, and as a few plain lines anywhere else.

A bar is a line: a label, how many tasks are done of how many, how long it has taken and how long the rest may take.
A task that ends only counts an integer up; one thread, which lives as long as there are lines, reads the counts and
draws. So a bar costs the computation the call of :meth:`ProgressBar.posttask` and no lock, system call or drawing.

All bars that write to the same place share one screen, so several at a time stand below each other. A line that has
ended is printed for good above those that still move; what the program prints meanwhile goes above them too.
"""

from __future__ import annotations

import atexit
import html
import io
import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import count
from time import perf_counter
from typing import Any, Protocol, TextIO, TypeVar

from taskloom.diagnostics.events import Callback, RunInfo

__all__ = ["ProgressBar", "track"]

T = TypeVar("T")

_RECENT = 30.0  # seconds that the estimate looks back
_FIRST_PLAIN = 10.0  # seconds until the first plain line; the next come after twice as long each
_LABEL_WIDTH = 24
_BAR_WIDTH = 40


class ProgressBar(Callback):
    """Shows how far a computation is.

    Where the output is a terminal: a bar that moves. In a notebook: the same as HTML. Anywhere else (a file, a pipe, a
    log): one plain line after 10, 20, 40, ... seconds and one at the end, without control codes.

    A run inside of a run, and runs at the same time, under the same bar are one line: their tasks are added up. Runs
    one after the other have a line each. Use one bar a run, with a label each, where they should be apart.

    Args:
        label: what is being computed, in a few words, before the bar.
        minimum: seconds; a run that is over sooner shows nothing.
        dt: seconds between two drawings.
        out: text file to write to; by default ``sys.stderr``, so that a program's own output can be piped on, or the
            cell's output in a notebook.

    Raises:
        TypeError: the label is no string.
        ValueError: ``minimum`` is negative, or ``dt`` is not positive.

    >>> import taskloom
    >>> with ProgressBar("sums", minimum=1.0):
    ...     taskloom.threaded.get({"x": 1, "y": (sum, ["x", 10])}, "y")
    11
    """

    def __init__(self, label: str = "", *, minimum: float = 0.0, dt: float = 0.1, out: TextIO | None = None) -> None:
        if not isinstance(label, str):
            raise TypeError(f"label is a string, not {label!r}; the seconds before a bar shows are minimum=")
        _check(minimum, dt)
        self.label = label
        self.minimum = minimum
        self.dt = dt
        self.out = out
        self._lock = threading.Lock()
        self._runs = 0
        self._line = _Line(label, 0, minimum, dt)
        self._tick: count[int] = count(1)

    def start(self, info: RunInfo) -> None:
        with self._lock:
            self._runs += 1
            if self._runs > 1:
                assert self._line.total is not None
                self._line.total += info.total
                return
            self._tick = count(1)
            self._line = _Line(self.label, info.total, self.minimum, self.dt)
            _show(self._line, self.out)

    def posttask(self, key: Any, record: Any) -> None:
        # Several threads come here at once. Each takes its own number from the counter, in one step; the number that
        # is written last may be a little too low until the next task ends, which only a drawing can see.
        self._line.done = next(self._tick)

    def finish(self, info: RunInfo, error: BaseException | None) -> None:
        with self._lock:
            if not self._runs:  # it was left before the run was over
                return
            self._runs -= 1
            if self._runs:
                return
            line = self._line
            line.done = next(self._tick) - 1
            if error is None:
                line.total = line.done  # not the sum of totals: a run inside may have failed and been forgiven
        line.end("done" if error is None else "failed" if isinstance(error, Exception) else "stopped")

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        if self._runs and exc_info[0] is not None and not issubclass(exc_info[0], Exception):  # type: ignore[arg-type]
            # Ctrl-C came where a run could not say that it is over: leave the terminal clean all the same
            with self._lock:
                self._runs = 0
            self._line.end("stopped")

    def __repr__(self) -> str:
        return f"<ProgressBar {self.label!r}: {_counts(self._line)} tasks>"


def track(
    items: Iterable[T],
    label: str = "",
    *,
    total: int | None = None,
    minimum: float = 0.0,
    dt: float = 0.1,
    out: TextIO | None = None,
) -> Iterator[T]:
    """Walk through items and show a bar for it: for the plain loop beside a graph.

    Args:
        items: anything to loop over.
        label, minimum, dt, out: as for :class:`ProgressBar`.
        total: how many items there are; by default ``len(items)``, and where that is not known the line has a count
            and no bar.

    Yields:
        The items. One counts as done when the next is asked for.

    >>> sum(track([1, 2, 3], "adding", minimum=1.0))
    6
    """
    _check(minimum, dt)
    if total is None:
        try:
            total = len(items)  # type: ignore[arg-type]
        except TypeError:
            total = None
    line = _Line(label, total, minimum, dt)
    _show(line, out)
    state = "stopped"
    try:
        for item in items:
            yield item
            line.done += 1
        state = "done"
    except Exception:
        state = "failed"
        raise
    finally:
        line.end(state)


def _check(minimum: float, dt: float) -> None:
    if minimum < 0:
        raise ValueError(f"minimum is a number of seconds, 0 or more, not {minimum!r}")
    if not dt > 0:
        raise ValueError(f"dt is a number of seconds above 0, not {dt!r}")


class _Line:
    """One bar: what it counts, and what a drawing needs to know.

    Attributes:
        done, total: how many tasks; ``total`` is None where nobody knows.
        started, ended: seconds of ``time.perf_counter()``; ``ended`` is None while it runs.
        state: "running", then "done", "failed" or "stopped".
        drawn: set when it has been drawn for the last time.
    """

    def __init__(self, label: str, total: int | None, minimum: float, dt: float) -> None:
        # one line, and nothing that a terminal would obey
        self.label = " ".join("".join([c for c in label if c.isprintable() or c.isspace()]).split())
        self.total = total
        self.done = 0
        self.dt = dt
        self.started = perf_counter()
        self.ended: float | None = None
        self.show_at = self.started + minimum
        self.state = "running"
        self.drawn = threading.Event()
        self.recent: deque[tuple[float, int]] = deque([(self.started, 0)])
        self.screen: _Screen | None = None

    def end(self, state: str) -> None:
        """Draw it for the last time and come back when that is done."""
        if self.ended is None and self.screen is not None:
            self.state = state
            self.ended = perf_counter()
            self.screen.changed.set()
            self.drawn.wait()

    @property
    def too_short(self) -> bool:
        return self.ended is not None and self.ended < self.show_at

    def elapsed(self, now: float) -> float:
        return (self.ended or now) - self.started

    def sample(self, now: float) -> None:
        """Note how far it is; the drawing thread calls this."""
        recent = self.recent
        if now - recent[-1][0] >= 0.25:
            recent.append((now, self.done))
            while len(recent) > 2 and now - recent[1][0] >= _RECENT:
                recent.popleft()

    def left(self, now: float) -> float | None:
        """Seconds that the rest may take, at the speed of the last half minute; None where nothing can be said."""
        total, done = self.total, self.done
        if total is None or not done:
            return None
        then, before = self.recent[0]
        if done <= before or now <= then:
            then, before = self.started, 0
        return max(0.0, (total - done) * (now - then) / (done - before))


def clock(seconds: float) -> str:
    """Seconds as people read them off a clock: ``0:07``, ``12:34``, ``1:02:03``."""
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def span(seconds: float) -> str:
    """Seconds as text that says its unit: ``12 ms``, ``3.21 s``, ``2 min 5 s``, ``1 h 2 min``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole // 60 % 60} min"


def _counts(line: _Line) -> str:
    return f"{line.done:,}" if line.total is None else f"{min(line.done, line.total):,}/{line.total:,}"


def _share(line: _Line) -> float:
    if line.total is None:
        return 1.0 if line.state == "done" else 0.0
    return min(1.0, line.done / line.total) if line.total else 1.0


def _times(line: _Line, now: float) -> str:
    if line.state != "running":
        return span(line.elapsed(now)) + ("" if line.state == "done" else f", {line.state}")
    left = line.left(now)
    return clock(line.elapsed(now)) + ("" if left is None else f", left {clock(left + 0.5)}")


def plain_text(line: _Line, now: float) -> str:
    """A line in words, without control codes."""
    text = f"{line.label}: " if line.label else ""
    if line.total is None:
        text += f"{line.done:,} done"
    else:
        text += f"{min(line.done, line.total):,} of {line.total:,} tasks done"
    if line.state == "running":
        left = line.left(now)
        text += f" after {span(line.elapsed(now))}"
        if left is not None:
            text += f", about {span(left)} left"
    elif line.state == "done":
        text += f" in {span(line.elapsed(now))}"
    else:
        text += f", {line.state} after {span(line.elapsed(now))}"
    return text


class _Painter(Protocol):
    """Where lines can be drawn. Only the screen's thread calls it."""

    def draw(self, lines: list[_Line], now: float) -> None:
        """Show lines that still move."""

    def end(self, line: _Line, now: float) -> None:
        """Show a line for the last time."""

    def close(self) -> None:
        """No line is left for now: leave the place as it was found."""


class _Nothing:
    """For a place that could not be written to: a bar must not break a computation."""

    def draw(self, lines: list[_Line], now: float) -> None: ...

    def end(self, line: _Line, now: float) -> None: ...

    def close(self) -> None: ...


class _Plain:
    """A file, a pipe, a log: whole lines, few of them."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.next: dict[_Line, float] = {}

    def draw(self, lines: list[_Line], now: float) -> None:
        for line in lines:
            after = self.next.setdefault(line, _FIRST_PLAIN)
            if line.elapsed(now) >= after:
                self.next[line] = 2 * after
                self._write(line, now)

    def end(self, line: _Line, now: float) -> None:
        self.next.pop(line, None)
        self._write(line, now)

    def close(self) -> None: ...

    def _write(self, line: _Line, now: float) -> None:
        self.file.write(_encodable(plain_text(line, now), self.file) + "\n")
        self.file.flush()


class _Terminal:
    """A terminal, through rich: lines that move at the bottom, the program's own output above."""

    def __init__(self, file: TextIO) -> None:
        from rich.console import Console

        self.file = file
        self.console = Console(file=file, force_terminal=True, force_jupyter=False, legacy_windows=False)
        self.live: Any = None
        self.lines: list[_Line] = []
        self.now = 0.0

    def draw(self, lines: list[_Line], now: float) -> None:
        self.lines = lines
        self.now = now
        if self.live is None:
            from rich.live import Live

            # What goes to a pipe or a file must go on going there, so only terminals are taken over.
            self.live = Live(
                console=self.console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=_is_terminal(sys.stdout),
                redirect_stderr=_is_terminal(sys.stderr),
                get_renderable=self._rows,
            )
            self.live.start()
        self.live.refresh()

    def end(self, line: _Line, now: float) -> None:
        self.lines = [other for other in self.lines if other is not line]
        if self.live is not None:
            self.live.refresh()  # take it from what moves, else it would be there twice for a moment
        self.console.print(self._row(line, now), crop=True)

    def close(self) -> None:
        if self.live is not None:
            live, self.live = self.live, None
            try:
                for stream in (sys.stdout, sys.stderr):  # half a line that rich keeps back until its end comes
                    if hasattr(stream, "rich_proxied_file"):
                        stream.flush()
            finally:
                live.stop()
        self.file.flush()

    def _rows(self) -> Any:
        from rich.console import Group

        return Group(*[self._row(line, self.now) for line in self.lines])

    def _row(self, line: _Line, now: float) -> Any:
        from rich.text import Text

        ascii_only = self.console.options.ascii_only
        overflow: Any = "crop" if ascii_only else "ellipsis"
        label = Text(_encodable(line.label, self.file), no_wrap=True, overflow=overflow)
        numbers, label_width, width = _layout(line, now, label.cell_len, self.console.width)
        row = Text(no_wrap=True, overflow=overflow)
        if label_width:
            label.truncate(label_width, overflow=overflow, pad=True)
            row.append_text(label).append(" ")
        full, empty = ("#", "-") if ascii_only else ("━", "━")
        filled = int(_share(line) * width)
        style = {"running": "magenta", "done": "green"}.get(line.state, "red")
        row.append(full * filled, style)
        # without colours the two parts of the bar would look the same
        coloured = self.console.color_system is not None and not self.console.no_color
        row.append((empty if coloured or empty != full else " ") * (width - filled), "bright_black")
        row.append(" " * bool(width) + numbers.rstrip(), style if line.state in ("failed", "stopped") else "")
        return row


def _layout(line: _Line, now: float, label: int, room: int) -> tuple[str, int, int]:
    """What of a line has room in a terminal.

    Args:
        label: columns that the whole label takes.
        room: columns of the terminal.

    Returns:
        The numbers, and columns for the label and for the bar; 0 leaves it out. In a narrow terminal the bar goes
        first, then the times, then the counts.
    """
    counts, times = _counts(line), _times(line, now)
    share = "" if line.total is None else f"{int(100 * _share(line))}%"
    numbers = f"{counts:>13} {share:>4}  {times:<17}" if share else f"{counts:>13}  {times:<17}"
    column = max(label, _LABEL_WIDTH) if label else 0
    left = room - len(numbers) - 1 - (column + 1 if column else 0)
    if left >= 8:
        return numbers, column, min(_BAR_WIDTH, left)
    some = min(label, 8)
    for parts in ((counts, share, times), (counts, share), (share or counts,)):
        numbers = " ".join([part for part in parts if part])
        if some + 1 + len(numbers) <= room:
            break
    column = max(0, min(label, room - len(numbers) - 1))
    left = room - len(numbers) - 1 - (column + 1 if column else 0)
    return numbers, column, left if left >= 4 else 0


def _encodable(text: str, file: Any) -> str:
    """Text that a file takes: what its encoding lacks is replaced."""
    encoding = getattr(file, "encoding", None) or "utf-8"
    try:
        text.encode(encoding, getattr(file, "errors", None) or "strict")
    except UnicodeError:
        return text.encode(encoding, "replace").decode(encoding)
    except LookupError:  # an encoding that only this file knows
        pass
    return text


class _Notebook:
    """A notebook: one piece of HTML a line, which needs no widgets and stays in the saved notebook."""

    def __init__(self) -> None:
        self.handles: dict[_Line, Any] = {}

    def draw(self, lines: list[_Line], now: float) -> None:
        for line in lines:
            self._put(line, now)

    def end(self, line: _Line, now: float) -> None:
        self._put(line, now)
        del self.handles[line]

    def close(self) -> None: ...

    def _put(self, line: _Line, now: float) -> None:
        from IPython.display import display

        shown = _Html(line, now)
        if line in self.handles:
            self.handles[line].update(shown)
        else:
            self.handles[line] = display(shown, display_id=True)


class _Html:
    """A line at one time, for IPython to show."""

    def __init__(self, line: _Line, now: float) -> None:
        self.text = plain_text(line, now)
        colour = {"running": "#a626a4", "done": "#2e8b57"}.get(line.state, "#c0392b")
        attributes = "" if line.total is None and line.state == "running" else f' value="{_share(line):.4f}"'
        self.html = (
            '<div style="display:flex;gap:0.8em;align-items:center;font-size:0.9em">'
            f'<span style="min-width:12em">{html.escape(line.label)}</span>'
            f'<progress max="1"{attributes} style="width:20em;accent-color:{colour}"></progress>'
            f"<span>{html.escape(_counts(line))}</span><span>{html.escape(_times(line, now))}</span></div>"
        )

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html


class _Screen:
    """The lines that are drawn to one place, and the thread that draws them."""

    def __init__(self, out: TextIO | None) -> None:
        self.out = out  # None: a notebook
        self.painter: _Painter | None = None
        self.lines: list[_Line] = []
        self.thread: threading.Thread | None = None
        self.changed = threading.Event()  # a line has come or ended

    def add(self, line: _Line) -> None:
        """Show a line; the caller holds the module's lock."""
        line.screen = self
        self.lines.append(line)
        if self.thread is None:
            self.thread = threading.Thread(target=self._main, name="taskloom-progress", daemon=True)
            self.thread.start()
        else:
            self.changed.set()

    def _main(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException:  # the interpreter is going down; nobody may wait for us
            with _lock:
                for line in self.lines:
                    line.drawn.set()
                _screens.pop(id(self.out), None)
            raise

    def _turn(self) -> bool:
        """Draw once and sleep; False when nothing is left to draw."""
        self.changed.clear()
        with _lock:
            lines = list(self.lines)
        now = perf_counter()
        ended = [line for line in lines if line.ended is not None]
        shown = [line for line in lines if line.ended is None and line.show_at <= now]
        for line in shown:
            line.sample(now)
        try:
            if self.painter is None and (shown or not all(line.too_short for line in ended)):
                self.painter = _painter(self.out)
            if self.painter is not None:
                for line in ended:
                    if not line.too_short:
                        self.painter.end(line, now)
                if shown:
                    self.painter.draw(shown, now)
                else:
                    self.painter.close()
        except Exception:  # a closed file, a broken pipe, a renderer's bug: go on without a bar
            self._give_up()
        with _lock:
            self.lines = [line for line in self.lines if line not in ended]
            over = not self.lines
            if over:
                self.thread = None
                _screens.pop(id(self.out), None)
        for line in ended:
            line.drawn.set()
        if over:
            return False
        waits = [line.show_at - now if line.show_at > now else line.dt for line in lines if line.ended is None]
        self.changed.wait(min(waits, default=0.0))
        return True

    def _give_up(self) -> None:
        broken, self.painter = self.painter, _Nothing()
        if broken is not None:
            try:
                broken.close()  # give stdout back, whatever else is broken
            except Exception:
                pass


# place -> screen, while it has lines. The key is the file's id, as a file may be unhashable; the screen keeps it alive.
_screens: dict[int, _Screen] = {}
_lock = threading.Lock()


def _show(line: _Line, out: TextIO | None) -> None:
    """Put a line on the screen of a place."""
    if out is None and not _in_notebook():
        out = sys.stderr
        if out is None:  # a program without a console
            return
    out = getattr(out, "rich_proxied_file", out)  # a bar that moves there has put itself before it
    with _lock:
        screen = _screens.get(id(out))
        if screen is None:
            screen = _screens[id(out)] = _Screen(out)
        screen.add(line)


def _painter(out: TextIO | None) -> _Painter:
    if out is None:
        return _Notebook()
    if _is_terminal(out):
        try:
            return _Terminal(out)
        except ImportError:  # without rich
            pass
    return _Plain(out)


def _is_terminal(file: Any) -> bool:
    """Whether a file is a terminal that understands control codes; no setting can make a pipe one."""
    try:
        return file.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    except (AttributeError, ValueError, io.UnsupportedOperation):  # no file, or a closed one
        return False


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    if ipython is None:
        return False
    return getattr(ipython.get_ipython(), "kernel", None) is not None


def _at_exit() -> None:
    """End what still moves, so that the cursor comes back: daemon threads just vanish when a program ends."""
    with _lock:
        threads = [screen.thread for screen in _screens.values()]
        for screen in _screens.values():
            for line in screen.lines:
                if line.ended is None:
                    line.state = "stopped"
                    line.ended = perf_counter()
            screen.changed.set()
    for thread in threads:
        if thread is not None:
            thread.join(2.0)


def _after_fork() -> None:
    global _screens, _lock
    _screens = {}
    _lock = threading.Lock()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
