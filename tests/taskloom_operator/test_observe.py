"""What a scheduler says is read as it says it: by asking a real one."""

from __future__ import annotations

import json
import time
import urllib.request

import pytest

from taskloom import Client, LocalCluster
from taskloom_operator.actions import Ask
from taskloom_operator.observe import RetirementView, SchedulerView


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("TASKLOOM_POD_UID", "uid-1")
    with LocalCluster(n_workers=1, threads_per_worker=1, http_port=0, wait=True) as made:
        yield made


def ask(cluster, path, **body):
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(cluster.http_address + "/api/v1/" + path, data)
    request.add_header("Authorization", f"Bearer {cluster.token}")
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def view(cluster):
    return SchedulerView.of(
        wish=ask(cluster, "wish"),
        workers=ask(cluster, "workers"),
        retirements=ask(cluster, "retirements"),
        info=ask(cluster, "info"),
    )


def until(cluster, condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while True:
        found = view(cluster)
        if condition(found):
            return found
        assert time.monotonic() < deadline, found


def test_what_a_scheduler_says(cluster):
    idle = until(cluster, lambda found: found.settled)
    assert idle.lacks(Ask.WISH | Ask.WORKERS | Ask.RETIREMENTS | Ask.INFO) == Ask.NOTHING
    assert (idle.wish.workers, idle.wish.why, idle.clients, idle.tasks) == (0, "nothing", 0, 0)
    assert [one.pod_uid for one in idle.wish.spare] == ["uid-1"]
    worker = idle.workers["uid-1"]
    assert (worker.state, worker.values) == ("running", 0)
    assert worker.idle_seconds >= 0
    assert idle.retirements == {}
    with Client(cluster) as client:
        kept = client.submit(pow, 2, 5)
        assert kept.result() == 32
        waits = client.submit(abs, -1, resources={"gpu": 2})
        busy = until(cluster, lambda found: found.wish.unmet)
        assert busy.clients == 1
        assert busy.tasks == 1
        assert busy.wish.why == "memory"
        (need,) = busy.wish.unmet
        assert (need.workers, need.resources, need.wanted) == ((), {"gpu": 2.0}, 1)
        assert busy.workers["uid-1"].values == 1
        ask(cluster, "retire", pod_uids=["uid-1"])
        going = until(cluster, lambda found: found.retirements)
        assert going.retirements["uid-1"] == RetirementView(going.workers["uid-1"].worker, "uid-1", "moving", 1)
        assert going.workers["uid-1"].state == "retiring"
        del kept, waits
        gone = until(cluster, lambda found: not found.workers)
        assert gone.retirements["uid-1"].state == "gone"
        assert gone.retirements["uid-1"].was_ready
        assert gone.retirements["uid-1"].ended == pytest.approx(time.time(), abs=60)


def test_of_two_retirements_for_one_pod_the_one_that_goes_on_counts():
    def one(state, **more):
        return {"worker": "a", "pod_uid": "u", "state": state, "values": 0, "ended": None, **more}

    for told in (
        [one("moving"), one("gone", was_ready=False)],
        [one("gone", was_ready=False), one("moving")],
    ):
        assert SchedulerView.of(retirements={"retirements": told}).retirements["u"].state == "moving"


def test_workers_that_are_in_no_pod_are_left_out():
    worker = {"name": "a", "state": "running", "values": 0, "nbytes": 0, "idle_seconds": None, "connected": False}
    assert SchedulerView.of(workers={"workers": [worker]}).workers == {}


def test_who_cannot_be_reached_lacks_nothing():
    assert SchedulerView(False, "no route").lacks(Ask.WISH | Ask.INFO) == Ask.NOTHING
    assert SchedulerView(True).lacks(Ask.WISH | Ask.INFO) == Ask.WISH | Ask.INFO
