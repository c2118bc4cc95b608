"""``python -m benchmarks``; see the package's docstring."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import figures, measures, profiling
from benchmarks.report import as_json, report
from benchmarks.runner import ROOT, SLOW, Cell, run_workload, versions
from benchmarks.systems import SYSTEMS
from benchmarks.workloads import CLUSTER, LOCAL, WORKLOADS, make_data

OURS = ("taskloom-sync", "taskloom-threads", "taskloom-processes")  # whose memory is measured

Say = Callable[[str], None]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables, write them; the exit status is 1 where a result was wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["profile"]:
        return profiling.main(arguments[1:])
    options = _parser().parse_args(arguments)
    begin = time.monotonic()
    chosen = options.systems or options.workloads or options.measures
    whole = not options.quick and options.part is None and not chosen

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    cells: list[Cell] = []
    cluster_cells: list[Cell] = []
    found_figures: list[figures.Figure] = []
    measured: list[measures.Measured] = []
    local_systems: list[str] = []
    cluster_systems: list[str] = []
    if options.part != "cluster" and not (options.part is None and options.measures and not options.workloads):
        local_systems = _systems(options.systems, "local")
        cells, found_figures = _local(options, local_systems, say)
    if options.part == "cluster" or options.measures or (not chosen and options.part is None):
        cluster_systems = _systems(options.systems, "cluster")
        cluster_cells, measured = _cluster(options, cluster_systems, say)
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    found_versions = versions([*local_systems, *cluster_systems])
    took = time.monotonic() - begin
    text = report(
        cells,
        found_figures,
        cluster_cells,
        measured,
        workers=options.workers,
        quick=options.quick,
        date=date,
        versions=found_versions,
        took=took,
    )
    print(text)
    path = options.write or (str(ROOT / "docs" / "benchmarks.md") if whole else None)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
        say(f"written to {path}")
    if options.json is not None:
        values = as_json(
            [*cells, *cluster_cells],
            found_figures,
            measured,
            date=date,
            quick=options.quick,
            workers=options.workers,
            versions=found_versions,
        )
        Path(options.json).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    wrong = [f"{cell.system}, {cell.workload}" for cell in [*cells, *cluster_cells] if not cell.right]
    wrong += [f"{row.what}: {row.note}" for row in measured if not row.right]
    for what in wrong:
        say(f"wrong result: {what}")
    return 1 if wrong else 0


def _local(options: argparse.Namespace, systems: Sequence[str], say: Say) -> tuple[list[Cell], list[figures.Figure]]:
    """The local schedulers and their peers; or whatever systems and workloads were named."""
    quick = options.quick
    workloads = _names("workload", options.workloads, WORKLOADS, LOCAL)
    found: list[figures.Figure] = []
    if options.figures or (options.workloads is None and not options.no_figures):
        say("imports")
        found += figures.imports(3 if quick else 10)
        say("first use and small graphs")
        found += figures.latencies(systems, options.workers, 1 if quick else 4, say)
    cells = _runs(options, systems, workloads, 22.0, (SLOW, 2), say)
    if found:
        say("memory")
        ours = [name for name in OURS if name in systems]
        found += figures.memory(ours, options.workers, 100_000 if quick else 1_000_000, say)
    return cells, found


def _cluster(
    options: argparse.Namespace, systems: Sequence[str], say: Say
) -> tuple[list[Cell], list[measures.Measured]]:
    """The cluster and its peers, and what is measured of the cluster alone."""
    quick = options.quick
    named = options.part == "cluster"
    workloads = _names("workload", options.workloads if named else None, WORKLOADS, () if options.measures else CLUSTER)
    cells = _runs(options, systems, workloads, 10.0, (2.0, 1), say)
    found: list[measures.Measured] = []
    if options.measures or not (options.no_figures or options.workloads):
        for name in _names("measure", options.measures, measures.TITLES, list(measures.TITLES)):
            say(f"{name}: {measures.TITLES[name]}")
            if name == "startup":
                others = [system for system in systems if system != "plain loop"]
                found += measures.startup(others, options.workers, 1 if quick else 3, say)
            else:
                found += measures.measure(name, quick)
    return cells, found


def _runs(
    options: argparse.Namespace,
    systems: Sequence[str],
    workloads: Sequence[str],
    budget: float,
    slow: tuple[float, int],
    say: Say,
) -> list[Cell]:
    cells: list[Cell] = []
    with tempfile.TemporaryDirectory(prefix="taskloom-bench-") as data:
        if workloads:
            make_data(data, options.quick)
        for workload in workloads:
            say(f"{workload}: {WORKLOADS[workload].title}")
            cells += run_workload(
                workload,
                systems,
                workers=options.workers,
                repeat=options.repeat or (2 if options.quick else 7),
                budget=3.0 if options.quick else budget,
                quick=options.quick,
                data=data,
                say=say,
                slow=slow[0],
                slow_rounds=slow[1],
            )
    return cells


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time taskloom beside other systems. Without arguments: everything, and docs/benchmarks.md is "
        "written anew (about fifteen minutes).",
        epilog="python -m benchmarks profile WORKLOAD shows where the cluster's CPU time goes.",
    )
    parser.add_argument("part", nargs="?", choices=["local", "cluster"], help="one half alone; it is printed")
    parser.add_argument("--systems", nargs="+", metavar="NAME", help=f"of: {', '.join(SYSTEMS)}; a prefix takes all")
    parser.add_argument("--workloads", nargs="+", metavar="NAME", help=f"of: {', '.join(WORKLOADS)}")
    parser.add_argument("--measures", nargs="+", metavar="NAME", help=f"of the cluster: {', '.join(measures.TITLES)}")
    parser.add_argument("--repeat", type=int, metavar="N", help="rounds, at most (7; with --quick 2)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="tasks at a time (2)")
    parser.add_argument("--quick", action="store_true", help="small workloads: does it work")
    parser.add_argument("--figures", action="store_true", help="the single figures too, where --workloads is given")
    parser.add_argument("--no-figures", action="store_true", help="without the single figures")
    parser.add_argument("--write", metavar="FILE", help="write the document there")
    parser.add_argument("--json", metavar="FILE", help="write all times there")
    return parser


def _systems(given: list[str] | None, group: str) -> list[str]:
    return _names("system", given, SYSTEMS, [name for name, system in SYSTEMS.items() if group in system.groups])


def _names(what: str, given: list[str] | None, known: Iterable[str], default: Sequence[str]) -> list[str]:
    if given is None:
        return list(default)
    found: list[str] = []
    for name in (part for item in given for part in item.split(",") if part):
        matching = [name] if name in known else [other for other in known if other.startswith(name + "-")]
        if name == "plain":
            matching = ["plain loop"]
        if not matching:
            raise SystemExit(f"there is no {what} {name!r}; there are: {', '.join(known)}")
        found += matching
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
