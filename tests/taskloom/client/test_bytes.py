"""Where the bytes of a computation go: the seed's blocked matrix multiplication, counted at the sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from taskloom.client import Client
from taskloom.deploy.local import LocalCluster


class Counter:
    """Stands between somebody and a port, and counts what goes through."""

    def __init__(self, port):
        self.port = port
        self.count = 0
        self._sockets = []
        self._threads = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._run(self._accept)

    def _run(self, target, *args):
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
                self._sockets.append(near)
                far = socket.create_connection(("127.0.0.1", self.port))
                self._sockets.append(far)
            except OSError:  # closed, or nobody is there any more
                return
            self._run(self._carry, near, far)
            self._run(self._carry, far, near)

    def _carry(self, here, there):
        try:
            while data := here.recv(1 << 16):
                self.count += len(data)
                there.sendall(data)
            there.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join(10)
        for sock in self._sockets:
            sock.close()


@pytest.fixture
def counted():
    """A client, and counters of what it and the workers exchange with the scheduler."""
    counters, workers = [], []
    with LocalCluster(n_workers=0) as cluster:
        port = int(cluster.address.rpartition(":")[2])
        try:
            counters += [Counter(port), Counter(port)]
            command = [sys.executable, "-m", "taskloom", "worker", counters[1].address, "--nthreads", "1"]
            environ = {**os.environ, "TASKLOOM_TOKEN": cluster.token}
            workers += [subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL) for _ in range(2)]
            with Client(counters[0].address, token=cluster.token, set_as_default=False) as client:
                client.wait_for_workers(2)
                yield client, counters
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
            for counter in counters:
                counter.close()


def block(seed, size):
    return np.random.default_rng(seed).normal(size=(size, size))


def add(*blocks):
    return sum(blocks[1:], blocks[0])


def total(*blocks):
    return float(sum(one.sum() for one in blocks))


def test_no_intermediate_of_a_matrix_product_passes_through_client_or_scheduler(counted):
    client, (of_client, of_workers) = counted
    n, size = 4, 200
    graph = {}
    for i in range(n):
        for j in range(n):
            graph["a", i, j] = (block, i * n + j, size)
            graph["b", i, j] = (block, 1000 + i * n + j, size)
            for k in range(n):
                graph["p", i, j, k] = (np.dot, ("a", i, k), ("b", k, j))
            graph["c", i, j] = (add, *[("p", i, j, k) for k in range(n)])
    graph["sum"] = (total, *[("c", i, j) for i in range(n) for j in range(n)])
    before = of_client.count, of_workers.count
    found = client.get(graph, "sum")
    spent = of_client.count - before[0], of_workers.count - before[1]
    a = np.block([[block(i * n + j, size) for j in range(n)] for i in range(n)])
    b = np.block([[block(1000 + i * n + j, size) for j in range(n)] for i in range(n)])
    assert found == pytest.approx((a @ b).sum())
    one = 8 * size * size
    # 113 blocks are made, of 320,000 bytes each; what goes through is the graph and what is said of it
    assert 0 < spent[0] < one / 4
    assert 0 < spent[1] < one / 4
    # and the counters would see a block that does
    before = of_client.count
    assert client.scatter(np.zeros((size, size))).result().shape == (size, size)
    assert of_client.count - before > one
