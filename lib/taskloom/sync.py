"""The synchronous scheduler: steps through a graph in the calling thread.

For finding errors: pdb, cProfile, print and Ctrl-C work as in plain code. Otherwise it does what the others do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from taskloom.diagnostics.events import Callback
from taskloom.graph.compile import compile_graph
from taskloom.local.frames import cut_frames, quiet_frames
from taskloom.local.run import Run, work

__all__ = ["get_sync"]


@quiet_frames
def get_sync(
    graph: Any, keys: Any, *, num_workers: int | None = None, callbacks: Iterable[Callback] | None = None
) -> Any:
    """Compute keys of a graph, one task after the other, in this thread.

    Args:
        graph: mapping ``key -> literal | (function, *arguments) | key | list``, or a collection with
            ``__dask_graph__()``; see :mod:`taskloom.graph.convention`.
        keys: a key, or a list of keys and such lists.
        num_workers: taken so that a call need not change with its scheduler; it is one at a time all the same.
        callbacks: :class:`taskloom.diagnostics.Callback` objects, beside those that are active already.

    Returns:
        The value of the key; for a list of keys a tuple of values, nested as the list is.

    Raises:
        GraphError: the graph is wrong: a missing key, a cycle, no mapping.
        Exception: whatever a task raises, as it is, with the task's own lines in the traceback.

    >>> get_sync({"x": 1, "y": (sum, ["x", 10])}, "y")
    11
    """
    run = Run(compile_graph(graph, keys), "sync", 1, callbacks)
    try:
        run.start()
        try:
            run.tickets = 1
            work(run)
        except BaseException as error:  # a Ctrl-C just before the first task or just after the last
            run.finish(error)
            raise
        if run.error is not None:
            cut_frames(run.error)
        run.finish(run.error)
        return run.outcome()
    finally:
        run.forget()
