"""What Prometheus reads of the operator."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

__all__ = ["Metrics"]


class Metrics:
    """All series; none has a label that grows with the number of clusters."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "taskloom_operator_api_requests", "Requests to the API server of Kubernetes.", ["verb"], registry=registry
        )
        self.asked = Counter(
            "taskloom_operator_scheduler_requests", "Requests to schedulers.", ["outcome"], registry=registry
        )
        self.reconciles = Counter(
            "taskloom_operator_reconciles", "Looks at a resource.", ["kind", "outcome"], registry=registry
        )
        self.seconds = Histogram(
            "taskloom_operator_reconcile_seconds",
            "How long a look at a resource took, with what was done.",
            ["kind"],
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
            registry=registry,
        )
        self.queued = Gauge("taskloom_operator_queued", "Resources that wait to be looked at.", registry=registry)
        self.leader = Gauge("taskloom_operator_leader", "1: this replica is the one that acts.", registry=registry)
        self.phases = Gauge("taskloom_operator_resources", "Resources by phase.", ["kind", "phase"], registry=registry)
        self.actions = Counter("taskloom_operator_actions", "What was done.", ["action", "outcome"], registry=registry)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
