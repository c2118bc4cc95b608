"""The multiprocessing scheduler: a pool of processes, each with an interpreter of its own.

For code that holds the GIL: text, JSON, plain Python objects. Data that goes from one process to another costs time;
what a chain of tasks hands on stays in one process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from taskloom import config
from taskloom.diagnostics.events import Callback, active_callbacks
from taskloom.graph.compile import Plan, compile_graph
from taskloom.graph.optimize import fuse
from taskloom.local.child import in_child
from taskloom.local.frames import note_task, quiet_frames
from taskloom.local.pool import ProcessPool, shared_pool
from taskloom.local.processes import run_on_processes
from taskloom.local.run import Run
from taskloom.sync import get_sync

__all__ = ["ProcessPool", "get"]


@quiet_frames
def get(
    graph: Any,
    keys: Any,
    *,
    num_workers: int | None = None,
    pool: ProcessPool | None = None,
    initializer: Callable[[], Any] | None = None,
    optimize_graph: bool | None = None,
    callbacks: Iterable[Callback] | None = None,
) -> Any:
    """Compute keys of a graph in other processes.

    The processes are started at the first call and kept. They do not import the program's main module: its functions
    and classes are sent by value, so no ``if __name__ == "__main__":`` is needed. Inside of a task the graph is computed
    step by step, as by :func:`taskloom.get_sync`.

    Args:
        graph: mapping ``key -> literal | (function, *arguments) | key | list``, or a collection with
            ``__dask_graph__()``; see :mod:`taskloom.graph.convention`.
        keys: a key, or a list of keys and such lists.
        num_workers: how many processes; by default the setting ``num_workers``, else as many as the pool has: as many
            as this process may use CPUs.
        pool: a :class:`ProcessPool` to run on instead of the shared one.
        initializer: called in each process before its first task.
        optimize_graph: whether chains of tasks become one task each first (:func:`taskloom.graph.optimize.fuse`). None:
            where most of the graph is chains, and no callback wants to hear of every task. Chains stay in one process
            either way; fusing pays for long ones only. What the keys do not need is never looked at.
        callbacks: :class:`taskloom.diagnostics.Callback` objects, beside those that are active already.

    Returns:
        The value of the key; for a list of keys a tuple of values, nested as the list is.

    Raises:
        GraphError: the graph is wrong: a missing key, a cycle, no mapping.
        SerializationError: a function, an argument or a result does not pickle.
        WorkerDiedError: a process died; names the task that it ran, and the signal.
        Exception: whatever a task raises, as it is, with the task's own lines in the traceback.

    >>> get({"x": 1, "y": (sum, ["x", 10])}, ["x", "y"])
    (1, 11)
    """
    if in_child():
        return get_sync(graph, keys, callbacks=callbacks)
    if pool is None:
        pool = shared_pool(initializer)
    elif not isinstance(pool, ProcessPool):
        raise TypeError(
            f"pool= takes a taskloom.multiprocessing.ProcessPool, not {type(pool).__name__}; executors with threads go "
            "with taskloom.threaded.get"
        )
    elif initializer is not None:
        raise TypeError("initializer= goes with the shared pool; give it to the ProcessPool itself")
    if num_workers is None:
        num_workers = config.get("num_workers", None)
    workers = config.positive_int("num_workers", pool.num_workers if num_workers is None else num_workers)
    plan = whole = compile_graph(graph, keys)
    if optimize_graph or (optimize_graph is None and _is_chains(plan) and not active_callbacks(callbacks)):
        plan = compile_graph(fuse(graph, keys), keys)
    run = Run(plan, "processes", workers, callbacks)
    run_on_processes(run, pool)
    if run.error is not None:
        if run.failed_key is not None:
            key = run.failed_key if plan is whole else _key_in_chain(whole, run.failed_key, run.error)
            note_task(run.error, key)
        raise run.error
    return plan.results(run.values)


def _is_chains(plan: Plan) -> bool:
    """Whether fusing pays: it takes some 2 us a task, and saves 3 us for each that goes into another one."""
    dependents = plan.dependents
    links = [1 for needed in plan.deps if len(needed) == 1 and type(dependents[needed[0]]) is int]
    return len(links) > 0.7 * len(plan)


def _key_in_chain(plan: Plan, key: Any, error: BaseException) -> Any:
    """The key of the task in a fused chain that raised, by the step that the chain has noted; else the chain's own."""
    for note in getattr(error, "__notes__", ()):
        found = re.match(r"raised in step (\d+) of (\d+) of the fused task ", str(note))
        if found is None:
            continue
        step, steps = int(found[1]), int(found[2])
        i = plan.keys.index(key)
        for _ in range(steps - step):
            if len(plan.deps[i]) != 1:
                return key
            i = plan.deps[i][0]
        return plan.keys[i]
    return key
