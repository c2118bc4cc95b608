from __future__ import annotations

import operator
import types
from collections import ChainMap, OrderedDict, UserDict, defaultdict, namedtuple
from enum import StrEnum
from functools import partial

import dask
import dask.array
import numpy as np
import pandas as pd
import pytest
from dask._task_spec import Alias, DataNode, Dict, List, Set, Task, TaskRef, Tuple
from dask.highlevelgraph import HighLevelGraph
from hypothesis import given
from hypothesis import strategies as st

import taskloom
from taskloom import get_sync
from taskloom.errors import InvalidGraphError
from taskloom.graph import Literal, as_mapping, flatten_keys, is_task
from taskloom.graph.convention import short
from taskloom.graph.optimize import cull, fuse, inline

Point = namedtuple("Point", ["x", "y"])


class Name(StrEnum):
    A = "a"


def inc(x):
    return x + 1


def args_of(*args):
    return args


class Opaque:
    """An object whose lookup in a dict goes wrong in some way."""

    def __init__(self, hashed, equal=None):
        self.hashed = hashed
        self.equal = equal

    def __hash__(self):
        if isinstance(self.hashed, Exception):
            raise self.hashed
        return self.hashed

    def __eq__(self, other):
        if self.equal is not None:
            raise self.equal
        return self is other


OPTIMIZERS = [lambda graph, keys: graph, cull, fuse, inline, partial(inline, functions=[inc, args_of])]
OPTIMIZER_NAMES = ["as it is", "cull", "fuse", "inline", "inline functions"]


@pytest.fixture(params=OPTIMIZERS, ids=OPTIMIZER_NAMES)
def value_of(request):
    """Compute a key, of the graph as it is and after each optimization."""

    def compute(graph, key):
        return get_sync(request.param(graph, key), key)

    return compute


# -- keys


@pytest.mark.parametrize(
    "key",
    [
        "x",
        "",
        b"x",
        0,
        1,
        -7,
        10**30,
        1.5,
        float("inf"),
        ("x", 0, 1),
        ("x", ("y", 1), 2.5),
        (),
        (1,),
        Point(1, 2),
        frozenset({1, 2}),
        Name.A,
        np.int64(5),
        np.str_("n"),
        pd.Timestamp("2020-01-01"),
        3 + 4j,
        "\udcff",
    ],
    ids=repr,
)
def test_keys_of_many_kinds(value_of, key):
    graph = {key: 10, "y": (inc, key), "z": (sum, [key, "y", [key][0]]), "alias": key}
    assert value_of(graph, "y") == 11
    assert value_of(graph, ["z", "alias", key]) == (31, 10, 10)
    chain = {key: (abs, -1), "b": (inc, key), "c": (inc, "b")}
    assert value_of(chain, "c") == 3


def test_equal_keys_are_one_key(value_of):
    graph = {1: "one", ("p", 2): "two", "a": "three"}
    graph["y"] = (args_of, 1.0, np.int64(1), Point("p", 2), ("p", 2.0), Name.A)
    assert value_of(graph, "y") == ("one", "one", "two", "two", "three")


def test_true_false_and_none_as_arguments_are_never_keys(value_of):
    graph = {0: "zero", 1: "one", None: "none", "y": (args_of, True, False, None, 1, 0, [True, 1])}
    assert value_of(graph, "y") == (True, False, None, "one", "zero", [True, "one"])
    # whatever was numbered before
    for keys in ([0, 1, "y"], ["y", 1], [1, "y", 0], [None, "y"]):
        assert value_of(graph, keys)[keys.index("y")] == (True, False, None, "one", "zero", [True, "one"])
    graph = {1: "one", "x": (args_of, 1), "z": (args_of, "x", True, 1.0)}
    assert value_of(graph, "z") == (("one",), True, "one")


def test_but_they_can_be_asked_for():
    assert get_sync({None: 5}, None) == 5
    assert get_sync({1: 5}, [True, 1.0]) == (5, 5)


def test_a_key_that_looks_like_a_task_can_be_asked_for_and_is_a_task_as_an_argument(value_of):
    key = (inc, 1)
    for keys in (["y", key], [key, "y"]):
        assert dict(zip(keys, value_of({key: "kept", "y": (args_of, key, "x")}, keys), strict=True)) == {
            "y": (2, "x"),
            key: "kept",
        }


def test_functions_and_classes_as_arguments_are_never_keys(value_of):
    graph = {inc: 1, int: 2, "y": (args_of, inc, int, len)}
    assert value_of(graph, "y") == (inc, int, len)
    assert value_of(graph, inc) == 1


# -- what a value of the graph is


