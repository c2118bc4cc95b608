"""The HTTP interface: a real scheduler, real workers and clients on loopback, requests over sockets."""

from __future__ import annotations

import asyncio
import contextlib
import doctest
import http.client
import json
import logging
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import taskloom
from taskloom.core.messages import (
    KINDS,
    WISH,
    Back,
    Bye,
    ClientHello,
    Done,
    Functions,
    Options,
    Release,
    Status,
    Submit,
    Welcome,
)
from taskloom.errors import CommError
from taskloom.net import Options as NetOptions
from taskloom.net import connect
from taskloom.node import calls, http_handlers, http_state
from taskloom.node.http import HttpServer
from taskloom.node.http_handlers import PATHS
from taskloom.node.scheduler import SchedulerNode
from taskloom.node.worker import WorkerNode

TOKEN = "correct-horse-battery"
OPEN = ("/api/v1/health", "/api/v1/ready")
SECRET = "what-nobody-else-may-see"

sys.gates = {}  # what tasks wait for; by name, since functions travel by value


def wait(name):
    import sys

    assert sys.gates[name].wait(30)
    return name


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        threading.Event().wait(0.005)
    return found


class Answer:
    def __init__(self, status, headers, data):
        self.status = status
        self.headers = headers
        self.data = data

    @property
    def json(self):
        return json.loads(self.data)


class RawClient:
    """What a Client says to a scheduler, by hand."""

    def __init__(self, uuid):
        self.uuid = uuid
        self.first = 0
        self.done = {}
        self.number = None

    async def connect(self, address):
        options = NetOptions(kinds=KINDS)
        self.connection = await connect(address, token=TOKEN, role="client", wants="scheduler", options=options)
        self.connection.start(self.heard, lambda reason: None)
        self.connection.send(ClientHello(self.uuid))
        self.connection.send(Back([]))

    def heard(self, messages):
        for message in messages:
            if type(message) is Welcome:
                self.number = message.number
            elif type(message) is Done:
                self.done.update(zip(message.counters, message.places, strict=True))


class Cluster:
    """A scheduler with its HTTP interface; workers and clients in the same event loop, whose thread is not the tests'."""

    def __init__(self, grace=0.0, host="127.0.0.1", **options):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.node = SchedulerNode(TOKEN, grace=grace)
        self.workers = []
        self.gates = []
        self.server = None
        try:
            self.run(self.node.start())
            server = HttpServer(self.node, host, 0, token=TOKEN, **options)
            self.run(server.start())
            self.server = server
        except BaseException:
            self.close()
            raise
        self.url = self.server.address
        self.host, _, port = self.url.partition("://")[2].rpartition(":")
        self.port = int(port)

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def call(self, function, *args):
        """Call a function in the loop's thread."""

        async def go():
            return function(*args)

        return self.run(go())

    def close(self):
        for gate in self.gates:
            gate.set()
        for worker in self.workers:
            self.run(worker.close())
        if self.server is not None:
            self.run(self.server.close())
        self.run(self.node.close())
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    # --- who is there

    def worker(self, name, **options):
        worker = WorkerNode(self.node.address, TOKEN, name, capture=False, **options)
        self.run(worker.start())
        self.workers.append(worker)
        until(lambda: worker.machine.number >= 0)
        return worker

    def client(self, uuid=b"c" * 16):
        client = RawClient(uuid)
        self.run(client.connect(self.node.address))
        self.call(client.connection.send, Functions([0, 1], [calls.pack_function(f) for f in (wait, str.upper)]))
        until(lambda: client.number is not None)
        return client

    def gate(self, name):
        gate = sys.gates[name] = threading.Event()
        self.gates.append(gate)
        return gate

    def submit(self, client, *args, function=0, **options):
        """Tasks that are wanted, each with one argument; their counters."""
        count = len(args)
        block = Submit(
            client.first, [function] * count, [(a,) for a in args], [()] * count, bytes([WISH]) * count,
            Options(**options),
        )  # fmt: skip
        client.first += count
        self.call(client.connection.send, block)
        return list(range(block.first, client.first))

    # --- requests

    def ask(self, method, path, body=None, token=TOKEN, headers=None, port=None, timeout=20):
        if isinstance(body, dict):
            body = json.dumps(body)
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=timeout)
        with contextlib.closing(connection):
            sent = {} if token is None else {"Authorization": f"Bearer {token}"}
            connection.request(method, path, body, {**sent, **(headers or {})})
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())

    def get(self, path, **options):
        answer = self.ask("GET", path, **options)
        assert answer.status == 200, answer.data
        return answer.json

    def metrics(self):
        answer = self.ask("GET", "/metrics")
        assert answer.status == 200
        return {
            (sample.name, *[value for _, value in sorted(sample.labels.items())]): sample.value
            for family in text_string_to_metric_families(answer.data.decode())
            for sample in family.samples
        }


