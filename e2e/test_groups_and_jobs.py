"""TaskWorkerGroups, TaskJobs, and the examples."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from e2e.cluster import until
from e2e.tasks import inc, place
from e2e.test_clusters import SMALL, cluster, connect

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "kubernetes"


def job(name="job", **spec):
    return {
        "apiVersion": "taskloom.dev/v1alpha1",
        "kind": "TaskJob",
        "metadata": {"name": name},
        "spec": {"cluster": {"workers": {"replicas": 1, "threads": 1, "resources": SMALL}}, **spec},
    }


def group(name, of="demo", **spec):
    return {
        "apiVersion": "taskloom.dev/v1alpha1",
        "kind": "TaskWorkerGroup",
        "metadata": {"name": name},
        "spec": {"cluster": of, "threads": 1, "resources": SMALL, **spec},
    }


def test_a_group_of_another_shape(space):
    space.apply(cluster(workers={"replicas": 1}), group("large", replicas=1, taskResources={"large": 1}))
    space.ready("demo", 1)
    until(lambda: space.condition("taskworkergroup", "large", "Ready").get("status") == "True", 60)
    with connect(space) as client:
        client.wait_for_workers(2, timeout=60)
        found = client.submit(place, 1, resources={"large": 1}).result(timeout=60)
        assert found.startswith("demo-large-worker-")
        kept = client.submit(inc, 1, resources={"large": 1})
        assert kept.result(timeout=60) == 2
        space.kubectl("scale", "taskworkergroup", "large", "--replicas=0")
        until(lambda: not [p for p in space.pods("demo") if "-large-" in p["metadata"]["name"]], 60)
        assert kept.result(timeout=60) == 2
    space.kubectl("delete", "taskcluster", "demo", "--timeout=60s")
    until(lambda: not space.pods("demo"), 60)


def test_a_group_that_comes_when_it_is_asked_for(space):
    space.apply(
        cluster(workers={"replicas": 1}),
        group("gpu", autoscale={"min": 0, "max": 2, "idleSeconds": 3}, taskResources={"gpu": 1}),
    )
    space.ready("demo", 1)
    with connect(space) as client:
        assert client.submit(place, 1, resources={"gpu": 1}).result(timeout=120).startswith("demo-gpu-worker-")
    until(lambda: not [p for p in space.pods("demo") if "-gpu-" in p["metadata"]["name"]], 90)


def outcome(space, name, seconds=120):
    return until(
        lambda: (
            (s := (space.get("taskjob", name) or {}).get("status", {})).get("phase") in ("Succeeded", "Failed") and s
        ),
        seconds,
        f"the end of TaskJob {name}",
    )


def test_a_job_that_works(space):
    space.apply(
        job(
            script="import taskloom\nwith taskloom.Client() as c:\n    print('sum', sum(c.gather(c.map(abs, range(-9, 1)))))\n"
        )
    )
    found = outcome(space, "job")
    assert found["phase"] == "Succeeded"
    assert found["exitCode"] == 0
    assert "sum 45" in found["lastLines"]
    until(lambda: not space.get("taskclusters") and not space.pods(), 60)


def test_a_job_that_fails_and_keeps_its_cluster(space):
    space.apply(
        job(
            command=["python", "-c", "import sys; print('so it ends', file=sys.stderr); sys.exit(7)"],
            cleanup="OnSuccess",
        )
    )
    found = outcome(space, "job")
    assert found["phase"] == "Failed"
    assert found["exitCode"] == 7
    assert "so it ends" in found["lastLines"]
    assert space.get("taskclusters")


def test_a_job_that_takes_too_long(space):
    space.apply(job(script="import time; time.sleep(1000)", activeDeadlineSeconds=15))
    found = outcome(space, "job")
    assert found["phase"] == "Failed"
    assert "DeadlineExceeded" in str(found)


def test_a_job_that_waits_for_its_turn(space):
    """As Kueue does: made suspended, resumed later, by the spec's own field."""
    space.apply(job(script="print('at last')", suspend=True))
    until(lambda: space.condition("taskjob", "job", "Suspended").get("status") == "True", 30)
    assert not space.pods()
    assert not space.pods(component="scheduler")
    space.kubectl("patch", "taskjob", "job", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    assert "at last" in outcome(space, "job")["lastLines"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example(space, path):
    space.kubectl("apply", "-f", str(path))
    for manifest in yaml.safe_load_all(path.read_text()):
        kind, name, spec = manifest["kind"], manifest["metadata"]["name"], manifest["spec"]
        if kind == "TaskCluster":
            space.ready(name, spec["workers"].get("replicas", 0))
            with connect(space, name) as client:
                assert client.submit(inc, 1).result(timeout=120) == 2
        elif kind == "TaskWorkerGroup":
            until(lambda name=name: space.condition("taskworkergroup", name, "Ready").get("status") == "True", 60)
        else:
            assert outcome(space, name)["phase"] == "Succeeded"
            assert "2262 primes below 20,000" in space.get("taskjob", name)["status"]["lastLines"]
