"""A worker's pod."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskloom_operator import names
from taskloom_operator.manifests import naming, pods
from taskloom_operator.manifests.hashes import worker_hash
from taskloom_operator.observe import Settings
from taskloom_operator.spec.quantities import quantity, whole

__all__ = ["GRACE", "memory_limit", "named", "threads", "worker_pod"]

GRACE = 60  # seconds that a worker has for moving what it holds when its pod is deleted
PATIENCE = 60  # seconds after which it leaves a node that cannot be reached
_SPARE = 5  # of the grace: so long before its end the worker gives up moving, and ends


def _of(workers: Mapping[str, Any], which: str, name: str) -> Any:
    return ((workers.get("resources") or {}).get(which) or {}).get(name)


def threads(workers: Mapping[str, Any]) -> int:
    """How many tasks one runs at a time: as the spec says, else one for each CPU that it may use, else one.

    >>> threads({"resources": {"limits": {"cpu": "1500m"}}}), threads({})
    (2, 1)
    """
    if workers.get("threads"):
        return int(workers["threads"])
    cpus = _of(workers, "limits", "cpu") or _of(workers, "requests", "cpu")
    return max(1, whole(cpus)) if cpus is not None else 1


def memory_limit(workers: Mapping[str, Any]) -> int:
    """How many bytes one may have; 0: there is no limit.

    >>> memory_limit({"resources": {"limits": {"memory": "1Gi"}}}), memory_limit({"memoryLimit": "100M"}), memory_limit({})
    (1073741824, 100000000, 0)
    """
    wanted = workers.get("memoryLimit")
    if wanted is None:
        wanted = _of(workers, "limits", "memory")
    return 0 if wanted is None else whole(wanted)


def worker_pod(
    cluster: Mapping[str, Any],
    workers: Mapping[str, Any],
    owner: Mapping[str, Any],
    group: str,
    settings: Settings,
    image: str,
) -> dict[str, Any]:
    """A worker's pod, but for its name: see :func:`named`.

    Args:
        cluster: the TaskCluster.
        workers: ``spec.workers`` of it, or the spec of a TaskWorkerGroup.
        owner: the resource that controls the pod: this or that.
        group: "default", or the name of the TaskWorkerGroup.
        image: what it runs, where the specs do not say.
    """
    spec, metadata = cluster["spec"], cluster["metadata"]
    policy, secrets = pods.pull(spec, settings.image_pull_policy, settings.image_pull_secrets)
    override = workers.get("podTemplate") or {}
    grace = (override.get("spec") or {}).get("terminationGracePeriodSeconds")
    grace = GRACE if grace is None else int(grace)
    limit = _of(workers, "limits", "memory")
    shared = str(whole(limit) // 2) if limit is not None else "1Gi"
    amounts = [f"--resource={key}={quantity(value):f}" for key, value in (workers.get("taskResources") or {}).items()]
    container: dict[str, Any] = {
        "name": "worker",
        "image": workers.get("image") or spec.get("image") or image,
        "imagePullPolicy": policy,
        "command": ["taskloom"],
        "args": [
            *("worker", naming.address(metadata["name"], metadata["namespace"])),
            # of one shape, so that all pods of a group differ in their metadata alone
            *("--name", "$(TASKLOOM_POD_NAME)", "--nworkers", "1", "--host", "0.0.0.0"),
            *amounts,
        ],
        # settings, not arguments, so that a pod template can have another value for each by its name
        "env": [
            pods.variable("TASKLOOM_TOKEN_FILE", pods.TOKEN_FILE),
            {"name": "TASKLOOM_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "TASKLOOM_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            pods.variable("TASKLOOM_WORKER__NTHREADS", str(threads(workers))),
            pods.variable("TASKLOOM_WORKER__MEMORY_LIMIT", str(memory_limit(workers))),
            pods.variable("TASKLOOM_WORKER__PROBE_PORT", str(names.PROBE_PORT)),
            pods.variable("TASKLOOM_WORKER__STATE_DIRECTORY", "/run/taskloom"),
            pods.variable("TASKLOOM_WORKER__LEAVE_TIMEOUT", str(max(1, grace - _SPARE))),
            pods.variable("TMPDIR", "/tmp"),
        ],
        "ports": [{"name": "probes", "containerPort": names.PROBE_PORT, "protocol": "TCP"}],
        # That it has started means that it has registered: before that it holds nothing, and may wait for its scheduler.
        "startupProbe": pods.probe("ready", 1, 1800),
        "readinessProbe": pods.probe("ready", 2, 3),
        "livenessProbe": pods.probe("health", 10, 6),
        "resources": workers.get("resources") or {},
        "securityContext": pods.security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "taskloom-token", "mountPath": "/etc/taskloom", "readOnly": True},
            {"name": "taskloom-tmp", "mountPath": "/tmp"},
            {"name": "taskloom-run", "mountPath": "/run/taskloom"},
            {"name": "taskloom-shm", "mountPath": "/dev/shm"},
        ],
    }
    pod: dict[str, Any] = {
        "metadata": {
            "namespace": metadata["namespace"],
            "labels": naming.labels(metadata["name"], naming.WORKER, group),
            "annotations": {names.SPEC_HASH: worker_hash(spec, workers)},
            "ownerReferences": [naming.owner(owner)],
        },
        "spec": {
            "restartPolicy": "OnFailure",  # one that has retired ends with 0, and stays away
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": pods.pod_security(),
            "terminationGracePeriodSeconds": GRACE,
            "containers": [container],
            "volumes": [
                pods.token_volume(metadata["name"], "token"),
                {"name": "taskloom-tmp", "emptyDir": {}},
                {"name": "taskloom-run", "emptyDir": {}},  # outlives the container: which tasks ran when it was killed
                {"name": "taskloom-shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared}},
            ],
        },
    }
    if secrets:
        pod["spec"]["imagePullSecrets"] = secrets
    merged = pods.finish(pod, override)
    pods.tolerate(merged["spec"], PATIENCE)
    return {"apiVersion": "v1", "kind": "Pod", **merged}


def named(pod: Mapping[str, Any], name: str, annotations: Mapping[str, str]) -> dict[str, Any]:
    """One of many pods of the same shape.

    Args:
        pod: as :func:`worker_pod` makes it; all of them share its spec.
        annotations: that this one has beside those of all.
    """
    metadata = {**pod["metadata"], "name": name, "annotations": {**pod["metadata"]["annotations"], **annotations}}
    return {**pod, "metadata": metadata}
