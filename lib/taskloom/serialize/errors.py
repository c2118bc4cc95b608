"""Errors that travel: the exception itself, its notes, its causes, and its traceback.

A traceback is sent as file names, functions and line numbers (tblib) and is a real one again on the other side, so
that pdb, logging and ``traceback`` show the lines of the user's source.

An exception whose ``__init__`` takes other arguments than ``args`` holds cannot be unpickled the usual way; that is
found out on the sending side, and it is sent as class, ``args`` and attributes instead. One whose class can't be found by the
other side arrives as :class:`taskloom.errors.RemoteError`, with the text that was made where it was raised.
"""

from __future__ import annotations

import pickle
import traceback
from types import TracebackType
from typing import Any

import cloudpickle

from taskloom.errors import RemoteError

__all__ = ["dump_error", "load_error"]

_MOST_LINKS = 32  # a chain of causes longer than this is cut; it would be a loop, or of no use to anyone


def dump_error(error: BaseException) -> bytes:
    """An exception as bytes; never raises."""
    try:
        data: bytes = cloudpickle.dumps(_describe(error, {}), protocol=5)
        return data
    except Exception as problem:
        # not even its text could be had: an exception with a broken __str__, say
        text = f"{type(error).__qualname__} (it could not be described: {type(problem).__name__})"
        return pickle.dumps({"text": text}, protocol=5)


def load_error(data: bytes) -> BaseException:
    """The exception that :func:`dump_error` made this of, or a :class:`RemoteError` that tells of it; never raises."""
    try:
        return _rebuild(pickle.loads(data))
    except Exception as problem:
        return RemoteError(f"an error arrived that cannot be read here: {type(problem).__name__}: {problem}")


def _describe(error: BaseException, seen: dict[int, None]) -> dict[str, Any]:
    seen[id(error)] = None
    found: dict[str, Any] = {
        "text": "".join(traceback.format_exception(error)),
        "name": f"{type(error).__module__}.{type(error).__qualname__}",
        "error": _pickled(error),
        "notes": [note for note in getattr(error, "__notes__", ()) if isinstance(note, str)],
        "traceback": _traceback_to_dict(error.__traceback__),
        "suppress": error.__suppress_context__,
    }
    if isinstance(error, BaseExceptionGroup):
        found["group"] = [_describe(e, seen) for e in error.exceptions if id(e) not in seen]
        found["message"] = error.message
    if len(seen) < _MOST_LINKS:
        for name in ("__cause__", "__context__"):
            other = getattr(error, name)
            if other is not None and id(other) not in seen:
                found[name] = _describe(other, seen)
    return found


def _pickled(error: BaseException) -> bytes | None:
    """The exception alone, proved to come back as what it is; None if its class can't be sent at all."""
    try:
        data: bytes = cloudpickle.dumps(error, protocol=5)
        back = pickle.loads(data)
        # an __init__ that makes a text of its arguments makes another one of that text
        if type(back) is type(error) and str(back) == str(error):
            return data
    except Exception:
        pass
    try:
        data = _by_parts(error)
        return data if type(pickle.loads(data)) is type(error) else None
    except Exception:
        return None


def _by_parts(error: BaseException) -> bytes:
    attributes: dict[str, Any] = {}
    for name, value in vars(error).items():
        try:
            cloudpickle.dumps(value, protocol=5)
        except Exception:
            value = f"<{type(value).__qualname__}, which could not be sent>"
        attributes[name] = value
    args = []
    for value in error.args:
        try:
            cloudpickle.dumps(value, protocol=5)
        except Exception:
            value = repr(value)
        args.append(value)
    data: bytes = cloudpickle.dumps(_Parts(type(error), tuple(args), attributes), protocol=5)
    return data


class _Parts:
    """Pickles as a call of :func:`_from_parts`."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> Any:
        return _from_parts, self.parts


def _from_parts(cls: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


def _rebuild(found: dict[str, Any]) -> BaseException:
    error: BaseException | None = None
    if found.get("error") is not None:
        try:
            error = pickle.loads(found["error"])
        except Exception:  # its class is not to be had here
            error = None
    if found.get("group") and isinstance(error, BaseExceptionGroup):
        error = error.derive([_rebuild(part) for part in found["group"]])
    if error is None:
        error = RemoteError(
            f"the task raised {found.get('name', 'an error')}, which cannot be unpickled here; where it was raised:\n"
            + found["text"]
        )
    for name in ("__cause__", "__context__"):
        if name in found:
            setattr(error, name, _rebuild(found[name]))
    error.__suppress_context__ = bool(found.get("suppress"))
    known = getattr(error, "__notes__", ())
    for note in found.get("notes", ()):
        if note not in known:
            error.add_note(note)
    error.__traceback__ = _traceback_from_dict(found.get("traceback"))
    return error


def _traceback_to_dict(tb: TracebackType | None) -> Any:
    if tb is None:
        return None
    from tblib import Traceback

    return Traceback(tb).to_dict()


def _traceback_from_dict(data: Any) -> TracebackType | None:
    if data is None:
        return None
    from tblib import Traceback

    made: TracebackType = Traceback.from_dict(data).as_traceback()
    return made
