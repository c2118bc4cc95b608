"""How a task's call travels: what the client packs and the worker opens.

The arguments of a task are one of three:

- None: its inputs, in their order, are the arguments;
- a tuple of numbers, strings, None, True, False: these are the arguments;
- a :class:`Payload`: a pickle of ``(spec, task)`` of :mod:`taskloom.graph.compile`, with positions in the inputs instead of ids.

Anywhere in such a pickle may stand a call of :func:`input_at`: a future of the client's, which is one of the inputs.

A result that comes with the report is a number, a string, True or False as it is, ``()`` for None, and else a Payload of its
pickle. None stands for a result that stays at the worker.
"""

from __future__ import annotations

import importlib
import pickle
import re
import threading
from collections.abc import Sequence
from typing import Any

from taskloom.graph.compile import PLAIN, REFS
from taskloom.local.run import evaluate
from taskloom.protocol import Payload
from taskloom.serialize.objects import dumps, dumps_whole

__all__ = [
    "ATOMS",
    "SMALL",
    "are_atoms",
    "call",
    "input_at",
    "open_function",
    "open_value",
    "pack_call",
    "pack_function",
    "pack_mixed",
    "pack_result",
    "pack_steps",
    "pack_value",
]

ATOMS = frozenset({int, float, str, bool, type(None)})
SMALL = 64 * 1024  # bytes of a result that comes with the report
_IMPORTS = 5  # attempts, where another thread imports
SHORT = 4 * 1024  # characters of one that stands in it as it is; a report may have some thousands
_BIG = 1 << 63
_LONG = 1000  # characters, and arguments: what is longer is pickled, as a message's header has its limit


class _Present(threading.local):
    """The inputs of the call whose arguments this thread is opening."""

    inputs: Sequence[Any] | None = None


_present = _Present()


def input_at(position: int) -> Any:
    """Stands in pickled arguments for an input of the call.

    Raises:
        RuntimeError: it is unpickled elsewhere.
    """
    if _present.inputs is None:
        raise RuntimeError("a future of a client stands for its value among the arguments of a task only")
    return _present.inputs[position]


def pack_function(function: Any) -> Any:
    """A function as a payload."""
    return Payload([dumps_whole(function)])


def open_function(payload: Any) -> Any:
    """The other way round."""
    return _loads(payload.parts[0])


def _loads(data: Any, buffers: Sequence[Any] = ()) -> Any:
    """Unpickle, also while another thread is at the first import of a module that is needed.

    Python lets two threads that import parts of a package see each other's unfinished modules rather than wait for each other for
    ever.
    """
    for _ in range(_IMPORTS):
        try:
            return pickle.loads(data, buffers=buffers)
        except (ImportError, AttributeError) as error:
            unfinished = re.search(r"partially initialized module '([^'.]+)", str(error))
            if unfinished is None:
                raise
            importlib.import_module(unfinished[1])  # waits until the other thread has it
    return pickle.loads(data, buffers=buffers)


def are_atoms(args: Sequence[Any]) -> bool:
    """Whether arguments can travel as they are."""
    for arg in args:
        kind = type(arg)
        if kind not in ATOMS or (kind is int and not -_BIG <= arg < _BIG) or (kind is str and len(arg) > _LONG):
            return False
    return len(args) <= _LONG


def pack_call(args: tuple[Any, ...]) -> Payload:
    """Arguments that are called as they are, but for the futures in them."""
    return pack_value((PLAIN, args))


def pack_steps(steps: tuple[tuple[int, Any], ...]) -> Payload:
    """A program of :mod:`taskloom.graph.compile`, with positions in the inputs instead of ids."""
    return pack_value((None, steps))


def pack_mixed(args: Sequence[Any], places: Sequence[int]) -> Payload:
    """Arguments of which some are inputs: ``places`` has the input's position, or -1 for one that stands for itself."""
    return pack_value((REFS, [(k, None if k >= 0 else arg) for arg, k in zip(args, places, strict=True)]))


def call(function: Any, args: Any, inputs: Sequence[Any]) -> Any:
    """Call a task's function."""
    if args is None:
        return function(*inputs)
    if type(args) is tuple:
        return function(*args)
    _present.inputs = inputs
    try:
        spec, what = _loads(args.parts[0], args.parts[1:])
    finally:
        _present.inputs = None
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
        return _loads(value.parts[0], value.parts[1:])
    return None if value == () and type(value) is tuple else value


def pack_result(value: Any, size: int) -> Any:
    """A value as it comes with the report; None where it does not."""
    kind = type(value)
    if kind in ATOMS:
        if value is None:
            return ()
        if kind is not int or -_BIG <= value < _BIG:
            if kind is not str or len(value) < SHORT:
                return value
    if size > SMALL:
        return None
    payload = pack_value(value)
    return payload if payload.nbytes <= SMALL else None
