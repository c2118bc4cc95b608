"""A TaskCluster's life: made, used from outside and from inside, scaled, changed, suspended, deleted."""

from __future__ import annotations

import json
import threading
import time

import pytest
from e2e.cluster import KubectlError, kubectl, until
from e2e.tasks import inc, place, slow

from taskloom import Client

SMALL = {"requests": {"cpu": "50m", "memory": "96Mi"}, "limits": {"memory": "256Mi"}}


def cluster(name="demo", workers=None, **spec):
    """A TaskCluster; None in workers leaves out what is otherwise given."""
    fields = {"resources": SMALL, "threads": 1, **(workers or {"replicas": 2})}
    return {
        "apiVersion": "taskloom.dev/v1alpha1",
        "kind": "TaskCluster",
        "metadata": {"name": name},
        "spec": {"workers": {key: value for key, value in fields.items() if value is not None}, **spec},
    }


def connect(space, name="demo", **options):
    return Client(f"kube://{space.name}/{name}", timeout=60, **options)


def test_it_is_applied_and_used_from_outside_and_from_inside(space):
    space.apply(cluster())
    space.ready("demo", 2)
    with connect(space) as client:
        assert client.gather(client.map(inc, range(1000))) == list(range(1, 1001))
        graph = {("x", i): (inc, i) for i in range(100)} | {"sum": (sum, [("x", i) for i in range(100)])}
        assert client.get(graph, "sum") == 5050
        big = client.submit(bytes, 20_000_000)
        assert len(big.result()) == 20_000_000
    program = "import taskloom; c = taskloom.Client(); print(sum(c.gather(c.map(abs, range(-9, 1)))))"
    secret = {"secretName": "demo-token", "defaultMode": 0o440, "items": [{"key": "token", "path": "token"}]}
    container = {
        "name": "program",
        "image": space.pods("demo")[0]["spec"]["containers"][0]["image"],
        "command": ["python", "-c", program],
        "env": [
            {"name": "TASKLOOM_CLUSTER__ADDRESS", "value": f"tls://demo-scheduler.{space.name}.svc:8786"},
            {"name": "TASKLOOM_TOKEN_FILE", "value": "/etc/taskloom/token"},
        ],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "token", "mountPath": "/etc/taskloom", "readOnly": True}],
    }
    user = {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "inside"},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": user,
            "containers": [container],
            "volumes": [{"name": "token", "secret": secret}],
        },
    }
    space.apply(pod)
    until(lambda: space.get("pod", "inside")["status"].get("phase") in ("Succeeded", "Failed"), 60)
    assert space.kubectl("logs", "inside").split() == ["45"]


def test_nothing_of_it_is_more_than_it_needs(space):
    space.apply(cluster())
    space.ready("demo", 2)
    for pod in space.pods("demo") + space.pods("demo", "scheduler"):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"]["drop"] == ["ALL"]
    found = space.get("taskcluster", "demo")
    assert "finalizers" not in found["metadata"]
    assert found["spec"] == {
        **cluster()["spec"],
        **{k: v for k, v in found["spec"].items() if k not in cluster()["spec"]},
    }
    assert found["status"]["observedGeneration"] == found["metadata"]["generation"]


def test_scaled_up_and_down_under_load_with_all_results_kept(space):
    space.apply(cluster())
    space.ready("demo", 2)
    with connect(space) as client:
        kept = client.map(inc, range(200))
        assert len(client.gather(kept)) == 200
        space.kubectl("scale", "taskcluster", "demo", "--replicas=4")
        space.ready("demo", 4)
        under_way = client.map(slow, range(100))
        before = client.scheduler_info()["counts"]["done"] if "counts" in client.scheduler_info() else None
        space.kubectl("scale", "taskcluster", "demo", "--replicas=1")
        space.ready("demo", 1)
        assert client.gather(under_way) == list(range(100))
        assert client.gather(kept) == list(range(1, 201))
        if before is not None:
            assert client.scheduler_info()["counts"]["lost"] == 0
    assert len(space.pods("demo")) == 1


