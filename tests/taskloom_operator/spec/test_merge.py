"""What users write over what we make."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskloom_operator.spec.merge import merge


def template():
    """A pod template such as ours."""
    return {
        "metadata": {"labels": {"taskloom.dev/cluster": "demo"}},
        "spec": {
            "restartPolicy": "OnFailure",
            "securityContext": {"runAsNonRoot": True, "runAsUser": 1000},
            "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 60}],
            "containers": [
                {
                    "name": "worker",
                    "image": "taskloom:1",
                    "args": ["worker", "tls://demo-scheduler.lab.svc:8786"],
                    "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}],
                    "ports": [{"name": "probes", "containerPort": 8789, "protocol": "TCP"}],
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}],
                    "livenessProbe": {"httpGet": {"path": "/api/v1/health", "port": "probes"}, "periodSeconds": 10},
                }
            ],
            "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "shm", "emptyDir": {"medium": "Memory"}}],
        },
    }  # fmt: skip


def container(**fields):
    return {"spec": {"containers": [{"name": "worker", **fields}]}}


def worker(override):
    """Our container, after the merge."""
    return merge(template(), override)["spec"]["containers"][0]


def test_nothing_written_changes_nothing():
    assert merge(template(), {}) == template()
    assert merge(template(), {"spec": {"containers": [{"name": "worker"}]}}) == template()


def test_fields_that_we_do_not_have_are_taken_as_they_are():
    affinity = {
        "nodeAffinity": {"required": [{"key": "gpu", "values": ["a", "b"]}]},
        "notYetInvented": {"x": [1, {"y": 2}]},
    }
    merged = merge(template(), {"spec": {"affinity": affinity, "nodeSelector": {"gpu": "yes"}, "hostUsers": False}})
    assert merged["spec"]["affinity"] == affinity
    assert merged["spec"]["nodeSelector"] == {"gpu": "yes"}
    assert merged["spec"]["hostUsers"] is False
    assert {name: merged["spec"][name] for name in template()["spec"]} == template()["spec"]


def test_containers_are_merged_by_name_and_others_are_added_after_ours():
    merged = merge(
        template(),
        {"spec": {"containers": [{"name": "side", "image": "x"}, {"name": "worker", "image": "taskloom:2"}]}},
    )
    ours, side = merged["spec"]["containers"]
    assert ours == {**template()["spec"]["containers"][0], "image": "taskloom:2"}
    assert side == {"name": "side", "image": "x"}


def test_init_containers_come_where_there_were_none():
    inits = [{"name": "fetch", "image": "x", "env": [{"name": "A", "value": "1"}]}]
    assert merge(template(), {"spec": {"initContainers": inits}})["spec"]["initContainers"] == inits


def test_variables_are_merged_by_name_and_a_value_goes_where_a_source_comes():
    source = {"secretKeyRef": {"name": "s", "key": "k"}}
    merged = worker(
        container(env=[{"name": "A", "valueFrom": source}, {"name": "B", "value": "2"}, {"name": "C", "value": "3"}])
    )
    assert merged["env"] == [
        {"name": "A", "valueFrom": source},
        {"name": "B", "value": "2"},
        {"name": "C", "value": "3"},
    ]


def test_arguments_are_replaced():
    assert worker(container(args=["x"]))["args"] == ["x"]


def test_mounts_are_known_by_their_paths():
    merged = worker(
        container(volumeMounts=[{"name": "scratch", "mountPath": "/tmp"}, {"name": "tmp", "mountPath": "/more"}])
    )
    assert merged["volumeMounts"] == [
        {"name": "scratch", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "tmp", "mountPath": "/more"},
    ]


@pytest.mark.parametrize("protocol", [{}, {"protocol": "TCP"}])
def test_ports_are_known_by_number_and_protocol(protocol):
    merged = worker(container(ports=[{"containerPort": 8789, "name": "other", **protocol}]))
    assert merged["ports"] == [{"name": "other", "containerPort": 8789, "protocol": "TCP"}]
    udp = {"containerPort": 8789, "protocol": "UDP"}
    assert worker(container(ports=[udp]))["ports"] == [*template()["spec"]["containers"][0]["ports"], udp]


def test_tolerations_are_added_once():
    ours = template()["spec"]["tolerations"]
    spot = {"key": "spot", "operator": "Exists", "effect": "NoSchedule"}
    merged = merge(template(), {"spec": {"tolerations": [spot, *ours]}})
    assert merged["spec"]["tolerations"] == [*ours, spot]


def test_secrets_for_images_are_merged_by_name():
    ours = {"spec": {"imagePullSecrets": [{"name": "a"}]}}
    assert merge(ours, {"spec": {"imagePullSecrets": [{"name": "b"}, {"name": "a"}]}}) == {
        "spec": {"imagePullSecrets": [{"name": "a"}, {"name": "b"}]}
    }


def test_a_volume_of_ours_can_be_of_another_kind_or_size():
    merged = merge(
        template(),
        {
            "spec": {
                "volumes": [
                    {"name": "tmp", "persistentVolumeClaim": {"claimName": "big"}},
                    {"name": "shm", "emptyDir": {"sizeLimit": "2Gi"}},
                    {"name": "data", "csi": {"driver": "x"}},
                ]
            }
        },
    )
    assert merged["spec"]["volumes"] == [
        {"name": "tmp", "persistentVolumeClaim": {"claimName": "big"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
        {"name": "data", "csi": {"driver": "x"}},
    ]


def test_a_probe_has_one_handler():
    merged = worker(container(livenessProbe={"exec": {"command": ["true"]}, "periodSeconds": 5}))
    assert merged["livenessProbe"] == {"exec": {"command": ["true"]}, "periodSeconds": 5}
    merged = worker(container(livenessProbe={"failureThreshold": 9}))
    assert merged["livenessProbe"] == {**template()["spec"]["containers"][0]["livenessProbe"], "failureThreshold": 9}


def test_null_takes_a_field_away():
    merged = merge(
        template(), {"spec": {"securityContext": {"runAsUser": None}, "restartPolicy": None, "absent": None}}
    )
    assert merged["spec"]["securityContext"] == {"runAsNonRoot": True}
    assert "restartPolicy" not in merged["spec"]
    assert "absent" not in merged["spec"]
    assert "livenessProbe" not in worker(container(livenessProbe=None))


def test_null_inside_of_what_is_new_is_left_out():
    assert merge({}, {"affinity": {"podAffinity": None, "x": {"y": None}}}) == {"affinity": {"x": {}}}


def test_items_and_objects_can_be_deleted():
    merged = worker(
        container(
            env=[{"name": "A", "$patch": "delete"}, {"name": "never", "$patch": "delete"}],
            livenessProbe={"$patch": "delete"},
        )
    )
    assert [one["name"] for one in merged["env"]] == ["B"]
    assert "livenessProbe" not in merged


def test_objects_and_lists_can_be_replaced():
    probe = {"tcpSocket": {"port": 1}}
    merged = worker(
        container(
            livenessProbe={"$patch": "replace", **probe}, env=[{"$patch": "replace"}, {"name": "X", "value": "1"}]
        )
    )
    assert merged["livenessProbe"] == probe
    assert merged["env"] == [{"name": "X", "value": "1"}]
    assert merge(template(), {"spec": {"tolerations": [{"$patch": "replace"}]}})["spec"]["tolerations"] == []


def test_fields_can_be_retained():
    merged = worker(container(livenessProbe={"$retainKeys": ["httpGet"], "httpGet": {"port": 1}}))
    assert merged["livenessProbe"] == {"httpGet": {"path": "/api/v1/health", "port": 1}}


def test_items_without_a_key_stay_apart():
    ours = {"volumeMounts": [{"name": "a"}, {"name": "b", "mountPath": "/b"}, {"name": "c"}]}
    theirs = {"volumeMounts": [{"mountPath": "/b", "$patch": "delete"}, {"name": "d"}]}
    assert merge(ours, theirs) == {"volumeMounts": [{"name": "a"}, {"name": "c"}, {"name": "d"}]}


def test_no_directive_is_left_in_what_comes_of_it():
    theirs = {
        "x": {"$patch": "merge", "$setElementOrder/env": [], "y": 1},
        "list": [{"$patch": "delete"}, {"a": 1, "$retainKeys": ["a"]}],
    }
    assert merge({}, theirs) == {"x": {"y": 1}, "list": [{"a": 1}]}


KEYS = ["containers", "env", "envFrom", "livenessProbe", "name", "ports", "tolerations", "value", "valueFrom", "volumes", "x",
        "mountPath", "volumeMounts", "containerPort", "exec", "httpGet", "$patch", "$retainKeys"]  # fmt: skip
names = st.sampled_from(["a", "b", "delete", "replace", "exec"])
json = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.floats(0, 2) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=20,
)
# as pod templates are: lists have the items that belong into them, each with its key
variables = st.fixed_dictionaries({"name": names}, optional={"value": names, "valueFrom": st.just({"x": 1})})
volumes = st.fixed_dictionaries({"name": names}, optional={"emptyDir": st.just({}), "csi": st.just({"driver": "x"})})
tame = st.fixed_dictionaries(
    {},
    optional={
        "env": st.lists(variables, max_size=4, unique_by=lambda item: item["name"]),
        "volumes": st.lists(volumes, max_size=4, unique_by=lambda item: item["name"]),
        "tolerations": st.lists(st.fixed_dictionaries({"key": names}), max_size=3),
        "args": st.lists(names, max_size=3),
        "labels": st.dictionaries(names, names, max_size=3),
    },
)


def directives(value):
    if isinstance(value, dict):
        return any(key.startswith("$") or directives(item) for key, item in value.items())
    return isinstance(value, list) and any(map(directives, value))


@given(json, json)
def test_whatever_is_written_it_is_merged_and_nothing_given_is_changed(ours, theirs):
    before = copy.deepcopy((ours, theirs))
    merge(ours, theirs)
    assert (ours, theirs) == before


@given(tame, json)
def test_what_is_written_twice_is_as_if_once(ours, theirs):
    once = merge(ours, theirs)
    assert not directives(once)
    if not isinstance(once, dict) or _keyed(theirs):
        return
    assert merge(once, theirs) == once


def _keyed(value):
    """Whether lists have items without a key, which are added as often as they are written."""
    if isinstance(value, dict):
        return any(
            (isinstance(item, list) and key in ("containers", "env", "ports", "volumes", "volumeMounts"))
            or _keyed(item)
            for key, item in value.items()
        )
    return isinstance(value, list) and any(map(_keyed, value))


@given(tame, tame)
def test_templates(ours, theirs):
    merged = merge(ours, theirs)
    assert merge(ours, ours) == {**ours, **({"tolerations": merged_tolerations(ours)} if "tolerations" in ours else {})}
    assert merge(merged, theirs) == merged
    for field in ("env", "volumes"):
        found = {item["name"]: item for item in merged.get(field, [])}
        assert len(found) == len(merged.get(field, []))
        assert set(found) == {item["name"] for item in ours.get(field, []) + theirs.get(field, [])}
        for item in theirs.get(field, []):
            assert item.items() <= found[item["name"]].items()
    for item in merged.get("volumes", []):
        given = [i for i in theirs.get("volumes", []) if i["name"] == item["name"] and len(i) > 1]
        assert not given or item == given[0]
    assert merged.get("args") == theirs.get("args", ours.get("args"))
    assert merged.get("labels", {}) == {**ours.get("labels", {}), **theirs.get("labels", {})}


def merged_tolerations(ours):
    return ours["tolerations"]
