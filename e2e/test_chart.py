"""The chart's life: upgraded to a version with one more field, uninstalled, installed again; what the operator may do."""

from __future__ import annotations

import re
import shutil

import pytest
from e2e.cluster import KubectlError, helm, kubectl, until
from e2e.conftest import ROOT
from e2e.test_clusters import cluster, connect, inc

CHART = ROOT / "charts" / "taskloom"
LABEL = "app.kubernetes.io/component=operator"


def uids(space, name="demo"):
    return {pod["metadata"]["uid"] for pod in space.pods(name) + space.pods(name, "scheduler")}


def taken(space, manifest):
    try:
        space.apply(manifest)
    except KubectlError:
        return False
    return True


def upgrade(chart, operator, values, *more):
    return helm("upgrade", "taskloom", str(chart), "-n", operator, "--wait", "--timeout", "180s", *values, *more)


def test_what_it_would_do_is_right_for_the_api_server(operator, values):
    assert "STATUS: pending-upgrade" in upgrade(CHART, operator, values, "--dry-run=server")


def test_helm_test(operator):
    assert "Phase:          Succeeded" in helm("test", "taskloom", "-n", operator, "--timeout", "240s")


def test_an_upgrade_that_adds_a_field(space, operator, values, tmp_path):
    """The CRDs come with it, and what runs goes on."""
    space.apply(cluster())
    space.ready("demo", 2)
    before = uids(space)
    newer = tmp_path / "taskloom"
    shutil.copytree(CHART, newer)
    path = newer / "templates" / "crds" / "taskclusters.yaml"
    text = path.read_text(encoding="utf-8")
    place = "              suspend:\n"
    assert text.count(place) == 1
    path.write_text(
        text.replace(place, f"              note:\n                type: string\n{place}"), encoding="utf-8"
    )
    path = newer / "Chart.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"(?m)^version: .*$", "version: 99.0.0", text), encoding="utf-8")
    noted = cluster("noted", workers={"replicas": 0}, note="seen")
    with pytest.raises(KubectlError, match="note"):
        space.apply(noted)
    with connect(space) as client:
        kept = client.submit(inc, 1)
        assert kept.result(timeout=60) == 2
        upgrade(newer, operator, values, "--set", "operator.podAnnotations.upgraded=yes")
        try:
            until(lambda: taken(space, noted), 30, "the API server takes the new field")
            assert space.get("taskcluster", "noted")["spec"]["note"] == "seen"
            space.kubectl("scale", "taskcluster", "demo", "--replicas=3")
            space.ready("demo", 3)
        finally:
            upgrade(CHART, operator, values)
        assert kept.result(timeout=60) == 2
        assert client.submit(inc, 2).result(timeout=60) == 3
    assert before <= uids(space)


def test_uninstalled_and_installed_again(space, operator, values):
    """Clusters stay, and work without an operator."""
    space.apply(cluster())
    space.ready("demo", 2)
    before = uids(space)
    said = helm("uninstall", "taskloom", "-n", operator, "--wait")
    try:
        assert "taskclusters.taskloom.dev" in said
        with connect(space) as client:
            assert client.gather(client.map(inc, range(50))) == list(range(1, 51))
    finally:
        helm("install", "taskloom", str(CHART), "-n", operator, "--wait", "--timeout", "180s", *values)
    space.kubectl("scale", "taskcluster", "demo", "--replicas=3")
    space.ready("demo", 3)
    assert before <= uids(space)


@pytest.mark.parametrize(
    ("verb", "what", "allowed"),
    [
        ("get", "secrets", True),
        ("create", "secrets", True),
        ("list", "secrets", False),
        ("watch", "secrets", False),
        ("delete", "secrets", False),
        ("create", "pods", True),
        ("create", "pods --subresource=exec", False),
        ("create", "deployments.apps", True),
        ("create", "daemonsets.apps", False),
        ("update", "taskclusters.taskloom.dev", False),
        ("get", "nodes", False),
        ("list", "namespaces", False),
        ("create", "clusterroles.rbac.authorization.k8s.io", False),
        ("update", "leases.coordination.k8s.io", False),
    ],
)
def test_what_the_operator_may_do(operator, verb, what, allowed):
    who = f"system:serviceaccount:{operator}:taskloom-operator"
    try:
        kubectl("auth", "can-i", verb, *what.split(), "-n", "default", "--as", who, "--quiet")
    except KubectlError:  # "no" is a failure for kubectl
        assert not allowed
    else:
        assert allowed
