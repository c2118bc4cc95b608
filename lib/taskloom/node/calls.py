"""How a task's call travels: what the client packs and the worker opens.

The arguments of a task are one of three:

- None: its inputs, in their order, are the arguments;
- a tuple of numbers, strings, None, True, False: these are the arguments;
- a :class:`Payload`: a pickle of ``(spec, task)`` of :mod:`taskloom.graph.compile`, with positions in the inputs instead of ids.

A result that comes with the report is a number, a string, True or False as it is, ``()`` for None, and else a Payload of its
pickle. None stands for a result that stays at the worker.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from taskloom.graph.compile import LIST_OF, LOAD, PLAIN, REFS, RUN, Plan
from taskloom.local.run import evaluate
from taskloom.protocol import Payload
from taskloom.serialize.objects import dumps, dumps_whole

__all__ = [
    "ATOMS",
    "SMALL",
    "are_atoms",
    "call",
    "open_function",
    "open_value",
    "pack_args",
    "pack_call",
    "pack_function",
    "pack_mixed",
    "pack_result",
    "pack_value",
]

ATOMS = frozenset({int, float, str, bool, type(None)})
SMALL = 64 * 1024  # bytes of a result that comes with the report
_BIG = 1 << 63


def pack_function(function: Any) -> Any:
    """A function as a payload."""
    return Payload([dumps_whole(function)])


def open_function(payload: Any) -> Any:
    """The other way round."""
    return pickle.loads(payload.parts[0])


def are_atoms(args: Sequence[Any]) -> bool:
    """Whether arguments can travel as they are."""
    for arg in args:
        kind = type(arg)
        if kind not in ATOMS or (kind is int and not -_BIG <= arg < _BIG):
            return False
    return True


def pack_args(plan: Plan, i: int, needed: tuple[int, ...]) -> Any:
    """The arguments of a task.

    Args:
        needed: ids of its inputs, each once.
    """
    spec, task = plan.specs[i], plan.tasks[i]
    if spec == PLAIN:
        args = task[1:]
        return args if are_atoms(args) else pack_call(args)
    deps = plan.deps[i]
    if spec == REFS:
        if len(deps) == len(needed):
            return None
        return pack_mixed(deps, [needed.index(d) for d in deps])
    place = {d: k for k, d in enumerate(needed)}
    steps: list[tuple[int, Any]] = []
    for step, operand in spec:  # type: ignore[union-attr]
        if step == LOAD:
            operand = place[operand]
        elif step == LIST_OF:
            operand = tuple([place[d] for d in operand])
        elif step == RUN:
            operand = (operand[0], operand[1], tuple([place[d] for d in operand[2]]))
        steps.append((step, operand))
    data, buffers = dumps((None, tuple(steps)))
    return Payload([data, *buffers])


def pack_call(args: tuple[Any, ...]) -> Payload:
    """Arguments that need no input."""
    data, buffers = dumps((PLAIN, args))
    return Payload([data, *buffers])


def pack_mixed(args: Sequence[Any], places: Sequence[int]) -> Payload:
    """Arguments of which some are inputs: ``places`` has the input's position, or -1 for one that stands for itself."""
    data, buffers = dumps((REFS, [(k, None if k >= 0 else arg) for arg, k in zip(args, places, strict=True)]))
    return Payload([data, *buffers])


def call(function: Any, args: Any, inputs: Sequence[Any]) -> Any:
    """Call a task's function."""
    if args is None:
        return function(*inputs)
    if type(args) is tuple:
        return function(*args)
    spec, what = pickle.loads(args.parts[0], buffers=args.parts[1:])
    if spec == PLAIN:
        return function(*what)
    if spec == REFS:
        return function(*[inputs[k] if k >= 0 else arg for k, arg in what])
    return evaluate(what, inputs)


def pack_value(value: Any) -> Payload:
    """A value as a payload.

    Raises:
        Exception: it does not pickle.
    """
    data, buffers = dumps(value)
    return Payload([data, *buffers])


def open_value(value: Any) -> Any:
    """What :func:`pack_value` or :func:`pack_result` made this of."""
    if type(value) is Payload:
        return pickle.loads(value.parts[0], buffers=value.parts[1:])
    return None if value == () and type(value) is tuple else value


def pack_result(value: Any, size: int) -> Any:
    """A value as it comes with the report; None where it does not."""
    kind = type(value)
    if kind in ATOMS:
        if value is None:
            return ()
        if kind is not int or -_BIG <= value < _BIG:
            return value if kind is not str or len(value) < SMALL else None
    if size > SMALL:
        return None
    payload = pack_value(value)
    return payload if payload.nbytes <= SMALL else None
