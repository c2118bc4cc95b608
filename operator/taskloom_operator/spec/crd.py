"""The CustomResourceDefinitions, made from :mod:`taskloom_operator.spec.models`.

``python -m taskloom_operator.spec.crd`` prints them; ``--write FOLDER`` writes them there, one file each, as templates for Helm.

Kubernetes wants "structural" schemas: no references, each value of one type, and nothing that says how a value of no type
looks. So references are put in, "or null" is left out (the API server drops null by itself where a value may be absent),
titles are left out, and so are the defaults of what the operator writes itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from taskloom_operator.names import GROUP, VERSION
from taskloom_operator.spec.models import (
    Model,
    Resource,
    TaskCluster,
    TaskClusterSpec,
    TaskClusterStatus,
    TaskJob,
    TaskJobSpec,
    TaskJobStatus,
    TaskWorkerGroup,
    TaskWorkerGroupSpec,
    TaskWorkerGroupStatus,
)

__all__ = ["KINDS", "Kind", "crd", "crds", "main", "schema_of", "template", "to_yaml"]


class Kind(NamedTuple):
    """What is said of a resource beside its schema.

    Attributes:
        resource, spec, status: the models.
        short: what people type for it.
        columns: of ``kubectl get``: (name, type, JSON path, description); those with a "*" before the name only with ``-o wide``.
        replicas: the field of the spec that ``kubectl scale`` changes; "": it cannot be scaled.
        selectable: fields that ``kubectl get --field-selector`` knows.
    """

    resource: type[Resource]
    spec: type[Model]
    status: type[Model]
    short: str
    columns: tuple[tuple[str, str, str, str], ...]
    replicas: str = ""
    selectable: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As it is in manifests: "TaskCluster"."""
        return self.resource.__name__

    @property
    def plural(self) -> str:
        """As it is in paths of the API: "taskclusters"."""
        return f"{self.name.lower()}s"


_AGE = ("Age", "date", ".metadata.creationTimestamp", "How long it has been there")

#: The three kinds that there are.
KINDS = (
    Kind(
        TaskCluster,
        TaskClusterSpec,
        TaskClusterStatus,
        "tc",
        (
            ("Phase", "string", ".status.phase", "Where it is in its life"),
            ("Ready", "integer", ".status.readyReplicas", "Workers that are ready"),
            ("Desired", "integer", ".status.desiredReplicas", "Workers that there are to be"),
            (
                "*Address",
                "string",
                ".status.address",
                "Where clients inside of the Kubernetes cluster find the scheduler",
            ),
            ("*Message", "string", '.status.conditions[?(@.type=="Ready")].message', "What is said of it"),
            _AGE,
        ),
        ".spec.workers.replicas",
    ),
    Kind(
        TaskWorkerGroup,
        TaskWorkerGroupSpec,
        TaskWorkerGroupStatus,
        "twg",
        (
            ("Cluster", "string", ".spec.cluster", "The TaskCluster that the workers belong to"),
            ("Ready", "integer", ".status.readyReplicas", "Workers that are ready"),
            ("Desired", "integer", ".status.desiredReplicas", "Workers that there are to be"),
            ("*Message", "string", '.status.conditions[?(@.type=="Ready")].message', "What is said of it"),
            _AGE,
        ),
        ".spec.replicas",
        (".spec.cluster",),
    ),
    Kind(
        TaskJob,
        TaskJobSpec,
        TaskJobStatus,
        "tj",
        (
            ("Phase", "string", ".status.phase", "Where it is in its life"),
            ("Exit", "integer", ".status.exitCode", "What the program ended with"),
            ("Started", "date", ".status.startTime", "When it was begun"),
            ("*Completed", "date", ".status.completionTime", "When it had ended"),
            ("*Cluster", "string", ".status.cluster", "Its TaskCluster"),
            ("*Reason", "string", ".status.reason", "Why it has failed"),
            _AGE,
        ),
    ),
)


def schema_of(model: type[Model], defaults: bool = True) -> dict[str, Any]:
    """The structural schema of a model.

    Args:
        model: what is below ``spec`` or ``status``.
        defaults: whether the API server is to put in what is left out.

    >>> from taskloom_operator.spec.models import Wish
    >>> schema_of(Wish, defaults=False)["properties"]["workers"]
    {'description': 'So many.', 'type': 'integer'}
    """
    whole = model.model_json_schema(by_alias=True)
    found: dict[str, Any] = _structural(whole, whole.get("$defs", {}), defaults)
    return found


