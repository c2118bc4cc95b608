"""``taskloom kube``, against a small API server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from taskloom.cli import main
from taskloom.cli.kube import command

from .conftest import operator_of, status_of, until


@pytest.fixture
def run():
    """Run a command in this process; what it printed, and with which status it ended."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def run(*args, code=0, stdin=None):
        done = CliRunner().invoke(main, ["kube", *args], prog_name="taskloom", input=stdin)
        assert done.exit_code == code, done.output
        return done

    yield run
    for number, handler in kept.items():
        signal.signal(number, handler)


def spec_of(kubernetes, name="demo", namespace="lab"):
    return kubernetes.objects["taskclusters", namespace, name]["spec"]


def changes(kubernetes):
    return [call for call in kubernetes.calls if call[0] not in ("get", "list")]


# --- create


def test_create_waits_until_it_is_ready(kubernetes, run):
    operator_of(kubernetes)
    done = run("create", "demo", "--workers", "3", "--cpu", "500m", "--memory", "2Gi", "--env", "A=b=c", "--image", "x")
    assert done.stdout.splitlines() == [
        "TaskCluster lab/demo is made",
        'it is ready: taskloom.Client("kube://lab/demo")',
    ]
    assert spec_of(kubernetes) == {
        "image": "x",
        "workers": {
            "replicas": 3,
            "resources": {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"memory": "2Gi"}},
            "podTemplate": {"spec": {"containers": [{"name": "worker", "env": [{"name": "A", "value": "b=c"}]}]}},
        },
    }, "it stays until somebody deletes it"


def test_create_says_what_is_missing_meanwhile(kubernetes, run):
    def operate(found):
        found["status"] = status_of(found, 0, Ready=("Starting", "the scheduler starts"))

    kubernetes.operate = operate
    done = run("create", "demo", "--timeout", "0.3", code=1)
    assert done.stderr.splitlines()[0] == "the scheduler starts"
    assert "taskloom: TimeoutError: the TaskCluster lab/demo is not ready after 0.3 s: Starting" in done.stderr
    assert spec_of(kubernetes)


def test_create_need_not_wait(kubernetes, run):
    assert (
        run("create", "demo", "-n", "other", "--no-wait", "--adapt", "0:5").stdout == "TaskCluster other/demo is made\n"
    )
    assert spec_of(kubernetes, namespace="other") == {"workers": {"autoscale": {"min": 0, "max": 5}}}


def test_create_what_is_there(lab, run):
    done = run("create", "demo", code=1)
    assert "is there already: taskloom kube get demo -n lab" in done.stderr


def test_create_from_a_file_and_as_a_file(kubernetes, run, tmp_path):
    operator_of(kubernetes)
    spec = {"workers": {"replicas": 2, "threads": 3}, "idleTimeout": 60}
    plain, whole = tmp_path / "spec.yaml", tmp_path / "cluster.yaml"
    plain.write_text(yaml.safe_dump(spec))
    whole.write_text(yaml.safe_dump({"kind": "TaskCluster", "metadata": {"name": "x"}, "spec": spec}))
    for path in (plain, whole):
        said = run("create", "demo", "-f", str(path), "--workers", "4", "--dry-run").stdout
        found = yaml.safe_load(said)
        assert found == {
            "apiVersion": "taskloom.dev/v1alpha1",
            "kind": "TaskCluster",
            "metadata": {"name": "demo"},
            "spec": {"workers": {"replicas": 4, "threads": 3}, "idleTimeout": 60},
        }
    assert kubernetes.calls == []
    run("create", "demo", "-f", "-", stdin=said)
    assert spec_of(kubernetes) == found["spec"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is no YAML"),
        ("[1]", "has no TaskCluster in it"),
        ("kind: TaskJob", "has a TaskJob in it"),
    ],
)
def test_a_file_that_is_none(kubernetes, run, text, words):
    assert words in run("create", "demo", "-f", "-", stdin=text, code=2).stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["create"], "Missing argument 'NAME'"),
        (["create", "demo", "--adapt", "3:1"], "'3:1' is not MIN:MAX"),
        (["create", "demo", "--adapt", "0:0"], "'0:0' is not MIN:MAX"),
        (["create", "demo", "--adapt", "x"], "'x' is not MIN:MAX"),
        (["create", "demo", "--workers", "1", "--adapt", "0:1"], "give one of them"),
        (["create", "demo", "--workers", "-1"], "-1"),
        (["create", "demo", "--env", "A"], "'A' is not NAME=VALUE"),
        (["scale", "demo"], "give how many workers there are to be"),
        (["scale", "demo", "1", "--adapt", "0:1"], "give how many workers there are to be"),
        (["scale", "demo", "1", "--idle-seconds", "3"], "--idle-seconds is for --adapt"),
        (["delete"], "Missing argument"),
        (["get", "demo", "-A"], "in one namespace"),
        (["creat", "demo"], "create"),
    ],
)
def test_wrong_words(kubernetes, run, args, words):
    assert words in run(*args, code=2).stderr
    assert kubernetes.calls == []


