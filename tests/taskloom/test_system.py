"""How many CPUs this process may use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from taskloom import system
from taskloom.system import _cgroup_quota, cpu_count, thread_limits


def machine(path, membership, **files):
    """The part of a file system that says so: proc/self/cgroup, and files under sys/fs/cgroup by their paths."""
    (path / "proc/self").mkdir(parents=True)
    (path / "proc/self/cgroup").write_text(membership)
    for name, content in files.get("groups", {}).items():
        file = path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return str(path)


CASES = {
    "no limit": ("0::/\n", {"cpu.max": "max 100000\n"}, None),
    "a container with a namespace of its own": ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
    "a service whose slice is the limit": (
        "0::/user.slice/app.service\n",
        {
            "user.slice/app.service/cpu.max": "max 100000\n",
            "user.slice/cpu.max": "200000 100000\n",
        },
        2.0,
    ),
    "the least of several": (
        "0::/a/b/c\n",
        {"a/cpu.max": "400000 100000", "a/b/cpu.max": "50000 100000", "a/b/c/cpu.max": "300000 100000"},
        0.5,
    ),
    "not what is beside us": ("0::/a\n", {"b/cpu.max": "100000 100000", "a/cpu.max": "max 100000"}, None),
    "a path of the host's": ("0::/docker/0123\n", {"cpu.max": "300000 100000\n"}, 3.0),
    "a path from outside of the namespace": ("0::/../other\n", {"cpu.max": "200000 100000\n"}, 2.0),
    "version 1": (
        "5:cpu,cpuacct:/docker/0123\n4:memory:/x\n",
        {
            "cpu,cpuacct/docker/0123/cpu.cfs_quota_us": "250000\n",
            "cpu,cpuacct/docker/0123/cpu.cfs_period_us": "100000\n",
            "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        2.5,
    ),
    "version 1 in a container": (
        "3:cpuacct,cpu:/docker/0123\n",
        {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        1.0,
    ),
    "both, version 1 with the limit": (
        "2:cpu:/\n1:name=systemd:/\n0::/\n",
        {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n", "unified/cgroup.procs": ""},
        4.0,
    ),
    "both, version 2 with the limit": ("1:name=systemd:/\n0::/s\n", {"unified/s/cpu.max": "100000 50000"}, 2.0),
    "nonsense": ("what\n0::/\n", {"cpu.max": "a lot\n"}, None),
    "too short": ("0::/\n", {"cpu.max": "100000\n"}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_quotas(tmp_path, case):
    membership, groups, quota = CASES[case]
    assert _cgroup_quota(machine(tmp_path, membership, groups=groups)) == quota


def test_no_cgroups_at_all(tmp_path):
    assert _cgroup_quota(str(tmp_path)) is None


@pytest.mark.parametrize(("quota", "count"), [(None, 8), (0.2, 1), (1.0, 1), (1.5, 2), (2.01, 3), (100.0, 8)])
def test_the_least_counts(monkeypatch, quota, count):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(system, "_quota", (float("inf"), quota))
    assert cpu_count() == count


def in_program(*options, **env):
    code = "from taskloom.system import cpu_count; print(cpu_count())"
    env = {k: v for k, v in os.environ.items() if k != "PYTHON_CPU_COUNT"} | env
    return int(subprocess.run([sys.executable, *options, "-c", code], env=env, capture_output=True, check=True).stdout)


def test_the_affinity_mask():
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{one}]); from taskloom.system import cpu_count; print(cpu_count())"
    env = {k: v for k, v in os.environ.items() if k != "PYTHON_CPU_COUNT"}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout
    assert int(out) == 1


def test_what_the_interpreter_was_told():
    here = in_program()
    told = 7 if sys.version_info >= (3, 13) else here  # before, it knows nothing of it
    assert in_program(PYTHON_CPU_COUNT="7") == told
    assert in_program("-X", "cpu_count=7") == told
    assert in_program("-X", "cpu_count=7", PYTHON_CPU_COUNT="5") == told
    assert in_program("-X", "cpu_count=default", PYTHON_CPU_COUNT="5") == here
    assert in_program("-E", PYTHON_CPU_COUNT="7") == here


def test_thread_limits(monkeypatch):
    monkeypatch.setattr(system, "cpu_count", lambda: 8)
    for name in system._THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert set(thread_limits(2).values()) == {"4"}
    assert set(thread_limits(100).values()) == {"1"}
    assert set(thread_limits(0).values()) == {"8"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "OMP_NUM_THREADS" not in thread_limits(2)
    assert thread_limits(2)["MKL_NUM_THREADS"] == "4"
