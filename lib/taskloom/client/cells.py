"""Notebooks: what a thread of ours shows appears below the cell that is running, not below the one in which the thread began."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Any

__all__ = ["in_running_cell"]


def in_running_cell(function: Callable[..., object], *args: Any) -> None:
    """Call a function in such a way that what it prints appears below the cell that is running, if this is a notebook.

    The streams of a Jupyter kernel keep the cell in a variable of the context. A thread has that of the cell which started it;
    where a context has none, the newest cell counts.
    """
    if "ipykernel" not in sys.modules:
        function(*args)
        return
    Context().run(_call, function, args)


def _call(function: Callable[..., object], args: tuple[Any, ...]) -> None:
    for stream in (sys.stdout, sys.stderr):
        # older kernels look at the thread before they take the newest cell
        cell, newest = getattr(stream, "_parent_header", None), getattr(stream, "_parent_header_global", None)
        if isinstance(cell, ContextVar) and newest:
            cell.set(newest)
    function(*args)
