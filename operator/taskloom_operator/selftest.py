"""What ``helm test`` runs: make a TaskCluster of one worker, wait until it is ready, delete it.

``python -m taskloom_operator.selftest --namespace NAMESPACE`` does it from inside of a pod, with the rights of its service
account. It ends with 0 where the cluster became ready in time, else with 1; what it saw meanwhile it prints.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from kubernetes import client, config

from taskloom_operator.names import GROUP, VERSION

__all__ = ["check", "main"]

_RESOURCES = {"requests": {"cpu": "50m", "memory": "96Mi"}, "limits": {"memory": "256Mi"}}
_OFTEN = 0.5  # seconds


def check(api: Any, namespace: str, name: str, timeout: float) -> bool:
    """Make a cluster, wait for it, and delete it.

    Args:
        api: a ``kubernetes.client.CustomObjectsApi``.
        namespace, name: of the cluster. One of that name that is there already is deleted first.
        timeout: seconds.

    Returns:
        whether it became ready.

    Raises:
        kubernetes.client.ApiException: the API server refuses something.
    """
    deadline = time.monotonic() + timeout
    place = (GROUP, VERSION, namespace, "taskclusters")
    manifest = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TaskCluster",
        "metadata": {"name": name},
        "spec": {"workers": {"replicas": 1, "threads": 1, "resources": _RESOURCES}},
    }
    while True:
        try:
            api.create_namespaced_custom_object(*place, manifest)
            break
        except client.ApiException as error:
            if error.status != 409 or time.monotonic() > deadline:
                raise
        _delete(api, place, name)
        time.sleep(_OFTEN)
    print(f"TaskCluster {name} in the namespace {namespace} is made", flush=True)
    try:
        return _wait(api, place, name, deadline)
    finally:
        _delete(api, place, name)


def _delete(api: Any, place: tuple[str, str, str, str], name: str) -> None:
    try:
        api.delete_namespaced_custom_object(*place, name)
    except client.ApiException as error:
        if error.status != 404:
            raise


def _wait(api: Any, place: tuple[str, str, str, str], name: str, deadline: float) -> bool:
    said: dict[str, str] = {}
    while True:
        status = api.get_namespaced_custom_object(*place, name).get("status") or {}
        for condition in status.get("conditions") or ():
            words = f"{condition['status']}, {condition.get('reason', '')}: {condition.get('message', '')}"
            if said.get(condition["type"]) != words:
                said[condition["type"]] = words
                print(f"{condition['type']}: {words}", flush=True)
        if said.get("Ready", "").startswith("True"):
            return True
        if time.monotonic() > deadline:
            print(
                "it did not become ready in time"
                if said
                else "nobody has looked at it: the operator is not at work, or not in this namespace",
                flush=True,
            )
            return False
        time.sleep(_OFTEN)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m taskloom_operator.selftest", description="Make a TaskCluster, wait for it, delete it."
    )
    parser.add_argument("--namespace", required=True, help="where the cluster is made")
    parser.add_argument("--name", default="taskloom-test", help="what it is called")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds that it may take")
    options = parser.parse_args(arguments)
    load: Any = config.load_incluster_config  # the library says nothing of its types
    load()
    try:
        ready = check(client.CustomObjectsApi(), options.namespace, options.name, options.timeout)
    except client.ApiException as error:
        print(f"the API server refuses it: {error.status} {error.reason}: {error.body}", file=sys.stderr)
        return 1
    return 0 if ready else 1


if __name__ == "__main__":
    sys.exit(main())
