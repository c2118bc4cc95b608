"""A TaskCluster as an object of a program: made or joined, scaled, connected with, and deleted in the end."""

from __future__ import annotations

import atexit
import contextlib
import copy
import getpass
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskloom.config import positive_int
from taskloom.core.messages import KINDS
from taskloom.deploy.kube.api import Api, passing
from taskloom.deploy.kube.names import GROUP, VERSION
from taskloom.deploy.kube.reach import Pauses, Reached, troubles, way_to
from taskloom.errors import ClusterError, HandshakeError, KubernetesError
from taskloom.net import Options, Token, connect

__all__ = ["KubeCluster", "delete", "is_ready", "log_query", "manifest", "pod_of", "scaled", "told", "until"]

ORPHANED = 3600  # seconds with no client and no work after which a cluster ends whose program was killed
AFTERWARDS = 600  # seconds until its resource is deleted, too
_HOPELESS = ("NameTaken", "Finished", "Suspended")  # reasons that waiting does not mend
_NEARLY = ("ImagePullError",)  # nor these, most times
PATIENCE = 15.0  # seconds for these

Condition = Callable[[dict[str, Any]], bool]

_open: set[KubeCluster] = set()  # not weak: what was made and is not closed is deleted when the program ends


class KubeCluster:
    """A cluster on Kubernetes: makes a TaskCluster, or joins the one that is there by that name.

    The operator of taskloom's Helm chart has to run there. With ``taskloom.Client(cluster)`` it is used as any cluster; from
    outside of Kubernetes, connections go through the API server.

    Args:
        name: of the TaskCluster; by default a new name.
        namespace: by default that of the kubeconfig's context, or of this pod.
        n_workers: how many workers; by default 1. Of a cluster that is there, it is changed.
        image: what scheduler and workers run; by default the operator's setting. It needs the minor version of Python that
            this program has.
        adapt: (minimum, maximum): as many workers as there is work for, instead of ``n_workers``.
        threads: how many tasks each worker runs at a time; by default its CPUs.
        memory_limit: how much memory the values of a worker may take, such as ``"2Gi"``; by default the container's limit.
        resources: of each worker's container: ``{"requests": {"cpu": 1}, "limits": {"memory": "2Gi"}}``.
        task_resources: name -> amount of what each worker has that tasks can ask for.
        env: variables of the workers.
        spec: a TaskCluster's ``spec`` to begin with, for all that has no argument here.
        context: of the kubeconfig; by default the present one.
        timeout: seconds until the cluster is ready.
        wait: False: come back when the scheduler is there, and do not wait for the workers.
        shutdown_on_close: whether the TaskCluster is deleted by :meth:`close`, and at the end of the program; by default if it
            was made here. Such a cluster also ends by itself after an hour without a client, if the program was killed.

    Attributes:
        name, namespace: of the TaskCluster.
        created: whether it was made here.
        address: of the scheduler, from here.
        token: what a client has to know.

    Raises:
        KubernetesError: the API server refuses something; says what to do.
        TimeoutError: it is not ready in time; says what the operator says about it.
        HandshakeError: the image has another Python than this program, or another version of taskloom.

    ::

        with taskloom.KubeCluster(n_workers=10) as cluster, taskloom.Client(cluster) as client:
            client.submit(sum, [1, 2]).result()
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        namespace: str | None = None,
        n_workers: int | None = None,
        image: str | None = None,
        adapt: tuple[int, int] | None = None,
        threads: int | None = None,
        memory_limit: str | int | None = None,
        resources: Mapping[str, Any] | None = None,
        task_resources: Mapping[str, float] | None = None,
        env: Mapping[str, str] | None = None,
        spec: Mapping[str, Any] | None = None,
        context: str | None = None,
        timeout: float = 120.0,
        wait: bool = True,
        shutdown_on_close: bool | None = None,
    ) -> None:
        wanted = manifest(
            name or _new_name(),
            n_workers=n_workers,
            image=image,
            adapt=adapt,
            threads=threads,
            memory_limit=memory_limit,
            resources=resources,
            task_resources=task_resources,
            env=env,
            spec=spec,
        )
        self.name: str = wanted["metadata"]["name"]
        self.created = False
        self._closed = False
        self._pid = os.getpid()
        self._way: Reached | None = None
        self._seen: dict[str, Any] = {}
        self._shutdown = False
        self._api = Api(context)
        self.namespace = namespace or self._api.namespace
        deadline = time.monotonic() + timeout
        try:
            self._api.run(self._open(wanted, shutdown_on_close, n_workers, adapt))
            self._api.run(self._connect(deadline, timeout))
            if wait:
                self._api.run(self._until(is_ready, deadline, timeout, "ready"))
        except BaseException:
            self.close()
            raise

    # --- making and joining

    async def _open(
        self, wanted: dict[str, Any], shutdown: bool | None, n_workers: int | None, adapt: tuple[int, int] | None
    ) -> None:
        found = await self._api.get("taskclusters", self.namespace, self.name)
        if found is None:
            made = copy.deepcopy(wanted)
            if shutdown is not False:
                made["spec"].setdefault("idleTimeout", ORPHANED)
                made["spec"].setdefault("ttlSecondsAfterFinished", AFTERWARDS)
            try:
                # Not a server-side apply: that would change the one that somebody else makes just now.
                found = await self._api.request(
                    "create", "taskclusters", self.namespace, body=made, query={"fieldValidation": "Strict"}
                )
                self.created = True
            except KubernetesError as error:
                if error.reason != "AlreadyExists":
                    raise
                found = await self._api.cluster(self.namespace, self.name)
        assert found is not None
        self._seen = found
        self._shutdown = self.created if shutdown is None else shutdown
        if self._shutdown:
            _open.add(self)
        if not self.created:
            self._compare(wanted["spec"], found["spec"])
            if n_workers is not None or adapt is not None:
                await self._scale(wanted["spec"]["workers"])

    def _compare(self, wanted: Mapping[str, Any], there: Mapping[str, Any]) -> None:
        """A cluster that others use is not made another one."""
        wanted = copy.deepcopy(dict(wanted))
        for part in ("replicas", "autoscale"):
            wanted.get("workers", {}).pop(part, None)
        other = _difference(wanted, there, "")
        if other is not None:
            path, want, have = other
            raise KubernetesError(
                f"the TaskCluster {self.namespace}/{self.name} is there already, and its {path} is {have!r}, not {want!r}. To "
                "join it, leave that out; to change it, kubectl edit; or take another name",
                409,
                "Differs",
            )

    async def _connect(self, deadline: float, timeout: float) -> None:
        """Find the way, and see that those who are there belong to us, before anything is submitted."""
        await self._until(_has_scheduler, deadline, timeout, "up")
        left = max(2.0, deadline - time.monotonic())
        self._way = await way_to(self._api, self.namespace, self.name, left, owns=False)
        try:
            connection = await connect(
                self._way.address,
                token=self._way.token,
                role="client",
                wants="scheduler",
                timeout=left,
                options=Options(kinds=KINDS),
            )
        except HandshakeError as error:
            if error.code not in ("python", "protocol"):
                raise
            image = (self._seen.get("spec") or {}).get("image") or "the operator's default"
            ours = ".".join(map(str, sys.version_info[:2]))
            raise HandshakeError(
                f"{error}. The image of the TaskCluster {self.namespace}/{self.name} is {image}; one with Python {ours} is made "
                f"by: images/build --base python:{ours}-slim",
                error.code,
            ) from error
        connection.abort()

    # --- what is so

    async def _look(self) -> dict[str, Any]:
        self._seen = await self._api.cluster(self.namespace, self.name)
        return self._seen

    async def _until(self, condition: Condition, deadline: float, timeout: float | None, what: str) -> None:
        def look(seen: dict[str, Any]) -> bool:
            self._seen = seen
            return condition(seen)

        await until(self._api, self.namespace, self.name, look, deadline, timeout, what)

    @property
    def address(self) -> str:
        """Of the scheduler, from here."""
        return self._reached.address

    @property
    def token(self) -> Token:
        """What a client has to know."""
        return self._reached.token

    @property
    def direct(self) -> bool | None:
        """False: its workers cannot be reached from here; None: that has to be tried."""
        return self._reached.direct

    @property
    def _reached(self) -> Reached:
        if self._way is None or self._closed:
            raise ClusterError(f"{self!r} is closed")
        return self._way

    @property
    def status(self) -> dict[str, Any]:
        """The status of the TaskCluster, as the operator has written it: phase, conditions, numbers of workers.

        Raises:
            KubernetesError: it is gone.
        """
        self._check()
        return dict(self._api.run(self._look()).get("status") or {})

    @property
    def workers(self) -> list[str]:
        """Names of the worker pods that there are, those of other groups too."""
        self._check()
        pods = self._api.run(self._api.pods(self.namespace, self.name, "worker"))
        return sorted(pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"])

    def wait_for_workers(self, count: int | None = None, timeout: float | None = 120.0) -> None:
        """Wait until so many workers are ready; by default as many as there are to be.

        Raises:
            TimeoutError: they are not, in so many seconds; says why.
        """
        self._check()
        if count is not None:
            positive_int("count", count)
        deadline = time.monotonic() + (10**9 if timeout is None else timeout)

        def enough(seen: Mapping[str, Any]) -> bool:
            if count is None:
                return is_ready(seen)
            return int((seen.get("status") or {}).get("readyReplicas", 0)) >= count

        what = "ready" if count is None else f"there with {count} workers"
        self._api.run(self._until(enough, deadline, timeout, what))

    def logs(self, worker: str | None = None, lines: int | None = None, previous: bool = False) -> str:
        """What a worker has written, or the scheduler.

        Args:
            worker: one of :attr:`workers`; None: the scheduler.
            lines: the last so many; None: all that is kept.
            previous: of the container that was there before it was started again.

        Raises:
            KubernetesError: there is no such pod.
        """
        self._check()
        return self._api.run(logs(self._api, self.namespace, self.name, worker, lines, previous))

    # --- changing it

    def scale(self, n: int) -> None:
        """Have so many workers from now on; it is not waited for. Those that go have their values moved before.

        Raises:
            KubernetesError: the API server refuses it.
        """
        if n != 0:
            positive_int("n", n)
        self._check()
        self._api.run(self._scale({"replicas": n}))

    def adapt(self, minimum: int = 0, maximum: int = 10, idle_seconds: int | None = None) -> None:
        """Have as many workers as there is work for, from now on.

        Args:
            minimum, maximum: how many there are at least and at most.
            idle_seconds: for how long a worker has nothing to do before it may go.

        Raises:
            KubernetesError: the API server refuses it.
        """
        self._check()
        self._api.run(self._scale({"autoscale": _autoscale(minimum, maximum, idle_seconds)}))

    async def _scale(self, workers: Mapping[str, Any]) -> None:
        self._seen = await scaled(self._api, await self._look(), workers)

    # --- the end

    def _check(self) -> None:
        if self._closed:
            raise ClusterError(f"{self!r} is closed")

    def close(self) -> None:
        """Leave it. If it was made here, or ``shutdown_on_close``, the TaskCluster is deleted, and all its pods with it."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        _open.discard(self)
        try:
            if self._way is not None:
                self._way.close()
            if self._shutdown and self._seen:
                self._api.run(delete(self._api, self._seen))
        finally:
            self._api.close()

    def __enter__(self) -> KubeCluster:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        status = self._seen.get("status") or {}
        ready, wanted = status.get("readyReplicas", 0), status.get("desiredReplicas", 0)
        state = "closed" if self._closed else f"{ready} of {wanted} worker{'' if wanted == 1 else 's'} ready"
        return f"<KubeCluster {getattr(self, 'namespace', '?')}/{self.name}: {state}>"