@pytest.fixture
def make():
    made = []

    def make(**options):
        made.append(Cluster(**options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture
def cluster(make):
    return make()


# --- who may ask, and how


@pytest.mark.parametrize("path", PATHS)
def test_all_but_health_and_readiness_asks_for_the_token(cluster, path):
    path = path.replace("CLIENT", "00").replace("COUNTER", "0")
    method = "POST" if path.endswith("/retire") else "GET"
    for token in (None, "wrong-horse-battery!!", TOKEN[:-1], TOKEN + "x", ""):
        answer = cluster.ask(method, path, token=token)
        if path in OPEN:
            assert answer.status == 200
            continue
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="taskloom"'
        assert answer.json["error"] == ("a token is needed" if token is None else "the token is wrong")
        assert "Authorization: Bearer TOKEN" in answer.json["hint"]
        assert TOKEN not in answer.data.decode()
    assert cluster.ask(method, path).status != 401


@pytest.mark.parametrize(
    "header", ["Basic " + TOKEN, TOKEN, "Bearer", "Bearer \xe4\xf6", "Bearer " + TOKEN + " " + TOKEN]
)
def test_other_headers_are_no_token(cluster, header):
    answer = cluster.ask("GET", "/api/v1/info", token=None, headers={"Authorization": header})
    assert answer.status == 401


def test_the_word_bearer_is_of_no_case(cluster):
    answer = cluster.ask("GET", "/api/v1/info", token=None, headers={"Authorization": f"bearer  {TOKEN}"})
    assert answer.status == 200


@pytest.mark.parametrize("path", PATHS)
def test_other_methods_are_refused(cluster, path):
    path = path.replace("CLIENT", "00").replace("COUNTER", "0")
    for method in ("PUT", "PATCH", "OPTIONS", "GET" if path.endswith("/retire") else "POST"):
        answer = cluster.ask(method, path)
        assert answer.status == 405
        allowed = answer.headers["Allow"].split(", ")
        assert method not in allowed
        assert answer.json["hint"] == f"use {' or '.join(allowed)}"


def test_an_unknown_method(cluster):
    answer = cluster.ask("BREW", "/api/v1/info")
    assert (answer.status, answer.json["error"]) == (405, "BREW can't be done here")


@pytest.mark.parametrize(
    "path", ["/", "/api", "/api/v1", "/api/v2/info", "/api/v1/info/", "/metrics/x", "//api/v1/info"]
)
def test_where_there_is_nothing_is_said_where_there_is_something(cluster, path):
    answer = cluster.ask("GET", path, token=None)
    assert (answer.status, answer.json["paths"]) == (404, list(PATHS))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:1", 200),
        ("localhost", 200),
        ("LOCALHOST:8787", 200),
        ("a.localhost", 200),
        ("[::1]:8787", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:8787", 421),
        ("10.0.0.1", 421),
        ("0.0.0.0", 421),
    ],
)
def test_on_loopback_other_hosts_are_refused(cluster, host, status):
    """A page of an attacker's whose name leads to 127.0.0.1 has the same origin as we, for a browser."""
    for path in ("/api/v1/health", "/api/v1/info"):
        answer = cluster.ask("GET", path, headers={"Host": host})
        assert answer.status == status
        if status != 200:
            assert "use 127.0.0.1 or localhost" in answer.json["hint"]


@pytest.mark.parametrize("path", [*PATHS, "/nothing"])
def test_no_browser_keeps_or_shows_anything_to_others(cluster, path):
    for method in ("GET", "OPTIONS"):
        answer = cluster.ask(method, path, headers={"Origin": "https://evil.example"})
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        found = {name.lower() for name in answer.headers}
        assert not [name for name in found if name.startswith("access-control-") or name == "set-cookie"]
        assert answer.headers["Server"] == "taskloom"


def test_large_bodies_are_refused_before_and_while_they_come(cluster):
    answer = cluster.ask("POST", "/api/v1/retire", b"x" * (http_handlers.BODY + 1))
    assert (answer.status, answer.json["hint"]) == (413, "ask in several requests")
    answer = cluster.ask("POST", "/api/v1/retire", iter([b"x" * 50_000, b"x" * 50_000]))  # of unknown length
    assert answer.status == 413
    for path, token, status in (
        ("/api/v1/retire", "wrong-horse-battery", 401),
        ("/api/v1/info", TOKEN, 405),
        ("/nothing", None, 404),
        ("/api/v1/retire", TOKEN, 413),
    ):
        assert cluster.ask("POST", path, b"x" * 5_000_000, token=token).status == status


def test_a_body_of_the_most_bytes_is_read(cluster):
    body = json.dumps({"workers": []}).ljust(http_handlers.BODY)
    assert cluster.ask("POST", "/api/v1/retire", body).status == 202


def test_bytes_that_are_no_http_disturb_nobody(cluster):
    for data in (
        os.urandom(1000),
        b"GET / HTTP/1.1\r\n" + b"a: " + b"x" * 100_000,
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
    ):
        sock = socket.create_connection(("127.0.0.1", cluster.port), timeout=20)
        with sock:
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
            except TimeoutError:
                raise
            except OSError:
                pass  # however it was closed
    assert cluster.get("/api/v1/health", token=None) == {"status": "ok"}
    until(lambda: cluster.server._servers[0].connections == 0)


def test_no_more_connections_than_there_may_be(cluster, monkeypatch):
    monkeypatch.setattr(http_handlers, "CONNECTIONS", 3)
    socks = [socket.create_connection(("127.0.0.1", cluster.port), timeout=20) for _ in range(3)]
    until(lambda: cluster.server._servers[0].connections == 3)
    with socket.create_connection(("127.0.0.1", cluster.port), timeout=20) as sock:
        assert sock.recv(1) == b""
    for sock in socks:
        sock.close()
    until(lambda: cluster.server._servers[0].connections == 0)
    assert cluster.ask("GET", "/api/v1/health").status == 200


def test_a_bug_is_said_to_be_one_and_logged(cluster, monkeypatch, caplog):
    monkeypatch.setattr(http_state.State, "info", lambda self: 1 / 0)
    with caplog.at_level(logging.ERROR, "taskloom.scheduler.http"):
        answer = cluster.ask("GET", "/api/v1/info")
        assert (answer.status, answer.json["hint"]) == (500, "this is a bug of taskloom; its log says where")
        assert "ZeroDivisionError" in caplog.text


# --- off loopback


def tls(cluster, path, check=None, **headers):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", cluster.port, timeout=20, context=context)
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}", **headers})
        if check is not None:
            check(connection.sock)
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())


