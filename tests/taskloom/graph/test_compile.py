from __future__ import annotations

import pickle
import random
import sys
import tracemalloc
from itertools import pairwise

import pytest
from dask._task_spec import Alias, List, Task, TaskRef
from hypothesis import given
from hypothesis import strategies as st

from taskloom.errors import CycleError, GraphError, InvalidGraphError, MissingKeyError
from taskloom.graph import compile_graph
from taskloom.graph.compile import PLAIN, REFS, VALUE
from taskloom.graph.order import order
from taskloom.local.run import Run


def inc(x):
    return x + 1


def add(*args):
    return sum(args)


def message(graph, keys, error=GraphError):
    with pytest.raises(error) as caught:
        compile_graph(graph, keys)
    return str(caught.value)


# -- the plan


def test_a_plan_holds_only_what_is_needed_numbered_from_the_wanted_keys():
    graph = {"a": 1, "b": (inc, "a"), "c": (add, "b", "a", "b"), "unused": (inc, "nowhere")}
    plan = compile_graph(graph, ["c", ["a", "c"]])
    assert plan.keys == ["c", "a", "b"]
    assert plan.tasks == [graph["c"], 1, graph["b"]]
    assert plan.specs == [REFS, VALUE, REFS]
    assert plan.deps == [(2, 1, 2), (), (1,)]
    assert plan.dependents == [None, [0, 2], [0, 0]]
    assert plan.uses == [1, 3, 2]
    assert plan.order == [1, 2, 0]
    assert plan.positions() == [2, 0, 1]
    assert plan.outputs == [0, 1]
    assert plan.shape == [0, [1, 0]]
    assert plan.results([10, 20, 30]) == (10, (20, 10))
    assert len(plan) == 3


def test_common_tasks_have_common_forms():
    graph = {"a": (inc, 1), "b": (inc,), "c": (add, "a", 5, "b"), "d": (add, ["a", "b"]), "e": [1, 2], "f": "a"}
    plan = compile_graph(graph, ["a", "b", "c", "d", "e", "f"])
    assert plan.specs[:2] == [PLAIN, PLAIN]
    assert plan.specs[4] == VALUE
    assert plan.deps == [(), (), (0, 1), (0, 1), (), (0,)]


def test_uncommon_keys_cost_no_form():
    # once a key such as 1 is met, arguments are looked at by type; tasks keep their simple forms
    graph = {i: (add, i - 1, i - 2) for i in range(2, 50)} | {0: (inc, True), 1: (inc, True)}
    plan = compile_graph(graph, 49)
    assert plan.specs.count(REFS) == 48
    assert plan.specs.count(PLAIN) == 0
    assert [plan.deps[plan.keys.index(i)] for i in (0, 1)] == [(), ()]


def test_no_keys():
    for keys in ([], [[]], [[], [[]]]):
        plan = compile_graph({"a": 1}, keys)
        assert len(plan) == 0
        assert plan.order == []
        assert plan.results([]) == tuple([() if not k else ((),) for k in keys])


@st.composite
def graphs(draw):
    """A graph whose tasks take every form, some wanted keys, and what each key needs."""
    count = draw(st.integers(1, 25))
    kind = draw(st.sampled_from(["str", "tuple", "int", "mixed"]))
    names = []
    for i in range(count):
        made = {"str": f"k{i}", "tuple": ("k", i), "int": i}
        names.append(made[draw(st.sampled_from(sorted(made)))] if kind == "mixed" else made[kind])
    names = draw(st.permutations(names))
    graph, needs = {}, {}
    for i, name in enumerate(names):
        needed = draw(st.lists(st.sampled_from(names[:i]), max_size=4)) if i else []
        refs = [TaskRef(key) for key in needed]
        forms = [
            (add, *needed),
            (add, *needed, None, "text"),
            (add, [*needed, "text"]),
            (add, (add, *needed), [[needed]]),
            needed,
            Task(name, add, *refs),
            List(*refs),
            (add, Task(None, add, *refs), *needed),
            [*refs, *needed],
        ]
        if len(needed) == 1:
            forms += [needed[0], Alias(name, needed[0]), TaskRef(needed[0])]
        graph[name] = draw(st.sampled_from(forms))
        needs[name] = set(needed)
    wanted = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4))
    return dict(draw(st.permutations(list(graph.items())))), wanted, needs