def test_autoscaled_from_nothing_and_back(space):
    space.apply(cluster(workers={"autoscale": {"min": 0, "max": 3, "idleSeconds": 3}}))
    space.ready("demo", 0)
    assert space.pods("demo") == []
    with connect(space) as client:
        values = client.map(slow, range(150))
        until(lambda: len(space.pods("demo")) == 3, 60)
        assert client.gather(values) == list(range(150))
        one = client.submit(inc, 41)
        assert one.result() == 42
        del values
        until(lambda: len(space.pods("demo")) == 1, 90, "all but the one that holds a value go")
        assert one.result() == 42
        del one
        until(lambda: space.pods("demo") == [], 90, "the last one goes")
        assert client.submit(inc, 1).result(timeout=90) == 2


def test_a_change_rolls_workers_and_loses_nothing(space):
    space.apply(cluster(workers={"replicas": 3}))
    space.ready("demo", 3)
    before = {pod["metadata"]["uid"] for pod in space.pods("demo")}
    with connect(space) as client:
        kept = client.map(inc, range(100))
        client.gather(kept)
        patch = {
            "spec": {
                "workers": {
                    "podTemplate": {
                        "spec": {"containers": [{"name": "worker", "env": [{"name": "COLOUR", "value": "blue"}]}]}
                    }
                }
            }
        }
        space.kubectl("patch", "taskcluster", "demo", "--type=merge", "-p", json.dumps(patch))  # fmt: skip
        until(
            lambda: (
                not before
                & {pod["metadata"]["uid"] for pod in space.get("pods", selector="taskloom.dev/component=worker")}
            ),
            180,
        )
        space.ready("demo", 3)
        assert client.gather(kept) == list(range(1, 101))
        assert client.submit(lambda: __import__("os").environ["COLOUR"]).result(timeout=30) == "blue"


def test_suspended_and_resumed(space):
    space.apply(cluster())
    space.ready("demo", 2)
    space.kubectl("patch", "taskcluster", "demo", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    until(lambda: not space.pods("demo") and not space.pods("demo", "scheduler"), 90)
    told = until(lambda: (c := space.condition("taskcluster", "demo", "Suspended")).get("status") == "True" and c, 30)
    assert "lost" in told["message"]
    space.kubectl("patch", "taskcluster", "demo", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    space.ready("demo", 2)
    with connect(space) as client:
        assert client.submit(inc, 1).result(timeout=60) == 2


def test_the_token_is_changed_and_nothing_is_started_again(space):
    space.apply(cluster())
    space.ready("demo", 2)
    before = {pod["metadata"]["uid"] for pod in space.pods("demo") + space.pods("demo", "scheduler")}
    old = space.get("secret", "demo-token")["data"]["token"]
    with connect(space) as client:
        assert client.submit(inc, 1).result(timeout=30) == 2
        space.kubectl("annotate", "taskcluster", "demo", "taskloom.dev/rotate-token=1")
        until(lambda: space.get("secret", "demo-token")["data"]["token"] != old, 30)
        with connect(space) as another:  # at once: the pods may not have seen it yet
            assert another.submit(inc, 2).result(timeout=60) == 3
        assert client.submit(inc, 3).result(timeout=30) == 4
        space.kubectl("scale", "taskcluster", "demo", "--replicas=3")
        space.ready("demo", 3)
    assert before <= {pod["metadata"]["uid"] for pod in space.pods("demo") + space.pods("demo", "scheduler")}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"workers": {"replicas": 1, "autoscale": {"min": 0, "max": 2}}}, "replicas"),
        ({"workers": {"replicas": -1}}, "spec.workers.replicas"),
        ({"workers": {"autoscale": {"min": 5, "max": 2}}}, "autoscale"),
        ({"workers": {"replicas": 1}, "scheduler": {"serviceType": "ExternalName"}}, "spec.scheduler.serviceType"),
        ({"workers": {"replicas": 1}, "idleTimeout": "soon"}, "spec.idleTimeout"),
        ({"workers": {"replicas": 1, "memoryLimit": "lots"}}, "memoryLimit"),
        ({"worker": {"replicas": 1}}, "spec.worker"),
    ],
)
def test_a_wrong_spec_is_refused_and_the_field_named(operator, change, words):
    manifest = {**cluster("wrong"), "spec": change}
    with pytest.raises(KubectlError) as caught:
        kubectl(
            "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=json.dumps(manifest)
        )
    assert words in str(caught.value)


