"""What every get function promises, on each local scheduler."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from operator import add

import pytest
from dask.utils_test import GetFunctionTestMixin
from hypothesis import given, settings
from hypothesis import strategies as st

import taskloom
from taskloom import multiprocessing, threaded
from taskloom.errors import CycleError, InvalidGraphError, MissingKeyError

GETS = [taskloom.get_sync, threaded.get, multiprocessing.get]


class TestSyncByDasksKit(GetFunctionTestMixin):
    get = staticmethod(taskloom.get_sync)


class TestThreadsByDasksKit(GetFunctionTestMixin):
    get = staticmethod(threaded.get)


class TestProcessesByDasksKit(GetFunctionTestMixin):
    get = staticmethod(multiprocessing.get)


@pytest.fixture(params=GETS, ids=["sync", "threads", "processes"])
def get(request):
    return request.param


def inc(x):
    return x + 1


def test_a_long_chain_does_not_recurse(get):
    graph = {f"x{i + 1}": (inc, f"x{i}") for i in range(100_000)}
    graph["x0"] = 0
    assert get(graph, "x100000") == 100_000


def test_a_missing_key_is_named_with_what_is_close(get):
    with pytest.raises(MissingKeyError, match=r"no key 'part-3'.*'part-1'") as caught:
        get({"part-1": 1, "part-2": 2}, ["part-1", "part-3"])
    assert isinstance(caught.value, KeyError)


def test_a_cycle_is_printed(get):
    with pytest.raises(CycleError) as caught:
        get({"a": (inc, "b"), "b": (inc, "c"), "c": (inc, "a")}, "a")
    assert set(caught.value.cycle) == {"a", "b", "c"}
    assert "'a' needs 'b' needs 'c'" in str(caught.value) * 2


@pytest.mark.parametrize("graph", [None, 3, ["x"], "x"])
def test_what_is_no_mapping_is_refused(get, graph):
    with pytest.raises(InvalidGraphError, match="a graph is a mapping"):
        get(graph, "x")


def test_an_unhashable_key_is_refused(get):
    with pytest.raises(InvalidGraphError, match="hashable"):
        get({"x": 1}, [{"x"}])


def test_tuples_that_are_no_tasks_and_booleans_are_data(get):
    graph = {1: "one", "x": 5, "y": (lambda *args: args, ("x", 2), True, None, ("x", [1]))}
    assert get(graph, "y") == (("x", 2), True, None, ("x", [1]))


def test_nested_keys_come_back_nested(get):
    assert get({"x": 1, ("y", 0): (inc, "x")}, [["x", [("y", 0)]], [], "x"]) == ((1, (2,)), (), 1)


def test_an_error_is_the_users_own_with_the_users_frames(get):
    class Mine(Exception):
        pass

    def fails(x):
        raise Mine(x)

    with pytest.raises(Mine, match="7") as caught:
        get({"x": 7, ("bad", 1): (fails, "x"), "z": (inc, ("bad", 1))}, "z")
    functions = [frame.name for frame in caught.traceback]
    assert functions[-1] == "fails"
    assert not {"work", "evaluate", "make"} & set(functions)
    assert caught.value.__notes__ == ["raised in the task ('bad', 1)"]


@pytest.mark.parametrize("get", GETS[:2])
def test_values_are_released_as_soon_as_nothing_needs_them(get):
    alive = []
    most = []

    class Value:
        def __init__(self):
            alive.append(1)
            most.append(len(alive))

        def __del__(self):
            alive.pop()

    graph: dict = {("v", i): (Value,) for i in range(100)}
    graph |= {("n", i): (lambda value: 1, ("v", i)) for i in range(100)}
    graph["sum"] = (sum, [("n", i) for i in range(100)])
    assert get(graph, "sum") == 100
    assert max(most) <= 20
    assert not alive


def test_a_graph_node_that_refers_to_nothing_is_named(get):
    from dask._task_spec import Task, TaskRef

    with pytest.raises(MissingKeyError, match="'y' needs the key 'nowhere'"):
        get({"y": Task("y", inc, TaskRef("nowhere"))}, "y")


def test_dask_nodes_of_every_kind(get):
    from dask._task_spec import Alias, DataNode, Dict, List, Task, TaskRef

    graph = {
        "a": DataNode("a", 1),
        "b": Alias("b", "a"),
        "c": Task("c", add, TaskRef("b"), 10),
        "d": Task("d", lambda x, y, z: (x, y, z), List(TaskRef("c"), 2), Dict({"k": TaskRef("a")}), z=TaskRef("b")),
        "e": (inc, Task(None, add, TaskRef("a"), 5)),
    }
    assert get(graph, ["b", "c", "d", "e"]) == (1, 11, ([11, 2], {"k": 1}, 1), 7)


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 40))
    graph: dict = {}
    for i in range(count):
        needed = draw(st.lists(st.integers(0, i - 1), max_size=4)) if i else []
        refs = [("t", j) for j in needed]
        form = draw(st.integers(0, 3))
        if form == 0:
            graph[("t", i)] = (lambda *xs: sum(xs) + 1, *refs)
        elif form == 1:
            graph[("t", i)] = (sum, [*refs, [i][0]])
        elif form == 2:
            graph[("t", i)] = (add, (sum, refs), i)
        else:
            graph[("t", i)] = refs[0] if refs else i
    return graph


def plainly(graph):
    values: dict = {}

    def value(x):
        if isinstance(x, list):
            return [value(item) for item in x]
        if isinstance(x, tuple) and x and callable(x[0]):
            return x[0](*[value(item) for item in x[1:]])
        return values.get(x, x)

    for key, task in graph.items():
        values[key] = value(task)
    return values


@given(graphs())
@settings(deadline=None, max_examples=150)
def test_random_graphs_against_plain_evaluation(graph):
    expected = plainly(graph)
    keys = list(graph)
    for get in GETS:
        assert get(graph, keys) == tuple(expected[key] for key in keys)


def test_threads_runs_from_several_threads_and_from_inside_tasks():
    def nested(n):
        return threaded.get(
            {("i", i): (inc, i * 10) for i in range(n)} | {"s": (sum, [("i", i) for i in range(n)])}, "s", num_workers=2
        )

    graph: dict = {("n", i): (nested, 5) for i in range(20)} | {"all": (sum, [("n", i) for i in range(20)])}
    expected = threaded.get(graph, "all", num_workers=2)
    results: list = []
    threads = [
        threading.Thread(target=lambda: results.append(threaded.get(graph, "all", num_workers=2))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


@pytest.mark.parametrize("make", [lambda: ThreadPoolExecutor(3, thread_name_prefix="mine"), lambda: ThreadPool(3)])
def test_threads_on_a_given_pool(make):
    graph: dict = {i: (lambda: threading.current_thread().name,) for i in range(50)}
    with make() as pool:
        names = threaded.get(graph, list(range(50)), pool=pool)
        assert not any(name.startswith("taskloom") for name in names)
    with pytest.raises((RuntimeError, ValueError), match=r"shutdown|not running"):
        threaded.get(graph, 0, pool=pool)


def test_threads_refuse_a_pool_of_processes():
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(1) as pool, pytest.raises(TypeError, match="do not share this one's memory"):
        threaded.get({"x": (inc, 1)}, "x", pool=pool)
