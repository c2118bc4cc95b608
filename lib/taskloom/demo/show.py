"""Runs the demo: both computations in four ways, results compared, times side by side."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import taskloom
from taskloom.diagnostics import Callback, ProgressBar, RunInfo, track
from taskloom.system import cpu_count

__all__ = ["SIZES", "demo"]


class Size(NamedTuple):
    """How much there is to do: log files and lines in each; blocks in a row of a matrix and numbers in a row of one."""

    files: int
    lines: int
    blocks: int
    block: int


SIZES = {
    "small": Size(files=4, lines=10_000, blocks=4, block=256),
    "medium": Size(files=16, lines=40_000, blocks=6, block=640),
    "large": Size(files=64, lines=50_000, blocks=8, block=768),
}

WAYS = {
    "plain loop": "an ordinary Python loop, to compare with",
    "sync": "taskloom.get_sync: task by task in this thread, for debugging",
    "threads": "taskloom.threaded.get: threads of this process, for NumPy, waiting",
    "processes": "taskloom.multiprocessing.get: other processes, for pure Python",
}

# What is shown of the programs; the tests look that it is what they say.
LOG_LINES = """\
lines = taskloom.bag.read_text(files)
records = lines.map(parse).filter(is_record)
records.pluck("status").frequencies()
ok = records.filter(is_ok)
ok.pluck("path").frequencies().topk(5, key=by_count)
"""
MATRIX_LINES = """\
graph["product", i, j, k] = (multiply, ("a", i, k), ("b", k, j))
graph["c", i, j] = (add_up, [("product", i, j, k) for k in range(count)])
"""


class Row(NamedTuple):
    """One computation in the table. ``seconds`` is by way, ``right`` whether all results agreed."""

    name: str
    seconds: dict[str, float]
    tasks: int
    right: bool


class CountTasks(Callback):
    """How many tasks the last run had."""

    total = 0

    def start(self, info: RunInfo) -> None:
        self.total = info.total


def demo(size: str = "medium", workers: int | None = None, keep: str | os.PathLike[str] | None = None) -> bool:
    """Run it and print what happens.

    Args:
        size: one of ``SIZES``.
        workers: how many tasks may run at a time; by default as many as there are CPUs for this process.
        keep: a folder for the log files, which stay there; by default a temporary one.

    Returns:
        Whether every result was right.

    Raises:
        OSError: the files could not be written.
        FileExistsError: the folder has other files of these names.
    """
    begin = time.perf_counter()
    load = os.getloadavg()[0]
    if workers is None:
        workers = cpu_count()
    show = _Show()
    show.say(f"taskloom {taskloom.__version__}: two computations, each in four ways", style="bold")
    show.space()
    show.listing(WAYS)
    show.space()
    show.say(
        f"Threads and processes run up to {workers} tasks at a time."
        if workers > 1
        else "Threads and processes run one task at a time: there is one CPU, or --workers 1 was asked for."
    )
    with one_blas_thread():
        with log_folder(keep) as folder:
            rows = [logs(show, SIZES[size], workers, folder)]
        if keep is not None:
            show.say(f"The log files stay in {folder}.")
        try:
            import numpy  # noqa: F401
        except ImportError:
            show.head("2. A matrix product")
            show.say("Left out, because NumPy is not installed: pip install 'taskloom[array]'")
        else:
            rows.append(matrix(show, SIZES[size], workers))
    right = all(row.right for row in rows)
    show.head("Seconds, and how many times as fast as the plain loop")
    show.table(rows)
    show.space()
    if right:
        show.say("Checked: every scheduler gave the plain loop's result, to the last bit.", style="green")
    else:
        show.say("WRONG: not every result is the plain loop's. Please report this.", style="bold red")
    for sentence in reasons(rows, workers, size, load):
        show.say(sentence)
    show.head(f"That took {time.perf_counter() - begin:.0f} s. Where to go on")
    show.listing(
        {
            "these programs": str(Path(__file__).parent / "logs.py") + (" and matrix.py" if len(rows) > 1 else ""),
            "your functions": "python -c 'import taskloom; help(taskloom.delayed)'",
            "files, text": "python -c 'import taskloom; help(taskloom.bag)'",
            "the manual": "README.md and docs/ in taskloom's repository",
        }
    )
    return right


def logs(show: _Show, size: Size, workers: int, folder: Path) -> Row:
    """The log files: a bag."""
    from taskloom.demo.logs import plain_loop, tidy, with_bag, write_logs

    show.head("1. A log analysis: text, so pure Python")
    show.say(
        f"{size.files} log files of a web shop with {size.files * size.lines:,} requests, half of the files compressed. "
        "What was asked for, how often, when, by how many visitors, and what was slow? With taskloom.bag:"
    )
    show.code(LOG_LINES + "...")
    with tracked(range(size.files), "writing log files") as days:
        files = write_logs(days, folder, size.lines)
    bags = with_bag(files)

    def ways(scheduler: str) -> Callable[[], Any]:
        options: dict[str, Any] = {} if scheduler == "sync" else {"num_workers": workers}
        return lambda: tidy(taskloom.compute(bags, scheduler=scheduler, **options)[0])

    row, result = measure(
        show,
        "log analysis",
        files,
        plain_loop,
        {way: ways(way) for way in ("sync", "threads", "processes")},
    )
    counts = ", ".join(f"{count:,} x {status}" for status, count in sorted(result["requests by status"].items()))
    page, wanted = result["most wanted pages"][0]
    hour = max(result["bytes by hour"].items(), key=lambda item: item[1])[0]
    slowest = result["slowest requests"][0]
    show.say(
        f"Found: {counts}; most wanted {page} ({wanted:,} times); busiest at {hour}:00; {result['visitors']} visitors; "
        f"slowest {slowest['path']} ({slowest['seconds']:.2f} s)."
    )
    return row


def matrix(show: _Show, size: Size, workers: int) -> Row:
    """The matrices: a graph."""
    from taskloom.demo.matrix import is_product, make_blocks, make_graph, plain_loop

    side = size.blocks * size.block
    show.head("2. A matrix product: numbers, so NumPy")
    show.say(
        f"Two matrices of {side:,} x {side:,} in {size.blocks} x {size.blocks} blocks. The graph is a dict; for each block "
        "of the result:"
    )
    show.code(MATRIX_LINES)
    a = make_blocks(size.blocks, size.block, seed=1)
    b = make_blocks(size.blocks, size.block, seed=2)
    graph, keys = make_graph(a, b, size.blocks)
    places = [key[1:] for key in keys]

    def blocks(values: Any) -> Any:
        return dict(zip(places, values, strict=True))

    row, result = measure(
        show,
        "matrix product",
        places,
        lambda places: plain_loop(a, b, places, size.blocks),
        {
            "sync": lambda: blocks(taskloom.get_sync(graph, keys)),
            "threads": lambda: blocks(taskloom.threaded.get(graph, keys, num_workers=workers)),
            "processes": lambda: blocks(taskloom.multiprocessing.get(graph, keys, num_workers=workers)),
        },
        same=same_blocks,
    )
    right = is_product(result, a, b, size.blocks)
    show.say(f"Checked with other arithmetic, (A B) x = A (B x): {'right' if right else 'WRONG'}.")
    return row._replace(right=row.right and right)


def measure(
    show: _Show,
    name: str,
    items: Sequence[Any],
    plain: Callable[[Iterator[Any]], Any],
    ways: dict[str, Callable[[], Any]],
    same: Callable[[Any, Any], bool] | None = None,
) -> tuple[Row, Any]:
    """Compute one thing in all ways.

    Args:
        items: what the plain loop walks through.
        plain: the plain loop.
        ways: the others.
        same: whether two results are the same; by default, whether they are equal.

    Returns:
        The row of the table, and the result of the plain loop.
    """
    with tracked(items, "plain loop") as watched:
        begin = time.perf_counter()
        expected = plain(watched)
        seconds = {"plain loop": time.perf_counter() - begin}
    right = True
    count = CountTasks()
    for way, compute in ways.items():
        with ProgressBar(way), count if way == "sync" else contextlib.nullcontext():
            begin = time.perf_counter()
            result = compute()
            seconds[way] = time.perf_counter() - begin
        if not (same(result, expected) if same else result == expected):
            right = False
            show.say(f"WRONG: the result of {way} is not the plain loop's.", style="bold red")
        del result
    return Row(name, seconds, count.total, right), expected


def tracked(items: Sequence[Any], label: str) -> contextlib.closing[Any]:
    """Items with a bar, which is closed where the loop over them is left by Ctrl-C."""
    return contextlib.closing(track(items, label))


def same_blocks(one: Any, other: Any) -> bool:
    """Bit by bit: the same operations in the same order."""
    return one.keys() == other.keys() and all(bool((one[place] == other[place]).all()) for place in one)


def reasons(rows: Sequence[Row], workers: int, size: str, load: float) -> Iterator[str]:
    """Why the times are as they are; what is said is what was measured, not what should have been.

    Args:
        load: how many programs wanted a CPU before we began.
    """
    if workers < 2:
        yield "With one task at a time no scheduler is faster than a loop: what it takes longer is what it costs."
        return
    more = "" if size == "large" else " Try --size large." if size == "medium" else " Try the other sizes."
    if load > 0.3:
        more = f" Other programs wanted {load:.1f} CPUs when this began." + more
    speed = {(row.name, way): row.seconds["plain loop"] / row.seconds[way] for row in rows for way in row.seconds}
    threads, processes = speed["log analysis", "threads"], speed["log analysis", "processes"]
    if processes > 1.2 and processes > threads:
        yield (
            "The log analysis is pure Python, of which a process runs one piece at a time: threads cannot make it "
            "faster, processes do, even with the time to start them."
        )
    else:
        yield (
            "The log analysis is pure Python, which processes make faster where there is enough to do and a CPU for "
            f"each. Here that was not so.{more}"
        )
    if ("matrix product", "threads") not in speed:
        return
    threads, processes = speed["matrix product", "threads"], speed["matrix product", "processes"]
    if threads > 1.2:
        yield (
            "NumPy lets other threads run while it computes: there threads make it faster, and share the blocks. "
            + ("Processes have to send them to each other." if threads > processes else "Processes do too.")
        )
    else:
        yield f"Threads make NumPy faster where the blocks are large and CPUs are free. Here that was not so.{more}"


@contextlib.contextmanager
def log_folder(keep: str | os.PathLike[str] | None) -> Iterator[Path]:
    """A folder that the user named and keeps, or a temporary one, which goes even if Ctrl-C is pressed twice."""
    if keep is not None:
        folder = Path(keep)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    folder = Path(tempfile.mkdtemp(prefix="taskloom-demo-"))
    try:
        yield folder
    finally:
        main = threading.current_thread() is threading.main_thread()
        old = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
        shutil.rmtree(folder, ignore_errors=True)
        if main:
            signal.signal(signal.SIGINT, old)


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """NumPy's linear algebra on one thread: else the plain loop would use all CPUs already, and tasks would fight."""
    if "numpy" not in sys.modules:  # it reads these when it is imported
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
            os.environ[name] = "1"
        yield
        return
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        yield
        return
    with threadpool_limits(1):
        yield