# --- what the command needs, too


def manifest(
    name: str,
    *,
    n_workers: int | None = None,
    image: str | None = None,
    adapt: tuple[int, int] | None = None,
    threads: int | None = None,
    memory_limit: str | int | None = None,
    resources: Mapping[str, Any] | None = None,
    task_resources: Mapping[str, float] | None = None,
    env: Mapping[str, str] | None = None,
    spec: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A TaskCluster as it is written; see :class:`KubeCluster`.

    Raises:
        TypeError, ValueError: an argument is not as it should be.

    >>> manifest("demo", n_workers=3, image="taskloom:1", threads=2)["spec"]
    {'workers': {'replicas': 3, 'threads': 2}, 'image': 'taskloom:1'}
    """
    found: dict[str, Any] = copy.deepcopy(dict(spec or {}))
    workers: dict[str, Any] = dict(found.get("workers") or {})
    found["workers"] = workers
    if n_workers is not None and adapt is not None:
        raise TypeError("n_workers says how many workers there are, and adapt that it changes: give one of them")
    if n_workers is not None:
        workers.pop("autoscale", None)
        workers["replicas"] = 0 if n_workers == 0 else positive_int("n_workers", n_workers)
    elif adapt is not None:
        workers.pop("replicas", None)
        minimum, maximum = adapt
        workers["autoscale"] = _autoscale(minimum, maximum)
    elif "replicas" not in workers and "autoscale" not in workers:
        workers["replicas"] = 1
    if threads is not None:
        workers["threads"] = positive_int("threads", threads)
    if memory_limit is not None:
        workers["memoryLimit"] = memory_limit
    if resources is not None:
        others = sorted(set(resources) - {"requests", "limits", "claims"})
        if others:
            raise ValueError(
                f"resources are those of a container, {{'requests': {{'cpu': 1}}, 'limits': {{'memory': '2Gi'}}}}; it has "
                f"{', '.join(map(repr, others))}. What tasks ask for by name is task_resources"
            )
        workers["resources"] = copy.deepcopy(dict(resources))
    if task_resources is not None:
        workers["taskResources"] = dict(task_resources)
    if env:
        _set_env(workers, env)
    if image is not None:
        found["image"] = image
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TaskCluster",
        "metadata": {"name": name},
        "spec": found,
    }


def _autoscale(minimum: int, maximum: int, idle_seconds: int | None = None) -> dict[str, int]:
    if minimum != 0:
        positive_int("minimum", minimum)
    positive_int("maximum", maximum)
    if minimum > maximum:
        raise ValueError(f"at least {minimum} workers and at most {maximum} cannot be")
    found = {"min": minimum, "max": maximum}
    return found if idle_seconds is None else {**found, "idleSeconds": idle_seconds}


def _set_env(workers: dict[str, Any], env: Mapping[str, str]) -> None:
    """Put variables into the worker's container of a pod template; those that are there by such a name are replaced."""
    for name, value in env.items():
        if not isinstance(value, str):
            raise TypeError(f"the variable {name} is a string, not {value!r}")
    template = workers["podTemplate"] = copy.deepcopy(dict(workers.get("podTemplate") or {}))
    pod = template.setdefault("spec", {})
    containers = pod.setdefault("containers", [])
    worker = next((one for one in containers if one.get("name") == "worker"), None)
    if worker is None:
        worker = {"name": "worker"}
        containers.append(worker)
    kept = [one for one in worker.get("env") or () if one.get("name") not in env]
    worker["env"] = [*kept, *({"name": name, "value": value} for name, value in env.items())]


async def scaled(api: Api, found: Mapping[str, Any], workers: Mapping[str, Any]) -> dict[str, Any]:
    """Change how many workers a cluster has.

    Args:
        found: the TaskCluster as it is.
        workers: ``replicas``, or ``autoscale``.

    Returns:
        the TaskCluster as it is then.
    """
    namespace, name = found["metadata"]["namespace"], found["metadata"]["name"]
    now = found["spec"].get("workers") or {}
    if "replicas" in workers and now.get("autoscale") is None:
        body = {"spec": {"replicas": workers["replicas"]}}
        await api.request("patch", "taskclusters", namespace, name, "scale", body)
        return await api.cluster(namespace, name)
    change = {"replicas": workers.get("replicas"), "autoscale": workers.get("autoscale")}
    body = {"spec": {"workers": change}}
    query = {"fieldValidation": "Strict"}
    changed: dict[str, Any] = await api.request("patch", "taskclusters", namespace, name, body=body, query=query)
    return changed


async def delete(api: Api, found: Mapping[str, Any]) -> None:
    """Delete a TaskCluster: this one, and no other of its name; its pods go after it. That it is gone is no error."""
    metadata = found["metadata"]
    options = {"propagationPolicy": "Background", "preconditions": {"uid": metadata["uid"]}}
    try:
        await api.request("delete", "taskclusters", metadata["namespace"], metadata["name"], body=options, timeout=10.0)
    except KubernetesError as error:
        if error.status not in (404, 409):  # it is gone, be there another one of its name or not
            raise


async def until(
    api: Api, namespace: str, name: str, condition: Condition, deadline: float, timeout: float | None, what: str
) -> None:
    """Look at a TaskCluster until something is so of it.

    Args:
        deadline: as :func:`time.monotonic` counts.
        timeout, what: for the error.

    Raises:
        TimeoutError: it is not so in time; says what the operator says.
        KubernetesError: it never will be, or the cluster is gone.
    """
    since: float | None = None  # something nearly hopeless is told
    pauses = Pauses()
    while True:
        try:
            seen = await api.cluster(namespace, name)
        except KubernetesError as error:
            if not passing(error) or time.monotonic() > deadline:
                raise
        else:
            if condition(seen):
                return
            reasons = {one.get("reason") for one in told(seen) if one["status"] != "True"}
            since = (since or time.monotonic()) if reasons.intersection(_NEARLY) else None
            if reasons.intersection(_HOPELESS) or (since is not None and time.monotonic() > since + PATIENCE):
                raise KubernetesError(f"the TaskCluster {namespace}/{name}: {troubles(seen)}", 0, "NotRunning")
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"the TaskCluster {namespace}/{name} is not {what} after {timeout:g} s: {troubles(seen)}"
                )
        await pauses.pause()


