"""A TaskCluster and its TaskWorkerGroups: what is to be done, and what their status says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from taskloom_operator import names
from taskloom_operator.actions import (
    Action,
    Apply,
    Ask,
    Create,
    Delete,
    MakeSecret,
    Manifest,
    Note,
    Patch,
    Plan,
    Retire,
    RotateToken,
    Stay,
    WriteStatus,
)
from taskloom_operator.desired import autoscale
from taskloom_operator.desired.conditions import Condition, conditions, invalid, of
from taskloom_operator.desired.pods import Pod, Trouble, controlled, controller, read, told, trouble
from taskloom_operator.desired.times import seconds, stamp
from taskloom_operator.desired.workers import LOOK, Change, Group, Limits, decide
from taskloom_operator.manifests import (
    deployment,
    named,
    naming,
    network_policy,
    secret,
    service,
    worker_hash,
    worker_pod,
)
from taskloom_operator.manifests.hashes import scheduler_hash
from taskloom_operator.manifests.workers import threads
from taskloom_operator.observe import Observed, SchedulerView, WishView
from taskloom_operator.spec.models import TaskCluster, TaskWorkerGroup

__all__ = ["reconcile"]

GRACE = 10  # seconds that pods have to end when all of them end: there is nobody to move values to
EARLIER = 1.0  # seconds after which to look whether what an earlier cluster of this name has left is gone
SURE = 20.0  # seconds without a scheduler after which what pods say of themselves is what is so
SETTLED = "Settled"


def reconcile(observed: Observed, now: float) -> Plan:
    """What is to be done about a cluster.

    Args:
        observed: what is seen of it.
        now: seconds since 1970.

    >>> from taskloom_operator.observe import Settings
    >>> metadata = {"name": "demo", "namespace": "lab", "uid": "1", "generation": 1}
    >>> cluster = {"apiVersion": "taskloom.dev/v1alpha1", "kind": "TaskCluster", "metadata": metadata}
    >>> cluster["spec"] = {"workers": {"replicas": 2}}
    >>> plan = reconcile(Observed("lab", "demo", Settings("taskloom:1"), cluster=cluster), 1_700_000_000.0)
    >>> [type(action).__name__ for action in plan.actions]
    ['MakeSecret', 'Apply', 'Apply', 'Apply']
    >>> plan.status[0].status["phase"], plan.status[0].status["desiredReplicas"]
    ('Pending', 2)
    """
    if observed.cluster is None:
        return _without_cluster(observed, now)
    if observed.cluster["metadata"].get("deletionTimestamp"):
        return Plan()  # all that there is, is its own: Kubernetes takes it away
    words = invalid(observed.cluster, TaskCluster)
    if words:
        return Plan(status=_status(observed.cluster, _failed(observed.cluster, words, now)))
    return _Cluster(observed, now).plan()


def _failed(cluster: Manifest, words: str, now: float) -> dict[str, Any]:
    """The status of a cluster whose spec cannot be meant so: what it was, and why nothing is done. What runs is left alone."""
    kinds = ("Ready", "SchedulerReady", "WorkersReady", "Progressing")
    told = [Condition(kind, False, "InvalidSpec", words) for kind in kinds]
    return {
        **(cluster.get("status") or {}),
        "phase": "Failed",
        "conditions": conditions(cluster, told, now),
    }


def _status(resource: Manifest, status: dict[str, Any]) -> tuple[WriteStatus, ...]:
    """What to write; nothing where it is so already."""
    status = {key: value for key, value in status.items() if value is not None}
    status["observedGeneration"] = resource["metadata"].get("generation", 0)
    if status == (resource.get("status") or {}):
        return ()
    metadata = resource["metadata"]
    return (WriteStatus(resource["kind"], metadata["namespace"], metadata["name"], metadata["uid"], status),)


def _selector(cluster: str, group: str) -> str:
    labels = {names.CLUSTER: cluster, names.COMPONENT: naming.WORKER, names.GROUP_LABEL: group}
    return ",".join([f"{key}={value}" for key, value in labels.items()])


def _without_cluster(observed: Observed, now: float) -> Plan:
    """Groups whose cluster is not there. Their pods, if there are any, are not touched: it may only be late."""
    written: list[WriteStatus] = []
    for group in observed.groups:
        if group["metadata"].get("deletionTimestamp"):
            continue
        words = f"there is no TaskCluster {observed.name} in the namespace {observed.namespace}"
        pods = [read(pod, observed.deleted) for pod in controlled(observed.pods, group["metadata"]["uid"])]
        there = [pod for pod in pods if not pod.going and not pod.ended]
        written += _status(
            group,
            {
                "replicas": len(there),
                "readyReplicas": sum(pod.ready for pod in there),
                "desiredReplicas": 0,
                "selector": _selector(observed.name, group["metadata"]["name"]),
                "conditions": conditions(group, [Condition("Ready", False, "NoCluster", words)], now),
            },
        )
    return Plan(status=tuple(written))


@dataclass(slots=True)
class _Workers:
    """A group: the cluster's own workers, or a TaskWorkerGroup."""

    name: str
    resource: Manifest
    spec: Mapping[str, Any]
    pods: list[Pod]
    wanted: int = 0
    limits: Limits = field(default_factory=lambda: Limits(0, 0))
    change: Change = field(default_factory=Change)

    @property
    def status(self) -> Mapping[str, Any]:
        return self.resource.get("status") or {}

    @property
    def autoscale(self) -> Mapping[str, Any] | None:
        return self.spec.get("autoscale")


