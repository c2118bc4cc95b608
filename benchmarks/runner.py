"""Rounds: every system in its own process, one run after the other, in turns."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.systems import SYSTEMS

__all__ = ["Cell", "Child", "ChildError", "descendants_of", "environment", "run_workload"]

ROOT = Path(__file__).resolve().parent.parent

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)
"""Set before NumPy is imported anywhere, so that no system gets more of the machine than it has workers."""

SLOW = 4.0  # seconds; a system that takes longer for a run has few rounds only


def environment() -> dict[str, str]:
    """The environment of every process that is measured."""
    path = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}


def descendants_of(pid: int) -> list[psutil.Process]:
    """All processes that a process has started, and so on, as far as they have not been left behind."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


class ChildError(Exception):
    """A child did not answer: it died, or took too long."""


class Child:
    """A process that runs one system; see :mod:`benchmarks.child`.

    Args:
        system: its name in ``SYSTEMS``.
        workers: how many tasks may run at a time.
        limit: seconds that it may take for one answer.
    """

    def __init__(self, system: str, workers: int, limit: float = 90.0) -> None:
        self.system = system
        self.limit = limit
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.child", system, str(workers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            env=environment(),
            start_new_session=True,  # so that its pool's processes can be ended with it
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Give an order and wait for the answer.

        Raises:
            ChildError: there was none.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise ChildError(self._end()) from error
        if not select.select([self.process.stdout], [], [], self.limit)[0]:
            self.kill()
            raise ChildError(f"took more than {self.limit:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise ChildError(self._end())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end(self) -> str:
        code = self.process.wait()
        return f"the process ended with {signal.Signals(-code).name if code < 0 else f'exit status {code}'}"

    def close(self) -> None:
        """Let it end by itself, then make sure."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.close()
        except OSError:
            pass
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        self.kill()
        self.process.stdout.close()

    def kill(self) -> None:
        """End it and everything that it started, also what has left its group."""
        descendants = descendants_of(self.process.pid)
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        for process in descendants:
            try:
                process.kill()  # unless its number is another one's by now
            except psutil.Error:
                pass
        self.process.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if exc_info[0] is not None:
            self.kill()
        self.close()


@dataclass
class Cell:
    """One system's runs of one workload.

    Attributes:
        seconds: of each run.
        right: whether all results were right.
        note: why there is no figure: absent, an error, or not made for it ("").
    """

    system: str
    workload: str
    title: str = ""
    tasks: int = 0
    in_us: bool = True
    seconds: list[float] = field(default_factory=list)
    right: bool = True
    note: str = ""

    @property
    def best(self) -> float | None:
        """Seconds of the fastest run; None where there is none or a result was wrong."""
        return min(self.seconds) if self.seconds and self.right else None

    @property
    def median(self) -> float | None:
        """Seconds."""
        return statistics.median(self.seconds) if self.seconds and self.right else None

    @property
    def best_us(self) -> float | None:
        """Microseconds a task in the fastest run."""
        return None if self.best is None else self.best / self.tasks * 1e6


def run_workload(
    workload: str,
    systems: Sequence[str],
    *,
    workers: int,
    repeat: int,
    budget: float,
    quick: bool,
    data: str,
    say: Callable[[str], None],
    slow: float = SLOW,
    slow_rounds: int = 2,
) -> list[Cell]:
    """Run a workload on systems in turns.

    Args:
        repeat: rounds, at most.
        budget: seconds after which no further round begins; there are two rounds at least (one, if quick). Where slow systems
            have one round only, that one does not count.
        data: folder with the files of :func:`benchmarks.workloads.make_data`.
        say: told what happens.
        slow: seconds; a system that takes longer for a run has ``slow_rounds`` only.

    Returns:
        A cell for each system, in their order.
    """
    cells = {name: Cell(name, workload) for name in systems}
    children: dict[str, Child] = {}
    try:
        for name in systems:
            children[name] = Child(name, workers)
        # No clock runs yet.
        with ThreadPoolExecutor(len(systems) or 1) as threads:
            ready = threads.map(lambda name: _prepare(cells[name], children[name], workload, quick, data), systems)
            for name, is_ready in zip(systems, ready, strict=True):
                if not is_ready:
                    children.pop(name).close()
        # the same order of turns in each run of the benchmarks
        draw = random.Random(f"{workload} {len(systems)}")
        begin = time.monotonic()
        for n in range(repeat):
            if n >= (1 if quick else 2) and time.monotonic() - begin > budget:
                break
            turn = [name for name in children if n < slow_rounds or max(cells[name].seconds, default=0.0) < slow]
            draw.shuffle(turn)
            for name in turn:
                if not _run(cells[name], children[name]):
                    children.pop(name).close()
            say(f"  {workload}: round {n + 1}, {time.monotonic() - begin:.0f} s")
            if n + 1 == slow_rounds == 1:
                begin = time.monotonic()  # the slow ones have had theirs; the others have rounds of their own
    finally:
        with ThreadPoolExecutor(len(children) or 1) as threads:
            list(threads.map(Child.close, children.values()))
    return list(cells.values())


def _prepare(cell: Cell, child: Child, workload: str, quick: bool, data: str) -> bool:
    try:
        loaded = child.ask("load")
        if "absent" in loaded:
            cell.note = loaded["absent"]
            return False
        if "error" in loaded:
            cell.note = loaded["error"]
            return False
        answer = child.ask("prepare", workload=workload, quick=quick, data=data)
    except ChildError as error:
        cell.note = str(error)
        return False
    if answer.get("not_for_this"):
        return False
    if "error" in answer:
        cell.note = answer["error"]
        return False
    cell.title, cell.tasks, cell.in_us = answer["title"], answer["tasks"], answer["in_us"]
    return True


def _run(cell: Cell, child: Child) -> bool:
    """One run; False when the system is out."""
    try:
        answer = child.ask("run")
    except ChildError as error:
        cell.note = str(error)
        return False
    if answer.get("not_for_this"):
        return False
    if "error" in answer:
        cell.note = answer["error"]
        return False
    cell.seconds.append(answer["seconds"])
    if not answer["right"]:
        cell.right = False
        cell.note = "wrong result"
        return False
    return True


def versions(systems: Sequence[str]) -> dict[str, str]:
    """Package -> version, of those that are installed."""
    found: dict[str, str] = {}
    for name in systems:
        system = SYSTEMS[name]
        if system.package and system.package not in found:
            try:
                found[system.package] = system.version()
            except Exception:  # not installed, or broken: its row says so
                pass
    return found
