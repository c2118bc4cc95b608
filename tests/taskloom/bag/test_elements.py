"""Making bags, and operations item by item. Everything runs under the sync scheduler; processes have a file of their own."""

from __future__ import annotations

import operator
import pickle
import random
import subprocess
import sys
from functools import partial
from itertools import accumulate, pairwise

import cloudpickle
import dask
import dask.bag
import pytest

import taskloom
from taskloom import bag, delayed
from taskloom.errors import MissingKeyError

compute = partial(taskloom.compute, scheduler="sync")


def value(collection):
    return collection.compute(scheduler="sync")


def parts(b):
    return list(taskloom.compute(*b.to_delayed(), scheduler="sync"))


def inc(x):
    return x + 1


def is_odd(x):
    return x % 2


def add(a, b):
    return a + b


def make(items, cuts):
    """A bag with certain partitions."""
    return bag.Bag(
        {("made", i): (list, [*items[a:b]]) for i, (a, b) in enumerate(pairwise(cuts))}, "made", len(cuts) - 1
    )


# --- making


def test_from_sequence_keeps_items_and_order():
    assert value(bag.from_sequence(range(1000))) == list(range(1000))
    assert bag.from_sequence(range(1000)).npartitions == 100
    assert bag.from_sequence(range(50)).npartitions == 50
    assert parts(bag.from_sequence(range(10), npartitions=3)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    assert parts(bag.from_sequence(range(5), partition_size=2)) == [[0, 1], [2, 3], [4]]
    assert parts(bag.from_sequence(iter("ab"), npartitions=4)) == [[], ["a"], [], ["b"]]
    assert parts(bag.from_sequence([])) == [[]]


def test_items_that_look_like_keys_and_tasks_stay_what_they_are():
    items = [(abs, -1), "made", ("from-sequence", 0), [1, [2]], {"x": (abs, -2)}, None, abs]
    b = bag.from_sequence(items, npartitions=2)
    assert value(b) == items
    assert value(b.map(lambda x: x)) == items
    assert value(bag.Bag({**b.dask, "made": 5}, b.name, 2)) == items


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("file.txt", TypeError, "read_text"),
        (b"abc", TypeError, "bytes"),
        (delayed([1]), TypeError, "from_delayed"),
    ],
)
def test_from_sequence_refuses_what_is_hardly_meant(what, kind, message):
    with pytest.raises(kind, match=message):
        bag.from_sequence(what)


def test_from_sequence_refuses_numbers_that_make_no_sense():
    with pytest.raises(ValueError, match="not both"):
        bag.from_sequence([1], partition_size=1, npartitions=1)
    for wrong in ({"npartitions": 0}, {"partition_size": -1}, {"npartitions": 1.5}, {"npartitions": True}):
        with pytest.raises(ValueError, match="whole number"):
            bag.from_sequence([1], **wrong)
    with pytest.raises(ValueError, match="npartitions"):
        bag.range(3, npartitions=0)


def test_the_same_items_in_other_partitions_have_another_name():
    """Else their tasks would be taken for each other's in one graph, and items be lost."""
    a = bag.from_sequence(range(10), partition_size=3)
    b = bag.from_sequence(range(10), npartitions=4)
    assert a.npartitions == b.npartitions
    assert compute(a, b) == (list(range(10)), list(range(10)))
    assert compute(a.count(), b.count(), bag.concat([a, b]).count()) == (10, 10, 20)


def test_range_and_concat():
    assert parts(bag.range(5, npartitions=2)) == [[0, 1], [2, 3, 4]]
    both = bag.concat([bag.range(2, npartitions=2).map(inc), bag.from_sequence([])])
    assert both.npartitions == 3
    assert value(both) == [1, 2]
    with pytest.raises(TypeError, match="takes bags, not list"):
        bag.concat([[1]])
    with pytest.raises(TypeError, match="this is one"):
        bag.concat(bag.range(2, npartitions=2))
    with pytest.raises(ValueError, match="at least one"):
        bag.concat([])