@given(graphs())
def test_a_plan_is_consistent_for_graphs_of_every_kind(drawn):
    graph, wanted, needs = drawn
    plan = compile_graph(graph, wanted)
    n = len(plan)
    reached, todo = set(wanted), list(wanted)
    for key in todo:
        todo.extend(needs[key] - reached)
        reached |= needs[key]
    assert len(plan.keys) == n == len(set(plan.keys))
    assert set(plan.keys) == reached
    assert plan.outputs == [plan.keys.index(key) for key in dict.fromkeys(wanted)]
    assert sorted(plan.order) == list(range(n))
    place = plan.positions()
    for i in range(n):
        assert {plan.keys[d] for d in plan.deps[i]} == needs[plan.keys[i]]
        assert all(place[d] < place[i] for d in plan.deps[i])
        to = plan.dependents[i]
        to = [] if to is None else [to] if isinstance(to, int) else to
        assert sorted(to) == sorted(j for j in range(n) for d in plan.deps[j] if d == i)
        assert plan.uses[i] == len(to) + (i in plan.outputs)


# -- memory and time


def stencil(width, steps):
    graph = {("s", 0, i): (inc, i) for i in range(width)}
    for t in range(1, steps):
        for i in range(width):
            before = [("s", t - 1, j % width) for j in (i - 1, i, i + 1)]
            graph["s", t, i] = (add, *before)
    return graph, [("s", steps - 1, i) for i in range(width)]


def scattered(count):
    rng = random.Random(1)
    graph = {("r", 0): (inc, 0)}
    for i in range(1, count):
        graph["r", i] = (add, *[("r", rng.randrange(max(0, i - 500), i)) for _ in range(rng.randrange(4))])
    return graph, list(graph)


def loose(count):
    graph = {("n", i): (inc, i) for i in range(count)}
    return graph, list(graph)


