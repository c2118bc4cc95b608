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
    kinds = new_kinds()
    uses: dict[Any, int] = {}
    for task in graph.values():
        for needed in references(task, graph, kinds):
            uses[needed] = uses.get(needed, 0) + 1
    for key in flatten_keys(keys):
        uses[key] = uses.get(key, 0) + 2  # wanted keys stay

    def behind(argument: Any) -> tuple[Any, list[Any]] | None:
        """The key of the step or the data that an argument stands for, through aliases, if nothing else uses it."""
        path = []
        while uses_of(argument) == 1:
            path.append(argument)
            task = graph[argument]
            if type(task) is tuple and task and callable(task[0]):
                return argument, path
            argument = task
        return None

    def uses_of(key: Any) -> int:
        if type(key) is not tuple and type(key) is not str:
            return 0
        try:
            return uses.get(key, 0) if key in graph else 0
        except TypeError:
            return 0

    inner: dict[Any, Any] = {}  # key that goes into the task of another one -> key of that
    source: dict[Any, Any] = {}  # key -> the key of the step before it
    gone: set[Any] = set()
    for key, task in graph.items():
        if type(task) is not tuple or not task or type(task[0]) is not Step or len(task) < 2:
            continue
        found = behind(task[1])
        if found is not None and found[0] != key:
            before, path = found
            function = graph[before][0]
            if type(function) is Step or (type(function) is Literal and len(graph[before]) == 1):
                source[key] = before
                inner[before] = key
                gone.update(path)

    made: dict[Any, Any] = {}
    known: dict[Any, Pipeline] = {}

    def piped(key: Any, ends: bool) -> tuple[Any, ...]:
        path = [key]
        while path[-1] in source:
            path.append(source[path[-1]])
        path.reverse()
        head = graph[path[0]]
        steps: list[tuple[Step, int]] = []
        args: list[Any] = []
        if type(head[0]) is Literal:
            args.append(head)
            start = 1
        else:
            args += arguments(head, 1)
            steps.append((head[0], len(head) - 1))
            start = 1
        for place in path[start:]:
            task = graph[place]
            rest = arguments(task, 2)
            args += rest
            steps.append((task[0], len(rest) if steps else len(rest) + 1))
        if ends and len(steps) == 1:
            return (steps[0][0], *args)
        sign = (ends, tuple([(id(step), taken) for step, taken in steps]))
        pipeline = known.get(sign)
        if pipeline is None:
            pipeline = known[sign] = Pipeline(tuple(steps), ends)
        return (pipeline, *args)

    def arguments(task: tuple[Any, ...], first: int) -> list[Any]:
        """The arguments of a step from a place on: other partitions that it goes over may stream into it too."""
        step: Step = task[0]
        args = list(task[first:])
        for n in range(max(first, 2), step.streams + 1):
            found = behind(task[n])
            if found is None:
                continue
            before, path = found
            # only a plain chain: nesting must not grow with the length of a program
            if type(graph[before][0]) is Step and is_plain(before):
                args[n - first] = piped(before, ends=False)
                gone.update(path)
        return args

    def is_plain(key: Any) -> bool:
        while True:
            function = graph[key][0]
            if type(function) is not Step or function.streams > 1:
                return type(function) is not Step
            if key not in source:
                return True
            key = source[key]

    for key, task in graph.items():
        if key not in inner and type(task) is tuple and task and type(task[0]) is Step:
            made[key] = piped(key, ends=True)
    return {key: made.get(key, task) for key, task in graph.items() if key not in gone}