def test_literals_of_every_kind(value_of):
    frame = pd.DataFrame({"x": [1]})
    opaque = [
        Opaque(TypeError("no hash")),
        Opaque(ValueError("no hash either")),
        Opaque(hash("x"), ValueError("equal to what?")),
    ]
    literals = [5, "text", None, 1.5, {"x": "x"}, {"x"}, frame, np.arange(3), inc, int, Opaque(0), Ellipsis]
    for literal in [*literals, slice("x"), Point("x", 1), ("x", 1), ("x", ["x"]), (), *opaque, bytearray(b"x")]:
        graph = {"x": 1, "lit": literal, "y": (args_of, literal, "x"), "z": (args_of, [literal], 1)}
        assert value_of(graph, "lit") is literal
        assert value_of(graph, "y")[0] is literal
        assert value_of(graph, "y")[1] == 1
        assert value_of(graph, "z")[0][0] is literal


def test_tasks_whose_function_is_any_callable(value_of):
    lazy = taskloom.delayed(inc)

    class Adder:
        def __init__(self, n):
            self.n = n

        def __call__(self, x):
            return self.n + x

        def method(self, x):
            return self.n - x

    cases = {
        dict: ([["a", 1]], {"a": 1}),
        str: (5, "5"),
        partial(pow, 2): (5, 32),
        Adder(10): (5, 15),
        Adder(10).method: (5, 5),
        "-".join: (["a", "b"], "a-b"),
        operator.itemgetter(1): ([5, 6], 6),
        np.negative: (5, -5),
        Point._make: ([1, 2], Point(1, 2)),
    }
    for function, (argument, expected) in cases.items():
        assert value_of({"x": 0, "y": (function, argument), "z": (args_of, "y", "x")}, "z")[0] == expected
    # a Delayed called is a Delayed, as everywhere
    made = value_of({"y": (lazy, 1)}, "y")
    assert made.compute() == 2


def test_subclasses_of_containers_are_data(value_of):
    class Items(list):
        pass

    class Pair(tuple):
        __slots__ = ()

    graph = {"a": 5, "y": (args_of, Items(["a"]), Pair((inc, "a")), Point(inc, "a"), OrderedDict(a="a"))}
    assert value_of(graph, "y") == (["a"], (inc, "a"), (inc, "a"), {"a": "a"})
    assert [type(item) for item in value_of(graph, "y")] == [Items, Pair, Point, OrderedDict]


def test_lists_are_new_and_nested_as_they_were(value_of):
    given = ["a", ["a", [], [["b", "text"]]], []]
    graph = {"a": 1, "b": 2, "l": given, "f": (args_of, given, [])}
    expected = [1, [1, [], [[2, "text"]]], []]
    assert value_of(graph, "l") == expected
    assert value_of(graph, "f") == (expected, [])
    assert given == ["a", ["a", [], [["b", "text"]]], []]


@pytest.mark.parametrize("leaf", ["a", 7])
def test_nesting_10_000_deep(value_of, leaf):
    nested, calls = leaf, leaf
    for _ in range(10_000):
        nested = [nested]
        calls = (inc, calls)
    graph = {"a": 5, "l": (args_of, nested), "c": (inc, calls)}
    value = value_of(graph, "l")[0]
    depth = 0
    while type(value) is list:
        (value,) = value
        depth += 1
    number = 5 if leaf == "a" else 7
    assert (depth, value) == (10_000, number)
    assert value_of(graph, "c") == number + 10_001
    keys = "a"
    for _ in range(10_000):
        keys = [keys]
    assert list(flatten_keys(keys)) == ["a"]
    value = get_sync(graph, keys)
    while type(value) is tuple:
        (value,) = value
    assert value == 5


def test_quoted_data(value_of):
    graph = {"a": 1, "lit": Literal("a"), "y": (args_of, Literal("a"), "a", [Literal((inc, "a"))], "lit")}
    assert value_of(graph, "y") == ("a", 1, [(inc, "a")], "a")
    assert repr(Literal("a")) == "Literal('a')"
    assert dask.get({"y": (args_of, (Literal("a"),)), "a": 1}, "y") == ("a",)


# -- dask's newer form


def test_nodes_of_every_kind(value_of):
    graph = {
        "a": DataNode("a", 1),
        "data": DataNode("data", ["a", ("a",)]),
        "alias": Alias("alias", "a"),
        "named": Alias("b"),
        "b": Task("b", inc, TaskRef("a")),
        "list": List(TaskRef("a"), 2, List(TaskRef("b"))),
        "tuple": Tuple(TaskRef("a"), 2),
        "set": Set(TaskRef("a"), 7),
        "dict": Dict({"k": TaskRef("a"), "l": List(TaskRef("b"))}),
        "kw": Task("kw", dict, k=TaskRef("a"), j=Dict({"b": TaskRef("b")}), i="a"),
        "ref": TaskRef("b"),
    }
    expected = {
        "a": 1,
        "data": ["a", ("a",)],
        "alias": 1,
        "named": 2,
        "b": 2,
        "list": [1, 2, [2]],
        "tuple": (1, 2),
        "set": {1, 7},
        "dict": {"k": 1, "l": [2]},
        "kw": {"k": 1, "j": {"b": 2}, "i": "a"},
        "ref": 2,
    }
    for key, value in expected.items():
        assert value_of(graph, key) == value
    assert dict(zip(expected, value_of(graph, list(expected)), strict=True)) == expected


