"""What the parts of a worker cost by themselves: ``python -m benchmarks.worker_parts [folder for spilled values]``.

The executor: no-op tasks in one batch, and one task there and back between two threads. The store: values put and got in memory,
beside zict's LRU; arrays to disk and back, beside a plain write.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable
from time import perf_counter

import numpy as np
import zict

from taskloom.node.cell import RunningCells
from taskloom.node.executor import Executor
from taskloom.node.memory import MemoryPolicy
from taskloom.node.sizes import sizeof
from taskloom.node.store import Store


def noop() -> None:
    pass


def best(call: Callable[[], object], count: int, times: int = 7) -> float:
    """Nanoseconds of one of the ``count`` things that a call does, in the best of several calls."""
    found = []
    for _ in range(times):
        start = perf_counter()
        call()
        found.append(perf_counter() - start)
    return min(found) / count * 1e9


def batches(folder: str, threads: int, cells: bool) -> None:
    news = threading.Event()
    words = RunningCells(os.path.join(folder, "cells"), threads + 64) if cells else None
    executor = Executor(threads, news.set, cells=words)
    count, first = 10_000, 0

    def run() -> None:
        nonlocal first
        tasks = [(n, n, noop, ()) for n in range(first, first + count)]
        first += count
        executor.submit(tasks)
        done = 0
        while done < count:
            news.wait()
            news.clear()
            done += len(executor.collect())

    print(
        f"  {count:,} no-ops, {threads} threads{', with cells' if cells else '':13} {best(run, count) / 1000:6.2f} us each"
    )
    executor.close()
    if words is not None:
        words.close()


def round_trip() -> None:
    news = threading.Event()
    executor = Executor(1, news.set)
    times = []
    for n in range(3000):
        start = perf_counter()
        executor.submit([(n, n, noop, ())])
        while not executor.collect():
            news.wait()
            news.clear()
        times.append(perf_counter() - start)
    print(f"  one task there and back, median             {sorted(times)[1500] * 1e6:6.1f} us")
    executor.close()


def small_values() -> None:
    count = 20_000
    for limit in (None, 1 << 34):
        store = Store(limit)

        def put(store: Store = store) -> None:
            for n in range(count):
                store.put(n, 1.5)

        def get(store: Store = store) -> None:
            for n in range(count):
                store.get(n)

        def pin(store: Store = store) -> None:
            for n in range(count):
                with store.pin((n,)) as pins:
                    pins.get(n)

        words = "without a limit" if limit is None else "with a limit"
        for name, call in (("put", put), ("get", get), ("pin, get, release", pin)):
            print(f"  {name + ', ' + words:43} {best(call, count):6.0f} ns")
        store.close()
    lru: zict.LRU[int, float] = zict.LRU(1e9, {}, weight=lambda key, value: 24)

    def set_all() -> None:
        for n in range(count):
            lru[n] = 1.5

    def get_all() -> None:
        for n in range(count):
            lru[n]

    print(f"  zict.LRU: set, without a size               {best(set_all, count):6.0f} ns")
    print(f"  zict.LRU: get                               {best(get_all, count):6.0f} ns")
    for value in (1.5, [1, 2, 3], np.zeros(10), list(range(10_000))):
        cost = best(lambda value=value: [sizeof(value) for _ in range(1000)], 1000)  # type: ignore[misc]
        print(f"  sizeof a {type(value).__name__:34} {cost:6.0f} ns")


def disk(folder: str) -> None:
    for size, count in ((64 << 20, 6), (1 << 20, 200), (64 << 10, 1000), (16 << 10, 1000)):
        store = Store(policy=MemoryPolicy(1000, spill=None, pause=None, terminate=None), folder=folder)
        arrays = [np.random.default_rng(n).random(size // 8) for n in range(count)]
        total = size * count
        plain = os.path.join(folder, "plain")
        written = alone = 0.0
        # by turns: how fast the system takes bytes depends on how many it has taken just before
        for n, array in enumerate(arrays):
            own = [array.copy()]  # what others have a reference to does not go to disk
            start = perf_counter()
            store.put(n, own.pop())
            store.settle(600)
            between = perf_counter()
            with open(f"{plain}{n}", "wb") as file:
                file.write(array.data)
            alone += perf_counter() - between
            written += between - start
        assert store.counts().on_disk == count
        start = perf_counter()
        for n in range(count):
            float(store.get(n).sum())
        read = perf_counter() - start
        store.close()
        for n in range(count):
            os.unlink(f"{plain}{n}")
        print(
            f"  {size >> 10:6,} KB: to disk {total / written / 1e6:6.0f} MB/s ({written / count * 1e6:7.0f} us each; plain "
            f"write {total / alone / 1e6:6.0f} MB/s), back and added up {total / read / 1e6:6.0f} MB/s"
        )


def main() -> None:
    parent = sys.argv[1] if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        print("executor")
        for threads, cells in ((1, False), (1, True), (4, True)):
            batches(folder, threads, cells)
        round_trip()
        print("store, small values")
        small_values()
        print("store, arrays")
        disk(folder)


if __name__ == "__main__":
    main()
