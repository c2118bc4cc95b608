"""Conditions of a status, as Kubernetes' conventions want them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from taskloom_operator.desired.times import stamp
from taskloom_operator.spec.models import Resource, SpecError

__all__ = ["Condition", "conditions", "invalid", "is_true", "of"]

LONGEST = 2000  # characters of a message


class Condition(NamedTuple):
    """What is so, or not, and why."""

    type: str
    true: bool
    reason: str
    message: str


def invalid(resource: Mapping[str, Any], model: type[Resource]) -> str:
    """What a resource says that it cannot mean; "": nothing. The API server has let it pass where it has an older schema.

    >>> from taskloom_operator.spec.models import TaskCluster
    >>> invalid({"metadata": {"name": "demo"}, "spec": {"idleTimeout": 0}}, TaskCluster)
    'spec.idleTimeout: Input should be greater than or equal to 1'
    """
    try:
        model.parse(resource)
    except SpecError as error:
        return str(error)
    return ""


def of(resource: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    """A condition of a resource as it is written there; empty: it is not."""
    for one in ((resource or {}).get("status") or {}).get("conditions") or ():
        if one.get("type") == name:
            return one  # type: ignore[no-any-return]
    return {}


def is_true(resource: Mapping[str, Any] | None, name: str) -> bool:
    """Whether a condition of a resource is true."""
    return of(resource, name).get("status") == "True"


def conditions(resource: Mapping[str, Any], wanted: Iterable[Condition], now: float) -> list[dict[str, Any]]:
    """What to write: since when something is so stays as it was where it has not changed.

    Args:
        resource: with the status that it has.
    """
    generation = resource["metadata"].get("generation", 0)
    found = []
    for one in wanted:
        status = "True" if one.true else "False"
        before = of(resource, one.type)
        same = before.get("status") == status and before.get("lastTransitionTime")
        found.append(
            {
                "type": one.type,
                "status": status,
                "reason": one.reason,
                "message": one.message if len(one.message) <= LONGEST else one.message[: LONGEST - 3] + "...",
                "lastTransitionTime": before["lastTransitionTime"] if same else stamp(now),
                "observedGeneration": generation,
            }
        )
    return found
