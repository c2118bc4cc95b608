"""Why tasks do not end: in a TimeoutError, on question, and in a warning where nobody may run them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time

import pytest

import taskloom
from taskloom.client import Client, as_completed, reasons, wait
from taskloom.deploy.local import LocalCluster
from taskloom.errors import ClusterError


def inc(x):
    return x + 1


def spin(folder, *_):
    open(os.path.join(folder, f"{time.monotonic_ns()}.runs"), "w").close()
    while not os.path.exists(os.path.join(folder, "end")):
        time.sleep(0.001)


GPU = {"GPU": 1}
NO_GPU = "no worker has the resource GPU; 2 workers are connected, they offer no resources"
NOBODY = "no worker of this name is connected: nobody; 2 workers are connected: worker-0, worker-1"


def test_a_timeout_says_why(client):
    gpu = client.submit(inc, 1, resources=GPU, key="gpu")
    named = client.submit(inc, 1, workers="nobody", key="named")
    after = client.submit(inc, gpu, key="after")
    done = client.submit(inc, 1)
    assert done.result() == 2
    why_not = f"'gpu': {NO_GPU}$"
    for ask in (
        lambda: gpu.result(timeout=0.01),
        lambda: gpu.exception(timeout=0.01),
        lambda: client.gather([done, gpu], timeout=0.01),
        lambda: client.gather([done, gpu], timeout=0.01, errors="skip"),
        lambda: wait([gpu, done], timeout=0.01),
        lambda: list(as_completed([gpu, done], timeout=0.01)),
    ):
        with pytest.raises(TimeoutError, match=why_not):
            ask()
    with pytest.raises(TimeoutError, match=rf"0\.01 s: 'named': {NOBODY}$"):
        named.result(timeout=0.01)
    with pytest.raises(TimeoutError, match=f"'after': it waits for 1 other task, in the end for 'gpu': {NO_GPU}$"):
        after.result(timeout=0.01)
    with pytest.raises(TimeoutError, match=f"'y': it waits for 1 other task, in the end for 'x': {NO_GPU}$"):
        client.get({"x": (inc, 1), "y": (inc, "x")}, "y", resources=GPU, timeout=0.01)
    done.release()
    with pytest.raises(TimeoutError, match=why_not):
        wait([done, gpu], timeout=0.01)
    with pytest.raises(TimeoutError, match=f": {NO_GPU}$"):
        taskloom.wait(client.scatter([1], workers="worker-0") + [gpu], timeout=0.01)


def test_a_timeout_of_what_runs_says_where(client, tmp_path, until):
    futures = [client.submit(spin, str(tmp_path), workers="worker-1", key=f"spin-{n}") for n in range(2)]
    until(lambda: len(list(tmp_path.iterdir())) == 2)
    after = client.submit(spin, str(tmp_path), futures, key="after")
    with pytest.raises(TimeoutError, match="'spin-1': it was sent to worker-1, where "):
        futures[1].result(timeout=0.01)
    with pytest.raises(
        TimeoutError, match="'after': it waits for 2 other tasks, in the end for 'spin-0': it was sent to"
    ):
        after.result(timeout=0.01)
    (tmp_path / "end").touch()
    after.result()


def test_why_waiting(client, cluster):
    future = client.submit(inc, 1, workers="nobody", key="named")
    assert client.why_waiting(future) == f"'named': {NOBODY}"
    done = client.submit(inc, 1)
    done.result()
    assert client.why_waiting(done) == ""
    with pytest.raises(TypeError, match="a future of this client, not about list"):
        client.why_waiting([future])
    with Client(cluster, set_as_default=False) as other, pytest.raises(TypeError, match="another client"):
        other.why_waiting(future)
    future.release()
    with pytest.raises(ClusterError, match="was released"):
        client.why_waiting(future)

    async def main():
        async with Client(cluster, asynchronous=True) as other:
            future = other.submit(inc, 1, resources=GPU, key="gpu")
            assert await other.why_waiting(future) == f"'gpu': {NO_GPU}"
            with pytest.raises(TimeoutError, match=f"'gpu': {NO_GPU}$"):
                await future.result(timeout=0.01)

    asyncio.run(main())


def test_no_workers_at_all_and_a_scheduler_that_does_not_answer(until):
    with LocalCluster(n_workers=0) as cluster, Client(cluster, set_as_default=False) as client:
        future = client.submit(inc, 1, key="x")
        with pytest.raises(TimeoutError, match=r"0\.01 s: 'x': no workers are connected$"):
            future.result(timeout=0.01)
        os.kill(cluster.scheduler_pid, signal.SIGSTOP)
        try:
            with pytest.raises(TimeoutError, match=r"0\.01 s: the scheduler at tcp:.* does not answer either$"):
                future.result(timeout=0.01)
        finally:
            os.kill(cluster.scheduler_pid, signal.SIGCONT)
        os.kill(cluster.scheduler_pid, signal.SIGKILL)
        until(lambda: not client._engine.is_connected)
        with pytest.raises(TimeoutError, match=r"after 0 s(: the scheduler at tcp:.* is gone, and is looked for)?"):
            future.result(timeout=0)
        cluster.scale(1)
        assert future.result(timeout=60) == 2


def test_who_waits_for_what_nobody_may_run_is_told_once(client, cluster, monkeypatch, caplog, until):
    monkeypatch.setattr(reasons, "LOOK", 0.05)
    caplog.set_level(logging.WARNING, "taskloom.client")

    def said():
        return [record.getMessage() for record in caplog.records if record.name == "taskloom.client"]

    with Client(cluster, set_as_default=False) as other:
        gpu = other.map(inc, [1, 2, 3], resources=GPU, key=["a", "b", "c"])
        until(said)
        named = other.submit(inc, 1, workers="nobody", key="named")
        until(lambda: len(said()) == 2)
        assert said() == [
            f"the task 'a' (and 2 others) waits for a worker that may run it: {NO_GPU}",
            f"the task 'named' waits for a worker that may run it: {NOBODY}",
        ]
        looks = []
        ask = other._engine.ask
        monkeypatch.setattr(other._engine, "ask", lambda *args, **kwargs: looks.append(args) or ask(*args, **kwargs))
        until(lambda: len(looks) > 3)
        assert len(said()) == 2  # once is enough
        del gpu, named
        until(lambda: not other._engine.reasons.looking)  # there is nothing to look for
        assert other.submit(inc, 1).result() == 2
        assert other._engine.reasons.looking
    assert len(said()) == 2
