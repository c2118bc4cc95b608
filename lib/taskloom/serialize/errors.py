"""Errors that travel: the exception itself, its notes, its causes, and its traceback.

A traceback is sent as file names, functions and places in lines, and is a real one again on the other side, so that pdb,
logging and ``traceback`` show the lines of the user's source, with the marks below the part of a line that failed. (tblib
does the same but for the marks: it leaves those of its own code, which point anywhere.)

An exception whose ``__init__`` takes other arguments than ``args`` holds cannot be unpickled the usual way; that is
found out on the sending side, and it is sent as class, ``args`` and attributes instead. One whose class can't be found by the
other side arrives as :class:`taskloom.errors.RemoteError`, with the text that was made where it was raised.

An error, its causes and contexts and the members of its groups go as one flat list whose items refer to each other by
place: they may form loops, share parts, or be a chain of thousands. Everything here calls code of the user's (``__str__``,
``__reduce__``, ``__setstate__``, properties), which may raise anything, so each piece is fetched by itself: what can be
had arrives.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterator
from itertools import islice
from types import FunctionType, MemberDescriptorType, TracebackType
from typing import Any, NamedTuple, TypeVar

from taskloom.errors import RemoteError
from taskloom.serialize.objects import dumps

__all__ = ["dump_error", "load_error"]

T = TypeVar("T")

_MOST_ERRORS = 256  # links of a chain and members of groups, together; the ones nearest to the error go
_MOST_FRAMES = 1000  # of one traceback: half of them from its begin, half from its end
_MOST_TEXT = 32 * 1024  # characters of the text that stands for an error whose class is missing

# Where a class forbids to look at its attributes, or to set them, these do it all the same: the interpreter does too.
_get = BaseException.__getattribute__
_set = BaseException.__setattr__


def dump_error(error: BaseException) -> bytes:
    """An exception as bytes.

    Args:
        error: any exception. It is not changed. Where it holds large arrays, they are copied once.

    Returns:
        What :func:`load_error` takes. This never raises, whatever the exception's own code does: even a
        KeyboardInterrupt that comes in the midst of it is swallowed, so that the error gets home.
    """
    try:
        nodes, buffers = _describe(error)
        # No PickleBuffer may live longer than this call: one of a memoryview that the garbage collector finds in a cycle
        # crashes CPython 3.11 and 3.12.
        return pickle.dumps((nodes, [pickle.PickleBuffer(buffer) for buffer in buffers]), protocol=5)
    except BaseException as problem:
        text = f"{_name(type(error))} (it could not be described: {_name(type(problem))})"
        return pickle.dumps(([{"text": text}], ()), protocol=5)


def load_error(data: bytes) -> BaseException:
    """The exception that :func:`dump_error` made this of.

    Args:
        data: the bytes. They are unpickled, so they must come from one who may run code here.

    Returns:
        The exception, with its traceback, notes, cause and context; or a :class:`RemoteError` that tells of it. This
        never raises, but for the KeyboardInterrupt of somebody who presses Ctrl-C just now.
    """
    try:
        return _rebuild(*pickle.loads(data))
    except KeyboardInterrupt:
        raise
    except BaseException as problem:
        return RemoteError(f"an error arrived that cannot be read here: {_name(type(problem))}: {_text(problem)}")


# --- the sender's side


def _describe(error: BaseException) -> tuple[list[dict[str, Any]], list[memoryview]]:
    found = [error]
    places = {id(error): 0}

    def place(other: BaseException) -> int | None:
        n = places.get(id(other))
        if n is None and len(found) < _MOST_ERRORS:
            n = places[id(other)] = len(found)
            found.append(other)
        return n

    nodes = []
    all_buffers: list[memoryview] = []
    for one in found:  # it grows: what is near comes first
        node: dict[str, Any] = {}
        pickled = _pickled(one)
        if pickled is not None:
            node["error"], buffers = pickled
            node["buffers"] = len(all_buffers), len(buffers)
            all_buffers += buffers
        if pickled is None or not _is_plain(one):
            node["name"] = _name(type(one))
            node["text"] = _printed(one)
        node["notes"] = _notes(one)
        tb = _get(one, "__traceback__")
        if tb is not None:
            node["traceback"] = _frames(tb)
        for name in ("cause", "context"):
            other = _get(one, f"__{name}__")
            if other is not None:
                node[name] = place(other)
        node["suppress"] = _get(one, "__suppress_context__")
        if _is_group(one):
            members = _get(one, "exceptions")
            node["message"] = _get(one, "message")
            node["group"] = [n for n in map(place, members) if n is not None]
            node["members"] = len(members)
        nodes.append(node)
    return nodes, all_buffers


def _is_group(error: BaseException) -> bool:
    return issubclass(type(error), BaseExceptionGroup)  # isinstance would ask the error


def _is_plain(error: BaseException) -> bool:
    """Whether it is one of Python's own, with nothing in it that the other side could lack."""
    return (
        type(error).__module__ == "builtins"
        and all(type(value) in (str, int, float, bytes, bool, type(None)) for value in error.args)
        and not error.__dict__.keys() - {"__notes__"}
    )


