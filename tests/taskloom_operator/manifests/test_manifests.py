"""How the objects look that are made."""

from __future__ import annotations

import json

import pytest

from taskloom_operator import names
from taskloom_operator.manifests import batch_job, deployment, named, network_policy, service, worker_hash, worker_pod
from taskloom_operator.manifests.hashes import scheduler_hash
from taskloom_operator.observe import Settings

SETTINGS = Settings("taskloom:1", operator_namespace="taskloom-system")


def cluster(**spec):
    metadata = {"name": "demo", "namespace": "lab", "uid": "u-1"}
    return {"apiVersion": "taskloom.dev/v1alpha1", "kind": "TaskCluster", "metadata": metadata, "spec": spec}


def worker(settings=SETTINGS, **spec):
    found = cluster(**spec)
    workers = spec.get("workers", {})
    return named(worker_pod(found, workers, found, "default", settings, "taskloom:1"), "demo-worker-abcde", {"a": "b"})


def job(**spec):
    metadata = {"name": "one", "namespace": "lab", "uid": "u-2"}
    body = {"cluster": {}, "script": "print(1)\n", **spec}
    return {"apiVersion": "taskloom.dev/v1alpha1", "kind": "TaskJob", "metadata": metadata, "spec": body}


def container(template, name):
    return next(one for one in template["spec"]["containers"] if one["name"] == name)


def variables(found):
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in found["env"]}


PODS = {
    "worker": lambda **spec: worker(**spec),
    "scheduler": lambda **spec: deployment(cluster(**spec), SETTINGS, "taskloom:1", 1)["spec"]["template"],
    "job": lambda **spec: batch_job(job(cluster=spec), SETTINGS, "taskloom:1")["spec"]["template"],
}


