"""Clusters on Kubernetes, from outside and from inside.

::

    KubeCluster   makes a TaskCluster, or joins one, and changes how many workers it has
    reach         from kube://namespace/name to an address and a token; Client comes here
        forward   a port of this machine that leads to the scheduler's pod
        api       requests to the API server, by the user's own rights

What becomes of a TaskCluster is the operator's; it is asked for nothing here but by what stands in the resource. The package
``kubernetes`` is imported when it is needed.
"""

from __future__ import annotations

from taskloom.deploy.kube.cluster import KubeCluster
from taskloom.deploy.kube.reach import Reached, reach

__all__ = ["KubeCluster", "Reached", "reach"]
