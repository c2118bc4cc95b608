"""From a graph as people write it to a plan that a scheduler can run: culled, numbered, ordered.

A plan holds parallel lists, one item a task, indexed by small integers (ids). The keys are hashed here, once; from
then on everything is integers. Only what the wanted keys need is in it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice
from typing import Any

from taskloom.errors import CycleError, InvalidGraphError, MissingKeyError
from taskloom.graph.convention import (
    ATOM,
    HASHABLE,
    LIST,
    NODE,
    REF,
    TUPLE,
    Graph,
    Key,
    as_mapping,
    kind_of,
    new_kinds,
    short,
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
    numbers = _Numbers(dsk, plan)
    plan.shape = _number_outputs(keys, numbers)
    tasks, specs, deps = plan.tasks, plan.specs, plan.deps
    outputs = plan.outputs = list(range(len(tasks)))
    kinds, ids = numbers.kinds, numbers.ids
    kind_at, known, find = kinds.get, ids.get, dsk.get
    add_name, add_task, add_spec, add_deps = plan.keys.append, tasks.append, specs.append, deps.append
    linked = False

    # The list of tasks is the queue too: it grows while it is walked, so ids are handed out breadth-first.
    for task in tasks:
        cls = type(task)
        if cls is tuple and task and callable(task[0]):
            args = task[1:]
            types = numbers.types
            # a list as the last argument is so common that it is not worth an exception
            if type(task[-1]) is not list and (types is None or types.issuperset(map(type, args))):
                refs: list[int] = []
                try:
                    for arg in args:
                        i = known(arg)
                        if i is None:
                            cls = type(arg)
                            kind = kind_at(cls)
                            if kind is None:
                                kind = kind_of(arg, kinds)
                            if kind == ATOM:
                                continue
                            if kind > TUPLE or (kind == TUPLE and arg and callable(arg[0])):
                                break
                            needed = find(arg, _ABSENT)
                            if needed is _ABSENT:
                                continue
                            if types is None and cls is not str and cls is not tuple:
                                break
                            i = ids[arg] = len(tasks)
                            add_name(arg)
                            add_task(needed)
                        refs.append(i)
                    else:
                        if not refs:
                            add_spec(PLAIN)
                            add_deps(_NO_DEPS)
                            continue
                        if len(refs) == len(args):
                            add_spec(REFS)
                            add_deps(tuple(refs))
                            linked = True
                            continue
                except Exception:  # what cannot be looked up is data: see below
                    pass
        elif cls is not list and cls is not tuple:
            kind = kind_at(cls)
            if kind is None:
                kind = kind_of(task, kinds)
            if kind == ATOM or (kind == HASHABLE and not _is_key(task, dsk)):
                add_spec(VALUE)
                add_deps(_NO_DEPS)
                continue
        program = _program(task, plan.keys[len(specs)], numbers)
        found = _refs_of(program)
        if found:
            linked = True
            add_spec(REFS if _is_call_of_keys(program) else program)
        elif len(program) == 1 and program[0][0] == PUSH:
            tasks[len(specs)] = program[0][1]
            add_spec(VALUE)
        else:
            add_spec(program)
        add_deps(found)

    n = len(tasks)
    names = plan.keys
    uses = plan.uses = [0] * n
    dependents = plan.dependents = [None] * n
    if linked:
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
    after: list[Any] = dependents  # Any: a type checker does not narrow by `type(x) is int`, which is the fast test
    for i, needed in enumerate(deps):
        for d in needed:
            old = after[d]
            if old is None:
                after[d] = i
            elif type(old) is int:
                after[d] = [old, i]
            else:
                old.append(i)
    uses[:] = [0 if to is None else len(to) if type(to) is list else 1 for to in after]


class _Numbers:
    """The ids that keys have got so far.

    Attributes:
        graph: the graph that is compiled.
        ids: key -> id.
        names, tasks: id -> key, and what the graph has for it.
        kinds: type -> kind, see :mod:`taskloom.graph.convention`.
        types: None while all keys with ids are strings and tuples that look like no task: then looking up an argument
            in ``ids`` finds nothing but keys, whatever it is. Otherwise the types of which that can be said
            (``True`` would find the key 1, a task ``(f, 1)`` the key ``(f, 1)``).
    """

    __slots__ = ("graph", "ids", "kinds", "names", "tasks", "types")

    def __init__(self, graph: Graph, plan: Plan) -> None:
        self.graph = graph
        self.ids: dict[Key, int] = {}
        self.names = plan.keys
        self.tasks = plan.tasks
        self.kinds = new_kinds()
        self.types: frozenset[type] | None = None

    def add(self, key: Any) -> int | None:
        """The id of a key of the graph, the next one if it has none; None for what is no key.

        Raises:
            Exception: looking it up does, mostly a TypeError, because it cannot be hashed.
        """
        i = self.ids.get(key)
        if i is None:
            task = self.graph.get(key, _ABSENT)
            if task is _ABSENT:
                return None
            cls = type(key)
            if cls is tuple:
                if key and callable(key[0]):
                    self.types = _TYPES - {tuple}
            elif cls is not str and self.types is None:
                self.types = _TYPES
            i = self.ids[key] = len(self.tasks)
            self.names.append(key)
            self.tasks.append(task)
        return i


_ABSENT: Any = object()
_TYPES = frozenset({str, bytes, int, float, tuple})


def _number_outputs(keys: Any, numbers: _Numbers) -> Any:
    """Give the wanted keys the first ids; their shape, with ids instead of keys."""
    ids, tasks = numbers.ids, numbers.tasks
    known, find, add_name, add_task = ids.get, numbers.graph.get, numbers.names.append, tasks.append
    top: list[Any] = []
    stack: list[tuple[Any, list[Any]]] = [(iter((keys,)), top)]
    key = keys
    try:
        while stack:
            items, shape = stack[-1]
            for key in items:
                if type(key) is list:
                    inner: list[Any] = []
                    shape.append(inner)
                    stack.append((iter(key), inner))
                    break
                i = known(key)
                if i is None:
                    cls = type(key)
                    if cls is str or (cls is tuple and key and not callable(key[0])):  # as add() does, without the call
                        task = find(key, _ABSENT)
                        if task is _ABSENT:
                            raise _missing(key, numbers.graph)
                        i = ids[key] = len(tasks)
                        add_name(key)
                        add_task(task)
                    else:
                        i = numbers.add(key)
                        if i is None:
                            raise _missing(key, numbers.graph)
                shape.append(i)
            else:
                stack.pop()
    except MissingKeyError:
        raise
    except Exception as error:
        raise InvalidGraphError(_not_hashable(key, error)) from error
    return top[0]


def _not_hashable(key: Any, error: Exception) -> str:
    message = f"a key is hashable, such as 'x' or ('x', 0); {short(key)} of type {type(key).__name__} is not: {error}"
    if isinstance(key, Iterable) and not isinstance(key, tuple):
        message += ". To ask for several keys, give a list of them"
    return message


def _missing(key: Any, dsk: Any, needed_by: Any = None) -> MissingKeyError:
    count = f"{len(dsk)} key{'' if len(dsk) == 1 else 's'}"
    message = f"the graph has no key {short(key)} (it has {count})"
    if needed_by is not None:
        message = f"the task {short(needed_by)} needs the key {short(key)}, which the graph does not have ({count})"
    elif isinstance(key, (tuple, frozenset)) and key and all(_is_key(item, dsk) for item in key):
        return MissingKeyError(f"{message}; to ask for several keys, give a list of them: {short(list(key))}")
    elif isinstance(key, Iterable) and not isinstance(key, (str, bytes, tuple, frozenset)):
        return MissingKeyError(f"{message}; to ask for several keys, give a list of them")
    names = {short(k, 200): k for k in islice(dsk, 2000)}
    close = difflib.get_close_matches(short(key, 200), names, n=3)
    if close:
        message += "; close to it: " + ", ".join(close)
    return MissingKeyError(message)


def _is_key(value: Any, dsk: Any) -> bool:
    try:
        return value in dsk
    except Exception:  # a __hash__ that raises, as a DataFrame's does, or an __eq__
        return False


def _is_call_of_keys(program: tuple[tuple[int, Any], ...]) -> bool:
    return program[-1][0] == CALL and all(step == LOAD for step, _ in program[:-1])


def _program(task: Any, name: Key, numbers: _Numbers) -> tuple[tuple[int, Any], ...]:
    """Steps that make the value of a computation with anything nested in it."""
    steps: list[tuple[int, Any]] = []
    kinds = numbers.kinds

    def refer(key: Any) -> int:
        """For what can be nothing but a key."""
        try:
            i = numbers.add(key)
        except Exception as error:
            raise InvalidGraphError(_not_hashable(key, error)) from error
        if i is None:
            raise _missing(key, numbers.graph, name)
        return i

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
                steps.append((LOAD, refer(item.key)))
            elif kind == NODE:
                target = getattr(item, "target", None)
                if target is not None:
                    steps.append((LOAD, refer(target)))
                elif hasattr(item, "value") and not item.dependencies:
                    steps.append((PUSH, item.value))
                else:
                    needed = tuple(item.dependencies)
                    steps.append((RUN, (item, needed, tuple([refer(key) for key in needed]))))
            else:
                try:
                    i = numbers.add(item)
                except Exception:  # it cannot be looked up, so it is data
                    i = None
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
