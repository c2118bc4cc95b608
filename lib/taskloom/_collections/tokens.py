"""Names for values: equal names mean equal values, in this process and in any other.

A name is a hash of what a value is made of, not of its pickle: pickles of equal values differ with which of their parts
happen to be the same object, and with the order of sets. Objects that say nothing about themselves are taken apart
as pickle would, by ``__reduce_ex__``.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable
from enum import Enum
from functools import lru_cache, partial
from hashlib import blake2b
from os import urandom
from typing import Any

__all__ = ["name_by", "tokenize"]


def tokenize(*args: Any, **kwargs: Any) -> str:
    """A name for values: 32 hexadecimal digits, the same for equal values in every process.

    It knows the builtin types, NumPy's and pandas' data, dataclasses, enums, paths, dates, partials, classes,
    collections, and functions: those that can be imported by their module and name, others (lambdas, those of
    ``__main__``) by their code and what it uses from outside. An object may say itself what counts, by a method
    ``__dask_tokenize__()``, whose errors are raised. Any other is told by what pickle would save of it; where there is
    no way (locks, open files, bare ``object()``), the name is a random one.

    The order of a dict or set does not count, types do: ``1``, ``1.0`` and ``True`` have three names. Names may change with the
    version of Python or taskloom.

    Args:
        args, kwargs: the values; which stands where counts, and by which name.

    >>> tokenize([1, 2, "x"]) == tokenize([1, 2, "x"])
    True
    >>> tokenize({1: 2, 3: 4}) == tokenize({3: 4, 1: 2})
    True
    """
    tokens = _Tokens()
    token = blake2b(digest_size=16)
    try:
        token.update(tokens.of(args))
        if kwargs:
            token.update(tokens.of(kwargs))
    except RecursionError:
        return urandom(16).hex()
    return token.hexdigest()


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"s%d:%b" % (len(data), data)


def _tagged(tag: str) -> Callable[[Any], bytes]:
    def encode(value: Any) -> bytes:
        return _text(tag + repr(value))

    return encode


# Short values stand for themselves; each encoding says its own length, so that no two sequences look alike.
_SIMPLE: dict[type, Callable[[Any], bytes]] = {
    str: _text,
    bytes: lambda value: b"b%d:%b" % (len(value), value),
    bytearray: lambda value: b"B%d:%b" % (len(value), value),
    bool: lambda value: b"T" if value else b"F",
    type(None): lambda value: b"N",
    type(...): lambda value: b"E",
    type(NotImplemented): lambda value: b"I",
    # hexadecimal: Python refuses to write very long integers in decimal
    int: lambda value: b"i%x;" % value,
    float: lambda value: b"f%b;" % value.hex().encode(),
    complex: lambda value: b"c%b %b;" % (value.real.hex().encode(), value.imag.hex().encode()),
}


def name_by(cls: type, encode: Callable[[Any], bytes]) -> None:
    """Tell the name of values of a class quickly: by bytes that begin as those of no other kind of value do."""
    _SIMPLE[cls] = encode


_MODULES = frozenset({"numpy", "pandas"})


class _Tokens:
    """One call of :func:`tokenize`.

    Attributes:
        done: digests of objects that were met already, with the objects, so that their ids stay theirs.
        open: objects whose parts are being looked at, by id, with their depth: what is met again inside of itself is a
            circle, and stands for how far up it is.
        lowest: the depth of the outermost object that a circle has led to.
    """

    __slots__ = ("done", "lowest", "open")

    def __init__(self) -> None:
        self.done: dict[int, tuple[bytes, Any]] = {}
        self.open: dict[int, int] = {}
        self.lowest = sys.maxsize

    def of(self, value: Any) -> bytes:
        simple = _SIMPLE.get(type(value))
        if simple is not None:
            return simple(value)
        key = id(value)
        known = self.done.get(key)
        if known is not None:
            return known[0]
        depth = self.open.get(key)
        if depth is not None:
            self.lowest = min(self.lowest, depth)
            return b"^%d;" % (len(self.open) - depth)
        depth = self.open[key] = len(self.open)
        outer, self.lowest = self.lowest, sys.maxsize
        digest = blake2b(digest_size=16)
        for part in self.parts(value):
            digest.update(part)
        token = b"#" + digest.digest()
        del self.open[key]
        if self.lowest >= depth:  # nothing in it points further out, so it is the same wherever it stands
            self.done[key] = (token, value)
            self.lowest = outer
        else:
            self.lowest = min(self.lowest, outer)
        return token

    def seq(self, tag: str, values: Iterable[Any]) -> list[bytes]:
        of = self.of
        parts = [of(value) for value in values]
        return [b"(%b%d:" % (_text(tag), len(parts)), *parts]

    def unordered(self, tag: str, values: Iterable[Any]) -> list[bytes]:
        parts = sorted([self.of(value) for value in values])
        return [b"(%b%d:" % (_text(tag), len(parts)), *parts]

    def random(self) -> list[bytes]:
        return [urandom(16)]

    def parts(self, value: Any) -> Iterable[bytes]:
        """What a value is made of, as bytes that no other kind of value begins with."""
        cls = type(value)
        make = _PARTS.get(cls)
        if make is not None:
            return make(self, value)
        if isinstance(value, type):
            return self.class_parts(value)
        try:
            tell = getattr(cls, "__dask_tokenize__", None)
        except Exception:  # a metaclass of its own mind
            tell = None
        if tell is not None:
            return self.seq("told", (cls.__module__, cls.__qualname__, tell(value)))
        if isinstance(value, Enum):
            return self.seq("enum", (cls, value.name))
        root = cls.__module__.partition(".")[0]
        if root in _MODULES:
            found = _numpy_parts(self, value) if root == "numpy" else _pandas_parts(self, value)
            if found is not None:
                return found
        return self.reduced(value)

    def reduced(self, value: Any) -> Iterable[bytes]:
        """Parts of any other object: what pickle would save."""
        cls = type(value)
        if cls is object:  # a mark that equals nothing but itself
            return self.random()
        import copyreg

        # not for exceptions: libraries that pickle tracebacks register ways there that tell two equal ones apart
        reduce = None if isinstance(value, BaseException) else copyreg.dispatch_table.get(cls)
        try:
            told = reduce(value) if reduce is not None else value.__reduce_ex__(4)
        except RecursionError:
            raise
        except Exception:
            return self.random()
        if isinstance(told, str):
            # pickle takes it for the name of a global; it has to be one, or else two different things have one name
            found = getattr(sys.modules.get(getattr(value, "__module__", None) or cls.__module__), told, None)
            return self.seq("global", (cls.__module__, told)) if found is value else self.random()
        if not isinstance(told, tuple) or not 2 <= len(told) <= 6:
            return self.random()
        function, args, state, items, pairs = (*told, None, None, None)[:5]
        if function is getattr(copyreg, "__newobj__", None) or function is getattr(copyreg, "__newobj_ex__", None):
            function = "new"
        if state is not None and not isinstance(state, (dict, tuple, list)):
            state = ("state", state)
        return self.seq("object", (cls, function, args, state, list(items or ()), list(pairs or ())))

    def class_parts(self, cls: type) -> Iterable[bytes]:
        if _is_importable(cls):
            return self.seq("class", (cls.__module__, cls.__qualname__))
        ours = {
            name: item
            for name, item in vars(cls).items()
            if name not in _NOT_OF_CLASS
            and not isinstance(item, (types.GetSetDescriptorType, types.MemberDescriptorType))
        }
        return self.seq("class by value", (cls.__qualname__, cls.__bases__, ours))

    def function_parts(self, function: types.FunctionType) -> Iterable[bytes]:
        if _is_importable(function):
            return self.seq("function", (function.__module__, function.__qualname__))
        code = function.__code__
        cells = []
        for cell in function.__closure__ or ():
            try:
                cells.append((cell.cell_contents,))
            except ValueError:  # not filled yet
                cells.append(())  # type: ignore[arg-type]
        names = _globals_of(code)
        used = {name: function.__globals__[name] for name in names if name in function.__globals__}
        return self.seq(
            "function by value",
            (code, function.__defaults__, function.__kwdefaults__, cells, used, function.__dict__),
        )

    def code_parts(self, code: types.CodeType) -> Iterable[bytes]:
        # not where it stands: file, line and name change nothing
        return self.seq(
            "code",
            (
                code.co_code,
                code.co_consts,
                code.co_names,
                code.co_varnames,
                code.co_freevars,
                code.co_cellvars,
                (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags),
                getattr(code, "co_exceptiontable", b""),
            ),
        )

    def builtin_parts(self, function: Any) -> Iterable[bytes]:
        owner = getattr(function, "__self__", None)
        if owner is None or isinstance(owner, types.ModuleType):
            return self.seq("function", (function.__module__, function.__qualname__))
        return self.seq("method", (owner, function.__name__))


_NOT_OF_CLASS = frozenset(
    {"__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__firstlineno__", "__static_attributes__"}
    | {"_abc_impl", "__abstractmethods__", "__annotations__", "__annotate__", "__annotate_func__"}
)


def _is_importable(thing: Any) -> bool:
    """Whether another process finds the same function or class by its module and name."""
    name = getattr(thing, "__module__", None)
    if name is None or name == "__main__" or name == "__mp_main__":
        return False
    place: Any = sys.modules.get(name)
    for part in thing.__qualname__.split("."):
        place = getattr(place, part, None)
    return place is thing


def _globals_of(code: types.CodeType) -> list[str]:
    """Names of global variables that a code object reads, itself or in functions that it defines."""
    from opcode import EXTENDED_ARG, opmap

    load = opmap["LOAD_GLOBAL"]
    names: dict[str, None] = {}
    stack = [code]
    while stack:
        current = stack.pop()
        data = current.co_code
        extended = 0
        for place in range(0, len(data), 2):
            argument = data[place + 1] | extended
            if data[place] == EXTENDED_ARG:
                extended = argument << 8
                continue
            extended = 0
            if data[place] == load:
                names[current.co_names[argument >> 1]] = None  # the lowest bit says how it is called
        stack.extend(const for const in current.co_consts if isinstance(const, types.CodeType))
    return list(names)


def _slices(tokens: _Tokens, value: Any) -> Iterable[bytes]:
    return tokens.seq(type(value).__name__, (value.start, value.stop, value.step))


def _partials(tokens: _Tokens, value: Any) -> Iterable[bytes]:
    return tokens.seq("partial", (value.func, value.args, value.keywords))


_PARTS: dict[type, Callable[[_Tokens, Any], Iterable[bytes]]] = {
    list: lambda tokens, value: tokens.seq("list", value),
    tuple: lambda tokens, value: tokens.seq("tuple", value),
    set: lambda tokens, value: tokens.unordered("set", value),
    frozenset: lambda tokens, value: tokens.unordered("frozenset", value),
    dict: lambda tokens, value: tokens.unordered("dict", value.items()),
    types.MappingProxyType: lambda tokens, value: tokens.unordered("proxy", value.items()),
    slice: _slices,
    range: _slices,
    memoryview: lambda tokens, value: tokens.seq("view", (value.format, value.shape, value.tobytes())),
    partial: _partials,
    type(lru_cache(len)): lambda tokens, value: tokens.seq("cached", (value.__wrapped__,)),
    types.FunctionType: _Tokens.function_parts,
    types.CodeType: _Tokens.code_parts,
    types.BuiltinFunctionType: _Tokens.builtin_parts,
    types.MethodType: lambda tokens, value: tokens.seq("method", (value.__self__, value.__func__)),
    types.MethodWrapperType: lambda tokens, value: tokens.seq("method", (value.__self__, value.__name__)),
    types.MethodDescriptorType: lambda tokens, value: tokens.seq("of class", (value.__objclass__, value.__name__)),
    types.WrapperDescriptorType: lambda tokens, value: tokens.seq("of class", (value.__objclass__, value.__name__)),
    types.ModuleType: lambda tokens, value: tokens.seq("module", (value.__name__,)),
    staticmethod: lambda tokens, value: tokens.seq("staticmethod", (value.__func__,)),
    classmethod: lambda tokens, value: tokens.seq("classmethod", (value.__func__,)),
    property: lambda tokens, value: tokens.seq("property", (value.fget, value.fset, value.fdel)),
    object: lambda tokens, value: tokens.random(),
}


def _numpy_parts(tokens: _Tokens, value: Any) -> Iterable[bytes] | None:
    import numpy as np

    if isinstance(value, np.ndarray):
        cls = type(value)
        if cls is np.ma.MaskedArray:
            masked: Any = value
            return tokens.seq("masked", (masked.data, np.ma.getmaskarray(masked), masked.fill_value, masked.hardmask))
        if cls is not np.ndarray and cls is not np.memmap and not isinstance(value, np.recarray):
            return None  # others that hold more
        head = tokens.seq("array", (_dtype(value.dtype), value.shape))
        if value.dtype.hasobject:
            return [*head, *tokens.seq("items", value.ravel().tolist())]
        if not value.size or not value.dtype.itemsize:
            return head
        # as plain bytes: dates have no buffer of their own
        data: Any = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
        return [*head, data]
    if isinstance(value, np.generic):
        if value.dtype.hasobject:
            return None
        return tokens.seq("scalar", (_dtype(value.dtype), value.tobytes()))
    if isinstance(value, np.dtype):
        return tokens.seq("dtype", (_dtype(value),))
    if isinstance(value, np.ufunc):
        known = getattr(np, value.__name__, None) is value
        return tokens.seq("ufunc", (value.__name__,)) if known else None
    return None


def _dtype(dtype: Any) -> Any:
    return dtype.str if dtype.names is None else (repr(dtype), dtype.itemsize)


def _pandas_parts(tokens: _Tokens, value: Any) -> Iterable[bytes] | None:
    import pandas as pd

    if isinstance(value, pd.DataFrame):
        columns = [value.iloc[:, place].array for place in range(value.shape[1])]
        return tokens.seq("frame", (type(value), value.columns, value.index, columns, value.attrs))
    if isinstance(value, pd.Series):
        return tokens.seq("series", (type(value), value.name, value.index, value.array, value.attrs))
    if isinstance(value, pd.RangeIndex):
        return tokens.seq("range index", (value.start, value.stop, value.step, value.name))
    if isinstance(value, pd.MultiIndex):
        return tokens.seq("index", (type(value), list(value.names), list(value.levels), list(value.codes)))
    if isinstance(value, pd.Index):
        return tokens.seq("index", (type(value), value.name, value.array))
    if isinstance(value, pd.api.extensions.ExtensionArray):
        if isinstance(value, pd.Categorical):
            return tokens.seq("categories", (value.categories, value.codes, value.ordered))
        # Whatever it is inside (Arrow chunks, masks, blocks), equal items make equal arrays.
        plain = value.to_numpy()
        return tokens.seq("extension array", (str(value.dtype), plain))
    if isinstance(value, pd.api.extensions.ExtensionDtype):
        return tokens.seq("extension dtype", (type(value), str(value)))
    if value is pd.NA or value is pd.NaT:
        return tokens.seq("missing", (repr(value),))
    return None
