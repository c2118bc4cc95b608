"""What the operator costs: requests to the API server, and memory. The figures are printed, for docs/kubernetes.md."""

from __future__ import annotations

import os
import re
import time

import pytest
from e2e.cluster import kubectl, until
from e2e.test_clusters import cluster

PAUSE = "registry.local/pause:3.9"
NOWHERE = {"spec": {"nodeSelector": {"nowhere": "no"}}}


def metrics(namespace):
    """Of the operator that acts."""
    leader = kubectl("-n", namespace, "get", "lease", "taskloom-operator", "-o", "jsonpath={.spec.holderIdentity}")
    text = kubectl("get", "--raw", f"/api/v1/namespaces/{namespace}/pods/{leader}:8081/proxy/metrics")
    return {name: float(value) for name, value in re.findall(r"^(\w+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE)}


def requests(found, *verbs):
    return sum(found.get(f'taskloom_operator_api_requests_total{{verb="{verb}"}}', 0.0) for verb in verbs)


def test_an_idle_operator_asks_for_nothing_but_the_lease(space, operator):
    space.apply(cluster(workers={"replicas": 1}))
    space.ready("demo", 1)
    time_of_a_lease = 2.0
    quiet = [0.0]

    def settled():
        """Nothing but the Lease for some seconds."""
        before = metrics(operator)
        begin = time.monotonic()
        until(lambda: time.monotonic() - begin > 10, 20)
        after = metrics(operator)
        writes = requests(after, "POST", "DELETE") - requests(before, "POST", "DELETE")
        lease = requests(after, "GET", "PATCH") - requests(before, "GET", "PATCH")
        looks = sum(after[k] - before.get(k, 0.0) for k in after if k.startswith("taskloom_operator_reconciles_total"))
        quiet[0] = lease
        asked = sum(after[k] - before.get(k, 0.0) for k in after if "scheduler_requests_total" in k)
        return writes == 0 and looks == 0 and asked == 0 and lease <= 2 * (10 / time_of_a_lease + 2)

    until(settled, 60)
    print(f"in 10 s: {quiet[0]:.0f} requests, all for the Lease")


@pytest.mark.nodes
def test_a_hundred_workers(space, operator):
    """Pause containers: no pod more than asked for, and one request a pod."""
    container = {"name": "worker", "image": PAUSE, "command": ["/pause"], "args": None}
    container |= {"startupProbe": None, "livenessProbe": None, "readinessProbe": None, "resources": {}}
    workers = {"replicas": 0, "resources": {}, "podTemplate": {"spec": {"containers": [container]}}}
    space.apply(cluster(workers=workers))
    until(lambda: space.condition("taskcluster", "demo", "SchedulerReady").get("status") == "True", 60)
    before, begin = metrics(operator), time.monotonic()
    space.kubectl("scale", "taskcluster", "demo", "--replicas=100")
    until(lambda: len(space.pods("demo")) >= 100, 60)
    made = time.monotonic() - begin
    until(lambda: sum(p["status"].get("phase") == "Running" for p in space.pods("demo")) == 100, 240)
    running = time.monotonic() - begin
    after = metrics(operator)
    assert len(space.get("pods", selector="taskloom.dev/component=worker")) == 100
    posts = requests(after, "POST") - requests(before, "POST")
    others = requests(after, "GET", "PATCH", "DELETE") - requests(before, "GET", "PATCH", "DELETE")
    print(f"100 pods: made in {made:.1f} s, running in {running:.1f} s; {posts:.0f} POST, {others:.0f} others")
    assert 100 <= posts <= 120  # and some events
    space.kubectl("delete", "taskcluster", "demo", "--wait=false")


@pytest.mark.skipif("TASKLOOM_E2E_ALL" not in os.environ, reason="takes minutes: set TASKLOOM_E2E_ALL=1")
def test_memory_with_a_hundred_clusters_of_ten_pods(space, operator):
    """Pods that no node takes are objects all the same."""
    before = metrics(operator)["process_resident_memory_bytes"]
    one = cluster(workers={"replicas": 10, "podTemplate": NOWHERE}, scheduler={"podTemplate": NOWHERE, "resources": {}})
    begin = time.monotonic()
    space.apply(*[{**one, "metadata": {"name": f"c{n}"}} for n in range(100)])
    until(lambda: len(space.pods()) == 1000, 240)
    made = time.monotonic() - begin
    after = metrics(operator)
    memory = after["process_resident_memory_bytes"]
    print(f"100 clusters of 10 workers made in {made:.0f} s; memory {before / 1e6:.0f} -> {memory / 1e6:.0f} MB")
    assert memory < 100e6
    space.kubectl("delete", "taskclusters", "--all", "--wait=false")
    until(lambda: not space.get("taskclusters"), 120)
