"""Which client is where collections run: the newest of those that are open, for ours and, where dask is loaded, for dask's."""

from __future__ import annotations

import sys
from typing import Any

from taskloom._collections.running import default_clients

__all__ = ["add", "drop", "drop_all", "tell_dask"]

_ABSENT: Any = object()
_before: Any = _ABSENT  # what dask's setting was; _ABSENT: it had none
_set: Any = None  # what we have made of it


def add(client: Any) -> None:
    """From now on collections run there."""
    default_clients.append(client)
    tell_dask()


def drop(client: Any) -> None:
    """Collections run there no more, but where they ran before."""
    default_clients[:] = [other for other in default_clients if other is not client]
    tell_dask()


def drop_all() -> None:
    """There is no client any more: this process was forked from one that has some."""
    default_clients.clear()
    tell_dask()


def tell_dask() -> None:
    """Have dask's collections run there too, if dask is loaded: it looks at its setting ``scheduler``."""
    global _before, _set
    config = sys.modules.get("dask.config")
    settings = getattr(config, "config", None)
    if type(settings) is not dict:
        return
    ours = _set is not None and settings.get("scheduler", _ABSENT) is _set
    if default_clients:
        if not ours:
            _before = settings.get("scheduler", _ABSENT)
        _set = settings["scheduler"] = default_clients[-1].get
        return
    if ours:
        if _before is _ABSENT:
            del settings["scheduler"]
        else:
            settings["scheduler"] = _before
    _before, _set = _ABSENT, None