class _Show:
    """What is printed, in lines that fit the terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(highlight=False, markup=False, emoji=False)
        self.width = min(self.console.width, 88)

    def say(self, text: str, style: str | None = None) -> None:
        from rich.text import Text

        for line in textwrap.wrap(text, self.width, break_long_words=False, break_on_hyphens=False):
            self.line(Text(line, style or ""))

    def space(self) -> None:
        self.console.print()

    def head(self, text: str) -> None:
        self.space()
        self.say(text, style="bold")

    def code(self, lines: str) -> None:
        """Lines of a program, whole: cut lines can be read, wrapped ones mislead."""
        self.space()
        for line in lines.splitlines():
            self.console.print(
                "    " + line, style="cyan", no_wrap=True, overflow="crop", crop=self.console.is_terminal
            )
        self.space()

    def listing(self, items: dict[str, str]) -> None:
        """Names and what they mean, which is wrapped beside them."""
        from rich.text import Text

        wide = max(map(len, items))
        for name, words in items.items():
            # a path is never cut in two, so that it can be copied
            lines = textwrap.wrap(words, max(20, self.width - wide - 4), break_long_words=False, break_on_hyphens=False)
            for number, line in enumerate(lines):
                head = "" if number else name
                self.line(Text.assemble((f"  {head:<{wide}}  ", "cyan"), line))

    def line(self, text: Any) -> None:
        self.console.print(text, no_wrap=True, overflow="ignore", crop=False)

    def table(self, rows: Sequence[Row]) -> None:
        """The times side by side: a line a way, so that it fits anywhere; the fastest in bold."""
        from rich.text import Text

        self.line(Text("  " + " " * 10 + "".join(f"{row.name:>16}        " for row in rows).rstrip(), "bold"))
        for way in WAYS:
            line = Text.assemble((f"  {way:<10}", "cyan"))
            for row in rows:
                plain, seconds = row.seconds["plain loop"], row.seconds[way]
                style = "bold green" if seconds == min(row.seconds.values()) else ""
                line.append(f"{seconds:>16.2f}", style)
                line.append("        " if way == "plain loop" else f"{plain / seconds:>7.2f}x", style)
            line.rstrip()
            self.line(line)
        self.line(Text(f"  {'tasks':<10}" + "".join(f"{row.tasks:>16,}        " for row in rows).rstrip(), "dim"))
