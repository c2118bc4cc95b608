"""Which resources to look at, and looking at them: all that is known, decided, done, one at a time each.

News of any object only say which TaskCluster or TaskJob to look at. Between two looks nothing is kept but what was done and
cannot be seen yet (:class:`taskloom_operator.apply.Memory`).
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from taskloom_operator.actions import Ask, Plan
from taskloom_operator.api import Api, ApiError
from taskloom_operator.apply import EXPECTED, Hands
from taskloom_operator.desired import reconcile, reconcile_job
from taskloom_operator.metrics import Metrics
from taskloom_operator.names import CLUSTER, COMPONENT, MANAGED_BY, OPERATOR, scheduler_name
from taskloom_operator.observe import Observed, ObservedJob, SchedulerView, Settings
from taskloom_operator.scheduler_api import Credentials, SchedulerError, Schedulers
from taskloom_operator.watch import Reflector

__all__ = ["Controller"]

AT_ONCE = 16  # looks at a time
AGAIN = (0.5, 60.0)  # seconds after a look that went wrong, at first and at last
PAUSE = 0.5  # seconds between two questions whether a scheduler's wish is another one
DEAF = (2.0, 4.0)  # seconds after which one that did not answer that is asked again
TAIL = {"tailLines": 80, "limitBytes": 64 << 10}
OURS = f"{MANAGED_BY}={OPERATOR}"

Key = tuple[str, str, str]  # "cluster" or "job", namespace, name

_log = logging.getLogger("taskloom_operator")


class Queue:
    """Keys that are due, or will be; each is handed out once at a time."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []
        self._busy: set[Key] = set()
        self._again: dict[Key, float] = {}
        self._news = asyncio.Event()

    def add(self, key: Key, after: float = 0.0) -> None:
        """Look at it in so many seconds, or before if that was said already."""
        when = time.monotonic() + after
        due = self._again if key in self._busy else self._due
        if key not in due or when < due[key]:
            due[key] = when
            if due is self._due:
                heapq.heappush(self._heap, (when, key))
                self._metrics.queued.set(len(self._due))
                self._news.set()

    async def take(self) -> Key:
        """The next one that is due. Say :meth:`done` when it was looked at."""
        while True:
            self._news.clear()
            wait: float | None = None
            while self._heap:
                when, key = self._heap[0]
                if self._due.get(key) != when:
                    heapq.heappop(self._heap)
                    continue
                wait = when - time.monotonic()
                if wait > 0:
                    break
                heapq.heappop(self._heap)
                del self._due[key]
                self._busy.add(key)
                self._metrics.queued.set(len(self._due))
                return key
            try:
                async with asyncio.timeout(wait):
                    await self._news.wait()
            except TimeoutError:
                pass

    def done(self, key: Key) -> None:
        """It was looked at; what has happened meanwhile counts."""
        self._busy.discard(key)
        when = self._again.pop(key, None)
        if when is not None:
            self.add(key, when - time.monotonic())


