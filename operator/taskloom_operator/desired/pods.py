"""What a pod's object says: whether it runs, has registered, has ended, and what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from taskloom_operator import names
from taskloom_operator.desired.times import backoff, seconds
from taskloom_operator.manifests import naming
from taskloom_operator.manifests.pods import image_of

__all__ = ["Pod", "Trouble", "controlled", "controller", "read", "told", "trouble"]

LONG = 600.0  # seconds: a pod that has lived so long has not died for what the one before it died of
IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"})
_BACK_OFF = re.compile(r'^Back-off pulling image "[^"]*"(: ErrImagePull: )?')
_WORDS = 600  # characters of what a container has said at its end
_SHOWN = 3  # kinds of trouble that are told


class Trouble(NamedTuple):
    """Why a pod does not run; the same for all pods that have the same."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, eq=False)
class Pod:
    """A worker's pod.

    Attributes:
        going: it is being deleted. How long that takes, nobody knows: its node may be gone. It counts no more.
        ended: it runs no more and will not again.
        ended_at: since when; ``retry_at``: when another one may take its place.
        running: its container runs.
        started: it has registered, so that it may hold values; since its container started the last time.
        ready: it is registered now, as it sees it; ``unready_at``: since when it is not.
        deaths: how many have ended in a row before it, in whose place it is.
        serial: the how manieth of its group.
        trouble: why it does not run; None: nothing is wrong.
    """

    name: str
    uid: str
    spec_hash: str
    image: str
    created: float | None
    going: bool
    ended: bool
    ended_at: float
    retry_at: float
    running: bool
    started: bool
    ready: bool
    unready_at: float | None
    deaths: int
    serial: int
    trouble: Trouble | None

    @property
    def lacks_image(self) -> bool:
        """Its image cannot be had."""
        return self.trouble is not None and self.trouble.reason == "ImagePullError"


def _last_words(ended: Mapping[str, Any]) -> str:
    """How a container has ended, with its own words."""
    code, reason = ended.get("exitCode"), ended.get("reason")
    how = f"{reason}, exit code {code}" if reason and reason not in ("Error", "Completed") else f"exit code {code}"
    said = "\n".join([line.rstrip() for line in str(ended.get("message") or "").splitlines() if line.strip()])
    if len(said) > _WORDS:
        said = "..." + said[3 - _WORDS :]
    return f"{how}: {said}" if said else how


def _image_trouble(image: str, message: str) -> Trouble:
    # the kubelet says one and the other in turn, and the status should not change each time
    detail = _BACK_OFF.sub("", message or "").strip()
    words = f"the image {image} cannot be had"
    return Trouble("ImagePullError", f"{words}: {detail}" if detail else words)


def trouble(pod: Mapping[str, Any]) -> Trouble | None:
    """What is wrong with a pod, in the words of who knows; None: nothing that would not pass by itself."""
    status = pod.get("status") or {}
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    for one in containers:
        state = one.get("state") or {}
        waiting, last = state.get("waiting"), (one.get("lastState") or {}).get("terminated")
        ended = state.get("terminated")
        loops = int(one.get("restartCount") or 0) >= 2 or (waiting or {}).get("reason") == "CrashLoopBackOff"
        newest = ended if ended and ended.get("exitCode") else last
        if loops and newest and newest.get("exitCode") and not one.get("ready"):
            # the same in all states that such a container goes through, so that the status does not go with them
            return Trouble("CrashLoop", f"the container {one['name']} ends again and again: {_last_words(newest)}")
        if waiting:
            reason = waiting.get("reason") or ""
            if reason in IMAGE:
                return _image_trouble(one.get("image") or image_of(pod, one["name"]), waiting.get("message") or "")
            if reason == "CrashLoopBackOff" or (last and last.get("exitCode")):
                return Trouble(
                    "CrashLoop", f"the container {one['name']} ends again and again: {_last_words(last or {})}"
                )
            if reason.endswith("Error"):
                return Trouble(reason, f"the container {one['name']} cannot start: {waiting.get('message') or reason}")
        if ended and ended.get("exitCode"):
            return Trouble("ContainerEnded", f"the container {one['name']} has ended: {_last_words(ended)}")
        if last and last.get("exitCode") and not one.get("ready"):
            return Trouble(
                "Restarted", f"the container {one['name']} was started again, it had ended: {_last_words(last)}"
            )
    if status.get("phase") == "Failed":
        words = [word for word in (status.get("reason"), status.get("message")) if word]
        return Trouble(
            status.get("reason") or "PodFailed", "the pod has failed: " + (": ".join(words) or "no reason is told")
        )
    for one in status.get("conditions") or ():
        if one.get("type") == "PodScheduled" and one.get("status") == "False" and one.get("reason") == "Unschedulable":
            return Trouble("Unschedulable", one.get("message") or "no node has room for it")
    return None


