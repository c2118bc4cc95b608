"""How the objects of a cluster are called, labelled and owned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from taskloom_operator import names

__all__ = [
    "DEATHS",
    "DEFAULT_IMAGE",
    "JOB",
    "SCHEDULER",
    "SCRIPT",
    "SERIAL",
    "WORKER",
    "address",
    "cluster_name",
    "labels",
    "owner",
    "scheduler_hosts",
    "worker_name",
]

# values of the label taskloom.dev/component
SCHEDULER = "scheduler"
WORKER = "worker"
JOB = "job"

# annotations of the Deployment
DEFAULT_IMAGE = (
    "taskloom.dev/default-image"  # what it was given where the spec names none; it stays so with a newer operator
)

# annotations of pods
SERIAL = "taskloom.dev/serial"  # the how manieth worker of its group
DEATHS = "taskloom.dev/deaths"  # how many pods have ended in a row before it, in whose place it is
SCRIPT = "taskloom.dev/script"  # of a job: its program

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def worker_name(cluster: str, group: str, seed: str) -> str:
    """Of a worker's pod; the same seed gives the same name.

    >>> worker_name("demo", "default", "1"), worker_name("demo", "gpu", "1")
    ('demo-worker-zseiu', 'demo-gpu-worker-zseiu')
    """
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
    suffix = ""
    for _ in range(5):
        number, digit = divmod(number, len(_LETTERS))
        suffix += _LETTERS[digit]
    return names.worker_prefix(cluster, group) + suffix


def cluster_name(job: str) -> str:
    """Of the TaskCluster that is made for a TaskJob."""
    return f"{job}-cluster"


def scheduler_hosts(cluster: str, namespace: str) -> tuple[str, ...]:
    """Names under which the scheduler is reached.

    >>> scheduler_hosts("demo", "lab")[2]
    'demo-scheduler.lab.svc'
    """
    name = names.scheduler_name(cluster)
    return name, f"{name}.{namespace}", f"{name}.{namespace}.svc", f"{name}.{namespace}.svc.cluster.local", "localhost"


def address(cluster: str, namespace: str) -> str:
    """Where workers and clients in Kubernetes connect to.

    >>> address("demo", "lab")
    'tls://demo-scheduler.lab.svc:8786'
    """
    return f"tls://{names.scheduler_name(cluster)}.{namespace}.svc:{names.PORT}"


def labels(cluster: str, component: str = "", group: str = "") -> dict[str, str]:
    """Of an object that belongs to a cluster."""
    found = {
        "app.kubernetes.io/name": "taskloom",
        names.MANAGED_BY: names.OPERATOR,
        names.CLUSTER: cluster,
    }
    if component:
        found[names.COMPONENT] = component
    if group:
        found[names.GROUP_LABEL] = group
    return found


def owner(resource: Mapping[str, Any], controller: bool = True) -> dict[str, Any]:
    """An owner reference to a resource of ours. It never holds up the deletion of the owner."""
    return {
        "apiVersion": resource["apiVersion"],
        "kind": resource["kind"],
        "name": resource["metadata"]["name"],
        "uid": resource["metadata"]["uid"],
        "controller": controller,
        "blockOwnerDeletion": False,
    }
