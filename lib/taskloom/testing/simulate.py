"""Many simulated clusters, on all CPUs: ``make simulate SEEDS=10000``.

It stops at the first seed that fails, prints its story and the command that replays it, and ends with status 1. With
``--mutations`` it looks instead for a seed that notices each of the rules that :mod:`taskloom.testing.mutations` breaks.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskloom.testing.cluster import HARMLESS, LONG, QUICK, TROUBLES, SimulatedCluster, SimulationError
from taskloom.testing.mutations import BY_NAME, MUTATIONS, find

__all__ = ["main", "table"]

PROFILES = {"quick": QUICK, "long": LONG}
CHUNK = 20  # seeds that a process takes at a time
WITHIN = 1000  # seeds that a broken rule must be found in
BEGIN, END = "<!-- mutations: made by make simulate MUTATIONS=1 -->", "<!-- end of mutations -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: what follows the command's name; by default the process's own.

    Returns:
        The exit status: 0 where all seeds passed, or all mutations were found.
    """
    parser = argparse.ArgumentParser(prog="python -m taskloom.testing.simulate", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10_000, help="how many (default: 10000)")
    parser.add_argument("--start", type=int, default=0, help="the first one (default: 0)")
    parser.add_argument(
        "--profile", choices=PROFILES, default="quick", help="how large the clusters are (default: quick)"
    )
    parser.add_argument("--harmless", action="store_true", help="only troubles after which nothing may run twice")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="default: one for each CPU")
    parser.add_argument(
        "--mutations", action="store_true", help="break rules on purpose, and look for seeds that notice"
    )
    parser.add_argument("--write", type=Path, help="write the table of mutations into this document")
    options = parser.parse_args(arguments)
    if options.mutations:
        return _mutations(options)
    return _seeds(options)


# --- seeds


def _run(job: tuple[int, int, str, bool]) -> tuple[int, str]:
    """How many seeds passed, and what the first one that did not says."""
    start, end, profile, harmless = job
    troubles = HARMLESS if harmless else TROUBLES
    for seed in range(start, end):
        try:
            SimulatedCluster(seed, profile=PROFILES[profile], troubles=troubles).run()
        except SimulationError as error:
            return seed - start, str(error)
    return end - start, ""


def _seeds(options: Any) -> int:
    end = options.start + options.seeds
    jobs = [
        (start, min(start + CHUNK, end), options.profile, options.harmless)
        for start in range(options.start, end, CHUNK)
    ]
    begun = told = time.monotonic()
    passed = 0
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for count, failure in pool.imap(_run, jobs):
            passed += count
            now = time.monotonic()
            speed = f"{passed / max(now - begun, 1e-9):.0f} a second"
            if failure:
                seed = options.start + passed
                more = f" --profile {options.profile}" * (options.profile != "quick") + " --harmless" * options.harmless
                print(failure)
                print(f"\n{passed} seeds passed, {speed}; seed {seed} did not. It replays by")
                print(f"  python -m taskloom.testing.simulate --start {seed} --seeds 1{more}")
                return 1
            if now - told > 2:
                told = now
                print(f"{passed} of {options.seeds} seeds, {speed}", file=sys.stderr, flush=True)
    print(f"{passed} seeds passed, {speed if passed else ''}")
    return 0


# --- rules broken on purpose


def _find(name: str) -> tuple[str, int, str]:
    return (name, *find(BY_NAME[name], range(WITHIN)))


def table(found: Sequence[tuple[str, int, str]]) -> str:
    """The table of mutations, as Markdown.

    Args:
        found: name of a mutation, the seed that finds it, what it says.
    """
    lines = ["| what is done wrong | seed | what it says |", "| --- | --- | --- |"]
    for name, seed, says in found:
        says = " ".join(says.split())
        says = says if len(says) <= 110 else says[:107] + "..."
        lines.append(f"| {name} | {seed} | `{says.replace('|', '/').replace('`', '')}` |")
    return "\n".join(lines) + "\n"


def _mutations(options: Any) -> int:
    found = []
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for name, seed, says in pool.imap(_find, [mutation.name for mutation in MUTATIONS]):
            found.append((name, seed, says))
            print(f"{seed:5d}  {name}: {says[:100]}" if seed >= 0 else f"NOT FOUND  {name}", flush=True)
    missed = [name for name, seed, _ in found if seed < 0]
    if options.write is not None and not missed:
        text = options.write.read_text()
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        options.write.write_text(f"{before}{BEGIN}\n\n{table(found)}\n{END}{after}")
    print(f"{len(found) - len(missed)} of {len(found)} broken rules are found within {WITHIN} seeds")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