def test_off_loopback_all_is_tls(make):
    cluster = make(host="0.0.0.0")
    assert cluster.url == f"https://0.0.0.0:{cluster.port}"

    def check(sock):
        import hashlib

        assert sock.version() == "TLSv1.3"
        assert hashlib.sha256(sock.getpeercert(binary_form=True)).hexdigest() == cluster.server.fingerprint

    assert tls(cluster, "/api/v1/info", check, Host="scheduler.namespace.svc").status == 200
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        cluster.ask("GET", "/api/v1/health")
    answer = tls(cluster, "/api/v1/info", Authorization="Bearer wrong-horse-battery", Host="node7")
    assert "ssh node7 cat" in answer.json["hint"]
    answer = tls(cluster, "/api/v1/info", Authorization="Bearer wrong-horse-battery", Host="a;reboot")
    assert b"reboot" not in answer.data  # nobody is told to type that


def test_health_and_readiness_can_be_had_without_tls_at_a_port_of_their_own(make):
    cluster = make(host="0.0.0.0", probe_port=0)
    port = int(cluster.server.probe_address.rpartition(":")[2])
    assert cluster.server.probe_address == f"http://0.0.0.0:{port}"
    for path in OPEN:
        assert cluster.ask("GET", path, token=None, port=port, headers={"Host": "10.1.2.3:80"}).status == 200
        assert cluster.ask("HEAD", path, token=None, port=port).status == 200
    for path in ("/api/v1/info", "/metrics", "/api/v1/dump"):
        assert cluster.ask("GET", path, port=port).status == 404


def test_loopback_has_no_certificate(cluster):
    assert cluster.url.startswith("http://127.0.0.1:")
    assert (cluster.server.fingerprint, cluster.server.probe_address) == ("", "")


def test_a_port_that_is_taken(make):
    cluster = make()
    with pytest.raises(OSError, match=f"HTTP can't listen at 127.0.0.1:{cluster.port}") as found:
        cluster.run(HttpServer(cluster.node, "127.0.0.1", cluster.port, token=TOKEN).start())
    assert "HTTP can't listen" in found.value.strerror
    server = HttpServer(cluster.node, "127.0.0.1", 0, token=TOKEN, probe_port=cluster.port)
    with pytest.raises(OSError, match="can't listen"):  # and the other socket is closed, or pytest would warn
        cluster.run(server.start())
    cluster.run(server.close())


def test_where_packages_are_missing_is_said_what_to_install():
    program = """if True:
        import asyncio, sys
        sys.modules["tornado"] = sys.modules["prometheus_client"] = None
        from taskloom.node.http import HttpServer
        from taskloom.node.scheduler import SchedulerNode
        try:
            asyncio.run(HttpServer(SchedulerNode("x" * 20), port=0, token="x" * 20).start())
        except OSError as error:
            print(type(error).__name__, error.strerror)
    """
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("CommError the HTTP interface needs tornado and prometheus-client"), done.stderr
    assert "pip install 'taskloom[cluster]'" in done.stdout


def test_a_short_token_is_refused_at_once(cluster):
    with pytest.raises(CommError, match="could be guessed"):
        HttpServer(cluster.node, token="short")


# --- what there is


def test_readiness_and_settling(make):
    cluster = make(grace=60.0)
    cluster.worker("a")
    assert cluster.get("/api/v1/ready", token=None) == {"ready": True, "settled": False}
    answer = cluster.ask("GET", "/api/v1/ready?settled=1", token=None)
    assert (answer.status, answer.json) == (503, {"ready": False, "settled": False})
    found = cluster.get("/api/v1/wish")
    assert (found["workers"], found["why"], found["spare"]) == (1, "settling", [])


def test_ready_at_last(cluster):
    cluster.worker("a")
    assert cluster.get("/api/v1/ready?settled=1", token=None) == {"ready": True, "settled": True}


def test_info(cluster):
    cluster.worker("a", threads=2)
    client = cluster.client()
    gate = cluster.gate("g")
    cluster.submit(client, "g", "g", "g")
    found = until(lambda: (info := cluster.get("/api/v1/info"))["tasks"]["sent"] and info)
    assert found["version"] == taskloom.__version__
    assert (found["address"], found["http"]) == (cluster.node.address, cluster.url)
    assert found["incarnation"] == cluster.node.machine.incarnation > 0
    assert found["workers"] == {"running": 1, "paused": 0, "retiring": 0, "retired": 0}
    assert (found["threads"], found["clients"], found["runnable"]) == (2, {"connected": 1, "away": 0}, 3)
    gate.set()
    until(lambda: len(client.done) == 3)
    found = cluster.get("/api/v1/info")
    assert (found["tasks"]["done"], found["totals"]["done"]) == (3, 3)