def test_nodes_and_tuples_in_one_graph(value_of):
    graph = {
        "a": (abs, -3),
        "b": Task("b", inc, TaskRef("a")),
        "c": (args_of, TaskRef("b"), "b", [TaskRef("a"), [Alias("x", "a")]], Task(None, inc, TaskRef("b"))),
        "d": [DataNode("q", "a"), Dict({"k": TaskRef("b")}), List("a", TaskRef("a"))],
        "e": (args_of, (inc, (inc, TaskRef("a"))), Tuple(TaskRef("b"))),
        "f": Task("f", args_of, TaskRef("c"), TaskRef(("t", 0))),
        ("t", 0): "b",
    }
    assert value_of(graph, "c") == (4, 4, [3, [3]], 5)
    assert value_of(graph, "d") == ["a", {"k": 4}, ["a", 3]]
    assert value_of(graph, "e") == (5, (4,))
    assert value_of(graph, "f") == ((4, 4, [3, [3]], 5), 4)


def test_tasks_that_dask_has_fused(value_of):
    fused = Task.fuse(Task("b", inc, TaskRef("a")), Task("c", inc, TaskRef("b")), key="c")
    assert value_of({"a": 1, "c": fused, "d": (inc, "c")}, "d") == 4


def test_references_by_duck_typing(value_of):
    class Remote:
        __dask_future__ = True

        def __init__(self, key):
            self.key = key

    graph = {"a": 5, "y": (args_of, Remote("a"), [Remote("a")]), "z": Remote("y")}
    assert value_of(graph, "z") == (5, [5])


def test_a_callable_that_holds_a_graph(value_of):
    # dask's SubgraphCallable until 2025, and what others make like it
    class Subgraph:
        def __init__(self, graph, out, names):
            self.graph = graph
            self.out = out
            self.names = names

        def __call__(self, *args):
            return get_sync({**self.graph, **dict(zip(self.names, args, strict=True))}, self.out)

    inner = Subgraph({"s": (operator.add, "p", "q"), "z": (inc, "s")}, "z", ["p", "q"])
    assert value_of({"x": 1, "y": (inner, "x", 10), "z": (inc, "y")}, "z") == 13


# -- what a graph is


def test_mappings_of_every_kind():
    graph = {"x": 1, "y": (inc, "x")}
    missing = defaultdict(int, graph)
    for mapping in (
        types.MappingProxyType(graph),
        ChainMap({"y": (inc, "x")}, {"x": 1}),
        UserDict(graph),
        OrderedDict(graph),
        missing,
        HighLevelGraph({"a": {"x": 1}, "b": {"y": (inc, "x")}}, {"a": set(), "b": {"a"}}),
    ):
        assert get_sync(mapping, ["y", "x"]) == (2, 1)
        assert get_sync(fuse(cull(mapping, "y"), "y"), "y") == 2
    assert set(missing) == {"x", "y"}


def test_collections_by_duck_typing():
    class Lazy:
        def __dask_graph__(self):
            return {"x": 1, "y": (inc, "x")}

        def __dask_keys__(self):
            return ["y"]

    assert get_sync(Lazy(), Lazy().__dask_keys__()) == (2,)
    array = dask.array.ones((4, 6), chunks=3)
    values = get_sync(array, array.__dask_keys__())
    assert [[block.shape for block in row] for row in values] == [[(3, 3), (3, 3)], [(1, 3), (1, 3)]]
    lazy = taskloom.delayed(inc)(1, task_key="k")
    assert get_sync(lazy, "k") == 2


@pytest.mark.parametrize("graph", [None, 5, "text" * 100, ["x"], {"x"}, dict, HighLevelGraph, object()])
def test_what_is_no_graph(graph):
    with pytest.raises(InvalidGraphError, match=r"a graph is a mapping such as .*; this is ") as caught:
        as_mapping(graph)
    assert isinstance(caught.value, TypeError)
    assert type(graph).__name__ in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_wrapper_with_nothing_lazy_in_it():
    class Empty:
        def __dask_graph__(self):
            return None

    with pytest.raises(InvalidGraphError, match=r"__dask_graph__\(\) returned None"):
        get_sync(Empty(), "x")


@given(st.recursive(st.integers(), lambda inner: st.lists(inner, max_size=4), max_leaves=20))
def test_flat_keys(keys):
    def flat(item):
        return [x for inner in item for x in flat(inner)] if isinstance(item, list) else [item]

    assert list(flatten_keys(keys)) == flat(keys)


def test_is_task():
    assert is_task((inc, 1))
    assert is_task((int,))
    assert not any(is_task(value) for value in [(), (1, inc), [inc], inc, Point(inc, 1), "x", None])


def test_values_in_messages_are_short():
    class Bad:
        def __repr__(self):
            raise ValueError

    assert short(Bad()) == "<Bad>"
    assert short("x" * 1000) == "'" + "x" * 76 + "..."
    assert short(5) == "5"
