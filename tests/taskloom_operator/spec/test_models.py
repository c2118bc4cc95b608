"""The resources: what is refused, and what is said."""

from __future__ import annotations

import pytest

from taskloom_operator.spec.models import SpecError, TaskCluster, TaskJob, TaskWorkerGroup


def cluster(spec, name="demo"):
    return TaskCluster.parse({"metadata": {"name": name, "namespace": "lab"}, "spec": spec})


def group(spec, name="gpu"):
    return TaskWorkerGroup.parse({"metadata": {"name": name}, "spec": {"cluster": "demo", **spec}})


def job(spec, name="job"):
    return TaskJob.parse({"metadata": {"name": name}, "spec": spec})


def test_what_is_left_out_has_its_default():
    spec = cluster({}).spec
    assert spec.workers.replicas == 1
    assert spec.workers.autoscale is None
    assert spec.scheduler.service_type == "ClusterIP"
    assert (spec.suspend, spec.idle_timeout, spec.image, spec.image_pull_policy) == (False, None, None, None)
    autoscale = cluster({"workers": {"autoscale": {"max": 3}}}).spec.workers.autoscale
    assert (autoscale.min, autoscale.max, autoscale.idle_seconds) == (0, 3, 60)
    spec = job({"script": "print()"}).spec
    assert (spec.backoff_limit, spec.suspend, spec.cleanup) == (0, False, "Always")
    assert spec.cluster == cluster({}).spec


def test_names_outside_are_those_of_kubernetes():
    spec = cluster({"idleTimeout": 5, "ttlSecondsAfterFinished": 6, "imagePullPolicy": "Never"}).spec
    assert (spec.idle_timeout, spec.ttl_seconds_after_finished, spec.image_pull_policy) == (5, 6, "Never")


def test_what_nobody_knows_is_no_error_and_pod_templates_are_kept_as_they_are():
    template = {"spec": {"notYetInvented": {"a": [1]}, "containers": [{"name": "worker", "x": None}]}}
    found = cluster({"newField": 1, "workers": {"replicas": 2, "podTemplate": template, "other": []}})
    assert found.spec.workers.pod_template == template


def test_a_resource_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        cluster({}).spec.suspend = True


@pytest.mark.parametrize(
    ("workers", "threads", "memory"),
    [
        ({}, 1, 0),
        ({"threads": 4, "memoryLimit": "1Gi"}, 4, 2**30),
        ({"resources": {"limits": {"cpu": "1500m", "memory": "2Gi"}}}, 2, 2**31),
        ({"resources": {"limits": {"cpu": 2}, "requests": {"cpu": "8", "memory": "1Gi"}}}, 2, 0),
        ({"resources": {"requests": {"cpu": "100m"}}}, 1, 0),
        ({"resources": {"limits": {"cpu": "4", "memory": "2Gi"}}, "threads": 1, "memoryLimit": 0}, 1, 0),
        ({"resources": {"limits": None}}, 1, 0),
        ({"resources": {"limits": {"cpu": "0"}}}, 1, 0),
    ],
)
def test_threads_and_memory(workers, threads, memory):
    found = cluster({"workers": {"replicas": 1, **workers}}).spec.workers
    assert (found.nthreads(), found.memory_bytes()) == (threads, memory)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"workers": {}}, "spec.workers.replicas: one of replicas and autoscale has to be given"),
        (
            {"workers": {"replicas": 1, "autoscale": {"max": 2}}},
            "spec.workers.autoscale: replicas and autoscale exclude each other: leave one of them out",
        ),
        ({"workers": {"autoscale": {"min": 3, "max": 2}}}, "spec.workers.autoscale.min: autoscale.min is more than"),
        ({"workers": {"autoscale": {"max": 0}}}, "spec.workers.autoscale.max: Input should be greater than or equal to 1"),
        ({"workers": {"autoscale": {}}}, "spec.workers.autoscale.max: Field required"),
        ({"workers": {"replicas": -1}}, "spec.workers.replicas: Input should be greater than or equal to 0"),
        ({"workers": {"replicas": 1, "threads": 0}}, "spec.workers.threads: Input should be greater than or equal to 1"),
        ({"workers": {"replicas": 1, "taskResources": {"a": -1}}}, "spec.workers.taskResources.a: Input should be greater"),
        ({"workers": {"replicas": 1, "taskResources": {"a=b": 1}}}, "spec.workers.taskResources: names of taskResources"),
        ({"workers": {"replicas": 1, "memoryLimit": "lots"}}, "spec.workers.memoryLimit: 'lots' is no quantity"),
        ({"workers": {"replicas": 1, "memoryLimit": "-1Gi"}}, "spec.workers.memoryLimit: '-1Gi' is less than nothing"),
        ({"scheduler": {"serviceType": "ExternalName"}}, "spec.scheduler.serviceType: Input should be 'ClusterIP', "),
        ({"idleTimeout": "soon"}, "spec.idleTimeout: Input should be a valid integer"),
        ({"idleTimeout": 0}, "spec.idleTimeout: Input should be greater than or equal to 1"),
    ],
)  # fmt: skip
def test_a_wrong_spec_is_refused_and_the_field_is_named(spec, message):
    with pytest.raises(SpecError) as caught:
        cluster(spec)
    assert str(caught.value).startswith(message)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(SpecError) as caught:
        cluster({"idleTimeout": 0, "workers": {"replicas": -1}})
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "spec.workers.replicas",
        "spec.idleTimeout",
    ]


