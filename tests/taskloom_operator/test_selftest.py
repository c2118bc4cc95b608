"""What `helm test` runs, against an API server that keeps TaskClusters in a dictionary."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kubernetes import client

from taskloom_operator.selftest import check

PLACE = "/apis/taskloom.dev/v1alpha1/namespaces/lab/taskclusters"


class Server(ThreadingHTTPServer):
    """An API server: what is asked is in ``requests``; ``statuses`` come one after the other, the last one again and again."""

    daemon_threads = True

    def __init__(self, statuses=({},), refuse=None, there=()):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []
        self.statuses = list(statuses)
        self.refuse = refuse
        self.clusters = {name: {"metadata": {"name": name}} for name in there}

    def api(self):
        configuration = client.Configuration(host=f"http://127.0.0.1:{self.server_port}")
        configuration.proxy = None
        return client.CustomObjectsApi(client.ApiClient(configuration))


class Handler(BaseHTTPRequestHandler):
    def answer(self, code, value):
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def found(self):
        self.server.requests.append((self.command, self.path))
        return self.server.clusters.get(self.path.rpartition("/")[2])

    def do_POST(self):
        self.server.requests.append((self.command, self.path))
        manifest = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = manifest["metadata"]["name"]
        if self.server.refuse:
            self.answer(self.server.refuse, {"message": "no"})
        elif name in self.server.clusters:
            self.answer(409, {"message": "there"})
        else:
            self.server.clusters[name] = manifest
            self.answer(201, manifest)

    def do_GET(self):
        found = self.found()
        if found is None:
            self.answer(404, {})
            return
        status = self.server.statuses.pop(0) if len(self.server.statuses) > 1 else self.server.statuses[0]
        self.answer(200, {**found, "status": status})

    def do_DELETE(self):
        found = self.found()
        if found is not None:
            del self.server.clusters[found["metadata"]["name"]]
        self.answer(404 if found is None else 200, {})

    def log_message(self, *args):
        pass


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    started = []

    def start(**options):
        server = Server(**options)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join()
        server.server_close()


def ready(status, message=""):
    return {"conditions": [{"type": "Ready", "status": status, "reason": "Workers", "message": message}]}


def test_a_cluster_that_becomes_ready(serve, capsys):
    server = serve(statuses=[{}, ready("False", "0 of 1"), ready("True", "1 of 1")])
    assert check(server.api(), "lab", "test", 30) is True
    assert server.clusters == {}
    assert capsys.readouterr().out.splitlines()[1:] == ["Ready: False, Workers: 0 of 1", "Ready: True, Workers: 1 of 1"]
    assert server.requests[0] == ("POST", PLACE)
    assert server.requests[-1] == ("DELETE", f"{PLACE}/test")


def test_one_that_is_left_from_before_is_deleted_first(serve):
    server = serve(statuses=[ready("True")], there=["test", "other"])
    assert check(server.api(), "lab", "test", 30) is True
    assert list(server.clusters) == ["other"]


def test_a_cluster_that_does_not_become_ready(serve, capsys):
    server = serve(statuses=[ready("False", "ImagePullBackOff")])
    assert check(server.api(), "lab", "test", 0) is False
    assert "ImagePullBackOff" in capsys.readouterr().out
    assert server.clusters == {}


def test_nobody_looks_at_it(serve, capsys):
    server = serve()
    assert check(server.api(), "lab", "test", 0) is False
    assert "nobody has looked at it" in capsys.readouterr().out


def test_it_is_refused(serve):
    server = serve(refuse=403)
    with pytest.raises(client.ApiException) as caught:
        check(server.api(), "lab", "test", 30)
    assert caught.value.status == 403
