"""What all pods have in common. They keep to the Pod Security Standard "restricted", whatever else they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskloom_operator import names
from taskloom_operator.spec.merge import merge

__all__ = [
    "TOKEN_FILE",
    "finish",
    "image_of",
    "pod_security",
    "probe",
    "pull",
    "security",
    "token_volume",
    "tolerate",
    "variable",
]

TOKEN_FILE = "/etc/taskloom/token"
USER = 1000


def security() -> dict[str, Any]:
    """Of a container."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def pod_security() -> dict[str, Any]:
    """Of a pod."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def token_volume(cluster: str, *keys: str) -> dict[str, Any]:
    """The Secret, or what of it a pod needs; readable for its user alone."""
    items = [{"key": key, "path": key} for key in keys]
    source = {"secretName": names.token_name(cluster), "defaultMode": 0o440, "items": items}
    return {"name": "taskloom-token", "secret": source}


def variable(name: str, value: str) -> dict[str, Any]:
    """Of the environment."""
    return {"name": name, "value": value}


def probe(path: str, every: int, failures: int) -> dict[str, Any]:
    """A question in plain HTTP, at the port that answers nothing else."""
    return {
        "httpGet": {"path": f"/api/v1/{path}", "port": "probes"},
        "periodSeconds": every,
        "timeoutSeconds": 5 if every > 5 else every,
        "failureThreshold": failures,
    }


def pull(cluster: Mapping[str, Any], policy: str, secrets: Sequence[str]) -> tuple[str, list[dict[str, str]]]:
    """How the image of a spec comes to the node, and the names of the Secrets for it.

    Args:
        cluster: the spec of a TaskCluster.
        policy, secrets: where that does not say.
    """
    wanted = cluster.get("imagePullSecrets") or secrets
    return cluster.get("imagePullPolicy") or policy, [
        dict(one) if isinstance(one, Mapping) else {"name": one} for one in wanted
    ]


def image_of(template: Mapping[str, Any], container: str) -> str:
    """The image of a container of a pod or a pod template; "": it has no such container."""
    for one in template.get("spec", {}).get("containers", ()):
        if one.get("name") == container:
            return str(one.get("image", ""))
    return ""


def tolerate(spec: dict[str, Any], seconds: int) -> None:
    """Have a pod leave a node that is gone after so many seconds, where the spec does not say it."""
    found = list(spec.get("tolerations") or ())
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        if not any(one.get("key") in (key, None, "") and one.get("effect") in ("NoExecute", None, "") for one in found):
            found.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds})
    spec["tolerations"] = found


def finish(template: Mapping[str, Any], override: Mapping[str, Any] | None) -> dict[str, Any]:
    """A pod template with what the user wrote merged into it; labels and annotations of ours stay.

    Args:
        template: as made from the other fields: metadata and spec.
        override: the field podTemplate.
    """
    merged: dict[str, Any] = dict(merge(template, override or {}))
    metadata = dict(merged["metadata"])
    for field in ("labels", "annotations"):
        metadata[field] = {**(metadata.get(field) or {}), **template["metadata"].get(field, {})}
    for field in ("name", "namespace", "ownerReferences"):
        metadata.pop(field, None)
        if field in template["metadata"]:
            metadata[field] = template["metadata"][field]
    merged["metadata"] = metadata
    spec = dict(merged["spec"])
    named = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if named and (override or {}).get("spec", {}).get("automountServiceAccountToken") is None:
        spec["automountServiceAccountToken"] = True  # whoever names one wants to use it
    merged["spec"] = spec
    return merged