def test_from_delayed():
    make = delayed(lambda n: range(n))
    b = bag.from_delayed([make(2), make(0), make(3)])
    assert value(b) == [0, 1, 0, 1, 2]
    assert value(b.map(inc).sum()) == 9
    assert value(bag.from_delayed(make(2))) == [0, 1]
    with pytest.raises(TypeError, match="takes Delayed objects, not int"):
        bag.from_delayed([1])
    with pytest.raises(TypeError, match="int: 5"):
        value(bag.from_delayed(delayed(5)))
    with pytest.raises(TypeError, match="'text'"):
        value(bag.from_delayed(delayed("text")).map(inc))
    with pytest.raises(ValueError, match="at least one"):
        bag.from_delayed([])


def test_a_bag_of_a_graph():
    b = bag.Bag({("x", 0): [1, 2], ("x", 1): (list, "abc")}, "x", 2)
    assert value(b) == [1, 2, "a", "b", "c"]
    with pytest.raises(MissingKeyError, match="'x', 2"):
        bag.Bag({("x", 0): [1], ("x", 1): [2]}, "x", 3)


# --- item by item


def test_the_simple_ones():
    b = bag.range(10, npartitions=3)
    assert value(b.map(inc)) == [inc(x) for x in range(10)]
    assert value(b.filter(is_odd)) == [1, 3, 5, 7, 9]
    assert value(b.remove(is_odd)) == [0, 2, 4, 6, 8]
    assert value(b.filter(None)) == list(range(1, 10))
    assert value(b.map(lambda x: [x] * (x % 3)).flatten()) == [x for x in range(10) for _ in range(x % 3)]
    assert value(b.map(lambda x: (x, 2)).starmap(pow)) == [x**2 for x in range(10)]
    assert value(b.map(lambda x: (x,)).starmap(round, ndigits=b.min())) == list(range(10))
    assert value(b.map_partitions(lambda part: [len(part)])) == [3, 3, 4]
    assert value(b.map_partitions(len)) == [3, 3, 4]


def test_functions_are_checked_at_once():
    b = bag.range(2, npartitions=1)
    for method in (b.map, b.filter, b.remove, b.starmap, b.map_partitions, b.fold, b.accumulate):
        with pytest.raises(TypeError, match="pluck"):
            method("name")


def test_pluck():
    b = bag.from_sequence([{"a": 1, "b": 2}, {"a": 3}], npartitions=1)
    assert value(b.pluck("a")) == [1, 3]
    assert value(b.pluck("b", None)) == [2, None]
    assert value(b.pluck(["a", "b"], default=0)) == [(1, 2), (3, 0)]
    assert value(b.pluck(["a"])) == [(1,), (3,)]
    assert value(b.pluck([])) == [(), ()]
    assert value(bag.from_sequence([(1, 2), (3, 4)]).pluck([1, 0])) == [(2, 1), (4, 3)]
    assert value(bag.from_sequence([(1, 2), ()]).pluck(0, "x")) == [1, "x"]
    with pytest.raises(KeyError):
        value(b.pluck("b"))


def test_map_over_several_bags_and_other_values():
    a, b = bag.range(5, npartitions=2), bag.range(5, npartitions=2).map(lambda x: 10 * x)
    assert value(a.map(add, b)) == [11 * x for x in range(5)]
    assert value(bag.map(add, a, b.filter(lambda x: True))) == [11 * x for x in range(5)]
    assert value(a.map(add, 100)) == [100 + x for x in range(5)]
    assert value(a.map(add, b=a.sum())) == [10 + x for x in range(5)]
    assert value(a.map(add, b=b)) == [11 * x for x in range(5)]
    assert value(bag.map(add, delayed(3), a)) == [3 + x for x in range(5)]
    assert value(bag.map(lambda *xs, **kw: (xs, kw), 1, a, b, a.max(), k=b, c=delayed(7))) == [
        ((1, x, 10 * x, 4), {"k": 10 * x, "c": 7}) for x in range(5)
    ]
    assert value(bag.map(lambda x, y: (x, y), x=a, y=b)) == [(x, 10 * x) for x in range(5)]
    # what the values look like does not matter
    assert value(a.map(lambda x, y: y, (abs, -1)))[0] == (abs, -1)
    assert value(a.map(lambda x, y: y, a.name))[0] == a.name
    assert value(a.map(lambda x, y: y, y=(a.name, 0)))[0] == (a.name, 0)
    # collections inside of data
    assert value(a.map(lambda x, y: x + y["total"][0], {"total": [a.sum()]})) == [10 + x for x in range(5)]
    # the same bag twice
    assert value(a.map(add, a)) == [2 * x for x in range(5)]
    c = a.map(inc)
    assert value(c.map(add, c)) == [2 * x + 2 for x in range(5)]


