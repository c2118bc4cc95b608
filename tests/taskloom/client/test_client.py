"""The client against a real cluster: a scheduler, worker processes, TCP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from operator import add

import numpy as np
import psutil
import pytest

import taskloom
from taskloom.client import Client
from taskloom.deploy.local import LocalCluster
from taskloom.errors import ClusterError, HandshakeError, MissingKeyError, WorkerDiedError


@pytest.fixture(scope="module")
def client():
    with Client(n_workers=2) as found:
        yield found


def inc(x):
    return x + 1


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        threading.Event().wait(0.01)
    return found


def test_a_graph(client):
    graph = {"x": 1, "y": (inc, "x"), "z": (sum, ["x", "y", 10]), "w": (add, "y", "y")}
    assert client.get(graph, ["z", ["y", "w"], "x"]) == (13, (2, 4), 1)
    assert client.get(graph, "z") == 13
    with pytest.raises(MissingKeyError, match="no key 'q'"):
        client.get(graph, "q")


@pytest.mark.parametrize("count", [1, 199, 200, 201, 3000])
def test_many_tasks(client, count):
    graph = {("x", i): (inc, i) for i in range(count)}
    assert client.get(graph, list(graph)) == tuple(range(1, count + 1))


def test_a_chain_and_a_tree_and_a_stencil(client):
    chain = {("c", 0): 0, **{("c", i): (inc, ("c", i - 1)) for i in range(1, 3000)}}
    assert client.get(chain, ("c", 2999)) == 2999
    tree = {("t", 0, i): (inc, i) for i in range(512)}
    for level in range(1, 10):
        for i in range(512 >> level):
            tree["t", level, i] = (add, ("t", level - 1, 2 * i), ("t", level - 1, 2 * i + 1))
    assert client.get(tree, ("t", 9, 0)) == sum(range(1, 513))
    stencil = {("s", 0, i): (inc, i) for i in range(50)}
    for row in range(1, 50):
        for i in range(50):
            stencil["s", row, i] = (
                lambda *args: sum(args) % 1009,
                *[("s", row - 1, (i + k) % 50) for k in (-1, 0, 1)],
            )
    keys = [("s", 49, i) for i in range(50)]
    assert client.get(stencil, keys) == taskloom.get_sync(stencil, keys)


def test_submit_and_map(client):
    one = client.submit(inc, 1)
    two = client.submit(add, one, one)
    three = client.submit(lambda x, y=0, *, z: (x, y, z), two, z=one, y="y")
    assert (one.result(), two.result(), three.result(timeout=10)) == (2, 4, (4, "y", 2))
    assert one.status == "finished"
    assert one.done()
    futures = client.map(add, range(500), client.map(inc, range(500)))
    assert client.gather(futures) == [2 * i + 1 for i in range(500)]
    assert client.map(inc, []) == []


def test_values_of_every_kind_come_back_as_they_are(client):
    values = [None, (), [], {}, "text", b"bytes", 2**100, -(2**63), 1.5, float("inf"), True, {1, 2}, (1, [2]), object]
    values += [np.arange(10), np.zeros(1_000_000), "x" * 100_000, b"y" * 1_000_000]
    graph = {("v", n): (lambda v: v, v if not isinstance(v, (list, tuple)) else [v]) for n, v in enumerate(values)}
    found = client.get(graph, list(graph))
    for value, back in zip(values, found, strict=True):
        if isinstance(value, (list, tuple)):
            value = [value]
        assert type(back) is type(value)
        assert np.array_equal(back, value) if isinstance(value, np.ndarray) else back == value


def test_large_values_go_from_worker_to_worker(client):
    graph = {("a", i): (np.full, 300_000, float(i)) for i in range(16)}
    graph |= {("b", i): (lambda x, y: x + y, ("a", i), ("a", (7 * i + 3) % 16)) for i in range(16)}
    graph |= {("s", i): (lambda x: float(x.sum()), ("b", i)) for i in range(16)}
    expected = tuple(300_000.0 * (i + (7 * i + 3) % 16) for i in range(16))
    assert client.get(graph, [("s", i) for i in range(16)]) == expected


def test_an_error_of_a_task_is_itself_with_its_own_lines(client):
    def divide(x):
        return 1 / x

    with pytest.raises(ZeroDivisionError) as caught:
        client.get({"x": (inc, -1), "y": (divide, "x"), "z": (inc, "y")}, "z")
    names = []
    tb = caught.value.__traceback__
    while tb is not None:
        names.append(tb.tb_frame.f_code.co_name)
        tb = tb.tb_next
    assert names[-1] == "divide"
    bad = client.submit(divide, 0)
    with pytest.raises(ZeroDivisionError):
        client.submit(inc, bad).result()
    assert bad.status == "error"
    assert client.get({"x": (inc, 1)}, "x") == 2


def test_collections_run_on_a_live_client(client):
    def where(_):
        return os.getpid()

    workers = set(client._cluster.worker_pids.values())
    assert taskloom.delayed(where)(1).compute() in workers
    assert set(taskloom.bag.from_sequence(range(10), npartitions=5).map(where).compute()) <= workers
    assert taskloom.delayed(where)(1).compute(scheduler="sync") == os.getpid()
    assert taskloom.bag.range(1000, npartitions=10).map(inc).filter(lambda x: x % 2).sum().compute() == 250_000
    with Client(client.address, token=client.token) as second:
        assert taskloom.delayed(where)(1).compute(scheduler=second) in workers
    assert taskloom.delayed(where)(1).compute() in workers


def test_a_timeout(client):
    with pytest.raises(TimeoutError, match=r"1 of 1 values were not there after 0\.05 s"):
        client.submit(time.sleep, 0.5).result(timeout=0.05)


def test_what_is_dropped_is_forgotten():
    with LocalCluster(processes=False) as cluster, Client(cluster.address, token=cluster.token) as client:
        machine = cluster._node[0].machine
        futures = client.map(inc, range(100))
        client.gather(futures)
        assert machine.tasks.live >= 100
        del futures
        until(lambda: not machine.tasks.live)


def test_from_several_threads_at_once(client):
    def work(n, found):
        graph = {("x", i): (inc, i * n) for i in range(300)}
        found[n] = client.get(graph, list(graph))

    found = {}
    threads = [threading.Thread(target=work, args=(n, found)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: tuple(i * n + 1 for i in range(300)) for n in range(8)}


def test_a_worker_that_is_killed_loses_nothing():
    with Client(n_workers=3) as client:
        slow = client.map(lambda x: (time.sleep(0.01), x)[1], range(300))
        made = client.map(np.full, [1000] * 20, range(20))
        client.gather(made)
        until(lambda: any(future.done() for future in slow))
        os.kill(next(iter(client._cluster.worker_pids.values())), signal.SIGKILL)
        assert client.gather(slow) == list(range(300))
        assert [int(array[0]) for array in client.gather(made)] == list(range(20))


def test_a_task_that_kills_its_workers_is_given_up():
    with Client(n_workers=5) as client:
        bad = client.submit(lambda: os._exit(1))
        fine = client.map(inc, range(50))
        with pytest.raises(WorkerDiedError, match="4 workers died while running it"):
            bad.result(timeout=30)
        assert client.gather(fine) == list(range(1, 51))


def test_another_token_is_refused(client):
    with pytest.raises(HandshakeError):
        Client(client.address, token="x" * 43)


def test_a_closed_client_says_so():
    client = Client(n_workers=1)
    future = client.submit(inc, 1)
    assert future.result() == 2
    client.close()
    client.close()
    with pytest.raises(ClusterError, match="is closed"):
        client.submit(inc, 1)


def test_no_process_is_left_and_no_main_guard_is_needed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "from taskloom.client import Client\n"
        "class Point:\n    def __init__(self, x):\n        self.x = x\n"
        "def make(x):\n    return Point(x)\n"
        "client = Client(n_workers=2)\n"
        "points = client.gather(client.map(make, range(4)))\n"
        "print(*[type(p) is Point and p.x for p in points], *client.gather(client.map(lambda _: os.getpid(), range(50))))\n"
        "sys.stdout.flush()\n"
        "if sys.argv[1:]:\n    os.kill(os.getpid(), 9)\n"
    )
    for how in ([], ["killed"]):
        done = subprocess.run(
            [sys.executable, str(script), *how], capture_output=True, text=True, timeout=60, check=False
        )
        words = done.stdout.split()
        assert done.stderr == ""
        assert words[:4] == ["0", "1", "2", "3"]
        pids = {int(word) for word in words[4:]}
        until(lambda pids=pids: not any(_lives(pid) for pid in pids), 2.0)


def _lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"workers": 2}, "no argument 'workers': do you mean 'n_workers'?"),
        ({"nthreads": 2}, "no argument 'nthreads': do you mean 'threads_per_worker'?"),
        ({"memory": "1GB"}, "no argument 'memory': do you mean 'memory_limit'?"),
        ({"n_worker": 2}, "no argument 'n_worker': do you mean 'n_workers'?"),
        ({"adress": "tcp://127.0.0.1:1"}, "no argument 'adress': do you mean 'address'?"),
        ({"address": "tcp://127.0.0.1:1", "tmeout": 1}, "no argument 'tmeout': do you mean 'timeout'?"),
        ({"quux": 1}, "no argument 'quux'; there are address, token, timeout, .* for a cluster n_workers, threads_"),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_arguments_that_are_not_there(wrong, words, asynchronous):
    with pytest.raises(TypeError, match=rf"Client\(\) takes {words}"):
        Client(**wrong, asynchronous=asynchronous)
