"""ResourceProfiler, with the machine's real figures."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from time import perf_counter

import psutil
import pytest

import taskloom
from taskloom.diagnostics import ResourceProfiler, Resources, ResourceSummary
from taskloom.diagnostics.resources import _Sampler


def hold(megabytes, seconds):
    """Memory and CPU that are really taken."""
    block = bytearray(megabytes << 20)
    for at in range(0, len(block), 4096):
        block[at] = 1
    end = perf_counter() + seconds
    while perf_counter() < end:
        pass
    return os.getpid()


def samplers():
    return [thread for thread in threading.enumerate() if isinstance(thread, _Sampler)]


def test_memory_and_cpu_of_this_process():
    base = psutil.Process().memory_info().rss
    with ResourceProfiler(dt=0.02) as resources:
        before = perf_counter()
        while len(resources.results) < 4:  # on a busy machine the thread that takes them has to wait for its turn
            hold(64, 0.2)
        after = perf_counter()
    assert samplers() == []
    found = resources.results
    assert len(found) > 4
    assert all(isinstance(sample, Resources) for sample in found)
    assert [sample.time for sample in found] == sorted(sample.time for sample in found)
    assert found[0].cpu == 0
    assert found[-1].time >= after > before
    summary = resources.summary()
    assert summary.samples == len(found)
    assert summary.memory_max >= base + (50 << 20)
    assert summary.memory_mean <= summary.memory_max
    assert 0 < summary.cpu_mean <= summary.cpu_max
    assert summary.seconds == found[-1].time - found[0].time


def test_the_pools_processes_are_counted():
    pool = taskloom.multiprocessing.ProcessPool(2)
    try:
        graph = {("x", i): (hold, 48, 0.15) for i in range(4)}
        resources = ResourceProfiler(dt=0.02)
        base = psutil.Process().memory_info().rss
        pids = set(
            taskloom.multiprocessing.get(graph, list(graph), pool=pool, callbacks=[resources], optimize_graph=False)
        )
    finally:
        pool.close()
    assert samplers() == []
    assert os.getpid() not in pids
    assert max(sample.processes for sample in resources.results) >= 1 + len(pids)
    assert resources.summary().memory_max >= base + (40 << 20)
    assert resources.summary().cpu_max > 0


def test_a_child_that_ends_in_between():
    """Its CPU time is not counted back."""
    with ResourceProfiler(dt=0.01) as resources:
        for _ in range(3):
            subprocess.run([sys.executable, "-c", "sum(range(10**6))"], check=True)
    assert all(sample.cpu >= 0 for sample in resources.results)
    assert all(sample.processes >= 1 for sample in resources.results)


def test_blocks_and_runs_inside_of_each_other_share_one_sampler():
    resources = ResourceProfiler(dt=0.01)
    seen = []

    def look(x):
        seen.append(len(samplers()))
        return x

    with resources, resources:
        assert len(samplers()) == 1
        taskloom.threaded.get({("x", i): (look, i) for i in range(5)}, [("x", i) for i in range(5)])
        assert len(samplers()) == 1
    assert samplers() == []
    assert seen == [1] * 5


def test_it_ends_with_a_run_that_fails():
    def fail():
        raise ValueError

    resources = ResourceProfiler(dt=60)
    with pytest.raises(ValueError):
        taskloom.get_sync({"x": (fail,)}, "x", callbacks=[resources])
    assert samplers() == []
    assert len(resources.results) >= 2  # at the begin and at the end, though dt is a minute
    resources.register()
    try:
        taskloom.get_sync({"x": 1}, "x")
    finally:
        resources.unregister()
    assert samplers() == []
    assert len(resources.results) >= 4
    resources.clear()
    assert resources.summary() == ResourceSummary(0, 0.0, 0, 0.0, 0.0, 0.0)


def test_the_mean_is_weighted_with_time():
    resources = ResourceProfiler()
    resources.results += [
        Resources(0.0, 100, 0.0, 1),
        Resources(1.0, 300, 100.0, 1),
        Resources(1.5, 200, 400.0, 2),
    ]
    summary = resources.summary()
    assert summary == ResourceSummary(3, 1.5, 300, 200.0, 400.0, pytest.approx(200.0))
    resources.results[1:] = []
    assert resources.summary().cpu_mean == 0.0


def test_how_it_is_shown():
    resources = ResourceProfiler()
    resources.results += [Resources(0.0, 3 << 20, 0.0, 1), Resources(2.0, 5000 << 20, 150.0, 1)]
    text = "ResourceProfiler: 2 samples in 2.0 s; memory at most 5,000 MiB; CPU 150 % on average, at most 150 %"
    assert repr(resources) == f"<{text}>"
    assert resources._repr_html_() == f"<div>{text}</div>"
    assert not re.search("<(?!/?div)", resources._repr_html_())


def test_wrong_arguments():
    for dt in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="dt"):
            ResourceProfiler(dt)


def test_without_psutil():
    code = """
import sys
sys.modules["psutil"] = None
import taskloom
from taskloom.diagnostics import Profiler, ProgressBar, ResourceProfiler
with Profiler() as profile, ProgressBar():
    print(taskloom.threaded.get({"x": (sum, [1, 2])}, "x"), len(profile.results))
try:
    ResourceProfiler()
except ImportError as error:
    print(type(error).__name__, error.name, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "3 1\nModuleNotFoundError psutil ResourceProfiler needs psutil: pip install psutil\n"


def test_without_rich():
    """A progress bar goes on in plain lines, in a terminal too."""
    code = """
import sys
sys.modules["rich"] = None
import io, taskloom
from taskloom.diagnostics import ProgressBar
class Terminal(io.StringIO):
    isatty = lambda self: True
out = Terminal()
with ProgressBar("x", out=out):
    taskloom.get_sync({"x": 1}, "x")
print(out.getvalue())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "TERM": "xterm"}
    )
    assert done.stdout.startswith("x: 1 of 1 tasks done in ")