class Controller:
    """See the module's text.

    Args:
        api: of Kubernetes. schedulers: of clusters.
        namespaces: those that are looked at; empty: all.
    """

    def __init__(
        self, api: Api, schedulers: Schedulers, metrics: Metrics, settings: Settings, namespaces: Sequence[str] = ()
    ) -> None:
        self._api = api
        self._schedulers = schedulers
        self._metrics = metrics
        self._settings = settings
        self._hands = Hands(api, schedulers, metrics, self._answered)
        self._queue = Queue(metrics)
        self._tries: dict[Key, int] = {}
        self._news: dict[Key, _News] = {}  # who wait for another wish of a scheduler
        self._synced = False
        self._phases: dict[tuple[str, str], int] = {}
        self._reflectors: dict[str, list[Reflector]] = {}
        for kind, labels, index in (
            ("TaskCluster", "", None),
            ("TaskWorkerGroup", "", _cluster_of_group),
            ("TaskJob", "", None),
            ("Pod", OURS, _cluster_of),
            ("Deployment", OURS, None),
            ("Service", OURS, None),
            ("NetworkPolicy", OURS, None),
            ("Job", OURS, None),
        ):
            self._reflectors[kind] = [
                Reflector(api, kind, namespace, labels, self._changed, index) for namespace in (namespaces or (None,))
            ]

    @property
    def silent(self) -> float:
        """For how many seconds the API server has not been heard, by the watch that is worst off."""
        return time.monotonic() - min(one.heard for several in self._reflectors.values() for one in several)

    async def run(self) -> None:
        """Look at what there is, for ever."""
        reflectors = [one for several in self._reflectors.values() for one in several]
        tasks = [asyncio.ensure_future(one.run()) for one in reflectors]
        try:
            for one in reflectors:
                await one.synced.wait()
            self._synced = True
            _log.info("all is listed: %d TaskClusters", len(self._all("TaskCluster")))
            for kind, name in (("TaskCluster", "cluster"), ("TaskJob", "job")):
                for found in self._all(kind):
                    self._queue.add((name, *_place(found)))
            for group in self._all("TaskWorkerGroup"):
                self._queue.add(("cluster", group["metadata"]["namespace"], _cluster_of_group(group)[1]))
            tasks += [asyncio.ensure_future(self._work()) for _ in range(AT_ONCE)]
            await asyncio.gather(*tasks)
        finally:
            tasks += [news.task for news in self._news.values()]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)  # whoever acts next is not to meet a write of ours

    # --- what is known

    def _all(self, kind: str) -> list[dict[str, Any]]:
        return [found for one in self._reflectors[kind] for found in one.all()]

    def _get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        for one in self._reflectors[kind]:
            found = one.get(namespace, name)
            if found is not None:
                return found
        return None

    def _of(self, kind: str, key: Any) -> list[dict[str, Any]]:
        return [found for one in self._reflectors[kind] for found in one.of(key)]

    def _answered(self, found: Mapping[str, Any]) -> None:
        """The API server has answered with an object: it is known before the watch tells of it."""
        for one in self._reflectors.get(found.get("kind", ""), ()):
            if one.namespace in (None, found["metadata"]["namespace"]):
                one.put(found)

    def _changed(self, kind: str, before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> None:
        found = now if now is not None else before
        assert found is not None
        namespace, name = _place(found)
        if kind in ("TaskCluster", "TaskJob"):
            self._count(kind, before, now)
        if kind == "TaskCluster" and (now is None or (before and before["metadata"]["uid"] != now["metadata"]["uid"])):
            self._hands.memory.forget((namespace, name))  # another one of its name has nothing of it
        elif kind == "Pod":
            self._hands.memory.seen(_cluster_of(found), name)
        if not self._synced:
            return
        if kind == "TaskJob":
            self._queue.add(("job", namespace, name))
            return
        if kind == "TaskCluster":
            self._queue.add(("cluster", namespace, name))
            self._add_owner(found, namespace)
        elif kind == "TaskWorkerGroup":
            for one in (before, now):
                if one is not None:
                    self._queue.add(("cluster", namespace, _cluster_of_group(one)[1]))
        elif kind == "Job":
            self._add_owner(found, namespace)
        else:
            labels = found["metadata"].get("labels") or {}
            if labels.get(COMPONENT) == "job":
                job = labels.get("batch.kubernetes.io/job-name")
                if job:
                    self._queue.add(("job", namespace, job))
            elif labels.get(CLUSTER):
                self._queue.add(("cluster", namespace, labels[CLUSTER]))

    def _add_owner(self, found: Mapping[str, Any], namespace: str) -> None:
        for owner in found["metadata"].get("ownerReferences") or ():
            if owner.get("controller") and owner["kind"] == "TaskJob":
                self._queue.add(("job", namespace, owner["name"]))

    def _count(self, kind: str, before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> None:
        for found, step in ((before, -1), (now, 1)):
            if found is not None:
                label = kind, str((found.get("status") or {}).get("phase") or "New")
                self._phases[label] = self._phases.get(label, 0) + step
                self._metrics.phases.labels(*label).set(self._phases[label])

    # --- looking

    async def _work(self) -> None:
        while True:
            key = await self._queue.take()
            start = time.perf_counter()
            again: float | None
            outcome = "done"
            try:
                again = await (self._cluster(key) if key[0] == "cluster" else self._job(key))
                self._tries.pop(key, None)
            except asyncio.CancelledError:
                raise
            except ApiError as error:
                outcome = "failed"
                _log.warning("%s %s/%s: %s", *key, error)
                again = self._later(key)
            except Exception:  # a defect: the others are looked at all the same
                outcome = "failed"
                _log.exception("%s %s/%s", *key)
                again = self._later(key)
            self._metrics.reconciles.labels(key[0], outcome).inc()
            self._metrics.seconds.labels(key[0]).observe(time.perf_counter() - start)
            self._queue.done(key)
            if again is not None:
                self._queue.add(key, again)

    def _later(self, key: Key) -> float:
        tries = self._tries[key] = self._tries.get(key, 0) + 1
        return min(AGAIN[0] * 2.0 ** min(tries - 1, 20), AGAIN[1])

    async def _cluster(self, key: Key) -> float | None:
        _, namespace, name = key
        place = namespace, name
        memory = self._hands.memory
        cluster = self._get("TaskCluster", namespace, name)
        secret = None
        if cluster is None:
            self._stop_news(key)
            memory.forget(place)
        elif not cluster["metadata"].get("deletionTimestamp"):
            secret = await self._hands.secret(namespace, name, cluster["metadata"]["uid"])
        observed = Observed(
            namespace,
            name,
            self._settings,
            cluster=cluster,
            groups=self._of("TaskWorkerGroup", place),
            pods=self._of("Pod", place),
            deployment=self._get("Deployment", namespace, scheduler_name(name)),
            service=self._get("Service", namespace, scheduler_name(name)),
            secret=None if secret is None else secret.manifest,
            network_policy=self._get("NetworkPolicy", namespace, name),
            expected=await self._hands.expected(place, lambda pod: self._get("Pod", namespace, pod) is not None),
            deleted=memory.uids_deleted(),
            refused=dict(memory.refused.get(place, {})),
        )
        plan = reconcile(observed, time.time())
        credentials = None if secret is None else secret.credentials
        asked = Ask.NOTHING
        while plan.ask & ~asked:  # with the answers it may want to know more
            asked |= plan.ask
            view = SchedulerView(False, "the Secret with its token is not there, or not fit for use")
            if credentials is not None:
                view = await self._schedulers.view(namespace, name, credentials, asked, plan.threads)
                if (
                    not view.reachable and "CERTIFICATE" in view.error
                ):  # another one than that of the Secret as we know it
                    secret = await self._hands.secret(namespace, name, "", again=True)
                    credentials = None if secret is None else secret.credentials
            plan = reconcile(replace(observed, scheduler=view), time.time())
        if plan.look:
            memory.secrets.pop(place, None)
        done = await self._hands.do(namespace, name, plan.actions, plan.status)
        if plan.ask & Ask.WISH and credentials is not None:
            self._start_news(key, credentials, plan)
        else:
            self._stop_news(key)
        if place in memory.expected:
            self._queue.add(key, EXPECTED + 1.0)  # that they are not seen is no news
        return self._next(key, plan, done)

    def _next(self, key: Key, plan: Plan, done: bool) -> float | None:
        if not done:
            return self._later(key)
        self._tries.pop(key, None)
        return plan.again

    async def _job(self, key: Key) -> float | None:
        _, namespace, name = key
        job = self._get("TaskJob", namespace, name)
        if job is None:
            return None
        cluster = f"{name}-cluster"
        observed = ObservedJob(
            job,
            self._settings,
            cluster=self._get("TaskCluster", namespace, cluster),
            batch=self._get("Job", namespace, name),
            pods=[
                pod
                for pod in self._of("Pod", (namespace, cluster))
                if (pod["metadata"].get("labels") or {}).get(COMPONENT) == "job"
            ],
        )
        plan = reconcile_job(observed, time.time())
        if plan.tail:
            plan = reconcile_job(replace(observed, tail=await self._tail(namespace, plan.tail)), time.time())
        done = await self._hands.do(namespace, name, plan.actions, plan.status)
        return self._next(key, plan, done)

    async def _tail(self, namespace: str, pod: str) -> str:
        try:
            return await self._api.text(Api.path("Pod", namespace, pod, "log"), TAIL)
        except ApiError as error:
            _log.info("the log of %s/%s cannot be had: %s", namespace, pod, error)
            return ""

    # --- news of schedulers

    def _start_news(self, key: Key, credentials: Credentials, plan: Plan) -> None:
        news = self._news.get(key)
        if news is not None and not news.task.done() and news.terms == (credentials, plan.threads):
            return
        self._stop_news(key)
        task = asyncio.ensure_future(self._wait_for_news(key, credentials, plan.threads))
        self._news[key] = _News(task, (credentials, plan.threads))

    def _stop_news(self, key: Key) -> None:
        news = self._news.pop(key, None)
        if news is not None:
            news.task.cancel()

    async def _wait_for_news(self, key: Key, credentials: Credentials, threads: int) -> None:
        since = ""
        while True:
            try:
                said = await self._schedulers.news(key[1], key[2], credentials, since, threads)
            except SchedulerError:
                # it is looked at, and waited for again if it can be; but who refuses does so at once, again and again
                self._queue.add(key, random.uniform(*DEAF))
                return
            if since and said.get("changed", True):
                self._queue.add(key)
            since = str(said.get("version", ""))
            await asyncio.sleep(PAUSE)  # of a cluster at work it is another one all the time


class _News(NamedTuple):
    """Who waits for another wish of a scheduler, and with what."""

    task: asyncio.Task[None]
    terms: tuple[Credentials, int]


def _place(found: Mapping[str, Any]) -> tuple[str, str]:
    return found["metadata"]["namespace"], found["metadata"]["name"]


def _cluster_of(found: Mapping[str, Any]) -> tuple[str, str]:
    return found["metadata"]["namespace"], (found["metadata"].get("labels") or {}).get(CLUSTER, "")


def _cluster_of_group(found: Mapping[str, Any]) -> tuple[str, str]:
    return found["metadata"]["namespace"], (found.get("spec") or {}).get("cluster", "")
