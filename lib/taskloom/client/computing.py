"""The client: graphs and collections."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import isfinite
from typing import Any

from taskloom._collections.annotated import AnnotatedGraph, opened
from taskloom._collections.protocol import is_collection, quote
from taskloom._collections.running import _Merged, _rebuild
from taskloom.client import defaults
from taskloom.client.arguments import without_dasks
from taskloom.client.data import Data
from taskloom.client.future import Future
from taskloom.client.packing import Packer
from taskloom.core.messages import Options
from taskloom.graph.compile import Plan, compile_graph
from taskloom.graph.convention import flatten_keys
from taskloom.local.frames import quiet_frames
from taskloom.local.run import name_of

__all__ = ["Computing"]

Said = Options | list[Options | None] | None  # of all tasks of a graph, or of each
_SAID = ("priority", "retries", "workers", "resources")


class Computing(Data):
    """The part of :class:`taskloom.Client` that computes graphs and collections."""

    @quiet_frames
    def get(
        self,
        graph: Any,
        keys: Any,
        *,
        priority: int = 0,
        retries: int = 0,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        timeout: float | None = None,
        sync: bool = True,
        **more: Any,
    ) -> Any:
        """Compute keys of a graph on the cluster.

        Ctrl-C, and a timeout, stop what was begun.

        Args:
            graph: mapping ``key -> literal | (function, *arguments) | key | list``, or a collection; see
                :mod:`taskloom.graph.convention`. A future in it stands for its value.
            keys: a key, or a list of keys and such lists.
            priority: of its tasks: greater goes first.
            retries: how many times a task that raised is run again.
            workers: names or addresses of the workers that may run them; by default all.
            resources: name -> amount of what each task takes while it runs.
            timeout: seconds to wait at most.
            sync: False: futures instead of values, at once.
            more: what other schedulers take (``num_workers``) has no meaning here; ``allow_other_workers`` as for :meth:`submit`.

        Returns:
            The value of the key; for a list of keys a tuple of values, nested as the list is.

        Raises:
            GraphError: the graph is wrong.
            SerializationError: something in it does not pickle.
            TimeoutError: it took longer.
            Exception: whatever a task raises.

        >>> from taskloom import Client
        >>> with Client(n_workers=1) as client:
        ...     client.get({"x": 1, "y": (abs, -2), "z": (max, "x", "y")}, ["z", ["x", "y"]])
        (2, (1, 2))
        """
        self._engine.check()
        how = priority, retries, without_dasks(more, workers), resources
        options = self._options_of(*how)
        graph = opened(graph)
        plan = compile_graph(graph, keys)
        said = self._said(plan, graph, options, how)
        if not sync:
            futures = self._persisted(plan, said)
            return plan.results(futures)
        return self._sync(self._get(plan, said, timeout))

    async def _get(self, plan: Plan, options: Said, timeout: float | None) -> Any:
        packer = Packer(self._engine, copy=False)
        wanted: dict[int, int] = {}
        try:
            self._send(packer, plan, wanted, options)
            values = await self._engine.values(list(wanted.values()), timeout, name=partial(self._name, packer))
        finally:
            self._engine.release(wanted.values())
            self._engine.finished(packer.base, len(packer.order))
        return plan.results(dict(zip(wanted, values, strict=True)))

    def _send(self, packer: Packer, plan: Plan, wanted: dict[int, int], options: Said) -> None:
        """Send a graph. ``wanted`` is filled with the counters of its outputs, by their ids, whatever happens."""
        engine = self._engine
        each = options if isinstance(options, list) else None
        try:
            for columns in packer.graph(plan, wanted, each):
                engine.submit(columns, options if each is None else packer.options)
        except BaseException:
            engine.unsubmit(packer.base, packer.base + len(packer.order))
            raise

    def _persisted(self, plan: Plan, options: Said) -> dict[int, Future]:
        """Futures of the outputs of a graph, by their ids."""
        packer = Packer(self._engine)
        wanted: dict[int, int] = {}
        try:
            self._send(packer, plan, wanted, options)
        except BaseException:
            self._engine.release(wanted.values())
            if packer.order:
                self._engine.graphs.forget(packer.base)
            raise
        futures = {i: Future(self, counter, plan.keys[i]) for i, counter in wanted.items()}
        self._engine.labels.update({counter: plan.keys[i] for i, counter in wanted.items()})
        if packer.order:
            self._engine.graphs.keep(packer.base, wanted.values())
        return futures

    def _said(self, plan: Plan, graph: Any, options: Options | None, how: tuple[Any, ...]) -> Said:
        """The options of a graph; where it has annotations, of each task by its id.

        Args:
            graph: of which the plan was made. Its annotations go before what is said of all.
            options: of all; ``how``: the priority, retries, workers and resources that these are made of.
        """
        if type(graph) is not AnnotatedGraph:
            return options
        made: dict[str, Options | None] = {}
        found = []
        for key in plan.keys:
            said = graph.annotations.get(key)
            if not said:
                found.append(options)
                continue
            each = [said.get(name, of_all) for name, of_all in zip(_SAID, how, strict=True)]
            for n in (0, 1):  # a priority of 0.5 may be said
                each[n] = int(each[n] // 1) if isinstance(each[n], float) and isfinite(each[n]) else each[n]
            if said.get("allow_other_workers"):
                each[_SAID.index("workers")] = None
            words = repr(each)
            if words not in made:
                made[words] = self._options_of(*each)
            found.append(made[words])
        return found

    @quiet_frames
    def compute(
        self,
        collections: Any,
        sync: bool = False,
        *,
        optimize_graph: bool = True,
        priority: int = 0,
        retries: int = 0,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        **more: Any,
    ) -> Any:
        """Compute collections in the background, each to one value on the cluster.

        Args:
            collections: a collection of ours or of dask's, or a list of them. What is none is returned as it is.
            sync: whether to wait for the values, and return them.
            optimize_graph: whether the collections' own optimizations are applied first.
            priority, retries, workers, resources: as for :meth:`get`.
            more: what dask's takes besides: see :meth:`submit`.

        Returns:
            The future of its value; of a list, a list of futures.

        >>> from taskloom import Client
        >>> import taskloom
        >>> numbers = taskloom.bag.range(10, npartitions=2)
        >>> with Client(n_workers=1) as client:
        ...     total, count = client.compute([numbers.sum(), numbers.count()])
        ...     total.result(), count.result()
        (45, 10)
        """
        self._engine.check()
        defaults.tell_dask()
        how = priority, retries, without_dasks(more, workers), resources
        for name in more.keys() - {"traverse"}:
            raise TypeError(f"compute takes no argument {name!r}")
        options = self._options_of(*how)
        several = isinstance(collections, (list, tuple, set, frozenset))
        given = list(collections) if several else [collections]
        found = [collection for collection in given if is_collection(collection)]
        futures: list[Future] = []
        if found:
            merged = _Merged(found, optimize_graph)
            merged.finalize_expressions()
            whole = merged.graph()
            graph = dict(whole)
            wanted = []
            for number, collection in enumerate(found):
                key = merged.keys[number]
                tell = None if number in merged.finals else getattr(collection, "__dask_postcompute__", None)
                if tell is not None:
                    finalize, args = tell()
                    if getattr(finalize, "__name__", "") != "single_key":
                        key, keys = f"{name_of(type(collection)).lower()}-value-{os.urandom(8).hex()}", key
                        graph[key] = (finalize, keys, *[quote(arg) for arg in args])
                while type(key) is list and len(key) == 1:
                    key = key[0]
                if type(key) is list:
                    key, keys = f"value-{os.urandom(8).hex()}", key
                    graph[key] = keys
                wanted.append(key)
            plan = compile_graph(graph, wanted)
            by_id = self._persisted(plan, self._said(plan, whole, options, how))
            futures = self._futures_of(plan.shape, by_id)
        rest = iter(futures)
        results = [next(rest) if is_collection(collection) else collection for collection in given]
        if sync:
            return self.gather(results if several else results[0])
        return results if several else results[0]

    def _futures_of(self, ids: Sequence[int], by_id: dict[int, Future]) -> list[Future]:
        """A future for each id; where one stands twice, another one."""
        seen: set[int] = set()
        futures = []
        for i in ids:
            future = by_id[i]
            if i in seen:
                self._engine.share(future.counter)
                future = Future(self, future.counter, future.key)
            seen.add(i)
            futures.append(future)
        return futures

    @quiet_frames
    def persist(
        self,
        collections: Any,
        *,
        optimize_graph: bool = True,
        priority: int = 0,
        retries: int = 0,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        **more: Any,
    ) -> Any:
        """Compute collections in the background; their values stay on the cluster.

        Args:
            collections: a collection of ours or of dask's, or a list of them.
            optimize_graph, priority, retries, workers, resources, more: as for :meth:`compute`.

        Returns:
            A collection of the same kind, made of futures of its parts; of a list, a list. The values live as long as it does.

        >>> from taskloom import Client
        >>> import taskloom
        >>> with Client(n_workers=1) as client:
        ...     squares = client.persist(taskloom.bag.range(10, npartitions=2).map(lambda x: x * x))
        ...     squares.sum().compute()
        285
        """
        self._engine.check()
        defaults.tell_dask()
        how = priority, retries, without_dasks(more, workers), resources
        options = self._options_of(*how)
        several = isinstance(collections, (list, tuple, set, frozenset))
        given = list(collections) if several else [collections]
        found = [collection for collection in given if is_collection(collection)]
        rebuilt = []
        if found:
            merged = _Merged(found, optimize_graph)
            graph = merged.graph()
            keys = [list(flatten_keys(own)) for own in merged.keys]
            plan = compile_graph(graph, [key for own in keys for key in own])
            by_id = self._persisted(plan, self._said(plan, graph, options, how))
            futures = iter(self._futures_of(plan.shape, by_id))
            for collection, own in zip(found, keys, strict=True):
                rebuilt.append(_rebuild(collection, {key: next(futures) for key in own}))
        rest = iter(rebuilt)
        results = [next(rest) if is_collection(collection) else collection for collection in given]
        return results if several else results[0]
