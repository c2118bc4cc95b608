"""Diagnostics: progress, profiles and resources, as values computed from events.

>>> from taskloom.diagnostics import ProgressBar
>>> with ProgressBar("sums"):  # doctest: +SKIP
...     taskloom.threaded.get(graph, keys)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskloom.diagnostics.events import Callback, Record, RunInfo
    from taskloom.diagnostics.profiler import FunctionSummary, Profiler
    from taskloom.diagnostics.progress import ProgressBar, track
    from taskloom.diagnostics.resources import ResourceProfiler, Resources, ResourceSummary

# public name -> the module that defines it; imported when it is first used
_WHERE = {
    "Callback": "events",
    "FunctionSummary": "profiler",
    "Profiler": "profiler",
    "ProgressBar": "progress",
    "Record": "events",
    "ResourceProfiler": "resources",
    "ResourceSummary": "resources",
    "Resources": "resources",
    "RunInfo": "events",
    "track": "progress",
}

__all__ = [
    "Callback",
    "FunctionSummary",
    "Profiler",
    "ProgressBar",
    "Record",
    "ResourceProfiler",
    "ResourceSummary",
    "Resources",
    "RunInfo",
    "track",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(f"taskloom.diagnostics.{_WHERE[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
