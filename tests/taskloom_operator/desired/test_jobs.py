"""A job's life: its cluster, its program, how it ended, and what is left of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from taskloom_operator.actions import Apply, Create, Delete, Note, Patch, Plan
from taskloom_operator.desired import reconcile_job
from taskloom_operator.desired.times import stamp
from taskloom_operator.observe import ObservedJob, Settings

NS = "lab"


class Jobs:
    """A TaskJob, and what Kubernetes and the operator make of it, step by step."""

    def __init__(self, **spec: Any) -> None:
        self.now = 1_700_000_000.0
        self.job: dict[str, Any] | None = {
            "apiVersion": "taskloom.dev/v1alpha1",
            "kind": "TaskJob",
            "metadata": {"name": "one", "namespace": NS, "uid": "job-1", "generation": 1},
            "spec": {"cluster": {"workers": {"replicas": 2}}, "script": "print(1)", **spec},
        }
        self.cluster: dict[str, Any] | None = None
        self.batch: dict[str, Any] | None = None
        self.pods: list[dict[str, Any]] = []
        self.log = "first\nlast\n"
        self.asked: list[str] = []
        self.events: list[Note] = []

    def look(self, most: int | None = None) -> Plan:
        """The operator looks, and does so many of the actions that follow (None: all, and writes the status)."""
        assert self.job is not None
        seen = ObservedJob(self.job, Settings("taskloom:1"), self.cluster, self.batch, self.pods)
        plan = reconcile_job(copy.deepcopy(seen), self.now)
        if plan.tail:
            assert plan == Plan(tail=plan.tail)
            self.asked.append(plan.tail)
            plan = reconcile_job(replace(seen, tail=self.log), self.now)
        for action in plan.actions[:most]:
            self.act(action)
        if most is None:
            for written in plan.status:
                self.job["status"] = copy.deepcopy(dict(written.status))
        self.now += 1
        return plan

    def act(self, action: Any) -> None:
        if isinstance(action, Note):
            self.events.append(action)
        elif isinstance(action, Apply):
            assert action.manifest["kind"] == "TaskCluster"
            self.cluster = copy.deepcopy(dict(action.manifest))
            self.cluster["metadata"]["uid"] = "cluster-1"
        elif isinstance(action, Create):
            if self.batch is None:
                self.batch = copy.deepcopy(dict(action.manifest))
                self.batch["metadata"]["uid"] = "batch-1"
        elif isinstance(action, Patch):
            found = {"TaskCluster": self.cluster, "Job": self.batch}[action.kind]
            assert found is not None
            assert found["metadata"]["uid"] == action.patch["metadata"]["uid"]
            found["spec"].update(action.patch["spec"])
        elif isinstance(action, Delete):
            if action.kind == "TaskCluster":
                self.cluster = None
            elif action.kind == "Job":
                self.batch = None
            else:
                assert action.kind == "TaskJob"
                self.job = self.cluster = self.batch = None

    def scheduler(self, ready: bool = True, message: str = "") -> None:
        assert self.cluster is not None
        told = {"type": "SchedulerReady", "status": str(ready), "message": message}
        self.cluster["status"] = {"conditions": [told]}

    def started(self) -> None:
        """Up to where the program runs."""
        self.look()
        self.scheduler()
        self.look()
        self.pod("one-x")
        self.look()
        assert self.status["phase"] == "Running"

    def pod(self, name: str, code: int | None = None, reason: str = "Error") -> None:
        state = {"running": {}} if code is None else {"terminated": {"exitCode": code, "reason": reason}}
        owner = {"uid": "batch-1", "kind": "Job", "name": "one", "controller": True}
        self.pods.append(
            {
                "metadata": {
                    "name": name,
                    "namespace": NS,
                    "uid": name,
                    "creationTimestamp": stamp(self.now),
                    "ownerReferences": [owner],
                },
                "spec": {"containers": [{"name": "job", "image": "taskloom:1"}]},
                "status": {"containerStatuses": [{"name": "job", "state": state}]},
            }
        )

    def ends(self, kind: str, reason: str = "", message: str = "") -> None:
        assert self.batch is not None
        told = self.batch.setdefault("status", {}).setdefault("conditions", [])
        told.append({"type": kind, "status": "True", "reason": reason, "message": message})

    @property
    def status(self) -> dict[str, Any]:
        assert self.job is not None
        return self.job["status"]

    def condition(self, name: str) -> dict[str, Any]:
        return next(one for one in self.status["conditions"] if one["type"] == name)


def test_the_cluster_comes_first_and_the_program_when_the_scheduler_is_there():
    jobs = Jobs()
    jobs.look()
    assert jobs.cluster is not None
    assert jobs.cluster["metadata"]["name"] == jobs.status["cluster"] == "one-cluster"
    assert jobs.cluster["metadata"]["ownerReferences"][0]["uid"] == "job-1"
    assert jobs.cluster["spec"] == {"workers": {"replicas": 2}}
    assert jobs.status["phase"] == "Pending"
    jobs.scheduler(False, "no node has room")
    jobs.look()
    assert jobs.batch is None
    assert "no node has room" in jobs.condition("Complete")["message"]
    jobs.scheduler()
    jobs.look()
    assert jobs.batch is not None
    assert jobs.batch["metadata"]["name"] == "one"
    assert jobs.look().actions == ()
    assert jobs.status["phase"] == "Running"
    assert jobs.look() == Plan()  # nothing is new


@pytest.mark.parametrize(
    ("cleanup", "works", "kept"),
    [
        ("Always", True, False),
        ("Always", False, False),
        ("OnSuccess", True, False),
        ("OnSuccess", False, True),
        ("Never", True, True),
        ("Never", False, True),
    ],
)
def test_how_it_ended_is_written_and_then_the_cluster_goes_by_policy(cleanup, works, kept):
    jobs = Jobs(cleanup=cleanup)
    jobs.started()
    jobs.pods.clear()
    jobs.pod("one-x", 0 if works else 7, "Completed" if works else "Error")
    if works:
        jobs.ends("Complete")
    else:
        jobs.ends("FailureTarget", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        jobs.ends("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
    jobs.look()
    assert jobs.cluster is not None  # until it is written
    assert jobs.asked == ["one-x"]
    assert jobs.status["phase"] == ("Succeeded" if works else "Failed")
    assert jobs.status["exitCode"] == (0 if works else 7)
    assert jobs.status["lastLines"] == "first\nlast\n"
    assert jobs.status.get("reason") == (None if works else "BackoffLimitExceeded")
    assert jobs.condition("Complete")["status"] == str(works)
    assert jobs.condition("Failed")["status"] == str(not works)
    assert [note.reason for note in jobs.events] == ["Succeeded" if works else "Failed"]
    jobs.look()
    assert (jobs.cluster is not None) == kept
    assert jobs.look() == Plan()


def test_the_end_of_the_log_is_what_fits():
    jobs = Jobs()
    jobs.started()
    jobs.pods.clear()
    jobs.pod("one-x", 1)
    jobs.ends("Failed", "BackoffLimitExceeded")
    jobs.log = "ä" * 5000 + "end"
    jobs.look()
    assert jobs.status["lastLines"].endswith("ääend")
    assert 4000 < len(jobs.status["lastLines"].encode()) <= 4096


def test_of_several_tries_the_last_one_is_told():
    jobs = Jobs(backoffLimit=2)
    jobs.started()
    jobs.pods.clear()
    jobs.pod("one-a", 3)
    jobs.now += 10
    jobs.pod("one-b", 4)
    assert jobs.batch is not None
    assert jobs.batch["spec"]["backoffLimit"] == 2
    jobs.ends("Failed", "BackoffLimitExceeded")
    jobs.look()
    assert (jobs.asked, jobs.status["exitCode"]) == (["one-b"], 4)


def test_one_that_was_killed_for_its_memory_says_so():
    jobs = Jobs()
    jobs.started()
    jobs.pods.clear()
    jobs.pod("one-x", 137, "OOMKilled")
    jobs.ends("Failed", "BackoffLimitExceeded")
    jobs.look()
    assert (jobs.status["reason"], jobs.status["exitCode"]) == ("OOMKilled", 137)


def test_the_log_of_one_that_took_too_long_is_read_while_its_pod_is_there():
    jobs = Jobs(activeDeadlineSeconds=15)
    jobs.started()
    assert jobs.batch is not None
    assert jobs.batch["spec"]["activeDeadlineSeconds"] == 15
    jobs.ends("FailureTarget", "DeadlineExceeded", "Job was active longer than specified deadline")
    jobs.look()
    assert jobs.status["phase"] == "Running"
    jobs.pods.clear()
    jobs.ends("Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
    jobs.look()
    assert jobs.status["phase"] == "Failed"
    assert jobs.status["reason"] == "DeadlineExceeded"
    assert jobs.status["lastLines"] == "first\nlast\n"
    assert jobs.asked == ["one-x"]


def test_a_cluster_that_does_not_come_counts_for_the_deadline_too():
    jobs = Jobs(activeDeadlineSeconds=30)
    assert jobs.look().again == 30
    jobs.scheduler(False, "the image nothing:none cannot be had")
    jobs.now += 40
    jobs.look()
    assert (jobs.status["phase"], jobs.status["reason"]) == ("Failed", "DeadlineExceeded")
    assert "nothing:none" in jobs.condition("Failed")["message"]
    jobs.look()
    assert jobs.cluster is None


def test_suspended_from_the_start_there_is_nothing_and_then_all():
    jobs = Jobs(suspend=True)
    plan = jobs.look()
    assert plan.actions == ()
    assert jobs.cluster is None
    assert jobs.condition("Suspended")["status"] == "True"
    assert "startTime" not in jobs.status
    assert jobs.job is not None
    jobs.job["spec"]["suspend"] = False
    jobs.started()
    assert jobs.condition("Suspended")["status"] == "False"
    assert jobs.status["startTime"]


def test_suspended_in_the_midst_both_stop_and_go_on_later():
    jobs = Jobs()
    jobs.started()
    assert jobs.job is not None
    assert jobs.batch is not None
    assert jobs.cluster is not None
    jobs.job["spec"]["suspend"] = True
    jobs.look()
    assert (jobs.batch["spec"]["suspend"], jobs.cluster["spec"]["suspend"]) == (True, True)
    assert jobs.status["phase"] == "Suspended"
    assert jobs.look() == Plan()
    jobs.job["spec"]["suspend"] = False
    jobs.look()
    assert (jobs.batch["spec"]["suspend"], jobs.cluster["spec"]["suspend"]) == (False, False)
    assert jobs.status["phase"] == "Running"


def test_a_program_that_has_run_is_not_run_again():
    jobs = Jobs()
    jobs.started()
    jobs.batch = None  # somebody has deleted it
    jobs.pods.clear()
    jobs.look()
    assert (jobs.status["phase"], jobs.status["reason"]) == ("Failed", "JobGone")
    jobs.look()
    jobs.look()
    assert jobs.batch is None


def test_an_operator_killed_between_any_two_actions_makes_one_job():
    for most in (0, 1):
        jobs = Jobs()
        jobs.look(most)
        jobs.look()
        jobs.scheduler()
        jobs.look(most)
        jobs.look()
        jobs.look()
        assert jobs.status["phase"] == "Running"


def test_it_is_deleted_some_time_after_its_end():
    jobs = Jobs(ttlSecondsAfterFinished=60, cleanup="Never")
    jobs.started()
    jobs.pods.clear()
    jobs.pod("one-x", 0)
    jobs.ends("Complete")
    jobs.look()
    plan = jobs.look()
    assert plan.again == pytest.approx(59)
    assert jobs.job is not None
    jobs.now += 60
    jobs.look()
    assert jobs.job is None


def test_one_that_is_being_deleted_is_let_go():
    jobs = Jobs()
    assert jobs.job is not None
    jobs.job["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert jobs.look() == Plan()


def test_what_an_earlier_job_has_left_is_waited_for():
    jobs = Jobs()
    owner = {"kind": "TaskJob", "name": "one", "uid": "job-0", "controller": True}
    left = {
        "kind": "Job",
        "metadata": {"name": "one", "namespace": NS, "uid": "b", "ownerReferences": [owner]},
        "spec": {},
    }
    jobs.batch = left
    plan = jobs.look()
    assert plan.actions == ()
    assert "earlier TaskJob" in jobs.condition("Complete")["message"]
    jobs.batch = None
    jobs.started()


def test_what_somebody_else_has_made_is_told():
    jobs = Jobs()
    jobs.batch = {"kind": "Job", "metadata": {"name": "one", "namespace": NS, "uid": "b"}, "spec": {}}
    assert jobs.look().actions == ()
    assert "does not belong to this TaskJob" in jobs.condition("Complete")["message"]


def test_a_cluster_that_finished_before_the_program_began_is_a_failure():
    jobs = Jobs()
    jobs.look()
    assert jobs.cluster is not None
    jobs.cluster["status"] = {"phase": "Finished"}
    jobs.look()
    assert (jobs.status["phase"], jobs.status["reason"]) == ("Failed", "ClusterFinished")


def test_a_job_that_cannot_be_meant_so_waits_until_it_is_put_right():
    jobs = Jobs(backoffLimit=-1)
    assert jobs.look().actions == ()
    assert "spec.backoffLimit" in jobs.condition("Complete")["message"]
    assert jobs.look() == Plan()
    assert jobs.job is not None
    jobs.job["spec"]["backoffLimit"] = 0
    jobs.started()
