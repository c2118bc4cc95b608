from __future__ import annotations

import collections
import copy
import functools
import importlib.util
import io
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import cloudpickle
import dask.array
import dask.dataframe
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskloom import delayed, tokenize

HERE = Path(__file__).parent


def _load():
    spec = importlib.util.spec_from_file_location("tokens_of_values", HERE / "tokens_of_values.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["tokens_of_values"] = module
    spec.loader.exec_module(module)
    return module


made = _load()


def test_equal_values_have_equal_names_and_different_ones_different():
    first, second = made.names(), made.names(backwards=True)
    assert [name for name in first if first[name] != second[name]] == []
    by_token = collections.defaultdict(list)
    for name, token in first.items():
        by_token[token].append(name)
    assert [names for names in by_token.values() if len(names) > 1] == []
    assert all(len(token) == 32 and int(token, 16) >= 0 for token in first.values())


def test_other_processes_give_the_same_names():
    here = made.names()
    for seed, how in (("1", []), ("2", ["backwards"])):
        done = subprocess.run(
            [sys.executable, str(HERE / "tokens_of_values.py"), *how],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        there = json.loads(done.stdout)
        assert [name for name in here if here[name] != there[name]] == []


def test_copies_have_the_names_of_what_they_are_copies_of():
    differ = []
    for name, value in made.values().items():
        for copied in (lambda x: cloudpickle.loads(cloudpickle.dumps(x)), copy.deepcopy):
            try:
                other = copied(value)
            except (TypeError, pickle.PicklingError):  # a module, and what else has no copies
                continue
            if type(other) is type(value) and tokenize(other) != tokenize(value):
                differ.append(name)
    assert differ == []


def test_what_counts():
    assert tokenize(1, 2) != tokenize((1, 2)) != tokenize([1, 2])
    assert tokenize(1, a=2) != tokenize(1, {"a": 2})
    assert tokenize(a=1, b=2) == tokenize(b=2, a=1)
    assert tokenize("ab", "c") != tokenize("a", "bc")
    assert tokenize(np.arange(6).reshape(2, 3)) == tokenize(np.asfortranarray(np.arange(6).reshape(2, 3)))
    assert tokenize(np.arange(12)[::2]) == tokenize(np.arange(0, 12, 2))
    assert tokenize(made.Tells(1, noise=1)) == tokenize(made.Tells(1, noise=2))


def test_shared_parts_count_as_equal_parts():
    inner = [1, 2]
    assert tokenize([inner, inner]) == tokenize([[1, 2], [1, 2]])
    text = "x" * 100
    assert tokenize({"a": text, "b": text}) == tokenize({"a": "x" * 100, "b": "".join(["x"] * 100)})


def test_lambdas_and_local_functions_are_told_by_what_they_do():
    def make(n):
        return lambda x: x + n

    assert tokenize(make(1)) == tokenize(make(1)) != tokenize(make(2))
    assert tokenize(functools.partial(make(1), 5)) == tokenize(functools.partial(make(1), 5))
    space: dict = {"__name__": "__main__", "factor": 2}
    exec("def scale(x): return factor * x", space)
    before = tokenize(space["scale"])
    space["other"] = 5
    assert tokenize(space["scale"]) == before
    space["factor"] = 3
    assert tokenize(space["scale"]) != before


def test_ufuncs_of_ones_own_are_not_taken_for_each_other():
    one, two = np.frompyfunc(lambda x: 1, 1, 1), np.frompyfunc(lambda x: 2, 1, 1)
    assert tokenize(one) != tokenize(two)


def test_exceptions_keep_their_name_after_they_were_raised():
    error = ValueError("x")
    name = tokenize(error)
    try:
        raise error
    except ValueError:
        pass
    assert tokenize(error) == tokenize(error) == name


def test_collections():
    array, other = dask.array.ones(5, chunks=2), dask.array.ones(6, chunks=2)
    assert tokenize(array) == tokenize(dask.array.ones(5, chunks=2)) != tokenize(other)
    frame = dask.dataframe.from_pandas(pd.DataFrame({"a": [1, 2]}), npartitions=1)
    assert tokenize(frame) == tokenize(frame) != tokenize(frame + 1)
    lazy = delayed(len)("x")
    assert tokenize(lazy) == tokenize(lazy) != tokenize(delayed(len)("x"))


class RaisesOnReduce:
    def __reduce_ex__(self, protocol):
        raise RuntimeError


class NoState:
    def __getstate__(self):
        raise KeyError


class Odd:
    def __init__(self, reduced):
        self.reduced = reduced

    def __reduce_ex__(self, protocol):
        return self.reduced


class BadRepr(Exception):
    def __repr__(self):
        raise ValueError


class Anything:
    def __getattr__(self, name):
        return lambda *args, **kwargs: 5


class Moody(type):
    def __getattribute__(cls, name):
        if name.startswith("__dask"):
            raise RuntimeError
        return super().__getattribute__(name)


class WithMoody(metaclass=Moody):
    pass


class Unhashable:
    __hash__ = None

    def __eq__(self, other):
        raise ValueError


def _deep(depth):
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def _filled_later():
    def outer():
        return later

    if outer is None:
        later = 1
    return outer


@pytest.mark.parametrize(
    "make",
    [
        threading.Lock,
        object,
        lambda: (x for x in [1]),
        lambda: iter([1]),
        lambda: zip([1], [2], strict=False),
        lambda: sys._getframe(),
        lambda: io.StringIO("x"),
        threading.current_thread,
        RaisesOnReduce,
        NoState,
        lambda: Odd(5),
        lambda: Odd(()),
        lambda: Odd("no such name"),
        lambda: Odd((1,) * 9),
        BadRepr,
        Anything,
        WithMoody,
        Unhashable,
        lambda: [Unhashable(), {1: Unhashable()}],
        lambda: np.array([object()], dtype=object),
        lambda: np.frompyfunc(len, 1, 1),
        lambda: "\udcff",
        lambda: _deep(100_000),
        _filled_later,
        lambda: sys.modules[__name__],
        lambda: copy.copy.__code__,
        lambda: type("Made", (), {"x": property(len)}),
        lambda: memoryview(np.arange(6).reshape(2, 3)),
    ],
)
def test_nothing_crashes(make):
    value = make()
    assert len(tokenize(value)) == len(tokenize([value], key=value)) == 32


def test_an_error_of_ones_own_method_is_raised():
    class Wrong:
        def __dask_tokenize__(self):
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        tokenize(Wrong())


data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner)
    ),
    max_leaves=8,
)


def _typed(value):
    """What tells values apart here: also their types, the sign of zero, but not the order of a dict."""
    if isinstance(value, dict):
        return dict, sorted([repr((_typed(k), _typed(v))) for k, v in value.items()])
    if isinstance(value, (list, tuple)):
        return type(value), [_typed(item) for item in value]
    return type(value), repr(value)


@given(data, data)
def test_names_are_equal_just_where_values_are(a, b):
    assert (tokenize(a) == tokenize(b)) == (_typed(a) == _typed(b))
    assert tokenize(a) == tokenize(copy.deepcopy(a))
