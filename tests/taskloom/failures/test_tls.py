"""The commands on an address that leaves this machine: all of it by TLS."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import psutil
import pytest

from taskloom.client import Client
from taskloom.errors import AddressError, CommError, HandshakeError

TOKEN = "t" * 43


def own_address():
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family == socket.AF_INET and not one.address.startswith(("127.", "169.254.")):
                return one.address
    return None


@pytest.fixture
def start():
    processes = []
    environ = {k: v for k, v in os.environ.items() if not k.startswith("TASKLOOM")}
    environ |= {"PYTHONUNBUFFERED": "1"}

    def run(*args, token=TOKEN):
        process = subprocess.Popen(
            [sys.executable, "-m", "taskloom", *args],
            env={**environ, "TASKLOOM_TOKEN": token},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def test_scheduler_worker_and_client(start):
    host = own_address()
    if host is None:
        pytest.skip("this machine has no address but its loopback")
    address = start("scheduler", "--host", host, "--port", "0", "--http-port", "-1").stdout.readline().split()[-1]
    assert address.startswith(f"tls://{host}:")
    plain = address.replace("tls://", "tcp://")
    worker = start("worker", address, "--nthreads", "1", "--nworkers", "2")
    for _ in range(2):
        assert "at tls://" in worker.stdout.readline()
    with Client(address, token=TOKEN) as client:
        assert client.gather(client.map(lambda x: x + 1, range(100))) == list(range(1, 101))
        made = client.map(lambda n: bytes(100_000 + n), range(8))
        assert client.submit(lambda *all: sum(map(len, all)), *made).result(timeout=30) == 800_028
        assert len(client.gather(made)[3]) == 100_003
        with pytest.raises(HandshakeError, match="token"):
            Client(address, token="u" * 43)
        with pytest.raises(AddressError, match="leaves this machine"):
            Client(plain, token=TOKEN)
        refused = start("worker", plain)
        assert refused.wait(30) == 1
        assert f"Use {address}" in refused.stderr.read()
        stranger = start("worker", address, token="u" * 43)
        assert stranger.wait(30) == 1
        assert "token" in stranger.stderr.read()
        with pytest.raises(CommError):
            Client(f"tcp://127.0.0.1:{address.rpartition(':')[2]}", token=TOKEN, timeout=0.3)
        assert client.submit(abs, -1).result(timeout=30) == 1
