"""What is made for a TaskJob: its TaskCluster, and a Job of Kubernetes that runs the program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskloom_operator import names
from taskloom_operator.manifests import naming, pods
from taskloom_operator.observe import Settings

__all__ = ["batch_job", "task_cluster"]

SCRIPT_FILE = "/run/taskloom-job/script.py"


def _metadata(job: Mapping[str, Any], name: str) -> dict[str, Any]:
    metadata = job["metadata"]
    return {
        "name": name,
        "namespace": metadata["namespace"],
        "labels": naming.labels(naming.cluster_name(metadata["name"]), naming.JOB),
        "ownerReferences": [naming.owner(job)],
    }


def task_cluster(job: Mapping[str, Any]) -> dict[str, Any]:
    """The TaskCluster of a job."""
    return {
        "apiVersion": f"{names.GROUP}/{names.VERSION}",
        "kind": "TaskCluster",
        "metadata": _metadata(job, naming.cluster_name(job["metadata"]["name"])),
        "spec": dict(job["spec"]["cluster"]),
    }


def batch_job(job: Mapping[str, Any], settings: Settings, image: str) -> dict[str, Any]:
    """The Job of a job.

    Args:
        job: the TaskJob.
        image: what it runs, where neither it nor its cluster says.
    """
    spec, metadata = job["spec"], job["metadata"]
    cluster, cluster_spec = naming.cluster_name(metadata["name"]), spec["cluster"]
    policy, secrets = pods.pull(cluster_spec, settings.image_pull_policy, settings.image_pull_secrets)
    mounts: list[dict[str, Any]] = [
        {"name": "taskloom-token", "mountPath": "/etc/taskloom", "readOnly": True},
        {"name": "taskloom-tmp", "mountPath": "/tmp"},
    ]
    volumes: list[dict[str, Any]] = [pods.token_volume(cluster, "token"), {"name": "taskloom-tmp", "emptyDir": {}}]
    annotations = {}
    script = spec.get("script")
    if script is not None:
        # As a file, so that tracebacks show its lines; by the downward API, so that no ConfigMap has to be written or read.
        annotations[naming.SCRIPT] = script
        item = {"path": "script.py", "fieldRef": {"fieldPath": f"metadata.annotations['{naming.SCRIPT}']"}}
        volumes.append({"name": "taskloom-job", "downwardAPI": {"items": [item]}})
        mounts.append({"name": "taskloom-job", "mountPath": "/run/taskloom-job", "readOnly": True})
    run = ["python", "-u", SCRIPT_FILE] if script is not None else list(spec["command"])
    container: dict[str, Any] = {
        "name": "job",
        "image": spec.get("image") or cluster_spec.get("image") or image,
        "imagePullPolicy": policy,
        "command": run,
        "env": [
            pods.variable("TASKLOOM_CLUSTER__ADDRESS", naming.address(cluster, metadata["namespace"])),
            pods.variable("TASKLOOM_TOKEN_FILE", pods.TOKEN_FILE),
            pods.variable("TMPDIR", "/tmp"),
            pods.variable("PYTHONUNBUFFERED", "1"),
        ],
        "securityContext": pods.security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    if spec.get("args"):
        container["args"] = list(spec["args"])
    template: dict[str, Any] = {
        "metadata": {"labels": naming.labels(cluster, naming.JOB), "annotations": annotations},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": pods.pod_security(),
            "containers": [container],
            "volumes": volumes,
        },
    }
    if secrets:
        template["spec"]["imagePullSecrets"] = secrets
    merged = pods.finish(template, {"spec": {"containers": [{"name": "job", "env": list(spec.get("env") or ())}]}})
    merged = pods.finish(merged, spec.get("podTemplate"))
    found: dict[str, Any] = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(job, metadata["name"]),
        "spec": {
            "backoffLimit": int(spec.get("backoffLimit") or 0),
            "suspend": bool(spec.get("suspend")),
            "template": merged,
        },
    }
    if spec.get("activeDeadlineSeconds"):
        found["spec"]["activeDeadlineSeconds"] = int(spec["activeDeadlineSeconds"])
    return found
