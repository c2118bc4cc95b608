"""What tests of the client side of Kubernetes share: an API server, and a scheduler and a worker as they are in pods."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from .kube_server import Kubernetes

TOKEN = "the-token-of-the-cluster-in-tests"


def until(condition, seconds=30.0):
    """Look again and again until something is so; it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        threading.Event().wait(0.01)
    return found


class Pods:
    """A scheduler and a worker, in processes of their own: what the pods of a TaskCluster run.

    Attributes:
        port: at which the scheduler listens, by TLS.
    """

    def __init__(self, folder):
        self.folder = folder
        self.processes = []
        self.write_tokens(TOKEN)
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith("TASKLOOM")}
        self.environ |= {"HOME": str(folder), "TASKLOOM_TOKEN_FILE": str(folder / "token")}
        self.port = self.scheduler()
        self.worker()

    def write_tokens(self, *tokens):
        new = self.folder / "new"
        new.write_text("\n".join(tokens))
        new.chmod(0o600)
        new.rename(self.folder / "token")

    def start(self, *command):
        process = subprocess.Popen(
            [sys.executable, *command], env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.processes.append(process)
        return process

    def scheduler(self, *command):
        command = command or ("-m", "taskloom")
        process = self.start(*command, "scheduler", "--host", "0.0.0.0", "--port", "0", "--http-port", "-1")
        return int(process.stdout.readline().rpartition(":")[2])

    def worker(self):
        self.start("-m", "taskloom", "worker", f"tls://127.0.0.1:{self.port}", "--nthreads", "2", "--memory-limit", "0")

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.fixture(scope="package")
def pods(tmp_path_factory):
    """They are the same for all tests, which leave them as they are."""
    found = Pods(tmp_path_factory.mktemp("pods"))
    yield found
    found.close()


@pytest.fixture
def kubernetes(tmp_path, monkeypatch):
    """An API server; programs of this user find it, and no other, and nothing of taskloom's is set."""
    for name in list(os.environ):
        if name.startswith(("TASKLOOM_", "KUBERNETES_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    found = Kubernetes(tmp_path)
    monkeypatch.setenv("KUBECONFIG", found.kubeconfig)
    yield found
    found.close()


def operator_of(kubernetes, pods=None):
    """What the operator does, as far as a client sees it: a Secret, a scheduler, and so many workers as are wanted."""

    def operate(cluster):
        name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
        if pods is not None:
            kubernetes.put_secret(name, TOKEN, namespace=namespace)
            kubernetes.put_pod(name, "scheduler", f"{name}-scheduler-0", pods.port, namespace)
        workers = cluster["spec"]["workers"]
        count = workers.get("replicas", workers.get("autoscale", {}).get("min"))
        for number in range(count):
            kubernetes.put_pod(name, "worker", f"{name}-worker-{number}", namespace=namespace)
        cluster["status"] = status_of(cluster, count)

    kubernetes.operate = operate


def status_of(cluster, ready, **wrong):
    """A status in which all is well, but for these conditions: type -> (reason, message)."""
    conditions = []
    for kind in ("Ready", "SchedulerReady", "WorkersReady"):
        reason, message = wrong.get(kind, ("Running", "all is well"))
        conditions.append(
            {
                "type": kind,
                "status": "False" if kind in wrong else "True",
                "reason": reason,
                "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        )
    return {
        "phase": "Pending" if wrong else "Running",
        "readyReplicas": ready,
        "desiredReplicas": ready,
        "observedGeneration": cluster["metadata"].get("generation", 0),
        "conditions": conditions,
    }


@pytest.fixture
def lab(kubernetes, pods):
    """The API server with a TaskCluster "demo" in the namespace "lab" that runs."""
    operator_of(kubernetes, pods)
    cluster = kubernetes.put(
        "taskclusters", "demo", metadata={"generation": 1}, spec={"workers": {"replicas": 1, "threads": 2}}
    )
    kubernetes.operate(cluster)
    return kubernetes
