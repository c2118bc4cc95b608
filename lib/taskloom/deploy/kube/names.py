"""Names that the operator and the library have in common; a test compares them with the operator's."""

from __future__ import annotations

__all__ = [
    "CLUSTER",
    "COMPONENT",
    "DEFAULT_GROUP",
    "GROUP",
    "GROUP_LABEL",
    "MANAGER",
    "PORT",
    "VERSION",
    "scheduler_name",
    "token_name",
]

GROUP = "taskloom.dev"
VERSION = "v1alpha1"
CLUSTER = "taskloom.dev/cluster"
COMPONENT = "taskloom.dev/component"  # scheduler, worker, job
GROUP_LABEL = "taskloom.dev/group"
DEFAULT_GROUP = "default"
PORT = 8786

#: Who writes, as the API server is told: the library, not the operator.
MANAGER = "taskloom-client"


def scheduler_name(cluster: str) -> str:
    """Of the Deployment and the Service."""
    return f"{cluster}-scheduler"


def token_name(cluster: str) -> str:
    """Of the Secret."""
    return f"{cluster}-token"
