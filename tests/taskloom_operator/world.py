"""A Kubernetes in which an operator can be tried: objects, nodes, kubelets, schedulers and workers with values, step by step.

What is true is in :class:`World`; what an operator believes is in :class:`Operator`, and may be old. An operator can be dropped
between any two of its actions. Whoever loses a value that nobody had allowed to be lost is told in :attr:`World.failures`.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from taskloom_operator import names
from taskloom_operator.actions import (
    Apply,
    Ask,
    Create,
    Delete,
    MakeSecret,
    Note,
    Patch,
    Plan,
    Retire,
    RotateToken,
    Stay,
)
from taskloom_operator.desired import reconcile
from taskloom_operator.desired.times import seconds, stamp
from taskloom_operator.observe import Observed, Refused, SchedulerView, Settings

API = "taskloom.dev/v1alpha1"
NS = "lab"
KNOWN = 3.0  # seconds after which who has registered must be known to whoever looks
UNREACHABLE = 40.0  # seconds after which a node that is down is noticed
EVICTED = 100.0  # and after which its pods are deleted

Key = tuple[str, str, str]


def copied(value: Any) -> Any:
    """Quicker than copy.deepcopy, for what is JSON."""
    return marshal.loads(marshal.dumps(value))


class RefusedError(Exception):
    """The API server says no."""


@dataclass
class Process:
    """A worker that runs in a pod."""

    uid: str
    name: str
    cluster: Key
    values: set[int] = field(default_factory=set)
    registered: float | None = None  # since when; None: it is not
    state: str = "running"
    idle_since: float | None = None
    leaving: bool = False  # told to end by its pod


@dataclass
class Scheduler:
    """A scheduler that runs."""

    since: float
    visited: float | None = None  # when the first one came
    gone: dict[str, dict[str, Any]] = field(default_factory=dict)


class World:
    def __init__(self, nodes: int = 2, room: int = 100, settings: Settings | None = None) -> None:
        self.now = 1_700_000_000.0
        self.settings = settings or Settings("taskloom:1")
        self.objects: dict[Key, dict[str, Any]] = {}
        self.nodes: dict[str, float | None] = {f"node{n}": None for n in range(1, nodes + 1)}  # since when it is down
        self.room = room  # pods that a node has room for
        self.quota: int | None = None
        self.missing_images: set[str] = set()
        self.broken: set[str] = set()  # images whose worker ends at once
        self.reachable = True  # the schedulers, for the operator
        self.processes: dict[str, Process] = {}
        self.schedulers: dict[Key, Scheduler] = {}
        self.work: dict[str, int] = {}  # cluster -> workers that its tasks could use
        self.unmet: dict[str, list[dict[str, Any]]] = {}
        self.clients: dict[str, int] = {}
        self.values: set[int] = set()  # that somebody needs
        self.failures: list[str] = []
        self.calls: list[str] = []  # to the API server, by the operator
        self.events: list[Note] = []
        self._count = 0
        self.lenient_until = 0.0  # so long somebody may still think that the cluster is suspended
        self._pod_times: dict[str, float] = {}
        self._excused: set[str] = set()  # uids of pods that somebody else than the operator has deleted

    # --- objects

    def _uid(self) -> str:
        self._count += 1
        return f"uid-{self._count}"

    def _key(self, manifest: dict[str, Any]) -> Key:
        return manifest["kind"], manifest["metadata"]["namespace"], manifest["metadata"]["name"]

    def put(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Make an object or change it, as an apply does."""
        manifest = copied(manifest)
        found = self.objects.get(self._key(manifest))
        if found is None:
            metadata = manifest["metadata"]
            metadata.update(uid=self._uid(), generation=1, creationTimestamp=stamp(self.now))
            self.objects[self._key(manifest)] = manifest
            return manifest
        changed = found.get("spec") != manifest.get("spec")
        kept = {key: found["metadata"][key] for key in ("uid", "generation", "creationTimestamp")}
        found["metadata"] = {**found["metadata"], **manifest["metadata"], **kept}
        found["metadata"]["generation"] += changed
        if "spec" in manifest:
            found["spec"] = manifest["spec"]
        return found

    def cluster(self, name: str = "demo", namespace: str = NS, **spec: Any) -> dict[str, Any]:
        """A user applies a TaskCluster."""
        metadata = {"name": name, "namespace": namespace}
        return self.put({"apiVersion": API, "kind": "TaskCluster", "metadata": metadata, "spec": spec})

    def group(self, name: str, cluster: str = "demo", **spec: Any) -> dict[str, Any]:
        """A user applies a TaskWorkerGroup."""
        metadata = {"name": name, "namespace": NS}
        body = {
            "apiVersion": API,
            "kind": "TaskWorkerGroup",
            "metadata": metadata,
            "spec": {"cluster": cluster, **spec},
        }
        return self.put(body)

    def get(self, kind: str, name: str, namespace: str = NS) -> dict[str, Any] | None:
        return self.objects.get((kind, namespace, name))

    def remove(self, key: Key, why: str) -> None:
        """Delete an object, as the API server does: pods have time, the others are gone."""
        found = self.objects.get(key)
        if found is None:
            return
        if key[0] == "Pod" and found.get("spec", {}).get("nodeName") and not self._over(found):
            found["metadata"].setdefault("deletionTimestamp", stamp(self.now))
            self._pod_times.setdefault(found["metadata"]["uid"] + "/end", self.now)
            return
        del self.objects[key]
        self._die(found["metadata"]["uid"], why)

    @staticmethod
    def _over(pod: dict[str, Any]) -> bool:
        return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")

    def pods(self, component: str = "worker", cluster: str = "demo", namespace: str = NS) -> list[dict[str, Any]]:
        """Pods that are not on their way out."""
        return [
            pod
            for (kind, space, _), pod in self.objects.items()
            if kind == "Pod"
            and space == namespace
            and pod["metadata"]["labels"].get(names.COMPONENT) == component
            and pod["metadata"]["labels"].get(names.CLUSTER) == cluster
            and "deletionTimestamp" not in pod["metadata"]
            and not self._over(pod)
        ]

    def ready(self, cluster: str = "demo", namespace: str = NS) -> list[dict[str, Any]]:
        return [
            pod
            for pod in self.pods(cluster=cluster, namespace=namespace)
            if any(c["type"] == "Ready" and c["status"] == "True" for c in pod.get("status", {}).get("conditions", ()))
        ]

    def condition(self, kind: str, name: str, condition: str) -> dict[str, Any]:
        for one in (self.get(kind, name) or {}).get("status", {}).get("conditions", ()):
            if one["type"] == condition:
                return dict(one)
        return {}

    # --- what happens by itself

    def step(self, count: int = 1, length: float = 1.0) -> None:
        for _ in range(count):
            self.now += length
            self._nodes()
            self._collect()
            self._deployments()
            for key, pod in list(self.objects.items()):
                if key[0] == "Pod" and key in self.objects:
                    self._kubelet(key, pod)
            self._schedulers()
            self._check()

    def _nodes(self) -> None:
        for key, pod in list(self.objects.items()):
            if key[0] != "Pod":
                continue
            down = self.nodes.get(pod["spec"].get("nodeName", ""))
            if down is None or self._over(pod):
                continue
            if self.now - down >= UNREACHABLE:
                self._set(pod, ready=False)
            if self.now - down >= EVICTED:
                pod["metadata"].setdefault("deletionTimestamp", stamp(self.now))

    def _collect(self) -> None:
        """Objects whose owners are gone."""
        uids = {found["metadata"]["uid"] for found in self.objects.values()}
        for key, found in list(self.objects.items()):
            owners = found["metadata"].get("ownerReferences") or ()
            if owners and not any(one["uid"] in uids for one in owners):
                self.remove(key, "its owner is gone")

    def _deployments(self) -> None:
        for key, found in list(self.objects.items()):
            if key[0] != "Deployment":
                continue
            mine = [
                (k, pod)
                for k, pod in self.objects.items()
                if k[0] == "Pod"
                and pod["metadata"].get("ownerReferences", [{}])[0].get("uid") == found["metadata"]["uid"]
            ]
            template = found["spec"]["template"]
            alive = [(k, pod) for k, pod in mine if "deletionTimestamp" not in pod["metadata"]]
            for k, pod in alive:
                if pod["template"] != template or not found["spec"]["replicas"]:
                    self.remove(k, "its Deployment")
            same = [pod for _, pod in alive if pod["template"] == template]
            full = self.quota is not None and sum(k[0] == "Pod" and k[1] == key[1] for k in self.objects) >= self.quota
            if (
                found["spec"]["replicas"]
                and not full
                and not same
                and all(pod["template"] == template for _, pod in mine)
            ):
                self._count += 1
                metadata = {
                    **copied(template["metadata"]),
                    "name": f"{key[2]}-{self._count}",
                    "namespace": key[1],
                    "ownerReferences": [
                        {"kind": "ReplicaSet", "uid": found["metadata"]["uid"], "controller": True, "name": key[2]}
                    ],
                }
                pod = {
                    "kind": "Pod",
                    "metadata": metadata,
                    "spec": copied(template["spec"]),
                    "template": template,
                }
                self.put(pod)
            cluster = ("TaskCluster", key[1], key[2].removesuffix("-scheduler"))
            available = cluster in self.schedulers
            before = found.setdefault("status", {}).get("conditions", [{}])[0]
            if before.get("status") != str(available):
                found["status"]["conditions"] = [
                    {"type": "Available", "status": str(available), "lastTransitionTime": stamp(self.now)}
                ]
            found["status"]["availableReplicas"] = int(available)

    def _set(self, pod: dict[str, Any], phase: str = "", ready: bool | None = None, **main: Any) -> None:
        status = pod.setdefault("status", {})
        if phase:
            status["phase"] = phase
        conditions = status.setdefault("conditions", [])
        if ready is not None:
            before = [one for one in conditions if one["type"] == "Ready"]
            if not before or before[0]["status"] != str(ready):
                conditions[:] = [one for one in conditions if one["type"] != "Ready"]
                conditions.append({"type": "Ready", "status": str(ready), "lastTransitionTime": stamp(self.now)})
        if main:
            name = pod["spec"]["containers"][0]["name"]
            image = pod["spec"]["containers"][0]["image"]
            found = (status.get("containerStatuses") or [{"name": name, "image": image, "restartCount": 0}])[0]
            status["containerStatuses"] = [{**found, **main}]

    def _kubelet(self, key: Key, pod: dict[str, Any]) -> None:
        uid, spec = pod["metadata"]["uid"], pod["spec"]
        going = "deletionTimestamp" in pod["metadata"]
        if self._over(pod):
            if going:
                del self.objects[key]
            return
        if not spec.get("nodeName"):
            for node, down in self.nodes.items():
                there = sum(k[0] == "Pod" and p["spec"].get("nodeName") == node for k, p in self.objects.items())
                if down is None and there < self.room:
                    spec["nodeName"] = node
                    pod.setdefault("status", {})["conditions"] = [{"type": "PodScheduled", "status": "True"}]
                    return
            pod["status"] = {
                "phase": "Pending",
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/2 nodes are available: 2 Insufficient cpu.",
                    }
                ],
            }
            return
        if self.nodes[spec["nodeName"]] is not None:
            return  # nobody is there
        if going:
            process = self.processes.get(uid)
            if process is not None:
                process.leaving = True
            if self.now - self._pod_times.setdefault(uid + "/end", self.now) >= 2:
                del self.objects[key]
                self._die(uid, "deleted")
            return
        image = spec["containers"][0]["image"]
        if image in self.missing_images and pod.get("status", {}).get("phase") != "Running":
            words = f'Back-off pulling image "{image}"' if int(self.now) % 2 else f"failed to pull {image}: not found"
            reason = "ImagePullBackOff" if int(self.now) % 2 else "ErrImagePull"
            self._set(pod, "Pending", False, state={"waiting": {"reason": reason, "message": words}})
            return
        name = spec["containers"][0]["name"]
        if image in self.broken and name == "worker":
            ended = {"exitCode": 2, "reason": "Error", "message": "nthreads: 'many' is no number\n"}
            waiting = {
                "reason": "CrashLoopBackOff",
                "message": f"back-off {int(self.now) % 300}s restarting failed container",
            }
            self._set(
                pod, "Running", False, state={"waiting": waiting}, lastState={"terminated": ended}, restartCount=3
            )
            return
        if "phase" not in pod.get("status", {}) or pod["status"]["phase"] == "Pending":
            self._set(pod, "Running", False, state={"running": {"startedAt": stamp(self.now)}}, started=False)
            if name == "worker":
                cluster = ("TaskCluster", key[1], pod["metadata"]["labels"][names.CLUSTER])
                self.processes[uid] = Process(uid, pod["metadata"]["name"], cluster)
            return
        if name == "scheduler":
            self._set(pod, ready=True, started=True)
            return
        process = self.processes.get(uid)
        if process is None:  # its container is started again
            cluster = ("TaskCluster", key[1], pod["metadata"]["labels"][names.CLUSTER])
            self.processes[uid] = Process(uid, pod["metadata"]["name"], cluster)
            self._set(pod, ready=False, started=False)
            return
        if process.state == "left":
            ended = {"exitCode": 0, "reason": "Completed", "finishedAt": stamp(self.now)}
            self._set(pod, "Succeeded", False, state={"terminated": ended})
            self._die(uid, "left")
            return
        registered = process.registered is not None
        if registered:
            self._set(pod, ready=True, started=True)
        else:
            self._set(pod, ready=False)

    def _schedulers(self) -> None:
        alive = set()
        for key, pod in self.objects.items():
            if key[0] == "Pod" and pod["metadata"]["labels"].get(names.COMPONENT) == "scheduler":
                status = pod.get("status", {})
                up = self.nodes.get(pod["spec"].get("nodeName", "")) is None
                if up and status.get("phase") == "Running" and status["containerStatuses"][0].get("started"):
                    alive.add(("TaskCluster", key[1], pod["metadata"]["labels"][names.CLUSTER]))
        for cluster in list(self.schedulers):
            if cluster not in alive:
                del self.schedulers[cluster]
                for process in self.processes.values():
                    if process.cluster == cluster and process.state != "left":
                        process.registered, process.state = None, "running"
        for cluster in alive:
            self.schedulers.setdefault(cluster, Scheduler(self.now))
        for (_, _, name), scheduler in self.schedulers.items():
            if self.clients.get(name) and scheduler.visited is None:
                scheduler.visited = self.now
        for process in list(self.processes.values()):
            scheduler = self.schedulers.get(process.cluster)
            if scheduler is None or process.state == "left":
                continue
            if scheduler.visited is None:
                scheduler.visited = self.now
            if process.registered is None:
                process.registered, process.state = self.now, "running"
                process.idle_since = self.now
                scheduler.gone.pop(process.uid, None)
                continue
            if process.leaving and process.state == "running":
                process.state = "retiring"
            if process.state == "retired":
                scheduler.gone[process.uid] = {"worker": process.name, "was_ready": True, "ended": self.now}
                process.registered, process.state = None, "left"
            elif process.state == "retiring":
                self._move(process)

    def _move(self, process: Process) -> None:
        """What is nowhere else goes to another one, some values at a time."""
        takers = self.registered(process.cluster, staying=True)
        alone = [value for value in sorted(process.values) if not self._elsewhere(value, process, takers)]
        for value in alone[:2] if takers else ():
            takers[value % len(takers)].values.add(value)
        if not alone:
            process.state = "retired"

    def _elsewhere(self, value: int, process: Process, takers: list[Process]) -> bool:
        return any(value in other.values for other in takers if other is not process)

    def registered(self, cluster: Key, staying: bool = False) -> list[Process]:
        return [
            process
            for process in self.processes.values()
            if process.cluster == cluster
            and process.registered is not None
            and (not staying or process.state == "running")
            and not (staying and process.leaving)
        ]

    def _check(self) -> None:
        held = set().union(*[process.values for process in self.processes.values()])
        for value in sorted(self.values - held):
            self.failures.append(f"at {self.now:.0f} the value {value} is lost")
        self.values &= held

    def _die(self, uid: str, why: str) -> None:
        """A worker's process ends. What it alone held is lost; whether that is somebody's fault is seen by :meth:`_check`."""
        process = self.processes.pop(uid, None)
        if process is None:
            return
        scheduler = self.schedulers.get(process.cluster)
        if scheduler is not None and process.state in ("retiring", "retired"):
            ready = process.state == "retired"
            scheduler.gone[uid] = {"worker": process.name, "was_ready": ready, "ended": self.now}
        if why in ("crash", "its owner is gone") or uid in self._excused or self._allowed(process.cluster):
            self.excuse(process)

    def _allowed(self, cluster: Key) -> bool:
        """Whether the user has said that values may be lost."""
        found = self.objects.get(cluster)
        if (
            self.now < self.lenient_until
            or found is None
            or found["spec"].get("suspend")
            or found.get("status", {}).get("finishedAt")
        ):
            return True
        return (found["metadata"].get("annotations") or {}).get(names.FORCE) == "true"

    def delete_pod(self, name: str, namespace: str = NS) -> None:
        """A user deletes a pod."""
        self._excused.add(self.objects["Pod", namespace, name]["metadata"]["uid"])
        self.remove(("Pod", namespace, name), "deleted")

    def excuse(self, process: Process) -> None:
        """Nobody can be blamed for what this one takes with it."""
        others = set().union(*[other.values for other in self.processes.values() if other is not process])
        self.values -= process.values - others

    # --- what people and accidents do

    def compute(self, count: int = 1, cluster: str = "demo", namespace: str = NS) -> int:
        """Values come to be on workers that can take them; how many did."""
        takers = self.registered(("TaskCluster", namespace, cluster), staying=True)
        for _ in range(count if takers else 0):
            self._count += 1
            takers[self._count % len(takers)].values.add(self._count)
            self.values.add(self._count)
        return count if takers else 0

    def forget(self) -> None:
        """Nobody needs the values any more."""
        self.values.clear()
        for process in self.processes.values():
            process.values.clear()

    def crash(self, uid: str) -> None:
        """A worker's process dies; its container is started again."""
        self._die(uid, "crash")

    def node_down(self, node: str) -> None:
        self.nodes[node] = self.now
        for key, pod in self.objects.items():
            if key[0] == "Pod" and pod["spec"].get("nodeName") == node:
                self._die(pod["metadata"]["uid"], "crash")

    def node_up(self, node: str) -> None:
        self.nodes[node] = None
        for key, pod in list(self.objects.items()):
            if key[0] == "Pod" and pod["spec"].get("nodeName") == node and not self._over(pod):
                pod.get("status", {}).pop("phase", None)  # started again

    # --- what the operator does

    def act(self, action: Any) -> dict[str, Any] | None:
        """Do it as the API server would; what was made."""
        if isinstance(action, Note):
            self.events.append(action)
            return None
        if isinstance(action, (Retire, Stay)):
            self._order(action)
            return None
        self.calls.append(f"{type(action).__name__} {self._what(action)}")
        if isinstance(action, Apply):
            return self.put(dict(action.manifest))
        if isinstance(action, (Create, MakeSecret)):
            manifest = copied(dict(action.manifest))
            if self._key(manifest) in self.objects:
                return None
            if manifest["kind"] == "Pod":
                there = sum(key[0] == "Pod" and key[1] == manifest["metadata"]["namespace"] for key in self.objects)
                if self.quota is not None and there >= self.quota:
                    raise RefusedError(
                        f'pods "{manifest["metadata"]["name"]}" is forbidden: exceeded quota: few, limited: pods={self.quota}'
                    )
            return self.put(manifest)
        if isinstance(action, Patch):
            found = self.objects.get((action.kind, action.namespace, action.name))
            if found is not None and found["metadata"]["uid"] == action.patch["metadata"]["uid"]:
                found["metadata"].update(action.patch["metadata"])
                if "spec" in action.patch:
                    found["spec"] = {**found["spec"], **action.patch["spec"]}
                    found["metadata"]["generation"] += 1
            return None
        if isinstance(action, RotateToken):
            found = self.objects[("Secret", action.namespace, action.name)]
            found["metadata"].setdefault("annotations", {})[names.ROTATED] = action.value
            return None
        assert isinstance(action, Delete)
        assert action.grace != 0
        key = action.kind, action.namespace, action.name
        found = self.objects.get(key)
        if found is None or found["metadata"]["uid"] != action.uid:
            return None
        process = self.processes.get(action.uid)
        if process is not None and process.state == "running" and not self._allowed(process.cluster):
            known = process.registered is not None and self.now - process.registered >= KNOWN
            others = set().union(*[other.values for other in self.processes.values() if other is not process])
            alone = (process.values & self.values) - others
            if known and alone:
                self.failures.append(f"at {self.now:.0f} {action.name} is deleted, which alone holds {sorted(alone)}")
        self.remove(key, "deleted")
        return None

    @staticmethod
    def _what(action: Any) -> str:
        if hasattr(action, "manifest"):
            return f"{action.manifest['kind']} {action.manifest['metadata']['name']}"
        return f"{getattr(action, 'kind', 'Secret')} {action.name}"

    def _order(self, action: Retire | Stay) -> None:
        if not self.reachable:
            return
        for process in self.processes.values():
            if process.cluster not in self.schedulers or process.registered is None:
                continue
            if isinstance(action, Retire) and process.uid in action.uids and process.state == "running":
                process.state = "retiring"
            elif isinstance(action, Stay) and process.name in action.workers and process.state == "retiring":
                process.state = "running" if not process.leaving else "retiring"

    def write(self, written: Any) -> None:
        found = self.objects.get((written.kind, written.namespace, written.name))
        if found is not None and found["metadata"]["uid"] == written.uid:
            self.calls.append(f"Status {written.kind} {written.name}")
            found["status"] = copied(dict(written.status))

    def ask(self, name: str, namespace: str, ask: Ask) -> SchedulerView:
        """What the scheduler says, in its own words."""
        cluster = "TaskCluster", namespace, name
        scheduler = self.schedulers.get(cluster)
        if scheduler is None or not self.reachable:
            return SchedulerView(False, "connection refused")
        processes = self.registered(cluster)
        staying = [process for process in processes if process.state == "running"]
        # the grace for those who come back begins with the first one
        settled = scheduler.visited is not None and self.now - scheduler.visited >= 3
        workers = [
            {
                "name": process.name,
                "pod_uid": process.uid,
                "state": process.state,
                "values": len(process.values),
                "nbytes": 100 * len(process.values),
                "idle_seconds": None if process.idle_since is None else self.now - process.idle_since,
            }
            for process in processes
        ]
        wanted = max(self.work.get(name, 0), 1 if any(process.values for process in processes) else 0)
        why = "work" if self.work.get(name) else "memory" if wanted else "nothing"
        if not settled and wanted < len(staying):
            wanted, why = len(staying), "settling"
        ranked = sorted(staying, key=lambda one: (len(one.values), one.name))
        spare = [
            {"name": one.name, "pod_uid": one.uid, "idle_seconds": self.now - one.idle_since}
            for one in ranked[: max(0, len(staying) - wanted)]
            if one.idle_since is not None
        ]
        going = [
            {
                "worker": process.name,
                "pod_uid": process.uid,
                "state": "moving" if process.state == "retiring" else "ready",
                "values": sum(not self._elsewhere(value, process, staying) for value in process.values),
                "ended": None,
            }
            for process in processes
            if process.state in ("retiring", "retired")
        ]
        gone = [{"pod_uid": uid, "state": "gone", "values": 0, **more} for uid, more in scheduler.gone.items()]
        return SchedulerView.of(
            wish={
                "workers": wanted,
                "why": why,
                "unmet": self.unmet.get(name, []),
                "spare": spare,
                "settled": settled,
            }
            if Ask.WISH in ask
            else None,
            workers={"workers": workers} if Ask.WORKERS in ask else None,
            retirements={"retirements": going + gone} if Ask.RETIREMENTS in ask else None,
            info={
                "settled": settled,
                "clients": {"connected": self.clients.get(name, 0), "away": 0},
                "tasks": {"sent": self.work.get(name, 0), "done": 7},
            }
            if Ask.INFO in ask
            else None,
        )


