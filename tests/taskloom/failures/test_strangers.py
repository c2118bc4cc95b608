"""Those who do not belong to the cluster: refused with words, and nobody is disturbed."""

from __future__ import annotations

import http.server
import random
import socket
import threading

import pytest

from taskloom.client import Client
from taskloom.errors import CommError, ConnectTimeoutError, HandshakeError


def inc(x):
    return x + 1


def port_of(address):
    return int(address.rpartition(":")[2])


def worker_addresses(place):
    return [worker["address"] for worker in place.client.scheduler_info()["workers"].values()]


def say(port, data):
    """Say something to a port, and hear what comes until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        heard = b""
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while found := sock.recv(65536):
                heard += found
        except ConnectionError:  # it has not listened to the end
            pass
        return heard


def test_noise_on_all_ports_under_load(place):
    futures = place.client.map(inc, range(3000), pure=False)
    draw = random.Random(1)
    ports = [port_of(place.cluster.address), *map(port_of, worker_addresses(place))]
    half = []
    for port in ports:
        for size in (1, 7, 100, 100_000):
            say(port, draw.randbytes(size))
        say(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        say(port, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(200))
        say(port, b"")
        for _ in range(20):  # who connects and says nothing
            half.append(socket.create_connection(("127.0.0.1", port)))
    assert place.client.gather(futures, timeout=60) == list(range(1, 3001))
    with Client(place.cluster.address, token=place.cluster.token) as another:
        assert another.submit(inc, 1).result(timeout=30) == 2
    for sock in half:
        sock.close()


def test_a_handshake_that_is_overheard_and_replayed(place):
    """A man in the middle hears all that an honest client says, and says it again."""
    target = port_of(place.cluster.address)
    before = place.client.scheduler_info()["workers"].keys()
    said = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def carry(a, b, keep):
            try:
                while data := a.recv(65536):
                    if keep:
                        said.extend(data)
                    b.sendall(data)
                b.shutdown(socket.SHUT_WR)
            except OSError:
                pass

        def relay():
            here, _ = server.accept()
            with here, socket.create_connection(("127.0.0.1", target)) as there:
                back = threading.Thread(target=carry, args=(there, here, False))
                back.start()
                carry(here, there, True)
                back.join()

        thread = threading.Thread(target=relay)
        thread.start()
        with Client(f"tcp://127.0.0.1:{server.getsockname()[1]}", token=place.cluster.token) as honest:
            assert honest.submit(inc, 41).result(timeout=30) == 42
        thread.join(30)
    assert place.cluster.token.encode() not in said
    assert len(said) > 100
    for _ in range(3):
        say(target, bytes(said))
    assert place.client.scheduler_info()["workers"].keys() == before
    assert place.client.submit(inc, 1, pure=False).result(timeout=30) == 2


def test_another_token(place):
    with pytest.raises(HandshakeError, match="token") as caught:
        Client(place.cluster.address, token="y" * 43)
    assert "TASKLOOM_TOKEN" in str(caught.value)


def test_a_port_that_is_no_schedulers(place):
    address = worker_addresses(place)[0]
    with pytest.raises(HandshakeError, match=r"worker.*scheduler|scheduler.*worker"):
        Client(address, token=place.cluster.token)

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            with pytest.raises(CommError) as caught:
                Client(f"tcp://127.0.0.1:{server.server_port}", token=place.cluster.token, timeout=0.5)
        finally:
            server.shutdown()
            thread.join()
    assert "scheduler of taskloom" in str(caught.value)


def test_nobody_is_there():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(ConnectTimeoutError, match=r"no scheduler could be reached at .* within 0\.3 s"):
            Client(f"tcp://127.0.0.1:{sock.getsockname()[1]}", token="x" * 43, timeout=0.3)
