"""From a graph as people write it to a plan that a scheduler can run: culled, numbered, ordered.

A plan holds parallel lists, one item a task, indexed by small integers (ids). The keys are hashed here, once; from
then on everything is integers. Only what the wanted keys need is in it.
"""

from __future__ import annotations

import difflib
from typing import Any

from taskloom.errors import CycleError, InvalidGraphError, MissingKeyError
from taskloom.graph.convention import (
    ATOM,
    HASHABLE,
    LIST,
    NODE,
    REF,
    TUPLE,
    Key,
    as_mapping,
    kind_of,
    new_kinds,
)
from taskloom.graph.order import find_cycle, order

__all__ = ["CALL", "LIST_OF", "LOAD", "MAKE", "PLAIN", "PUSH", "REFS", "RUN", "VALUE", "Plan", "Spec", "compile_graph"]

# How the value of a task is made: `specs[i]` is one of these, or a program (a tuple of steps) for anything nested.
# Integers for the three forms that nearly all tasks have, so that the loops test them cheaply.
PLAIN = 0  # tasks[i] is (function, *arguments), no argument needs another task
REFS = 1  # tasks[i] is (function, *keys): every argument is the value of deps[i], in this order
VALUE = 2  # tasks[i] is the value itself

Spec = int | tuple[tuple[int, Any], ...]

# The steps of a program, a postfix notation: (step, operand). Nothing recurses, however deep a list is nested.
LOAD = 0  # push the value of the task with this id
PUSH = 1  # push the operand itself
CALL = 2  # pop that many arguments, call the function in the operand: (function, count)
MAKE = 3  # pop that many items, push a list of them
LIST_OF = 4  # push a list of the values of these ids
RUN = 5  # call a graph node: (node, keys, ids)

_NO_DEPS: tuple[int, ...] = ()


class Plan:
    """A compiled graph: parallel lists indexed by task id.

    Attributes:
        keys: the key of each task.
        tasks: what the graph holds for that key, as it is there.
        specs: how its value is made from that, see above.
        deps: ids of the values that it needs, in the order of its arguments, once for each use; () for none.
        dependents: the other way round: None, one id, or a list of ids.
        uses: how many times each value is needed: by tasks, and once more if it is an output.
        order: ids in the order in which one worker runs them; a position in it is a priority.
        outputs: ids of the wanted keys, without repetition.
        shape: the wanted keys as they were asked for, ids instead of keys, nested lists as nested lists.
    """

    __slots__ = ("_positions", "dependents", "deps", "keys", "order", "outputs", "shape", "specs", "tasks", "uses")

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.tasks: list[Any] = []
        self.specs: list[Spec] = []
        self.deps: list[tuple[int, ...]] = []
        self.dependents: list[int | list[int] | None] = []
        self.uses: list[int] = []
        self.order: list[int] = []
        self.outputs: list[int] = []
        self.shape: Any = None
        self._positions: list[int] | None = None

    def __len__(self) -> int:
        return len(self.tasks)

    def positions(self) -> list[int]:
        """The place of each id in the order; made when it is first asked for."""
        if self._positions is None:
            places = [0] * len(self.order)
            for place, i in enumerate(self.order):
                places[i] = place
            self._positions = places
        return self._positions

    def results(self, values: Any) -> Any:
        """What the caller gets: the values of the wanted keys; a list of keys comes back as a tuple of values.

        Args:
            values: list or dict, id -> value.
        """
        shape = self.shape
        if type(shape) is int:
            return values[shape]
        if shape and all(type(item) is int for item in shape):
            return tuple([values[i] for i in shape])
        return _nested(shape, values)


def _nested(shape: list[Any], values: Any) -> Any:
    # no recursion: a stack of (items still to do, values so far)
    stack: list[tuple[Any, list[Any]]] = [(iter(shape), [])]
    while True:
        items, done = stack[-1]
        for item in items:
            if type(item) is list:
                stack.append((iter(item), []))
                break
            done.append(values[item])
        else:
            stack.pop()
            if not stack:
                return tuple(done)
            stack[-1][1].append(tuple(done))


