"""``python -m benchmarks``; see the package's docstring."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import figures
from benchmarks.report import as_json, report
from benchmarks.runner import ROOT, run_workload, versions
from benchmarks.systems import SYSTEMS
from benchmarks.workloads import LOCAL, WORKLOADS, make_data

LOCAL = ("taskloom-sync", "taskloom-threads", "taskloom-processes")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables, write them; the exit status is 1 where a result was wrong."""
    options = _parser().parse_args(arguments)
    begin = time.monotonic()
    whole = not options.quick and options.systems is None and options.workloads is None
    systems = _names("system", options.systems, SYSTEMS, [name for name in SYSTEMS if "local" in SYSTEMS[name].groups])
    workloads = _names("workload", options.workloads, WORKLOADS, LOCAL)
    repeat = options.repeat or (2 if options.quick else 7)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    found_figures: list[figures.Figure] = []
    if options.figures or (options.workloads is None and not options.no_figures):
        say("imports")
        found_figures += figures.imports(3 if options.quick else 10)
        say("first use and small graphs")
        found_figures += figures.latencies(systems, options.workers, 1 if options.quick else 4, say)
    cells = []
    with tempfile.TemporaryDirectory(prefix="taskloom-bench-") as data:
        make_data(data, options.quick)
        for workload in workloads:
            say(f"{workload}: {WORKLOADS[workload].title}")
            cells += run_workload(
                workload,
                systems,
                workers=options.workers,
                repeat=repeat,
                budget=3.0 if options.quick else 22.0,
                quick=options.quick,
                data=data,
                say=say,
            )
    if found_figures:
        say("memory")
        local = [name for name in LOCAL if name in systems]
        found_figures += figures.memory(local, options.workers, 100_000 if options.quick else 1_000_000, say)
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    found_versions = versions(systems)
    took = time.monotonic() - begin
    text = report(
        cells,
        found_figures,
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
            cells, found_figures, date=date, quick=options.quick, workers=options.workers, versions=found_versions
        )
        Path(options.json).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    wrong = [cell for cell in cells if not cell.right]
    for cell in wrong:
        say(f"wrong result: {cell.system}, {cell.workload}")
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time taskloom beside other systems. Without arguments: everything, and docs/benchmarks.md is "
        "written anew (about ten minutes).",
    )
    parser.add_argument("--systems", nargs="+", metavar="NAME", help=f"of: {', '.join(SYSTEMS)}; a prefix takes all")
    parser.add_argument("--workloads", nargs="+", metavar="NAME", help=f"of: {', '.join(WORKLOADS)}")
    parser.add_argument("--repeat", type=int, metavar="N", help="rounds, at most (7; with --quick 2)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="tasks at a time (2)")
    parser.add_argument("--quick", action="store_true", help="small workloads: does it work")
    parser.add_argument("--figures", action="store_true", help="the single figures too, where --workloads is given")
    parser.add_argument("--no-figures", action="store_true", help="without the single figures")
    parser.add_argument("--write", metavar="FILE", help="write the document there")
    parser.add_argument("--json", metavar="FILE", help="write all times there")
    return parser


def _names(what: str, given: list[str] | None, known: dict[str, type], default: Sequence[str]) -> list[str]:
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
