"""Values of many types, made anew, and their names; as a program it prints the names, to be compared over processes."""

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import ipaddress
import json
import operator
import pathlib
import re
import sys
import types
import uuid

import numpy as np
import pandas as pd

from taskloom import delayed, tokenize


def function(x):
    return x + 1


def other_function(x):
    return x + 2


def with_default(x, y=[1], *, k={"a": 1}):
    return x


def closure(n):
    def inner(x):
        return function(x) + n

    return inner


def recursive(n):
    def inner(x):
        return inner(x - 1) if x else n

    return inner


lambda_one, lambda_two = [lambda x: x + 1, lambda x: x + 2]


class Plain:
    def __init__(self, value):
        self.value = value

    def method(self):
        return self.value

    @classmethod
    def of_class(cls):
        return cls

    @staticmethod
    def static():
        return 1


class Slots:
    __slots__ = ("a", "b")

    def __init__(self, a):
        self.a = a


class Tells:
    def __init__(self, told, noise=None):
        self.told = told
        self.noise = noise

    def __dask_tokenize__(self):
        return self.told


class Circle:
    def __init__(self, name):
        self.me = [self]
        self.name = name


@dataclasses.dataclass
class Data:
    a: int
    b: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: int


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Flags(enum.Flag):
    A = 1
    B = 2


class Same(enum.IntEnum):
    ONE = 1


Point = collections.namedtuple("Point", ["x", "y"])


def local_class(value):
    class Local:
        kept = value

        def method(self):
            return self.kept

    return Local


def circular_list():
    made = [1]
    made.append(made)
    return made