def compile_graph(graph: Any, keys: Any) -> Plan:
    """Compile what ``keys`` need of ``graph``.

    Args:
        graph: a mapping key -> computation, see :mod:`taskloom.graph.convention`, or a collection.
        keys: a key, or a list of keys and such lists.

    Raises:
        InvalidGraphError: the graph is no mapping, or a wanted key cannot be hashed.
        MissingKeyError: a wanted key, or one that a graph node refers to, is not in the graph.
        CycleError: tasks wait for each other.
    """
    dsk = as_mapping(graph)
    plan = Plan()
    ids: dict[Key, int] = {}
    names = plan.keys
    plan.shape = _number_outputs(dsk, keys, ids, names)
    outputs = plan.outputs = list(range(len(names)))

    tasks, specs, deps = plan.tasks, plan.specs, plan.deps
    add_task, add_spec, add_deps = tasks.append, specs.append, deps.append
    known = ids.get
    add_name = names.append
    kinds = new_kinds()
    kind_at = kinds.get
    edges = 0

    # The list of names is the queue too: it grows while it is walked, so ids are handed out breadth-first.
    for name in names:
        task = dsk[name]
        add_task(task)
        cls = type(task)
        if cls is tuple and task and callable(task[0]):
            refs: list[int] = []
            nested = False
            for arg in task[1:] if len(task) != 2 else (task[1],):
                kind = kind_at(type(arg))
                if kind is None:
                    kind = kind_of(arg, kinds)
                if kind == ATOM:
                    continue
                if kind > TUPLE or (kind == TUPLE and arg and callable(arg[0])):
                    nested = True
                    break
                try:
                    i = known(arg)
                    if i is None:
                        if arg not in dsk:
                            continue
                        i = ids[arg] = len(names)
                        add_name(arg)
                except TypeError:  # a tuple with something unhashable in it: data
                    continue
                refs.append(i)
            if not nested:
                if not refs:
                    add_spec(PLAIN)
                    add_deps(_NO_DEPS)
                    continue
                if len(refs) == len(task) - 1:
                    add_spec(REFS)
                    add_deps(tuple(refs))
                    edges += len(refs)
                    continue
        elif cls is not list and cls is not tuple:
            kind = kind_at(cls)
            if kind is None:
                kind = kind_of(task, kinds)
            if kind == ATOM or (kind == HASHABLE and not _is_key(task, dsk)):
                add_spec(VALUE)
                add_deps(_NO_DEPS)
                continue
        program = _program(task, name, dsk, ids, names, kinds)
        found = _refs_of(program)
        if not found and len(program) == 1 and program[0][0] == PUSH:
            tasks[-1] = program[0][1]
            add_spec(VALUE)
        else:
            add_spec(program)
        add_deps(found)
        edges += len(found)

    n = len(names)
    uses = plan.uses = [0] * n
    dependents = plan.dependents = [None] * n
    if edges:
        _link(deps, uses, dependents)
        plan.order = order(deps, dependents, outputs)
        if len(plan.order) != n:
            raise CycleError([names[i] for i in find_cycle(deps)])
    else:
        plan.order = outputs if len(outputs) == n else list(range(n))
    for i in outputs:
        uses[i] += 1
    return plan


def _link(deps: list[tuple[int, ...]], uses: list[int], dependents: list[int | list[int] | None]) -> None:
    for i, needed in enumerate(deps):
        for d in needed:
            uses[d] += 1
            old = dependents[d]
            if old is None:
                dependents[d] = i
            elif type(old) is int:
                dependents[d] = [old, i]
            else:
                old.append(i)  # type: ignore[union-attr]


def _number_outputs(dsk: Any, keys: Any, ids: dict[Key, int], names: list[Key]) -> Any:
    """Give the wanted keys the first ids; their shape, with ids instead of keys."""

    def number(key: Any) -> int:
        try:
            i = ids.get(key)
            if i is not None:
                return i
            known = key in dsk
        except TypeError as error:
            raise InvalidGraphError(
                f"a key is hashable, such as 'x' or ('x', 0); {key!r} of type {type(key).__name__} is not"
            ) from error
        if not known:
            raise _missing(key, dsk)
        i = ids[key] = len(names)
        names.append(key)
        return i

    if type(keys) is not list:
        return number(keys)
    top: list[Any] = []
    stack: list[tuple[Any, list[Any]]] = [(iter(keys), top)]
    while stack:
        items, shape = stack[-1]
        for item in items:
            if type(item) is list:
                inner: list[Any] = []
                shape.append(inner)
                stack.append((iter(item), inner))
                break
            shape.append(number(item))
        else:
            stack.pop()
    return top


