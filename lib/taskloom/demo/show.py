"""Runs the demo: both computations in four ways, results compared, times side by side."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import taskloom
from taskloom.diagnostics import Callback, ProgressBar, RunInfo, track

__all__ = ["SIZES", "demo"]


class Size(NamedTuple):
    """How much there is to do: log files and lines in each; blocks in a row of a matrix and numbers in a row of one."""

    files: int
    lines: int
    blocks: int
    block: int


SIZES = {
    "small": Size(files=4, lines=3_000, blocks=3, block=64),
    "medium": Size(files=16, lines=25_000, blocks=6, block=512),
    "large": Size(files=64, lines=50_000, blocks=8, block=1024),
}

WAYS = {
    "plain loop": "no scheduler: a Python loop, to compare with",
    "sync": "taskloom.get_sync: task after task in this thread; for debugging",
    "threads": "taskloom.threaded.get: threads of this process; for NumPy and waiting",
    "processes": "taskloom.multiprocessing.get: other processes; for pure Python",
}


class Row(NamedTuple):
    """What is in the table of one computation. ``seconds`` is by way, ``right`` whether all results agreed."""

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
    """
    begin = time.perf_counter()
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    say(
        "taskloom runs graphs of tasks: functions that need each other's results. This demo does two\n"
        f"computations in four ways, with {workers} tasks at a time where there is more than one:\n"
    )
    for way, words in WAYS.items():
        say(f"  {way:<10}  {words}")
    with contextlib.ExitStack() as stack:
        if keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="taskloom-demo-")))
        else:
            folder = Path(keep)
            folder.mkdir(parents=True, exist_ok=True)
        rows = [logs(SIZES[size], workers, folder)]
        if keep is not None:
            say(f"  The files stay in {folder}.")
        stack.enter_context(one_blas_thread())
        try:
            import numpy  # noqa: F401
        except ImportError:
            say("\nA matrix product: left out, because NumPy is not installed (pip install 'taskloom[array]').")
        else:
            rows.append(matrix(SIZES[size], workers))
    say("")
    table(rows)
    right = all(row.right for row in rows)
    if right:
        say("\nAll results are the same, and right.")
    else:
        say("\nWRONG: results differ from what the plain loop found.")
    explain(rows, workers)
    say(f"It took {time.perf_counter() - begin:.0f} s. The programs are in {Path(__file__).parent}.")
    return right


def logs(size: Size, workers: int, folder: Path) -> Row:
    """The log files: a bag."""
    from taskloom.demo.logs import plain_loop, tidy, with_bag, write_logs

    say(f"\nA log analysis: {size.files} files with {size.files * size.lines:,} requests to a web shop, half of them")
    say("compressed. Each line is parsed; then counts by status, the most wanted pages, bytes by hour,")
    say("visitors, the slowest requests. With taskloom.bag, one task and more for each file.")
    files = write_logs(folder, size.files, size.lines)
    say(f"  {sum(path.stat().st_size for path in files) / 1e6:.1f} MB of files written.")
    bags = with_bag(files)

    def run(scheduler: str) -> Callable[[], Any]:
        def compute() -> Any:
            (values,) = taskloom.compute(bags, scheduler=scheduler, num_workers=workers)
            return tidy(values)

        return compute

    row, result = measure(
        "log analysis",
        lambda: plain_loop(track(files, "log analysis, plain loop")),
        {
            "sync": lambda: tidy(taskloom.compute(bags, scheduler="sync")[0]),
            "threads": run("threads"),
            "processes": run("processes"),
        },
    )
    counts = ", ".join(f"{status}: {count:,}" for status, count in sorted(result["requests by status"].items()))
    page, wanted = result["most wanted pages"][0]
    hour = max(result["bytes by hour"].items(), key=lambda item: item[1])[0]
    say(f"  Requests by status: {counts}. Most wanted page: {page} ({wanted:,} times).")
    say(f"  Busiest hour: {hour}:00. Visitors: {result['visitors']}. Slowest: {result['slowest requests'][0]['path']}.")
    return row


