"""The client side: KubeCluster, ``taskloom kube``, ``kubectl taskloom``, kube:// inside of a pod, and the rights it takes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from e2e.cluster import KubectlError, kubectl, until
from e2e.tasks import inc

from taskloom import Client, KubeCluster
from taskloom.errors import KubernetesError

SMALL = {"requests": {"cpu": "50m", "memory": "96Mi"}, "limits": {"memory": "256Mi"}}


def test_a_program_makes_a_cluster_scales_it_and_leaves_nothing(space):
    with KubeCluster(namespace=space.name, n_workers=2, threads=1, resources=SMALL, env={"COLOUR": "blue"}) as cluster:
        assert cluster.created
        with Client(cluster) as client:
            kept = client.map(inc, range(200))
            assert client.gather(kept) == list(range(1, 201))
            assert client.submit(lambda: __import__("os").environ["COLOUR"]).result(timeout=30) == "blue"
            cluster.scale(3)
            cluster.wait_for_workers(3)
            assert len(cluster.workers) == 3
            cluster.adapt(1, 2, idle_seconds=1)
            until(lambda: len(cluster.workers) <= 2, 60)
            cluster.scale(1)
            until(lambda: len(cluster.workers) == 1, 60)
            assert client.gather(kept) == list(range(1, 201))
            assert "taskloom scheduler" in cluster.logs()
            assert "taskloom worker" in cluster.logs(cluster.workers[0])
            with KubeCluster(cluster.name, namespace=space.name) as other, Client(other) as another:
                assert not other.created
                assert another.submit(inc, 1).result(timeout=30) == 2
            assert client.submit(inc, 2).result(timeout=30) == 3, "who joined does not delete it"
    assert space.get("taskcluster", cluster.name) is None
    until(lambda: not space.get("pods"), 90)


def test_a_cluster_that_cannot_be_is_told_of_and_not_left(space):
    with pytest.raises(KubernetesError, match=r"registry\.local/nothing:none"):
        KubeCluster(
            "wrong",
            namespace=space.name,
            image="registry.local/nothing:none",
            spec={"imagePullPolicy": "Never"},
            timeout=90,
        )
    with pytest.raises(KubernetesError, match=r"spec\.wrokers"):
        KubeCluster("wrong", namespace=space.name, spec={"wrokers": {}})
    with pytest.raises(KubernetesError, match="memoryLimit"):
        KubeCluster("wrong", namespace=space.name, memory_limit="much")
    assert space.get("taskcluster", "wrong") is None


def typed(*words, code=0):
    """Type a command; what it printed."""
    environ = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_command_and_the_plugin_of_kubectl(space):
    where = ("-n", space.name)
    kube = ("taskloom", "kube")
    said = typed(*kube, "create", "demo", "--workers", "1", "--cpu", "50m", "--memory", "256Mi", *where)
    assert f'it is ready: taskloom.Client("kube://{space.name}/demo")' in said
    assert "Running" in typed("kubectl", "taskloom", "get", *where)
    assert "the scheduler takes connections" in typed(*kube, "get", "demo", *where)
    program = "import taskloom; print('it is', taskloom.Client().submit(sum, [20, 22]).result())"
    assert "it is 42" in typed(*kube, "connect", "demo", *where, "--", sys.executable, "-c", program)
    typed("kubectl", "taskloom", "scale", "demo", "2", *where)
    space.ready("demo", 2)
    assert "taskloom scheduler at" in typed(*kube, "logs", "demo", *where)
    typed(*kube, "delete", "demo", *where)
    assert "no TaskCluster demo" in typed("kubectl", "taskloom", "get", "demo", *where, code=1)


def test_the_address_is_the_same_inside_of_a_pod(space):
    with KubeCluster("demo", namespace=space.name, threads=1, resources=SMALL):
        connect = f"client = taskloom.Client('kube://{space.name}/demo')"
        program = f"import taskloom; {connect}; print(client.submit(sum, [1, 2]).result(), client.address)"
        secret = {"secretName": "demo-token", "defaultMode": 0o440, "items": [{"key": "token", "path": "token"}]}
        space.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "inside"},
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": 1000,
                        "fsGroup": 1000,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [
                        {
                            "name": "program",
                            "image": space.pods("demo")[0]["spec"]["containers"][0]["image"],
                            "command": ["python", "-c", program],
                            "env": [{"name": "TASKLOOM_TOKEN_FILE", "value": "/etc/taskloom/token"}],
                            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                            "volumeMounts": [{"name": "token", "mountPath": "/etc/taskloom", "readOnly": True}],
                        }
                    ],
                    "volumes": [{"name": "token", "secret": secret}],
                },
            }
        )
        until(lambda: space.get("pod", "inside")["status"].get("phase") in ("Succeeded", "Failed"), 60)
        assert space.kubectl("logs", "inside").split() == ["3", f"tls://demo-scheduler.{space.name}.svc:8786"]


RULES = [
    {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["demo-token"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get", "create"]},
]


def test_the_rights_in_the_documents_are_enough_and_none_is_too_many(space, tmp_path, monkeypatch):
    """Of docs/kubernetes-client.md, "Rights"."""

    def allow(rules):
        rbac = "rbac.authorization.k8s.io"
        role = {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": {"name": "user"}, "rules": rules}
        subject = {"kind": "ServiceAccount", "name": "user", "namespace": space.name}
        binding = {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "user"},
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "user"},
            "subjects": [subject],
        }
        space.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "user"}}, role, binding)

    def connect():
        with Client(f"kube://{space.name}/demo?context=user") as client:
            return client.submit(inc, 1).result(timeout=30)

    def refused(words):
        """Rights are seen a moment after they were changed."""
        try:
            connect()
        except KubernetesError as error:
            return words in str(error)
        return False

    def works():
        try:
            return connect() == 2
        except KubernetesError:
            return False

    with KubeCluster("demo", namespace=space.name, threads=1, resources=SMALL):
        allow(RULES)
        path = tmp_path / "kubeconfig"
        path.write_text(kubectl("config", "view", "--raw", "--flatten"))
        monkeypatch.setenv("KUBECONFIG", str(path))
        here = kubectl("config", "view", "-o", "jsonpath={.clusters[0].name}")
        token = space.kubectl("create", "token", "user").strip()
        kubectl("config", "set-credentials", "user", f"--token={token}")
        kubectl("config", "set-context", "user", f"--cluster={here}", "--user=user", f"--namespace={space.name}")
        until(works, 30)
        for number, words in enumerate(("may not get secrets", "may not list pods", "create pods/portforward")):
            allow(RULES[:number] + RULES[number + 1 :])
            until(lambda words=words: refused(words), 30)
        with pytest.raises(KubernetesError, match=r"can-i get taskclusters\.taskloom\.dev"):
            KubeCluster(namespace=space.name, context="user", n_workers=1)
        with pytest.raises(KubectlError):
            kubectl("--context=user", "get", "secrets", "-n", space.name)