@pytest.mark.parametrize("name", ["Demo", "1demo", "de.mo", "demo-", "-demo", "a" * 41, ""])
def test_a_name_that_no_service_can_have(name):
    with pytest.raises(SpecError, match=r"metadata\.name: a TaskCluster has a name"):
        cluster({}, name)


def test_the_longest_names():
    assert cluster({}, "a" * 40).metadata.name == "a" * 40
    assert group({"replicas": 1, "cluster": "a" * 25}, "b" * 25).spec.cluster == "a" * 25
    with pytest.raises(SpecError, match=r"metadata\.name: name and spec.cluster together have at most 50"):
        group({"replicas": 1, "cluster": "a" * 25}, "b" * 26)
    assert job({"script": "x"}, "a" * 32).metadata.name == "a" * 32
    with pytest.raises(SpecError, match="at most 32 characters"):
        job({"script": "x"}, "a" * 33)


def test_a_group():
    assert group({"replicas": 0, "image": "x"}).spec.image == "x"
    for spec, words in [
        ({}, "spec.replicas: one of replicas and autoscale"),
        ({"replicas": 1, "autoscale": {"max": 1}}, "spec.autoscale: replicas and autoscale exclude"),
        ({"replicas": 1, "cluster": ""}, "spec.cluster: String should have at least 1"),
    ]:
        with pytest.raises(SpecError) as caught:
            group(spec)
        assert str(caught.value).startswith(words)
    with pytest.raises(SpecError, match=r"metadata\.name: the group 'default'"):
        group({"replicas": 1}, "default")


def test_a_job():
    assert job({"command": ["python", "-c", "1"], "args": ["2"]}).spec.command == ["python", "-c", "1"]
    for spec, words in [
        ({}, "spec.script: one of script and command"),
        ({"script": "x", "command": ["y"]}, "spec.script: one of script and command"),
        ({"script": ""}, "spec.script: String should have at least 1"),
        ({"command": []}, "spec.command: List should have at least 1"),
        ({"script": "ü" * 100_001}, "spec.script: script has at most 200000 bytes"),
        ({"script": "x", "cluster": {"suspend": True}}, "spec.cluster: cluster.suspend: suspend the job instead"),
        ({"script": "x", "cluster": {"workers": {"replicas": -1}}}, "spec.cluster.workers.replicas: Input should be"),
        ({"script": "x", "cleanup": "Sometimes"}, "spec.cleanup: Input should be 'Always', 'OnSuccess' or 'Never'"),
    ]:
        with pytest.raises(SpecError) as caught:
            job(spec)
        assert str(caught.value).startswith(words)


def test_a_manifest_that_is_none():
    with pytest.raises(SpecError, match="metadata: Input should be"):
        TaskCluster.parse({})
