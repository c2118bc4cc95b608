"""taskloom: one task graph, any machine.

>>> import taskloom
>>> taskloom.get_sync({"x": 1, "y": (sum, ["x", 10])}, "y")
11

Everything below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskloom import bag, config, diagnostics, errors, graph, multiprocessing, threaded
    from taskloom._collections import (
        annotate,
        compute,
        get_annotations,
        is_collection,
        optimize,
        persist,
        tokenize,
        visualize,
    )
    from taskloom._delayed import delayed
    from taskloom.client import Client, Future, as_completed, wait
    from taskloom.deploy.kube import KubeCluster
    from taskloom.deploy.local import LocalCluster
    from taskloom.sync import get_sync

__version__ = "0.1.0"

# public name -> the module that defines it; None: it is a module itself
_WHERE: dict[str, str | None] = {
    "Client": "client",
    "Future": "client",
    "KubeCluster": "deploy.kube",
    "LocalCluster": "deploy.local",
    "annotate": "_collections",
    "as_completed": "client",
    "bag": None,
    "compute": "_collections",
    "config": None,
    "delayed": "_delayed",
    "diagnostics": None,
    "errors": None,
    "get_annotations": "_collections",
    "get_sync": "sync",
    "graph": None,
    "is_collection": "_collections",
    "multiprocessing": None,
    "optimize": "_collections",
    "persist": "_collections",
    "threaded": None,
    "tokenize": "_collections",
    "visualize": "_collections",
    "wait": "client",
}

__all__ = [
    "Client",
    "Future",
    "KubeCluster",
    "LocalCluster",
    "annotate",
    "as_completed",
    "bag",
    "compute",
    "config",
    "delayed",
    "diagnostics",
    "errors",
    "get_annotations",
    "get_sync",
    "graph",
    "is_collection",
    "multiprocessing",
    "optimize",
    "persist",
    "threaded",
    "tokenize",
    "visualize",
    "wait",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    where = _WHERE[name]
    if where is None:
        return importlib.import_module(f"{__name__}.{name}")
    value = getattr(importlib.import_module(f"{__name__}.{where}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
