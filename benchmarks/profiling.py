"""Where the cluster's CPU time goes: ``python -m benchmarks profile WORKLOAD``.

Runs a workload on ``taskloom-cluster`` from this process, again and again, and shows what each process, and each of its
threads, has had of a CPU, in microseconds a task. With ``--calls client`` the calls of this process too, by cProfile, which
makes them slower.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import os
import pstats
import tempfile
import threading
import time
from typing import Any

from benchmarks.bare import nanoseconds
from benchmarks.runner import ONE_THREAD
from benchmarks.systems import TaskloomCluster
from benchmarks.workloads import CLUSTER, TRIPS, WORKLOADS, make_data

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Run a workload and print where the time went."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks profile", description=__doc__.split(":", 1)[0])
    parser.add_argument("workload", choices=list(WORKLOADS), metavar="WORKLOAD", help=f"such as: {', '.join(CLUSTER)}")
    parser.add_argument("--seconds", type=float, default=5.0, help="for how long, at least (5)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="worker processes of one thread (2)")
    parser.add_argument("--quick", action="store_true", help="a small workload")
    parser.add_argument("--calls", choices=["client"], help="the calls of the client's process, by cProfile")
    options = parser.parse_args(arguments)
    os.environ.update(ONE_THREAD)
    with tempfile.TemporaryDirectory(prefix="taskloom-bench-") as data:
        make_data(data, options.quick)
        workload = WORKLOADS[options.workload](options.quick, data)
        system = TaskloomCluster(options.workers)
        system.load()
        system.start()
        try:
            _profile(options, system, workload)
        finally:
            system.close()
    return 0


def _profile(options: argparse.Namespace, system: TaskloomCluster, workload: Any) -> None:
    call = system.prepare(workload)
    system.measure(workload, call)  # functions sent, durations known
    cluster = system.client.cluster
    pids = {"client": os.getpid(), "scheduler": cluster.scheduler_pid, **dict(sorted(cluster.worker_pids.items()))}
    gc.collect()
    calls = cProfile.Profile() if options.calls else None
    before = {name: nanoseconds(pid) for name, pid in pids.items()}
    walls = []
    begin = time.perf_counter()
    while time.perf_counter() < begin + options.seconds or not walls:
        if calls is not None:
            calls.enable()
        start = time.perf_counter()
        seconds, value = system.measure(workload, call)
        whole = time.perf_counter() - start
        if calls is not None:
            calls.disable()
        walls.append(whole)
        if len(walls) == 1 and not workload.check(value):
            raise SystemExit(f"{options.workload}: wrong result")
        del value, seconds
    after = {name: nanoseconds(pid) for name, pid in pids.items()}
    each = len(workload.parts.items) if workload.kind == TRIPS else workload.tasks
    tasks = each * len(walls)
    print(f"{options.workload}: {workload.title}")
    mean, best = sum(walls) / tasks * 1e6, min(walls) / each * 1e6
    print(f"{len(walls)} runs of {each:,} tasks; by the clock {mean:.2f} us a task, {best:.2f} in the best run")
    print("CPU time, us a task:")
    total = 0.0
    own = {str(thread.native_id): thread.name for thread in threading.enumerate()}
    for name in pids:
        threads = {thread: (then - before[name].get(thread, 0)) / tasks / 1e3 for thread, then in after[name].items()}
        spent = sum(threads.values())
        total += spent
        print(f"  {name:<12} {spent:8.2f}")
        for thread, some in sorted(threads.items(), key=lambda item: -item[1]):
            if some >= 0.005 and len(threads) > 1:
                known = own.get(thread, thread) if name == "client" else thread
                print(f"    {'main' if thread == str(pids[name]) else known:<22} {some:8.2f}")
    print(f"  {'all':<12} {total:8.2f}")
    if calls is not None:
        pstats.Stats(calls).sort_stats("tottime").print_stats(25)
