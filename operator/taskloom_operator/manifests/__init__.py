"""How the objects look that the operator makes, as plain values: from the spec, with the user's pod template on top."""

from __future__ import annotations

from taskloom_operator.manifests.hashes import scheduler_hash, worker_hash
from taskloom_operator.manifests.jobs import batch_job, task_cluster
from taskloom_operator.manifests.scheduler import deployment, network_policy, secret, service
from taskloom_operator.manifests.workers import named, worker_pod

__all__ = [
    "batch_job",
    "deployment",
    "named",
    "network_policy",
    "scheduler_hash",
    "secret",
    "service",
    "task_cluster",
    "worker_hash",
    "worker_pod",
]