async def pod_of(api: Api, namespace: str, name: str, worker: str | None) -> tuple[str, str]:
    """A pod of a cluster, and its container.

    Args:
        worker: the name of its pod, or the end of that; None: the scheduler.

    Raises:
        KubernetesError: there is none, or several that have that end; says which there are.
    """
    component = "scheduler" if worker is None else "worker"
    pods: Sequence[Mapping[str, Any]] = await api.pods(namespace, name, component)
    if worker is not None:
        names = [pod["metadata"]["name"] for pod in pods]
        fit = [one for one in names if one == worker] or [one for one in names if one.endswith(f"-{worker}")]
        if len(fit) == 1:
            return fit[0], component
    elif pods:
        # the one that is on its way out, only if there is no other
        pods = sorted(pods, key=lambda pod: ("deletionTimestamp" not in pod["metadata"], _born(pod)))
        return str(pods[-1]["metadata"]["name"]), component
    await api.cluster(namespace, name)  # that there is none explains it
    if worker is None:
        words = f"the TaskCluster {namespace}/{name} has no scheduler just now"
    else:
        there = f"there are {', '.join(sorted(names))}" if names else "it has none"
        words = f"the TaskCluster {namespace}/{name} has no worker {worker}; {there}"
    raise KubernetesError(words, 404, "NotFound")


