"""What the tests do with a cluster: kubectl and helm, as a person would type them."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["KubectlError", "Namespace", "helm", "kubectl", "node", "until"]


class KubectlError(Exception):
    """A command has failed; with what it said."""


def _run(program: str, *args: str, stdin: str | None = None, timeout: float = 120.0) -> str:
    done = subprocess.run([program, *args], input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise KubectlError(f"{program} {' '.join(args)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def kubectl(*args: str, stdin: str | None = None, timeout: float = 120.0) -> str:
    """Run kubectl; what it printed.

    Raises:
        KubectlError: it failed.
    """
    return _run("kubectl", *args, stdin=stdin, timeout=timeout)


def helm(*args: str, timeout: float = 300.0) -> str:
    """Run helm; what it printed.

    Raises:
        KubectlError: it failed.
    """
    return _run("helm", *args, timeout=timeout)


def until(condition: Callable[[], Any], seconds: float = 60.0, what: str = "") -> Any:
    """Look again and again until something is so; it."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"after {seconds:g} s it has not come: {what or condition}"
        threading.Event().wait(0.1)


def node(verb: str, *args: str) -> None:
    """Crash, revive, partition or heal a node; only where the cluster was made by a tool that can."""
    subprocess.run([os.environ["TASKLOOM_E2E_KUBE"], verb, *args], check=True, capture_output=True, timeout=120)


class Namespace:
    """A namespace, and what is looked at in it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def kubectl(self, *args: str, stdin: str | None = None, timeout: float = 120.0) -> str:
        """kubectl in this namespace."""
        return kubectl("-n", self.name, *args, stdin=stdin, timeout=timeout)

    def apply(self, *manifests: dict[str, Any]) -> None:
        """Server-side apply."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(items))

    def get(self, kind: str, name: str = "", selector: str = "") -> Any:
        """An object, or a list of objects; None where there is none of that name."""
        args = ["get", kind, "-o", "json"]
        if name:
            args.append(name)
        if selector:
            args += ["-l", selector]
        try:
            found = json.loads(self.kubectl(*args))
        except KubectlError as error:
            if "NotFound" in str(error) or "not found" in str(error):
                return None
            raise
        return found if name else found["items"]

    def pods(self, cluster: str = "", component: str = "worker", alive: bool = True) -> list[dict[str, Any]]:
        """Pods of a cluster; by default those of its workers that are not on their way out."""
        labels = [f"taskloom.dev/component={component}"] + ([f"taskloom.dev/cluster={cluster}"] if cluster else [])
        found = self.get("pods", selector=",".join(labels))
        if not alive:
            return list(found)
        return [
            pod
            for pod in found
            if "deletionTimestamp" not in pod["metadata"] and pod["status"].get("phase") not in ("Succeeded", "Failed")
        ]

    def condition(self, kind: str, name: str, condition: str) -> dict[str, Any]:
        """One condition of a resource; empty where it is not told."""
        found = self.get(kind, name) or {}
        for one in found.get("status", {}).get("conditions", []):
            if one["type"] == condition:
                return dict(one)
        return {}

    def ready(self, name: str, workers: int | None = None, seconds: float = 90.0) -> None:
        """Wait until a cluster is, with so many workers."""

        def look() -> bool:
            found = self.get("taskcluster", name)
            status = (found or {}).get("status", {})
            one = {c["type"]: c["status"] for c in status.get("conditions", [])}
            enough = workers is None or status.get("readyReplicas", 0) == workers
            return one.get("SchedulerReady" if workers == 0 else "Ready") == "True" and enough

        until(look, seconds, f"TaskCluster {name} with {workers} workers")

    def report(self) -> Iterator[str]:
        """What a person would look at when something is wrong."""
        for args in (
            ("get", "taskclusters,taskworkergroups,taskjobs,deployments,pods,jobs,services", "-o", "wide"),
            ("get", "taskclusters,taskworkergroups,taskjobs", "-o", "yaml"),
            ("describe", "pods"),
            ("get", "events", "--sort-by=.lastTimestamp"),
        ):
            yield f"--- kubectl {' '.join(args)}"
            try:
                yield self.kubectl(*args)[-20_000:]
            except (KubectlError, subprocess.TimeoutExpired) as error:
                yield str(error)
        try:
            pods = [pod["metadata"]["name"] for pod in self.get("pods")][:20]
        except (KubectlError, subprocess.TimeoutExpired):
            pods = []
        for pod in pods:
            for more in ((), ("--previous",)):
                try:
                    found = self.kubectl("logs", pod, "--all-containers", "--tail=60", *more)
                except (KubectlError, subprocess.TimeoutExpired):
                    continue
                yield f"--- logs of {pod} {' '.join(more)}\n{found}"


@contextmanager
def namespace(name: str) -> Iterator[Namespace]:
    """Make a namespace, with Pod Security "restricted" enforced; remove it afterwards."""
    manifest = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifest))
    try:
        yield Namespace(name)
    finally:
        kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")
