"""What was measured, as text that people read: one document in Markdown."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.figures import Figure
from benchmarks.measures import Measured
from benchmarks.runner import Cell
from benchmarks.systems import SYSTEMS
from benchmarks.workloads import WORKLOADS

__all__ = ["machine", "report"]

Row = Sequence[str]


def machine() -> dict[str, str]:
    """What kind of machine this is; nothing that says whose."""
    return {
        "CPU": _cpu_model(),
        "cores": str(_cores()),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
    }


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (ValueError, OSError):
        return "unknown"


class _Results:
    """The cells and figures by name."""

    def __init__(self, cells: Sequence[Cell], figures: Sequence[Figure]) -> None:
        self.cells = {(cell.system, cell.workload): cell for cell in cells}
        self.figures = {(figure.what, figure.subject): figure for figure in figures}

    def us(self, system: str, workload: str) -> float | None:
        cell = self.cells.get((system, workload))
        return None if cell is None else cell.best_us

    def seconds(self, system: str, workload: str) -> float | None:
        cell = self.cells.get((system, workload))
        return None if cell is None else cell.best


def report(
    cells: Sequence[Cell],
    figures: Sequence[Figure],
    cluster_cells: Sequence[Cell] = (),
    measured: Sequence[Measured] = (),
    *,
    workers: int,
    quick: bool,
    date: str,
    versions: dict[str, str],
    took: float,
) -> str:
    """The document.

    Args:
        cells, figures: what was measured.
        cluster_cells, measured: the same of the cluster and its peers.
        date: of the run.
        versions: package -> version.
        took: seconds that all of it took.
    """
    results = _Results(cells, figures)
    parts: list[str] = ["# Benchmarks\n"]
    parts.append(
        "Made by `make bench` (`python -m benchmarks`); do not edit. How it is measured stands at the top of "
        "`benchmarks/__init__.py`: systems in turns, each in a process of its own, the best of several rounds, every "
        "result checked.\n"
    )
    if quick:
        parts.append("**A quick run: small workloads, few rounds. It shows that all works; the figures say little.**\n")
    rows = [("date", date), *machine().items()]
    rows += [("workers", f"{workers}, with one BLAS thread each"), ("took", f"{took:.0f} s")]
    parts.append(_table(("", ""), rows))
    parts.append(_table(("package", "version"), list(versions.items())))
    targets = list(_targets(results))
    if targets:
        parts.append("## Must reach\n")
        parts.append(
            "The aims of the first release, for 2 cores. The ratio is to the peer in the same run: how many times as "
            "long it takes.\n"
        )
        parts.append(_table(("what", "measured", "aim", "peer", "ratio", "aim", "reached"), targets))
    cluster = _Results(cluster_cells, ())
    goals = list(_cluster_targets(cluster, measured))
    if goals:
        parts.append("## Cluster: must reach\n")
        parts.append(
            f"The aims of the cluster: client, scheduler and {workers} workers share the cores, and every connection has "
            "proved that it knows the token. Behind a peer's figure: how many times as long as ours it is.\n"
        )
        parts.append(_table(("what", "measured", "aim", *PEERS, "reached"), goals))
    for title, of, found in (("", results, cells), ("Cluster: ", cluster, cluster_cells)):
        if found:
            systems = list(dict.fromkeys(cell.system for cell in found))
            workloads = list(dict.fromkeys(cell.workload for cell in found))
            parts.append(f"## {_upper(title + 'summary')}\n")
            parts.append(
                "Microseconds a task; milliseconds in all where the name ends with (ms). Best of the rounds.\n"
            )
            parts.append(_summary(of, systems, workloads))
            parts.append(f"## {_upper(title + 'each workload')}\n")
            parts += [_workload(of, systems, workload) for workload in workloads]
    if measured:
        parts.append("## Cluster: beside the workloads\n")
        parts.append("How each is measured stands in `benchmarks/measures.py`.\n")
        parts.append(_measured(measured))
    if figures:
        parts.append("## Single figures\n")
        parts += _figures(figures)
    return "\n".join(parts)


def _table(head: Row, rows: Sequence[Row]) -> str:
    """A table in Markdown, readable as plain text too: the first column left, the others right."""
    shown = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[n]) for row in shown)) for n in range(len(head))]

    def line(row: Row) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return "| " + " | ".join(cells) + " |"

    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([line(shown[0]), rule, *map(line, shown[1:])]) + "\n"


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{_number(seconds * 1e6)} us"
    if seconds < 1:
        return f"{_number(seconds * 1e3)} ms"
    return f"{_number(seconds)} s"


def _summary(results: _Results, systems: Sequence[str], workloads: Sequence[str]) -> str:
    head = ["system"]
    for workload in workloads:
        head.append(workload if WORKLOADS[workload].in_us else f"{workload} (ms)")
    rows = []
    for system in systems:
        row = [system]
        for workload in workloads:
            cell = results.cells[system, workload]
            value = cell.best_us if cell.in_us else cell.best and cell.best * 1e3
            row.append(_number(value) if value is not None else "error" if _failed(cell) else "-")
        if any(item != "-" for item in row[1:]) or any(results.cells[system, workload].note for workload in workloads):
            rows.append(row)
    return _table(head, rows)


def _failed(cell: Cell) -> bool:
    return bool(cell.note) and not cell.note.startswith("not installed")


def _workload(results: _Results, systems: Sequence[str], workload: str) -> str:
    shown = [results.cells[system, workload] for system in systems]
    shown = [cell for cell in shown if cell.seconds or cell.note]
    tasks = max((cell.tasks for cell in shown), default=0)
    title = next((cell.title for cell in shown if cell.title), WORKLOADS[workload].title)
    plain = results.seconds("plain loop", workload)
    split = results.seconds("split by hand", workload)
    head = ["system", "best", "median", "rounds", "us a task", "x plain loop"]
    if split:
        head.append("x split by hand")
    head += ["peer / ours", "result"]
    rows = []
    for cell in shown:
        if cell.best is None:
            rows.append([cell.system, *["-"] * (len(head) - 2), cell.note or "-"])
            continue
        row = [cell.system, _time(cell.best), _time(cell.median), str(len(cell.seconds)), _number(cell.best_us or 0.0)]
        row.append(_number(cell.best / plain) if plain else "-")
        if split:
            row.append(_number(cell.best / split))
        ours = results.seconds(SYSTEMS[cell.system].peer, workload)
        row.append(_number(cell.best / ours) if ours else "-")
        row.append("right")
        rows.append(row)
    count = f"{tasks:,} tasks" if tasks != 1 else "1 task"
    return f"### {workload}\n\n{_upper(title)}. {count}.\n\n" + _table(head, rows)


def _figures(figures: Sequence[Figure]) -> Iterator[str]:
    names = list(dict.fromkeys(figure.what for figure in figures))
    found = {name: [figure for figure in figures if figure.what == name] for name in names}
    if "import" in found:
        yield "### Import\n"
        yield "Fresh interpreters: the statement alone, and the process from its start to its end.\n"
        yield _table(
            ("statement", "statement alone", "whole process"),
            [(f.subject, f.note or _time(f.value), _time(f.other)) for f in found.pop("import")],
        )
    if "first use" in found:
        yield "### First use\n"
        yield "The first get (or map) of one task in a fresh process, imports done: the pool is made in it.\n"
        yield _table(
            ("system", "best", "median"),
            [(f.subject, f.note or _time(f.value), _time(f.other)) for f in found.pop("first use")],
        )
    if "three tasks" in found:
        yield "### A small graph\n"
        yield "One get of three tasks, the pool warm.\n"
        yield _table(
            ("system", "best", "median"),
            [(f.subject, f.note or _time(f.value), _time(f.other)) for f in found.pop("three tasks")],
        )
    if found:
        yield "### Memory\n"
        yield (
            "What Python allocates at most in the calling process while the graph runs, beyond the graph and the "
            "results (tracemalloc, under which a run takes several times as long).\n"
        )
        rows = []
        for figures_of in found.values():
            for f in figures_of:
                value = f.note or f"{f.value or 0.0:.0f} bytes a task"
                rows.append((f.subject, f.what.partition(": ")[2], value, _time(f.other)))
        yield _table(("system", "graph", "peak", "run"), rows)


def _targets(results: _Results) -> Iterator[Row]:
    """The rows of "Must reach": what, measured, aim, peer, ratio, aim of the ratio, reached."""

    def answer(*conditions: bool | None) -> str:
        if any(condition is None for condition in conditions):
            return "not measured"
        return "yes" if all(conditions) else "NO"

    for kind, most, least in (("sync", 2.0, 16.0), ("threads", 5.0, 12.0), ("processes", 5.0, 30.0)):
        ours = results.us(f"taskloom-{kind}", "noops")
        peer = results.us(f"dask-{kind}", "noops")
        if ours is None:
            continue
        ratio = peer / ours if peer else None
        yield (
            f"10,000 no-ops, {kind}",
            f"{_number(ours)} us a task",
            f"<= {most:.0f} us",
            "-" if peer is None else f"{_number(peer)} us",
            "-" if ratio is None else _number(ratio),
            f">= {least:.0f}",
            answer(ours <= most, None if ratio is None else ratio >= least),
        )
    noops = results.us("taskloom-sync", "noops")
    for workload in ("tree", "stencil", "random", "chain"):
        ours = results.us("taskloom-sync", workload)
        peer = results.us("dask-sync", workload)
        if ours is None or noops is None:
            continue
        yield (
            f"{workload}, sync",
            f"{_number(ours)} us a task, {_number(ours / noops)} x no-ops",
            "<= 4 us (2 x 2)",
            "-" if peer is None else f"{_number(peer)} us",
            _number(peer / ours) if peer else "-",
            "-",
            answer(ours <= 4.0),
        )
    for kind in ("sync", "threads", "processes"):
        cell = results.cells.get((f"taskloom-{kind}", "chain-100k"))
        other = results.cells.get((f"dask-{kind}", "chain-100k"))
        if cell is None:
            continue
        peer_says = "-"
        if other is not None:
            peer_says = f"{_number(other.best_us)} us" if other.best_us else other.note.partition(":")[0] or "-"
        yield (
            f"chain of 100,000, {kind}",
            f"{_number(cell.best_us)} us a task" if cell.best_us else cell.note,
            "runs",
            peer_says,
            _number(other.best_us / cell.best_us) if other and other.best_us and cell.best_us else "-",
            "-",
            answer(cell.best is not None),
        )
    ours = results.seconds("taskloom-threads", "matmul")
    plain = results.seconds("plain loop", "matmul")
    if ours and plain:
        yield (
            "blocked matmul, threads",
            f"{ours / plain:.3f} of the plain loop",
            "<= 0.55",
            *_peer(results.seconds("dask-threads", "matmul"), ours),
            "-",
            answer(ours / plain <= 0.55),
        )
    for workload in ("json", "json-bag"):
        ours = results.seconds("taskloom-processes", workload)
        split = results.seconds("split by hand", workload)
        if ours and split:
            yield (
                f"{'JSON parsing' if workload == 'json' else 'JSON parsing with a bag'}, processes",
                f"{ours / split:.3f} of work split by hand",
                "<= 1.10",
                *_peer(results.seconds("dask-processes", workload), ours),
                "-",
                answer(ours / split <= 1.10),
            )
    figure = results.figures.get(("import", "import taskloom"))
    if figure is not None and figure.value is not None:
        other_import = results.figures.get(("import", "import dask"))
        yield (
            "import taskloom",
            _time(figure.value),
            "<= 0.05 s",
            *_peer(other_import.value if other_import else None, figure.value),
            "-",
            answer(figure.value <= 0.05),
        )
    for (what, subject), figure in results.figures.items():
        if what.startswith("memory") and figure.value is not None:
            yield (
                f"{what}; {subject}",
                f"{figure.value:.0f} bytes a task",
                "<= 500",
                "-",
                "-",
                "-",
                answer(figure.value <= 500),
            )


PEERS = ("distributed", "ray")

# workload -> what it is called, and the aim in microseconds a task
_AIMS = {
    "noops": ("10,000 no-ops by get", 5.0),
    "futures": ("10,000 futures by map, gathered", 10.0),
    "chain-600-cold": ("chain of 600, cold", 10.0),
    "chain-600": ("chain of 600, warm", 6.0),
    "tree": ("tree", 7.0),
    "stencil": ("stencil", 10.0),
    "random": ("random DAG", 10.0),
    "round-trip": ("submit(...).result() round trip", 200.0),
}


def _cluster_targets(results: _Results, measured: Sequence[Measured]) -> Iterator[Row]:
    """The rows of the cluster's "Must reach": what, measured, aim, each peer, reached."""
    ours = "taskloom-cluster"

    def beside(peer: float | None, own: float | None, shown: str) -> str:
        return "-" if not peer else f"{shown} ({_number(peer / own)} x)" if own else shown

    for workload, (what, aim) in _AIMS.items():
        if (ours, workload) not in results.cells:
            continue
        own = results.us(ours, workload)
        peers = [results.us(name, workload) for name in PEERS]
        yield (
            what,
            results.cells[ours, workload].note if own is None else f"{_number(own)} us",
            f"<= {aim:g} us",
            *[beside(peer, own, _number(peer or 0.0) + " us") for peer in peers],
            "NO" if own is None or own > aim else "yes",
        )
    plain, own = results.seconds("plain loop", "matmul-400"), results.seconds(ours, "matmul-400")
    if plain and own:
        peers = [results.seconds(name, "matmul-400") for name in PEERS]
        yield (
            "blocked matmul, of the plain loop's time",
            f"{own / plain:.3f} ({_time(own)})",
            "<= 0.6",
            *[beside(peer, own, _time(peer)) for peer in peers],
            "yes" if own / plain <= 0.6 else "NO",
        )
    for row in measured:
        if row.aim is None and row.value is not None:
            continue
        peers = [row.peers.get(name) for name in PEERS]
        reached = "yes" if row.reached else "NO" if row.value is not None or not row.right else "not measured"
        yield (
            row.what,
            _with_unit(row.value, row.unit) if row.value is not None else row.note,
            "-" if row.aim is None else f"{'>=' if row.at_least else '<='} {_with_unit(row.aim, row.unit)}",
            *[beside(peer, row.value, _with_unit(peer, row.unit)) for peer in peers],
            reached,
        )


