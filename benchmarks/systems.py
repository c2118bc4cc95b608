"""The systems: each in the way its documentation shows, with a pool that is kept.

To add one: a class here with ``load`` and ``get`` (or ``map``), and a line in ``SYSTEMS``. Everything else, the
processes, rounds, checks and tables, follows from that.
"""

from __future__ import annotations

import importlib.metadata
import os
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.workloads import FUTURES, GRAPH, TRIPS, Workload

__all__ = ["SYSTEMS", "NotForThis", "System", "why_absent"]


class NotForThis(Exception):
    """The system cannot do this kind of workload; the table has a gap there."""


class System:
    """One system, in a process of its own.

    Attributes:
        name: as on the command line and in the tables.
        package: the distribution whose version is shown; None for what comes with Python.
        groups: in whose tables it is: "local", "cluster" or both.
        peer: the name of the system of ours that does the same kind of thing.

    Args:
        workers: how many tasks may run at a time.
    """

    name = ""
    package: str | None = None
    groups: tuple[str, ...] = ("local",)
    peer = ""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def load(self) -> None:
        """Import what is needed; ImportError: not installed."""

    def start(self) -> None:
        """Make the pool, if the system keeps one outside of ``get``."""

    def get(self, graph: dict[Any, Any], keys: Any) -> Any:
        """The values of keys of a graph."""
        raise NotForThis

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """The results of a function for each item."""
        raise NotForThis

    def futures(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """The results of a function for each item, by a future each."""
        raise NotForThis

    def trip(self, function: Callable[[Any], Any], item: Any) -> Any:
        """The result of one task, by its future."""
        raise NotForThis

    def compute(self, bag: Any) -> Any:
        """The value of a bag of ``bag_module()``."""
        raise NotForThis

    def bag_module(self) -> Any:
        """Where this system has its bag."""
        raise NotForThis

    def run(self, workload: Workload) -> Any:
        """The value of a workload; what the clock is held to."""
        if workload.parts is None or workload.kind != GRAPH:
            raise NotForThis
        return workload.parts.finish(self.map(workload.parts.function, workload.parts.items))

    def prepare(self, workload: Workload) -> Callable[[], Any]:
        """What to call for one run."""
        if type(workload).bag is not Workload.bag:
            bag = workload.bag(self.bag_module())
            return lambda: self.compute(bag)
        return lambda: self.run(workload)

    def measure(self, workload: Workload, call: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds of one run, and its value."""
        parts = workload.parts
        if workload.kind == TRIPS and parts is not None:
            taken = []
            values = []
            for item in parts.items:
                begin = time.perf_counter()
                values.append(self.trip(parts.function, item))
                taken.append(time.perf_counter() - begin)
            return statistics.median(taken), parts.finish(values)
        begin = time.perf_counter()
        value = call()
        return time.perf_counter() - begin, value

    def close(self) -> None:
        """Let the pool go."""

    @classmethod
    def version(cls) -> str:
        return importlib.metadata.version(cls.package) if cls.package else "Python's own"


class _Graphs(System):
    """A system that takes graphs."""

    def run(self, workload: Workload) -> Any:
        if workload.kind == TRIPS:
            raise NotForThis
        if workload.kind == FUTURES and workload.parts is not None:
            return workload.parts.finish(self.futures(workload.parts.function, workload.parts.items))
        return self.get(workload.graph, workload.keys)


class Plain(System):
    name = "plain loop"
    groups = ("local", "cluster")

    def prepare(self, workload: Workload) -> Callable[[], Any]:
        if workload.kind == TRIPS or workload.cold:
            raise NotForThis
        return workload.plain

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return [function(item) for item in items]


class Split(System):
    """The least that processes can do: each has its fixed share before the clock starts, and answers once."""

    name = "split by hand"

    def load(self) -> None:
        if not hasattr(os, "fork"):
            raise ImportError("needs fork")
        self.children: list[tuple[int, int, int]] = []

    def prepare(self, workload: Workload) -> Callable[[], Any]:
        if not workload.split or workload.parts is None:
            raise NotForThis
        import pickle

        parts = workload.parts
        for n in range(self.workers):
            go_read, go_write = os.pipe()
            done_read, done_write = os.pipe()
            pid = os.fork()
            if not pid:
                os.close(go_write)  # so that the end of the parent is the end of this pipe
                for _, go, _ in self.children:
                    os.close(go)
                while os.read(go_read, 1):
                    os.write(
                        done_write, pickle.dumps([parts.function(item) for item in parts.items[n :: self.workers]])
                    )
                os._exit(0)
            os.close(go_read)
            os.close(done_write)
            self.children.append((pid, go_write, done_read))
        whole = type(workload).bag is Workload.bag

        def run() -> Any:
            for _, go, _ in self.children:
                os.write(go, b"x")
            results: list[Any] = []
            for _, _, done in self.children:
                results += pickle.loads(os.read(done, 1 << 20))
            value = parts.finish(results)
            return value if whole else value[1]

        return run

    def close(self) -> None:
        for pid, go, done in self.children:
            os.close(go)
            os.close(done)
            os.waitpid(pid, 0)


class TaskloomSync(_Graphs):
    name = "taskloom-sync"
    package = "taskloom"
    scheduler = "sync"

    def load(self) -> None:
        import taskloom

        self._get: Callable[..., Any] = taskloom.get_sync

    def get(self, graph: dict[Any, Any], keys: Any) -> Any:
        return self._get(graph, keys)

    def bag_module(self) -> Any:
        import taskloom.bag

        return taskloom.bag

    def compute(self, bag: Any) -> Any:
        return bag.compute(scheduler=self._get)

    @classmethod
    def version(cls) -> str:
        import taskloom

        return taskloom.__version__


class TaskloomThreads(TaskloomSync):
    name = "taskloom-threads"

    def load(self) -> None:
        import taskloom

        self._get = partial(taskloom.threaded.get, num_workers=self.workers)


class TaskloomProcesses(TaskloomSync):
    name = "taskloom-processes"

    def load(self) -> None:
        import taskloom

        self._get = partial(taskloom.multiprocessing.get, num_workers=self.workers)


class DaskSync(_Graphs):
    name = "dask-sync"
    package = "dask"
    peer = "taskloom-sync"

    def load(self) -> None:
        import dask

        self._get: Callable[..., Any] = dask.get

    def get(self, graph: dict[Any, Any], keys: Any) -> Any:
        return self._get(graph, keys)

    def bag_module(self) -> Any:
        import dask.bag

        return dask.bag

    def compute(self, bag: Any) -> Any:
        return bag.compute(scheduler=self._get)


class DaskThreads(DaskSync):
    name = "dask-threads"
    peer = "taskloom-threads"

    def load(self) -> None:
        import dask.threaded

        self._get = partial(dask.threaded.get, num_workers=self.workers)


class DaskProcesses(DaskSync):
    name = "dask-processes"
    peer = "taskloom-processes"

    def load(self) -> None:
        import dask.multiprocessing

        self.get_with = dask.multiprocessing.get
        self.initializer = dask.multiprocessing.initialize_worker_process

    def start(self) -> None:
        # dask would make new processes for each get; we give it a pool to keep, made as it makes its own.
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        os.environ.setdefault("PYTHONHASHSEED", "6640")
        self.pool = ProcessPoolExecutor(
            self.workers, mp_context=multiprocessing.get_context("spawn"), initializer=self.initializer
        )
        self._get = partial(self.get_with, pool=self.pool)

    def close(self) -> None:
        self.pool.shutdown()


class JoblibLoky(System):
    name = "joblib-loky"
    package = "joblib"
    peer = "taskloom-processes"
    backend = "loky"

    def load(self) -> None:
        import joblib

        self.joblib: Any = joblib

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        delayed = self.joblib.delayed(function)
        return list(self.joblib.Parallel(n_jobs=self.workers, backend=self.backend)(delayed(item) for item in items))


class JoblibThreads(JoblibLoky):
    name = "joblib-threads"
    peer = "taskloom-threads"
    backend = "threading"


class _Executor(System):
    """An executor in the manner of concurrent.futures."""

    pool: Any

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list(self.pool.map(function, items))

    def close(self) -> None:
        self.pool.shutdown()


class Loky(_Executor):
    name = "loky"
    package = "loky"
    peer = "taskloom-processes"

    def load(self) -> None:
        import loky

        self.make = loky.get_reusable_executor

    def start(self) -> None:
        self.pool = self.make(max_workers=self.workers, timeout=600)

    def close(self) -> None:
        self.pool.shutdown(wait=True)


class FuturesThreads(_Executor):
    name = "futures-threads"
    peer = "taskloom-threads"

    def load(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self.make = ThreadPoolExecutor

    def start(self) -> None:
        self.pool = self.make(self.workers)


class FuturesProcesses(_Executor):
    name = "futures-processes"
    peer = "taskloom-processes"

    def load(self) -> None:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        self.make = partial(ProcessPoolExecutor, mp_context=multiprocessing.get_context("spawn"))

    def start(self) -> None:
        self.pool = self.make(self.workers)


class TaskloomCluster(_Graphs):
    """As ``Client()`` is: a cluster on this machine, with a token, worker processes of one thread each."""

    name = "taskloom-cluster"
    package = "taskloom"
    groups = ("cluster",)
    client: Any

    def load(self) -> None:
        import taskloom

        self.taskloom: Any = taskloom

    def start(self) -> None:
        self.client = self.taskloom.Client(n_workers=self.workers, threads_per_worker=1)
        self.client.wait_for_workers(self.workers)

    def get(self, graph: dict[Any, Any], keys: Any) -> Any:
        return self.client.get(graph, keys)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list(self.client.gather(self.client.map(function, items)))

    futures = map

    def trip(self, function: Callable[[Any], Any], item: Any) -> Any:
        return self.client.submit(function, item).result()

    def bag_module(self) -> Any:
        import taskloom.bag

        return taskloom.bag

    def compute(self, bag: Any) -> Any:
        return bag.compute(scheduler=self.client.get)

    def close(self) -> None:
        self.client.close()

    @classmethod
    def version(cls) -> str:
        import taskloom

        return taskloom.__version__


class Distributed(TaskloomCluster):
    name = "distributed"
    package = "distributed"
    peer = "taskloom-cluster"

    def load(self) -> None:
        import distributed

        self.distributed: Any = distributed

    def start(self) -> None:
        self.client = self.distributed.Client(
            n_workers=self.workers, threads_per_worker=1, processes=True, dashboard_address=None
        )
        self.client.wait_for_workers(self.workers)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        # Not pure: else a second run would find the results of the first.
        return list(self.client.gather(self.client.map(function, items, pure=False)))

    futures = map

    def trip(self, function: Callable[[Any], Any], item: Any) -> Any:
        return self.client.submit(function, item, pure=False).result()

    def bag_module(self) -> Any:
        import dask.bag

        return dask.bag

    @classmethod
    def version(cls) -> str:
        return importlib.metadata.version("distributed")


class Ray(_Graphs):
    """Tasks with references as arguments; a graph is submitted in its own order."""

    name = "ray"
    package = "ray"
    groups = ("cluster",)
    peer = "taskloom-cluster"

    def load(self) -> None:
        # Nothing is sent to its makers, nothing stays in the home folder.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
        import ray

        self.ray: Any = ray
        self.remotes: dict[Any, Any] = {}

    def start(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="ray-")
        self.ray.init(
            num_cpus=self.workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=2 << 30,
            _temp_dir=self.folder,
        )
        self.remotes.clear()
        # It starts its workers when there is something to do.
        self.ray.get([self._remote(_alive).remote(n) for n in range(self.workers)])

    def _remote(self, function: Callable[..., Any]) -> Any:
        found = self.remotes.get(function)
        if found is None:
            found = self.remotes[function] = self.ray.remote(function)
        return found

    def get(self, graph: dict[Any, Any], keys: Any) -> Any:
        made: dict[Any, Any] = {}

        def argument(item: Any) -> Any:
            try:
                return made.get(item, item)
            except TypeError:
                return item

        for key, task in graph.items():
            if type(task) is not tuple or not callable(task[0]):
                made[key] = self.ray.put(task)
                continue
            function, *args = task
            if len(args) == 1 and type(args[0]) is list:  # references within a list would arrive as references
                made[key] = self._remote(_with_list).remote(function, *map(argument, args[0]))
            else:
                made[key] = self._remote(function).remote(*map(argument, args))
        return self.ray.get([made[key] for key in keys] if isinstance(keys, list) else made[keys])

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        remote = self._remote(function)
        return list(self.ray.get([remote.remote(item) for item in items]))

    futures = map

    def trip(self, function: Callable[[Any], Any], item: Any) -> Any:
        return self.ray.get(self._remote(function).remote(item))

    def close(self) -> None:
        self.ray.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)


def _alive(x: int) -> int:
    return x


def _with_list(function: Callable[[list[Any]], Any], *items: Any) -> Any:
    return function(list(items))


SYSTEMS: dict[str, type[System]] = {
    system.name: system
    for system in (
        Plain,
        Split,
        TaskloomSync,
        TaskloomThreads,
        TaskloomProcesses,
        DaskSync,
        DaskThreads,
        DaskProcesses,
        JoblibThreads,
        JoblibLoky,
        Loky,
        FuturesThreads,
        FuturesProcesses,
        TaskloomCluster,
        Distributed,
        Ray,
    )
}
"""Name -> class, in the order of the tables."""


def why_absent(package: str) -> str:
    """Why a package is not there: what the attempt to install it has left, see the Makefile."""
    try:
        text = Path(sys.prefix, f".no-{package}").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "not installed"
    # The rest of what pip says speaks of this machine.
    return "not installed: " + (
        "no version for this Python and system"
        if f"No matching distribution found for {package}" in text
        else "pip failed"
    )
