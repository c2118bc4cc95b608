"""Names that the operator and the library have in common; a test compares them with the operator's."""

from __future__ import annotations

__all__ = ["CLUSTER", "COMPONENT", "GROUP", "PORT", "VERSION", "scheduler_name", "token_name"]

GROUP = "taskloom.dev"
VERSION = "v1alpha1"
CLUSTER = "taskloom.dev/cluster"
COMPONENT = "taskloom.dev/component"
PORT = 8786


def scheduler_name(cluster: str) -> str:
    """Of the Deployment and the Service."""
    return f"{cluster}-scheduler"


def token_name(cluster: str) -> str:
    """Of the Secret."""
    return f"{cluster}-token"
