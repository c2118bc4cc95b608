"""A cluster on this machine: a scheduler in a thread of this process, workers in processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from typing import Any

from taskloom.node.scheduler import SchedulerNode
from taskloom.system import cpu_count, thread_limits

__all__ = ["LocalCluster"]


class LocalCluster:
    """A scheduler and workers on this machine, for this program.

    Args:
        n_workers: how many processes; by default as many as this process may use CPUs.
        threads_per_worker: how many tasks each runs at a time.

    Attributes:
        address: of the scheduler.
        token: what a client has to know.
    """

    def __init__(self, n_workers: int | None = None, threads_per_worker: int = 1) -> None:
        self.token = secrets.token_urlsafe(32)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._folder = tempfile.mkdtemp(prefix="taskloom-cluster-")
        self._lives: list[int] = []  # a pipe for each worker, which ends with it
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="taskloom-scheduler", daemon=True)
        self._thread.start()
        self.scheduler: Any = None
        try:
            self.scheduler = self._call(self._make())
            self.address: str = self.scheduler.address
            count = cpu_count() if n_workers is None else n_workers
            for n in range(count):
                self._start_worker(n, threads_per_worker, count)
        except BaseException:
            self.close()
            raise

    def _start_worker(self, n: int, threads: int, count: int) -> None:
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        environ = {**os.environ, **thread_limits(count * threads), "PYTHONPATH": path}
        theirs, ours = os.pipe()
        self._lives.append(ours)
        command = [sys.executable, "-P", "-m", "taskloom.node", str(theirs)]
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environ, pass_fds=(theirs,))
        finally:
            os.close(theirs)
        self._processes.append(process)
        hello = {
            "scheduler": self.address,
            "token": self.token,
            "name": f"w{n}",
            "threads": threads,
            "cells": os.path.join(self._folder, f"w{n}.running"),
            "path": sys.path,
            "argv": sys.argv,
        }
        assert process.stdin is not None
        process.stdin.write(json.dumps(hello).encode())
        process.stdin.close()

    async def _make(self) -> SchedulerNode:
        node = SchedulerNode(self.token)
        await node.start()
        return node

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        """End it all."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        self._processes.clear()
        while self._lives:
            os.close(self._lives.pop())
        if self._loop.is_running():
            if self.scheduler is not None:
                self._call(self.scheduler.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
            self._loop.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