def test_workers(cluster, monkeypatch):
    monkeypatch.setenv("TASKLOOM_POD_UID", "uid-a")
    a = cluster.worker("a", threads=2, limit=1 << 40, resources={"GPU": 2.0})
    monkeypatch.delenv("TASKLOOM_POD_UID")
    cluster.worker("b")
    client = cluster.client()
    cluster.gate("g")
    cluster.submit(client, "g", resources=(("GPU", 1.5),))
    until(lambda: cluster.get("/api/v1/info")["tasks"]["sent"] == 1)
    until(
        lambda: all(
            "memory" in worker["vitals"] or worker["vitals"] for worker in cluster.get("/api/v1/workers")["workers"]
        )
    )
    first, second = cluster.get("/api/v1/workers")["workers"]
    assert {key: first[key] for key in ("name", "state", "threads", "memory_limit", "resources", "resources_free")} == {
        "name": "a", "state": "running", "threads": 2, "memory_limit": 1 << 40,
        "resources": {"GPU": 2.0}, "resources_free": {"GPU": 0.5},
    }  # fmt: skip
    assert (first["pod_uid"], second["pod_uid"]) == ("uid-a", None)
    assert (first["address"], first["pid"], first["host"]) == (a.address, os.getpid(), socket.gethostname())
    assert (first["sent"], first["idle_seconds"], first["connected"]) == (1, None, True)
    assert second["idle_seconds"] >= 0.0
    assert first["about"]["versions"]["taskloom"] == taskloom.__version__


def test_clients_come_and_stay_a_while(cluster):
    client = cluster.client(b"\x01" * 16)
    other = cluster.client(b"\x02" * 16)
    cluster.gate("g")
    cluster.submit(client, "g", "g")
    until(lambda: cluster.get("/api/v1/info")["tasks"]["ready"] == 2)
    first, second = cluster.get("/api/v1/clients")["clients"]
    assert (first["uuid"], first["connected"], first["tasks"], first["functions"]) == ("01" * 16, True, 2, 2)
    assert (second["uuid"], second["tasks"]) == ("02" * 16, 0)
    cluster.call(client.connection.abort)
    cluster.call(other.connection.send, Bye())
    until(lambda: len(cluster.get("/api/v1/clients")["clients"]) == 1)
    until(lambda: not cluster.get("/api/v1/clients")["clients"][0]["connected"])
    assert cluster.get("/api/v1/info")["clients"] == {"connected": 0, "away": 1}


def test_a_task_and_its_story(cluster):
    cluster.worker("a")
    client = cluster.client()
    cluster.gate("g")
    (counter,) = cluster.submit(client, "g")
    path = f"/api/v1/tasks/{client.uuid.hex()}/{counter}"
    found = until(lambda: (task := cluster.ask("GET", path)).status == 200 and task.json["worker"] and task.json)
    assert (found["state"], found["worker"], found["counter"]) == ("sent", "a", 0)
    assert found["story"][0].endswith(f"from client {client.number}: Submit")
    assert found["story"][1].endswith("Run")
    assert cluster.get(f"/api/v1/tasks/{client.number}/{counter}")["tid"] == found["tid"]
    answer = cluster.ask("GET", f"/api/v1/tasks/{client.uuid.hex()}/99")
    assert (answer.status, "has forgotten it" in answer.json["error"]) == (404, True)
    assert cluster.ask("GET", "/api/v1/tasks/nobody/0").status == 404


# --- wishes


def test_a_wish(cluster):
    client = cluster.client()
    cluster.gate("g")
    found = cluster.get("/api/v1/wish")
    assert (found["workers"], found["why"], found["changed"]) == (0, "nothing", True)
    cluster.submit(client, *["g"] * 100)
    cluster.submit(client, "g", resources=(("GPU", 1.0),))
    found = until(lambda: (wish := cluster.get("/api/v1/wish"))["tasks"] == 101 and wish)
    assert (found["workers"], found["why"], found["unmeasured"]) == (10, "work", 101)  # half a second each, in five
    assert found["unmet"] == [{"workers": [], "resources": {"GPU": 1.0}, "tasks": 1, "wanted": 1}]
    assert cluster.get("/api/v1/wish?threads=4")["workers"] == 3
    assert cluster.get("/api/v1/wish?target_seconds=50&assumed=0.5")["workers"] == 1
    assert cluster.get("/api/v1/wish?assumed=5")["workers"] == 100


@pytest.mark.parametrize(
    "query", ["timeout=x", "timeout=-1", "timeout=301", "timeout=nan", "threads=-1", "target_seconds=0", "assumed=inf"]
)
def test_a_query_that_makes_no_sense(cluster, query):
    answer = cluster.ask("GET", f"/api/v1/wish?{query}")
    name, _, value = query.partition("=")
    assert (answer.status, answer.json["hint"]) == (400, f"leave {name} out")
    assert answer.json["error"].startswith(f"{name}={value} is no number from ")


class Poll:
    """A request that waits for news, in a thread of its own."""

    def __init__(self, cluster, query):
        self.cluster = cluster
        self.path = f"/api/v1/wish?{query}"
        self.answer = None
        self.thread = threading.Thread(target=self.go)
        self.thread.start()

    def go(self):
        self.answer = self.cluster.ask("GET", self.path, timeout=60)

    def join(self):
        self.thread.join(30)
        assert self.answer is not None
        return self.answer.json


def test_a_poll_waits_until_there_is_something_new_to_do(cluster):
    wishes = cluster.server._state.wishes
    version = cluster.get("/api/v1/wish")["version"]
    polls = [Poll(cluster, f"since={version}&timeout=60") for _ in range(5)]
    until(lambda: len(wishes) == 5)
    client = cluster.client()  # changes nothing
    cluster.gate("g")
    assert len(wishes) == 5
    cluster.submit(client, "g")
    for found in [poll.join() for poll in polls]:
        assert (found["workers"], found["changed"]) == (1, True)
        assert found["version"] != version
    assert len(wishes) == 0
    assert cluster.get("/api/v1/wish")["version"] == found["version"]


