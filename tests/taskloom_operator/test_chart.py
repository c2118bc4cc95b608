"""The chart: what Helm makes of it, in both modes, and that its documents say what it has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from taskloom_operator.api import KINDS
from taskloom_operator.main import main
from taskloom_operator.spec.crd import crds

sys.path.insert(0, str(Path(__file__).parent))
try:
    from chart_table import CHART, rows, table
finally:
    del sys.path[0]

KUBE = "1.35.0"  # Helm alone thinks of an old Kubernetes, and the chart asks for a newer one
MODES = {
    "cluster": [],
    "namespaced": ["--set", "watchNamespaces={team-a,team-b}"],
    "everything": [
        *("--set", "metrics.serviceMonitor.enabled=true,networkPolicy.egress.enabled=true"),
        *("--set", "image.pullSecrets={a},operator.image.pullSecrets={b},clusterNetworkPolicies=false"),
    ],
}
helm = pytest.mark.skipif(shutil.which("helm") is None, reason="helm is not on PATH")


def run(*args, check=True):
    done = subprocess.run(
        ["helm", *args], capture_output=True, text=True, timeout=60, env={**os.environ, "KUBECONFIG": ""}
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def rendered():
    """mode -> what Helm makes; each mode is made once."""
    made = {}

    def render(mode):
        if mode not in made:
            out = run("template", "taskloom", str(CHART), "-n", "system", "--kube-version", KUBE, *MODES[mode]).stdout
            made[mode] = [one for one in yaml.safe_load_all(out) if one]
        return made[mode]

    return render


def pods(manifests):
    for one in manifests:
        if one["kind"] == "Pod":
            yield one["spec"]
        elif one["kind"] == "Deployment":
            yield one["spec"]["template"]["spec"]


@helm
def test_it_has_no_faults_that_helm_finds():
    assert "0 chart(s) failed" in run("lint", "--strict", str(CHART)).stdout


@helm
def test_its_suites():
    if "unittest" not in run("plugin", "list").stdout:
        pytest.skip("helm has no plugin unittest")
    out = run("unittest", str(CHART)).stdout
    assert "FAIL" not in out


def test_every_template_has_a_suite():
    tested = set()
    for path in (CHART / "tests").glob("*_test.yaml"):
        tested.update(yaml.safe_load(path.read_text(encoding="utf-8"))["templates"])
    there = {str(path.relative_to(CHART)) for path in (CHART / "templates").rglob("*") if path.is_file()}
    assert tested == there - {"templates/_helpers.tpl"}


@helm
@pytest.mark.parametrize("mode", MODES)
def test_pods_keep_to_the_restricted_standard(rendered, mode):
    found = list(pods(rendered(mode)))
    assert len(found) == 2  # the operator, and helm test
    for spec in found:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all(set(volume) <= {"name", "emptyDir"} for volume in spec["volumes"])
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]


@helm
@pytest.mark.parametrize("mode", MODES)
def test_rights_are_the_least(rendered, mode):
    for role in rendered(mode):
        if role["kind"] not in ("Role", "ClusterRole"):
            continue
        for rule in role["rules"]:
            where = (role["metadata"]["name"], rule)
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"], where
            assert (
                not {"escalate", "bind", "impersonate", "deletecollection"} & set(rule["verbs"]) or "edit" in where[0]
            ), where
            if "secrets" in rule["resources"]:
                assert rule["resources"] == ["secrets"], where
                assert set(rule["verbs"]) == {"get", "create", "patch"}, where
            if "leases" in rule["resources"]:
                assert role["kind"] == "Role", where
                assert rule["verbs"] == ["create"] or rule["resourceNames"] == ["taskloom-operator"], where
            if "taskclusters" in rule["resources"] and role["metadata"]["name"].endswith("operator"):
                assert "update" not in rule["verbs"], where
            assert not any(resource.endswith("/exec") or resource == "roles" for resource in rule["resources"]), where


@helm
def test_what_the_operator_speaks_of_it_may(rendered):
    (rules,) = [
        one["rules"] for one in rendered("cluster") if one["metadata"]["name"] == "system-taskloom-operator" and "rules" in one
    ]  # fmt: skip
    allowed = {(group, resource) for rule in rules for group in rule["apiGroups"] for resource in rule["resources"]}
    spoken = set()
    for kind, (path, plural) in KINDS.items():
        if kind != "Lease":  # of its own namespace, by another role
            spoken.add(("" if path == "/api/v1" else path.split("/")[2], plural))
    assert {(group, resource) for group, resource in allowed if "/" not in resource} == spoken


@helm
@pytest.mark.parametrize("mode", MODES)
def test_the_operator_understands_what_it_is_told(rendered, mode, tmp_path, monkeypatch, capsys):
    (deployment,) = [one for one in rendered(mode) if one["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert (
        main([*container["args"], "--kubeconfig", str(tmp_path / "none")]) == 2
    )  # the arguments are right, the file is not
    assert "no way to the API server is known" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*container["args"], "--unheard-of"])


@helm
def test_for_some_namespaces_it_has_no_rights_elsewhere(rendered):
    manifests = rendered("namespaced")
    bindings = [one for one in manifests if one["kind"].endswith("Binding")]
    assert {(one["kind"], one["metadata"]["namespace"]) for one in bindings} == {
        ("RoleBinding", "team-a"),
        ("RoleBinding", "team-b"),
        ("RoleBinding", "system"),
    }
    cluster_roles = {one["metadata"]["name"] for one in manifests if one["kind"] == "ClusterRole"}
    assert cluster_roles == {"system-taskloom-view", "system-taskloom-edit"}


@helm
def test_in_both_modes_it_has_the_same_rights(rendered):
    def rules(mode, kind, name):
        return [
            one["rules"]
            for one in rendered(mode)
            if one["kind"] == kind and one["metadata"]["name"] == f"system-{name}"
        ]

    (everywhere,) = rules("cluster", "ClusterRole", "taskloom-operator")
    assert rules("namespaced", "Role", "taskloom-operator") == [everywhere, everywhere]


@helm
def test_the_crds_are_those_of_the_models(rendered):
    found = {one["metadata"]["name"]: one for one in rendered("cluster") if one["kind"] == "CustomResourceDefinition"}
    for one in crds():
        manifest = found.pop(one["metadata"]["name"])
        assert manifest["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
        assert manifest["spec"] == one["spec"]
    assert found == {}


@helm
@pytest.mark.parametrize(
    "release", ["taskloom", "a" * 53, "x-taskloom-with-a-name-that-is-as-long-as-it-can-be-"[:53].strip("-")]
)
def test_names_are_not_too_long(release):
    out = run("template", release, str(CHART), "-n", "n" * 63, "--kube-version", KUBE).stdout
    for one in yaml.safe_load_all(out):
        if one and one["kind"] not in ("CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"):
            assert len(one["metadata"]["name"]) <= 63
            assert all(len(value) <= 63 for value in one["metadata"]["labels"].values())


@helm
def test_a_kubernetes_that_is_too_old_is_refused():
    done = run("template", "taskloom", str(CHART), "--kube-version", "1.30.9", check=False)
    assert done.returncode != 0
    assert "kubeVersion" in done.stderr


def test_values_are_as_their_schema_says():
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.Draft7Validator(schema).validate(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8")))

    def look(one, name):
        assert name == "" or one.get("description"), name
        if "properties" in one:
            assert one["additionalProperties"] is False, name
            for key, value in one["properties"].items():
                look(value, f"{name}.{key}")

    look(schema, "")


def test_every_value_is_in_the_readme():
    names = [name for name, _, _ in rows()]
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))

    def leaves(value, name=""):
        if name in names:
            yield name
            return
        assert isinstance(value, dict), f"{name} is not in values.schema.json"
        for key, one in value.items():
            yield from leaves(one, f"{name}.{key}" if name else key)

    assert sorted(leaves(defaults)) == sorted(names)
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    assert table() in readme, "python tests/taskloom_operator/chart_table.py"


def test_the_version_of_the_app_is_that_of_the_package():
    import tomllib

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert chart["appVersion"] == project["version"]
