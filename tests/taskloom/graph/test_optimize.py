from __future__ import annotations

import operator
import pickle
import traceback
import zlib
from functools import partial

import cloudpickle
import dask
import pytest
from dask._task_spec import Alias, DataNode, List, Task, TaskRef
from hypothesis import given
from hypothesis import strategies as st

from taskloom import get_sync
from taskloom.errors import CycleError, MissingKeyError
from taskloom.graph import Literal
from taskloom.graph.optimize import Chain, cull, fuse, inline

EVERY = [cull, fuse, inline, partial(inline, functions=[abs])]


def inc(x):
    return x + 1


def mix(*args):
    """A number that differs when any argument differs, in value, type or place."""
    return zlib.crc32(repr(args).encode())


def cheap(*args):
    return zlib.crc32(repr(args).encode())


def evaluate(graph, key):
    """The value of a key, by the plain meaning of the convention."""
    done = {}

    def value_of(item):
        if type(item) is list:
            return [value_of(x) for x in item]
        if type(item) is tuple and item and callable(item[0]):
            return item[0](*[value_of(x) for x in item[1:]])
        if isinstance(item, Literal):
            return item.value
        if item is not True and item is not False and item is not None:
            try:
                known = item in graph
            except TypeError:
                known = False
            if known:
                if item not in done:
                    done[item] = value_of(graph[item])
                return done[item]
        return item

    return value_of(graph[key])


atoms = st.one_of(
    st.integers(-2, 2),
    st.sampled_from(["k0", "text", "", b"x", None, True, 1.5, (), ("k", 9), (1, "k1"), {"k0": "k1"}, {3}]),
)


