"""Running collections: several at once, nested, of two libraries; which scheduler it is."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections import OrderedDict, namedtuple
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.pool import ThreadPool

import dask
import dask.array
import dask.bag
import dask.dataframe
import numpy as np
import pandas as pd
import pytest
import xarray

import taskloom
from taskloom import compute, config, delayed, is_collection, optimize, persist
from taskloom._collections import default_client, default_clients, get_scheduler
from taskloom._collections.protocol import Collection, unpack
from taskloom.errors import MissingKeyError

Point = namedtuple("Point", ["x", "y"])


@dataclasses.dataclass
class Box:
    item: object
    count: int = 1


@dataclasses.dataclass
class Derived:
    item: object
    twice: object = dataclasses.field(init=False, default=None)


def inc(x):
    return x + 1


def thread_name():
    return threading.current_thread().name


class Recorder:
    """A client, by duck typing: it has ``get``."""

    def __init__(self):
        self.asked = []

    def get(self, graph, keys, **kwargs):
        self.asked.append(kwargs)
        return taskloom.get_sync(graph, keys)


class Lazy:
    """The least that a collection of somebody else's has to have."""

    def __init__(self, graph, keys):
        self.graph = graph
        self.keys = keys

    def __dask_graph__(self):
        return self.graph

    def __dask_keys__(self):
        return self.keys

    def __dask_postcompute__(self):
        return self.join, ("joined",)

    def __dask_postpersist__(self):
        return lambda graph, keys, rename=None: Lazy(graph, keys), (self.keys,)

    @staticmethod
    def join(values, word):
        return word, values


@pytest.fixture
def mine():
    frame = pd.DataFrame({"a": range(10), "b": [i % 3 for i in range(10)]})
    return {
        "ours": delayed(inc)(1),
        "array": dask.array.arange(10, chunks=3),
        "frame": dask.dataframe.from_pandas(frame, npartitions=3),
        "sum": dask.dataframe.from_pandas(frame, npartitions=3).a.sum(),
        "delayed": dask.delayed(inc)(2),
        "bag": dask.bag.from_sequence(range(5), npartitions=2),
        "item": dask.bag.from_sequence(range(5), npartitions=2).sum(),
        "xarray": xarray.Dataset({"v": (("t", "u"), dask.array.ones((4, 6), chunks=2))}),
        "lazy": Lazy({"p": 1, "q": (inc, "p")}, [["p", "q"], ["q"]]),
        "plain": 5,
    }


def check(values, but=()):
    frame = pd.DataFrame({"a": range(10), "b": [i % 3 for i in range(10)]})
    assert values["ours"] == 2
    np.testing.assert_array_equal(values["array"], np.arange(10))
    pd.testing.assert_frame_equal(values["frame"], frame)
    assert values["sum"] == 45
    assert values["delayed"] == 3
    assert values["bag"] == [0, 1, 2, 3, 4]
    assert values["item"] == 10
    xarray.testing.assert_identical(values["xarray"], xarray.Dataset({"v": (("t", "u"), np.ones((4, 6)))}))
    assert values["lazy"] == ("joined", ((1, 2), (2,)))
    assert values["plain"] == 5


# -- compute, persist, optimize


@pytest.mark.parametrize("scheduler", ["sync", "threads", "processes"])
@pytest.mark.parametrize("optimize_graph", [True, False])
def test_compute_of_many_kinds_at_once(mine, scheduler, optimize_graph):
    (values,) = compute(mine, scheduler=scheduler, optimize_graph=optimize_graph)
    check(values)
    check(dict(zip(mine, compute(*mine.values(), scheduler=scheduler, optimize_graph=optimize_graph), strict=True)))


def test_each_by_itself(mine):
    check({name: compute(value)[0] for name, value in mine.items()})


@pytest.mark.parametrize("scheduler", ["sync", "threads", "processes"])
def test_persist_of_many_kinds_at_once(mine, scheduler):
    (kept,) = persist(mine, scheduler=scheduler)
    assert {name: type(value) for name, value in kept.items()} == {name: type(value) for name, value in mine.items()}
    for name in ("ours", "array", "bag"):  # every wanted key holds its value, and nothing else is left to do
        assert set(kept[name].__dask_graph__()) == set(taskloom.graph.flatten_keys(kept[name].__dask_keys__()))
    check(compute(kept, scheduler="sync")[0])
    (again,) = persist(kept, scheduler="sync")
    check(compute(again, scheduler="sync")[0])