def test_a_poll_for_what_is_old_is_answered_at_once(cluster):
    found = cluster.get("/api/v1/wish?since=1-abc&timeout=60")
    assert found["changed"]
    assert cluster.get("/api/v1/wish?timeout=60")["changed"]  # without a version there is nothing to wait for


def test_a_poll_ends_when_its_time_is_up(cluster):
    version = cluster.get("/api/v1/wish")["version"]
    found = cluster.get(f"/api/v1/wish?since={version}&timeout=0.05")
    assert (found["version"], found["changed"]) == (version, False)
    assert len(cluster.server._state.wishes) == 0


def test_polls_cost_nothing_while_nothing_happens(cluster, monkeypatch):
    wishes = cluster.server._state.wishes
    version = cluster.get("/api/v1/wish")["version"]
    poll = Poll(cluster, f"since={version}&timeout=60")
    until(lambda: len(wishes) == 1 and wishes._timer is None)
    looked = []
    answer = wishes.answer
    monkeypatch.setattr(wishes, "answer", lambda terms: looked.append(terms) or answer(terms))
    for _ in range(200):
        cluster.get("/api/v1/health", token=None)
    assert not looked
    cluster.gate("g")
    cluster.submit(cluster.client(), "g")
    poll.join()
    assert 1 <= len(looked) < 10


def test_polls_for_different_terms_have_different_versions(cluster):
    plain = cluster.get("/api/v1/wish")["version"]
    other = cluster.get("/api/v1/wish?threads=4")["version"]
    assert plain != other
    wishes = cluster.server._state.wishes
    poll = Poll(cluster, f"since={other}&threads=4&timeout=60")
    until(lambda: len(wishes) == 1)
    cluster.gate("g")
    cluster.submit(cluster.client(), "g")
    assert poll.join()["version"] != other


def test_who_has_gone_away_waits_no_longer(cluster):
    wishes = cluster.server._state.wishes
    version = cluster.get("/api/v1/wish")["version"]
    connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=20)
    connection.request("GET", f"/api/v1/wish?since={version}&timeout=300", headers={"Authorization": f"Bearer {TOKEN}"})
    until(lambda: len(wishes) == 1)
    connection.close()
    until(lambda: len(wishes) == 0)


def test_not_too_many_wait(cluster, monkeypatch):
    monkeypatch.setattr(http_state, "WAITING", 2)
    version = cluster.get("/api/v1/wish")["version"]
    polls = [Poll(cluster, f"since={version}&timeout=60") for _ in range(2)]
    until(lambda: len(cluster.server._state.wishes) == 2)
    answer = cluster.ask("GET", f"/api/v1/wish?since={version}&timeout=60")
    assert (answer.status, "2 wait already" in answer.json["error"]) == (503, True)
    cluster.gate("g")
    cluster.submit(cluster.client(), "g")
    for poll in polls:
        poll.join()


def test_a_server_that_closes_answers_who_waits(make):
    cluster = make()
    version = cluster.get("/api/v1/wish")["version"]
    poll = Poll(cluster, f"since={version}&timeout=300")
    until(lambda: len(cluster.server._state.wishes) == 1)
    cluster.run(cluster.server.close())
    assert poll.join()["changed"] is False
    assert len(cluster.node.after) == 1  # what the scheduler itself has there


# --- who is to go


def states(cluster):
    return {one["worker"]: one["state"] for one in cluster.get("/api/v1/retirements")["retirements"]}


def test_a_worker_retires_by_its_name_and_leaves(cluster):
    a, _ = cluster.worker("a"), cluster.worker("b")
    client = cluster.client()
    counters = cluster.submit(client, *["x"] * 20, function=1, workers=("a",))
    until(lambda: len(client.done) == len(counters))
    answer = cluster.ask("POST", "/api/v1/retire", {"workers": ["a"]})
    assert answer.status == 202
    (found,) = answer.json["retirements"]
    assert {key: found[key] for key in ("worker", "state", "values", "tasks", "ended")} == {
        "worker": "a", "state": "moving", "values": 20, "tasks": 0, "ended": None,
    }  # fmt: skip
    assert found["nbytes"] > 0
    until(lambda: states(cluster) == {"a": "gone"})
    until(lambda: a.finished.is_set())
    (found,) = cluster.get("/api/v1/retirements/a")["retirements"]
    assert (found["was_ready"], found["values"]) == (True, 0)
    assert found["since"] <= found["ended"]
    (left,) = cluster.get("/api/v1/workers")["workers"]
    assert (left["name"], left["values"]) == ("b", 20)  # nothing was computed again
    assert cluster.get("/api/v1/info")["totals"]["done"] == 20


def test_by_pod_uid(cluster, monkeypatch):
    monkeypatch.setenv("TASKLOOM_POD_UID", "uid-a")
    cluster.worker("a")
    monkeypatch.setenv("TASKLOOM_POD_UID", "uid-b")
    cluster.worker("b")
    answer = cluster.ask("POST", "/api/v1/retire", {"pod_uids": ["uid-b"]})
    assert [(one["worker"], one["pod_uid"]) for one in answer.json["retirements"]] == [("b", "uid-b")]
    until(lambda: states(cluster) == {"b": "gone"})
    (found,) = cluster.get("/api/v1/retirements/b")["retirements"]
    assert found["pod_uid"] == "uid-b"


