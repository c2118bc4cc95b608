"""How long the operator thinks: a cold look at a thousand clusters, and a look at one of a thousand workers.

    python -m benchmarks.operator

Nothing is read or written; that is the API server's time, not ours.
"""

from __future__ import annotations

import time
from typing import Any

from taskloom_operator import names
from taskloom_operator.actions import Apply, Create, MakeSecret
from taskloom_operator.desired import reconcile
from taskloom_operator.desired.times import stamp
from taskloom_operator.observe import Observed, Settings

CLUSTERS, WORKERS = 1_000, 10
NOW = 1_700_000_000.0
SETTINGS = Settings("taskloom:1")


def cluster(number: int, workers: int) -> dict[str, Any]:
    metadata = {"name": f"cluster-{number}", "namespace": "lab", "uid": f"uid-{number}", "generation": 1}
    spec = {
        "workers": {
            "replicas": workers,
            "resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "2Gi"}},
            "podTemplate": {"spec": {"nodeSelector": {"pool": "a"}}},
        }
    }
    return {"apiVersion": "taskloom.dev/v1alpha1", "kind": "TaskCluster", "metadata": metadata, "spec": spec}


def scheduler_pod(found: dict[str, Any]) -> dict[str, Any]:
    name = found["metadata"]["name"]
    labels = {names.CLUSTER: name, names.COMPONENT: "scheduler"}
    return {
        "metadata": {"name": f"{name}-scheduler-x", "namespace": "lab", "uid": f"{name}-s", "labels": labels},
        "spec": {"containers": [{"name": "scheduler", "image": "taskloom:1"}]},
        "status": {"phase": "Running"},
    }


def running(found: dict[str, Any]) -> Observed:
    """A cluster in which all is as it is to be, as an operator that was started just now sees it."""
    observed = Observed("lab", found["metadata"]["name"], SETTINGS, found)
    pods: list[dict[str, Any]] = [scheduler_pod(found)]
    objects: dict[str, Any] = {}
    for _ in range(2):
        for action in reconcile(observed, NOW).actions:
            if isinstance(action, Create):
                made = dict(action.manifest)
                metadata = {**made["metadata"], "uid": made["metadata"]["name"], "creationTimestamp": stamp(NOW)}
                status = {
                    "phase": "Running",
                    "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": stamp(NOW)}],
                    "containerStatuses": [
                        {
                            "name": "worker",
                            "started": True,
                            "ready": True,
                            "state": {"running": {"startedAt": stamp(NOW)}},
                        }
                    ],
                }
                pods.append({**made, "metadata": metadata, "status": status})
            elif isinstance(action, (Apply, MakeSecret)):
                made = dict(action.manifest)
                objects[made["kind"]] = {**made, "metadata": {**made["metadata"], "uid": made["kind"]}}
        if "Deployment" in objects:
            objects["Deployment"]["status"] = {"availableReplicas": 1}
        observed = Observed(
            "lab",
            found["metadata"]["name"],
            SETTINGS,
            found,
            pods=pods,
            deployment=objects.get("Deployment"),
            service=objects.get("Service"),
            secret=objects.get("Secret"),
            network_policy=objects.get("NetworkPolicy"),
        )
    (written,) = reconcile(observed, NOW).status
    found["status"] = dict(written.status)
    return observed


def timed(what: str, observed: list[Observed]) -> float:
    start = time.perf_counter()
    plans = [reconcile(one, NOW) for one in observed]
    taken = time.perf_counter() - start
    actions = sum(len(plan.actions) for plan in plans)
    print(f"{what:<60}{taken:8.3f} s{taken / len(observed) * 1e6:10.0f} us each{actions:8} actions")
    return taken


def main() -> None:
    """Print how long it takes."""
    fresh = [Observed("lab", f"cluster-{n}", SETTINGS, cluster(n, WORKERS)) for n in range(CLUSTERS)]
    timed(f"{CLUSTERS:,} clusters of which nothing is there", fresh)
    one = [
        Observed("lab", seen.name, SETTINGS, seen.cluster, pods=[scheduler_pod(dict(seen.cluster or {}))])
        for seen in fresh
    ]
    timed(f"{CLUSTERS:,} clusters of which {WORKERS} workers each are to be made", one)
    timed(
        f"{CLUSTERS:,} running clusters of {WORKERS} workers", [running(cluster(n, WORKERS)) for n in range(CLUSTERS)]
    )
    timed("1 running cluster of 1,000 workers", [running(cluster(0, 1000))])


if __name__ == "__main__":
    main()
