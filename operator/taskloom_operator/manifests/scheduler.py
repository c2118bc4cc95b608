"""The scheduler's objects: Deployment, Service, Secret, NetworkPolicy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from taskloom_operator import names
from taskloom_operator.manifests import naming, pods
from taskloom_operator.manifests.hashes import scheduler_hash
from taskloom_operator.observe import Settings

__all__ = ["deployment", "network_policy", "rendered", "secret", "service"]

PATIENCE = 20  # seconds after which it leaves a node that cannot be reached: nobody works without it
CERTIFICATE = "/etc/taskloom/tls.crt"
KEY = "/etc/taskloom/tls.key"


def _metadata(cluster: Mapping[str, Any], name: str, component: str = "") -> dict[str, Any]:
    metadata = cluster["metadata"]
    return {
        "name": name,
        "namespace": metadata["namespace"],
        "labels": naming.labels(metadata["name"], component),
        "ownerReferences": [naming.owner(cluster)],
    }


def rendered(manifest: dict[str, Any]) -> dict[str, Any]:
    """The same object, with a hash of it among its annotations: so it is seen whether it was applied as it would be now."""
    text = json.dumps(manifest["spec"], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": {names.RENDERED: digest}}}


def deployment(cluster: Mapping[str, Any], settings: Settings, image: str, replicas: int) -> dict[str, Any]:
    """The scheduler's Deployment.

    Args:
        cluster: the TaskCluster.
        image: what it runs, where the spec does not say.
        replicas: 1, or 0 where nothing is to run.
    """
    spec, name = cluster["spec"], cluster["metadata"]["name"]
    scheduler = spec.get("scheduler") or {}
    policy, secrets = pods.pull(spec, settings.image_pull_policy, settings.image_pull_secrets)
    container: dict[str, Any] = {
        "name": "scheduler",
        "image": spec.get("image") or image,
        "imagePullPolicy": policy,
        "command": ["taskloom"],
        "args": [
            "scheduler",
            *("--host", "0.0.0.0", "--port", str(names.PORT)),
            *("--http-host", "0.0.0.0", "--http-port", str(names.HTTP_PORT)),
            *("--probe-port", str(names.PROBE_PORT)),
        ],
        "env": [
            pods.variable("TASKLOOM_TOKEN_FILE", pods.TOKEN_FILE),
            pods.variable("TASKLOOM_CLUSTER__CERTIFICATE", CERTIFICATE),
            pods.variable("TASKLOOM_CLUSTER__KEY", KEY),
            pods.variable("TMPDIR", "/tmp"),
        ],
        "ports": [
            {"name": "tls", "containerPort": names.PORT, "protocol": "TCP"},
            {"name": "http", "containerPort": names.HTTP_PORT, "protocol": "TCP"},
            {"name": "probes", "containerPort": names.PROBE_PORT, "protocol": "TCP"},
        ],
        "startupProbe": pods.probe("ready", 1, 120),
        "readinessProbe": pods.probe("ready", 2, 3),
        "livenessProbe": pods.probe("health", 10, 6),
        "resources": scheduler.get("resources") or {},
        "securityContext": pods.security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "taskloom-token", "mountPath": "/etc/taskloom", "readOnly": True},
            {"name": "taskloom-tmp", "mountPath": "/tmp"},
        ],
    }
    pod: dict[str, Any] = {
        "metadata": {
            "labels": naming.labels(name, naming.SCHEDULER),
            "annotations": {names.SPEC_HASH: scheduler_hash(spec)},
        },
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": pods.pod_security(),
            "terminationGracePeriodSeconds": 10,  # it keeps nothing that would have to be saved
            "containers": [container],
            "volumes": [
                pods.token_volume(name, "token", "tls.crt", "tls.key"),
                {"name": "taskloom-tmp", "emptyDir": {}},
            ],
        },
    }
    if secrets:
        pod["spec"]["imagePullSecrets"] = secrets
    template = pods.finish(pod, scheduler.get("podTemplate"))
    pods.tolerate(template["spec"], PATIENCE)
    metadata = _metadata(cluster, names.scheduler_name(name), naming.SCHEDULER)
    if not spec.get("image"):
        metadata["annotations"] = {naming.DEFAULT_IMAGE: image}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": {names.CLUSTER: name, names.COMPONENT: naming.SCHEDULER}},
            "template": template,
        },
    }


def service(cluster: Mapping[str, Any]) -> dict[str, Any]:
    """How the scheduler is reached."""
    name = cluster["metadata"]["name"]
    scheduler = cluster["spec"].get("scheduler") or {}
    found = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(cluster, names.scheduler_name(name), naming.SCHEDULER),
        "spec": {
            "type": scheduler.get("serviceType") or "ClusterIP",
            "selector": {names.CLUSTER: name, names.COMPONENT: naming.SCHEDULER},
            "ports": [
                {"name": "tls", "port": names.PORT, "targetPort": "tls", "protocol": "TCP"},
                {"name": "http", "port": names.HTTP_PORT, "targetPort": "http", "protocol": "TCP"},
            ],
        },
    }
    return rendered(found)


def secret(cluster: Mapping[str, Any]) -> dict[str, Any]:
    """The Secret, without what is secret in it."""
    found: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": _metadata(cluster, names.token_name(cluster["metadata"]["name"])),
    }
    rotate = (cluster["metadata"].get("annotations") or {}).get(names.ROTATE)
    if rotate is not None:
        found["metadata"]["annotations"] = {names.ROTATED: rotate}
    return found


def network_policy(cluster: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Who may connect to the cluster's pods: each other, to the scheduler also others of the namespace, and the operator."""
    name = cluster["metadata"]["name"]
    scheduler = cluster["spec"].get("scheduler") or {}

    def port(number: int) -> dict[str, Any]:
        return {"protocol": "TCP", "port": number}

    rules: list[dict[str, Any]] = [
        {"from": [{"podSelector": {"matchLabels": {names.CLUSTER: name}}}]},
        {"from": [{"podSelector": {}}], "ports": [port(names.PORT), port(names.HTTP_PORT)]},
        {"ports": [port(names.PROBE_PORT)]},  # the kubelet; all that is said there is whether one lives
    ]
    if settings.operator_namespace:
        home = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.operator_namespace}}}
        rules.append({"from": [home], "ports": [port(names.HTTP_PORT)]})
    else:
        rules.append({"ports": [port(names.HTTP_PORT)]})
    if (scheduler.get("serviceType") or "ClusterIP") != "ClusterIP":
        rules.append({"ports": [port(names.PORT)]})  # the user opens it to the outside
    found = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(cluster, name),
        "spec": {
            "podSelector": {"matchLabels": {names.CLUSTER: name}},
            "policyTypes": ["Ingress"],
            "ingress": rules,
        },
    }
    return rendered(found)