# --- get


def test_get(lab, run):
    lab.put("taskclusters", "more", "other", spec={"workers": {"autoscale": {"min": 0, "max": 2}}})
    broken = lab.put("taskclusters", "broken", metadata={"generation": 1}, spec={"workers": {"replicas": 3}})
    broken["status"] = status_of(broken, 0, Ready=("QuotaExceeded", "exceeded quota: few"))
    rows = [line.split(maxsplit=4) for line in run("get").stdout.splitlines()]
    assert [row[:3] for row in rows] == [
        ["NAME", "PHASE", "WORKERS"],
        ["broken", "Pending", "0/0"],
        ["demo", "Running", "1/1"],
    ]
    assert rows[1][4] == "exceeded quota: few"
    rows = [line.split() for line in run("get", "-A").stdout.splitlines()]
    assert rows[0][0] == "NAMESPACE"
    assert rows[3][:5] == ["other", "more", "Unknown", "0/?", "(adapts)"]
    said = run("get", "demo").stdout
    for words in ("SchedulerReady", "Running: all is well", "demo-scheduler-0  ready", "demo-worker-0"):
        assert words in said
    assert "no TaskCluster nothing in the namespace lab; there are broken, demo" in run("get", "nothing", code=1).stderr


def test_get_where_there_is_nothing(kubernetes, run):
    done = run("get")
    assert (done.stdout, done.stderr) == ("", "there are no TaskClusters in the namespace lab\n")
    assert "in any namespace" in run("get", "-A").stderr
    assert "in the namespace other" in run("get", "--context", "there").stderr


def test_get_of_what_the_operator_has_not_seen(kubernetes, run):
    kubernetes.put("taskclusters", "demo", spec={})
    assert "the operator has not looked at it" in run("get", "demo").stdout


# --- scale, delete


def test_scale(lab, run):
    assert run("scale", "demo", "4").stdout == "TaskCluster lab/demo is to have 4 workers\n"
    assert spec_of(lab)["workers"]["replicas"] == 4
    said = run("scale", "demo", "--adapt", "1:6", "--idle-seconds", "5").stdout
    assert said == "TaskCluster lab/demo is to have 1 to 6 workers\n"
    assert spec_of(lab)["workers"] == {"threads": 2, "autoscale": {"min": 1, "max": 6, "idleSeconds": 5}}
    assert run("scale", "demo", "1").stdout == "TaskCluster lab/demo is to have 1 worker\n"
    assert spec_of(lab)["workers"] == {"threads": 2, "replicas": 1}


def test_delete(lab, run):
    lab.put("taskclusters", "other", spec={})
    assert "there is no TaskCluster wrong" in run("delete", "other", "wrong", code=1).stderr
    assert changes(lab) == [], "all or none"
    assert (
        run("delete", "demo", "other").stdout == "TaskCluster lab/demo is deleted\nTaskCluster lab/other is deleted\n"
    )
    assert not [key for key in lab.objects if key[0] == "taskclusters"]


# --- logs


def test_logs(lab, run):
    lab.objects["pods", "lab", "demo-scheduler-0"]["log"] = "one\ntwo\nthree\n"
    assert run("logs", "demo").stdout == "one\ntwo\nthree\n"
    assert run("logs", "demo", "--tail", "2").stdout == "two\nthree\n"
    assert run("logs", "demo", "--worker", "0", "--previous").stdout == "demo-worker-0 is up\n"
    assert lab.queries[-1] == {"container": "worker", "previous": "true"}
    assert "no worker 9; there are demo-worker-0" in run("logs", "demo", "--worker", "9", code=1).stderr
    assert "no TaskCluster wrong" in run("logs", "wrong", code=1).stderr
    lab.put("taskclusters", "new", spec={})
    assert "has no scheduler just now" in run("logs", "new", code=1).stderr