def _pickled(error: BaseException) -> tuple[bytes, list[memoryview]] | None:
    """The exception alone, proved to come back as what it is; None if its class can't be sent at all."""
    if not _is_group(error):  # its members go by themselves
        try:
            data, buffers = dumps(_Usual(error))
            back = pickle.loads(data, buffers=buffers)
            if type(back) is type(error) and (
                _is_plain(error)
                # an __init__ that makes a text of its arguments makes another one of that text
                or (str(back) == str(error) and _slots(back) == _slots(error))
            ):
                return data, buffers
        except BaseException:
            pass
    try:
        data, buffers = dumps(_Parts(type(error), *_contents(error)))
        back = pickle.loads(data, buffers=buffers)
        if type(back) is type(error) or _is_group(error):
            return data, buffers
    except BaseException:
        pass
    return None


class _Usual:
    """Pickles as an exception does by itself.

    Not as ``copyreg`` says: who has dask's or tblib's support for tracebacks loaded has exceptions there that come back
    without what their C fields held, and with a traceback and causes of their own.
    """

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return self.error.__reduce_ex__(5)


class _Parts:
    """An exception's class, args and attributes; pickles as a call of :func:`_from_parts`."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> Any:
        return _from_parts, self.parts


def _contents(error: BaseException) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args: tuple[Any, ...] = ()
    if not _is_group(error):
        args = tuple([_sendable(value, _shown) for value in _get(error, "args")])
    attributes = {**_get(error, "__dict__"), **_slots(error)}
    attributes.pop("__notes__", None)  # they go by themselves
    return args, {name: _sendable(value, _placeholder) for name, value in attributes.items()}


def _slots(error: BaseException) -> dict[str, Any]:
    """What stands in ``__slots__`` and in the C fields of Python's own classes, such as ``OSError.filename``."""
    found: dict[str, Any] = {}
    for cls in type(error).__mro__:
        if cls is BaseException or cls is BaseExceptionGroup:
            break
        for name, descriptor in vars(cls).items():
            # AttributeError.obj may be anything, and pickle leaves it out too
            if type(descriptor) is MemberDescriptorType and name != "obj" and name not in found:
                try:
                    value = descriptor.__get__(error)
                except Exception:  # not set
                    continue
                if value is not None:
                    found[name] = value
    return found


def _sendable(value: Any, instead: Callable[[Any], str]) -> Any:
    try:
        data, buffers = dumps(value)
        pickle.loads(data, buffers=buffers)
        return value
    except BaseException:
        return instead(value)


def _shown(value: Any) -> str:
    return _try(lambda: str.__str__(repr(value)), _placeholder(value))


def _placeholder(value: Any) -> str:
    return f"<{_name(type(value))}, which could not be sent>"


def _notes(error: BaseException) -> list[str]:
    try:
        return [str.__str__(note) for note in error.__notes__ if isinstance(note, str)]
    except BaseException:  # it has none, or it has made a riddle of them
        return []


class _Frame(NamedTuple):
    """An item of a traceback.

    Attributes:
        filename, function, qualname: of its code.
        module, path: ``__name__`` and ``__file__`` of its globals.
        line: where it was.
        span: last line, first column, last column of the expression; None where that is not known.
    """

    filename: str
    function: str
    qualname: str
    module: str | None
    path: str | None
    line: int
    span: tuple[int, int, int] | None


