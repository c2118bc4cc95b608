"""The optimizer: what goes through one task, and that an iterator never has two users."""

from __future__ import annotations

import weakref

import pytest

import taskloom
from taskloom import bag, delayed
from taskloom.bag.optimize import optimize, stream
from taskloom.bag.steps import Pipeline


def value(collection, **kwargs):
    return collection.compute(scheduler="sync", **kwargs)


def inc(x):
    return x + 1


def optimized(*collections):
    keys = [collection.__dask_keys__() for collection in collections]
    graph = {}
    for collection in collections:
        graph.update(collection.__dask_graph__())
    return optimize(graph, keys)


class Alive:
    """Counts how many items there are at a time."""

    now = most = 0

    def __init__(self):
        Alive.now += 1
        Alive.most = max(Alive.most, Alive.now)
        weakref.finalize(self, self.gone)

    @staticmethod
    def gone():
        Alive.now -= 1


@pytest.fixture
def counted():
    Alive.now = Alive.most = 0
    yield Alive
    assert Alive.now == 0


CHAINS = {
    "count": lambda b: b.map(lambda x: x).filter(lambda x: True).remove(lambda x: False).count(),
    "flatten": lambda b: b.map(lambda x: [x]).flatten().map(lambda x: (x,)).pluck(0).count(),
    "starmap": lambda b: b.map(lambda x: (x, 1)).starmap(lambda x, y: x).map(id).sum(),
    "zip": lambda b: bag.zip(b.map(lambda x: x), bag.range(1000, npartitions=2).map(inc)).count(),
    "map two": lambda b: bag.range(1000, npartitions=2).map(lambda n, x: n, b.map(lambda x: x)).sum(),
    "with an item": lambda b: b.map(lambda x, n: (x, n), bag.range(3, npartitions=1).sum()).map(len).max(),
    "through aliases": lambda b: bag.concat([b.map(lambda x: x), bag.range(3, npartitions=1)]).map(bool).all(),
    "sample": lambda b: b.random_sample(0.9).map(id).topk(3).count(),
    "foldby": lambda b: b.foldby(lambda x: 1, lambda n, x: n + 1, 0, lambda n, m: n + m),
    "var": lambda b: b.map(lambda x: 1.5).var(),
    "builtin on partitions": lambda b: b.map(lambda x: 1).map_partitions(sum),
}


@pytest.mark.parametrize("name", CHAINS)
def test_items_stream_through_a_partition(name, counted):
    b = bag.range(1000, npartitions=2).map(lambda n: Alive())
    lazy = CHAINS[name](b)
    value(lazy)
    assert 0 < counted.most <= 4
    # without the optimizer, each task makes a list
    value(lazy, optimize_graph=False)
    assert counted.most >= 500


def test_one_task_a_partition():
    b = bag.range(100, npartitions=10).map(inc).filter(None).map(str)
    assert len(optimized(b)) == 10
    assert len(optimized(b.map(int).sum())) == 10 + 2 + 1
    # all partitions share one pipeline
    assert len({id(task[0]) for task in optimized(b).values()}) == 1
    assert repr(next(iter(optimized(b).values()))[0]) == "<pipeline range > map(inc) > filter(NoneType) > map(str)>"


def test_what_is_used_twice_or_wanted_stays_a_list():
    seen = []
    shared = bag.range(4, npartitions=2).map(lambda x: seen.append(x) or x)
    a, b = shared.map(inc), shared.map(str)
    assert value(bag.zip(a, b)) == [(1, "0"), (2, "1"), (3, "2"), (4, "3")]
    assert sorted(seen) == [0, 1, 2, 3]
    seen.clear()
    assert taskloom.compute(a, shared, scheduler="sync") == ([1, 2, 3, 4], [0, 1, 2, 3])
    assert sorted(seen) == [0, 1, 2, 3]
    # twice in the same task
    seen.clear()
    assert value(bag.zip(shared, shared)) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert value(shared.product(shared).count()) == 16
    assert sorted(seen) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_no_value_of_a_task_is_an_iterator():
    b = bag.range(6, npartitions=2).map(inc)
    lazy = [
        b.map_partitions(lambda part: (x for x in part)),
        b.map_partitions(iter),
        bag.zip(b, b.filter(lambda x: True)),
        b.product(b),
        b.accumulate(lambda x, y: x + y),
        b.take(2, compute=False),
        b.join([1], inc),
        bag.from_delayed([delayed(iter)([1, 2]), delayed(range)(3)]),
        b.reduction(iter, lambda parts: (x for part in parts for x in part), out_type=bag.Bag),
        b.topk(2),
        b.repartition(5),
        b.random_sample(0.5, 1),
    ]
    for optimize_graph in (True, False):
        for collection in lazy:
            values = collection.persist(scheduler="sync", optimize_graph=optimize_graph)
            for key in values.__dask_keys__():
                assert type(taskloom.get_sync(values.__dask_graph__(), key)) is list
            assert list(value(values)) == list(value(values))


def test_an_error_says_what_items_went_through():
    b = bag.from_sequence(["1", "x"], npartitions=1).map(int).filter(None)
    with pytest.raises(ValueError, match="invalid literal") as caught:
        value(b.sum())
    assert any("map(int) > filter(NoneType) > sum" in note for note in caught.value.__notes__)


def test_errors_show_the_users_lines_only():
    def broken(x):
        return 1 / x

    with pytest.raises(ZeroDivisionError) as caught:
        value(bag.range(3, npartitions=1).map(broken).filter(None).sum())
    names = [entry.name for entry in caught.traceback]
    assert names[-1] == "broken"
    assert not any(
        "taskloom/bag" in str(entry.path) and "tests" not in str(entry.path) for entry in caught.traceback[:-1]
    )


def test_graphs_of_others_are_left_as_they_are():
    graph = {"x": 1, "y": (inc, "x"), "z": (inc, "y"), "w": [1, "z"]}
    assert stream(graph, ["w"]) == graph


def test_delayed_values_that_feed_one_partition_are_fused_too():
    read = delayed(lambda n: list(range(n)))
    b = bag.from_delayed([read(2), read(3)]).map(inc)
    assert len(optimized(b)) == 2
    assert value(b) == [1, 2, 1, 2, 3]


def test_pipelines_nest_no_deeper_than_two():
    c = bag.range(3, npartitions=1)
    for n in range(50):
        c = bag.zip(bag.range(3, npartitions=1).map(inc), c).pluck(1) if n % 2 else bag.zip(c, c.map(inc)).pluck(0)

    def depth(task):
        return 1 + max(
            [depth(arg) for arg in task[1:] if type(arg) is tuple and arg and type(arg[0]) is Pipeline], default=0
        )

    graph = optimized(c)
    assert max(depth(task) for task in graph.values() if type(task) is tuple) <= 2
    assert value(c) == [0, 1, 2]
