"""The workers of one group: which are made, which go, and how.

Rules:

- A pod that is being deleted counts no more, however long that takes: its node may be gone.
- What holds values, or may hold some, goes by retirement: the scheduler is told, moves the values, tells the worker that it may
  go, and the pod is deleted when that is so, or when it has ended. Who cannot be asked allows nothing.
- Who holds nothing goes at once: pods that have never registered. The pod says so (its startup probe asks whether it has
  registered), and the scheduler's word counts more where it is known.
- The status names those that are to go (``draining``). That is a memory for the operator and words for people; what is true
  says the scheduler. A scheduler that was started anew knows of no retirement, and is asked again.
- More are wanted while some are going: those stay, before new ones are made.
- A spec with another hash: at most a quarter more pods than wanted, at least one more; old ones retire when new ones are ready.
  Where new ones cannot come, a quarter may be missing for a time, as long as somebody is left to take the values.
- A pod that ends by itself is replaced after a while that doubles from one to the next, up to five minutes; it stays until
  then, so that the count is in the objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from taskloom_operator import names
from taskloom_operator.actions import Ask
from taskloom_operator.desired.pods import Pod
from taskloom_operator.desired.times import backoff, stamp
from taskloom_operator.observe import Refused, RetirementView, SchedulerView, WorkerView

__all__ = ["Blocked", "Change", "Group", "Limits", "decide"]

LOST = 30.0  # seconds after which one that the scheduler does not know, and that says itself that it is not ready, is given up
STALLED = 30.0  # seconds after which a new pod that cannot start holds up a roll no more
LOOK = 5.0  # seconds after which a retirement is looked at again; mostly the pod's end is news enough
REFUSED = 30.0  # seconds at most until pods that were refused are tried again
KNOW = Ask.WORKERS | Ask.RETIREMENTS


@dataclass(frozen=True, slots=True)
class Limits:
    """How many there are to be.

    Attributes:
        wanted: so many.
        most: with more than so many, the surplus goes at once; those between this and ``wanted`` only when they have been idle
            for ``idle`` seconds. Equal where nothing is waited for.
        idle: seconds.
        spare: uids of those that the scheduler names, the first one first; others that are idle come after them.
        release: whether any of those may go: not where nobody knows what is wanted.
        others: registered workers of other groups that are to stay, and ``keep``: how many of all are needed for the values
            alone.
    """

    wanted: int
    most: int
    idle: float = 0.0
    spare: Sequence[str] = ()
    release: bool = True
    others: int = 0
    keep: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """The workers of a group, and what is known of them.

    Attributes:
        pods: that the group's resource controls.
        spec_hash: that a pod made now would have; ``image``: likewise.
        marked: uid -> since when it is to go, as the status has it.
        refused: why no pod can be made.
        force: whether pods may go though nobody can say what they hold.
        sure: whether a pod can be believed that it has never registered, where the scheduler cannot be asked: what it says is
            some seconds old, and there must have been nobody to register with since.
        hold: whether none are to be made for now.
    """

    pods: Sequence[Pod]
    spec_hash: str
    image: str
    marked: Mapping[str, str]
    refused: Refused | None = None
    force: bool = False
    sure: bool = False
    hold: bool = False


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why workers that are to go cannot."""

    reason: str
    message: str


@dataclass(slots=True)
class Change:
    """What is to be done in a group, and how it stands.

    Attributes:
        stay: names of workers that are not to go after all; the first thing to do.
        first: pods to delete before others take their place.
        births: pods to make: for each, how many have ended in a row before it, in whose place it is.
        deaths: pods to delete, after that.
        retire: uids of those that are to go.
        draining: for the status.
        blocked: why some that are to go cannot; None: nothing is in the way.
        ask: what has to be known for it; ``again``: seconds after which to look again.
        replicas: pods that there are; ``ready``: those that can work and are to stay; ``registered``: those of which the
            scheduler knows, as far as can be said, and that are to stay.
        old: pods that are to be replaced because of the spec.
        waiting: pods that are not made yet, because others have ended.
        values: that are still to be moved.
    """

    stay: list[str] = field(default_factory=list)
    first: list[Pod] = field(default_factory=list)
    births: list[int] = field(default_factory=list)
    deaths: list[Pod] = field(default_factory=list)
    retire: list[str] = field(default_factory=list)
    draining: list[dict[str, str]] = field(default_factory=list)
    blocked: Blocked | None = None
    ask: Ask = Ask.NOTHING
    again: float | None = None
    replicas: int = 0
    ready: int = 0
    registered: int = 0
    old: int = 0
    waiting: int = 0
    values: int = 0

    def soon(self, after: float) -> None:
        """Look again after so many seconds, if not before."""
        after = max(0.1, after)
        self.again = after if self.again is None else min(self.again, after)


