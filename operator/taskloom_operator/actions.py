"""What is to be done about a cluster or a job: orders as plain values, given in the order in which they are to be done.

Rules:

- An order can be given twice. What is there already is not made again (409 on a Create is as good as a 201), what is gone need
  not be deleted (404), and a uid that has changed means that somebody else was faster (409): none of these is an error.
- An order that fails ends the plan it is in: what comes after it is not done, the status is written all the same if it can
  be, and the resource is looked at again after a while. Whoever runs them may be killed between any two.
- A Create that is refused (403, as where a quota is used up, and 422) is told to the next look, as
  :class:`taskloom_operator.observe.Refused`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any, TypeAlias

__all__ = [
    "Action",
    "Apply",
    "Ask",
    "Create",
    "Delete",
    "MakeSecret",
    "Manifest",
    "Note",
    "Patch",
    "Plan",
    "Retire",
    "RotateToken",
    "Stay",
    "WriteStatus",
]

Manifest: TypeAlias = Mapping[str, Any]
"""An object of Kubernetes, as its JSON has it; nobody changes it."""


class Ask(Flag):
    """What the scheduler has to be asked; one request each, see docs/http.md.

    Attributes:
        NOTHING: it is left alone.
        WISH: ``/api/v1/wish``. As long as a plan has it, its changes are waited for too (``since=``).
        WORKERS: ``/api/v1/workers``.
        RETIREMENTS: ``/api/v1/retirements``.
        INFO: ``/api/v1/info``.
    """

    NOTHING = 0
    WISH = auto()
    WORKERS = auto()
    RETIREMENTS = auto()
    INFO = auto()


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply, by force: the fields of this object are ours."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Create:
    """Make an object, once.

    A pod is expected from then on, until it is seen: :attr:`taskloom_operator.observe.Observed.expected`.
    """

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Patch:
    """A JSON merge patch.

    ``patch`` has the uid among its metadata, so that it changes this object and no later one of its name.
    """

    kind: str
    namespace: str
    name: str
    patch: Manifest


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete an object, with its uid as the precondition, and its dependents after it (background).

    Attributes:
        grace: seconds; None: what the object says. Never 0: that a pod on a dead node is gone, only a person may claim.
    """

    kind: str
    namespace: str
    name: str
    uid: str
    grace: int | None = None


@dataclass(frozen=True, slots=True)
class MakeSecret:
    """Make a token, and a certificate for these names, and create this Secret with them.

    They are its keys ``token``, ``tls.crt`` and ``tls.key``. If it is there already, it stays as it is.
    """

    manifest: Manifest
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RotateToken:
    """Put a new token before the first one of a Secret, keep that as the second, and drop those after it.

    In the same write its annotation ``taskloom.dev/rotated-for`` gets this value, and the write has the Secret's
    resourceVersion as its precondition: so it is done once for each value.
    """

    namespace: str
    name: str
    uid: str
    value: str


@dataclass(frozen=True, slots=True)
class Retire:
    """Have workers go, their values first: POST ``/api/v1/retire`` with ``pod_uids``.

    Where the scheduler says that it does not know some of them (404), leave these out and ask again, once.
    """

    uids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stay:
    """Have workers stay after all: DELETE ``/api/v1/retirements/NAME`` for each.

    That one is not to go (404) or has been told that it may (409) is no error; look again at once then.
    """

    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Note:
    """An Event on the resource.

    Attributes:
        about: the object that it is on.
        type: "Normal" or "Warning".
        reason: one word, in CamelCase.
    """

    about: Manifest
    type: str
    reason: str
    message: str


Action: TypeAlias = Apply | Create | Patch | Delete | MakeSecret | RotateToken | Retire | Stay | Note


@dataclass(frozen=True, slots=True)
class WriteStatus:
    """The whole new status of a resource, where it has changed: server-side apply to its status subresource."""

    kind: str
    namespace: str
    name: str
    uid: str
    status: Manifest


@dataclass(frozen=True, slots=True)
class Plan:
    """What follows from what is known.

    Attributes:
        actions: in this order.
        status: the statuses that have changed; written after the actions.
        ask: what has to be known of the scheduler for it. As long as it names what ``Observed.scheduler`` does not have (it is
            None, or ``lacks`` some), there is nothing else in the plan: ask for all of it, and plan again with the answers. A
            scheduler that cannot be reached is an answer too.
        tail: of a job: the pod whose last log lines are to be known, likewise (``ObservedJob.tail``); "": none.
        again: seconds after which to look again though nothing has happened; None: not needed.
        look: whether the Secret has to be read again, because something seems to be wrong with it.
        threads: that a worker has which may come, for the question of the wish.
    """

    actions: tuple[Action, ...] = ()
    status: tuple[WriteStatus, ...] = ()
    ask: Ask = Ask.NOTHING
    tail: str = ""
    again: float | None = None
    look: bool = False
    threads: int = 1