@st.composite
def graphs(draw, nodes=False):
    """A graph without circles and some wanted keys; each task refers only to those before it."""
    count = draw(st.integers(1, 14))
    names = draw(st.permutations([f"k{i}" for i in range(count // 2)] + [("k", i) for i in range(count - count // 2)]))
    graph = {}
    for number, name in enumerate(names):
        # near ones more often: that makes chains
        before = names[max(0, number - 2) : number] * 3 + names[:number]
        keys = st.sampled_from(before) if before else st.just(5)
        item = st.one_of(keys, keys, atoms.filter(lambda x: not _is_key(x, names)))
        functions = st.sampled_from([mix, mix, cheap])
        call = st.tuples(functions, item) | st.tuples(functions, item, item) | st.tuples(functions)
        nested = st.lists(item | call, max_size=3) | call
        task = draw(
            st.one_of(
                call,
                call,
                st.tuples(functions, item | nested, nested),
                st.tuples(functions, item | st.lists(nested, max_size=2)),
                st.lists(item | nested, max_size=3),
                item,
                st.builds(Literal, atoms),
                st.tuples(st.builds(Literal, atoms)),
            )
        )
        if nodes and before and draw(st.booleans()):
            key = draw(keys)
            task = draw(
                st.sampled_from(
                    [
                        Task(name, mix, TaskRef(key), 1),
                        Alias(name, key),
                        List(TaskRef(key), 2),
                        DataNode(name, "k0"),
                        (mix, Task(None, cheap, TaskRef(key)), key),
                    ]
                )
            )
        graph[name] = task
    shuffled = dict(draw(st.permutations(list(graph.items()))))
    wanted = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))
    return shuffled, wanted


def _is_key(item, names):
    try:
        return item in names
    except TypeError:
        return False


@given(graphs())
def test_values_never_change(drawn):
    graph, wanted = drawn
    before = dict(graph)
    expected = tuple([evaluate(graph, key) for key in wanted])
    assert get_sync(graph, wanted) == expected
    for optimize in (cull, fuse, inline, partial(inline, functions=[cheap]), partial(inline, literals=False)):
        assert get_sync(optimize(graph, wanted), wanted) == expected
    small = fuse(inline(cull(graph, wanted), wanted, functions=[cheap]), wanted)
    assert get_sync(small, wanted) == expected
    assert get_sync(inline(fuse(graph, wanted), wanted, functions=[cheap]), wanted) == expected
    assert get_sync(pickle.loads(cloudpickle.dumps(small)), wanted) == expected
    assert graph == before


@given(graphs(nodes=True))
def test_values_never_change_with_graph_nodes(drawn):
    graph, wanted = drawn
    expected = get_sync(graph, wanted)
    for optimize in (cull, fuse, inline, partial(inline, functions=[cheap])):
        assert get_sync(optimize(graph, wanted), wanted) == expected
    assert get_sync(fuse(inline(cull(graph, wanted), wanted, [cheap]), wanted), wanted) == expected


@given(graphs())
def test_what_comes_out_is_as_small_as_it_can_be(drawn):
    graph, wanted = drawn
    culled = cull(graph, wanted)
    assert cull(culled, wanted) == culled
    fused = fuse(culled, wanted)
    assert set(wanted) <= set(fused) <= set(culled)
    assert set(fuse(fused, wanted)) == set(fused)


@given(st.data())
def test_dask_runs_what_comes_out(data):
    graph, wanted = data.draw(graphs())
    literal = {key for key, task in graph.items() if isinstance(task, Literal)}
    graph = {key: (task,) if key in literal else task for key, task in graph.items()}
    # where both agree before: dask looks into data that we leave alone
    try:
        expected = dask.get(graph, wanted)
    except Exception:
        return
    if expected == get_sync(graph, wanted):
        for optimize in (cull, fuse, partial(inline, functions=[cheap])):
            assert dask.get(optimize(graph, wanted), wanted) == expected


def test_cull():
    graph = {"a": 1, "b": (inc, "a"), "c": (inc, "b"), "d": (sum, ["a", ("x", 0)]), ("x", 0): 5}
    assert cull(graph, "b") == {"a": 1, "b": (inc, "a")}
    assert set(cull(graph, ["b", [["d"]]])) == {"a", "b", "d", ("x", 0)}
    with pytest.raises(MissingKeyError, match="no key 'e'"):
        cull(graph, ["a", "e"])


def test_cull_follows_references_of_graph_nodes():
    graph = {"a": DataNode("a", 1), "b": Task("b", inc, TaskRef("a")), "c": Alias("c", "b"), "d": (sum, [TaskRef("a")])}
    assert set(cull(graph, "c")) == {"a", "b", "c"}
    assert set(cull(graph, "d")) == {"a", "d"}


def test_fuse_makes_one_task_of_a_chain_and_keeps_the_last_key():
    graph = {"a": (int, "7"), "b": (inc, "a"), "c": (pow, 2, "b"), "d": (operator.sub, "c", "e"), "e": (int, "1")}
    fused = fuse(graph, "d")
    assert set(fused) == {"c", "d", "e"}
    assert fused["c"][1:] == ("7", 2)
    assert get_sync(fused, ["c", "d"]) == (256, 255)


def test_fuse_leaves_wanted_keys_and_keys_with_several_users():
    graph = {"a": (int, "7"), "b": (inc, "a"), "c": (inc, "b"), "d": (inc, "c"), "e": (inc, "d")}
    assert set(fuse(graph, ["e", "c"])) == {"c", "e"}
    graph["f"] = (inc, "b")
    assert set(fuse(graph, ["e", "f"])) == {"b", "e", "f"}


def test_fuse_of_nothing_returns_an_equal_graph():
    graph = {"a": 1, "b": (operator.add, "a", "c"), "c": 2}
    fused = fuse(graph, "b")
    assert fused == graph
    assert fused is not graph


def test_fused_steps_use_the_value_anywhere():
    graph = {
        "a": (int, "3"),
        "b": (operator.add, "a", "a"),
        "c": (sum, ["b", 1, ["b", 2][1:] and 4, (inc, "b")]),
        "d": (dict, [["x", "c"], ["y", (inc, 1)]]),
        "e": "d",
        "f": ["e", 1, (len, "e")],
    }
    expected = get_sync(graph, "f")
    fused = fuse(graph, "f")
    assert list(fused) == ["f"]
    assert get_sync(fused, "f") == dask.get(fused, "f") == expected == [{"x": 18, "y": 2}, 1, 2]


def test_chains_that_are_built_alike_share_their_function():
    graph = {}
    for i in range(20):
        graph |= {("a", i): i, ("b", i): (pow, ("a", i), 2), ("c", i): (sum, [("b", i), i])}
    wanted = [("c", i) for i in range(20)]
    fused = fuse(graph, wanted)
    assert len({id(task[0]) for task in fused.values()}) == 1
    assert get_sync(fused, wanted) == tuple([i**2 + i for i in range(20)])


def test_lists_given_to_a_fused_function_are_its_own():
    def grow(value, items):
        items.append(value)
        return items

    fused = fuse({"a": (int, "1"), "b": (grow, "a", [0])}, "b")
    assert get_sync(fused, "b") == [0, 1]
    assert get_sync(fused, "b") == [0, 1]


def test_graph_nodes_are_fused_whole():
    graph = {
        "a": DataNode("a", 1),
        "b": Task("b", inc, TaskRef("a")),
        "c": (inc, "b"),
        "d": Task("d", pow, TaskRef("c"), 2),
        "e": Alias("e", "d"),
    }
    fused = fuse(graph, "e")
    assert list(fused) == ["e"]
    assert get_sync(fused, "e") == 9


def test_nodes_that_forbid_it_are_not_fused():
    class Alone(Task):
        @property
        def block_fusion(self):
            return True

    graph = {"a": (int, "1"), "b": Alone("b", inc, TaskRef("a")), "c": (inc, "b")}
    assert fuse(graph, "c") == graph


def test_a_chain_says_what_it_does():
    fused = fuse({"a": (int, "1"), "b": (partial(pow, 2), "a"), "c": (inc, "b"), "d": (inc, "c")}, "d")
    (chain, *_) = fused["d"]
    assert isinstance(chain, Chain)
    assert chain.__name__ == "int-pow-inc*2"
    assert repr(chain) == "<chain int-pow-inc*2>"
    long = {"k0": (int, "1")} | {f"k{i + 1}": ([inc, abs][i % 2], f"k{i}") for i in range(50)}
    assert fuse(long, "k50")["k50"][0].__name__ == "int-inc-abs-...-inc-abs"


def test_an_error_in_a_chain_shows_the_users_lines_and_says_which_step():
    def bad(x):
        raise ValueError(f"no {x}")

    fused = fuse({"a": (int, "1"), "b": (inc, "a"), "c": (bad, "b"), "d": (inc, "c")}, "d")
    with pytest.raises(ValueError, match="no 2") as caught:
        get_sync(fused, "d")
    assert "raised in step 3 of 4 of the fused task int-inc-bad-inc" in caught.value.__notes__
    files = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert not any(name.endswith("/optimize.py") for name in files)


def test_a_chain_of_100_000():
    n = 100_000
    graph = {"k0": 0} | {f"k{i + 1}": (inc, f"k{i}") for i in range(n)}
    last = f"k{n}"
    for optimize in (cull, fuse, partial(inline, functions=[inc])):
        small = optimize(graph, last)
        assert get_sync(small, last) == n
        assert get_sync(pickle.loads(cloudpickle.dumps(small)), last) == n
    fused = fuse(graph, last)
    assert len(fused) == 1
    assert dask.get(fused, last) == n


def test_a_reduction_of_100_000():
    n = 100_000
    graph = {f"k{i}": i for i in range(n)} | {"sum": (sum, [f"k{i}" for i in range(n)])}
    for optimize in (cull, fuse, inline):
        assert get_sync(optimize(graph, "sum"), "sum") == n * (n - 1) // 2
    assert list(inline(graph, "sum")) == ["sum"]


@pytest.mark.parametrize("optimize", EVERY)
def test_wrong_graphs_stay_as_wrong_as_they_were(optimize):
    circle = {"a": (inc, "c"), "b": (inc, "a"), "c": (inc, "b"), "d": (inc, "c"), "e": (abs, "d"), "f": (inc, "e")}
    with pytest.raises(CycleError):
        get_sync(optimize(circle, "f"), "f")
    own = {"a": (inc, "a")}
    with pytest.raises(CycleError):
        get_sync(optimize(own, "a"), "a")
    missing = {"a": Task("a", inc, TaskRef("zz")), "b": (inc, "a")}
    with pytest.raises(MissingKeyError, match="'zz'"):
        get_sync(optimize(missing, "b"), "b")


def test_inline_functions():
    graph = {"a": (int, "3"), "b": (abs, "a"), "c": (pow, "b", 2), "d": (pow, "b", 3), "e": [abs, "b"]}
    small = inline(graph, ["c", "d", "e"], functions=[abs])
    assert small == {
        "a": (int, "3"),
        "c": (pow, (abs, "a"), 2),
        "d": (pow, (abs, "a"), 3),
        "e": [abs, (abs, "a")],
    }


def test_inlined_tasks_stay_small():
    # each uses the one before twice: put into each other, they would double 60 times
    graph = {"k0": (int, "1")} | {f"k{i + 1}": (max, f"k{i}", f"k{i}") for i in range(60)}
    small = inline(graph, "k60", functions=[max])
    assert get_sync(small, "k60") == 1
    assert len(repr(small)) < 20_000


def test_inline_literals():
    big = list(range(100))
    graph = {"n": 2, "t": "text", "l": big, "x": (pow, "n", "n"), "y": (len, "l"), "z": (len, "t"), "w": (sum, "l")}
    small = inline(graph, ["x", "y", "z", "w"])
    assert small == {"l": big, "x": (pow, 2, 2), "y": (len, "l"), "z": (len, "text"), "w": (sum, "l")}
    once = {"l": big, "y": (len, "l")}
    assert inline(once, "y") == {"y": (len, big)}
    assert inline(once, ["y", "l"]) == once
    assert inline(graph, "x", literals=False) == graph


def test_wanted_keys_stay_and_are_inlined_too():
    graph = {"n": 2, "x": (abs, "n"), "y": (inc, "x")}
    assert inline(graph, ["y", "x", "n"], functions=[abs]) == {"n": 2, "x": (abs, 2), "y": (inc, (abs, 2))}


def test_inline_leaves_what_graph_nodes_refer_to():
    graph = {"n": 2, "x": (inc, "n"), "y": Task("y", pow, TaskRef("x"), TaskRef("n")), "z": (abs, Alias("n"), "n")}
    small = inline(graph, ["y"], functions=[inc])
    assert small["x"] == (inc, 2)
    assert small["n"] == 2
    assert get_sync(small, "y") == 9


def test_data_that_looks_like_a_key_is_not_replaced():
    graph = {"x": 5, "y": (mix, Literal("x"), (Literal("x"),), True, ("x",)), "z": (mix, "y")}
    expected = get_sync(graph, "z")
    for optimize in (fuse, inline, partial(inline, functions=[mix])):
        assert get_sync(optimize(graph, "z"), "z") == expected
