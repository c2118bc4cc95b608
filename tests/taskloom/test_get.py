"""What every get function promises, on each local scheduler."""

from __future__ import annotations

import contextvars
import gc
import threading
import time
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from multiprocessing.pool import ThreadPool
from operator import add

import pytest
from dask.utils_test import GetFunctionTestMixin
from hypothesis import given, settings
from hypothesis import strategies as st

import taskloom
from taskloom import multiprocessing, threaded
from taskloom.diagnostics import Callback, Profiler
from taskloom.errors import CycleError, InvalidGraphError, MissingKeyError
from taskloom.local.run import Run
from taskloom.local.threads import _Caller

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


# The two that run in this process.


def in_executor(graph, keys, **options):
    with ThreadPoolExecutor(2) as pool:
        return threaded.get(graph, keys, pool=pool, **options)


HERE = [taskloom.get_sync, threaded.get, in_executor]


@pytest.fixture(params=HERE, ids=["sync", "threads", "executor"])
def get_here(request):
    return request.param


def until(condition, seconds=20.0):
    """Wait for something that will be so in a moment."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


# Depth.


def nested(depth, inner, wrap):
    for _ in range(depth):
        inner = wrap(inner)
    return inner


def unnested(value):
    depth = 0
    while isinstance(value, (list, tuple)):
        (value,) = value
        depth += 1
    return depth, value


def test_lists_tasks_and_keys_nested_ten_thousand_deep(get_here):
    deep = 10_000
    graph: dict = {
        "x": 1,
        "list": nested(deep, "x", lambda inner: [inner]),
        "in a task": (unnested, nested(deep, "x", lambda inner: [inner])),
        "tasks": nested(deep, "x", lambda inner: (inc, inner)),
        "literal": (unnested, nested(deep, 2.5, lambda inner: [inner])),
    }
    assert unnested(get_here(graph, "list")) == (deep, 1)
    assert get_here(graph, ["in a task", "tasks", "literal"]) == ((deep, 1), deep + 1, (deep, 2.5))
    assert unnested(get_here(graph, nested(deep, "x", lambda inner: [inner]))) == (deep, 1)


def test_aliases_duplicates_and_what_is_wanted_twice(get_here):
    made = []
    graph = {"a": (lambda: made.append(1) or [1],), "b": "a", "c": "b", "d": ["a", "c", ["b"]], "e": [[]]}
    a, b, c, d, again, both, e = get_here(graph, ["a", "b", "c", "d", "a", ["c", "a"], "e"])
    assert made == [1]
    assert a is b is c is d[0] is d[1] is d[2][0] is again is both[0] is both[1]
    assert e == [[]]


# Errors.


class Stubborn(Exception):
    """Nothing can be set on it."""

    def __setattr__(self, name, value):
        raise TypeError("not on me")

    @property
    def __notes__(self):
        raise TypeError("no notes either")


class Base(BaseException):
    pass


class Liar(Exception):
    def __bool__(self):
        return False


@pytest.mark.parametrize(
    "kind",
    [ValueError, Base, SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, Stubborn, Liar, StopAsyncIteration],
)
def test_the_error_is_the_very_object(get_here, kind):
    error = kind("mine")

    def fails(x):
        raise error

    with pytest.raises(kind) as caught:
        get_here({"x": 1, "y": (fails, "x"), "z": (inc, "y")}, "z")
    assert caught.value is error
    assert caught.value.args == ("mine",)
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    assert sum("lib/taskloom" in file for file in files) <= 1
    assert files[-1] == __file__
    if kind in (ValueError, Liar, StopIteration):
        assert error.__notes__ == ["raised in the task 'y'"]
        assert not any("lib/taskloom" in file for file in files)
    assert get_here({"x": 1, "y": (inc, "x")}, "y") == 2


def test_an_error_of_a_builtin_shows_the_callers_line_only(get_here):
    with pytest.raises(ValueError, match="invalid literal") as caught:
        get_here({"x": (int, "seven")}, "x")
    assert "lib/taskloom" not in "".join(traceback.format_exception(caught.value))


def test_causes_groups_and_notes(get_here):
    def fails():
        try:
            raise KeyError("first")
        except KeyError as error:
            error.add_note("a note")
            raise ExceptionGroup("both", [ValueError(1), OSError(2)]) from error

    def nests():
        try:
            get_here({"inner": (fails,)}, "inner")
        except* OSError as group:
            raise RuntimeError("outer") from group

    with pytest.raises(ExceptionGroup) as caught:
        get_here({"n": (nests,)}, "n")
    text = "".join(traceback.format_exception(caught.value))
    assert "lib/taskloom" not in text
    assert "a note" in text
    assert text.count("raised in the task 'inner'") >= 1
    assert [type(error) for error in caught.value.exceptions] == [RuntimeError, ExceptionGroup]


def test_an_error_that_was_raised_before_is_noted_once(get_here):
    error = ValueError("again")

    def fails():
        raise error

    for _ in range(3):
        with pytest.raises(ValueError, match="again"):
            get_here({"f": (fails,)}, "f")
    assert error.__notes__ == ["raised in the task 'f'"]


def test_a_key_without_a_repr_and_a_long_one(get_here):
    class Key(str):
        def __repr__(self):
            raise ValueError("no repr")

    with pytest.raises(ZeroDivisionError):
        get_here({Key("k"): (lambda: 1 / 0,)}, Key("k"))
    with pytest.raises(ZeroDivisionError) as caught:
        get_here({"k" * 5000: (lambda: 1 / 0,)}, "k" * 5000)
    assert len(caught.value.__notes__[0]) < 250


# Callbacks.


class Log(Callback):
    def __init__(self, fails_in=None):
        self.events = []
        self.fails_in = fails_in
        self.lock = threading.Lock()

    def add(self, *event):
        with self.lock:
            self.events.append(event)
        if event[0] == self.fails_in:
            raise Liar(event[0])

    def start(self, info):
        self.add("start", info)

    def pretask(self, key):
        self.add("pretask", key)

    def posttask(self, key, record):
        assert record.key == key
        self.add("posttask", key, record)

    def finish(self, info, error):
        self.add("finish", info, error)

    def names(self):
        return [event[0] for event in self.events]


CHAIN: dict = {"x0": 1, **{f"x{i + 1}": (inc, f"x{i}") for i in range(9)}}


def test_callbacks_hear_of_all_in_order(get_here):
    log = Log()
    assert get_here(CHAIN, "x9", callbacks=[log, log]) == 10
    assert log.names() == ["start", *["pretask", "posttask"] * 10, "finish"]
    info, last = log.events[0][1], log.events[-1]
    assert (info.total, last[1], last[2]) == (10, info, None)
    assert [event[1] for event in log.events if event[0] == "pretask"] == list(CHAIN)
    records = [event[2] for event in log.events if event[0] == "posttask"]
    assert [record.function for record in records] == ["literal"] + ["inc"] * 9
    assert all(a.start <= a.stop <= b.start for a, b in pairwise(records))


def test_callbacks_of_a_wide_graph(get_here):
    log = Log()
    graph: dict = {("x", i): (inc, i * 1.0) for i in range(300)}
    get_here(graph, list(graph), callbacks=[log])
    names = log.names()
    assert names[0] == "start"
    assert names[-1] == "finish"
    assert names.count("start") == names.count("finish") == 1
    for key in graph:
        mine = [event[0] for event in log.events if event[1] == key]
        assert mine == ["pretask", "posttask"]


@pytest.mark.parametrize("hook", ["start", "pretask", "posttask", "finish"])
def test_an_error_of_a_callback_ends_the_run(get_here, hook):
    before, bad, after = Log(), Log(hook), Log()
    with pytest.raises(Liar, match=hook) as caught:
        get_here(CHAIN, "x9", callbacks=[before, bad, after])
    assert before.names()[-1] == "finish"
    assert before.names().count("finish") == 1
    if hook == "start":
        assert before.names() == ["start", "finish"]
        assert before.events[1][2] is caught.value
        assert bad.names() == ["start"]
        assert after.names() == []
    elif hook == "finish":
        assert after.names()[-1] == "finish"
        assert after.events[-1][2] is None
    else:
        assert after.names() == ["start", *(["pretask"] if hook == "posttask" else []), "finish"]
        assert after.events[-1][2] is caught.value
        assert caught.value.__notes__ == [f"raised by the callback Log.{hook}, which was told of the task 'x0'"]
    assert get_here(CHAIN, "x9") == 10


def test_callbacks_hear_of_a_tasks_error(get_here):
    log = Log()
    with pytest.raises(ZeroDivisionError) as caught:
        get_here({"x": 1, "y": (lambda x: x / 0, "x")}, "y", callbacks=[log])
    assert log.names() == ["start", "pretask", "posttask", "pretask", "finish"]
    assert log.events[-1][2] is caught.value


def test_an_error_of_finish_does_not_hide_a_tasks(get_here):
    with pytest.raises(ZeroDivisionError):
        get_here({"y": (lambda: 1 / 0,)}, "y", callbacks=[Log("finish")])


def test_callbacks_registered_and_active_reach_nested_runs(get_here):
    def inner(x):
        return get_here({"i": (inc, x)}, "i")

    graph = {"o": (inner, 1)}
    with Log() as log:
        with log:
            assert get_here(graph, "o") == 2
        assert log.names() == ["start", "pretask", "start", "pretask", "posttask", "finish", "posttask", "finish"]
        log.events.clear()
        # in a context of its own, as another thread has: not there
        contextvars.Context().run(get_here, graph, "o")
        assert log.events == []
    get_here(graph, "o")
    assert log.events == []
    log.register()
    log.register()
    try:
        contextvars.Context().run(get_here, graph, "o")
        assert log.names().count("start") == 2
    finally:
        log.unregister()
    log.unregister()
    log.events.clear()
    get_here(graph, "o")
    assert log.events == []


# What is kept alive.


class Big:
    alive = 0

    def __init__(self, *parts):
        type(self).alive += 1

    def __del__(self):
        type(self).alive -= 1


@pytest.fixture
def no_collector():
    """What lives in a reference cycle stays alive."""
    gc.collect()
    Big.alive = 0
    gc.disable()
    yield
    gc.enable()


def runs_alive():
    return [thing for thing in gc.get_objects() if type(thing) in (Run, _Caller)]


@pytest.mark.parametrize("callbacks", [[], [Profiler()]])
def test_results_are_the_callers_alone(get_here, no_collector, callbacks):
    graph: dict = {("b", i): (Big,) for i in range(50)}
    graph["list"] = list(graph)
    graph["made"] = (Big, (Big, "list"), [(Big, ("b", 1))])
    for _ in range(3):
        result = get_here(graph, ["made", ("b", 7)], callbacks=callbacks)
        until(lambda: Big.alive == 2)
        reference = weakref.ref(result[0])
        del result
        until(lambda: Big.alive == 0)
        assert reference() is None
    until(lambda: not runs_alive())


def test_an_error_keeps_nothing_when_it_is_gone_and_little_before(get_here, no_collector):
    def fails(parts, one):
        raise ValueError("now")

    graph: dict = {("b", i): (Big, i) for i in range(50)}
    graph["all"] = (lambda parts: len(parts), list(graph))
    graph["one"] = (Big, "all")
    graph["bad"] = (fails, "all", (Big, "one"))
    for _ in range(3):
        try:
            get_here(graph, ["bad", *[("b", i) for i in range(50)]])
        except ValueError as error:
            kept = error
        # the task's own frame has one, as it would in plain code, and those which called it may have its input
        until(lambda: Big.alive <= 2)
        del kept
        until(lambda: Big.alive == 0)
        until(lambda: not runs_alive())


def test_an_error_that_is_a_value_keeps_nothing_else(get_here, no_collector):
    def returns(x):
        try:
            raise ValueError("a value")
        except ValueError as error:
            return error

    graph: dict = {"big": (Big,), "error": (returns, 1), "sum": (lambda *parts: len(parts), "big", "error")}
    error, total = get_here(graph, ["error", "sum"])
    assert total == 2
    until(lambda: Big.alive == 0)
    frame = error.__traceback__.tb_frame.f_back
    while frame is not None:  # neither does any frame that the error leads to
        if frame.f_code.co_name == "work":
            until(lambda: frame.f_locals["plan"] is None)
        frame = frame.f_back


def test_values_of_a_failed_run_are_released_while_its_other_tasks_go_on(no_collector):
    release = threading.Event()
    begun = threading.Event()

    def waits(x):
        begun.set()
        release.wait(60)

    def fails(x):
        begun.wait(20)
        raise ValueError("now")

    graph: dict = {("b", i): (Big,) for i in range(20)}
    graph |= {"n": (len, list(graph)), "waits": (waits, "n"), "fails": (fails, "n")}
    try:
        with pytest.raises(ValueError, match="now"):
            threaded.get(graph, ["waits", "fails", *[("b", i) for i in range(20)]], num_workers=2)
        until(lambda: Big.alive == 0)
    finally:
        release.set()


@pytest.mark.parametrize("get", HERE)
def test_a_chain_of_large_values_has_two_at_a_time(get):
    most = []

    class Link(Big):
        alive = 0

        def __init__(self, before):
            super().__init__()
            most.append(type(self).alive)

    graph: dict = {"l0": (Link, 0), **{f"l{i + 1}": (Link, f"l{i}") for i in range(200)}}
    get(graph, "l200")
    assert max(most) == 2


# Random graphs, in both forms of the convention, against plain evaluation.


def digest(*args):
    return hash(repr(args)) % 1_000_003


@st.composite
def descriptions(draw):
    """A list of computations; each is ("value", v), ("ref", number), ("list", parts) or ("call", function, parts)."""
    count = draw(st.integers(1, 30))
    small: list = []  # those whose values are no lists: a list may have these, so that nothing grows exponentially
    found: list = []

    def part(depth):
        kinds = ["value", "ref", "ref", "list", "call"] if small else ["value", "list", "call"]
        kind = draw(st.sampled_from(kinds if depth else kinds[:-2]))
        if kind == "value":
            return ("value", draw(st.sampled_from([0.5, None, True, "word", b"bytes", (1.5, "pair"), {"a": 1}, ()])))
        if kind == "ref":
            return ("ref", draw(st.sampled_from(small)))
        parts = [part(depth - 1) for _ in range(draw(st.integers(0, 3)))]
        return ("list", parts) if kind == "list" else ("call", draw(st.sampled_from([digest, digest, len_of])), parts)

    for number in range(count):
        found.append(part(3))
        if found[-1][0] != "list":
            small.append(number)
    return found


def len_of(*args):
    return len(args)


def plain_values(described):
    values: list = []

    def value(part):
        kind = part[0]
        if kind == "value":
            return part[1]
        if kind == "ref":
            return values[part[1]]
        if kind == "list":
            return [value(item) for item in part[1]]
        return part[1](*[value(item) for item in part[2]])

    for part in described:
        values.append(value(part))
    return tuple(values)


def key_of(number):
    return ("k", number) if number % 2 else f"key-{number}"


def in_tuples(described):
    def form(part):
        kind = part[0]
        if kind == "value":
            return part[1]
        if kind == "ref":
            return key_of(part[1])
        if kind == "list":
            return [form(item) for item in part[1]]
        return (part[1], *[form(item) for item in part[2]])

    return {key_of(number): form(part) for number, part in enumerate(described)}


def in_nodes(described):
    from dask._task_spec import Alias, DataNode, List, Task, TaskRef

    def form(part, key=None):
        kind = part[0]
        if kind == "value":
            return DataNode(key, part[1]) if key is not None else part[1]
        if kind == "ref":
            return Alias(key, key_of(part[1])) if key is not None else TaskRef(key_of(part[1]))
        if kind == "list":
            return List(*[form(item) for item in part[1]])
        return Task(key, part[1], *[form(item) for item in part[2]])

    return {key_of(number): form(part, key_of(number)) for number, part in enumerate(described)}


@given(descriptions(), st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_random_graphs_in_both_forms_on_threads_and_without(described, random):
    expected = plain_values(described)
    numbers = list(range(len(described)))
    random.shuffle(numbers)
    some = numbers[: random.randint(1, len(numbers))]
    keys = [key_of(number) for number in some]
    wanted = tuple([expected[number] for number in some])
    for graph in (in_tuples(described), in_nodes(described)):
        assert taskloom.get_sync(graph, keys) == wanted
        for workers in (1, 2, 5):
            assert threaded.get(graph, keys, num_workers=workers) == wanted
        assert threaded.get(graph, [keys, [keys]], num_workers=3, callbacks=[Profiler()]) == (wanted, (wanted,))
