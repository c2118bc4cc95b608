"""What can be asked of the scheduler, and restart."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

import taskloom
from taskloom.client import Client, wait
from taskloom.deploy.local import LocalCluster
from taskloom.errors import ClusterError, TaskCancelledError


def inc(x):
    return x + 1


def test_scheduler_info(client, cluster):
    info = client.scheduler_info()
    assert info["address"] == cluster.address
    worker = info["workers"]["worker-0"]
    assert worker["pid"] == cluster.worker_pids["worker-0"]
    assert worker["threads"] == 2
    assert worker["address"].startswith("tcp://127.0.0.1:")


def test_who_has(client):
    one, two = (
        client.map(np.ones, [10, 10], workers="worker-0"),
        client.submit(inc, 1, workers="worker-1", key=("k", 1)),
    )
    wait([*one, two])
    assert client.who_has(two) == {("k", 1): ("worker-1",)}
    assert client.who_has({"x": [one]}) == {one[0].key: ("worker-0",), one[1].key: ("worker-0",)}
    everything = client.who_has()
    assert everything[two.key] == ("worker-1",)
    bad = client.submit(inc, "x")
    wait(bad)
    assert client.who_has([bad]) == {bad.key: ()}


def test_who_has_of_tasks_that_share_a_key(client):
    first = client.submit(np.ones, 10, workers="worker-0", key="same")
    wait(first)
    again = client.scatter({"same": np.ones(10)}, workers="worker-1")["same"]
    third = client.persist(taskloom.delayed(inc)(1, dask_key_name="third"), workers="worker-1")
    wait([again, *dict(third.__dask_graph__()).values()])
    assert (again.key, again.counter != first.counter) == (first.key, True)
    assert client.who_has([first, again]) == {"same": ("worker-0", "worker-1")}
    assert client.who_has([again, first, again]) == {"same": ("worker-1", "worker-0")}
    assert client.who_has()["same"] == ("worker-0", "worker-1")
    assert client.who_has(third) == {"third": ("worker-1",)}


def test_what_is_asked_about_is_a_future(client):
    future = client.submit(inc, 1)
    for call in (client.cancel, client.retry, client.who_has):
        for wrong in (3, "x", [future, 3], {"a": [object()]}, [[None]]):
            with pytest.raises(TypeError, match=f"^{call.__name__} takes a future, .* is none of these"):
                call(wrong)
        assert call([]) in (None, {})
        call(future for future in [future])
    assert future.result() == 2
    kept = client.persist(taskloom.delayed(time.sleep)(60))
    client.cancel({"a": [kept]})
    with pytest.raises(TaskCancelledError):
        kept.compute()


def test_get_versions(client, monkeypatch):
    found = client.get_versions(check=True)
    assert set(found) == {"client", "scheduler", "workers"}
    assert set(found["workers"]) == {"worker-0", "worker-1"}
    assert found["client"]["python"] == found["scheduler"]["python"] == found["workers"]["worker-0"]["python"]
    monkeypatch.setattr("cloudpickle.__version__", "0.1")
    with pytest.raises(
        ClusterError, match=r"versions differ.*cloudpickle: 0\.1 \(this client\), .*the worker worker-0"
    ):
        client.get_versions(check=True)
    assert client.get_versions()["client"]["cloudpickle"] == "0.1"


def test_wait_for_workers(client):
    client.wait_for_workers(2)
    with pytest.raises(TimeoutError, match=r"after 0\.05 s 2 of 3 workers have come"):
        client.wait_for_workers(3, timeout=0.05)
    found = []
    with LocalCluster(n_workers=1) as cluster, Client(cluster, set_as_default=False) as other:
        thread = threading.Thread(target=lambda: found.append(other.wait_for_workers(3, timeout=60)))
        thread.start()
        other.wait_for_workers(1)
        assert not found
        cluster.scale(3)
        thread.join(60)
        assert found == [None]


def test_a_question_that_the_scheduler_does_not_know(client):
    from taskloom.client.signals import run

    with pytest.raises(ClusterError, match=r"does not know the question 'what is it'.*have both of one version"):
        run(client._engine.ask("what is it"))
    with pytest.raises(ClusterError, match="'who_has' is not put as it should be"):
        run(client._engine.ask("who_has", counters=5))


def test_questions_over_the_end_of_a_scheduler(until):
    import signal

    with LocalCluster(n_workers=1) as cluster, Client(cluster, set_as_default=False) as client:
        found = []
        thread = threading.Thread(target=lambda: found.append(client.wait_for_workers(2, timeout=60)))
        thread.start()
        until(lambda: client._engine._questions)
        os.kill(cluster.scheduler_pid, signal.SIGKILL)
        until(lambda: not client._engine.is_connected)
        cluster.scale(2)
        thread.join(60)
        assert found == [None]


def test_restart(tmp_path, until):
    def spin(folder):
        import os
        import time

        open(os.path.join(folder, "runs"), "w").close()
        while not os.path.exists(os.path.join(folder, "end")):
            time.sleep(0.001)

    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        with Client(cluster, set_as_default=False) as other:
            done, theirs = client.submit(np.ones, 100_000), other.submit(inc, 1)
            wait(done), wait(theirs)
            running, waiting = client.submit(spin, str(tmp_path)), None
            waiting = client.submit(inc, running)
            until((tmp_path / "runs").exists)
            before = {worker["pid"] for worker in client.scheduler_info()["workers"].values()}
            client.restart(timeout=60)
            after = {worker["pid"] for worker in client.scheduler_info()["workers"].values()}
            assert len(after) == 2
            assert not before & after
            wait(theirs)
            assert [f.status for f in (done, running, waiting)] == ["cancelled"] * 3
            until(lambda: theirs.status == "cancelled")
            with pytest.raises(TaskCancelledError, match="a client has restarted the cluster"):
                done.result()
            assert client.submit(inc, 1).result() == 2
            assert other.gather(other.map(inc, range(10))) == list(range(1, 11))
            assert client.submit(inc, 5, key="new").result() == 6


def test_restart_where_the_worker_is_in_this_process():
    with LocalCluster(processes=False) as cluster, Client(cluster, set_as_default=False) as client:
        future = client.submit(inc, 1)
        assert future.result() == 2
        client.restart(timeout=30)
        assert future.status == "cancelled"
        assert client.submit(inc, 2).result() == 3
        machine = cluster._node[0].machine
        assert machine.tasks.live <= 2
