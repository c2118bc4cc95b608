"""Something is killed or stopped in the middle of each workload, and the results are right all the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from operator import add

import pytest

import taskloom


def inc(x):
    return x + 1


def mix(*values):
    total = 1
    for value in values:
        total = (total * 31 + value) % 1_000_003
    return total


def noops():
    return {("n", i): (inc, i) for i in range(2000)}, [("n", i) for i in range(2000)]


def chain():
    return {("c", 0): 0, **{("c", i): (inc, ("c", i - 1)) for i in range(1, 1000)}}, [("c", 999)]


def tree():
    graph = {("t", 0, i): (inc, i) for i in range(512)}
    for level in range(1, 10):
        for i in range(512 >> level):
            graph["t", level, i] = (add, ("t", level - 1, 2 * i), ("t", level - 1, 2 * i + 1))
    return graph, [("t", 9, 0)]


def stencil():
    graph = {("s", 0, i): (inc, i) for i in range(30)}
    for row in range(1, 30):
        for i in range(30):
            graph["s", row, i] = (mix, *[("s", row - 1, (i + k) % 30) for k in (-1, 0, 1)])
    return graph, [("s", 29, i) for i in range(30)]


def random_graph():
    draw = random.Random(7)
    graph = {("r", 0): (inc, 0)}
    for i in range(1, 1000):
        graph["r", i] = (mix, *[("r", draw.randrange(max(0, i - 100), i)) for _ in range(draw.randrange(1, 4))])
    return graph, [("r", i) for i in range(900, 1000)]


def block(seed):
    draw = random.Random(seed)
    return [[draw.randrange(100) for _ in range(10)] for _ in range(10)]


def multiply(a, b):
    return [[sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*b, strict=True)] for row in a]


def add_up(blocks):
    return [[sum(items) for items in zip(*rows, strict=True)] for rows in zip(*blocks, strict=True)]


def matmul():
    n = 4
    graph = {
        (name, i, j): (block, seed + 10 * i + j)
        for name, seed in (("a", 1), ("b", 2))
        for i in range(n)
        for j in range(n)
    }
    for i in range(n):
        for j in range(n):
            for k in range(n):
                graph["p", i, j, k] = (multiply, ("a", i, k), ("b", k, j))
            graph["c", i, j] = (add_up, [("p", i, j, k) for k in range(n)])
    return graph, [("c", i, j) for i in range(n) for j in range(n)]


WORKLOADS = [noops, chain, tree, stencil, random_graph, matmul]


def note(path, function, *args):
    """Leaves a mark, and then lasts long enough for something to happen."""
    with open(path, "a"):
        pass
    time.sleep(0.05)
    return function(*args)


def with_a_mark(graph, path):
    """The graph with a task in its middle that leaves a mark."""
    tasks = [key for key, task in graph.items() if type(task) is tuple]
    key = tasks[len(tasks) // 2]
    return {**graph, key: (note, path, *graph[key])}


def run(client, graph, keys, path, fault):
    """The values, though something happens when the graph is half done."""
    with ThreadPoolExecutor(1) as pool:
        values = pool.submit(client.get, with_a_mark(graph, path), keys, timeout=60)
        while not os.path.exists(path) and not values.done():
            threading.Event().wait(0.002)
        fault()
        return values.result()


def same(values, expected):
    assert list(values) == list(expected)


@pytest.mark.parametrize("victim", ["worker", "scheduler"])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_killed(place, make_place, workload, victim, tmp_path):
    graph, keys = workload()
    if victim == "scheduler":  # one that dies again and again is started later each time
        place = make_place()
    place.cluster.wait_for_workers()
    pid = place.pid("worker-0") if victim == "worker" else place.cluster.scheduler_pid
    values = run(place.client, graph, keys, str(tmp_path / "mark"), lambda: os.kill(pid, signal.SIGKILL))
    same(values, taskloom.get_sync(graph, keys))


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_worker_is_stopped_and_goes_on_later(place, workload, tmp_path):
    graph, keys = workload()
    pid = place.pid("worker-0")
    try:
        values = run(place.client, graph, keys, str(tmp_path / "mark"), lambda: os.kill(pid, signal.SIGSTOP))
        same(values, taskloom.get_sync(graph, keys))
    finally:
        os.kill(pid, signal.SIGCONT)

    def is_used():
        futures = place.client.map(lambda _: (time.sleep(0.001), os.getpid())[1], range(100), pure=False)
        return pid in place.client.gather(futures, timeout=30)

    place.until(is_used)
    assert place.pid("worker-0") == pid


def test_futures(place):
    """``map``, and the values fetched while workers come and go."""
    place.cluster.wait_for_workers()
    for victim in ("worker-0", "worker-1"):
        futures = place.client.map(lambda i: [i] * 2000, range(500), pure=False)
        place.until(lambda futures=futures: any(future.done() for future in futures))
        os.kill(place.pid(victim), signal.SIGKILL)
        assert [int(array[0]) for array in place.client.gather(futures)] == list(range(500))
        place.cluster.wait_for_workers()


CLIENT = """
import sys, time
from taskloom.client import Client
client = Client(sys.argv[1], token=sys.argv[2])
futures = client.map(lambda i: time.sleep(0.01), range(int(sys.argv[3])))
while not any(future.done() for future in futures):
    time.sleep(0.001)
print("under way", flush=True)
client.gather(futures)
"""


def test_a_client_is_killed_and_its_work_is_dropped(make_place, monkeypatch):
    monkeypatch.setattr("taskloom.node.scheduler.CLIENT_GRACE", 0.05)
    place = make_place(processes=False, n_workers=1)
    machine = place.cluster._node[0].machine
    mine = place.client.submit(abs, -1)
    assert mine.result() == 1
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, place.cluster.address, place.cluster.token, "3000"], stdout=subprocess.PIPE
    ) as other:
        try:
            assert other.stdout.readline() == b"under way\n"
            assert machine.tasks.live > 100
        finally:
            other.kill()
    place.until(lambda: machine.tasks.live == 1)
    assert mine.result() == 1


def test_a_client_is_killed_and_the_others_are_served(place):
    mine = place.client.map(lambda i: (time.sleep(0.001), i)[1], range(300), pure=False)
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, place.cluster.address, place.cluster.token, "300"], stdout=subprocess.PIPE
    ) as other:
        try:
            assert other.stdout.readline() == b"under way\n"
        finally:
            other.kill()
    assert place.client.gather(mine) == list(range(300))
    same(place.client.get(*tree()), taskloom.get_sync(*tree()))