def nested(count):
    graph = {("n", i): (inc, i) for i in range(count // 2)}
    graph |= {("m", i): (add, [("n", i), 1], (inc, ("n", i))) for i in range(count // 2)}
    return graph, [("m", i) for i in range(count // 2)]


@pytest.mark.parametrize(
    "made", [loose(50_000), stencil(500, 100), scattered(50_000)], ids=["loose", "stencil", "random"]
)
def test_memory_a_task(made):
    graph, keys = made
    tracemalloc.start()
    try:
        plan = compile_graph(graph, keys)
        run = Run(plan, "sync", 1)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert run.left == len(plan) == 50_000
    assert now <= peak < 500 * len(plan)


def lines_run(function, *args):
    """How many lines of Python a call runs: a measure of work that no clock has a part in."""
    count = 0

    def trace(frame, event, arg):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(*args)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    "make",
    [
        loose,
        nested,
        scattered,
        lambda n: stencil(20, n // 20),
        lambda n: stencil(n // 20, 20),
        lambda n: ({("c", i): (inc, ("c", i - 1)) if i else 0 for i in range(n)}, ("c", n - 1)),
    ],
    ids=["loose", "nested", "random", "narrow stencil", "wide stencil", "chain"],
)
def test_work_grows_with_the_size_of_the_graph_and_no_faster(make):
    small, large = make(1_000), make(4_000)
    assert lines_run(compile_graph, *large) < 4.5 * lines_run(compile_graph, *small)
    plans = [compile_graph(*small), compile_graph(*large)]
    few, many = [lines_run(order, plan.deps, plan.dependents, plan.outputs) for plan in plans]
    assert many < 4.5 * few + 100


def test_a_task_with_100_000_inputs_and_an_input_of_100_000_tasks():
    n = 100_000
    graph = {"one": 1, "all": (add, *[("t", i) for i in range(n)])} | {("t", i): (inc, "one") for i in range(n)}
    plan = compile_graph(graph, "all")
    assert plan.uses[plan.keys.index("one")] == n
    assert plan.order[-1] == 0


# -- errors, read aloud


def test_a_missing_key_that_is_asked_for():
    assert message({}, "x", MissingKeyError) == "the graph has no key 'x' (it has 0 keys)"
    assert message({"a": 1}, None, MissingKeyError) == "the graph has no key None (it has 1 key)"
    graph = {("part", i): i for i in range(10)} | {"total": 1}
    assert message(graph, ["total", ("part", 10)], MissingKeyError) == (
        "the graph has no key ('part', 10) (it has 11 keys); close to it: ('part', 1), ('part', 0), ('part', 9)"
    )
    assert message(graph, [["totl"]], MissingKeyError) == (
        "the graph has no key 'totl' (it has 11 keys); close to it: 'total'"
    )
    assert len(message({"x" * 10_000: 1}, "x" * 9_999, MissingKeyError)) < 500


def test_a_missing_key_that_a_node_refers_to():
    graph = {"y": Task("y", inc, TaskRef("nowhere")), "z": (inc, "y")}
    expected = "the task 'y' needs the key 'nowhere', which the graph does not have (2 keys)"
    assert message(graph, "z", MissingKeyError) == expected
    assert "the task 'y' needs the key 'totl'" in message({"total": 1, "y": Alias("y", "totl")}, "y", MissingKeyError)


def test_an_error_is_of_the_kinds_that_one_expects():
    with pytest.raises(KeyError) as caught:
        compile_graph({"a": 1}, "b")
    assert isinstance(caught.value, (ValueError, MissingKeyError))
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


def test_several_keys_in_something_that_is_no_list():
    graph = {"a": 1, "b": 2}
    assert message(graph, ("a", "b"), MissingKeyError).endswith(
        "; to ask for several keys, give a list of them: ['a', 'b']"
    )
    for keys in ({"a", "b"}, graph.keys(), {"a": 1}):
        assert message(graph, keys, InvalidGraphError).endswith("To ask for several keys, give a list of them")


def test_keys_that_cannot_be_hashed():
    for key in (["a"], {"a"}, ("a", ["b"]), bytearray(b"a")):
        told = message({"a": 1}, [[key]] if not isinstance(key, list) else [{"a": 1}], InvalidGraphError)
        assert told.startswith("a key is hashable, such as 'x' or ('x', 0); ")
        assert "unhashable type" in told
    told = message({"a": 1}, (key for key in "a"), MissingKeyError)
    assert told.endswith("(it has 1 key); to ask for several keys, give a list of them")
    assert "several keys" not in message({"a": 1}, "aa", MissingKeyError)
    assert "several keys" not in message({"a": 1}, ("a", 1), MissingKeyError)
    told = message({"y": Task("y", inc, TaskRef(("a", "b"))), "a": 1}, "y", MissingKeyError)
    assert "needs the key ('a', 'b')" in told


@pytest.mark.parametrize("own", [(inc, "a"), "a", ["a"], (inc, [(inc, "a")]), Task("a", inc, TaskRef("a"))])
def test_a_task_that_needs_itself(own):
    assert message({"a": own, "b": (inc, "a")}, "b", CycleError) == (
        "the graph has a cycle, so none of these tasks can be the first: 'a' needs 'a'. What is equal to a key stands for "
        "the value of that key; where it is meant as plain data, the key needs another name"
    )


def test_a_cycle():
    graph = {"a": (inc, "b"), "b": ["c", "d"], "c": "a", "d": 1, "e": (inc, "a"), "lone": (inc, "d")}
    with pytest.raises(CycleError) as caught:
        compile_graph(graph, "e")
    assert caught.value.cycle in (["a", "b", "c", "a"], ["b", "c", "a", "b"], ["c", "a", "b", "c"])
    assert " needs ".join(map(repr, caught.value.cycle)) in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).cycle == caught.value.cycle
    # what is not asked for may be as it likes
    assert len(compile_graph(graph, "lone")) == 2


@pytest.mark.parametrize("n", [100_000])
def test_a_large_cycle(n):
    graph = {("k", i): (inc, ("k", (i + 1) % n), ("leaf", i)) for i in range(n)} | {("leaf", i): i for i in range(n)}
    with pytest.raises(CycleError) as caught:
        compile_graph(graph, [("k", 5)])
    cycle = caught.value.cycle
    assert len(cycle) == n + 1
    assert cycle[0] == cycle[-1]
    assert all(b in graph[a] for a, b in pairwise(cycle))
    assert f"... {n + 1 - 11} more ..." in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_traceback_of_a_wrong_graph_is_short():
    import taskloom

    for get in (taskloom.get_sync, taskloom.threaded.get, taskloom.multiprocessing.get):
        with pytest.raises(CycleError) as caught:
            get({"a": (inc, "a")}, "a")
        assert len(caught.traceback) <= 2
