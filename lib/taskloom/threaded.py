"""The threaded scheduler: many threads of this process, which share its memory.

For numeric code that releases the GIL (NumPy, pandas, SciPy, Numba) and for waiting (files, network): data passes
between tasks without being copied.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from typing import Any

from taskloom import config
from taskloom.diagnostics.events import Callback
from taskloom.graph.compile import compile_graph
from taskloom.local.frames import quiet_frames
from taskloom.local.run import Run
from taskloom.local.threads import run_on_executor, run_on_pool, shared_pool
from taskloom.system import cpu_count

__all__ = ["get"]


@quiet_frames
def get(
    graph: Any,
    keys: Any,
    *,
    num_workers: int | None = None,
    pool: Any = None,
    callbacks: Iterable[Callback] | None = None,
) -> Any:
    """Compute keys of a graph on threads.

    It may be called from several threads at once, and from inside a task. The threads are those of one pool that all
    runs of this process share; they are daemons, so a program can always end.

    Args:
        graph: mapping ``key -> literal | (function, *arguments) | key | list``, or a collection with
            ``__dask_graph__()``; see :mod:`taskloom.graph.convention`.
        keys: a key, or a list of keys and such lists.
        num_workers: how many tasks run at a time; by default the setting ``num_workers``, else as many as this
            process may use CPUs, or as the pool has threads.
        pool: run on this one instead: an executor of ``concurrent.futures`` (anything with its ``submit``) or a
            ``multiprocessing.pool.ThreadPool``, whose workers are threads of this process.
        callbacks: :class:`taskloom.diagnostics.Callback` objects, beside those that are active already.

    Returns:
        The value of the key; for a list of keys a tuple of values, nested as the list is.

    Raises:
        GraphError: the graph is wrong: a missing key, a cycle, no mapping.
        Exception: whatever a task raises, as it is, with the task's own lines in the traceback. Tasks that run at
            that time are not waited for; what they return is dropped.

    >>> get({"x": 1, "y": (sum, ["x", 10])}, ["x", "y"])
    (1, 11)
    """
    if pool is None:
        pool = config.get("pool", None)
    workers = _workers(num_workers, pool)
    run = Run(compile_graph(graph, keys), "threads", workers, callbacks, threading.RLock())
    try:
        if pool is None:
            run_on_pool(run, shared_pool())
        else:
            run_on_executor(run, pool)
        return run.outcome()
    finally:
        run.forget()


def _workers(num_workers: int | None, pool: Any) -> int:
    if pool is not None:
        if not (hasattr(pool, "submit") or hasattr(pool, "apply_async")):
            raise TypeError(
                f"pool= takes an executor such as concurrent.futures.ThreadPoolExecutor, not {type(pool).__name__}"
            )
        if _is_of_processes(pool):
            raise TypeError(
                f"pool= is a {type(pool).__name__}, whose workers are other processes and do not share this one's "
                "memory; use a pool of threads, or taskloom.multiprocessing.get, which has processes of its own"
            )
    if num_workers is None:
        num_workers = config.get("num_workers", None)
    if num_workers is None:
        num_workers = getattr(pool, "_max_workers", None) or getattr(pool, "_processes", None) or cpu_count()
    return config.positive_int("num_workers", num_workers)


def _is_of_processes(pool: Any) -> bool:
    # Only what has been imported can have made it, and importing it ourselves would cost. loky has `_context`.
    pools: Any = sys.modules.get("multiprocessing.pool")
    if pools is not None and isinstance(pool, pools.Pool):
        return not isinstance(pool, pools.ThreadPool)
    if any(cls.__name__ == "InterpreterPoolExecutor" for cls in type(pool).__mro__):  # Python 3.14
        return True
    return hasattr(pool, "_mp_context") or (hasattr(pool, "_context") and hasattr(pool, "_processes"))