def test_by_number_the_scheduler_chooses(cluster):
    for name in "abc":
        cluster.worker(name)
    client = cluster.client()
    cluster.gate("g")
    cluster.submit(client, "g", workers=("a",))
    until(lambda: cluster.get("/api/v1/wish")["spare"])
    found = cluster.get("/api/v1/wish")
    assert [worker["name"] for worker in found["spare"]] == ["b", "c"]
    answer = cluster.ask("POST", "/api/v1/retire", {"count": 2})
    assert [one["worker"] for one in answer.json["retirements"]] == ["b", "c"]
    until(lambda: states(cluster) == {"b": "gone", "c": "gone"})
    answer = cluster.ask("POST", "/api/v1/retire", {"count": 2})
    assert (answer.status, "only 1 are here" in answer.json["error"]) == (409, True)


def test_names_that_are_unknown_are_said_and_nothing_is_half_done(cluster):
    cluster.worker("a")
    answer = cluster.ask("POST", "/api/v1/retire", {"workers": ["a", "x"], "pod_uids": ["y"], "count": 1})
    assert (answer.status, answer.json["unknown"]) == (404, {"workers": ["x"], "pod_uids": ["y"]})
    assert "nothing was done" in answer.json["hint"]
    assert cluster.ask("POST", "/api/v1/retire", {"workers": ["a"], "count": 1}).status == 409
    assert states(cluster) == {}
    assert cluster.get("/api/v1/info")["workers"]["running"] == 1


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b"1", b"\xff", b"{}", b'{"worker": ["a"]}', b'{"workers": "a"}', b'{"workers": [1]}',
     b'{"count": -1}', b'{"count": true}', b'{"count": 1.5}', b"[" * 60_000],
)  # fmt: skip
def test_a_body_that_makes_no_sense(cluster, body):
    answer = cluster.ask("POST", "/api/v1/retire", body)
    assert answer.status == 400
    assert answer.json["hint"].partition("{")[1] == "{"


def test_a_retirement_is_asked_for_twice_and_is_one(cluster):
    cluster.worker("a")
    client = cluster.client()
    gate = cluster.gate("g")
    cluster.submit(client, "g")
    until(lambda: cluster.get("/api/v1/info")["tasks"]["sent"] == 1)
    first, second = [cluster.ask("POST", "/api/v1/retire", {"workers": ["a"]}).json["retirements"] for _ in range(2)]
    assert [one["since"] for one in first] == [one["since"] for one in second]
    until(lambda: cluster.get("/api/v1/retirements/a")["retirements"][0]["tasks"] == 1)  # it has begun it
    assert states(cluster) == {"a": "moving"}
    assert cluster.get("/api/v1/wish")["present"] == 0
    gate.set()
    until(lambda: len(client.done) == 1)
    # its value has nowhere to go
    assert cluster.get("/api/v1/retirements/a")["retirements"][0]["values"] == 1
    cluster.worker("b")
    until(lambda: states(cluster) == {"a": "gone"})


def test_a_retirement_is_cancelled(cluster):
    cluster.worker("a")
    client = cluster.client()
    gate = cluster.gate("g")
    cluster.submit(client, "g", "g", "g")
    until(lambda: cluster.get("/api/v1/info")["tasks"]["sent"] == 3)
    cluster.ask("POST", "/api/v1/retire", {"workers": ["a"]})
    until(lambda: cluster.get("/api/v1/retirements/a")["retirements"][0]["tasks"] < 3)  # it has begun the others
    answer = cluster.ask("DELETE", "/api/v1/retirements/a")
    assert (answer.status, [one["state"] for one in answer.json["retirements"]]) == (200, ["cancelled"])
    gate.set()
    until(lambda: len(client.done) == 3)
    assert states(cluster) == {}
    answer = cluster.ask("DELETE", "/api/v1/retirements/a")
    assert (answer.status, answer.json["error"]) == (404, "no worker called a is to go")
    assert cluster.ask("GET", "/api/v1/retirements/a").status == 404


def test_a_worker_that_was_told_that_it_may_go_cannot_be_kept(cluster):
    a = cluster.worker("a b/ä")
    cluster.call(lambda: setattr(a, "_do", lambda actions: None))  # it hears, and stays
    cluster.ask("POST", "/api/v1/retire", {"workers": ["a b/ä"]})
    until(lambda: states(cluster) == {"a b/ä": "ready"})
    answer = cluster.ask("DELETE", "/api/v1/retirements/a%20b/%C3%A4")
    assert (answer.status, answer.json["hint"]) == (409, "start another worker in its place")


def test_a_worker_that_comes_back_is_still_to_go(cluster):
    a = cluster.worker("a")
    client = cluster.client()
    gate = cluster.gate("g")
    cluster.submit(client, "g", workers=("a",))
    until(lambda: cluster.get("/api/v1/info")["tasks"]["sent"] == 1)
    cluster.ask("POST", "/api/v1/retire", {"workers": ["a"]})
    number = a.machine.number
    cluster.call(a.connection.abort)
    until(lambda: a.machine.number > number)
    until(lambda: cluster.get("/api/v1/retirements")["retirements"][0]["number"] == a.machine.number)
    assert states(cluster) == {"a": "moving"}
    gate.set()
    cluster.worker("b")
    until(lambda: states(cluster) == {"a": "gone"})


def test_a_worker_that_dies_meanwhile_was_not_ready(cluster):
    a = cluster.worker("a")
    client = cluster.client()
    gate = cluster.gate("g")
    cluster.submit(client, "g")
    until(lambda: cluster.get("/api/v1/info")["tasks"]["sent"] == 1)
    cluster.ask("POST", "/api/v1/retire", {"workers": ["a"]})
    gate.set()
    cluster.run(a.close())
    until(lambda: states(cluster) == {"a": "gone"})
    assert cluster.get("/api/v1/retirements/a")["retirements"][0]["was_ready"] is False