def test_map_partitions_takes_values_and_bags():
    a, b = bag.range(4, npartitions=2), bag.range(4, npartitions=2).map(inc)
    assert value(a.map_partitions(lambda x, y, k: [(x, y, k)], b, k=a.count())) == [
        ([0, 1], [1, 2], 4),
        ([2, 3], [3, 4], 4),
    ]
    assert value(bag.map_partitions(lambda n, *, part: [n, *part], delayed(9), part=a)) == [9, 0, 1, 9, 2, 3]
    # the user's function gets lists, whatever is before it
    assert value(a.map(inc).map_partitions(lambda part: [type(part), len(part)])) == [list, 2, list, 2]
    # and may return any iterable
    assert value(a.map_partitions(lambda part: (x for x in part)).map(inc).map_partitions(len)) == [2, 2]
    with pytest.raises(TypeError, match="at least one bag"):
        bag.map_partitions(len, [1])


def test_different_partitions_are_refused():
    a, b = bag.range(4, npartitions=2), bag.range(4, npartitions=3)
    for operation in (lambda: a.map(add, b), lambda: bag.zip(a, b), lambda: a.map_partitions(add, b)):
        with pytest.raises(ValueError, match=r"same number of partitions.*has 2.*has 3"):
            operation()
    for lazy in (a.map(add, a.filter(is_odd)), bag.zip(a, a.filter(is_odd)), bag.zip(a.filter(is_odd), a)):
        with pytest.raises(ValueError, match="different numbers of items"):
            value(lazy)


def test_an_error_of_the_users_in_zipped_partitions_stays_his():
    a = bag.range(4, npartitions=2)
    with pytest.raises(ValueError, match="invalid literal"):
        value(bag.zip(a, a.map(lambda x: int("x"))))


def test_a_stop_iteration_loses_no_items():
    def stop(x):
        if x == 2:
            raise StopIteration
        return True

    b = bag.range(10, npartitions=1)
    zipped = bag.zip(b, b)
    for lazy in (
        b.map(stop),
        b.filter(stop),
        b.remove(stop),
        b.map(lambda x, y: stop(x), 1),
        b.map(lambda x, y: stop(x), b),
        b.map(lambda x, y: stop(x), y=b.sum()),
        zipped.starmap(lambda x, y: stop(x)),
        b.map(lambda x: (x,)).starmap(lambda x, y: stop(x), y=b.sum()),
        b.accumulate(lambda x, y: stop(y)),
        b.accumulate(lambda x, y: stop(y), 0),
    ):
        with pytest.raises(RuntimeError, match="raised StopIteration"):
            value(lazy)
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        value(bag.range(1, npartitions=1).map(inc).map(inc).map(stop))
    assert b.map(stop).filter(None).take(2, compute=False).compute(scheduler="sync") == [True, True]


def test_str():
    b = bag.from_sequence(["Ada Lovelace", "Alan Turing", ""], npartitions=2)
    assert value(b.str.upper()) == ["ADA LOVELACE", "ALAN TURING", ""]
    assert value(b.str.split()) == [["Ada", "Lovelace"], ["Alan", "Turing"], []]
    assert value(b.str.replace("a", "-", 1)) == ["Ad- Lovelace", "Al-n Turing", ""]
    assert value(b.str.match("*g")) == ["Alan Turing"]
    assert "upper" in dir(b.str)
    with pytest.raises(AttributeError, match="no method 'uper'"):
        b.str.uper()
    assert b.str.split().name == b.str.split().name != b.str.split("a").name


