"""Names that the operator, the library and users have in common."""

from __future__ import annotations

__all__ = [
    "CLUSTER",
    "COMPONENT",
    "DEFAULT_GROUP",
    "FORCE",
    "GROUP",
    "GROUP_LABEL",
    "HTTP_PORT",
    "MANAGED_BY",
    "OPERATOR",
    "PORT",
    "PROBE_PORT",
    "RENDERED",
    "ROTATE",
    "ROTATED",
    "SPEC_HASH",
    "VERSION",
    "scheduler_name",
    "token_name",
    "worker_prefix",
]

GROUP = "taskloom.dev"
VERSION = "v1alpha1"
OPERATOR = "taskloom-operator"  # field manager, user agent, Lease, value of MANAGED_BY

MANAGED_BY = "app.kubernetes.io/managed-by"
CLUSTER = "taskloom.dev/cluster"
COMPONENT = "taskloom.dev/component"  # scheduler, worker, job
GROUP_LABEL = "taskloom.dev/group"
DEFAULT_GROUP = "default"

SPEC_HASH = "taskloom.dev/spec-hash"  # of what the user wrote that shapes a pod
RENDERED = "taskloom.dev/rendered"  # hash of what we have made of it, where making it anew disturbs nobody
ROTATE = "taskloom.dev/rotate-token"  # on a TaskCluster: another value, another token
ROTATED = "taskloom.dev/rotated-for"  # on the Secret: the value that it was last changed for
FORCE = "taskloom.dev/force-scale-down"  # on a TaskCluster: "true": pods may go though nobody can say what they hold

PORT, HTTP_PORT, PROBE_PORT = 8786, 8787, 8789


def scheduler_name(cluster: str) -> str:
    """Of the Deployment and the Service."""
    return f"{cluster}-scheduler"


def token_name(cluster: str) -> str:
    """Of the Secret."""
    return f"{cluster}-token"


def worker_prefix(cluster: str, group: str) -> str:
    """What names of worker pods begin with."""
    return f"{cluster}-worker-" if group == DEFAULT_GROUP else f"{cluster}-{group}-worker-"
