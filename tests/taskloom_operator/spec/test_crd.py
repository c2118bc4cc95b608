"""The CRDs: structural, small, and as strict as the models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from taskloom_operator.spec.crd import KINDS, crd, crds, main, template, to_yaml
from taskloom_operator.spec.models import SpecError, TaskCluster, TaskJob, TaskWorkerGroup

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = sorted((ROOT / "examples" / "kubernetes").glob("*.yaml"))
BY_NAME = {kind.name: kind for kind in KINDS}


def schema(name):
    return crd(BY_NAME[name])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def walk(value, path=()):
    """Every schema in a schema."""
    yield path, value
    for name, one in value.get("properties", {}).items():
        yield from walk(one, (*path, name))
    for name in ("items", "additionalProperties"):
        if isinstance(value.get(name), dict):
            yield from walk(value[name], (*path, f"<{name}>"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_schema_is_structural(kind):
    for path, one in walk(schema(kind.name)):
        assert ("type" in one) != ("x-kubernetes-int-or-string" in one), path
        assert not {"$ref", "$defs", "title", "const", "oneOf", "exclusiveMinimum"} & set(one), path
        assert not one.get("nullable") or "podTemplate" in path, path
        if "anyOf" in one:
            assert one["x-kubernetes-int-or-string"]
        if one.get("type") == "object" and path != ("metadata",):
            assert (
                "properties" in one or "additionalProperties" in one or one.get("x-kubernetes-preserve-unknown-fields")
            ), path
        if "x-kubernetes-list-map-keys" in one:
            assert set(one["x-kubernetes-list-map-keys"]) <= set(one["items"]["required"]), path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_field_is_described(kind):
    bare = [
        ".".join(path)
        for path, one in walk(schema(kind.name))
        if "description" not in one
        and path
        and path[-1] not in ("<items>", "<additionalProperties>")
        and not {"podTemplate", "metadata", "imagePullSecrets", "env"} & set(path)
    ]
    assert bare == []
    for path, one in walk(schema(kind.name)):
        assert "\n" not in one.get("description", ""), path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_operator_writes_its_status_whole(kind):
    for path, one in walk(schema(kind.name)["properties"]["status"], ("status",)):
        assert "default" not in one, path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_paths_lead_to_fields(kind):
    """Of columns, of the scale subresource, of rules: each is in the schema."""
    version = crd(kind)["spec"]["versions"][0]
    scale = version["subresources"].get("scale", {})
    paths = [*scale.values(), *(one["jsonPath"] for one in version.get("selectableFields", ()))]
    paths += [column["jsonPath"] for column in version["additionalPrinterColumns"]]
    for path in paths:
        if path.startswith(".metadata.") or "[?" in path:
            continue
        one = schema(kind.name)
        for name in path.lstrip(".").split("."):
            one = one["properties"][name]
    for path, one in walk(schema(kind.name)):
        for rule in one.get("x-kubernetes-validations", ()):
            assert rule["message"], path
            place = one
            for name in rule.get("fieldPath", "").lstrip(".").split(".") if rule.get("fieldPath") else ():
                place = place["properties"][name]


def test_what_people_type():
    names = {one["spec"]["names"]["kind"]: one["spec"]["names"] for one in crds()}
    assert {kind: (n["plural"], n["shortNames"], n["categories"]) for kind, n in names.items()} == {
        "TaskCluster": ("taskclusters", ["tc"], ["all", "taskloom"]),
        "TaskWorkerGroup": ("taskworkergroups", ["twg"], ["all", "taskloom"]),
        "TaskJob": ("taskjobs", ["tj"], ["all", "taskloom"]),
    }
    assert {one["spec"]["group"] for one in crds()} == {"taskloom.dev"}
    assert all(one["spec"]["scope"] == "Namespaced" for one in crds())
    scales = {one["spec"]["names"]["kind"]: one["spec"]["versions"][0]["subresources"].get("scale") for one in crds()}
    assert scales["TaskCluster"]["specReplicasPath"] == ".spec.workers.replicas"
    assert scales["TaskWorkerGroup"]["specReplicasPath"] == ".spec.replicas"
    assert scales["TaskJob"] is None


def test_defaults():
    spec = schema("TaskCluster")["properties"]["spec"]["properties"]
    assert spec["workers"]["default"] == {"replicas": 1}
    assert spec["scheduler"]["default"] == {}
    assert spec["suspend"]["default"] is False
    assert "default" not in spec["workers"]["properties"]["replicas"]
    assert schema("TaskJob")["properties"]["spec"]["properties"]["cluster"]["default"] == {}


def test_together_they_are_small():
    assert sum(len(to_yaml(one)) for one in crds()) < 256 * 1024


def test_yaml_is_the_same_again():
    for one in crds():
        assert yaml.safe_load(to_yaml(one)) == one


def test_the_chart_has_what_is_made_from_the_models():
    folder = ROOT / "charts" / "taskloom" / "templates" / "crds"
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    made = {f"{kind.plural}.yaml": template(kind) for kind in KINDS}
    assert there == made, "python -m taskloom_operator.spec.crd --write charts/taskloom/templates/crds"


def test_they_are_printed_and_written(tmp_path, capsys):
    main([])
    assert list(yaml.safe_load_all(capsys.readouterr().out)) == crds()
    main(["--write", str(tmp_path / "new")])
    assert {path.name for path in (tmp_path / "new").iterdir()} == {f"{kind.plural}.yaml" for kind in KINDS}


def test_it_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "taskloom_operator.spec.crd"], capture_output=True, text=True, check=True
    )
    assert list(yaml.safe_load_all(done.stdout)) == crds()
    assert done.stderr == ""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_right(path):
    for manifest in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        kind = BY_NAME[manifest["kind"]]
        kind.resource.parse(manifest)
        strict(kind.name).validate(manifest)


# A validator that also knows what the API server does with a schema: what is not declared is an error (--validate=strict).


def strict(name):
    def closed(one):
        found = dict(one)
        if found.get("type") == "object" and "additionalProperties" not in found:
            if not found.get("x-kubernetes-preserve-unknown-fields") and "properties" in found:
                found["additionalProperties"] = False
        for field in ("items", "additionalProperties"):
            if isinstance(found.get(field), dict):
                found[field] = closed(found[field])
        found["properties"] = {name: closed(value) for name, value in found.get("properties", {}).items()}
        if found.pop("nullable", False):
            found["type"] = [found["type"], "null"]
        return found

    whole = closed(schema(name))
    whole["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(whole)


CHECKS = {name: strict(name) for name in BY_NAME}
counts = st.sampled_from([-1, 0, 1, 2, 7, 2**31 - 1, 2**31, "3", None, 1.5])
quantities = st.sampled_from(["100m", "1Gi", "0", 0, 2, -1, "-1", "lots", "1e3", None, 0.5, "1 Gi", "9" * 65])
resources = st.fixed_dictionaries(
    {},
    optional={
        "limits": st.dictionaries(st.sampled_from(["cpu", "memory", "nvidia.com/gpu"]), quantities, max_size=2),
        "claims": st.just([{"name": "x"}]),
    },
)
templates = st.sampled_from(
    [
        {},
        {"spec": {"containers": [{"name": "worker"}]}},
        {"spec": {"containers": [{}]}},
        {"metadata": {"labels": {"a": 1}}},
        [],
    ]
)
worker_fields = {
    "replicas": counts,
    "autoscale": st.fixed_dictionaries({}, optional={"min": counts, "max": counts, "idleSeconds": counts}),
    "threads": counts,
    "memoryLimit": quantities,
    "resources": resources,
    "taskResources": st.dictionaries(
        st.sampled_from(["gpu", "a=b", ""]), st.sampled_from([0, 1, 0.5, -1, "1"]), max_size=2
    ),
    "podTemplate": templates,
}
cluster_fields = {
    "image": st.sampled_from(["x", "", 1]),
    "imagePullPolicy": st.sampled_from(["Always", "Never", "Often"]),
    "imagePullSecrets": st.sampled_from([[], [{"name": "a"}], [{}], ["a"]]),
    "scheduler": st.fixed_dictionaries(
        {}, optional={"serviceType": st.sampled_from(["NodePort", "None"]), "resources": resources}
    ),
    "workers": st.fixed_dictionaries({}, optional=worker_fields),
    "suspend": st.sampled_from([True, False, "yes"]),
    "idleTimeout": counts,
    "ttlSecondsAfterFinished": counts,
}
specs = {
    "TaskCluster": st.fixed_dictionaries({}, optional=cluster_fields),
    "TaskWorkerGroup": st.fixed_dictionaries({"cluster": st.sampled_from(["demo", "", 1])}, optional=worker_fields),
    "TaskJob": st.fixed_dictionaries(
        {},
        optional={
            "cluster": st.fixed_dictionaries({}, optional=cluster_fields),
            "script": st.sampled_from(["print(1)", "", 1]),
            "command": st.sampled_from([["a"], [], [1], "a"]),
            "args": st.sampled_from([["a"], [], [1]]),
            "env": st.sampled_from([[], [{"name": "A", "value": "1"}], [{"value": "1"}], [{"name": "A", "value": 1}]]),
            "backoffLimit": counts,
            "activeDeadlineSeconds": counts,
            "cleanup": st.sampled_from(["Always", "Later"]),
            "suspend": st.booleans(),
        },
    ),
}


def pruned(value):
    """Without what is null: the API server drops it where a field may be absent, before it looks any closer."""
    if isinstance(value, dict):
        return {name: pruned(one) for name, one in value.items() if one is not None}
    return value


@pytest.mark.parametrize("model", [TaskCluster, TaskWorkerGroup, TaskJob])
@given(data=st.data())
def test_what_the_schema_lets_pass_the_models_take(model, data):
    """But for what rules say: and these are the same text in both."""
    spec = pruned(data.draw(specs[model.__name__]))
    manifest = {"metadata": {"name": "demo"}, "spec": spec}
    rules = {
        rule["message"] for _, one in walk(schema(model.__name__)) for rule in one.get("x-kubernetes-validations", ())
    }
    if CHECKS[model.__name__].is_valid(manifest):
        said = complaints(model, manifest)
        assert [line for line in said if line.partition(": ")[2] not in rules] == []


def complaints(model, manifest):
    try:
        model.parse(manifest)
    except SpecError as error:
        return str(error).splitlines()
    return []