class _Decision:
    """The pods of a group by what they are (see the module), and what becomes of them."""

    def __init__(self, group: Group, limits: Limits, view: SchedulerView | None, reach: str, now: float) -> None:
        self.group = group
        self.limits = limits
        self.view = None if reach else view
        self.reach = reach
        self.now = now
        self.workers: Mapping[str, WorkerView] = {}
        self.retirements: Mapping[str, RetirementView] = {}
        self.known = False
        if self.view is not None and self.view.workers is not None and self.view.retirements is not None:
            self.known, self.workers, self.retirements = True, self.view.workers, self.view.retirements
        self.change = Change()
        self.ended: list[Pod] = []
        self.new: list[Pod] = []  # have never registered
        self.registered: list[Pod] = []
        self.lost: list[Pod] = []  # had registered, and the scheduler does not know them
        self.moving: list[Pod] = []  # are to go
        for pod in group.pods:
            if not pod.going:
                self._sort(pod)

    def _sort(self, pod: Pod) -> None:
        if pod.ended:
            self.ended.append(pod)
            return
        if not self.known:
            if not pod.started:
                self.new.append(pod)
            elif pod.uid in self.group.marked:
                self.moving.append(pod)
            else:
                self.registered.append(pod)
            return
        worker, retirement = self.workers.get(pod.uid), self.retirements.get(pod.uid)
        going = retirement is not None and retirement.state != "gone"
        ready = retirement is not None and (retirement.state == "ready" or (not going and retirement.was_ready))
        if worker is None:
            if ready:
                self.change.first.append(pod)
            elif pod.started:
                self.lost.append(pod)
            else:
                self.new.append(pod)
        elif worker.state == "retired" or (going and ready):
            self.change.first.append(pod)
        elif going or worker.state == "retiring":
            self.moving.append(pod)
        else:
            self.registered.append(pod)

    def is_old(self, pod: Pod) -> bool:
        """Whether it is to be replaced because of the spec."""
        return pod.spec_hash != self.group.spec_hash

    def cost(self, pod: Pod) -> tuple[Any, ...]:
        """Whom to take first: who was to go before, then who is old, then as the scheduler sees it: who has nothing to do,
        holds least, is idle longest."""
        ours = pod.uid not in self.group.marked, not self.is_old(pod)
        worker = self.workers.get(pod.uid)
        if worker is None:
            return *ours, False, 0, 0.0, pod.name
        return *ours, worker.idle_seconds is None, worker.nbytes, -(worker.idle_seconds or 0.0), pod.name

    def decide(self) -> Change:
        change, limits = self.change, self.limits
        wanted = limits.wanted
        # who has never registered and is of another shape holds nothing, and is not waited for
        unfit = [pod for pod in self.new if self.is_old(pod) or (pod.lacks_image and pod.image != self.group.image)]
        if any(pod.running for pod in unfit):
            self._know()
        if not all(self._holds_nothing(pod) for pod in unfit):
            change.soon(LOOK)
        unfit = [pod for pod in unfit if self._holds_nothing(pod)]
        change.first += unfit
        self.new = [pod for pod in self.new if pod not in unfit]
        self._call_off(wanted - self._live())
        old = [pod for pod in self.registered + self.lost if self.is_old(pod)]
        surge = max(1, ceil(wanted / 4)) if old else 0
        live = self._live()
        births = max(0, wanted - live)
        if old:
            births = max(births, min(wanted - (live - len(old)), wanted + surge - live - len(self.moving)))
        self._bear(births)

        forced = max(0, live - limits.most - surge)
        optional = max(0, live - wanted - surge - forced)
        chosen = self._surplus(forced)
        chosen += self._idle(optional, chosen)
        if old:
            change.old = len(old)
            chosen += self._rolled([pod for pod in old if pod not in chosen], len(chosen), surge)
        self._let_go(chosen)
        self._count(chosen)
        return change

    def _live(self) -> int:
        return len(self.new) + len(self.registered) + len(self.lost)

    def _know(self) -> bool:
        """Whether it is known what the scheduler knows; asks if it is not."""
        if not self.known and not self.reach:
            self.change.ask |= KNOW
        return self.known

    def _holds_nothing(self, pod: Pod) -> bool:
        """Whether a new pod has certainly never registered."""
        return not pod.running or self.known or (bool(self.reach) and (self.group.sure or self.group.force))

    # --- more

    def _call_off(self, missing: int) -> None:
        """Rather than making new ones, have those stay that are to go."""
        if self.moving:
            self._know()
        for pod in list(self.moving):
            if missing > 0 and self.known and pod.uid in self.group.marked and not self.is_old(pod):
                retirement = self.retirements.get(pod.uid)
                self.change.stay.append(pod.name if retirement is None else retirement.worker)
                self.moving.remove(pod)
                self.registered.append(pod)
                missing -= 1
                self.change.soon(1.0)  # it may have been too late

    def _bear(self, count: int) -> None:
        """Make so many; those that have ended are replaced when their time has come, and are there until then."""
        change, refused = self.change, self.group.refused
        ranked = sorted(self.ended, key=lambda pod: (-pod.deaths, pod.retry_at, pod.name))
        before, surplus = ranked[:count], ranked[count:]
        if self.group.hold:
            change.deaths += surplus
            return
        wait = 0.0 if refused is None else refused.at + backoff(refused.count, REFUSED) - self.now
        if wait > 0:
            if count:
                change.soon(wait)
        else:
            for pod in before:
                if pod.retry_at <= self.now:
                    change.births.append(pod.deaths + 1)
                    surplus.append(pod)
                else:
                    change.waiting += 1
                    change.soon(pod.retry_at - self.now)
            change.births += [0] * (count - len(before))
        change.deaths += surplus

    # --- fewer

    def _surplus(self, count: int) -> list[Pod]:
        """So many that go in any case: who never registered, with those first that can't be; then the lost; then who costs
        least."""
        if not count:
            return []
        if any(pod.running for pod in self.new) or self.registered or self.lost:
            self._know()
        new = sorted(self.new, key=lambda pod: (pod.trouble is None, pod.running, -(pod.created or self.now), pod.name))
        lost = sorted(self.lost, key=self.cost)
        return (new + lost + sorted(self.registered, key=self.cost))[:count]

    def _idle(self, count: int, chosen: Sequence[Pod]) -> list[Pod]:
        """At most so many, of those that have had nothing to do for long enough."""
        limits = self.limits
        found: list[Pod] = []
        if not limits.release:
            return found
        for pod in sorted(self.new, key=lambda pod: (pod.trouble is None, pod.running, pod.name)):
            age = self.now - (pod.created if pod.created is not None else self.now)
            if len(found) < count and pod not in chosen:
                if age >= limits.idle:
                    found.append(pod)
                else:
                    self.change.soon(limits.idle - age)
        if len(found) >= count or not self.registered or not self._know():
            return found
        staying = limits.others + sum(pod not in chosen for pod in self.registered)
        by_uid = {pod.uid: pod for pod in self.registered if pod not in chosen}
        # first who is named; but the one that is named may be of a group that keeps it
        ranked = [by_uid[uid] for uid in limits.spare if uid in by_uid]
        ranked += [pod for pod in sorted(by_uid.values(), key=self.cost) if pod.uid not in limits.spare]
        for pod in ranked:
            worker = self.workers[pod.uid]
            idle = worker.idle_seconds
            if len(found) >= count or idle is None:
                continue
            if idle < limits.idle:
                self.change.soon(limits.idle - idle)
            elif staying > limits.keep or not (worker.values or worker.nbytes):
                found.append(pod)
                staying -= 1
        return found

    def _rolled(self, old: Sequence[Pod], going: int, surge: int) -> list[Pod]:
        """Old ones that new ones are there for."""
        wanted = self.limits.wanted
        fresh = [pod for pod in self.new if not self.is_old(pod)]
        stuck = [pod for pod in fresh if pod.trouble is not None and not pod.running]
        stalled = self.group.refused is not None
        for pod in stuck:
            wait = (pod.created if pod.created is not None else self.now) + STALLED - self.now
            if wait <= 0:
                stalled = True
            else:
                self.change.soon(wait)
        ready = sum(not self.is_old(pod) and (pod.ready or self.known) for pod in self.registered)
        working = [pod for pod in old if pod in self.registered]
        floor = max(min(wanted, 1), wanted - surge) if stalled else wanted
        count = min(ready + len(working) - floor, surge - len(self.moving) - going)
        lost = [pod for pod in old if pod in self.lost]
        if count > 0 or lost:
            self._know()
        return lost + (sorted(working, key=self.cost)[:count] if count > 0 else [])

    def _let_go(self, chosen: Sequence[Pod]) -> None:
        """Delete who holds nothing, and have the others retire."""
        change, held, retiring = self.change, 0, []
        for pod in chosen:
            if pod in self.new:
                if self._holds_nothing(pod):
                    change.deaths.append(pod)
                else:
                    held += 1
            elif pod in self.lost:
                settled = self.view is not None and bool(self.view.settled)
                wait = (pod.unready_at or 0.0) + LOST - self.now
                if settled and not pod.ready and wait <= 0:
                    change.deaths.append(pod)  # what it held, the scheduler has given up
                else:
                    change.soon(max(1.0, wait) if settled and not pod.ready else LOOK)
            elif self.known:
                retiring.append(pod)
            elif self.reach and self.group.force:
                change.deaths.append(pod)
            else:
                held += 1
        change.retire += [pod.uid for pod in retiring]
        staying = self.limits.others + sum(pod not in chosen for pod in self.registered)
        change.values = sum(
            retirement.values for pod in self.moving if (retirement := self.retirements.get(pod.uid)) is not None
        )
        held += len(self.moving) if self.reach else 0
        if self.reach and self.group.force:
            change.deaths += self.moving
        elif held and self.reach:
            change.blocked = Blocked("SchedulerUnavailable", _words(held, self.reach))
            change.soon(LOOK)
        elif self.moving and not staying and change.values:
            if self.group.force:
                change.deaths += self.moving
            else:
                change.blocked = Blocked(
                    "NobodyTakesValues",
                    f"{_workers(len(self.moving))} to go, and {change.values} values are nowhere else; with no worker left to "
                    f"take them, they stay until nobody needs the values. {_FORCE}",
                )
        for pod in self.moving + retiring:
            since = self.group.marked.get(pod.uid) or stamp(self.now)
            if pod not in change.deaths:
                change.draining.append({"name": pod.name, "uid": pod.uid, "since": since})
        if change.draining:
            change.soon(LOOK)

    def _count(self, chosen: Sequence[Pod]) -> None:
        change = self.change
        dying = {id(pod) for pod in change.first + change.deaths}
        staying = [pod for pod in self.registered if pod.uid not in change.retire and id(pod) not in dying]
        others = [pod for pod in self.new + self.lost if id(pod) not in dying]
        change.registered = len(staying)
        change.ready = sum(pod.ready for pod in staying + others)
        change.replicas = len(staying) + len(others) + len(change.draining)
        if self.group.refused is None:
            change.replicas += len(change.births)  # those that will be there; else it would be told, and taken back


_FORCE = (
    f"To have them deleted all the same, and what they hold lost: kubectl annotate taskcluster NAME {names.FORCE}=true"
)


def _workers(count: int) -> str:
    return "1 worker is" if count == 1 else f"{count} workers are"


def _words(count: int, reach: str) -> str:
    return (
        f"{_workers(count)} to go, and the scheduler, which has the values moved that they hold, cannot be asked: {reach}. "
        f"Nothing that may hold values is deleted until it can. {_FORCE}"
    )


def decide(group: Group, limits: Limits, view: SchedulerView | None, reach: str, now: float) -> Change:
    """What is to be done in a group.

    Args:
        group: the workers.
        limits: how many there are to be.
        view: what the scheduler has said; None: it was not asked.
        reach: why the scheduler cannot be asked; "": it can.
        now: seconds since 1970.
    """
    return _Decision(group, limits, view, reach, now).decide()
