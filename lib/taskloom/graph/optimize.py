"""Graph to graph: fewer tasks that make the same values.

Every function here takes a graph and the keys that are wanted of it, and returns a new dict; nothing is changed in
place. Each takes time linear in the size of the graph, and none recurses, so a chain of any length will do. A graph in
the tuple form stays one, and runs in dask too. Graph nodes of dask's newer form are left whole: they can begin a fused
chain or be a step of it, but nothing is put into them.

A key that the graph does not have is left where it stands: compiling the graph says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, pairwise
from typing import Any

from taskloom.graph.compile import _missing as missing_key
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
    flatten_keys,
    kind_of,
    new_kinds,
)

__all__ = ["Chain", "cull", "fuse", "inline"]


def cull(graph: Any, keys: Any) -> dict[Any, Any]:
    """Only what the wanted keys need.

    Args:
        graph: a mapping key -> computation, or a collection.
        keys: a key, or a list of keys and such lists.

    Raises:
        MissingKeyError: a wanted key is not in the graph.

    >>> cull({"x": 1, "y": (abs, "x"), "z": (abs, "y")}, "y")
    {'y': (<built-in function abs>, 'x'), 'x': 1}
    """
    dsk = as_mapping(graph)
    kinds = new_kinds()
    culled: dict[Any, Any] = {}
    todo = list(dict.fromkeys(flatten_keys(keys)))
    for key in todo:
        if key not in dsk:
            raise missing_key(key, dsk)
    seen = set(todo)
    for key in todo:  # grows while it is walked
        task = culled[key] = dsk[key]
        for needed in _references(task, dsk, kinds):
            if needed not in seen and needed in dsk:
                seen.add(needed)
                todo.append(needed)
    return culled


def fuse(graph: Any, keys: Any) -> dict[Any, Any]:
    """Make one task of each chain of tasks in which every one needs the one before and nothing else of the graph.

    A chain begins with any task and goes on while the next task is the only one that uses the value, and uses no
    other. Wanted keys, and keys that several tasks use, keep their place. The fused task has the key of the last one
    and the arguments of all; its function is a :class:`Chain`, the same object for all chains that are built alike.

    Args:
        graph: a mapping key -> computation, or a collection.
        keys: the wanted keys: a key, or a list of keys and such lists.

    >>> fused = fuse({"x": (int, "1"), "y": (pow, "x", 2), "z": (str, "y")}, "z")
    >>> fused
    {'z': (<chain int-pow-str>, '1', 2)}
    """
    dsk = as_mapping(graph)
    wanted = set(flatten_keys(keys))
    kinds = new_kinds()

    # key -> the one key it needs (None: none or several), and the one task that needs it (_SEVERAL: several do)
    needs: dict[Key, Key] = {}
    user: dict[Key, Key] = {}
    for key, task in dsk.items():
        found = _references(task, dsk, kinds)
        if len(found) > 1:
            found = list(dict.fromkeys(found))
        if len(found) == 1 and found[0] in dsk and found[0] != key:
            needs[key] = found[0]
        for needed in found:
            user[needed] = _SEVERAL if needed in user else key

    # key -> the next of its chain
    follows: dict[Key, Key] = {}
    for key, needed in needs.items():
        if (
            user[needed] is not _SEVERAL
            and needed not in wanted
            and not _blocks(dsk[key], kinds)
            and not _blocks(dsk[needed], kinds)
        ):
            follows[needed] = key
    if not follows:
        return dict(dsk)

    inner = set(follows.values())
    fused: dict[Key, Any] = {}  # last key -> task
    gone: set[Key] = set()
    known: dict[Any, Chain] = {}
    for head in follows:
        if head in inner:  # a circle has no head and stays as it is
            continue
        path = [head]
        while path[-1] in follows:
            path.append(follows[path[-1]])
        task = _fused(dsk, path, kinds, known)
        if task is not None:
            fused[path[-1]] = task
            gone.update(path[:-1])
    return {key: fused.get(key, task) for key, task in dsk.items() if key not in gone}


_SEVERAL: Any = object()


def _blocks(task: Any, kinds: dict[type, int]) -> bool:
    """Whether a computation must stay a task of its own: references to data elsewhere, and nodes that say so."""
    kind = kinds.get(type(task))
    if kind is None:
        kind = kind_of(task, kinds)
    return kind == REF or (kind == NODE and getattr(task, "block_fusion", False) is True)


def _fused(dsk: Graph, path: list[Key], kinds: dict[type, int], known: dict[Any, Chain]) -> Any:
    """The task of a chain of keys, or None where it is better left alone."""
    head = dsk[path[0]]
    function: Callable[..., Any] | None = None
    args: list[Any] = [head]
    if type(head) is tuple and head and callable(head[0]):
        function, *args = head
    taken = len(args)
    steps: list[Step] = []
    for before, key in pairwise(path):
        step = _step(dsk[key], before, dsk, kinds, args)
        if step is not None:
            steps.append(step)
    if not steps:  # names for one value; a node knows its key, and would not know this one
        return head if kinds.get(type(head)) != NODE else None
    # by identity: functions that are equal may differ in what equality does not look at
    sign = (id(function), taken, tuple([_sign_of(step) for step in steps]))
    chain = known.get(sign)
    if chain is None:
        chain = known[sign] = Chain(function, taken, tuple(steps))
    return (chain, *args)


# A step of a chain: (function, before, after): call it with so many arguments, the value so far, so many arguments;
# or (program, -1, count), for anything nested: run it with the value so far and so many arguments.
Step = tuple[Any, int, int]

# The operations of a program, in postfix notation: (operation, operand).
_VALUE = 0  # push the value so far
_TAKE = 1  # push the next argument
_CALL = 2  # pop that many arguments, call: (function, count)
_LIST = 3  # pop that many items, push a list of them
_NODE = 4  # call a graph node with the value so far: (node, key)


class Chain:
    """The function of a fused task: calls one function after the other, each with the value of the one before.

    It holds functions and how they are called, no data: that is in the task's arguments, so that chains that are
    built alike share one of these, and it is sent to another process once.

    Args:
        function: the first function, or None: then the first argument is the first value.
        taken: how many arguments it takes; the others are for the steps.
        steps: what follows, see the source.
    """

    __slots__ = ("function", "steps", "taken")

    def __init__(self, function: Callable[..., Any] | None, taken: int, steps: tuple[Step, ...]) -> None:
        self.function = function
        self.taken = taken
        self.steps = steps

    def __call__(self, *args: Any) -> Any:
        at = self.taken
        number = 0
        try:
            value = args[0] if self.function is None else self.function(*args[:at])
            for number, (function, before, after) in enumerate(self.steps, 1):  # noqa: B007  (for the note)
                if not before and not after:
                    value = function(value)
                elif before >= 0:
                    middle = at + before
                    end = middle + after
                    value = function(*args[at:middle], value, *args[middle:end])
                    at = end
                else:
                    value = _run(function, value, args[at : at + after])
                    at += after
        except Exception as error:
            _note(error, f"raised in step {number + 1} of {len(self.steps) + 1} of the fused task {self.__name__}")
            raise
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return Chain, (self.function, self.taken, self.steps)

    @property
    def __name__(self) -> str:
        names = [] if self.function is None else [_name(self.function)]
        for function, before, _ in self.steps:
            names.append(_name(function) if before >= 0 else _program_name(function))
        parts = []
        for name, run in groupby(names):
            count = len(list(run))
            parts.append(name if count == 1 else f"{name}*{count}")
        if len(parts) > 6:
            parts = [*parts[:3], "...", *parts[-2:]]
        return "-".join(parts)

    def __repr__(self) -> str:
        return f"<chain {self.__name__}>"


def _note(error: Exception, note: str) -> None:
    # what raises is often a builtin, which has no line in the traceback
    try:
        error.add_note(note)
    except Exception:  # an exception class may forbid it; its message is worth more than our note
        pass


def _name(function: Any) -> str:
    for _ in range(8):
        inner = getattr(function, "func", None)
        if inner is None or not callable(inner):
            break
        function = inner
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__


def _program_name(program: tuple[tuple[int, Any], ...]) -> str:
    operation, operand = program[-1]
    if operation == _CALL:
        return _name(operand[0])
    return "list" if operation == _LIST else _name(getattr(operand[0], "func", operand[0]))


def _sign_of(step: Step) -> Any:
    """What two steps have in common if one may stand for the other."""
    function, before, after = step
    if before >= 0:
        return id(function), before, after
    operations = []
    for operation, operand in function:
        if operation == _CALL or operation == _NODE:
            operand = (id(operand[0]), operand[1])
        operations.append((operation, operand))
    return tuple(operations), before, after


def _run(program: tuple[tuple[int, Any], ...], value: Any, args: tuple[Any, ...]) -> Any:
    stack: list[Any] = []
    push = stack.append
    rest = iter(args)
    for operation, operand in program:
        if operation == _VALUE:
            push(value)
        elif operation == _TAKE:
            push(next(rest))
        elif operation == _CALL:
            function, count = operand
            start = len(stack) - count
            given = stack[start:]
            del stack[start:]
            push(function(*given))
        elif operation == _LIST:
            start = len(stack) - operand
            items = stack[start:]
            del stack[start:]
            push(items)
        else:
            node, key = operand
            push(node({key: value}))
    return stack[0]


def _step(task: Any, before: Key, dsk: Graph, kinds: dict[type, int], args: list[Any]) -> Step | None:
    """A computation that needs one key and no other, as a step; its other arguments are added to ``args``.

    Returns:
        None for an alias, which does nothing.
    """
    if type(task) is tuple and task and callable(task[0]):
        if len(task) == 2 and type(task[1]) is str:  # it needs the key, so this is the key
            return task[0], 0, 0
        places = []
        for place, arg in enumerate(task):
            if place:
                kind = kinds.get(type(arg))
                if kind is None:
                    kind = kind_of(arg, kinds)
                if kind == LIST or kind == NODE or (kind == TUPLE and arg and callable(arg[0])):
                    break  # the key may be in it
                if kind != ATOM and _is(arg, before, kind):
                    places.append(place)
        else:
            if len(places) == 1:
                place = places[0]
                args.extend(task[1:place])
                args.extend(task[place + 1 :])
                return task[0], place - 1, len(task) - place - 1
    program, extra = _program(task, before, kinds)
    if program == ((_VALUE, None),):
        return None
    args.extend(extra)
    return program, -1, len(extra)


def _is(item: Any, key: Key, kind: int) -> bool:
    """Whether an item that is no atom and no container is a reference to the key."""
    if kind == REF:
        return bool(item.key == key)
    try:
        # as a dict would look it up
        return item is key or (hash(item) == hash(key) and bool(item == key))
    except Exception:  # it cannot be compared, so it is data
        return False


def _program(task: Any, before: Key, kinds: dict[type, int]) -> tuple[tuple[tuple[int, Any], ...], list[Any]]:
    """Operations that make the value of a computation, and the arguments that they take.

    What does not need the key is taken as an argument, whole.
    """
    operations: list[tuple[int, Any]] = []
    extra: list[Any] = []
    # A frame: the container, its items still to walk, the operation that joins them, where its operations and
    # arguments begin, and whether the key was met in it.
    frames: list[list[Any]] = [[None, iter((task,)), None, 0, 0, False]]
    while frames:
        frame = frames[-1]
        for item in frame[1]:
            kind = kinds.get(type(item))
            if kind is None:
                kind = kind_of(item, kinds)
            if kind == LIST:
                frames.append([item, iter(item), (_LIST, len(item)), len(operations), len(extra), False])
                break
            if kind == TUPLE and item and callable(item[0]):
                join = (_CALL, (item[0], len(item) - 1))
                frames.append([item, iter(item[1:]), join, len(operations), len(extra), False])
                break
            if kind == NODE:
                target = getattr(item, "target", None)
                if target is not None and target == before:
                    operations.append((_VALUE, None))
                    frame[5] = True
                    continue
                if target is None and before in item.dependencies:
                    operations.append((_NODE, (item, before)))
                    frame[5] = True
                    continue
            elif kind != ATOM and _is(item, before, kind):
                operations.append((_VALUE, None))
                frame[5] = True
                continue
            operations.append((_TAKE, None))
            extra.append(item)
        else:
            frames.pop()
            container, _, join, first, first_extra, met = frame
            if join is None:
                break
            if met:
                operations.append(join)
                frames[-1][5] = True
            else:
                del operations[first:], extra[first_extra:]
                operations.append((_TAKE, None))
                extra.append(container)
    return tuple(operations), extra


def inline(
    graph: Any, keys: Any, functions: Iterable[Callable[..., Any]] = (), literals: bool = True
) -> dict[Any, Any]:
    """Put cheap computations into the tasks that use them, instead of keys.

    Such a task is then no task of its own: it is done anew, inside of each task that uses it, which saves scheduling
    it and keeping its value. Wanted keys stay in the graph all the same.

    Args:
        graph: a mapping key -> computation, or a collection.
        keys: the wanted keys: a key, or a list of keys and such lists.
        functions: the functions whose tasks are cheap enough to be done several times. They have to return equal values
            each time. At most some 20 tasks are put into one, whatever they are.
        literals: whether to do so with data: small atoms (numbers, short strings, None, functions) wherever they are used,
            other data where only one task uses it.

    >>> inline({"x": 1, "y": (abs, "x"), "z": (max, "y", 3)}, "z", functions=[abs])
    {'z': (<built-in function max>, (<built-in function abs>, 1), 3)}
    """
    dsk = as_mapping(graph)
    wanted = set(flatten_keys(keys))
    cheap = {id(function) for function in functions}
    kinds = new_kinds()

    needs: dict[Key, list[Key]] = {}
    uses: dict[Key, int] = {}
    for key, task in dsk.items():
        found = needs[key] = [k for k in dict.fromkeys(_references(task, dsk, kinds)) if k in dsk]
        for needed in found:
            uses[needed] = uses.get(needed, 0) + 1

    inlined: dict[Key, Any] = {}  # key -> what stands for it
    weights: dict[Key, int] = {}  # key -> how many tasks that is
    kept: set[Key] = set()  # keys that a graph node refers to
    done: dict[Key, Any] = {}
    for key in _bottom_up(needs):
        task = dsk[key]
        replaced = {needed: inlined[needed] for needed in needs[key] if needed in inlined}
        weight = 1
        if replaced:
            task, weight = _substitute(task, replaced, weights, kinds, kept)
        done[key] = task
        if not uses.get(key):
            continue
        if type(task) is tuple and task and callable(task[0]):
            if id(task[0]) in cheap and weight <= _MOST:
                inlined[key], weights[key] = task, weight
        elif literals and not needs[key] and _is_data(task, kinds):
            if _is_small(task) or (uses[key] == 1 and key not in wanted):
                inlined[key], weights[key] = task, 0
    # what is in or behind a circle was not reached: it stays as it is, and so does what it needs
    for key, found in needs.items():
        if key not in done:
            kept.update(found)
    return {key: done.get(key, task) for key, task in dsk.items() if key in wanted or key not in inlined or key in kept}


_MOST = 20


def _bottom_up(needs: dict[Key, list[Key]]) -> Iterator[Key]:
    """Keys, each after those that it needs; those in or behind a circle not at all."""
    users: dict[Key, list[Key]] = {}
    waiting: dict[Key, int] = {}
    for key, found in needs.items():
        waiting[key] = len(found)
        for needed in found:
            users.setdefault(needed, []).append(key)
    ready = [key for key, count in waiting.items() if not count]
    for key in ready:  # grows while it is walked
        yield key
        for follower in users.get(key, ()):
            waiting[follower] -= 1
            if not waiting[follower]:
                ready.append(follower)


def _is_data(task: Any, kinds: dict[type, int]) -> bool:
    """Whether a computation that needs no key is no task either: the same wherever it stands."""
    kind = kinds.get(type(task))
    if kind is None:
        kind = kind_of(task, kinds)
    if kind == NODE:
        return hasattr(task, "value") and getattr(task, "target", None) is None
    return kind != REF


def _is_small(value: Any) -> bool:
    if isinstance(value, (str, bytes)):
        return len(value) <= 64
    return value is None or isinstance(value, (bool, int, float, complex, type)) or callable(value)


def _substitute(
    task: Any, replaced: dict[Key, Any], weights: dict[Key, int], kinds: dict[type, int], kept: set[Key]
) -> tuple[Any, int]:
    """A computation with others in the place of keys.

    Args:
        kept: to this are added the keys that could not be replaced, because they are in graph nodes.

    Returns:
        The new computation, and how many tasks it is now.
    """
    weight = 1
    # a frame: the container, its items still to walk, the new items
    frames: list[tuple[Any, Iterator[Any], list[Any]]] = [(None, iter((task,)), [])]
    while True:
        container, items, made = frames[-1]
        for item in items:
            kind = kinds.get(type(item))
            if kind is None:
                kind = kind_of(item, kinds)
            if kind == LIST or (kind == TUPLE and item and callable(item[0])):
                frames.append((item, iter(item), []))
                break
            if kind == NODE:
                target = getattr(item, "target", None)
                kept.update([target] if target is not None else item.dependencies)
            elif kind == REF:
                kept.add(item.key)
            elif kind in (HASHABLE, TUPLE):
                try:
                    known = item in replaced
                except Exception:
                    known = False
                if known:
                    weight += weights[item]
                    item = replaced[item]
            made.append(item)
        else:
            frames.pop()
            if not frames:
                return made[0], weight
            frames[-1][2].append(made if type(container) is list else tuple(made))


def _references(task: Any, dsk: Graph, kinds: dict[type, int]) -> list[Key]:
    """The keys that a computation needs, in no certain order, with repetition."""
    found: list[Key] = []
    stack = [task]
    while stack:
        item = stack.pop()
        kind = kinds.get(type(item))
        if kind is None:
            kind = kind_of(item, kinds)
        if kind == ATOM:
            continue
        if kind == LIST:
            stack.extend(item)
        elif kind == TUPLE and item and callable(item[0]):
            stack.extend(item[1:])
        elif kind == NODE:
            target = getattr(item, "target", None)
            if target is not None:
                found.append(target)
            else:
                found.extend(item.dependencies)
        elif kind == REF:
            found.append(item.key)
        else:
            try:
                if item in dsk:
                    found.append(item)
            except Exception:  # it cannot be looked up, so it is data
                pass
    return found
