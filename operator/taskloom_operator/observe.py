"""What is seen of a cluster or a job, as values: objects of Kubernetes as their JSON has them, and what the scheduler says.

Nothing here asks anybody. :meth:`SchedulerView.of` reads the answers of the scheduler's HTTP interface, see docs/http.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskloom_operator.actions import Ask, Manifest

__all__ = [
    "Observed",
    "ObservedJob",
    "Refused",
    "RetirementView",
    "SchedulerView",
    "Settings",
    "SpareView",
    "UnmetView",
    "WishView",
    "WorkerView",
]


@dataclass(frozen=True, slots=True)
class Settings:
    """What whoever runs the operator has chosen.

    Attributes:
        image: what clusters run that do not say.
        image_pull_policy: and how it comes to the node.
        image_pull_secrets: names of Secrets, for those that do not say.
        operator_namespace: from where schedulers are asked, for the NetworkPolicy; "": from anywhere.
        network_policy: whether clusters get one.
    """

    image: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    operator_namespace: str = ""
    network_policy: bool = True


@dataclass(frozen=True, slots=True)
class UnmetView:
    """Tasks that no worker here may run.

    Attributes:
        workers: names of those that may; empty: all that have the resources.
        resources: name -> amount that one takes.
        wanted: how many workers that have this could be used.
    """

    workers: tuple[str, ...]
    resources: Mapping[str, float]
    wanted: int


@dataclass(frozen=True, slots=True)
class SpareView:
    """A worker that could go, as the wish names it."""

    worker: str
    pod_uid: str
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class WishView:
    """How many workers the cluster could use."""

    workers: int
    why: str
    unmet: tuple[UnmetView, ...] = ()
    spare: tuple[SpareView, ...] = ()
    settled: bool = True


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker that the scheduler knows.

    Attributes:
        state: "running", "paused", "retiring" or "retired".
        values, nbytes: what it holds.
        idle_seconds: since it last had something to do; None: it has.
    """

    worker: str
    pod_uid: str
    state: str = "running"
    values: int = 0
    nbytes: int = 0
    idle_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RetirementView:
    """A worker that is to go, or has gone.

    Attributes:
        state: "moving", "ready" (it was told that it may go) or "gone".
        values: that are not elsewhere yet.
        was_ready: of one that is gone: whether it had been told.
        ended: of one that is gone: when, in seconds since 1970.
    """

    worker: str
    pod_uid: str
    state: str = "moving"
    values: int = 0
    was_ready: bool = True
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class SchedulerView:
    """What the scheduler has said; None stands for what it was not asked.

    Attributes:
        reachable: whether it has answered all that it was asked.
        error: why not, in words.
        workers: by the uid of their pods.
        retirements: likewise; of several for one pod the one that goes on, else the last.
        clients: how many there are, with those that may come back.
        tasks: how many are neither done nor have failed.
        settled: whether all are here that were here before it was started anew.
    """

    reachable: bool
    error: str = ""
    wish: WishView | None = None
    workers: Mapping[str, WorkerView] | None = None
    retirements: Mapping[str, RetirementView] | None = None
    clients: int | None = None
    tasks: int | None = None
    settled: bool | None = None

    def lacks(self, ask: Ask) -> Ask:
        """What of this it has not said. One that cannot be reached lacks nothing: it will not say more.

        >>> SchedulerView(True, workers={}).lacks(Ask.WORKERS | Ask.WISH)
        <Ask.WISH: 1>
        """
        if not self.reachable:
            return Ask.NOTHING
        for part, known in (
            (Ask.WISH, self.wish),
            (Ask.WORKERS, self.workers),
            (Ask.RETIREMENTS, self.retirements),
            (Ask.INFO, self.clients),
        ):
            if known is not None:
                ask &= ~part
        return ask

    @classmethod
    def of(
        cls,
        *,
        wish: Mapping[str, Any] | None = None,
        workers: Mapping[str, Any] | None = None,
        retirements: Mapping[str, Any] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> SchedulerView:
        """From the answers, each as its JSON is.

        Args:
            wish: of ``/api/v1/wish``; the others likewise. None: it was not asked.

        >>> SchedulerView.of(wish={"workers": 2, "why": "work", "unmet": [], "spare": [], "settled": True}).wish.workers
        2
        """
        found_settled: bool | None = None
        found_wish: WishView | None = None
        found_workers: dict[str, WorkerView] | None = None
        found_retirements: dict[str, RetirementView] | None = None
        clients: int | None = None
        tasks: int | None = None
        if wish is not None:
            found_settled = bool(wish.get("settled", True))
            found_wish = WishView(
                int(wish["workers"]),
                str(wish["why"]),
                tuple(
                    UnmetView(tuple(need["workers"]), dict(need["resources"]), int(need["wanted"]))
                    for need in wish.get("unmet", ())
                ),
                tuple(
                    SpareView(one["name"], one.get("pod_uid") or "", float(one["idle_seconds"]))
                    for one in wish.get("spare", ())
                ),
                found_settled,
            )
        if workers is not None:
            found_workers = {}
            for one in workers["workers"]:
                if one.get("pod_uid"):
                    found_workers[one["pod_uid"]] = WorkerView(
                        one["name"],
                        one["pod_uid"],
                        one["state"],
                        int(one["values"]),
                        int(one["nbytes"]),
                        one["idle_seconds"],
                    )
        if retirements is not None:
            found_retirements = {}
            for one in retirements["retirements"]:
                uid = one.get("pod_uid")
                known = found_retirements.get(uid)
                if uid and (known is None or known.state == "gone"):
                    found_retirements[uid] = RetirementView(
                        one["worker"], uid, one["state"], int(one["values"]), one.get("was_ready", True), one["ended"]
                    )
        if info is not None:
            found_settled = bool(info["settled"]) and found_settled is not False
            clients = int(info["clients"]["connected"]) + int(info["clients"]["away"])
            tasks = sum(count for state, count in info["tasks"].items() if state not in ("done", "erred"))
        return cls(True, "", found_wish, found_workers, found_retirements, clients, tasks, found_settled)


@dataclass(frozen=True, slots=True)
class Refused:
    """The API server does not let pods of a group be made.

    Attributes:
        message: what it says, as "pods "demo-worker-x" is forbidden: exceeded quota: ...".
        at: when it has said so last, in seconds since 1970.
        count: how often in a row. A Create that succeeds ends the row.
    """

    message: str
    at: float
    count: int = 1


@dataclass(frozen=True, slots=True)
class Observed:
    """A cluster as it is seen.

    Attributes:
        cluster: the TaskCluster; None: there is none.
        groups: TaskWorkerGroups of its namespace that name it.
        pods: of its scheduler and its workers: all that have its label.
        deployment, service, network_policy: of the names that belong to it; None: there is none.
        secret: likewise; what is needed is its metadata.
        scheduler: what it has said; None: it was not asked.
        expected: pods that were created and have not been seen, as the API server has answered (or, where it said that they
            are there already, as they were to be created: without a uid).
        deleted: uids of pods that were deleted, which has not been seen.
        refused: group -> why its pods cannot be made. The cluster's own workers are the group "default".
    """

    namespace: str
    name: str
    settings: Settings
    cluster: Manifest | None = None
    groups: Sequence[Manifest] = ()
    pods: Sequence[Manifest] = ()
    deployment: Manifest | None = None
    service: Manifest | None = None
    secret: Manifest | None = None
    network_policy: Manifest | None = None
    scheduler: SchedulerView | None = None
    expected: Sequence[Manifest] = ()
    deleted: frozenset[str] = frozenset()
    refused: Mapping[str, Refused] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ObservedJob:
    """A TaskJob as it is seen.

    Attributes:
        job: the TaskJob.
        cluster: the TaskCluster that is made for it; None: there is none.
        batch: the batch/v1 Job of its name; None: there is none.
        pods: of that.
        tail: the last lines that its pod has written; None: was not looked for; "": there are none, or they cannot be had.
    """

    job: Manifest
    settings: Settings
    cluster: Manifest | None = None
    batch: Manifest | None = None
    pods: Sequence[Manifest] = ()
    tail: str | None = None
