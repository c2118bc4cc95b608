"""A worker in which a cancelled task does not stop: what it does before another process takes its place.

The scheduler and the workers are real, over sockets, in one event loop; in place of the end of the process stands a note. The
same with processes is in ``failures/test_cancel_and_stop.py``.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest

from taskloom.client import Client
from taskloom.node import worker as module
from taskloom.node.codes import REPLACE
from taskloom.node.scheduler import SchedulerNode
from taskloom.node.worker import WorkerNode

TOKEN = "a-token-for-the-tests"


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        threading.Event().wait(0.005)
    return found


class World:
    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.scheduler = SchedulerNode(TOKEN)
        self.address = self.run(self.scheduler.start())
        self.workers = {}
        self.ended = {}  # name -> code
        self.client = Client(self.address, token=TOKEN)

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def worker(self, name, threads=1):
        worker = WorkerNode(
            self.address, TOKEN, name, threads, capture=False, launch=f"launch-of-{name}", die=lambda code: end(code)
        )

        def end(code):
            if name not in self.ended:  # a process ends once, and then does nothing any more
                self.ended[name] = code
                worker._closing = True
                for timer in worker._timers:
                    timer.cancel()
                worker.connection.abort()

        self.run(worker.start())
        worker.executor.patience = 0.1
        self.workers[name] = worker
        return worker

    def close(self):
        self.client.close()
        for worker in self.workers.values():
            worker._closing = False
            self.run(worker.close())
        self.run(self.scheduler.close())
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def world():
    found = World()
    yield found
    found.close()


@pytest.fixture
def stick(world, tmp_path):
    """Have a worker stick in a task that was cancelled: a read from a pipe to which nobody writes, until the end of the test."""
    pipes = []

    def do(name):
        pipe = tmp_path / f"pipe-{len(pipes)}"
        os.mkfifo(pipe)
        pipes.append(pipe)

        def read(path):  # O_RDWR: it opens at once
            fd = os.open(path, os.O_RDWR)
            with open(f"{path}-begun", "w"):
                pass
            os.read(fd, 1)  # woken by nothing but a byte, as native code is
            os.close(fd)

        future = world.client.submit(read, str(pipe), workers=[name], pure=False)
        until((tmp_path / f"{pipe.name}-begun").exists)
        future.cancel()

    yield do
    for pipe in pipes:
        with pipe.open("r+b", buffering=0) as file:
            file.write(b"x")
            until(lambda: not any(worker.executor.running() for worker in world.workers.values()))


def make(folder, n):
    with open(os.path.join(folder, f"{n}-{os.urandom(4).hex()}"), "w"):
        return bytes(100_000 + n)


def test_one_that_holds_nothing_ends_at_once(world, stick, caplog):
    world.worker("a")
    world.worker("b")
    stick("a")
    until(lambda: world.ended == {"a": REPLACE})
    assert "This process is replaced." in caplog.text


def test_one_alone_ends_at_once(world, stick, tmp_path, caplog):
    world.worker("a")
    (tmp_path / "made").mkdir()
    value = world.client.submit(make, str(tmp_path / "made"), 1)
    until(value.done)
    stick("a")
    until(lambda: world.ended == {"a": REPLACE})
    assert "nobody else is here who could take what it holds" in caplog.text
    world.worker("b")
    assert len(value.result(timeout=30)) == 100_001
    assert len(os.listdir(tmp_path / "made")) == 2  # computed again


def test_values_move_before(world, stick, tmp_path, caplog):
    world.worker("a")
    (tmp_path / "made").mkdir()
    values = world.client.map(make, [str(tmp_path / "made")] * 10, range(10))
    until(lambda: all(value.done() for value in values))
    world.worker("b")
    stick("a")
    until(lambda: world.ended == {"a": REPLACE})
    assert [len(value) - 100_000 for value in world.client.gather(values)] == list(range(10))
    assert len(os.listdir(tmp_path / "made")) == 10
    assert "others have what it held" in caplog.text
    # a thread that was stuck no longer counts: nobody was blamed, and the worker's place is free
    assert world.client.submit(len, values[3]).result(timeout=30) == 100_003


def test_it_does_not_wait_for_ever(world, stick, tmp_path, caplog, monkeypatch):
    """The other worker takes nothing in."""
    monkeypatch.setattr(module, "MOVE", 0.5)
    world.worker("a")
    (tmp_path / "made").mkdir()
    value = world.client.submit(make, str(tmp_path / "made"), 1)
    until(value.done)
    other = world.worker("b")
    other.transfers.hold(True)
    stick("a")
    until(lambda: world.ended == {"a": REPLACE})
    assert "others have not taken all that it holds" in caplog.text


def test_another_scheduler_is_told_too(world, stick, tmp_path, caplog):
    """It dies while values are to move."""
    world.worker("a")
    (tmp_path / "made").mkdir()
    value = world.client.submit(make, str(tmp_path / "made"), 1)
    until(value.done)
    other = world.worker("b")
    other.transfers.hold(True)  # it takes nothing in
    stick("a")
    until(lambda: "once others have what it holds" in caplog.text)
    port = world.address.rpartition(":")[2]
    world.run(world.scheduler.close())
    world.scheduler = SchedulerNode(TOKEN, grace=0.5)
    world.run(world.scheduler.start(f"tcp://127.0.0.1:{port}"))
    world.loop.call_soon_threadsafe(other.transfers.hold, False)
    until(lambda: world.ended == {"a": REPLACE})
    assert len(value.result(timeout=30)) == 100_001
    assert len(os.listdir(tmp_path / "made")) == 1