def test_zip_unzip_and_product():
    a, b = bag.range(3, npartitions=2), bag.from_sequence(["x", "y", "z"], npartitions=2)
    z = bag.zip(a.map(inc), b.str.upper())
    assert value(z) == [(1, "X"), (2, "Y"), (3, "Z")]
    first, second = z.unzip(2)
    assert value(first) == [1, 2, 3]
    assert value(second) == ["X", "Y", "Z"]
    p = a.product(b)
    assert p.npartitions == 4
    assert sorted(value(p)) == [(x, y) for x in range(3) for y in "xyz"]
    assert value(a.map(inc).product(a.map(inc)).count()) == 9
    with pytest.raises(TypeError, match="takes a bag, not list"):
        a.product([1])


@pytest.mark.parametrize("cuts", [[0, 10], [0, 0, 4, 4, 10], [0, 0], [0, 0, 0], [0, 10, 10]])
def test_accumulate(cuts):
    items = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3][: cuts[-1]]
    b = make(items, cuts)
    assert value(b.accumulate(operator.mul)) == list(accumulate(items, operator.mul))
    assert value(b.accumulate(operator.mul, 2)) == list(accumulate(items, operator.mul, initial=2))
    assert value(b.accumulate(operator.mul, b.count())) == list(accumulate(items, operator.mul, initial=len(items)))


def test_random_sample_is_reproducible_and_fair():
    b = bag.range(10_000, npartitions=10)
    one = value(b.random_sample(0.3, random_state=42))
    assert one == value(b.random_sample(0.3, random_state=42))
    assert one == sorted(set(one))
    assert 2500 < len(one) < 3500
    assert one != value(b.random_sample(0.3, random_state=43))
    assert value(b.random_sample(0)) == []
    assert value(b.random_sample(1)) == list(range(10_000))
    fresh = b.random_sample(0.5)
    assert value(fresh) == value(fresh)
    assert fresh.name != b.random_sample(0.5).name
    assert value(b.random_sample(0.3, random.Random(5))) == value(b.random_sample(0.3, random.Random(5)))
    assert value(b.random_sample(0.3, random.Random(5).getstate())) == value(
        b.random_sample(0.3, random.Random(5).getstate())
    )
    # not the same places in each partition
    first, second = parts(bag.from_sequence([*range(1000)] * 2, npartitions=2).random_sample(0.5, 1))
    assert first != second
    for wrong in (-0.1, 1.1, "x", True):
        with pytest.raises(ValueError, match="between 0 and 1"):
            b.random_sample(wrong)
    with pytest.raises(TypeError, match="random_state"):
        b.random_sample(0.5, random_state=1.5)
    with pytest.raises(ValueError, match="no state"):
        b.random_sample(0.5, random_state=(1, 2, 3))


def test_the_sample_is_the_same_in_another_process():
    code = (
        "from taskloom import bag; print(bag.range(200, npartitions=4).random_sample(.1, 7).compute(scheduler='sync'))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(value(bag.range(200, npartitions=4).random_sample(0.1, 7)))


def test_take():
    with taskloom.config.set(scheduler="sync"):
        b = bag.range(10, npartitions=3)
        assert b.take(2) == (0, 1)
        assert b.take(5, npartitions=2) == (0, 1, 2, 3, 4)
        assert b.take(10, npartitions=-1) == tuple(range(10))
        assert b.take(0) == ()
        with pytest.warns(UserWarning, match=r"take\(4\) found only 3 items in the first partition") as caught:
            assert b.take(4) == (0, 1, 2)
        assert caught[0].filename == __file__
        assert b.take(4, warn=False) == (0, 1, 2)
        assert b.take(11, npartitions=-1) == tuple(range(10))  # all there are: nothing to warn of
        assert bag.from_sequence([], npartitions=1).take(1) == ()
        assert value(bag.from_sequence([5], npartitions=1).take(2, compute=False)) == [5]
        some = b.take(2, compute=False)
        assert some.npartitions == 1
        assert value(some.map(inc)) == [1, 2]
        with pytest.warns(UserWarning, match="found only 3"):
            assert value(b.take(4, compute=False)) == [0, 1, 2]
        for wrong in (4, 0, -2):
            with pytest.raises(ValueError, match="from 1 to 3 partitions"):
                b.take(1, npartitions=wrong)
        with pytest.raises(ValueError, match="whole number"):
            b.take(-1)


def test_take_goes_no_further_than_it_must():
    seen = []
    b = bag.range(1000, npartitions=2).map(lambda x: seen.append(x) or x)
    with taskloom.config.set(scheduler="sync"):
        assert b.filter(is_odd).take(2) == (1, 3)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 11, 25, 100])
