"""What of a spec shapes a pod, as a hash: another one, and the pod is replaced.

Only what the user wrote counts, never what is made of it: an operator that makes other pods of the same spec replaces none.
What is empty is as what is absent, and only the fields named here count: a new field with a default comes into every spec that
is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["scheduler_hash", "worker_hash"]

_SHAPE = ("image", "threads", "memoryLimit", "resources", "taskResources", "podTemplate")


def _plain(value: Any) -> Any:
    """Without what says nothing, and with 1.0 as 1."""
    if isinstance(value, Mapping):
        return {key: plain for key, item in value.items() if (plain := _plain(item)) not in (None, {}, [])}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _hash(written: Mapping[str, Any]) -> str:
    text = json.dumps(_plain(written), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _common(cluster: Mapping[str, Any]) -> dict[str, Any]:
    return {name: cluster.get(name) for name in ("image", "imagePullPolicy", "imagePullSecrets")}


def worker_hash(cluster: Mapping[str, Any], workers: Mapping[str, Any]) -> str:
    """Of the spec of a TaskCluster, and that of a group: ``spec.workers`` or the spec of a TaskWorkerGroup.

    >>> worker_hash({}, {"replicas": 1}) == worker_hash({"suspend": True}, {"replicas": 7, "threads": None})
    True
    >>> worker_hash({}, {"threads": 1}) == worker_hash({}, {"threads": 2})
    False
    """
    written = {name: workers[name] for name in _SHAPE if workers.get(name) is not None}
    return _hash({**_common(cluster), **written})


def scheduler_hash(cluster: Mapping[str, Any]) -> str:
    """Of the spec of a TaskCluster, what shapes the scheduler's pod."""
    scheduler = cluster.get("scheduler") or {}
    written = {name: scheduler.get(name) for name in ("resources", "podTemplate")}
    return _hash({**_common(cluster), **written})