def _structural(schema: Mapping[str, Any], known: Mapping[str, Any], defaults: bool) -> dict[str, Any]:
    found = dict(schema)
    found.pop("$defs", None)
    found.pop("title", None)
    if found.get("default", ...) is None or not defaults:
        found.pop("default", None)
    reference = found.pop("$ref", None)
    if reference is not None:
        found = {**known[reference.removeprefix("#/$defs/")], **found}
        return _structural(found, known, defaults)
    if "anyOf" in found and "x-kubernetes-int-or-string" not in found:
        (one,) = [option for option in found.pop("anyOf") if option != {"type": "null"}]
        return _structural({**one, **found}, known, defaults)
    if "description" in found:
        found["description"] = " ".join(found["description"].split())
    if found.get("x-kubernetes-int-or-string"):
        return found
    if "items" in found:
        found["items"] = _structural(found["items"], known, defaults)
    if isinstance(found.get("additionalProperties"), Mapping):
        found["additionalProperties"] = _structural(found["additionalProperties"], known, defaults)
    if "properties" in found:
        found["properties"] = {name: _structural(one, known, defaults) for name, one in found["properties"].items()}
    if found.get("maximum") == 2**31 - 1:
        found["format"] = "int32"
    return {name: found[name] for name in sorted(found)}


def crd(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind, as its JSON is."""
    root = kind.resource.model_json_schema(by_alias=True)
    schema: dict[str, Any] = {
        "description": " ".join(root["description"].split()),
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}"},
            "kind": {"type": "string", "description": kind.name},
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": schema_of(kind.spec),
            "status": schema_of(kind.status, defaults=False),
        },
        "x-kubernetes-validations": root["x-kubernetes-validations"],
    }
    subresources: dict[str, Any] = {"status": {}}
    if kind.replicas:
        subresources["scale"] = {
            "specReplicasPath": kind.replicas,
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [_column(*column) for column in kind.columns],
        "schema": {"openAPIV3Schema": schema},
        "subresources": subresources,
    }
    if kind.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in kind.selectable]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short],
                "categories": ["all", "taskloom"],
            },
            "scope": "Namespaced",
            "versions": [version],
        },
    }


def _column(name: str, type: str, path: str, description: str) -> dict[str, Any]:
    column: dict[str, Any] = {
        "name": name.removeprefix("*"),
        "type": type,
        "jsonPath": path,
        "description": description,
    }
    if name.startswith("*"):
        column["priority"] = 1
    return column


def crds() -> list[dict[str, Any]]:
    """All of them."""
    return [crd(kind) for kind in KINDS]


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(manifest: Mapping[str, Any]) -> str:
    """A manifest as YAML, without references from one part to another."""
    return yaml.dump(dict(manifest), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


_HEAD = """\
{{- /* Made by `python -m taskloom_operator.spec.crd --write charts/taskloom/templates/crds`; not to be changed by hand. */ -}}
{{- if .Values.crds.install }}
"""


def template(kind: Kind) -> str:
    """A CRD as a template of the chart: it is only there where ``crds.install`` is true, and stays when the release goes.

    What is Helm's own, labels and the policy to keep it, is put below ``metadata``; the rest is as :func:`crd` has it.
    """
    text = to_yaml(crd(kind))
    if "{{" in text:
        raise ValueError(f"the CRD of {kind.name} has '{{{{' in it, which Helm would take for its own")
    name = f"  name: {kind.plural}.{GROUP}\n"
    ours = (
        "  labels:\n"
        '    {{- include "taskloom.labels" . | nindent 4 }}\n'
        "  {{- if .Values.crds.keep }}\n"
        "  annotations:\n"
        "    helm.sh/resource-policy: keep\n"
        "  {{- end }}\n"
    )
    return f"{_HEAD}{text.replace(name, name + ours, 1)}{{{{- end }}}}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the CRDs, or write the chart's copies of them.

    Args:
        arguments: of the command line; by default those of this process.
    """
    parser = argparse.ArgumentParser(prog="python -m taskloom_operator.spec.crd", description="Print the CRDs.")
    parser.add_argument(
        "--write", metavar="FOLDER", type=Path, help="write them there instead, as templates of the chart"
    )
    folder: Path | None = parser.parse_args(arguments).write
    if folder is None:
        print("---\n".join(to_yaml(one) for one in crds()), end="")
        return
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        (folder / f"{kind.plural}.yaml").write_text(template(kind), encoding="utf-8")


if __name__ == "__main__":
    main()