async def logs(
    api: Api, namespace: str, name: str, worker: str | None, lines: int | None = None, previous: bool = False
) -> str:
    """See :meth:`KubeCluster.logs`."""
    pod, container = await pod_of(api, namespace, name, worker)
    query = log_query(container, lines, previous)
    return "".join([line async for line in api.lines(namespace, pod, query)])


def log_query(container: str, lines: int | None, previous: bool = False, follow: bool = False) -> dict[str, str]:
    """What to ask of a container's log."""
    query = {"container": container}
    if lines is not None:
        query["tailLines"] = str(lines)
    if previous:
        query["previous"] = "true"
    if follow:
        query["follow"] = "true"
    return query


def _born(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"].get("creationTimestamp") or "")


def _new_name() -> str:
    """A name that nobody has: the user's, and something by chance."""
    try:
        user = re.sub(r"[^a-z0-9]+", "-", getpass.getuser().lower()).strip("-")
    except (KeyError, OSError):  # a user without a name, as in many containers
        user = ""
    if not user[:1].isalpha():
        user = "taskloom"
    return f"{user[:20].rstrip('-')}-{secrets.token_hex(3)}"


def told(seen: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The conditions that were told of a resource as it is now."""
    status = seen.get("status") or {}
    generation = seen["metadata"].get("generation", 0)
    if status.get("observedGeneration", generation) != generation:
        return []
    return list(status.get("conditions") or ())


def _is(seen: Mapping[str, Any], kind: str) -> bool:
    return any(one["type"] == kind and one["status"] == "True" for one in told(seen))


def is_ready(seen: Mapping[str, Any]) -> bool:
    """Whether the scheduler and all workers that there should be are there."""
    return _is(seen, "Ready")


def _has_scheduler(seen: Mapping[str, Any]) -> bool:
    return _is(seen, "SchedulerReady")


def _difference(wanted: Any, there: Any, path: str) -> tuple[str, Any, Any] | None:
    """The first field that is wanted otherwise than it is there: where, what is wanted, and what there is."""
    if isinstance(wanted, Mapping):
        if not isinstance(there, Mapping):
            return (path, dict(wanted), there) if wanted else None
        for key, value in wanted.items():
            found = _difference(value, there.get(key), f"{path}.{key}".lstrip("."))
            if found is not None:
                return found
        return None
    return None if wanted == there else (path, wanted, there)


def _end() -> None:
    """The program ends: what was made for it goes."""
    for cluster in list(_open):
        with contextlib.suppress(Exception):
            cluster.close()


atexit.register(_end)
