"""What the processes of a cluster do alike: they collect garbage seldom, are loud about defects of ours, and tell versions."""

from __future__ import annotations

import asyncio
import gc
import platform
import sys
import traceback
from collections.abc import Callable
from typing import Any

import taskloom

__all__ = ["collect_seldom", "tell_defects", "versions"]

_MATTERS = ("msgpack", "cloudpickle", "numpy", "pandas")  # packages that have to be alike where values go to and fro


def collect_seldom() -> None:
    """Have the garbage collector never look at what is here already, and at the rest seldom.

    What the machines keep are long lists of numbers, with no cycles to be found in them; looking for some took a third of all
    time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def tell_defects(loop: asyncio.AbstractEventLoop, name: str, die: Callable[[], object] | None = None) -> None:
    """Have an exception that nobody expected in an event loop printed, whatever logging does with it.

    Args:
        loop: the event loop.
        name: of the process.
        die: called when it came up in a callback. What that was to do is not done, and somebody may wait for it for ever; so a
            worker does better to end, and be replaced.
    """

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        lines = [f"{name}: {context.get('message')}; this is a defect of taskloom's, please report it\n"]
        if isinstance(error, BaseException):
            lines += traceback.format_exception(error)
        try:
            # past what captures the output of tasks: a callback may run in the context of one
            stream = sys.__stderr__
            if stream is not None:
                stream.write("".join(lines))
                stream.flush()
        except (OSError, ValueError):
            pass
        if die is not None and "handle" in context:
            die()

    loop.set_exception_handler(handle)


def versions() -> dict[str, str]:
    """The versions of Python, taskloom, and what of the packages that matter is loaded in this process.

    >>> sorted(versions())[-2:]
    ['python', 'taskloom']
    """
    found = {"python": platform.python_version(), "taskloom": taskloom.__version__}
    for name in _MATTERS:
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            found[name] = str(version)
    return found
