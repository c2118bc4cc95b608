"""The optimization of bags: a partition goes through a chain of steps in one task, item by item.

The rule that makes it safe: a step is put into the task of another one only if that other one is its only user, and its
value is not wanted. So an iterator has one consumer, lives within one call of one task, and never leaves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskloom.bag.steps import Pipeline, Step
from taskloom.graph.convention import flatten_keys, new_kinds
from taskloom.graph.node import Literal
from taskloom.graph.optimize import _references as references
from taskloom.graph.optimize import cull, fuse

__all__ = ["optimize", "stream"]


def optimize(graph: Any, keys: Any) -> dict[Any, Any]:
    """What bags do with their graph before it runs: leave out what is not needed, make chains of steps one task."""
    return fuse(stream(cull(graph, keys), keys), keys)


def stream(graph: Mapping[Any, Any], keys: Any) -> dict[Any, Any]:
    """Put steps that follow on one another into one task each.

    Args:
        graph: a graph; what is in it beside steps stays as it is.
        keys: the wanted keys: a key, or a list of keys and such lists.
    """
    return _Streams(graph, keys).graph_of_pipelines()


def _is_step(task: Any) -> bool:
    return type(task) is tuple and len(task) > 1 and type(task[0]) is Step


class _Streams:
    """One call of :func:`stream`.

    Attributes:
        uses: key -> how many times it is referred to; one that is wanted counts twice more, so that it stays.
        source: key of a step -> the key of the step or data before it, that goes into the same task.
        inner: keys that go into the task of another one.
        gone: the same, with the aliases between them.
        known: pipelines by what they consist of, so that all that are built alike are one object.
    """

    def __init__(self, graph: Mapping[Any, Any], keys: Any) -> None:
        self.graph = graph
        self.uses: dict[Any, int] = {}
        kinds = new_kinds()
        for task in graph.values():
            for needed in references(task, graph, kinds):
                self.uses[needed] = self.uses.get(needed, 0) + 1
        for key in flatten_keys(keys):
            self.uses[key] = self.uses.get(key, 0) + 2
        self.source: dict[Any, Any] = {}
        self.inner: set[Any] = set()
        self.gone: set[Any] = set()
        self.known: dict[Any, Pipeline] = {}

    def graph_of_pipelines(self) -> dict[Any, Any]:
        graph = self.graph
        for key, task in graph.items():
            if not _is_step(task):
                continue
            before, path = self.behind(task[1])
            if before is not None and before != key:
                function = graph[before][0]
                if type(function) is Step or (type(function) is Literal and len(graph[before]) == 1):
                    self.source[key] = before
                    self.inner.add(before)
                    self.gone.update(path)
        made = {key: self.piped(key) for key, task in graph.items() if key not in self.inner and _is_step(task)}
        return {key: made.get(key, task) for key, task in graph.items() if key not in self.gone}

    def behind(self, argument: Any) -> tuple[Any, list[Any]]:
        """The task that an argument stands for, through aliases, if nothing else uses it.

        Returns:
            Its key, or None, and all keys on the way, it included.
        """
        path: list[Any] = []
        while self.uses_of(argument) == 1:
            path.append(argument)
            task = self.graph[argument]
            if type(task) is tuple and task and callable(task[0]):
                return argument, path
            argument = task
        return None, path

    def uses_of(self, key: Any) -> int:
        """How many times a key is used; 0 for what is none."""
        if type(key) is not tuple and type(key) is not str:
            return 0
        try:
            return self.uses.get(key, 0) if key in self.graph else 0
        except TypeError:  # a tuple with something in it that cannot be hashed
            return 0

    def piped(self, key: Any, ends: bool = True) -> tuple[Any, ...]:
        """The task of a chain of steps, from its last one.

        Args:
            key: the last one.
            ends: whether its value leaves the task, so that it must be no iterator.
        """
        path = [key]
        while path[-1] in self.source:
            path.append(self.source[path[-1]])
        path.reverse()
        head = self.graph[path[0]]
        steps: list[tuple[Step, int]] = []
        if type(head[0]) is Literal:  # data: the first argument of the first step
            args: list[Any] = [head]
        else:
            args = self.arguments(head, 1)
            steps.append((head[0], len(args)))
        for place in path[1:]:
            task = self.graph[place]
            rest = self.arguments(task, 2)
            args += rest
            steps.append((task[0], len(rest) if steps else len(rest) + 1))
        if ends and len(steps) == 1:
            return (steps[0][0], *args)
        sign = (ends, tuple([(id(step), taken) for step, taken in steps]))
        pipeline = self.known.get(sign)
        if pipeline is None:
            pipeline = self.known[sign] = Pipeline(tuple(steps), ends)
        return (pipeline, *args)

    def arguments(self, task: tuple[Any, ...], first: int) -> list[Any]:
        """The arguments of a step from a place on; other partitions that it goes over may stream into it too."""
        args = list(task[first:])
        for n in range(max(first, 2), task[0].streams + 1):
            before, path = self.behind(task[n])
            if before is not None and self.is_plain(before):
                args[n - first] = self.piped(before, ends=False)
                self.gone.update(path)
        return args

    def is_plain(self, key: Any) -> bool:
        """Whether a chain of steps has no other chain that goes into it: nesting must not grow with a program's length."""
        if not _is_step(self.graph[key]):
            return False
        while _is_step(self.graph[key]):
            if self.graph[key][0].streams > 1:
                return False
            if key not in self.source:
                break
            key = self.source[key]
        return True
