"""What follows from what is seen: all decisions of the operator, pure.

- :func:`reconcile`: a TaskCluster with its TaskWorkerGroups, :mod:`~taskloom_operator.desired.cluster`.
- :func:`reconcile_job`: a TaskJob, :mod:`~taskloom_operator.desired.jobs`.

Each takes all that is seen and the time, and says what is to be done, as a :class:`taskloom_operator.actions.Plan`. Nothing is
kept from one look to the next but in the objects of Kubernetes: so it does not matter who looks, how often, and whether all of a
plan was done.
"""

from __future__ import annotations

from taskloom_operator.desired.cluster import reconcile
from taskloom_operator.desired.jobs import reconcile_job

__all__ = ["reconcile", "reconcile_job"]