def matrix(size: Size, workers: int) -> Row:
    """The matrices: a graph."""
    from taskloom.demo.matrix import is_product, make_blocks, make_graph, plain_loop

    side = size.blocks * size.block
    say(
        f"\nA matrix product: {side:,} x {side:,} numbers in {size.blocks} x {size.blocks} blocks, with NumPy. The graph is a"
    )
    say("dict of keys and tasks; all blocks multiplied and added up are one task each.")
    a = make_blocks(size.blocks, size.block, seed=1)
    b = make_blocks(size.blocks, size.block, seed=2)
    graph, keys = make_graph(a, b, size.blocks)
    places = [key[1:] for key in keys]

    def blocks(values: Any) -> Any:
        return dict(zip(places, values, strict=True))

    row, result = measure(
        "matrix product",
        lambda: plain_loop(a, b, size.blocks),
        {
            "sync": lambda: blocks(taskloom.get_sync(graph, keys)),
            "threads": lambda: blocks(taskloom.threaded.get(graph, keys, num_workers=workers)),
            "processes": lambda: blocks(taskloom.multiprocessing.get(graph, keys, num_workers=workers)),
        },
        same=same_blocks,
    )
    right = is_product(result, a, b)
    say("  Compared with A @ B of the whole matrices: " + ("right." if right else "WRONG."))
    return row._replace(right=row.right and right)


def measure(
    name: str,
    plain: Callable[[], Any],
    ways: dict[str, Callable[[], Any]],
    same: Callable[[Any, Any], bool] | None = None,
) -> tuple[Row, Any]:
    """Compute one thing in all ways; the row of the table, and the result of the plain loop."""
    begin = time.perf_counter()
    expected = plain()
    seconds = {"plain loop": time.perf_counter() - begin}
    right = True
    count = CountTasks()
    for way, compute in ways.items():
        with ProgressBar(f"{name}, {way}"), count if way == "sync" else contextlib.nullcontext():
            begin = time.perf_counter()
            result = compute()
            seconds[way] = time.perf_counter() - begin
        if not (same(result, expected) if same else result == expected):
            right = False
            say(f"  WRONG: the result of {way} is another one than the plain loop's.")
        del result
    return Row(name, seconds, count.total, right), expected


def same_blocks(one: Any, other: Any) -> bool:
    """Bit by bit: the same operations in the same order."""
    return one.keys() == other.keys() and all(bool((one[place] == other[place]).all()) for place in one)


def table(rows: list[Row]) -> None:
    """The times side by side."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title="Seconds, and how many times as fast as the plain loop", title_justify="left")
    shown.add_column("computation")
    for way in WAYS:
        shown.add_column(way, justify="right")
    shown.add_column("tasks", justify="right")
    shown.add_column("checked", justify="right")
    for row in rows:
        plain = row.seconds["plain loop"]
        cells = [f"{plain:.2f}"]
        for way in list(WAYS)[1:]:
            cells.append(f"{row.seconds[way]:.2f} ({plain / row.seconds[way]:.1f}x)")
        shown.add_row(row.name, *cells, f"{row.tasks:,}", "yes" if row.right else "NO")
    Console().print(shown)


def explain(rows: list[Row], workers: int) -> None:
    """Why the times are as they are, in two sentences."""
    if workers < 2:
        say("With one task at a time no scheduler can be faster than a loop.")
        return
    say(
        "The log analysis is pure Python, of which one process runs one piece at a time: threads don't make it\n"
        "faster, processes do, once there is more to do than it takes to start them. NumPy lets other threads\n"
        "run while it computes: there, threads are best, as processes must send each other the blocks."
    )


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """NumPy's linear algebra on one thread: else the plain loop would use all CPUs already, and tasks would fight."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        if "numpy" not in sys.modules:  # it reads these when it is imported
            for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
                os.environ.setdefault(name, "1")
        yield
        return
    try:
        import numpy  # noqa: F401  # it limits what is loaded already
    except ImportError:
        pass
    with threadpool_limits(1):
        yield


def say(text: str) -> None:
    print(text, flush=True)