class _Cluster:
    def __init__(self, observed: Observed, now: float) -> None:
        assert observed.cluster is not None
        self.seen = observed
        self.now = now
        self.cluster = observed.cluster
        self.metadata = self.cluster["metadata"]
        self.annotations: Mapping[str, str] = self.metadata.get("annotations") or {}
        self.uid: str = self.metadata["uid"]
        self.spec: Mapping[str, Any] = self.cluster.get("spec") or {}
        self.status: Mapping[str, Any] = self.cluster.get("status") or {}
        self.actions: list[Action] = []
        self.ask = Ask.NOTHING
        self.again: float | None = None
        self.finished_at: str | None = self.status.get("finishedAt")
        self.suspended = bool(self.spec.get("suspend"))
        # nothing is to run
        self.off = self.suspended or self.finished_at is not None
        self.groups: list[_Workers] = []
        self.taken: str = ""  # a name that others have: nothing can be done before that is cleared up
        self.image = observed.settings.image
        self.idle: Condition | None = None
        self.invalid: list[WriteStatus] = []  # of groups whose spec cannot be meant so; they are left alone

    def soon(self, after: float) -> None:
        after = max(0.1, after)
        self.again = after if self.again is None else min(self.again, after)

    # --- the whole

    def plan(self) -> Plan:
        deleted = self._expired()
        if deleted is not None:
            return Plan((deleted,))
        self._sort()
        self._scheduler()
        if not self.taken:
            self._idle()
            if self.off:
                self._nothing()
            else:
                self._workers()
        written = self._write()
        view = self.seen.scheduler
        if self.ask and (view is None or view.lacks(self.ask)):
            return Plan(ask=self.ask, threads=threads(self.spec.get("workers") or {}))
        return Plan(
            (*self.actions, *self._notes(written)),
            (*written, *self.invalid),
            self.ask,
            again=self.again,
            look=self._secret_looks_wrong(),
            threads=threads(self.spec.get("workers") or {}),
        )

    def _expired(self) -> Delete | None:
        """A cluster that was finished long enough ago."""
        ttl, since = self.spec.get("ttlSecondsAfterFinished"), seconds(self.finished_at)
        if ttl is None or since is None:
            return None
        if since + ttl > self.now:
            self.soon(since + ttl - self.now)
            return None
        return Delete("TaskCluster", self.metadata["namespace"], self.metadata["name"], self.uid)

    def _sort(self) -> None:
        """Whose pod is whose."""
        seen = self.seen
        known = {pod["metadata"].get("uid") for pod in seen.pods} | {pod["metadata"]["name"] for pod in seen.pods}
        pods = [*seen.pods]
        for pod in seen.expected:
            if pod["metadata"].get("uid") not in known and pod["metadata"]["name"] not in known:
                pods.append(pod)
        self.scheduler_pods: list[Manifest] = []
        by_owner: dict[str, list[Manifest]] = {}
        for pod in pods:
            component = (pod["metadata"].get("labels") or {}).get(names.COMPONENT)
            if component == naming.SCHEDULER:
                self.scheduler_pods.append(pod)
            elif component == naming.WORKER:
                by_owner.setdefault(controller(pod).get("uid", ""), []).append(pod)
        resources = [(names.DEFAULT_GROUP, self.cluster, self.spec.get("workers") or {"replicas": 1})]
        for group in sorted(seen.groups, key=lambda group: str(group["metadata"]["name"])):
            if group["metadata"].get("deletionTimestamp"):
                continue
            words = invalid(group, TaskWorkerGroup)
            if words:
                status = {**(group.get("status") or {})}
                status["conditions"] = conditions(group, [Condition("Ready", False, "InvalidSpec", words)], self.now)
                self.invalid += _status(group, status)
            else:
                resources.append((group["metadata"]["name"], group, group["spec"]))
        for name, resource, spec in resources:
            mine = by_owner.get(resource["metadata"]["uid"], [])
            self.groups.append(_Workers(name, resource, spec, [read(pod, seen.deleted) for pod in mine]))

    # --- the scheduler

    def _ours(self, found: Manifest | None, what: str, name: str) -> bool:
        """Whether an object of our name is not there, or is ours."""
        if found is None or controller(found).get("uid") == self.uid:
            return True
        owner = controller(found)
        if owner.get("kind") == "TaskCluster":
            self.taken = f"the {what} {name} of an earlier TaskCluster {owner.get('name')} is still being removed"
            self.soon(EARLIER)
        elif what == "Secret" and not owner:
            return True  # somebody has brought a token of their own
        else:
            self.taken = (
                f"there is a {what} {name} that does not belong to this TaskCluster, and that name is needed: delete it, or "
                "give the TaskCluster another name"
            )
            self.soon(30.0)
        return False

    def _scheduler(self) -> None:
        """The scheduler's objects."""
        seen, name = self.seen, self.metadata["name"]
        scheduler, token = names.scheduler_name(name), names.token_name(name)
        ours = [
            self._ours(seen.secret, "Secret", token),
            self._ours(seen.deployment, "Deployment", scheduler),
            self._ours(seen.service, "Service", scheduler),
            self._ours(seen.network_policy, "NetworkPolicy", name),
        ]
        self.reach = self._reach()
        if not all(ours):
            return
        if seen.secret is None:
            self.actions.append(
                MakeSecret(secret(self.cluster), naming.scheduler_hosts(name, self.metadata["namespace"]))
            )
        else:
            wanted = self.annotations.get(names.ROTATE)
            metadata = seen.secret["metadata"]
            if wanted is not None and (metadata.get("annotations") or {}).get(names.ROTATED) != wanted:
                self.actions.append(RotateToken(metadata["namespace"], token, metadata["uid"], wanted))
        if _differs(seen.service, wanted_service := service(self.cluster)):
            self.actions.append(Apply(wanted_service))
        if seen.settings.network_policy:
            if _differs(seen.network_policy, wanted_policy := network_policy(self.cluster, seen.settings)):
                self.actions.append(Apply(wanted_policy))
        elif seen.network_policy is not None:
            metadata = seen.network_policy["metadata"]
            self.actions.append(Delete("NetworkPolicy", metadata["namespace"], metadata["name"], metadata["uid"]))
        self._deployment()

    def _deployment(self) -> None:
        found, settings = self.seen.deployment, self.seen.settings
        replicas = 0 if self.off else 1
        stuck = [told for pod in self.scheduler_pods if (told := trouble(pod)) is not None]
        again = False
        if found is not None:
            # The image that was the default when the cluster was made stays its image: scheduler and workers have to be of
            # one version. Unless it cannot be had; then nothing runs that it would have to fit.
            given = (found["metadata"].get("annotations") or {}).get(naming.DEFAULT_IMAGE)
            lacks = any(one.reason == "ImagePullError" for one in stuck) and not self._available()
            self.image = settings.image if lacks or not given else given
            again = not self.spec.get("image") and bool(given) and given != self.image
        wanted = deployment(self.cluster, settings, self.image, replicas)
        if found is None:
            self.actions.append(Apply(wanted))
            return
        template = found["spec"]["template"]["metadata"]
        if again or (template.get("annotations") or {}).get(names.SPEC_HASH) != scheduler_hash(self.spec):
            self.actions.append(Apply(wanted))
        elif found["spec"].get("replicas", 1) != replicas:
            metadata = found["metadata"]
            patch = {"metadata": {"uid": metadata["uid"]}, "spec": {"replicas": replicas}}
            self.actions.append(Patch("Deployment", metadata["namespace"], metadata["name"], patch))

    def _available(self) -> bool:
        found = self.seen.deployment
        return found is not None and int((found.get("status") or {}).get("availableReplicas") or 0) > 0

    def _reach(self) -> str:
        """Why the scheduler cannot be asked; "": it can, or that has to be tried."""
        if self.off:
            return "nothing is to run"
        if not self._available():
            return "it is not running"
        view = self.seen.scheduler
        if view is not None and not view.reachable:
            return view.error or "it does not answer"
        return ""

    # --- whether there is anything to do

    def _idle(self) -> None:
        """Since when there has been nothing to do; a cluster for which that is long enough is finished."""
        timeout = self.spec.get("idleTimeout")
        if timeout is None or self.off:
            return
        before = of(self.cluster, "Idle")
        if self.reach:
            # who cannot be asked may be at work; what was so before does not count
            self.idle = Condition("Idle", False, "Unknown", f"the scheduler cannot be asked: {self.reach}")
            if self._available():
                self.soon(LOOK)
            return
        self.ask |= Ask.INFO | Ask.WORKERS
        view = self.seen.scheduler
        if view is None or view.clients is None:
            return
        self.soon(max(1.0, min(30.0, timeout / 4)))
        # a scheduler waits for those who come back from when the first one has come: with nobody there, it waits for ever
        busy = view.clients or view.tasks or (view.workers and not view.settled)
        if busy:
            words = f"{view.clients} clients, {view.tasks} tasks that are not done"
            self.idle = Condition("Idle", False, "InUse", words)
            return
        words = f"no client and nothing to do; after {timeout} s the cluster is finished"
        self.idle = Condition("Idle", True, "NothingToDo", words)
        since = seconds(before.get("lastTransitionTime")) if before.get("status") == "True" else self.now
        since = self.now if since is None else since
        # a client may have come and gone between two looks: the workers know
        rests = [worker.idle_seconds or 0.0 for worker in (view.workers or {}).values()]
        left = timeout - min([self.now - since, *rests])
        if left > 0:
            self.soon(left)
        else:
            # written before anything is taken away: then it is done, even if somebody else goes on with it
            self.finished_at = stamp(self.now)
            self.soon(0.1)

    # --- workers

    def _nothing(self) -> None:
        """No worker is to run."""
        for group in self.groups:
            self._delete(pod for pod in group.pods if not pod.going)
            group.change.replicas = 0

    def _delete(self, pods: Iterable[Pod]) -> None:
        grace = GRACE if self.off else None
        for pod in pods:
            if pod.uid:
                self.actions.append(Delete("Pod", self.metadata["namespace"], pod.name, pod.uid, grace))

    def _workers(self) -> None:
        view = self.seen.scheduler
        scaled = [group for group in self.groups if group.autoscale is not None]
        if scaled and self._available():
            self.ask |= Ask.WISH
            if any(group.name != names.DEFAULT_GROUP for group in scaled):
                self.ask |= Ask.WORKERS
            if self.reach:
                self.soon(LOOK)
        wish = None if view is None or self.reach else view.wish
        self._limits(wish, view)
        # The scheduler's pod comes first, by some hundredths of a second: where there is a quota, workers would take what it
        # needs, and wait for it for ever.
        hold = not self.scheduler_pods and not self._available()
        force = self.annotations.get(names.FORCE) == "true"
        away = of(self.seen.deployment, "Available")
        since = seconds(away.get("lastTransitionTime"))
        sure = not self._available() and (
            self.seen.deployment is None
            or (away.get("status") == "False" and since is not None and self.now - since >= SURE)
        )
        for group in self.groups:
            marked = {one["uid"]: one["since"] for one in group.status.get("draining") or ()}
            shape = worker_hash(self.spec, group.spec)
            image = group.spec.get("image") or self.spec.get("image") or self.image
            refused = self.seen.refused.get(group.name)
            others = sum(other.change.registered for other in self.groups if other is not group)
            group.limits = replace(group.limits, others=others)
            workers = Group(group.pods, shape, image, marked, refused, force, sure, hold)
            group.change = decide(workers, group.limits, view, self.reach, self.now)
            self.ask |= group.change.ask
            if group.change.again is not None:
                self.soon(group.change.again)
        stay = [name for group in self.groups for name in group.change.stay]
        if stay:
            self.actions.append(Stay(tuple(stay)))
        for group in self.groups:
            self._adopt(group)
        for group in self.groups:
            self._delete(group.change.first)
        for group in self.groups:
            self._create(group)
        for group in self.groups:
            self._delete(group.change.deaths)
        retire = [uid for group in self.groups for uid in group.change.retire]
        if retire:
            self.actions.append(Retire(tuple(retire)))

    def _limits(self, wish: WishView | None, view: SchedulerView | None) -> None:
        """How many each group is to have."""
        scaled = [group for group in self.groups if group.autoscale is not None]
        resources = [(group.name, group.spec.get("taskResources") or {}) for group in scaled]
        unmet = {} if wish is None else autoscale.needed(wish, resources)
        known = {} if view is None or self.reach else view.workers or {}
        keep = 0 if wish is None else wish.workers if wish.why == "memory" else min(1, wish.workers)
        for group in self.groups:
            there = [pod for pod in group.pods if not pod.going and not pod.ended]
            # so that each group knows how many of the others stay, before it is decided
            group.change.registered = sum(pod.started or pod.uid in known for pod in there)
        for group in self.groups:
            scale = group.autoscale
            if scale is None:
                wanted = group.spec.get("replicas")
                group.wanted = 1 if wanted is None else int(wanted)
                group.limits = Limits(group.wanted, group.wanted, keep=keep)
                continue
            marked = {one["uid"] for one in group.status.get("draining") or ()}
            there = [pod for pod in group.pods if not pod.going and not pod.ended and pod.uid not in marked]
            before = int(group.status.get("desiredReplicas") or 0)
            spare: tuple[str, ...] = ()
            if group.name == names.DEFAULT_GROUP:
                others = sum(other.change.registered for other in self.groups if other is not group)
                more = unmet.get(group.name, 0)
                if wish is not None and not wish.settled:
                    before = max(before, len(there))
                group.wanted = autoscale.wanted_of_default(wish, scale, others, more, before)
                spare = () if wish is None else tuple([one.pod_uid for one in wish.spare])
            else:
                group.wanted = autoscale.wanted_of_group(wish, scale, unmet.get(group.name, 0), len(there), before)
            idle = scale.get("idleSeconds")
            most = int(scale["max"])
            group.limits = Limits(
                group.wanted,
                max(most, group.wanted),
                autoscale.IDLE if idle is None else float(idle),
                spare,
                release=wish is not None,
                keep=keep,
            )

    def _adopt(self, group: _Workers) -> None:
        """Have a TaskWorkerGroup go with its cluster: an owner reference, in its metadata."""
        if group.resource is self.cluster:
            return
        metadata = group.resource["metadata"]
        owners = list(metadata.get("ownerReferences") or ())
        if any(one.get("uid") == self.uid for one in owners):
            return
        # one of an earlier cluster of this name would have it collected together with that
        kept = [one for one in owners if (one.get("kind"), one.get("name")) != ("TaskCluster", self.metadata["name"])]
        change = {"uid": metadata["uid"], "ownerReferences": [*kept, naming.owner(self.cluster, controller=False)]}
        if metadata.get("resourceVersion"):
            change["resourceVersion"] = metadata["resourceVersion"]
        patch = {"metadata": change}
        self.actions.append(Patch("TaskWorkerGroup", metadata["namespace"], metadata["name"], patch))

    def _create(self, group: _Workers) -> None:
        """Pods whose names follow from what is there: two operators at the same time make the same ones."""
        used = {pod.name for pod in group.pods}
        if not group.change.births:
            return
        spec, settings = group.spec, self.seen.settings
        pod = worker_pod(self.cluster, spec, group.resource, group.name, settings, self.image)
        serial = max([one.serial for one in group.pods], default=0)
        for deaths in group.change.births:
            serial += 1
            seed = f"{group.resource['metadata']['uid']}/{serial}/{int(self.now // 600)}"
            name = naming.worker_name(self.metadata["name"], group.name, seed)
            while name in used:
                seed += "'"
                name = naming.worker_name(self.metadata["name"], group.name, seed)
            used.add(name)
            annotations = {naming.SERIAL: str(serial)}
            if deaths:
                annotations[naming.DEATHS] = str(deaths)
            self.actions.append(Create(named(pod, name, annotations)))

    # --- what is told

    def _secret_looks_wrong(self) -> bool:
        """Whether the scheduler's pod waits for its volumes longer than it takes."""
        for pod in self.scheduler_pods:
            for one in (pod.get("status") or {}).get("containerStatuses") or ():
                waiting = (one.get("state") or {}).get("waiting") or {}
                created = seconds(pod["metadata"].get("creationTimestamp"))
                if waiting.get("reason") == "ContainerCreating" and created is not None and self.now - created > 15:
                    return True
        return False

    def _scheduler_ready(self) -> Condition:
        kind = "SchedulerReady"
        if self.taken:
            return Condition(kind, False, "NameTaken", self.taken)
        if self.finished_at is not None:
            return Condition(kind, False, "Finished", "the cluster is finished")
        if self.suspended:
            return Condition(kind, False, "Suspended", "the cluster is suspended")
        if self._available():
            return Condition(kind, True, "Running", "the scheduler takes connections")
        alive = [pod for pod in self.scheduler_pods if not pod["metadata"].get("deletionTimestamp")]
        reason, words = told([trouble(pod) for pod in alive], "scheduler")
        if not reason:
            failure = of(self.seen.deployment, "ReplicaFailure")
            if failure.get("status") == "True":
                reason, words = "PodRefused", str(failure.get("message"))
        return Condition(kind, False, reason or "Starting", words or "the scheduler starts")

    def _troubles(self, group: _Workers) -> list[Trouble]:
        gone = {*group.change.first, *group.change.deaths}
        found = []
        for pod in group.pods:
            if not pod.going and pod.trouble is not None and (pod.ended or pod not in gone):
                found.append(pod.trouble)
        return found

    def _workers_ready(self, group: _Workers, kind: str) -> Condition:
        if self.taken:
            return Condition(kind, False, "NameTaken", self.taken)
        if self.finished_at is not None:
            return Condition(kind, False, "Finished", "the cluster is finished")
        if self.suspended:
            return Condition(kind, False, "Suspended", "the cluster is suspended")
        change, wanted = group.change, group.wanted
        if change.ready >= wanted:
            if not wanted:
                return Condition(kind, True, "NoneWanted", "no workers are wanted")
            return Condition(kind, True, "AllReady", f"{change.ready} of {wanted} workers are ready")
        words = [f"{change.ready} of {wanted} workers are ready"]
        reason, more = told(self._troubles(group))
        if more:
            words.append(more)
        refused = self.seen.refused.get(group.name)
        if refused is not None:
            # without the name of the one pod that was tried last
            _, said, why = refused.message.partition("is forbidden: ")
            reason = reason or ("QuotaExceeded" if "quota" in refused.message else "PodsRefused")
            words.append(f"no more pods can be made: {why if said else refused.message}")
        if change.waiting:
            reason = reason or "BackOff"
            words.append(f"{change.waiting} have ended by themselves and are made again after a while")
        return Condition(kind, False, reason or "Starting", "; ".join(words))

    def _blocked(self, group: _Workers) -> Condition:
        change = group.change
        if change.blocked is not None:
            words = change.blocked.message.replace("taskcluster NAME", f"taskcluster {self.metadata['name']}")
            return Condition("ScaleDownBlocked", True, change.blocked.reason, words)
        if change.draining:
            words = f"{len(change.draining)} of the workers are to go, when what they hold is elsewhere"
            return Condition("ScaleDownBlocked", False, "Draining", words)
        return Condition("ScaleDownBlocked", False, "NothingToDo", "no worker waits to go")

    def _progressing(self, scheduler: Condition, group: _Workers) -> Condition:
        change = group.change
        if self.taken:
            return Condition("Progressing", False, "NameTaken", self.taken)
        if self.off:
            left = any(not pod.ended for each in self.groups for pod in each.pods) or bool(self.scheduler_pods)
            if left:
                return Condition("Progressing", True, "Stopping", "pods are being removed")
            return Condition("Progressing", False, SETTLED, "there are no pods")
        if change.old:
            return Condition("Progressing", True, "Rolling", f"{change.old} workers are still of an earlier spec")
        if change.draining:
            return Condition("Progressing", True, "ScalingDown", f"{len(change.draining)} workers are about to go")
        if change.births or change.ready < group.wanted:
            words = f"{change.ready} of {group.wanted} workers are ready"
            return Condition("Progressing", True, "ScalingUp", words)
        if not scheduler.true:
            return Condition("Progressing", True, "Starting", scheduler.message)
        return Condition("Progressing", False, SETTLED, "all is as it is to be")

    def _numbers(self, group: _Workers) -> dict[str, Any]:
        found: dict[str, Any] = {
            "replicas": group.change.replicas,
            "readyReplicas": group.change.ready,
            "desiredReplicas": group.wanted,
            "selector": _selector(self.metadata["name"], group.name),
        }
        view = self.seen.scheduler
        if group.autoscale is not None:
            if view is not None and view.wish is not None and not self.off:
                found["wish"] = {"workers": view.wish.workers, "why": view.wish.why}
            elif not self.off:
                found["wish"] = group.status.get("wish")
        if group.change.draining:
            found["draining"] = group.change.draining
        return found

    def _write(self) -> list[WriteStatus]:
        if self.taken:
            for group in self.groups:
                there = [pod for pod in group.pods if not pod.going and not pod.ended]
                group.change.replicas, group.change.ready = len(there), sum(pod.ready for pod in there)
        written: list[WriteStatus] = []
        default = self.groups[0]
        scheduler, workers = self._scheduler_ready(), self._workers_ready(default, "WorkersReady")
        ready = Condition("Ready", True, "Running", workers.message)
        for one in (workers, scheduler):
            if not one.true:
                ready = Condition("Ready", False, one.reason, one.message)
        suspended = Condition("Suspended", False, "NotSuspended", "the cluster is not suspended")
        if self.suspended:
            words = "no pods run; the results that workers held in memory are lost"
            suspended = Condition("Suspended", True, "Suspended", words)
        told = [
            ready,
            scheduler,
            workers,
            self._progressing(scheduler, default),
            self._blocked(default),
            suspended,
        ]
        if self.idle is not None:
            told.append(self.idle)
        if self.finished_at is not None:
            phase = "Finished"
        elif self.suspended:
            phase = "Suspended"
        else:
            phase = "Running" if scheduler.true else "Pending"
        status = {
            "phase": phase,
            "address": naming.address(self.metadata["name"], self.metadata["namespace"]),
            **self._numbers(default),
            "finishedAt": self.finished_at,
            "conditions": conditions(self.cluster, told, self.now),
        }
        written += _status(self.cluster, status)
        for group in self.groups[1:]:
            all_ready = self._workers_ready(group, "Ready")
            if all_ready.true and not scheduler.true:
                all_ready = Condition("Ready", False, scheduler.reason, scheduler.message)
            status = {
                **self._numbers(group),
                "conditions": conditions(group.resource, [all_ready, self._blocked(group)], self.now),
            }
            written += _status(group.resource, status)
        return written

    def _notes(self, written: Sequence[WriteStatus]) -> list[Note]:
        """Events: what is done, and what has begun to be in the way."""
        notes: list[Note] = []
        resources = {group.resource["metadata"]["uid"]: group for group in self.groups}
        for group in self.groups:
            made = len(group.change.births)
            if made:
                words = f"{made} worker pod{'s' if made > 1 else ''} made; {group.wanted} workers are wanted"
                notes.append(Note(group.resource, "Normal", "WorkersMade", words))
            going = len(group.change.retire)
            if going:
                words = (
                    f"{going} worker{'s' if going > 1 else ''} to go, values first; {group.wanted} workers are wanted"
                )
                notes.append(Note(group.resource, "Normal", "WorkersRetire", words))
        for one in written:
            group = resources[one.uid]
            for condition in one.status["conditions"]:
                kind, true, reason = condition["type"], condition["status"] == "True", condition["reason"]
                before = of(group.resource, kind)
                if (before.get("status"), before.get("reason")) == (condition["status"], reason):
                    continue
                warned = (kind == "ScaleDownBlocked" and true) or (
                    kind in ("WorkersReady", "SchedulerReady") and not true and reason not in _PASSING
                )
                if group.resource is not self.cluster and kind == "Ready" and not true and reason not in _PASSING:
                    warned = True
                if warned:
                    notes.append(Note(group.resource, "Warning", reason, condition["message"]))
                elif kind == "Suspended" and true:
                    notes.append(Note(group.resource, "Normal", "Suspended", condition["message"]))
                elif kind == "Ready" and true:
                    notes.append(Note(group.resource, "Normal", "Ready", condition["message"]))
        if self.finished_at is not None and not self.status.get("finishedAt"):
            words = f"no client and nothing to do for {self.spec.get('idleTimeout')} s"
            notes.append(Note(self.cluster, "Normal", "Finished", words))
        return notes


_PASSING = frozenset({"Starting", "Suspended", "Finished", "NoneWanted"})


def _differs(found: Manifest | None, wanted: Manifest) -> bool:
    """Whether an object has to be applied: it is not there, or was applied otherwise."""
    if found is None:
        return True
    annotations = found["metadata"].get("annotations") or {}
    return bool(annotations.get(names.RENDERED) != wanted["metadata"]["annotations"][names.RENDERED]) or not _has(
        found.get("spec"), wanted["spec"]
    )


def _has(found: Any, wanted: Any) -> bool:
    """Whether all that is wanted is there; more may be."""
    if isinstance(wanted, Mapping):
        return all(_has((found or {}).get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return len(found or ()) == len(wanted) and all(map(_has, found or (), wanted))
    return bool(found == wanted)
