"""The process that runs one system: reads orders from its standard input and answers, one line of JSON each.

``python -m benchmarks.child SYSTEM WORKERS``. It ends when its input does.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.systems import SYSTEMS, NotForThis, System, why_absent
from benchmarks.workloads import WORKLOADS, Workload, add, inc, noop


class Server:
    """One system and what it has been told to do."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.workload: Workload | None = None
        self.call: Callable[[], Any] | None = None
        self.started = False
        self.importing = 0.0

    def start(self) -> None:
        if not self.started:
            self.started = True
            self.system.start()

    def load(self, **_: Any) -> dict[str, Any]:
        begin = time.perf_counter()
        try:
            self.system.load()
        except ImportError as error:
            package = self.system.package
            return {"absent": why_absent(package) if package else f"not installed: {error}"}
        self.importing = time.perf_counter() - begin
        return {"version": self.system.version()}

    def prepare(self, workload: str, quick: bool, data: str) -> dict[str, Any]:
        """Make the workload, the pool, and let the pool warm up on another graph."""
        self.workload = WORKLOADS[workload](quick, data)
        if not self.workload.cold:
            self.start()
        self.call = self.system.prepare(self.workload)
        if not self.workload.cold:
            try:
                self.system.run(WORKLOADS["noops"](True))
            except NotForThis:
                pass
        return {
            "title": self.workload.title,
            "tasks": self.workload.tasks,
            "in_us": self.workload.in_us,
        }

    def run(self) -> dict[str, Any]:
        """One run: the clock, then the check."""
        assert self.call is not None
        assert self.workload is not None
        if self.workload.cold:
            if self.started:
                self.started = False
                self.system.close()
            self.start()
        gc.collect()
        seconds, value = self.system.measure(self.workload, self.call)
        return {"seconds": seconds, "right": self.workload.check(value)}

    def first(self) -> dict[str, Any]:
        """The first get of one task: the pool is made in it."""
        begin = time.perf_counter()
        self.start()
        value = self._one()
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "right": value == 1}

    def ready(self) -> dict[str, Any]:
        """Making the pool, until all of its workers are there, and then the first task; after the import, in this process."""
        begin = time.perf_counter()
        self.start()
        started = time.perf_counter()
        value = self._one()
        done = time.perf_counter()
        return {"import": self.importing, "start": started - begin, "first": done - started, "right": value == 1}

    def _one(self) -> Any:
        try:
            return self.system.get({"x": (inc, 0)}, "x")
        except NotForThis:
            return self.system.map(inc, [0])[0]

    def small(self, times: int) -> dict[str, Any]:
        """Graphs of three tasks, one after the other; how long one takes."""
        self.start()
        graph = {"a": (inc, 0), "b": (inc, "a"), "c": (add, "a", "b")}
        try:
            self.system.get(graph, "c")
        except NotForThis:
            return {"not_for_this": True}
        taken = []
        right = True
        gc.collect()
        for _ in range(times):
            begin = time.perf_counter()
            value = self.system.get(graph, "c")
            taken.append(time.perf_counter() - begin)
            right = right and value == 3
        return {"seconds": taken, "right": right}

    def memory(self, tasks: int, shape: str) -> dict[str, Any]:
        """What this process allocates at most while a graph runs, beyond what is left of it: the results.

        Only what Python allocates counts (tracemalloc), and only in this process.
        """
        import tracemalloc

        graph: dict[Any, Any]
        keys: Any
        if shape == "noops":
            graph = {("x", i): (noop, i) for i in range(tasks)}
            keys = list(graph)
        else:  # rows of 1,000, each task needs two of the row before
            graph = {("x", 0, i): (inc, i) for i in range(1000)}
            for row in range(1, tasks // 1000):
                for i in range(1000):
                    graph["x", row, i] = (_small, ("x", row - 1, i), ("x", row - 1, i - 1 if i else 999))
            keys = [("x", tasks // 1000 - 1, i) for i in range(1000)]
        self.start()
        self._one()  # what is made once a process is none of the graph's
        gc.collect()
        tracemalloc.start()
        begin = time.perf_counter()
        values = self.system.get(graph, keys)
        seconds = time.perf_counter() - begin
        peak = tracemalloc.get_traced_memory()[1]
        gc.collect()
        left = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return {"bytes": (peak - left) / tasks, "seconds": seconds, "right": len(values) == len(keys)}


def _small(x: int, y: int) -> int:
    return (x + y) & 127  # one of the integers that Python keeps: the values themselves take no memory


def main() -> None:
    # Answers have a channel of their own: what a task prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, workers = sys.argv[1], int(sys.argv[2])
    server = Server(SYSTEMS[name](workers))
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = getattr(server, order.pop("do"))(**order)
        except NotForThis:
            answer = {"not_for_this": True}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), file=answers, flush=True)
    if server.started:
        server.system.close()


if __name__ == "__main__":
    main()
