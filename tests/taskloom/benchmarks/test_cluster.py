"""The benchmarks of the cluster: that they run, that what they find wrong is said, and what the tables say of it."""

from __future__ import annotations

import json

import pytest
from benchmarks import __main__ as command
from benchmarks import measures
from benchmarks.measures import Measured, list_scheduling
from benchmarks.report import report
from benchmarks.runner import Cell
from benchmarks.systems import SYSTEMS, NotForThis, System
from benchmarks.workloads import CLUSTER, LOCAL, WORKLOADS


@pytest.mark.parametrize("name", ["simulated", "busy-worker", "between-workers"])
def test_a_measurement_runs_in_a_process_of_its_own(name):
    rows = measures.measure(name, quick=True, limit=100.0)
    assert rows
    for row in rows:
        assert row.right, row.note
        assert row.value is not None, row.note
        assert row.value > 0
    json.dumps([vars(row) for row in rows])


def test_a_measurement_that_fails_says_why(monkeypatch):
    monkeypatch.setitem(measures.TITLES, "no-such", "nothing")
    [row] = measures.measure("no-such", quick=True, limit=60.0)
    assert not row.right
    assert row.value is None
    assert "invalid choice" in row.note


@pytest.mark.parametrize(
    ("seconds", "machines", "end"),
    [([], 3, 0.0), ([3, 1, 1, 1], 2, 3), ([1, 1, 1, 3], 2, 4), ([2, 2, 2], 3, 2), ([1] * 10, 4, 3)],
)
def test_list_scheduling(seconds, machines, end):
    assert list_scheduling(seconds, machines) == end


def test_workloads_of_the_cluster_are_right_in_a_plain_loop():
    for name in CLUSTER:
        workload = WORKLOADS[name](True)
        value = workload.plain()
        assert workload.check(value)
        if name != "round-trip":
            assert not workload.check(value[:-1] if isinstance(value, list) else value + 1)


def test_each_workload_is_in_a_table():
    assert set(WORKLOADS) == {*CLUSTER, *LOCAL}
    for system in SYSTEMS.values():
        assert set(system.groups) <= {"local", "cluster"}
        assert not system.peer or system.peer in SYSTEMS


def test_a_system_that_only_maps_does_no_futures_and_no_trips():
    for name in ("futures", "round-trip"):
        with pytest.raises(NotForThis):
            System(1).run(WORKLOADS[name](True))


def test_tables_say_what_was_reached():
    cells = [
        Cell("taskloom-cluster", "noops", tasks=10_000, seconds=[0.06, 0.04]),
        Cell("distributed", "noops", tasks=10_000, seconds=[20.0]),
        Cell("ray", "noops", note="not installed: no version for this Python and system"),
        Cell("taskloom-cluster", "futures", tasks=10_000, seconds=[0.2]),
        Cell("distributed", "futures", tasks=10_000, note="the process ended with SIGKILL"),
        Cell("ray", "futures"),
        Cell("taskloom-cluster", "tree", tasks=10, seconds=[0.2], right=False, note="wrong result"),
        Cell("distributed", "tree"),
        Cell("ray", "tree"),
    ]
    measured = [
        Measured("quick", 0.1, "s", 0.2, peers={"ray": 4.0}),
        Measured("slow", 0.3, "s", 0.2),
        Measured("enough", 0.97, "x", 0.95, at_least=True),
        Measured("wrong", 0.97, "x", 0.95, at_least=True, right=False),
        Measured("shown only", 7.0, "us a task", note="by the way"),
        Measured("broken", None, "", note="it broke", right=False),
    ]
    about = {"workers": 2, "quick": False, "date": "2026-01-01", "versions": {}, "took": 1.0}
    text = report([], [], cells, measured, **about)
    rows = {
        columns[1]: columns[2:-1]
        for line in text.splitlines()
        if line.startswith("| ") and len(columns := [part.strip() for part in line.split("|")]) == 8
    }
    assert rows["10,000 no-ops by get"] == ["4.00 us", "<= 5 us", "2,000 us (500 x)", "-", "yes"]
    assert rows["10,000 futures by map, gathered"] == ["20.0 us", "<= 10 us", "-", "-", "NO"]
    assert rows["tree"][0] == "wrong result"
    assert rows["tree"][-1] == "NO"
    assert rows["quick"] == ["100 ms", "<= 200 ms", "-", "4.00 s (40.0 x)", "yes"]
    assert [rows[what][-1] for what in ("slow", "enough", "wrong", "broken")] == ["NO", "yes", "NO", "NO"]
    assert "shown only" not in rows
    assert "by the way" in text
    assert "not installed: no version" in text


def test_an_unknown_name_is_said():
    for arguments in (["--systems", "no-such"], ["cluster", "--measures", "no-such"], ["cluster", "--workloads", "x"]):
        with pytest.raises(SystemExit, match="there is no"):
            command.main(arguments)