def values():
    """Name -> value, all different, and made anew by each call."""
    return {
        # builtins
        **{f"atom {v!r}": v for v in (None, True, False, 0, 1, -1, 0.0, -0.0, 1.0, 1j, "", "x", b"", b"x")},
        **{f"special {v!r}": v for v in (float("nan"), float("inf"), ..., NotImplemented, int, str, len, sum)},
        "one as text": "1",
        "a very long integer": 10**5000,
        "bytearray": bytearray(b"x"),
        "memoryview": memoryview(b"x"),
        "[]": [],
        "()": (),
        "{}": {},
        "set()": set(),
        "frozenset()": frozenset(),
        "list": [1, [2, 3]],
        "other list": [[1, 2], 3],
        "tuple": (1, (2, 3)),
        "dict": {"a": 1, "b": [2]},
        "other dict": {"a": [2], "b": 1},
        "set": {"a", "b", "c"},
        "frozenset": frozenset({"a", "b", "c"}),
        "circle": circular_list(),
        "range": range(3),
        "slice": slice(1, None, 2),
        "ordered": collections.OrderedDict(a=1, b=2),
        "defaultdict": collections.defaultdict(list, a=[1]),
        "counter": collections.Counter("aab"),
        "deque": collections.deque([1, 2]),
        "named tuple": Point(1, 2),
        "namespace": types.SimpleNamespace(a=1),
        "generic": list[int],
        "union": int | str,
        "module": np,
        # the standard library
        "datetime": datetime.datetime(2020, 1, 1),
        "aware": datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
        "date": datetime.date(2020, 1, 1),
        "timedelta": datetime.timedelta(1),
        "decimal": decimal.Decimal("1.0"),
        "longer decimal": decimal.Decimal("1.00"),
        "fraction": fractions.Fraction(1, 2),
        "path": pathlib.PurePosixPath("/a"),
        "uuid": uuid.UUID(int=5),
        "pattern": re.compile("a+"),
        "other pattern": re.compile("a+", re.IGNORECASE),
        "address": ipaddress.ip_address("1.2.3.4"),
        "getter": operator.itemgetter(1),
        "other getter": operator.itemgetter(2),
        "exception": ValueError("x"),
        "other exception": KeyError("x"),
        # functions
        "function": function,
        "other function": other_function,
        "defaults": with_default,
        "closure 1": closure(1),
        "closure 2": closure(2),
        "recursive 1": recursive(1),
        "recursive 2": recursive(2),
        "lambda 1": lambda_one,
        "lambda 2": lambda_two,
        "partial 1": functools.partial(function, 1),
        "partial 2": functools.partial(function, 2),
        "partial x": functools.partial(function, x=1),
        "cached": functools.lru_cache(function),
        "other cached": functools.lru_cache(other_function),
        "method": Plain(1).method,
        "method of another": Plain(2).method,
        "method of a class": Plain.of_class,
        "function in a class": Plain.method,
        "static": Plain.static,
        "method of text": "-".join,
        "method of str": str.join,
        "ufunc": np.add,
        "reduce": np.add.reduce,
        "vectorized": np.vectorize(function),
        # objects
        "class": Plain,
        "local class 1": local_class(1),
        "local class 2": local_class(2),
        "instance of a local class": local_class(1)(),
        "plain 1": Plain(1),
        "plain 2": Plain(2),
        "slots": Slots(1),
        "tells 1": Tells(1),
        "tells 2": Tells(2),
        "circle a": Circle("a"),
        "circle b": Circle("b"),
        "dataclass": Data(1),
        "other dataclass": Data(1, [2]),
        "frozen": Frozen(1),
        "red": Colour.RED,
        "blue": Colour.BLUE,
        "flags": Flags.A | Flags.B,
        "one": Same.ONE,
        "delayed": delayed(function, pure=True)(1),
        "delayed of it": delayed(function, pure=True)(delayed(function, pure=True)(1)),
        # NumPy
        "array": np.arange(6),
        "array i4": np.arange(6, dtype="i4"),
        "array f8": np.arange(6.0),
        "array 2 x 3": np.arange(6).reshape(2, 3),
        "array 3 x 2": np.arange(6).reshape(3, 2),
        "transposed": np.arange(6).reshape(2, 3).T,
        "every other": np.arange(12)[::2],
        "array of objects": np.array(["a", 1, None, [1]], dtype=object),
        "array of strings": np.array(["a", "b"]),
        "array of times": np.array(["2020"], "M8[ns]"),
        "records": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        "no rows": np.zeros((0, 3)),
        "no columns": np.zeros((3, 0)),
        "array without axes": np.array(5),
        "masked": np.ma.masked_array([1, 2], [0, 1]),
        "other masked": np.ma.masked_array([1, 2], [1, 0]),
        "scalar f8": np.float64(1),
        "scalar i8": np.int64(1),
        "scalar time": np.datetime64("2020"),
        "dtype": np.dtype("f8"),
        "generator": np.random.default_rng(0),
        "other generator": np.random.default_rng(1),
        # pandas
        "frame": pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
        "other values": pd.DataFrame({"a": [1, 3], "b": ["x", "y"]}),
        "other names": pd.DataFrame({"a": [1, 2], "c": ["x", "y"]}),
        "other index": pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}, index=[1, 2]),
        "equal names": pd.DataFrame([[1, 2]], columns=["a", "a"]),
        "frame of objects": pd.DataFrame({"a": [[1], {2: 3}]}),
        "empty frame": pd.DataFrame(),
        "series": pd.Series([1, 2], name="s"),
        "series without name": pd.Series([1, 2]),
        "index": pd.Index([0, 1]),
        "range index": pd.RangeIndex(2),
        "multi index": pd.MultiIndex.from_tuples([(1, "a"), (2, "b")]),
        "categories": pd.Categorical(["a", "b"]),
        "more categories": pd.Categorical(["a", "b"], categories=["a", "b", "c"]),
        "days": pd.date_range("2020", periods=3),
        "days in UTC": pd.date_range("2020", periods=3, tz="UTC"),
        "timestamp": pd.Timestamp("2020"),
        "period": pd.Period("2020"),
        "NA": pd.NA,
        "NaT": pd.NaT,
        "integers with NA": pd.array([1, None], dtype="Int64"),
        "strings with NA": pd.array(["a", None], dtype="string"),
        "arrow": pd.array([1, 2], dtype="int64[pyarrow]"),
        "interval": pd.Interval(0, 1),
        "offset": pd.offsets.Day(),
        "sparse": pd.arrays.SparseArray([0, 1]),
    }


def names(backwards=False):
    made = list(values().items())
    if backwards:
        made.reverse()
    return {name: tokenize(value) for name, value in made}


if __name__ == "__main__":
    # by its own name, not as __main__: whose functions are told by their code
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import tokens_of_values

    print(json.dumps(tokens_of_values.names(backwards=sys.argv[1:] == ["backwards"])))