@pytest.mark.parametrize("what", PODS)
def test_every_pod_is_restricted(what):
    template = PODS[what]()
    spec = template["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    for one in spec["containers"]:
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert not [volume for volume in spec["volumes"] if "hostPath" in volume]
    (token,) = [volume for volume in spec["volumes"] if "secret" in volume]
    assert token["secret"]["defaultMode"] == 0o440
    keys = [item["key"] for item in token["secret"]["items"]]
    assert keys == (
        ["token", "tls.crt", "tls.key"] if what == "scheduler" else ["token"]
    )  # the key stays with whom it is of


@pytest.mark.parametrize("what", PODS)
def test_the_image_and_how_it_comes(what):
    one = container(PODS[what](), what)
    assert (one["image"], one["imagePullPolicy"]) == ("taskloom:1", "IfNotPresent")
    template = PODS[what](image="mine:2", imagePullPolicy="Never", imagePullSecrets=[{"name": "pull"}])
    one = container(template, what)
    assert (one["image"], one["imagePullPolicy"]) == ("mine:2", "Never")
    assert template["spec"]["imagePullSecrets"] == [{"name": "pull"}]


def test_a_worker():
    pod = worker(
        workers={
            "resources": {"limits": {"cpu": "1500m", "memory": "1Gi"}},
            "taskResources": {"gpu": 1.0, "share": 0.25},
        }
    )
    one = container(pod, "worker")
    assert one["command"] + one["args"] == [
        "taskloom",
        "worker",
        "tls://demo-scheduler.lab.svc:8786",
        *("--name", "$(TASKLOOM_POD_NAME)", "--nworkers", "1", "--host", "0.0.0.0"),
        *("--resource=gpu=1", "--resource=share=0.25"),
    ]
    found = variables(one)
    assert found["TASKLOOM_WORKER__NTHREADS"] == "2"
    assert found["TASKLOOM_WORKER__MEMORY_LIMIT"] == str(2**30)
    assert found["TASKLOOM_WORKER__LEAVE_TIMEOUT"] == "55"
    assert found["TASKLOOM_POD_UID"] == {"fieldRef": {"fieldPath": "metadata.uid"}}
    assert pod["spec"]["restartPolicy"] == "OnFailure"
    assert pod["spec"]["terminationGracePeriodSeconds"] == 60
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert volumes["taskloom-shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": str(2**29)}
    assert {mount["mountPath"] for mount in one["volumeMounts"]} == {
        "/etc/taskloom",
        "/tmp",
        "/run/taskloom",
        "/dev/shm",
    }
    for probe, path in (("startupProbe", "ready"), ("readinessProbe", "ready"), ("livenessProbe", "health")):
        assert one[probe]["httpGet"] == {"path": f"/api/v1/{path}", "port": "probes"}
    assert pod["metadata"]["labels"] == {
        "app.kubernetes.io/name": "taskloom",
        "app.kubernetes.io/managed-by": "taskloom-operator",
        "taskloom.dev/cluster": "demo",
        "taskloom.dev/component": "worker",
        "taskloom.dev/group": "default",
    }
    (owner,) = pod["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == ("u-1", True, False)


def test_a_pod_template_can_change_all_and_what_nobody_here_knows_stays():
    override = {
        "metadata": {
            "labels": {"team": "a", "taskloom.dev/cluster": "other"},
            "annotations": {"note": "b"},
            "name": "x",
        },
        "spec": {
            "terminationGracePeriodSeconds": 300,
            "nodeSelector": {"gpu": "yes"},
            "runtimeClassName": "nvidia",
            "fieldOfTomorrow": {"a": [1]},
            "serviceAccountName": "reader",
            "tolerations": [{"key": "spot", "operator": "Exists"}],
            "initContainers": [{"name": "fetch", "image": "i"}],
            "containers": [
                {
                    "name": "worker",
                    "env": [{"name": "TASKLOOM_WORKER__NTHREADS", "value": "many"}, {"name": "OMP", "value": "1"}],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    "resources": {"limits": {"nvidia.com/gpu": "1"}},
                },
                {"name": "proxy", "image": "p"},
            ],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    }
    pod = worker(workers={"podTemplate": override, "resources": {"limits": {"memory": "1Gi"}}})
    spec = pod["spec"]
    one = container(pod, "worker")
    found = variables(one)
    assert (found["TASKLOOM_WORKER__NTHREADS"], found["OMP"]) == ("many", "1")
    assert found["TASKLOOM_WORKER__LEAVE_TIMEOUT"] == "295"  # as long as the pod has
    assert found["TASKLOOM_TOKEN_FILE"]
    assert one["resources"]["limits"] == {"memory": "1Gi", "nvidia.com/gpu": "1"}
    assert [c["name"] for c in spec["containers"]] == ["worker", "proxy"]
    assert (spec["runtimeClassName"], spec["fieldOfTomorrow"]) == ("nvidia", {"a": [1]})
    assert spec["automountServiceAccountToken"] is True  # of an account that is named
    assert {"name": "data", "emptyDir": {}} in spec["volumes"]
    assert {"key": "spot", "operator": "Exists"} in spec["tolerations"]
    assert pod["metadata"]["name"] == "demo-worker-abcde"
    assert pod["metadata"]["labels"]["team"] == "a"
    assert pod["metadata"]["labels"]["taskloom.dev/cluster"] == "demo"  # ours are ours
    assert pod["metadata"]["annotations"]["note"] == "b"
    json.dumps(pod)


def test_the_scheduler_leaves_a_dead_node_soon_unless_the_user_says_when():
    found = deployment(cluster(), SETTINGS, "taskloom:1", 1)["spec"]["template"]["spec"]["tolerations"]
    assert {(one["key"], one["tolerationSeconds"]) for one in found} == {
        ("node.kubernetes.io/not-ready", 20),
        ("node.kubernetes.io/unreachable", 20),
    }
    mine = {
        "key": "node.kubernetes.io/unreachable",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 5,
    }
    scheduler = {"podTemplate": {"spec": {"tolerations": [mine]}}}
    found = deployment(cluster(scheduler=scheduler), SETTINGS, "taskloom:1", 1)["spec"]["template"]["spec"][
        "tolerations"
    ]
    assert [one["tolerationSeconds"] for one in found if one["key"] == "node.kubernetes.io/unreachable"] == [5]


def test_the_scheduler():
    found = deployment(cluster(), SETTINGS, "taskloom:1", 1)
    assert found["spec"]["strategy"] == {"type": "Recreate"}
    labels = found["spec"]["template"]["metadata"]["labels"]
    assert found["spec"]["selector"]["matchLabels"].items() <= labels.items()
    made = service(cluster())
    assert made["spec"]["selector"].items() <= labels.items()
    assert {port["name"]: port["port"] for port in made["spec"]["ports"]} == {"tls": 8786, "http": 8787}


def test_who_may_connect():
    rules = network_policy(cluster(), SETTINGS)["spec"]["ingress"]
    outside = [rule for rule in rules if "from" not in rule]
    assert [[port["port"] for port in rule["ports"]] for rule in outside] == [[names.PROBE_PORT]]
    home = [one for rule in rules for one in rule.get("from", ()) if "namespaceSelector" in one]
    assert home == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "taskloom-system"}}}]
    opened = network_policy(cluster(scheduler={"serviceType": "NodePort"}), SETTINGS)["spec"]["ingress"]
    assert {"ports": [{"protocol": "TCP", "port": 8786}]} in opened