def test_optimize_of_many_kinds_at_once(mine):
    (done,) = optimize(mine)
    assert {name: type(value) for name, value in done.items()} == {name: type(value) for name, value in mine.items()}
    check(compute(done, scheduler="sync")[0])
    # and each alone
    check({name: compute(*optimize(value), scheduler="sync")[0] for name, value in mine.items()})


def test_optimize_culls():
    x = delayed(inc)(1)
    y = delayed(inc)(x)
    other = taskloom._delayed.Delayed(y.key, {**y.__dask_graph__(), "unused": (inc, 1)})
    (small,) = optimize(other)
    assert set(small.__dask_graph__()) == {x.key, y.key}


def test_what_is_shared_is_done_once():
    calls = []
    x = delayed(calls.append)("x")
    assert compute(x, [x], {"k": delayed(str)(x)}) == (None, [None], {"k": "None"})
    assert calls == ["x"]
    array = dask.array.from_array(np.arange(4), chunks=2).map_blocks(lambda b: (calls.append("b"), b)[1], dtype=int)
    calls.clear()
    compute(array.sum(), array.max(), array + 1, scheduler="sync")
    assert calls == ["b"] * 2


def test_nested_data():
    x = delayed(inc)(1)
    data = [x, (x, [x]), {x, 7}, {"k": x, x: 1}, OrderedDict(a=x), Point(x, 1), Box(x), frozenset([x]), iter([x])]
    made = compute(data)[0]
    assert made == [2, (2, [2]), {2, 7}, {"k": 2, 2: 1}, OrderedDict(a=2), Point(2, 1), Box(2), frozenset([2]), [2]]
    assert [type(item) for item in made[4:7]] == [OrderedDict, Point, Box]
    assert compute(*data[:2], traverse=False) == (2, (x, [x]))
    assert compute(item for item in [x, 5]) == ([2, 5],)


def test_data_nested_too_deep_to_be_searched():
    circle = [1]
    circle.append(circle)
    for run in (compute, persist, optimize):
        with pytest.raises(RecursionError, match=r"type list is nested too deep .* with traverse=False"):
            run(delayed(1), circle)
        assert run(circle, traverse=False)[0] is circle


def test_data_without_collections_is_the_same_object():
    data = {"a": [1, (2,)], "b": Box(3)}
    assert compute(data, 5, None)[0] is data
    assert persist(data)[0] is data
    assert optimize(data)[0] is data
    inner = [1]
    assert compute([delayed(1), inner])[0][1] is inner
    assert compute() == ()


def test_a_dataclass_that_cannot_be_made_again():
    box = Derived(1)
    box.twice = delayed(1)
    with pytest.raises(TypeError, match=r"dataclass Derived cannot be replaced .* arguments of their own"):
        compute(box)


def test_values_that_look_like_keys_are_kept_as_values():
    word = delayed(str.lower)("X", task_key="y")
    other = delayed(inc)(1, task_key="x")
    kept = persist(word, other, scheduler="sync")
    assert compute(*kept, scheduler="sync") == ("x", 2)
    assert compute(delayed(lambda *args: args)(*kept), scheduler="sync") == (("x", 2),)


def test_unpack_and_repack():
    x, y = delayed(1), delayed(2)
    collections, repack = unpack(([x, {"k": (y, x)}], x, "text"))
    assert [c.key for c in collections] == [x.key, y.key]
    assert repack(["first", "second"]) == (["first", {"k": ("second", "first")}], "first", "text")


def test_is_collection(mine):
    assert {name: is_collection(value) for name, value in mine.items()} == {name: name != "plain" for name in mine}
    for value in (None, "x", [delayed(1)], dask.array.Array, Collection, Lazy, xarray.Dataset(), np.arange(3)):
        assert not is_collection(value)
    assert not is_collection(xarray.DataArray(np.ones(3)))


def test_an_error_is_the_users_own():
    def fails(x):
        raise LookupError(f"no {x}")

    for scheduler in ("sync", "threads"):
        with pytest.raises(LookupError, match="no 1") as caught:
            compute([delayed(fails)(1)], scheduler=scheduler)
        assert [entry.name for entry in caught.traceback][-1] == "fails"
        assert len(caught.traceback) <= 3
    with pytest.raises(MissingKeyError, match="no key 'nowhere'"):
        compute(Lazy({"p": 1}, ["nowhere"]))


# -- which scheduler


@pytest.mark.parametrize(
    ("names", "where"),
    [
        (["sync", "synchronous", "single-threaded", "SYNC"], "here"),
        (["threads", "threading"], "thread"),
        (["processes", "multiprocessing"], "process"),
    ],
)
def test_names(names, where):

    for name in names:
        value = delayed(lambda: (os.getpid(), thread_name()))().compute(scheduler=name)
        here = (os.getpid(), thread_name())
        assert (value == here) == (where == "here")
        assert (value[0] == here[0]) == (where != "process")


