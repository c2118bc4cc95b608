"""What importing costs and needs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import taskloom


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_taskloom_imports_nothing_heavy():
    heavy = [
        "numpy",
        "pandas",
        "dask",
        "rich",
        "click",
        "cloudpickle",
        "asyncio",
        "tornado",
        "msgpack",
        "psutil",
        "fsspec",
        "multiprocessing",
    ]
    out = run(f"import sys, taskloom; print([m for m in {heavy!r} if m in sys.modules])")
    assert out.strip() == "[]"


def test_every_public_name_is_there():
    for name in taskloom.__all__:
        assert getattr(taskloom, name) is not None
    assert set(taskloom.__all__) <= set(dir(taskloom))


@pytest.fixture
def blocked(tmp_path, monkeypatch):
    """What only the cluster and the resource profiler need cannot be imported, in children neither."""
    for name in ("tornado", "msgpack", "psutil"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is blocked')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


SETUP = """
import importlib, sys
def blocked():
    names = []
    for name in ("tornado", "msgpack", "psutil"):
        try:
            importlib.import_module(name)
        except ImportError:
            names.append(name)
    return len(names)
assert blocked() == 3
import taskloom
"""


def test_the_local_schedulers_work_without_what_only_the_cluster_needs(blocked):
    code = (
        SETUP
        + """
graph = {"x": 1, "y": (sum, ["x", 10]), "blocked": (blocked,)}
for get in (taskloom.get_sync, taskloom.threaded.get, taskloom.multiprocessing.get):
    print(*get(graph, ["y", "blocked"]))
"""
    )
    assert run(code).splitlines() == ["11 3"] * 3


@pytest.mark.parametrize("scheduler", ["sync", "threads", "processes", None])
def test_collections_work_without_them_too(blocked, scheduler):
    code = (
        SETUP
        + f"""
from taskloom.diagnostics import Profiler, ProgressBar
inc = taskloom.delayed(lambda x: x + 1)
total = taskloom.delayed(sum)([inc(i) for i in range(4)])
bag = taskloom.bag.from_sequence(range(10), npartitions=3).map(lambda x: x * 2)
scheduler = {scheduler!r}
with Profiler() as profiler:
    print(total.compute(scheduler=scheduler), bag.sum().compute(scheduler=scheduler), bag.compute(scheduler=scheduler)[-1])
print(len(profiler.results) > 0)
"""
    )
    assert run(code).split() == ["10", "90", "18", "True"]