# --- for reports of bugs


def test_a_dump(cluster):
    cluster.worker("a")
    client = cluster.client()
    cluster.gate("g")
    cluster.submit(client, *["g"] * 50)
    cluster.submit(client, *[SECRET] * 5, function=1, resources=(("GPU", 1.0),))
    until(lambda: cluster.get("/api/v1/info")["tasks"]["sent"])
    found = cluster.get("/api/v1/dump")
    assert [worker["name"] for worker in found["workers"]] == ["a"]
    assert found["clients"][0]["uuid"] == client.uuid.hex()
    assert [(block["first"], block["count"]) for block in found["submissions"]] == [(0, 50), (50, 5)]
    assert (found["placing"]["stuck"], found["wish"]["tasks"]) == (5, 55)
    assert sorted(function["active"] for function in found["functions"]) == [5, 50]
    states = [task["state"] for task in found["tasks"]]
    assert states.count("ready") == http_handlers.TASKS
    assert 1 <= states.count("sent") <= http_handlers.TASKS
    assert len(cluster.get("/api/v1/dump?tasks=1")["tasks"]) == 2
    assert len(cluster.get("/api/v1/dump?tasks=all")["tasks"]) == 55


def test_a_dump_has_no_arguments_results_or_tokens(cluster):
    cluster.worker("a")
    client = cluster.client()
    cluster.submit(client, *[SECRET] * 3, function=1)
    cluster.submit(client, SECRET)  # raises: there is no such gate
    cluster.submit(client, SECRET, resources=(("GPU", 1.0),))
    until(lambda: (tasks := cluster.get("/api/v1/info")["tasks"])["done"] == 3 and tasks["erred"] == 1)
    text = cluster.ask("GET", "/api/v1/dump?tasks=all").data.decode()
    for word in (SECRET, SECRET.upper(), TOKEN):
        assert word not in text
    assert [task["error"] for task in json.loads(text)["tasks"] if task["state"] == "erred"] == ["raised"]