def test_two_of_one_name_in_two_namespaces(space, operator):
    from e2e.cluster import namespace

    with namespace(f"{space.name}-2") as other:
        for one in (space, other):
            one.apply(cluster(workers={"replicas": 1}))
        for one in (space, other):
            one.ready("demo", 1)
        tokens = {one.get("secret", "demo-token")["data"]["token"] for one in (space, other)}
        assert len(tokens) == 2
        for n, one in enumerate((space, other)):
            with connect(one) as client:
                assert client.submit(inc, n).result(timeout=60) == n + 1
                assert client.submit(place, n, pure=False).result(timeout=60) == one.pods("demo")[0]["metadata"]["name"]


def test_deleted(space):
    space.apply(cluster())
    space.ready("demo", 2)
    space.kubectl("delete", "taskcluster", "demo", "--timeout=60s")
    until(lambda: not space.get("pods") and not space.get("deployments"), 90)
    assert space.get("secret", "demo-token") is None
    assert space.get("service", "demo-scheduler") is None


def test_an_image_that_is_not_there_is_told(space):
    space.apply(cluster(workers={"replicas": 1}, image="registry.local/nothing:none", imagePullPolicy="Never"))

    def told():
        found = space.condition("taskcluster", "demo", "WorkersReady").get("message", "")
        return "registry.local/nothing:none" in found and found

    assert until(told, 60)


def test_a_crash_loop_is_told_in_its_own_words(space):
    broken = {
        "spec": {"containers": [{"name": "worker", "env": [{"name": "TASKLOOM_WORKER__NTHREADS", "value": "many"}]}]}
    }
    space.apply(cluster(workers={"replicas": 1, "podTemplate": broken, "threads": None}))
    until(lambda: "nthreads" in space.condition("taskcluster", "demo", "WorkersReady").get("message", "").lower(), 90)


def test_a_quota_that_is_used_up_is_told(space):
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": {"pods": "3"}}}
    space.apply(quota)
    space.apply(cluster(workers={"replicas": 5}))
    until(lambda: len(space.pods("demo")) == 2, 60)
    until(lambda: "quota" in space.condition("taskcluster", "demo", "WorkersReady").get("message", ""), 30)
    space.kubectl("delete", "resourcequota", "few")
    space.ready("demo", 5)


def test_from_applied_to_the_first_result(space, record_property):
    """A figure for docs/kubernetes.md; what is asserted is that it comes at all."""
    start = time.monotonic()
    space.apply(cluster(workers={"replicas": 1}))
    client = connect(space)
    with client:
        connected = time.monotonic()
        assert client.submit(inc, 1).result(timeout=60) == 2
    done = time.monotonic()
    pods = space.pods("demo") + space.pods("demo", "scheduler")
    stages = {
        p["metadata"]["name"]: {c["type"]: c["lastTransitionTime"] for c in p["status"]["conditions"]} for p in pods
    }
    record_property("seconds", round(done - start, 2))
    print(
        f"applied to connected {connected - start:.2f} s, to the first result {done - start:.2f} s; {json.dumps(stages)}"
    )


def test_a_namespace_is_deleted_with_the_operator_away(space, operator):
    space.apply(cluster())
    space.ready("demo", 2)
    kubectl("-n", operator, "scale", "deployment", "-l", "app.kubernetes.io/component=operator", "--replicas=0")
    try:
        kubectl("delete", "namespace", space.name, "--timeout=90s")
    finally:
        kubectl("-n", operator, "scale", "deployment", "-l", "app.kubernetes.io/component=operator", "--replicas=2")
        kubectl(
            "-n",
            operator,
            "rollout",
            "status",
            "deployment",
            "-l",
            "app.kubernetes.io/component=operator",
            "--timeout=90s",
        )


def test_many_threads_may_ask_at_once(space):
    space.apply(cluster(workers={"replicas": 1}))
    space.ready("demo", 1)
    with connect(space) as client:
        found = []

        def ask(n):
            found.append(client.submit(inc, n, pure=False).result(timeout=60))

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == list(range(1, 21))