def test_repartition_by_number(n):
    for b in (bag.range(20, npartitions=10), make(list(range(20)), [0, 0, 15, 15, 20])):
        again = b.repartition(n)
        assert again.npartitions == n
        assert value(again) == list(range(20))
        assert value(again.map(inc).sum()) == 210


def test_repartition_by_size():
    with taskloom.config.set(scheduler="sync"):
        b = make(["x" * 1000] * 100 + ["y"] * 50, [0, 100, *range(101, 151)])
        again = b.repartition(partition_size=20_000)
        assert value(again) == value(b)
        assert again.npartitions == 6
        assert len(parts(again)[0]) < 21
        assert b.repartition(partition_size="1 GB").npartitions == 1
        for wrong in ("x", 0, -5, "5 apples", None, True):
            with pytest.raises(ValueError):
                b.repartition(partition_size=wrong)
        with pytest.raises(ValueError, match="one of them"):
            b.repartition(2, partition_size=100)


# --- as a collection


def test_protocol():
    b = bag.range(4, npartitions=2).map(inc)
    assert repr(b) == "taskloom.bag<inc, npartitions=2>"
    assert b.name.startswith("inc-")
    assert b.__dask_keys__() == [(b.name, 0), (b.name, 1)]
    assert taskloom.is_collection(b)
    assert list(taskloom.compute({"b": [b]}, scheduler="sync")) == [{"b": [[1, 2, 3, 4]]}]
    with taskloom.config.set(scheduler="sync"):
        assert list(b) == [1, 2, 3, 4]
    with pytest.raises(TypeError, match=r"count\(\)"):
        len(b)
    assert b
    assert value(delayed(sum)(b)) == 10
    assert value(delayed(abs)(b.sum())) == 10
    assert "map" in b.visualize(filename=None).source


def test_names_follow_from_what_is_done():
    def build():
        b = bag.from_sequence([1, 2], npartitions=1)
        return [
            b,
            b.map(inc),
            b.map(add, 1),
            b.map(add, 2),
            b.map(add, b=2),
            b.filter(is_odd),
            b.remove(is_odd),
            b.pluck(0),
            b.pluck(0, 1),
            b.pluck([0]),
            b.flatten(),
            b.map_partitions(inc),
            b.starmap(inc),
            b.accumulate(add),
            b.accumulate(add, 0),
            b.repartition(2),
            bag.zip(b, b),
            bag.concat([b, b]),
            b.product(b),
            b.fold(add),
            b.fold(add, initial=0),
            b.fold(add, initial=0, out_type=bag.Bag),
            b.var(),
            b.var(ddof=1),
            b.std(),
            b.mean(),
            b.sum(),
            b.topk(1),
            b.topk(2),
            b.topk(2, key=abs),
            b.distinct(),
            b.distinct(abs),
            b.frequencies(),
            b.frequencies(sort=True),
            b.groupby(is_odd),
            b.groupby(is_odd, npartitions=2),
            b.groupby(is_odd, method="tasks"),
            b.foldby(is_odd, add),
            b.foldby(is_odd, add, 0),
            b.foldby(is_odd, add, 0, add, 0),
            b.join([1], is_odd),
            b.join([2], is_odd),
            b.sum() + 1,
            1 + b.sum(),
        ]

    names = [taskloom.tokenize(x) for x in build()]
    assert names == [taskloom.tokenize(x) for x in build()]
    assert len(set(names)) == len(names)


def test_pickling_and_annotations():
    with taskloom.annotate(priority=3):
        b = bag.range(4, npartitions=2)
    c = b.map(inc)
    notes = taskloom._collections.annotations_of(c)
    assert notes == {(b.name, 0): {"priority": 3}, (b.name, 1): {"priority": 3}}
    for copy in (pickle.loads(pickle.dumps(c)), cloudpickle.loads(cloudpickle.dumps(c))):
        assert copy.name == c.name
        assert value(copy) == [1, 2, 3, 4]
        assert value(copy.sum()) == 10
        assert taskloom._collections.annotations_of(copy.sum()) == notes
    total = c.sum()
    again = pickle.loads(pickle.dumps(total))
    assert again.key == total.key
    assert value(again + 1) == 11
    assert taskloom._collections.annotations_of(again) == notes