class Operator:
    """What carries plans out. All that it knows is what it has seen; dropped and made anew, it looks again."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.expected: dict[str, dict[str, Any]] = {}
        self.deleted: set[str] = set()
        self.refused: dict[Key, dict[str, Refused]] = {}
        self.cache: dict[Key, dict[str, Any]] = {}
        self.waits = False  # for another wish
        self.due = 0.0  # when it looks though nothing has happened
        self.seen_objects = b""
        self.seen_wish: Any = None
        self.sync()

    def sync(self) -> None:
        """See what is so now."""
        self.cache = copied(self.world.objects)
        names_seen = {(key[1], key[2]) for key in self.cache if key[0] == "Pod"}
        self.expected = {
            name: pod
            for name, pod in self.expected.items()
            if (pod["metadata"]["namespace"], name) not in names_seen and pod["metadata"]["uid"] in self._alive()
        }
        self.deleted &= self._alive()

    def _alive(self) -> set[str]:
        return {found["metadata"]["uid"] for found in self.world.objects.values()}

    def observed(self, name: str = "demo", namespace: str = NS) -> Observed:
        def get(kind: str, what: str) -> dict[str, Any] | None:
            return self.cache.get((kind, namespace, what))

        def of(kind: str) -> list[dict[str, Any]]:
            return [found for key, found in self.cache.items() if key[:2] == (kind, namespace)]

        return Observed(
            namespace,
            name,
            self.world.settings,
            get("TaskCluster", name),
            [group for group in of("TaskWorkerGroup") if group["spec"]["cluster"] == name],
            [pod for pod in of("Pod") if pod["metadata"]["labels"].get(names.CLUSTER) == name],
            get("Deployment", f"{name}-scheduler"),
            get("Service", f"{name}-scheduler"),
            self.world.get("Secret", f"{name}-token", namespace),
            get("NetworkPolicy", name),
            expected=[
                pod
                for pod in self.expected.values()
                if pod["metadata"]["namespace"] == namespace and pod["metadata"]["labels"][names.CLUSTER] == name
            ],
            deleted=frozenset(self.deleted),
            refused=self.refused.get(("TaskCluster", namespace, name), {}),
        )

    def plan(self, name: str = "demo", namespace: str = NS) -> Plan:
        observed = self.observed(name, namespace)
        plan = reconcile(observed, self.world.now)
        view = None
        for _ in range(4):  # an answer may lead to another question
            if not plan.ask or (view is not None and not view.lacks(plan.ask)):
                return plan
            assert not plan.actions
            view = self.world.ask(name, namespace, plan.ask)
            plan = reconcile(replace(observed, scheduler=view), self.world.now)
        raise AssertionError(f"it still asks: {plan.ask}")

    def steps(self, name: str = "demo", namespace: str = NS) -> Iterator[Any]:
        """Look at a cluster and do what follows: one action at a time, each named before it is done."""
        plan = self.plan(name, namespace)
        self.waits = Ask.WISH in plan.ask
        refused = self.refused.setdefault(("TaskCluster", namespace, name), {})
        for action in plan.actions:
            yield action
            try:
                made = self.world.act(action)
            except RefusedError as error:
                group = action.manifest["metadata"]["labels"][names.GROUP_LABEL]
                before = refused.get(group)
                refused[group] = Refused(str(error), self.world.now, before.count + 1 if before else 1)
                break
            if isinstance(action, Create) and made is not None:
                self.expected[made["metadata"]["name"]] = copied(made)
                refused.pop(made["metadata"]["labels"][names.GROUP_LABEL], None)
            if isinstance(action, Delete) and action.kind == "Pod":
                self.deleted.add(action.uid)
        for written in plan.status:
            yield written
            self.world.write(written)

    def _wish(self, name: str, namespace: str) -> Any:
        """What whoever waits for another wish is told, if the last plan has one wait."""
        if not self.waits or not self.world.reachable:
            return self.seen_wish
        wish = self.world.ask(name, namespace, Ask.WISH).wish
        return wish and (wish.workers, wish.why, wish.unmet, wish.settled, [one.worker for one in wish.spare])

    def run(self, name: str = "demo", namespace: str = NS) -> list[Any]:
        """All of it; what was done."""
        self.sync()
        return list(self.steps(name, namespace))

    def settle(self, name: str = "demo", namespace: str = NS, most: int = 600) -> int:
        """Go on until nothing changes any more, as the real one does: looking only when an object has changed, when the wish is
        another one, or when a plan has said so.

        Raises:
            AssertionError: it goes on and on.
        """
        world = self.world
        quiet, done = 0, []
        for step in range(most):
            now = marshal.dumps([found for key, found in world.objects.items() if key[1] == namespace])
            wished = self._wish(name, namespace)
            done = []
            if world.now >= self.due or now != self.seen_objects or wished != self.seen_wish:
                before = marshal.dumps(list(world.objects.values())), [one.state for one in world.processes.values()]
                done = self.run(name, namespace)
                if before == (
                    marshal.dumps(list(world.objects.values())),
                    [one.state for one in world.processes.values()],
                ):
                    done = []  # what was tried was refused
                # what it has just written is news to it, too
                again = self.plan(name, namespace).again
                self.due = float("inf") if again is None else world.now + again
                self.seen_objects, self.seen_wish = now, wished
            world.step(length=1.0 if quiet < 4 else 10.0)
            quiet = 0 if done else quiet + 1
            if quiet >= 8:
                return step
        raise AssertionError(f"after {most} steps it still does {done}")


def age(pod: dict[str, Any], now: float) -> float:
    return now - (seconds(pod["metadata"]["creationTimestamp"]) or now)
