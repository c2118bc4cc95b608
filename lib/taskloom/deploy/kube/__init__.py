"""Clusters on Kubernetes, from outside and from inside.

``Client("kube://namespace/name")`` comes here by :func:`reach`. Outside, all goes through the API server: the token is read by
the user's own rights, and connections are forwarded to the scheduler's pod. TLS and the token stay inside of that.
"""

from __future__ import annotations

from taskloom.deploy.kube.reach import Reached, reach

__all__ = ["Reached", "reach"]