def test_persist():
    seen = []
    b = bag.range(4, npartitions=2).map(lambda x: seen.append(x) or x)
    kept = b.persist(scheduler="sync")
    assert kept.name == b.name
    assert value(kept.map(inc)) == [1, 2, 3, 4]
    total = kept.sum().persist(scheduler="sync")
    assert value(total) == 6
    assert len(seen) == 4


def test_item_operators():
    b = bag.range(4, npartitions=2)
    total, n = b.sum(), b.count()
    assert value(total / n) == 1.5
    assert value(10 - total) == 4
    assert value(-total) == -6
    assert value(2**n) == 16
    assert value(divmod(total, 4)) == (1, 2)
    assert value((total > 5) & (n < 5)) is True
    with taskloom.config.set(scheduler="sync"):
        assert int(total) == 6
        assert float(total) == 6.0
        assert complex(total) == 6 + 0j
        assert total == 6
        assert bool(b.any())
    assert value(b.topk(2).fold(add, out_type=bag.Item)) == 5
    assert value(total.apply(str)) == "6"
    assert value(total.to_delayed() + 1) == 7
    assert value(bag.Item.from_delayed(delayed(3)) + total) == 9
    assert value(bag.Item({"x": 1}, "x")) == 1
    with pytest.raises(MissingKeyError):
        bag.Item({"x": 1}, "y")
    with pytest.raises(TypeError, match="not int"):
        bag.Item.from_delayed(3)
    with pytest.raises(TypeError, match="compute"):
        iter(total)


def test_what_is_shared_is_done_once():
    seen = []
    b = bag.range(6, npartitions=2).map(lambda x: seen.append(x) or x)
    assert compute(b.sum(), b.map(inc), b.distinct().count()) == (15, [1, 2, 3, 4, 5, 6], 6)
    assert sorted(seen) == list(range(6))


def test_without_optimization_and_in_dask_it_is_the_same():
    b = bag.range(10, npartitions=3).map(inc).filter(is_odd).map(lambda x: [x, x]).flatten()
    expected = [x for x in range(1, 11) if x % 2 for _ in range(2)]
    assert b.compute(scheduler="sync", optimize_graph=False) == expected
    assert b.sum().compute(scheduler="sync", optimize_graph=False) == sum(expected)
    assert dask.compute(b, scheduler="sync") == (expected,)
    assert dask.compute(b.sum(), scheduler="sync") == (sum(expected),)
    theirs = dask.bag.range(4, npartitions=2).map(inc)
    assert value(bag.from_delayed([delayed(theirs)])) == [1, 2, 3, 4]
    assert compute(theirs, b.count()) == ([1, 2, 3, 4], len(expected))


def test_deep_chains_do_not_recurse():
    b = bag.range(2, npartitions=1)
    for _ in range(2000):
        b = b.map_partitions(list)
    assert value(b) == [0, 1]
    e = bag.range(2, npartitions=1)
    for _ in range(50_000):
        e = e.map(abs)
    assert value(e) == [0, 1]
    assert value(e.sum()) == 1
    c = d = bag.range(2, npartitions=1)
    for _ in range(300):
        c = bag.zip(d, c).pluck(1)
    assert value(c) == [0, 1]
    assert value(pickle.loads(pickle.dumps(b))) == [0, 1]


def test_what_is_nothing_to_make_a_bag_of_is_refused():
    with pytest.raises(
        TypeError, match=r"a list or another iterable of items; this is int: 3\. For a bag with it as its one"
    ):
        bag.from_sequence(3)
    with pytest.raises(TypeError, match=r"this is str: 'ab'\. For its characters"):
        bag.from_sequence("ab")
    for wrong in (3, None, [3], b"a"):
        with pytest.raises(TypeError, match=r"a path is a string or a Path, not (int: 3|NoneType: None|bytes: b'a')"):
            bag.read_text(wrong)
