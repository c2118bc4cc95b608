"""Running collections: one graph of many, the scheduler that runs it, and what becomes of the values."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

from taskloom import config
from taskloom._collections.annotated import AnnotatedGraph, annotations_in, optimized
from taskloom._collections.annotations import annotations_of
from taskloom._collections.protocol import Collection, expression_of, quote, unpack
from taskloom.graph.convention import as_mapping, flatten_keys
from taskloom.graph.optimize import cull
from taskloom.local.frames import quiet_frames

__all__ = [
    "Default",
    "compute",
    "default_client",
    "default_clients",
    "get_processes",
    "get_scheduler",
    "get_sync",
    "get_threads",
    "optimize",
    "persist",
    "runs_on_cluster",
    "visualize",
]

# Where a live Client announces itself: it goes before the collections' own defaults. The variable counts for its
# context (a worker that runs a task, an asyncio task); of the list, the last one.
default_client: ContextVar[Any] = ContextVar("taskloom_client", default=None)
default_clients: list[Any] = []


class Default:
    """The get function of a local scheduler, imported when it is first called: a ``__dask_scheduler__``.

    It equals dask's scheduler of the same kind. dask computes collections together only if what they want by default is
    equal, and ours and dask's want the same.
    """

    __slots__ = ("__name__", "dasks", "ours")

    def __init__(self, name: str, ours: str, dasks: str) -> None:
        self.__name__ = name
        self.ours = ours
        self.dasks = dasks

    def __call__(self, graph: Any, keys: Any, **kwargs: Any) -> Any:
        module = importlib.import_module(self.ours)
        get = module.get_sync if self is get_sync else module.get
        return get(graph, keys, **kwargs)

    def __eq__(self, other: object) -> bool:
        return self is other or getattr(other, "__module__", None) == self.dasks

    def __hash__(self) -> int:
        return hash(self.__name__)

    def __reduce__(self) -> str:
        return self.__name__

    def __repr__(self) -> str:
        return f"<{self.__name__} of taskloom>"


get_sync = Default("get_sync", "taskloom.sync", "dask.local")
get_threads = Default("get_threads", "taskloom.threaded", "dask.threaded")
get_processes = Default("get_processes", "taskloom.multiprocessing", "dask.multiprocessing")


_NAMED: dict[str, Callable[..., Any]] = {
    "sync": get_sync,
    "synchronous": get_sync,
    "single-threaded": get_sync,
    "threads": get_threads,
    "threading": get_threads,
    "processes": get_processes,
    "multiprocessing": get_processes,
}


def get_scheduler(scheduler: Any = None, collections: Sequence[Any] = ()) -> Callable[..., Any]:
    """The ``get`` function that runs collections.

    The first of these counts: ``scheduler``; the setting ``scheduler``; a live client; what the collections want by
    themselves: threads or processes. Collections that want different things run on threads, where all of them can.

    Args:
        scheduler: "threads", "processes" or "sync" (or one of dask's other names for them), a get function, an object
            with ``get`` such as a client, or an executor of concurrent.futures, whose threads then run the tasks.
        collections: what is going to be run.

    Returns:
        A function ``get(graph, keys, **kwargs)``.

    Raises:
        ValueError: there is no scheduler of that name.
        TypeError: it is nothing of the above.

    >>> get_scheduler("sync")({"x": (abs, -1)}, ["x"])
    (1,)
    """
    if scheduler is None and (setting := config.get("scheduler")) is not None:
        try:
            return _get_of(setting)
        except (TypeError, ValueError) as error:
            error.add_note("it is the setting scheduler: config.set, a file, or the variable TASKLOOM_SCHEDULER")
            raise
    if scheduler is None:
        scheduler = default_client.get()
    if scheduler is None and default_clients:
        scheduler = default_clients[-1]
    if scheduler is not None:
        return _get_of(scheduler)
    wanted = []
    for collection in collections:
        get = getattr(collection, "__dask_scheduler__", None)
        if get is not None:
            # of dask's own, ours of the same kind
            get = next((ours for ours in (get_threads, get_processes, get_sync) if ours == get), get)
            if get not in wanted:
                wanted.append(get)
    return wanted[0] if len(wanted) == 1 else get_threads


def runs_on_cluster() -> bool:
    """Whether collections run on a live client where nothing else is said.

    >>> runs_on_cluster()
    False
    """
    return config.get("scheduler") is None and (default_client.get() is not None or bool(default_clients))


def _get_of(scheduler: Any) -> Callable[..., Any]:
    if isinstance(scheduler, str):
        get = _NAMED.get(scheduler.lower())
        if get is None:
            close = difflib.get_close_matches(scheduler.lower(), _NAMED, n=1)
            hint = f"do you mean {close[0]!r}? There are" if close else "there are"
            raise ValueError(f"there is no scheduler {scheduler!r}; {hint} {', '.join(sorted(_NAMED))}")
        return get
    if isinstance(scheduler, type):
        raise TypeError(
            f"scheduler= takes a client or an executor itself, not the class {scheduler.__name__}: make one"
        )
    method = getattr(scheduler, "get", None)
    if callable(method) and not isinstance(scheduler, Mapping):
        return method  # type: ignore[no-any-return]
    if callable(scheduler):
        return scheduler  # type: ignore[no-any-return]
    if callable(getattr(scheduler, "submit", None)) or callable(getattr(scheduler, "apply_async", None)):
        return partial(get_threads, pool=scheduler)
    raise TypeError(
        "scheduler= takes a name such as 'threads', a get function, a client or an executor, not "
        f"{type(scheduler).__name__}"
    )


@quiet_frames
def compute(
    *args: Any, traverse: bool = True, scheduler: Any = None, optimize_graph: bool = True, **kwargs: Any
) -> tuple[Any, ...]:
    """Compute collections together, in one run: what they share is done once.

    Args:
        args: collections, of ours or of dask, and anything else, which is returned as it is. Lists, tuples, dicts,
            sets, dataclasses and named tuples are searched for collections; so are generators, which become lists.
        traverse: whether they are searched.
        scheduler: see :func:`get_scheduler`.
        optimize_graph: whether the collections' own optimizations are applied first.
        kwargs: handed to the scheduler, such as ``num_workers=``.

    Returns:
        A tuple as long as ``args``: values instead of collections.

    Raises:
        Exception: whatever a task raises, as it is.

    >>> import taskloom
    >>> inc = taskloom.delayed(lambda x: x + 1)
    >>> x = inc(1)
    >>> compute({"a": x, "b": [inc(x), "text"]}, 5)
    ({'a': 2, 'b': [3, 'text']}, 5)
    """
    collections, repack = unpack(args, traverse)
    if not collections:
        return repack(())
    get = get_scheduler(scheduler, collections)
    merged = _Merged(collections, optimize_graph)
    merged.finalize_expressions()
    values = get(merged.graph(), merged.keys, **kwargs)
    return repack(merged.finalized(values))


@quiet_frames
def persist(
    *args: Any, traverse: bool = True, scheduler: Any = None, optimize_graph: bool = True, **kwargs: Any
) -> tuple[Any, ...]:
    """Compute collections together and return collections of the same kind that hold their values.

    A client keeps the values on its cluster and returns at once; the local schedulers return when all is done.
    Arguments as for :func:`compute`.

    >>> import taskloom
    >>> x = taskloom.delayed(sum)([1, 2])
    >>> (y,) = persist(x)
    >>> y.key == x.key, y.compute()
    (True, 3)
    """
    collections, repack = unpack(args, traverse)
    if not collections:
        return repack(())
    get = get_scheduler(scheduler, collections)
    owner: Any = getattr(get, "__self__", None)
    if callable(getattr(owner, "persist", None)):
        return repack(owner.persist(collections, optimize_graph=optimize_graph, **kwargs))
    merged = _Merged(collections, optimize_graph)
    values = get(merged.graph(), merged.keys, **kwargs)
    rebuilt = []
    for collection, keys, value in zip(collections, merged.keys, values, strict=True):
        # ours quote the values, so that none of them can be taken for a key; dask's expect them bare
        own = isinstance(collection, Collection)
        graph = {
            key: quote(item) if own else item
            for key, item in zip(flatten_keys(keys), _flat_values(keys, value), strict=True)
        }
        rebuilt.append(_rebuild(collection, graph))
    return repack(rebuilt)


def optimize(*args: Any, traverse: bool = True) -> tuple[Any, ...]:
    """Optimize collections together: equivalent collections, whose graphs are one graph, culled and optimized.

    dask's data frames are no graphs yet but expressions; each of them is optimized by itself.

    Args:
        args: collections, searched for as in :func:`compute`.
        traverse: whether to search in nested arguments.

    >>> import taskloom
    >>> x = taskloom.delayed(abs)(-1)
    >>> (y,) = optimize(x)
    >>> y.compute()
    1
    """
    collections, repack = unpack(args, traverse)
    optimized: list[Any] = list(collections)
    rest: list[int] = []
    for number, collection in enumerate(collections):
        if expression_of(collection) is None:
            rest.append(number)
        elif callable(getattr(type(collection), "optimize", None)):
            optimized[number] = collection.optimize()
    if rest:
        merged = _Merged([collections[number] for number in rest], True)
        graph = cull(merged.graph(), merged.keys)
        for number in rest:
            optimized[number] = _rebuild(collections[number], graph)
    return repack(optimized)


def visualize(
    *args: Any,
    filename: str | None = "taskloom",
    format: str | None = None,
    traverse: bool = True,
    optimize_graph: bool = False,
    color: str | None = None,
    **attributes: Any,
) -> Any:
    """Draw the graph of collections, through the package ``graphviz``.

    A task is an ellipse with the name of its function, in brackets what else it calls; data is a box; an arrow goes
    from a value to who uses it; what is wanted has a double line.

    Args:
        args: collections, searched for as in :func:`compute`; or graphs, drawn as they are.
        filename: where to write it; its ending says in which format if ``format`` does not: png (the default), svg,
            pdf, dot, .... None: nothing is written.
        format: the format, see above.
        traverse: whether to search in nested arguments.
        optimize_graph: whether to draw it as it will be run, or as it was made.
        color: "order": fills the tasks in the order in which they run, from dark to light, and numbers them.
        attributes: attributes of the whole drawing, such as ``rankdir="LR"``.

    Returns:
        With ``filename=None`` the ``graphviz.Digraph``; otherwise an image object in IPython and notebooks, else the
        path of the file.

    Raises:
        ImportError: the package graphviz is not there; the message says how to install it.
        RuntimeError: the program ``dot``, which every format but "dot" needs, is not there; likewise.
        ValueError: there is nothing to draw, or no such ``color``.

    >>> import taskloom
    >>> x = taskloom.delayed(abs)(-1)
    >>> picture = visualize(x, filename=None)
    >>> "abs" in picture.source
    True
    """
    from taskloom._collections.drawing import draw

    graph: dict[Any, Any] = {}
    keys: list[Any] = []
    drawn = [arg for arg in args if isinstance(arg, Mapping) and not _has_collections(arg, traverse)]
    for mapping in drawn:
        graph.update(mapping)
    collections, _ = unpack(tuple([arg for arg in args if not any(arg is other for other in drawn)]), traverse)
    if collections:
        merged = _Merged(collections, optimize_graph)
        graph.update(merged.graph())
        keys = list(flatten_keys(merged.keys))
    return draw(graph, keys, filename, format, color, attributes)


def _has_collections(value: Any, traverse: bool) -> bool:
    return bool(unpack((value,), traverse)[0])


def _rebuild(collection: Any, graph: dict[Any, Any]) -> Any:
    rebuild, args = collection.__dask_postpersist__()
    return rebuild(graph, *args)


def _flat_values(keys: Any, values: Any) -> list[Any]:
    """The values of nested keys, in the order in which :func:`flatten_keys` gives the keys."""
    if type(keys) is not list:
        return [values]
    flat: list[Any] = []
    stack = [zip(keys, values, strict=True)]
    while stack:
        for key, value in stack[-1]:
            if type(key) is list:
                stack.append(zip(key, value, strict=True))
                break
            flat.append(value)
        else:
            stack.pop()
    return flat


class _Merged:
    """Several collections as one graph.

    Collections of the same kind are optimized together, as one graph.

    Attributes:
        keys: the wanted keys of each collection, nested as it wants them.
    """

    def __init__(self, collections: Sequence[Any], optimize_graph: bool) -> None:
        self.collections = collections
        self.optimize_graph = optimize_graph
        self.expressions: dict[int, Any] = {}
        self.finals: set[int] = set()  # numbers of the collections whose expressions make the final value themselves
        self.keys: list[Any] = []
        groups: dict[Any, list[int]] = {}
        for number, collection in enumerate(collections):
            expression = expression_of(collection) if optimize_graph else None
            if expression is not None:
                self.expressions[number] = expression
                self.keys.append(None)
            else:
                groups.setdefault(_kind(collection), []).append(number)
                self.keys.append(collection.__dask_keys__())
        self.groups = list(groups.values())

    def finalize_expressions(self) -> None:
        """Have dask's expressions join their parts by themselves: they know better ways than postcompute does."""
        for number, expression in self.expressions.items():
            self.expressions[number] = expression.finalize_compute()
            self.finals.add(number)

    def graph(self) -> dict[Any, Any]:
        """The one graph; makes ``keys`` complete. With annotations it is an :class:`AnnotatedGraph`."""
        graphs: list[Any] = []
        said: dict[Any, Any] = {}
        for number, expression in self.expressions.items():
            simpler = expression.optimize(fuse=True)
            graphs.append(simpler.__dask_graph__())
            self.keys[number] = simpler.__dask_keys__()
        for numbers in self.groups:
            members = [self.collections[number] for number in numbers]
            graph = _graph_of(members)
            how = getattr(members[0], "__dask_optimize__", None) if self.optimize_graph else None
            ours = annotations_of(*members) if isinstance(members[0], Collection) else {}
            if how is not None and how is not cull:  # compiling the graph culls it
                keys = [self.keys[number] for number in numbers]
                if annotations_in(graph):
                    graph = optimized(how, graph, keys)
                elif not ours or _is_said_of_all(ours, graph):
                    graph = how(graph, keys)
            said.update(annotations_in(graph))
            said.update(ours)
            graphs.append(as_mapping(graph))
        if len(graphs) == 1 and not said:
            return graphs[0]  # type: ignore[no-any-return]
        whole: dict[Any, Any] = {}
        for graph in graphs:
            whole.update(graph)
        return AnnotatedGraph(whole, said) if said else whole

    def finalized(self, values: Sequence[Any]) -> list[Any]:
        """What each collection makes of the values of its keys."""
        results = []
        for number, collection in enumerate(self.collections):
            value = values[number]
            if number in self.finals and len(value) == 1:
                results.append(value[0])
                continue
            tell = getattr(collection, "__dask_postcompute__", None)
            if tell is None:  # an expression of dask by itself
                results.append(value)
            else:
                finalize, args = tell()
                results.append(finalize(value, *args))
        return results


def _is_said_of_all(annotations: Mapping[Any, Any], graph: Mapping[Any, Any]) -> bool:
    """Whether all tasks of a graph have the same annotations: then it does not matter which of them become one."""
    first = next(iter(annotations.values()))
    return graph.keys() <= annotations.keys() and all(said == first for said in annotations.values())


def _kind(collection: Any) -> Any:
    """Collections of the same kind are optimized as one graph: a bag and its count share the steps before both."""
    cls = type(collection)
    how = getattr(cls, "__dask_optimize__", None)
    return cls if how is None else (how, getattr(cls, "__taskloom_merge__", None))


def _graph_of(members: list[Any]) -> Any:
    """One graph of collections of the same kind."""
    together = getattr(type(members[0]), "__taskloom_merge__", None)
    if together is not None:
        return together(members)
    if len(members) == 1:
        return members[0].__dask_graph__()
    graphs = [member.__dask_graph__() for member in members]
    # dask's graphs in layers lose what its optimizations need when they are made into one dict
    first = type(graphs[0])
    if hasattr(first, "layers") and hasattr(first, "merge") and all(type(graph) is first for graph in graphs):
        return first.merge(*graphs)
    whole: dict[Any, Any] = {}
    for graph in graphs:
        whole.update(graph)
    return whole
