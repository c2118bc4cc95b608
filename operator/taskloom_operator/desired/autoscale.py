"""How many workers each group is to have, where that follows from the scheduler's wish.

- The cluster's own workers: as many as the wish says, less those of the other groups that are there. They may go when the wish
  names them as spare and they have been idle for long enough.
- A TaskWorkerGroup: as many as are wanted for tasks that nobody there may run and its workers could (``unmet``). They may go
  when they have been idle for long enough, as long as enough are left for the values.
- With no wish to go by, nobody goes and the number stays what it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskloom_operator.observe import UnmetView, WishView

__all__ = ["IDLE", "clamp", "needed", "wanted_of_default", "wanted_of_group"]

IDLE = 60.0  # seconds


def clamp(count: int, autoscale: Mapping[str, Any]) -> int:
    """Within min and max.

    >>> clamp(7, {"min": 1, "max": 5}), clamp(0, {"min": 1, "max": 5})
    (5, 1)
    """
    return max(int(autoscale.get("min") or 0), min(int(autoscale["max"]), count))


def _fits(need: UnmetView, resources: Mapping[str, float]) -> bool:
    return not need.workers and all(resources.get(name, 0) >= amount for name, amount in need.resources.items())


def needed(wish: WishView, groups: Sequence[tuple[str, Mapping[str, float]]]) -> dict[str, int]:
    """How many workers are wanted of each group for tasks that nobody there may run.

    Args:
        groups: names, and what a worker has; of two that both could do it, the first one is taken.

    >>> needed(WishView(0, "", (UnmetView((), {"gpu": 1}, 2),)), [("default", {}), ("gpu", {"gpu": 1})])
    {'gpu': 2}
    """
    found: dict[str, int] = {}
    for need in wish.unmet:
        for name, resources in groups:
            if _fits(need, resources):
                found[name] = found.get(name, 0) + need.wanted
                break
    return found


def wanted_of_default(wish: WishView | None, autoscale: Mapping[str, Any], others: int, unmet: int, before: int) -> int:
    """Of the cluster's own workers.

    Args:
        wish: None: it is not known.
        others: workers of other groups that are there.
        unmet: workers that are wanted beside those of the wish.
        before: how many were wanted before.
    """
    if wish is None:
        return clamp(before, autoscale)
    # "settling" says how many are here, of whatever group: no reason for more
    count = (0 if wish.why == "settling" else max(0, wish.workers - others)) + unmet
    return clamp(count if wish.settled else max(count, before), autoscale)


def wanted_of_group(wish: WishView | None, autoscale: Mapping[str, Any], unmet: int, there: int, before: int) -> int:
    """Of a TaskWorkerGroup: how many at least; those above that go when they are idle.

    Args:
        unmet: workers that are wanted for tasks that nobody may run.
        there: pods that there are.
        before: how many were wanted before.
    """
    if wish is None:
        return clamp(max(before, there), autoscale)
    return clamp(max(unmet, there) if unmet else 0, autoscale)
