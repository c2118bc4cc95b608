"""Single figures: what an import takes, the first use, a small graph, the memory of a large one."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.runner import Child, ChildError, environment

__all__ = ["IMPORTS", "Figure", "imports", "latencies", "memory"]

IMPORTS = {
    "python -c pass": "pass",
    "import taskloom": "import taskloom",
    "the same, and its three schedulers": (
        "import taskloom; taskloom.get_sync; taskloom.threaded.get; taskloom.multiprocessing.get"
    ),
    "import dask": "import dask",
    "the same, and its three schedulers ": "import dask, dask.threaded, dask.multiprocessing",
    "import joblib": "import joblib",
    "import loky": "import loky",
}

SHAPES = {"noops": "no dependencies, all values wanted", "grid": "rows of 1,000, each task needs two"}


@dataclass
class Figure:
    """One figure of one thing.

    Attributes:
        what: what was measured.
        subject: a system, or what was imported.
        value: the best, in seconds (``memory``: bytes a task); None where there is none.
        other: seconds: the median, for an import the whole process; for ``memory`` how long the run took.
        note: why there is no value.
    """

    what: str
    subject: str
    value: float | None = None
    other: float | None = None
    note: str = ""


def imports(times: int) -> list[Figure]:
    """Seconds of imports in fresh interpreters: of the statement alone, and of the process from start to end."""
    statement: dict[str, list[float]] = {name: [] for name in IMPORTS}
    whole: dict[str, list[float]] = {name: [] for name in IMPORTS}
    absent: set[str] = set()
    # A folder of nothing: what lies in the current one would be found first.
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(times):
            for name, code in IMPORTS.items():
                if name in absent:
                    continue
                program = f"import time; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
                begin = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, "-c", program], cwd=folder, env=environment(), capture_output=True, check=False
                )
                seconds = time.perf_counter() - begin
                if done.returncode:
                    absent.add(name)
                    continue
                statement[name].append(float(done.stdout))
                whole[name].append(seconds)
    return [
        Figure("import", name.strip(), note="not installed")
        if name in absent
        else Figure("import", name.strip(), min(statement[name]), min(whole[name]))
        for name in IMPORTS
    ]


def latencies(systems: Sequence[str], workers: int, times: int, say: Callable[[str], None]) -> list[Figure]:
    """The first use of a pool and a graph of three tasks, each time in a fresh process."""
    first: dict[str, list[float]] = {name: [] for name in systems}
    small: dict[str, list[float]] = {name: [] for name in systems}
    notes: dict[str, str] = {}
    for n in range(times):
        for name in systems:
            if name in notes:
                continue
            try:
                with Child(name, workers, limit=60.0) as child:
                    loaded = child.ask("load")
                    if "absent" in loaded:
                        notes[name] = "not installed"
                        continue
                    if "error" in loaded:
                        notes[name] = loaded["error"]
                        continue
                    answer = child.ask("first")
                    if answer.get("not_for_this"):
                        notes[name] = ""
                        continue
                    if "error" in answer or not answer["right"]:
                        notes[name] = answer.get("error", "wrong result")
                        continue
                    first[name].append(answer["seconds"])
                    answer = child.ask("small", times=200)
                    if answer.get("right"):
                        small[name] += answer["seconds"]
            except ChildError as error:
                notes[name] = str(error)
        say(f"  first use: round {n + 1}")
    found = []
    for what, taken in (("first use", first), ("three tasks", small)):
        for name in systems:
            seconds = taken[name]
            if seconds:
                found.append(Figure(what, name, min(seconds), statistics.median(seconds)))
            elif notes.get(name):
                found.append(Figure(what, name, note=notes[name]))
    return found


def memory(systems: Sequence[str], workers: int, tasks: int, say: Callable[[str], None]) -> list[Figure]:
    """Bytes a task at the peak of a run, beyond the graph and the results.

    No clock counts here, so as many run at a time as there are CPUs.
    """

    def measure(job: tuple[str, str]) -> Figure:
        name, shape = job
        what = f"memory: {SHAPES[shape]}"
        try:
            with Child(name, workers, limit=400.0) as child:
                loaded = child.ask("load")
                if "absent" in loaded or "error" in loaded:
                    return Figure(what, name, note=loaded.get("error", "not installed"))
                answer = child.ask("memory", tasks=tasks, shape=shape)
        except ChildError as error:
            return Figure(what, name, note=str(error))
        say(f"  memory of {tasks:,} tasks: {name}, {shape}")
        if "error" in answer or not answer["right"]:
            return Figure(what, name, note=answer.get("error", "wrong result"))
        return Figure(what, name, answer["bytes"], answer["seconds"])

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(measure, [(name, shape) for shape in SHAPES for name in systems]))
