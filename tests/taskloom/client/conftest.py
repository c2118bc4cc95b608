"""A cluster of two worker processes for each module, and helpers."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from taskloom.client import Client
from taskloom.deploy.local import LocalCluster


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=2) as found:
        yield found


@pytest.fixture(scope="module")
def client(cluster):
    with Client(cluster) as found:
        found.wait_for_workers(2, timeout=60)
        yield found


@pytest.fixture(scope="session")
def until():
    """Waits for a condition, for twenty seconds at most."""

    def wait(condition, seconds=20.0):
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, "it did not come"
            threading.Event().wait(0.005)
        return found

    return wait


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Runs a program in a process of its own: what it prints. Nothing may stand on its standard error."""

    def run(code, *args, status=0, error=""):
        script = tmp_path_factory.mktemp("program") / "program.py"
        script.write_text(code)
        done = subprocess.run(
            [sys.executable, "-W", "error", str(script), *args],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stderr == error
        assert done.returncode == status
        return done.stdout

    return run