def _with_unit(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "s":
        return _time(value)
    if unit == "tasks":
        return f"{value:,.0f}"
    return f"{_number(value)} {unit}".strip()


def _measured(measured: Sequence[Measured]) -> str:
    rows = []
    for row in measured:
        peers = [_with_unit(row.peers.get(name), row.unit) for name in PEERS]
        rows.append((row.what, _with_unit(row.value, row.unit), *peers, row.note or "-"))
    return _table(("what", "measured", *PEERS, "more"), rows)


def _peer(peer: float | None, ours: float) -> tuple[str, str]:
    return (_time(peer), _number(peer / ours)) if peer else ("-", "-")


def as_json(
    cells: Sequence[Cell], figures: Sequence[Figure], measured: Sequence[Measured] = (), **about: Any
) -> dict[str, Any]:
    """Everything that was measured, for other programs."""
    return {
        "about": about,
        "machine": machine(),
        "runs": [
            {
                "system": cell.system,
                "workload": cell.workload,
                "tasks": cell.tasks,
                "seconds": cell.seconds,
                "best_us": cell.best_us,
                "right": bool(cell.seconds) and cell.right,
                "note": cell.note,
            }
            for cell in cells
        ],
        "figures": [vars(figure) for figure in figures],
        "measured": [vars(row) for row in measured],
    }
