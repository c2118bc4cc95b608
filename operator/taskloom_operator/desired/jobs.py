"""A TaskJob: its TaskCluster, the Job of Kubernetes that runs the program, and what has come of it.

Rules:

- The TaskCluster comes first, the Job when the scheduler takes connections. A Job is made once: one that has been seen and is
  gone is not made again, as the program may have done things.
- How it ended is written before anything is taken away.
- Suspended, there is neither a pod of the program nor one of the cluster; before its first start, not even a TaskCluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskloom_operator.actions import Action, Apply, Create, Delete, Manifest, Note, Patch, Plan, WriteStatus
from taskloom_operator.desired.conditions import Condition, conditions, invalid, is_true, of
from taskloom_operator.desired.pods import controlled, controller, told, trouble
from taskloom_operator.desired.times import seconds, stamp
from taskloom_operator.manifests import batch_job, naming, task_cluster
from taskloom_operator.observe import ObservedJob
from taskloom_operator.spec.models import TaskJob

__all__ = ["reconcile_job"]

EARLIER = 1.0  # seconds after which to look whether what an earlier job of this name has left is gone
LAST_LINES = 4096  # bytes


def reconcile_job(observed: ObservedJob, now: float) -> Plan:
    """What is to be done about a job.

    Args:
        observed: what is seen of it.
        now: seconds since 1970.

    >>> from taskloom_operator.observe import Settings
    >>> job = {"apiVersion": "taskloom.dev/v1alpha1", "kind": "TaskJob", "spec": {"cluster": {}, "script": "print(1)"}}
    >>> job["metadata"] = {"name": "one", "namespace": "lab", "uid": "1", "generation": 1}
    >>> plan = reconcile_job(ObservedJob(job, Settings("taskloom:1")), 1_700_000_000.0)
    >>> [action.manifest["metadata"]["name"] for action in plan.actions], plan.status[0].status["phase"]
    (['one-cluster'], 'Pending')
    """
    if observed.job["metadata"].get("deletionTimestamp"):
        return Plan()  # all that there is, is its own: Kubernetes takes it away
    return _Job(observed, now).plan()


def _cut(text: str) -> str:
    """Its end, as many bytes as a status may have of it."""
    data = text.encode()
    return text if len(data) <= LAST_LINES else data[-LAST_LINES:].decode(errors="ignore")


class _Job:
    def __init__(self, observed: ObservedJob, now: float) -> None:
        self.seen = observed
        self.now = now
        self.job = observed.job
        self.metadata = self.job["metadata"]
        self.spec: Mapping[str, Any] = self.job["spec"]
        self.before: Mapping[str, Any] = self.job.get("status") or {}
        self.actions: list[Action] = []
        self.again: float | None = None
        self.tail = ""
        self.status: dict[str, Any] = {
            "cluster": naming.cluster_name(self.metadata["name"]),
            **{
                key: self.before[key]
                for key in ("startTime", "completionTime", "exitCode", "reason", "lastLines")
                if self.before.get(key) is not None
            },
        }
        self.why = Condition("Complete", False, "Pending", "")

    def soon(self, after: float) -> None:
        after = max(0.1, after)
        self.again = after if self.again is None else min(self.again, after)

    def plan(self) -> Plan:
        if self.before.get("phase") in ("Succeeded", "Failed"):
            return self._over()
        words = invalid(self.job, TaskJob)
        if words:
            return self._written("Pending", words, "InvalidSpec")
        others = self._others()
        if others:
            self.soon(EARLIER)
            return self._written("Pending", others)
        batch = self.seen.batch
        if batch is None and self.before.get("phase") == "Running":
            return self._end("Failed", "JobGone", "the Job that ran the program was deleted, and it is not run again")
        if batch is not None:
            ended = self._ended(batch)
            if ended is not None:
                return ended
        if self.spec.get("suspend"):
            return self._suspended()
        return self._running()

    def _others(self) -> str:
        """Whether something of our names is not ours."""
        for found, kind in ((self.seen.batch, "Job"), (self.seen.cluster, "TaskCluster")):
            if found is not None and controller(found).get("uid") != self.metadata["uid"]:
                name, owner = found["metadata"]["name"], controller(found)
                if owner.get("kind") == "TaskJob":
                    return f"the {kind} {name} of an earlier TaskJob is still being removed"
                return (
                    f"there is a {kind} {name} that does not belong to this TaskJob, and that name is needed: delete it, or "
                    "give the TaskJob another name"
                )
        return ""

    # --- to run, and not to

    def _suspended(self) -> Plan:
        self.status.pop("startTime", None)  # a deadline begins anew
        self._suspend(True)
        return self._written("Suspended", "the job is suspended: no pods run")

    def _suspend(self, wanted: bool) -> None:
        """Have the Job and the cluster suspended, or not."""
        for found, kind in ((self.seen.batch, "Job"), (self.seen.cluster, "TaskCluster")):
            if found is not None and bool(found["spec"].get("suspend")) != wanted:
                metadata = found["metadata"]
                patch = {"metadata": {"uid": metadata["uid"]}, "spec": {"suspend": wanted}}
                self.actions.append(Patch(kind, metadata["namespace"], metadata["name"], patch))

    def _running(self) -> Plan:
        seen = self.seen
        self.status.setdefault("startTime", stamp(self.now))
        if seen.cluster is None:
            self.actions.append(Apply(task_cluster(self.job)))
        if seen.batch is None:
            late = self._late()
            if late is not None:
                return late
            if (seen.cluster or {}).get("status", {}).get("phase") == "Finished":
                return self._end("Failed", "ClusterFinished", "the cluster had finished before the program began")
            self._suspend(False)
            if not is_true(seen.cluster, "SchedulerReady") or (seen.cluster or {})["spec"].get("suspend"):
                words = of(seen.cluster, "SchedulerReady").get("message") or "the cluster is made"
                return self._written("Pending", f"the program waits for its cluster: {words}")
            self.actions.append(Create(batch_job(self.job, seen.settings, seen.settings.image)))
            return self._written("Pending", "the program is about to start")
        self._suspend(False)
        status = seen.batch.get("status") or {}
        reason, words = told([trouble(pod) for pod in self._pods()], "pod")
        failed = int(status.get("failed") or 0)
        if not words and failed:
            words = f"it has failed {failed} times and is tried again"
        return self._written("Running", words or "the program runs", reason)

    def _late(self) -> Plan | None:
        """A job whose cluster has not come in the time that it has."""
        limit, since = self.spec.get("activeDeadlineSeconds"), seconds(self.status["startTime"])
        if limit is None or since is None:
            return None
        if since + limit > self.now:
            self.soon(since + limit - self.now)
            return None
        words = (
            f"its cluster has not come within {limit} s: {of(self.seen.cluster, 'SchedulerReady').get('message') or ''}"
        )
        return self._end("Failed", "DeadlineExceeded", words.rstrip(": "))

    # --- how it ended

    def _pods(self) -> list[Manifest]:
        batch = self.seen.batch
        return [] if batch is None else controlled(self.seen.pods, batch["metadata"]["uid"])

    def _newest(self) -> Manifest | None:
        pods = self._pods()
        return max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), default=None)

    def _ended(self, batch: Manifest) -> Plan | None:
        """The outcome; None: there is none yet."""
        true = {
            one["type"]: one
            for one in (batch.get("status") or {}).get("conditions") or ()
            if one.get("status") == "True"
        }
        failed = true.get("Failed") or true.get("FailureTarget")
        over = failed or true.get("Complete")
        if over is None:
            return None
        pod = self._newest()
        if pod is not None:
            for one in (pod.get("status") or {}).get("containerStatuses") or ():
                ended = (one.get("state") or {}).get("terminated")
                if one.get("name") == "job" and ended:
                    self.status["exitCode"] = ended.get("exitCode")
                    if ended.get("reason") == "OOMKilled":
                        self.status["reason"] = "OOMKilled"
            if "lastLines" not in self.status:
                if self.seen.tail is None:
                    # while the pod is there: a Job that has taken too long deletes its pods
                    return Plan(tail=pod["metadata"]["name"])
                self.status["lastLines"] = _cut(self.seen.tail)
        if "Failed" not in true and "Complete" not in true:
            # the pods have not all ended; what is known is kept
            return self._written("Running", str(failed and failed.get("message")), str(failed and failed.get("reason")))
        if failed:
            reason = str(failed.get("reason") or "Failed")
            if self.status.get("reason") != "OOMKilled" or reason == "DeadlineExceeded":
                self.status["reason"] = reason
            return self._end("Failed", self.status["reason"], str(failed.get("message") or "the program has failed"))
        self.status["exitCode"] = 0
        return self._end("Succeeded", "Completed", "the program has ended well")

    def _end(self, phase: str, reason: str, message: str) -> Plan:
        self.status["completionTime"] = stamp(self.now)
        if phase == "Failed":
            self.status["reason"] = reason
        self.actions.clear()
        self.soon(0.1)  # to clean up, if nothing else is heard of it before
        plan = self._written(phase, message, reason)
        kind = "Normal" if phase == "Succeeded" else "Warning"
        return Plan((Note(self.job, kind, phase, message),), plan.status, again=self.again)

    def _over(self) -> Plan:
        """What is left to do after the end."""
        policy = self.spec.get("cleanup") or "Always"
        cluster, ttl = self.seen.cluster, self.spec.get("ttlSecondsAfterFinished")
        if ttl is not None:
            left = (seconds(self.before.get("completionTime")) or 0.0) + ttl - self.now
            if left <= 0:
                metadata = self.metadata
                return Plan((Delete("TaskJob", metadata["namespace"], metadata["name"], metadata["uid"]),))
            self.soon(left)
        wanted = policy == "Always" or (policy == "OnSuccess" and self.before["phase"] == "Succeeded")
        if wanted and cluster is not None and controller(cluster).get("uid") == self.metadata["uid"]:
            metadata = cluster["metadata"]
            if not metadata.get("deletionTimestamp"):
                self.actions.append(Delete("TaskCluster", metadata["namespace"], metadata["name"], metadata["uid"]))
        if self.seen.batch is not None and self.before.get("reason") in ("ClusterFinished", "DeadlineExceeded"):
            metadata = self.seen.batch["metadata"]  # one that was made in the last moment
            finished = {"Complete", "Failed"} & {
                one["type"]
                for one in (self.seen.batch.get("status") or {}).get("conditions") or ()
                if one.get("status") == "True"
            }
            if not finished and not metadata.get("deletionTimestamp"):
                self.actions.append(Delete("Job", metadata["namespace"], metadata["name"], metadata["uid"]))
        return Plan(tuple(self.actions), again=self.again)

    # --- what is told

    def _written(self, phase: str, message: str, reason: str = "") -> Plan:
        told = [
            Condition("Complete", phase == "Succeeded", reason or phase, message),
            Condition("Failed", phase == "Failed", (reason if phase == "Failed" else "") or phase, message),
            Condition("Suspended", phase == "Suspended", phase, message),
        ]
        status = {
            **self.status,
            "phase": phase,
            "conditions": conditions(self.job, told, self.now),
            "observedGeneration": self.metadata.get("generation", 0),
        }
        written: tuple[WriteStatus, ...] = ()
        if status != dict(self.before):
            metadata = self.metadata
            written = (WriteStatus("TaskJob", metadata["namespace"], metadata["name"], metadata["uid"], status),)
        return Plan(tuple(self.actions), written, tail=self.tail, again=self.again)