def test_a_script_is_a_file_of_which_tracebacks_show_lines():
    found = batch_job(job(args=["a"], env=[{"name": "X", "value": "1"}]), SETTINGS, "taskloom:1")
    template = found["spec"]["template"]
    one = container(template, "job")
    assert one["command"] == ["python", "-u", "/run/taskloom-job/script.py"]
    assert one["args"] == ["a"]
    assert template["metadata"]["annotations"]["taskloom.dev/script"] == "print(1)\n"
    assert variables(one)["TASKLOOM_CLUSTER__ADDRESS"] == "tls://one-cluster-scheduler.lab.svc:8786"
    assert variables(one)["X"] == "1"
    assert template["spec"]["restartPolicy"] == "Never"
    assert found["spec"]["backoffLimit"] == 0
    ran = batch_job(job(script=None, command=["sh", "-c", "true"]), SETTINGS, "taskloom:1")
    assert container(ran["spec"]["template"], "job")["command"] == ["sh", "-c", "true"]


# --- the hash


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 2},
        {"memoryLimit": "1Gi"},
        {"resources": {"limits": {"cpu": 1}}},
        {"taskResources": {"gpu": 1}},
        {"podTemplate": {"spec": {"nodeSelector": {"a": "b"}}}},
        {"image": "mine:2"},
    ],
)
def test_what_shapes_a_pod_changes_the_hash(change):
    assert worker_hash({}, change) != worker_hash({}, {})
    assert worker_hash({}, change) == worker_hash({}, dict(change))


def test_what_does_not_shape_it_does_not():
    same = worker_hash({}, {"replicas": 1})
    for spec, workers in (
        ({"suspend": True, "idleTimeout": 5, "scheduler": {"serviceType": "NodePort"}}, {"replicas": 4}),
        ({}, {"autoscale": {"min": 0, "max": 2}}),
        ({}, {"threads": None, "resources": {}, "podTemplate": {}}),
        ({}, {"a field of tomorrow": "with its default"}),
    ):
        assert worker_hash(spec, workers) == same
    assert worker_hash({}, {"taskResources": {"a": 1.0}}) == worker_hash({}, {"taskResources": {"a": 1}})
    assert scheduler_hash({"workers": {"threads": 4}}) == scheduler_hash({})
    assert scheduler_hash({"image": "a"}) != scheduler_hash({})


def test_the_hash_is_what_it_was():
    """Another one would roll the workers of everybody who installs a newer operator."""
    workers = {"threads": 2, "resources": {"limits": {"memory": "1Gi"}}, "podTemplate": {"spec": {"priority": 1}}}
    assert worker_hash({"image": "mine:1"}, workers) == "2e671ac6cbca39a3"
    assert (
        scheduler_hash({"image": "mine:1", "scheduler": {"resources": {"limits": {"cpu": "1"}}}}) == "3e0d222632ad2054"
    )


def test_what_is_merged_is_not_changed():
    override = {"spec": {"containers": [{"name": "worker", "env": [{"name": "A", "value": "1"}]}]}}
    before = json.dumps(override)
    worker(workers={"podTemplate": override})
    assert json.dumps(override) == before
