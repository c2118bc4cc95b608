"""The cluster that all tests share: the chart installed, a namespace each."""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path

import pytest
from e2e.cluster import KubectlError, helm, kubectl, namespace, until

ROOT = Path(__file__).resolve().parent.parent
SYSTEM = "taskloom-system"


def pytest_collection_modifyitems(items):
    why = os.environ.get("TASKLOOM_E2E_SKIP")
    if why is None and "KUBECONFIG" not in os.environ:
        why = "type `make e2e`: it finds or makes a cluster"
    if why:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=why))
    if "TASKLOOM_E2E_KUBE" not in os.environ:
        for item in items:
            if item.get_closest_marker("nodes"):
                item.add_marker(pytest.mark.skip(reason="nodes of this cluster cannot be crashed from here"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.failed and call.when in ("setup", "call"):
        space = item.funcargs.get("space")
        if space is not None:
            report.sections.append((f"namespace {space.name}", "\n".join(space.report())))
        try:
            said = kubectl("-n", SYSTEM, "logs", "-l", "app.kubernetes.io/component=operator", "--tail=200", "--prefix")
            pods = kubectl("-n", SYSTEM, "get", "pods", "-o", "wide")
        except (KubectlError, subprocess.TimeoutExpired) as error:
            said, pods = str(error), ""
        report.sections.append(("operator", pods + said))


def _image(name: str, prefix: str) -> list[str]:
    repository, _, tag = os.environ[name].rpartition(":")
    return ["--set", f"{prefix}.repository={repository},{prefix}.tag={tag},{prefix}.pullPolicy=IfNotPresent"]


@pytest.fixture(scope="session")
def values():
    """What `helm install` and `helm upgrade` are given."""
    return [*_image("TASKLOOM_E2E_IMAGE", "image"), *_image("TASKLOOM_E2E_OPERATOR_IMAGE", "operator.image")]


@pytest.fixture(scope="session")
def operator(values):
    """The operator, installed by the chart as the README says; the namespace that it is in."""
    helm("upgrade", "--install", "taskloom", str(ROOT / "charts" / "taskloom"), "--namespace", SYSTEM, "--create-namespace",
         "--wait", "--timeout", "180s", *values)  # fmt: skip
    until(lambda: "taskloom.dev" in kubectl("api-resources", "--api-group=taskloom.dev"), 30, "the CRDs")
    return SYSTEM


@pytest.fixture
def space(operator, request):
    """A namespace for one test."""
    name = f"e2e-{request.node.name.split('[')[0].replace('_', '-')[:40].strip('-').lower()}-{secrets.token_hex(2)}"
    with namespace(name.removeprefix("e2e-test-")) as found:
        yield found
