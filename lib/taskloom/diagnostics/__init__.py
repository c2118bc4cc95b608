"""Diagnostics: progress, profiles and resources, as values computed from events."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskloom.diagnostics.events import Callback, Record, RunInfo

_WHERE = {"Callback": "events", "Record": "events", "RunInfo": "events"}

__all__ = ["Callback", "Record", "RunInfo"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"taskloom.diagnostics.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