def test_logs_that_go_on(lab):
    with start("logs", "demo", "-f") as process:
        assert process.stdout.readline() == "demo-scheduler-0 is up\n"
        lab.objects["pods", "lab", "demo-scheduler-0"]["over"] = True
        assert process.communicate(timeout=60) == ("the last line\n", "")
    assert process.returncode == 0


# --- connect


def start(*args, **options):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "taskloom", "kube", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_connect_runs_a_program_that_knows_nothing_of_kubernetes(lab, monkeypatch):
    program = (
        "import sys, taskloom; sys.modules['kubernetes'] = None\n"
        "with taskloom.Client() as client: print(client.submit(sum, [1, 2]).result())\n"
        "raise SystemExit(7)"
    )
    monkeypatch.setenv("TASKLOOM_TOKEN", "t" * 40)  # that of another cluster
    with start("connect", "demo", "--", sys.executable, "-c", program) as process:
        assert process.communicate(timeout=60) == ("3\n", "")
    assert process.returncode == 7


def test_connect_until_ctrl_c(lab, tmp_path):
    with start("connect", "demo", env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
        first, export = process.stdout.readline(), process.stdout.readline()
        assert first.startswith("TaskCluster lab/demo at tls://127.0.0.1:")
        process.stdout.readline()
        variables = dict(word.split("=", 1) for word in export.split()[1:])
        path = variables["TASKLOOM_TOKEN_FILE"]
        assert os.stat(path).st_mode & 0o077 == 0
        before = Path(path).read_text()
        program = "import taskloom\nwith taskloom.Client() as c: print(c.submit(sum, [1, 2]).result())"
        command = [sys.executable, "-W", "error", "-c", program]
        for _ in range(2):
            done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60)
            assert (done.stdout, done.stderr) == ("3\n", "")
            # the token changes, and who connects afterwards has to know the new one too
            lab.put_secret("demo", "n" * 40, before.strip())
        until(lambda: "n" * 40 in Path(path).read_text())
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert not os.path.exists(os.path.dirname(path))


def test_connect_ends_its_program_when_it_is_told_to_end(lab):
    with start(
        "connect", "demo", "--", sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"
    ) as process:
        assert process.stdout.readline() == "1\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 143


def test_connect_says_what_is_wrong(lab, run):
    port = str(lab.port)
    assert f"{port} is taken" in run("connect", "demo", "--port", port, code=2).stderr
    assert "nothing-of-that-name cannot be run" in run("connect", "demo", "--", "nothing-of-that-name", code=1).stderr
    assert "no TaskCluster wrong" in run("connect", "wrong", code=1).stderr


# --- the rest


def test_what_is_missing_is_told_in_a_line(kubernetes, run, monkeypatch, tmp_path):
    kubernetes.installed = False
    assert "chart is not installed there. helm install taskloom" in run("get", code=1).stderr
    kubernetes.installed = True
    kubernetes.denied.add(("list", "taskclusters"))
    said = run("get", "-A", code=1).stderr
    assert "you may not list taskclusters in all namespaces" in said
    assert "kubectl auth can-i list taskclusters.taskloom.dev -A" in said
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    said = run("get", code=1).stderr
    assert said.startswith("taskloom: KubernetesError: no Kubernetes cluster is known here")
    assert said.count("\n") == 1


def test_as_a_plugin_of_kubectl(kubernetes):
    """kubectl runs ``kubectl-taskloom get -n other`` for ``kubectl taskloom get -n other``."""
    (script,) = entry_points(group="console_scripts", name="kubectl-taskloom")
    code = f"import sys; from {script.module} import {script.attr}; sys.argv[0] = 'kubectl-taskloom'; {script.attr}()"
    done = subprocess.run(
        [sys.executable, "-c", code, "get", "-n", "other"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "there are no TaskClusters in the namespace other\n")
    done = subprocess.run([sys.executable, "-c", code, "get", "--what"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "Usage: kubectl taskloom get" in done.stderr


def test_nothing_is_imported_for_help(run):
    code = (
        "import sys; from taskloom.cli.kube import command\n"
        "import json; print(json.dumps([name for name in ('kubernetes', 'aiohttp', 'yaml', 'tornado') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == []
    said = run("--help").stdout
    assert all(name in said for name in command.commands)
    assert "..." not in said.partition("Commands:")[2]