def test_unknown_names():
    with pytest.raises(ValueError, match=r"^there is no scheduler 'thread'; do you mean 'threads'\? There are "):
        compute(delayed(1), scheduler="thread")
    with pytest.raises(ValueError, match=r"^there is no scheduler 'kubernetes'; there are multiprocessing, "):
        delayed(1).compute(scheduler="kubernetes")
    with pytest.raises(ValueError, match="do you mean 'processes'") as caught, config.set(scheduler="process"):
        compute(delayed(1))
    assert "the setting scheduler: config.set, a file, or the variable TASKLOOM_SCHEDULER" in caught.value.__notes__[0]


@pytest.mark.parametrize("wrong", [5, {"get": 1}, object(), ["threads"]])
def test_what_is_no_scheduler(wrong):
    with pytest.raises(TypeError, match=r"^scheduler= takes a name such as 'threads', a get function, a client or"):
        compute(delayed(1), scheduler=wrong)


def test_a_class_is_no_scheduler():
    for wrong in (Recorder, ThreadPoolExecutor):
        with pytest.raises(TypeError, match=f"not the class {wrong.__name__}: make one"):
            compute(delayed(1), scheduler=wrong)


def test_get_functions_and_clients():
    x = delayed(inc)(1)
    for get in (taskloom.get_sync, taskloom.threaded.get, taskloom.multiprocessing.get, dask.get, dask.threaded.get):
        assert x.compute(scheduler=get) == 2
    client = Recorder()
    assert compute(x, scheduler=client, priority=3) == (2,)
    assert client.asked == [{"priority": 3}]


def test_executors():
    with ThreadPoolExecutor(2, thread_name_prefix="mine") as pool:
        assert delayed(thread_name)().compute(scheduler=pool).startswith("mine")
        with config.set(scheduler=pool):
            assert compute(delayed(thread_name)())[0].startswith("mine")
    with ThreadPool(1) as pool:
        names = {delayed(thread_name)().compute(scheduler=pool)}
        with config.set(scheduler=pool):
            names.add(delayed(thread_name)().compute())
        assert len(names) == 1
    with ProcessPoolExecutor(1) as pool, pytest.raises(TypeError, match="do not share this one's memory"):
        delayed(1).compute(scheduler=pool)


def test_which_one_counts():
    argument, block, process, live, context = [Recorder() for _ in range(5)]
    x = delayed(inc)(1)

    def asked():
        counts = [len(client.asked) for client in (argument, block, process, context, live)]
        for client in (argument, block, process, context, live):
            client.asked.clear()
        return counts

    default_clients.append(live)
    token = default_client.set(context)
    config.set(scheduler=process)
    try:
        with config.set(scheduler=block):
            compute(x, scheduler=argument)
            assert asked() == [1, 0, 0, 0, 0]
            compute(x)
            assert asked() == [0, 1, 0, 0, 0]
        compute(x)
        assert asked() == [0, 0, 1, 0, 0]
        config.set(scheduler=None)
        compute(x)
        assert asked() == [0, 0, 0, 1, 0]
        default_client.set(None)
        compute(x)
        assert asked() == [0, 0, 0, 0, 1]
        default_clients.remove(live)
        compute(x)
        assert asked() == [0, 0, 0, 0, 0]
    finally:
        config.set(scheduler=None)
        default_client.reset(token)
        if live in default_clients:
            default_clients.remove(live)


def test_the_defaults():
    def where():
        return os.getpid(), threading.current_thread() is threading.main_thread()

    here = os.getpid()
    pid, main = delayed(where)().compute()
    assert (pid, main) == (here, False)
    # a bag of dask wants processes, and gets ours; together with an array, which wants threads, it runs on threads
    bag = dask.bag.from_sequence([1]).map(lambda x: where())
    array = dask.array.ones(1)
    assert compute(bag)[0][0][0] != here
    assert compute(bag, array)[0][0][0] == here
    assert get_scheduler(None, [array]) is get_scheduler("threads")


def test_a_client_persists_in_its_own_way():
    class Cluster(Recorder):
        def persist(self, collections, *, optimize_graph, **kwargs):
            return [(collection.key, optimize_graph, kwargs) for collection in collections]

    x = delayed(inc)(1)
    assert persist([x], scheduler=Cluster(), retries=2) == ([(x.key, True, {"retries": 2})],)
