"""KubeCluster: TaskClusters that a program makes, joins, scales and deletes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

import taskloom
from taskloom import Client, KubeCluster
from taskloom.deploy.kube import cluster as module
from taskloom.deploy.kube.cluster import manifest
from taskloom.errors import ClusterError, HandshakeError, KubernetesError

from .conftest import TOKEN, operator_of, status_of, until
from .test_kube_client import descriptors, inc, threads


def written(kubernetes):
    """Verbs, resources and bodies of all requests that change something."""
    return [
        (verb, resource, body)
        for (verb, resource, _, _), body in zip(kubernetes.calls, kubernetes.bodies, strict=True)
        if verb in ("create", "patch", "delete")
    ]


def spec_of(kubernetes, name="demo", namespace="lab"):
    return kubernetes.objects["taskclusters", namespace, name]["spec"]


@pytest.fixture
def operated(kubernetes, pods):
    """An API server with an operator."""
    operator_of(kubernetes, pods)
    return kubernetes


# --- making


def test_it_is_made_used_and_deleted(operated):
    with KubeCluster("demo", n_workers=2, threads=1, image="taskloom:1", env={"COLOUR": "blue"}) as cluster:
        assert (cluster.name, cluster.namespace, cluster.created) == ("demo", "lab", True)
        assert repr(cluster) == "<KubeCluster lab/demo: 2 of 2 workers ready>"
        with Client(cluster) as client:
            assert client.gather(client.map(inc, range(100))) == list(range(1, 101))
        assert cluster.status["phase"] == "Running"
        assert cluster.workers == ["demo-worker-0", "demo-worker-1"]
        assert spec_of(operated) == {
            "image": "taskloom:1",
            "workers": {
                "replicas": 2,
                "threads": 1,
                "podTemplate": {
                    "spec": {"containers": [{"name": "worker", "env": [{"name": "COLOUR", "value": "blue"}]}]}
                },
            },
            "idleTimeout": 3600,
            "ttlSecondsAfterFinished": 600,
        }
        uid = operated.objects["taskclusters", "lab", "demo"]["metadata"]["uid"]
    assert ("taskclusters", "lab", "demo") not in operated.objects
    verb, resource, body = written(operated)[-1]
    assert (verb, resource) == ("delete", "taskclusters")
    assert body == {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
    assert repr(cluster) == "<KubeCluster lab/demo: closed>"
    for use in (lambda: cluster.address, lambda: cluster.scale(1), lambda: cluster.status, cluster.logs):
        with pytest.raises(ClusterError, match="closed"):
            use()
    cluster.close()


def test_an_asynchronous_client_of_it(operated):
    import asyncio

    async def work(cluster):
        async with Client(cluster, asynchronous=True) as client:
            return await client.submit(inc, 1)

    with KubeCluster("demo") as cluster:
        assert asyncio.run(work(cluster)) == 2


def test_nothing_is_left_of_it(operated):
    with KubeCluster("demo"):
        pass
    until(lambda: not operated.open and not threads())
    before = descriptors()
    with KubeCluster("demo"):
        pass
    until(lambda: not operated.open and not threads())
    until(lambda: descriptors() <= before)


def test_without_a_name_it_has_one_of_its_own(operated):
    with KubeCluster() as one, KubeCluster() as other:
        assert one.name != other.name
        for cluster in (one, other):
            assert cluster.created
            assert cluster.name.replace("-", "").isalnum()
            assert len(cluster.name) <= 40
    assert not [key for key in operated.objects if key[0] == "taskclusters"]


def test_it_may_stay(operated):
    with KubeCluster("demo", shutdown_on_close=False, namespace="other"):
        pass
    assert spec_of(operated, namespace="other") == {"workers": {"replicas": 1}}
    with KubeCluster("demo", shutdown_on_close=True, namespace="other") as cluster:
        assert not cluster.created
    assert ("taskclusters", "other", "demo") not in operated.objects


def test_a_field_that_there_is_not_is_refused_and_named(operated):
    with pytest.raises(KubernetesError, match=r"unknown field \"spec\.imge\""):
        KubeCluster("demo", spec={"imge": "x"})
    assert not threads()


def test_with_no_right_to_make_one(operated):
    operated.denied.add(("create", "taskclusters"))
    with pytest.raises(
        KubernetesError, match=r"may not create taskclusters.*can-i create taskclusters\.taskloom\.dev -n lab"
    ):
        KubeCluster("demo")


def test_a_quota_is_told_in_its_own_words(operated):
    from .kube_server import _refused

    def create(*args):
        return _refused(
            403, "Forbidden", 'taskclusters "demo" is forbidden: exceeded quota: few, requested: 1, used: 1'
        )

    operated._create = create
    with pytest.raises(KubernetesError, match=r'^taskclusters "demo" is forbidden: exceeded quota: few'):
        KubeCluster("demo")


# --- joining


def test_one_that_is_there_is_joined_and_left_as_it_is(lab):
    for options in ({}, {"threads": 2}):
        with KubeCluster("demo", **options) as cluster, Client(cluster) as client:
            assert not cluster.created
            assert client.submit(inc, 1).result() == 2
    assert written(lab) == []


def test_one_that_is_there_is_not_made_another_one(lab):
    with pytest.raises(KubernetesError, match=r"is there already, and its workers\.threads is 2, not 3"):
        KubeCluster("demo", threads=3)
    with pytest.raises(KubernetesError, match="its image is None, not 'mine'"):
        KubeCluster("demo", image="mine", n_workers=7)
    assert written(lab) == []


def test_one_that_somebody_else_makes_just_now_is_joined(operated):
    def before(verb, resource):
        if verb == "create":
            cluster = operated.put(
                "taskclusters", "demo", metadata={"generation": 1}, spec={"workers": {"replicas": 1}}
            )
            operated.operate(cluster)

    operated.before = before
    with KubeCluster("demo") as cluster:
        assert not cluster.created
    assert ("taskclusters", "lab", "demo") in operated.objects


def test_joined_with_a_number_of_workers_it_is_scaled(lab):
    with KubeCluster("demo", n_workers=3) as cluster:
        assert len(cluster.workers) == 3
    assert written(lab) == [("patch", "taskclusters/scale", {"spec": {"replicas": 3}})]


# --- scaling


def test_scale_and_adapt(lab):
    with KubeCluster("demo") as cluster:
        cluster.scale(3)
        cluster.wait_for_workers(3, timeout=30)
        assert spec_of(lab)["workers"] == {"replicas": 3, "threads": 2}
        cluster.adapt(0, 5, idle_seconds=7)
        assert spec_of(lab)["workers"] == {"autoscale": {"min": 0, "max": 5, "idleSeconds": 7}, "threads": 2}
        cluster.adapt(2, 4)
        assert spec_of(lab)["workers"]["autoscale"]["max"] == 4
        cluster.scale(0)
        assert spec_of(lab)["workers"] == {"replicas": 0, "threads": 2}
        for wrong in (-1, 1.5, "3", True):
            with pytest.raises((TypeError, ValueError)):
                cluster.scale(wrong)
        with pytest.raises(ValueError, match="at least 5 workers and at most 2"):
            cluster.adapt(5, 2)
    assert [resource for _, resource, _ in written(lab)] == ["taskclusters/scale", *["taskclusters"] * 3]


def test_with_no_right_to_scale(lab):
    lab.denied.add(("patch", "taskclusters/scale"))
    words = r"may not patch taskclusters/scale .*can-i patch taskclusters\.taskloom\.dev --subresource=scale -n lab"
    with KubeCluster("demo") as cluster, pytest.raises(KubernetesError, match=words):
        cluster.scale(2)


def test_workers_that_do_not_come(lab):
    with KubeCluster("demo") as cluster:
        found = lab.objects["taskclusters", "lab", "demo"]
        found["status"] = status_of(found, 1, WorkersReady=("Unschedulable", "0/2 nodes are available"))
        with pytest.raises(TimeoutError, match=r"not there with 5 workers after 0\.1 s: Unschedulable: 0/2 nodes"):
            cluster.wait_for_workers(5, timeout=0.1)


# --- what it says where it does not come


def test_what_the_operator_says_is_in_the_error_and_nothing_is_left(operated):
    def operate(found):
        found["status"] = status_of(found, 0, SchedulerReady=("Unschedulable", "0/2 nodes are available: too small"))

    operated.operate = operate
    with pytest.raises(
        TimeoutError, match=r"lab/demo is not up after 0\.3 s: Unschedulable: 0/2 nodes are available: too"
    ):
        KubeCluster("demo", timeout=0.3)
    assert not [key for key in operated.objects if key[0] == "taskclusters"]
    assert not threads()


def test_workers_are_waited_for_or_not(operated):
    made = operated.operate

    def operate(found):
        made(found)
        found["status"] = status_of(
            found, 0, WorkersReady=("Starting", "on their way"), Ready=("Starting", "on their way")
        )

    operated.operate = operate
    with pytest.raises(TimeoutError, match="is not ready after 1 s: Starting: on their way"):
        KubeCluster("demo", timeout=1)
    with KubeCluster("demo", timeout=30, wait=False) as cluster, Client(cluster) as client:
        assert client.submit(inc, 1).result() == 2


def test_what_waiting_does_not_mend_is_not_waited_for(operated, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.1)

    def operate(found):
        found["status"] = status_of(found, 0, SchedulerReady=("ImagePullError", "nothing:none: not found"))

    operated.operate = operate
    with pytest.raises(KubernetesError, match="ImagePullError: nothing:none: not found"):
        KubeCluster("demo", timeout=600)


def test_what_was_said_of_an_earlier_spec_does_not_count(lab):
    found = lab.objects["taskclusters", "lab", "demo"]
    found["metadata"]["generation"] += 1
    with pytest.raises(TimeoutError, match="not up"):
        KubeCluster("demo", timeout=0.3)


def test_without_an_operator(kubernetes):
    with pytest.raises(TimeoutError, match=r"the operator has not looked at it: is it running\?"):
        KubeCluster("demo", timeout=0.3)
    assert not kubernetes.objects


@pytest.mark.parametrize("status", [429, 503])
def test_an_api_server_that_has_too_much_to_do_for_a_moment(operated, status):
    asked = {}

    def before(verb, resource):
        asked[verb, resource] = asked.get((verb, resource), 0) + 1
        # once in the midst of each; the first question is whether there is a cluster of that name
        return (
            status if verb != "create" and asked[verb, resource] == (2 if resource == "taskclusters" else 1) else None
        )

    operated.before = before
    with KubeCluster("demo", timeout=30) as cluster, Client(cluster) as client:
        assert cluster.created
        assert client.submit(inc, 1).result() == 2
        operated.before = lambda verb, resource: None
    operated.before = lambda verb, resource: status
    with pytest.raises(KubernetesError, match="not now"):
        KubeCluster("demo")
    with pytest.raises(taskloom.errors.ConnectTimeoutError, match="not now"):
        Client("kube://lab/demo", timeout=0.1)


ANOTHER = """
import sys, types
import taskloom.net.endpoints as endpoints
endpoints.sys = types.SimpleNamespace(version_info=(3, 99, 1, "final", 0))
from taskloom.cli import main
main(sys.argv[1:])
"""


def test_an_image_with_another_python_is_refused_before_anything_is_submitted(operated, pods, monkeypatch):
    program = pods.folder / "another.py"
    program.write_text(ANOTHER)
    monkeypatch.setattr(pods, "port", pods.scheduler(str(program)))
    ours = ".".join(map(str, sys.version_info[:2]))
    with pytest.raises(HandshakeError) as caught:
        KubeCluster("demo", image="taskloom:3.99")
    assert caught.value.code == "python"
    for words in (f"Python {ours}", "Python 3.99.1", "is taskloom:3.99", f"images/build --base python:{ours}-slim"):
        assert words in str(caught.value)
    assert ("taskclusters", "lab", "demo") not in operated.objects
    operated.put("taskclusters", "demo", metadata={"generation": 1}, spec={"workers": {"replicas": 1}})
    operated.operate(operated.objects["taskclusters", "lab", "demo"])
    with pytest.raises(HandshakeError, match=r"Python 3\.99\.1.*functions can't"):
        Client("kube://lab/demo")


# --- logs


def test_logs(lab):
    with KubeCluster("demo", n_workers=2) as cluster:
        lab.objects["pods", "lab", "demo-scheduler-0"]["log"] = "one\ntwo\nthree\n"
        assert cluster.logs() == "one\ntwo\nthree\n"
        assert cluster.logs(lines=1) == "three\n"
        assert cluster.logs(previous=True)
        assert lab.queries[-1] == {"container": "scheduler", "previous": "true"}
        assert cluster.logs("demo-worker-1") == "demo-worker-1 is up\n"
        assert cluster.logs("1") == "demo-worker-1 is up\n"
        assert lab.queries[-1] == {"container": "worker"}
        with pytest.raises(KubernetesError, match="no worker 7; there are demo-worker-0, demo-worker-1"):
            cluster.logs("7")


# --- the end


def run(kubernetes, program, **options):
    environ = {k: v for k, v in os.environ.items() if not k.startswith("TASKLOOM")}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        env={**environ, "KUBECONFIG": kubernetes.kubeconfig},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def clusters(kubernetes):
    return [key for key in kubernetes.objects if key[0] == "taskclusters"]


def test_the_program_ends_and_its_cluster_with_it(operated):
    program = """
        import taskloom
        cluster = taskloom.KubeCluster("demo")
        client = taskloom.Client(cluster)
        print(client.submit(sum, [1, 2]).result())
    """
    with run(operated, program) as process:
        assert process.communicate(timeout=60) == ("3\n", "")
    assert process.returncode == 0
    assert written(operated)[-1][:2] == ("delete", "taskclusters")
    assert not clusters(operated)


def test_ctrl_c_while_it_is_waited_for(operated):
    operated.operate = lambda found: None
    program = """
        import taskloom
        taskloom.KubeCluster("demo", timeout=600)
    """
    with run(operated, program) as process:
        until(lambda: clusters(operated))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert not clusters(operated)


def test_a_process_that_is_forked_deletes_nothing(operated):
    with KubeCluster("demo") as cluster:
        child = os.fork()
        if not child:
            try:
                cluster.close()
                module._end()
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert clusters(operated)
        with Client(cluster) as client:
            assert client.submit(inc, 1).result() == 2
    assert not clusters(operated)


def test_one_that_was_deleted_and_made_again_by_others_is_not_deleted(operated):
    with KubeCluster("demo"):
        del operated.objects["taskclusters", "lab", "demo"]
        operated.put("taskclusters", "demo", spec={"workers": {"replicas": 1}})
    assert clusters(operated)


def test_one_that_is_gone_already(operated):
    with KubeCluster("demo") as cluster:
        del operated.objects["taskclusters", "lab", "demo"]
        with pytest.raises(KubernetesError, match="there is no TaskCluster demo"):
            cluster.scale(2)


def test_it_is_in_taskloom():
    assert taskloom.KubeCluster is KubeCluster
    assert TOKEN


# --- what is written


def test_arguments_go_over_the_spec_that_is_begun_with():
    template = {"spec": {"containers": [{"name": "side"}, {"name": "worker", "env": [{"name": "A", "value": "1"}]}]}}
    given = {"workers": {"autoscale": {"min": 0, "max": 2}, "podTemplate": template}, "suspend": False}
    found = manifest(
        "demo",
        n_workers=2,
        memory_limit="2Gi",
        resources={"requests": {"cpu": 1}},
        task_resources={"gpu": 1},
        env={"A": "2", "B": "3"},
        spec=given,
    )
    env = [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}]
    assert found == {
        "apiVersion": "taskloom.dev/v1alpha1",
        "kind": "TaskCluster",
        "metadata": {"name": "demo"},
        "spec": {
            "suspend": False,
            "workers": {
                "replicas": 2,
                "memoryLimit": "2Gi",
                "resources": {"requests": {"cpu": 1}},
                "taskResources": {"gpu": 1},
                "podTemplate": {"spec": {"containers": [{"name": "side"}, {"name": "worker", "env": env}]}},
            },
        },
    }
    assert template["spec"]["containers"][1]["env"] == [{"name": "A", "value": "1"}], "what was given is left alone"
    assert manifest("demo", adapt=(0, 3), spec={"workers": {"replicas": 2}})["spec"]["workers"] == {
        "autoscale": {"min": 0, "max": 3}
    }


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"n_workers": 2, "adapt": (0, 2)}, TypeError, "give one of them"),
        ({"n_workers": -1}, ValueError, "n_workers"),
        ({"adapt": (3, 1)}, ValueError, "at least 3"),
        ({"threads": 0}, ValueError, "threads"),
        ({"resources": {"gpu": 1}}, ValueError, "task_resources"),
        ({"env": {"A": 1}}, TypeError, "the variable A is a string, not 1"),
    ],
)
def test_arguments_that_are_wrong_are_told_before_anything_is_asked(kubernetes, options, error, words):
    with pytest.raises(error, match=words):
        KubeCluster("demo", **options)
    assert kubernetes.calls == []


def test_what_the_library_writes_is_what_the_operator_reads():
    from taskloom_operator.spec.models import TaskCluster

    found = manifest(
        "demo", adapt=(1, 3), image="x", threads=2, memory_limit="2Gi", task_resources={"gpu": 1}, env={"A": "b"}
    )
    read = TaskCluster.parse(found)
    assert (read.spec.workers.autoscale.max, read.spec.workers.threads, read.spec.image) == (3, 2, "x")
    assert read.spec.workers.memory_bytes() == 2 << 30
