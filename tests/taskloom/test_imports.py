"""What importing costs and needs."""

from __future__ import annotations

import subprocess
import sys

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


def test_local_schedulers_work_without_what_only_the_cluster_needs():
    code = """
import sys
for name in ("tornado", "msgpack", "psutil"):
    sys.modules[name] = None
import taskloom
graph = {"x": 1, "y": (sum, ["x", 10])}
print(taskloom.get_sync(graph, "y"), taskloom.threaded.get(graph, "y"))
"""
    assert run(code).split() == ["11", "11"]