def told(troubles: Iterable[Trouble | None], what: str = "worker") -> tuple[str, str]:
    """Of several pods: the reason that most have, and all in words; ("", ""): nothing is wrong.

    >>> told([Trouble("Unschedulable", "no CPU"), None, Trouble("Unschedulable", "no CPU")])
    ('Unschedulable', '2 workers: no CPU')
    """
    counts: dict[Trouble, int] = {}
    for one in troubles:
        if one is not None:
            counts[one] = counts.get(one, 0) + 1
    ranked = sorted(counts, key=lambda one: (-counts[one], one))
    if not ranked:
        return "", ""
    words = [f"{n} {what}{'s' if n > 1 else ''}: {one.message}" for one in ranked[:_SHOWN] for n in (counts[one],)]
    if len(ranked) > _SHOWN:
        words.append(f"and {len(ranked) - _SHOWN} other reasons")
    return ranked[0].reason, "; ".join(words)


def _number(annotations: Mapping[str, str], name: str) -> int:
    text = annotations.get(name, "")
    return int(text) if text.isdecimal() else 0


def read(pod: Mapping[str, Any], deleted: frozenset[str] = frozenset(), container: str = "worker") -> Pod:
    """A pod as its object says.

    Args:
        deleted: uids of those of which we know that they are being deleted, though they do not say so yet.
        container: that counts.
    """
    metadata, status = pod["metadata"], pod.get("status") or {}
    annotations = metadata.get("annotations") or {}
    uid, phase = metadata.get("uid") or "", status.get("phase")
    main: Mapping[str, Any] = {}
    for one in status.get("containerStatuses") or ():
        if one.get("name") == container:
            main = one
    state = main.get("state") or {}
    over = state.get("terminated")
    # restartPolicy OnFailure: one that has ended well stays away, even where a sidecar runs on
    ended = phase in ("Succeeded", "Failed") or bool(over and over.get("exitCode") == 0)
    ready, unready_at = False, None
    for one in status.get("conditions") or ():
        if one.get("type") == "Ready":
            ready = one.get("status") == "True"
            unready_at = None if ready else seconds(one.get("lastTransitionTime"))
    created = seconds(metadata.get("creationTimestamp"))
    deaths = _number(annotations, naming.DEATHS)
    ended_at = retry_at = 0.0
    if ended:
        ended_at = seconds((over or {}).get("finishedAt")) or unready_at or created or 0.0
        if created is not None and ended_at - created >= LONG:
            deaths = 0
        retry_at = ended_at + backoff(deaths + 1)
    running = state.get("running") is not None and not ended
    return Pod(
        metadata["name"],
        uid,
        annotations.get(names.SPEC_HASH, ""),
        image_of(pod, container),
        created,
        bool(metadata.get("deletionTimestamp")) or uid in deleted,
        ended,
        ended_at,
        retry_at,
        running,
        running and bool(main.get("started")),
        ready and running,
        unready_at,
        deaths,
        _number(annotations, naming.SERIAL),
        None if ready and not ended else trouble(pod),
    )


def controlled(objects: Sequence[Mapping[str, Any]], uid: str) -> list[Mapping[str, Any]]:
    """Those that a resource of this uid controls."""
    return [one for one in objects if controller(one).get("uid") == uid]


def controller(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The owner that controls an object; empty: there is none."""
    for one in found["metadata"].get("ownerReferences") or ():
        if one.get("controller"):
            return one  # type: ignore[no-any-return]
    return {}
