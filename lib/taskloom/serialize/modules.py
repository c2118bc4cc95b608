"""Which modules another process can import by their names.

A function goes by the name of its module where the other side can import that, and it is the same module. Not so for what
was loaded from a file that is nowhere on ``sys.path``: tests under pytest's importlib mode, plugins, a script that another
one has run. What such a module defines goes by value, as what ``__main__`` defines does.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import cloudpickle

__all__ = ["note_module"]

# name -> the module that was looked at: another one of the same name is looked at again
_seen: dict[str, ModuleType] = {}


def note_module(name: Any) -> None:
    """Have cloudpickle send by value what a module defines that can't be imported elsewhere.

    Args:
        name: its name in ``sys.modules``; nothing happens for one that is not there.
    """
    module = sys.modules.get(name) if isinstance(name, str) else None
    if module is None or _seen.get(name) is module:
        return
    _seen[name] = module
    # under a second name (``collections.abc`` is ``_collections_abc``) it is found by its own
    own = getattr(getattr(module, "__spec__", None), "name", None)
    if own != name and isinstance(own, str) and sys.modules.get(own) is module:
        note_module(own)
        return
    if name != "__main__" and not _is_importable(name, module):
        cloudpickle.register_pickle_by_value(module)


def _is_importable(name: str, module: ModuleType) -> bool:
    """Whether an import of this name, by a process with our sys.path, finds this module.

    Only what comes from a Python file can be something else: modules that others make while they are imported
    (``six.moves``) have none, and the other side makes them likewise.
    """
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return True
    path: Any = None
    parts = name.split(".")
    spec: ModuleSpec | None = None
    for n in range(1, len(parts) + 1):
        prefix = ".".join(parts[:n])
        spec = _find(prefix, path)
        if spec is None:
            return False
        # packages may have added to their path since
        path = getattr(sys.modules.get(prefix), "__path__", None) or spec.submodule_search_locations
    if spec is None or not spec.has_location or spec.origin is None:
        return True
    try:
        return os.path.samefile(spec.origin, file)
    except OSError:  # in an archive, or removed since
        return spec.origin == file


def _find(name: str, path: Any) -> ModuleSpec | None:
    for finder in list(sys.meta_path):
        try:
            spec = finder.find_spec(name, path)
        except Exception:  # a hook that is not made for being asked twice
            continue
        if spec is not None:
            return spec
    return None