def test_all_tasks_are_sent_in_pieces_and_others_have_their_turn(cluster):
    client = cluster.client()
    count = 20 * http_state.CHUNK
    cluster.gate("g")
    cluster.submit(client, *["g"] * count)
    until(lambda: cluster.get("/api/v1/info")["tasks"]["ready"] == count)
    connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", "/api/v1/dump?tasks=all", headers={"Authorization": f"Bearer {TOKEN}"})
        answer = connection.getresponse()
        assert answer.headers["Transfer-Encoding"] == "chunked"
        begun = answer.read(1000)
        assert cluster.get("/api/v1/health", token=None) == {"status": "ok"}
        cluster.call(client.connection.send, Release(range(count // 2, count)))  # they go while we read
        found = json.loads(begun + answer.read())
    assert count // 2 <= len(found["tasks"]) <= count


def test_who_leaves_in_the_middle_of_a_dump(cluster):
    client = cluster.client()
    cluster.submit(client, *["g"] * 40 * http_state.CHUNK)
    until(lambda: cluster.get("/api/v1/info")["tasks"]["ready"])
    connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=20)
    connection.request("GET", "/api/v1/dump?tasks=all", headers={"Authorization": f"Bearer {TOKEN}"})
    connection.sock.recv(100)
    connection.close()
    until(lambda: cluster.server._servers[0].connections == 0)


@pytest.mark.parametrize("tasks", ["x", "-1", "1000000", "", "%00", "%C2%B2"])
def test_a_dump_of_so_many_tasks_makes_no_sense(cluster, tasks):
    answer = cluster.ask("GET", f"/api/v1/dump?tasks={tasks}")
    assert (answer.status, answer.json["hint"]) == (400, "leave tasks out")


def test_numbers_that_are_none_are_null(cluster):
    cluster.worker("a")

    def spoil():
        (peer,) = cluster.node.peers.values()
        peer.about = {"odd": float("nan"), 1: b"bytes", "list": [(float("inf"),)]}

    cluster.call(spoil)
    (found,) = cluster.get("/api/v1/workers")["workers"]
    assert found["about"] == {"odd": None, "1": "b'bytes'", "list": [[None]]}


# --- the page of the documents


def shell_blocks():
    """(commands, what they print or None) of docs/http.md."""
    text = (Path(__file__).parents[3] / "docs" / "http.md").read_text()
    fences = re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    found = []
    for n, (language, block) in enumerate(fences):
        if language == "sh":
            after = fences[n + 1] if n + 1 < len(fences) else ("", "")
            found.append((block, after[1] if after[0] == "text" else None))
    return found


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_of_the_document_print_what_it_says(cluster, tmp_path):
    folder = tmp_path / ".config" / "taskloom"
    folder.mkdir(parents=True)
    (folder / "token").write_text(TOKEN + "\n")
    a, _ = cluster.worker("a"), cluster.worker("b")
    client = cluster.client()
    cluster.submit(client, "x", function=1, workers=("a",))
    until(lambda: client.done)
    assert a.machine.number in client.done.values()
    blocks = shell_blocks()
    assert len(blocks) >= 10
    assert blocks[0][0].startswith("TOKEN=")
    token = blocks[0][0].splitlines()[0]
    asked = ""
    for block, printed in blocks:
        script = f"{token}\n{block}".replace("http://127.0.0.1:8787", cluster.url)
        done = subprocess.run(
            ["sh", "-eu", "-c", script],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        )
        assert not done.stderr, done.stderr
        assert done.returncode == 0
        said = doctest.OutputChecker().check_output(printed or "", done.stdout, doctest.ELLIPSIS)
        assert said, f"{block}\nprints\n{done.stdout}\nand the document says\n{printed}"
        asked += block
    for path in PATHS:
        assert re.search(
            re.escape(path).replace("NAME", r"\w+").replace("CLIENT/COUNTER", r"\w+/\d+") + r"\b", asked
        ), path
    assert len(json.loads((tmp_path / "dump.json").read_text())["tasks"]) == 1


# --- metrics


def test_metrics(cluster):
    cluster.worker("a", threads=2)
    client = cluster.client()
    cluster.submit(client, *["x"] * 30, function=1)
    until(lambda: len(client.done) == 30)
    cluster.submit(client, "no such gate")
    cluster.submit(client, "x", function=1, resources=(("GPU", 1.0),))
    until(lambda: cluster.get("/api/v1/info")["totals"]["failed"] == 1)
    found = until(lambda: (metrics := cluster.metrics())["taskloom_scheduler_tasks_stuck",] == 1 and metrics)
    expected = {
        ("taskloom_scheduler_info", taskloom.__version__): 1,
        ("taskloom_scheduler_workers", "running"): 1,
        ("taskloom_scheduler_workers", "retiring"): 0,
        ("taskloom_scheduler_threads",): 2,
        ("taskloom_scheduler_clients", "connected"): 1,
        ("taskloom_scheduler_tasks", "done"): 30,
        ("taskloom_scheduler_tasks", "erred"): 1,
        ("taskloom_scheduler_tasks_done_total",): 30,
        ("taskloom_scheduler_tasks_failed_total",): 1,
        ("taskloom_scheduler_tasks_retried_total",): 0,
        ("taskloom_scheduler_connections_total", "worker"): 1,
        ("taskloom_scheduler_connections_total", "client"): 1,
    }
    assert {key: found[key] for key in expected} == expected
    assert found["taskloom_scheduler_incarnation",] == cluster.node.machine.incarnation
    assert found["taskloom_scheduler_held_bytes",] > 0
    assert found["taskloom_scheduler_traffic_bytes_total", "in", "client"] > 100
    assert found["taskloom_scheduler_messages_total", "out", "worker"] >= 3
    assert found["process_resident_memory_bytes",] > 1 << 20
    assert not [name for name, *_ in found if name.startswith("taskloom_worker_")]


def test_totals_never_fall_when_connections_end(cluster):
    client = cluster.client()
    key = "taskloom_scheduler_traffic_bytes_total", "in", "client"
    before = cluster.metrics()[key]
    cluster.submit(client, *["x"] * 1000, function=1)
    cluster.call(client.connection.send, Bye())
    until(lambda: cluster.get("/api/v1/clients")["clients"] == [])
    after = cluster.metrics()[key]
    assert after > before + 1000
    for _ in range(2):
        other = cluster.client(os.urandom(16))
        cluster.call(other.connection.send, Bye())
        until(lambda: cluster.get("/api/v1/clients")["clients"] == [])
    found = cluster.metrics()
    assert found[key] > after
    assert found["taskloom_scheduler_connections_total", "client"] == 3


def test_metrics_of_single_workers_where_they_are_wanted(make):
    cluster = make(each_worker=True)
    cluster.worker("a")
    cluster.worker("b")
    found = cluster.metrics()
    assert {key for key in found if key[0] == "taskloom_worker_held_bytes"} == {
        ("taskloom_worker_held_bytes", "a"),
        ("taskloom_worker_held_bytes", "b"),
    }


def test_metrics_have_names_that_prometheus_wants(cluster):
    text = cluster.ask("GET", "/metrics").data.decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.documentation
        if family.name.startswith("taskloom"):
            for sample in family.samples:
                assert family.type != "counter" or sample.name.endswith(("_total", "_created"))
                assert not set(sample.labels) - {"state", "peer", "direction", "path", "status", "le", "version"}


def test_open_metrics_are_there_for_who_wants_them(cluster):
    answer = cluster.ask("GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert answer.data.endswith(b"# EOF\n")
    assert cluster.ask("GET", "/metrics").headers["Content-Type"].startswith("text/plain")


def test_the_lag_of_the_event_loop_is_seen(cluster, monkeypatch):
    monkeypatch.setattr("taskloom.node.http_metrics.LOOK", 0.01)
    metrics = cluster.server._metrics
    held = threading.Event()
    # the loop is held for longer than the smallest bucket, by what it looks at
    cluster.loop.call_soon_threadsafe(lambda: held.wait(0.05))
    count = "taskloom_scheduler_event_loop_lag_seconds_count"
    until(lambda: cluster.metrics()[count,] >= 1, 30)
    assert metrics._timer is not None


def test_paths_of_requests_are_counted_and_others_are_one(cluster):
    for n in range(3):
        cluster.ask("GET", f"/nothing/{n}")
    cluster.ask("GET", "/api/v1/info", token=None)
    cluster.ask("GET", "/api/v1/tasks/00/1")
    found = {key[1:]: value for key, value in cluster.metrics().items() if key[0].endswith("http_requests_total")}
    assert found == {
        ("other", "404"): 3,
        ("/api/v1/info", "401"): 1,
        ("/api/v1/tasks/CLIENT/COUNTER", "404"): 1,
    }


def test_a_paused_worker_is_seen(cluster):
    worker = cluster.worker("a")
    cluster.call(worker.connection.send, Status(True, []))
    until(lambda: cluster.get("/api/v1/info")["workers"]["paused"] == 1)
    assert cluster.metrics()["taskloom_scheduler_workers", "paused"] == 1
