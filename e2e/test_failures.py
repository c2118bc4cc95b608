"""What dies, and what comes back: pods, schedulers, the operator, nodes, the network."""

from __future__ import annotations

import pytest
from e2e.cluster import kubectl, node, until
from e2e.tasks import eat, inc, slow
from e2e.test_clusters import cluster, connect

from taskloom.errors import WorkerDiedError


def test_a_worker_pod_is_deleted(space):
    space.apply(cluster())
    space.ready("demo", 2)
    with connect(space) as client:
        values = client.map(slow, range(60))
        victim = space.pods("demo")[0]["metadata"]
        space.kubectl("delete", "pod", victim["name"], "--grace-period=0", "--force")
        assert client.gather(values) == list(range(60))
        space.ready("demo", 2)
    assert victim["uid"] not in {pod["metadata"]["uid"] for pod in space.pods("demo")}


def test_a_worker_is_killed_for_its_memory(space):
    """The task that did it is blamed, after some tries; others are done."""
    space.apply(cluster(workers={"replicas": 2, "memoryLimit": "0"}))  # nothing of ours steps in before the system does
    space.ready("demo", 2)
    with connect(space) as client:
        bad = client.submit(eat, 2)
        good = client.map(slow, range(20))
        with pytest.raises(WorkerDiedError):
            bad.result(timeout=180)
        assert client.gather(good) == list(range(20))
    space.ready("demo", 2)


def test_the_scheduler_pod_is_deleted(space):
    space.apply(cluster())
    space.ready("demo", 2)
    with connect(space) as client:
        kept = client.map(inc, range(100))
        client.gather(kept)
        under_way = client.map(slow, range(60))
        space.kubectl("delete", "pod", "-l", "taskloom.dev/component=scheduler", "--grace-period=0", "--force")
        assert client.gather(under_way) == list(range(60))
        assert client.gather(kept) == list(range(1, 101))
    space.ready("demo", 2)


def test_the_operator_is_killed_in_the_midst_of_scaling(space, operator):
    space.apply(cluster())
    space.ready("demo", 2)
    holder = kubectl("-n", operator, "get", "lease", "-o", "jsonpath={.items[*].spec.holderIdentity}")
    with connect(space) as client:
        kept = client.map(inc, range(100))
        client.gather(kept)
        space.kubectl("scale", "taskcluster", "demo", "--replicas=4")
        kubectl(
            "-n", operator, "delete", "pod", "-l", "app.kubernetes.io/component=operator", "--grace-period=0", "--force"
        )
        space.ready("demo", 4, seconds=120)
        space.kubectl("scale", "taskcluster", "demo", "--replicas=1")
        kubectl(
            "-n", operator, "delete", "pod", "-l", "app.kubernetes.io/component=operator", "--grace-period=0", "--force"
        )
        space.ready("demo", 1, seconds=120)
        assert client.gather(kept) == list(range(1, 101))
    assert kubectl("-n", operator, "get", "lease", "-o", "jsonpath={.items[*].spec.holderIdentity}") != holder


def test_workers_compute_while_the_operator_is_away(space, operator):
    space.apply(cluster())
    space.ready("demo", 2)
    label = "app.kubernetes.io/component=operator"
    kubectl("-n", operator, "scale", "deployment", "-l", label, "--replicas=0")
    try:
        until(lambda: not kubectl("-n", operator, "get", "pods", "-l", label, "-o", "name"), 60)
        with connect(space) as client:
            assert client.gather(client.map(slow, range(20))) == list(range(20))
            space.kubectl("delete", "pod", "-l", "taskloom.dev/component=scheduler", "--wait=false")
            assert client.submit(inc, 1).result(timeout=90) == 2
    finally:
        kubectl("-n", operator, "scale", "deployment", "-l", label, "--replicas=2")
    space.ready("demo", 2)


@pytest.mark.nodes
def test_a_node_crashes(space):
    space.apply(cluster(workers={"replicas": 4}))
    space.ready("demo", 4)
    here = space.pods("demo", "scheduler")[0]["spec"]["nodeName"]
    other = next(n for n in ("node1", "node2") if n != here)
    assert {pod["spec"]["nodeName"] for pod in space.pods("demo")} == {"node1", "node2"}
    with connect(space) as client:
        values = client.map(slow, range(100))
        node("crash", other.removeprefix("node"))
        try:
            assert client.gather(values) == list(range(100))
        finally:
            node("revive", other.removeprefix("node"))
            kubectl("wait", "--for=condition=Ready", f"node/{other}", "--timeout=60s")
    space.ready("demo", 4, seconds=120)


@pytest.mark.nodes
def test_a_node_is_cut_off(space):
    space.apply(cluster(workers={"replicas": 4}))
    space.ready("demo", 4)
    here = space.pods("demo", "scheduler")[0]["spec"]["nodeName"]
    other = next(n for n in ("node1", "node2") if n != here)
    with connect(space) as client:
        values = client.map(slow, range(100))
        node("partition", other.removeprefix("node"))
        try:
            assert client.gather(values) == list(range(100))
        finally:
            node("heal", other.removeprefix("node"))
            kubectl("wait", "--for=condition=Ready", f"node/{other}", "--timeout=60s")
        assert client.gather(client.map(inc, range(50), pure=False)) == list(range(1, 51))
    space.ready("demo", 4, seconds=120)