def _missing(key: Any, dsk: Any, needed_by: Any = None) -> MissingKeyError:
    message = f"the graph has no key {key!r} (it has {len(dsk)} keys)"
    if needed_by is not None:
        message = f"the task {needed_by!r} needs the key {key!r}, which the graph does not have ({len(dsk)} keys)"
    names = {str(k): k for k in _first(dsk, 2000)}
    close = difflib.get_close_matches(str(key), names, n=3)
    if close:
        message += "; close to it: " + ", ".join(repr(names[name]) for name in close)
    return MissingKeyError(message)


def _is_key(value: Any, dsk: Any) -> bool:
    try:
        return value in dsk
    except TypeError:  # a __hash__ that raises, as a DataFrame's does
        return False


def _first(dsk: Any, count: int) -> list[Any]:
    return [key for key, _ in zip(dsk, range(count), strict=False)]


def _program(
    task: Any, name: Key, dsk: Any, ids: dict[Key, int], names: list[Key], kinds: dict[type, int]
) -> tuple[tuple[int, Any], ...]:
    """Steps that make the value of a computation with anything nested in it."""
    steps: list[tuple[int, Any]] = []

    def refer(key: Any, must: bool) -> int | None:
        try:
            i = ids.get(key)
            if i is not None:
                return i
            known = key in dsk
        except TypeError:  # not hashable, so data
            known = False
        if known:
            i = ids[key] = len(names)
            names.append(key)
        elif must:
            raise _missing(key, dsk, name)
        return i if known else None

    # A frame: items still to walk, then the step that joins them.
    stack: list[tuple[Any, tuple[int, Any] | None]] = [(iter((task,)), None)]
    while stack:
        items, join = stack[-1]
        for item in items:
            kind = kinds.get(type(item))
            if kind is None:
                kind = kind_of(item, kinds)
            if kind == LIST:
                stack.append((iter(item), (MAKE, len(item))))
                break
            if kind == TUPLE and item and callable(item[0]):
                stack.append((iter(item[1:]), (CALL, (item[0], len(item) - 1))))
                break
            if kind == ATOM:
                steps.append((PUSH, item))
            elif kind == REF:
                steps.append((LOAD, refer(item.key, True)))
            elif kind == NODE:
                target = getattr(item, "target", None)
                if target is not None:
                    steps.append((LOAD, refer(target, True)))
                elif hasattr(item, "value") and not item.dependencies:
                    steps.append((PUSH, item.value))
                else:
                    needed = tuple(item.dependencies)
                    steps.append((RUN, (item, needed, tuple([refer(key, True) for key in needed]))))
            else:
                i = refer(item, False)
                steps.append((PUSH, item) if i is None else (LOAD, i))
        else:
            stack.pop()
            if join is not None:
                _join(steps, join)
    return tuple(steps)


def _join(steps: list[tuple[int, Any]], join: tuple[int, Any]) -> None:
    """End a nested part: literals only are one literal again, references only are one step."""
    step, operand = join
    if step == MAKE:
        count = operand
        tail = steps[len(steps) - count :] if count else []
        made = {code for code, _ in tail}
        # each item is one step only if nothing nested is left among them
        if made <= {PUSH}:
            del steps[len(steps) - count :]
            steps.append((PUSH, [x for _, x in tail]))
            return
        if made == {LOAD}:
            del steps[len(steps) - count :]
            steps.append((LIST_OF, tuple([x for _, x in tail])))
            return
    steps.append(join)


def _refs_of(program: tuple[tuple[int, Any], ...]) -> tuple[int, ...]:
    found: list[int] = []
    for step, operand in program:
        if step == LOAD:
            found.append(operand)
        elif step == LIST_OF:
            found.extend(operand)
        elif step == RUN:
            found.extend(operand[2])
    return tuple(found)