def _frames(tb: TracebackType | None) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    while tb is not None:
        code, names = tb.tb_frame.f_code, tb.tb_frame.f_globals
        module, path = (
            value if type(value) is str else None for value in (names.get("__name__"), names.get("__file__"))
        )
        span = None
        if tb.tb_lasti >= 0:
            line, *rest = next(islice(code.co_positions(), tb.tb_lasti // 2, None), (None,))
            if line == tb.tb_lineno and rest and None not in rest:
                span = tuple(rest)
        found.append((code.co_filename, code.co_name, code.co_qualname, module, path, tb.tb_lineno, span))
        tb = tb.tb_next
    if len(found) > _MOST_FRAMES:
        del found[_MOST_FRAMES // 2 : -_MOST_FRAMES // 2]
    return found


def _printed(error: BaseException) -> str:
    """The error and its traceback as Python prints them, without its causes."""
    text = _try(
        lambda: "".join(traceback.format_exception(type(error), error, _get(error, "__traceback__"), chain=False)), ""
    )
    if len(text) > _MOST_TEXT:
        half = _MOST_TEXT // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half:,} characters ...]\n{text[-half:]}"
    return text or f"{_name(type(error))} (its text could not be had)\n"


# --- the receiver's side


def _from_parts(cls: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> Any:
    if issubclass(cls, BaseExceptionGroup):
        return cls, attributes  # until its members are there
    error: Any = None
    try:
        error = cls.__new__(cls, *args)
    except Exception:
        pass
    if type(error) is not cls:
        native: Any = next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE)
        error = native.__new__(cls)
    if isinstance(error, OSError) and 2 <= len(args) <= 5:
        try:
            OSError.__init__(error, *args)  # the number, the text and the file name are C fields that nothing else sets
        except Exception:
            pass
    _set(error, "args", args)
    _give(error, attributes)
    return error


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class that a class statement made


def _give(error: BaseException, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        try:
            _set(error, name, value)
        except Exception:  # a property, or a field that can't be set
            _get(error, "__dict__")[name] = value


def _rebuild(nodes: list[dict[str, Any]], buffers: list[Any]) -> BaseException:
    made: list[BaseException | None] = [None] * len(nodes)
    for n, node in enumerate(nodes):
        error = _made(n, nodes, buffers, made)
        for name in ("cause", "context"):
            if node.get(name) is not None:
                _set(error, f"__{name}__", _made(node[name], nodes, buffers, made))
        _set(error, "__suppress_context__", bool(node.get("suppress")))
        known = _notes(error)
        for note in node.get("notes", ()):
            if note not in known:
                _note(error, note)
        BaseException.with_traceback(error, _traceback(node.get("traceback")))
    return _made(0, nodes, buffers, made)


def _made(n: int, nodes: list[dict[str, Any]], buffers: list[Any], made: list[BaseException | None]) -> BaseException:
    error = made[n]
    if error is None:
        node = nodes[n]
        first, count = node.get("buffers", (0, 0))
        own = buffers[first : first + count]
        if node.get("group"):
            # it can't be made before its members, which never hold it
            error = _group(node, own, [_made(k, nodes, buffers, made) for k in node["group"]])
        else:
            error = _single(node, own)
        made[n] = error
    return error


def _single(node: dict[str, Any], buffers: list[Any]) -> BaseException:
    if "error" in node:
        try:
            error = pickle.loads(node["error"], buffers=buffers)
            if isinstance(error, BaseException):
                return error
        except KeyboardInterrupt:
            raise
        except BaseException:  # its class is not to be had here
            pass
    return RemoteError(
        f"the task raised {node.get('name', 'an error')}, which cannot be unpickled here; where it was raised:\n"
        + str(node.get("text", ""))
    )


def _group(node: dict[str, Any], buffers: list[Any], members: list[BaseException]) -> BaseException:
    error: BaseException
    try:
        cls, attributes = pickle.loads(node["error"], buffers=buffers)
        error = BaseExceptionGroup.__new__(cls, node["message"], members)
        _give(error, attributes)
    except KeyboardInterrupt:
        raise
    except BaseException:  # its class is not to be had here; its members may be
        error = BaseExceptionGroup(node["message"], members)
        _note(error, f"it was a {node.get('name', 'group of another class')}, which cannot be unpickled here")
    if len(members) < node["members"]:
        _note(error, f"{node['members'] - len(members)} more errors of this group were not sent")
    return error


def _note(error: BaseException, note: str) -> None:
    try:
        BaseException.add_note(error, note)
    except Exception:  # a frozen class, or notes that are no list
        _get(error, "__dict__")["__notes__"] = [*_notes(error), note]


def _stub() -> Iterator[None]:
    yield


def _traceback(frames: list[tuple[Any, ...]] | None) -> TracebackType | None:
    """A real traceback, whose frames have the names and places of the original.

    Frames of generators that never began: no code runs to make them, and no ``f_back`` leads from them into the program
    that loaded the error, which a kept error would keep alive.
    """
    chain: TracebackType | None = None
    for values in reversed(frames or ()):
        frame = _Frame(*values)
        code = _stub.__code__.replace(
            co_filename=frame.filename,
            co_name=frame.function,
            co_qualname=frame.qualname,
            co_firstlineno=frame.line,
            co_linetable=_line_table(frame, len(_stub.__code__.co_code) // 2),
        )
        names = {name: value for name, value in (("__name__", frame.module), ("__file__", frame.path)) if value}
        chain = TracebackType(chain, FunctionType(code, names)().gi_frame, 0, frame.line)
    return chain


def _line_table(frame: _Frame, units: int) -> bytes:
    """The location table of a code object all of which is at one place.

    The format is that of CPython's ``Objects/locations.md`` (3.11 and later): entries of up to 8 code units, each in the
    long form (14), or in the one without columns (13).
    """
    if frame.span is None:
        kind, place = 13, b"\0"
    else:
        last, begin, end = frame.span
        kind, place = 14, b"\0" + _varint(last - frame.line) + _varint(begin + 1) + _varint(end + 1)
    table = b""
    while units > 0:
        table += bytes([0x80 | kind << 3 | min(units, 8) - 1]) + place
        units -= 8
    return table


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 63:
        found.append(number & 63 | 64)
        number >>= 6
    found.append(number)
    return bytes(found)


# --- both


def _try(get: Callable[[], T], instead: T) -> T:
    try:
        return get()
    except BaseException:
        return instead


def _name(cls: type) -> str:
    return _try(lambda: f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins."), "an error")


def _text(error: BaseException) -> str:
    return _try(lambda: str.__str__(str(error)), "its text could not be had")
