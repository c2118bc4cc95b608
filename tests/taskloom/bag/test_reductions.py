"""Reductions and groups, against plain Python and against dask.bag."""

from __future__ import annotations

import glob
import math
import operator
import statistics
import tempfile
from collections import Counter, namedtuple
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import reduce
from itertools import chain
from pathlib import Path
from uuid import UUID

import dask.bag
import hypothesis.strategies as st
import numpy
import pytest
from hypothesis import given, settings

import taskloom
from taskloom import bag, delayed
from taskloom.bag.shuffle import place_of


def value(collection, **kwargs):
    return collection.compute(scheduler="sync", **kwargs)


def make(partitions, module=bag):
    """A bag with certain partitions."""
    graph = {("made", i): (list, [*part]) for i, part in enumerate(partitions)}
    return module.Bag(graph, "made", len(partitions))


def add(a, b):
    return a + b


def mod3(x):
    return x % 3


def is_even(x):
    return x % 2 == 0


PARTITIONS = [
    [[3, 1, 4, 1, 5, 9, 2, 6]],
    [[3, 1], [], [4, 1, 5], [9], [], [2, 6]],
    [[], [3, 1, 4, 1, 5, 9, 2, 6], []],
    [[x] for x in range(100, 0, -1)],
]
EMPTY = [[[]], [[], []], [[]] * 30]


@pytest.mark.parametrize("partitions", PARTITIONS)
@pytest.mark.parametrize("split_every", [None, 2, 3, False])
def test_numbers(partitions, split_every):
    items = [x for part in partitions for x in part]
    b = make(partitions)
    assert value(b.sum(split_every)) == sum(items)
    assert value(b.count(split_every)) == len(items)
    assert value(b.max(split_every)) == max(items)
    assert value(b.min(split_every)) == min(items)
    assert value(b.any(split_every)) is True
    assert value(b.all(split_every)) is True
    assert value(b.map(lambda x: x - 1).all(split_every)) is False
    assert value(b.map(lambda x: 0).any(split_every)) is False
    assert value(b.mean()) == statistics.fmean(items)
    assert value(b.var()) == pytest.approx(statistics.pvariance(items))
    assert value(b.var(ddof=1)) == pytest.approx(statistics.variance(items))
    assert value(b.std(1)) == pytest.approx(statistics.stdev(items))
    assert value(b.fold(add, split_every=split_every)) == sum(items)
    assert value(b.fold(lambda n, x: n + 1, add, 0, split_every=split_every)) == len(items)
    assert value(b.fold(lambda n, x: [*n, x], add, [], split_every=split_every, out_type=bag.Bag)) == items
    assert value(b.reduction(len, sum, split_every=split_every)) == len(items)
    assert value(b.reduction(sorted, lambda parts: sorted(chain(*parts)), split_every, bag.Bag)) == sorted(items)
    assert value(b.frequencies(split_every)) == list(Counter(items).items())
    assert value(b.frequencies(split_every, sort=True)) == Counter(items).most_common()
    assert value(b.topk(3, split_every=split_every)) == sorted(items, reverse=True)[:3]
    assert value(b.topk(3, key=operator.neg, split_every=split_every)) == sorted(items)[:3]
    assert value(b.distinct()) == list(dict.fromkeys(items))
    assert value(b.distinct(mod3)) == [
        {mod3(x): x for x in reversed(items)}[k] for k in dict.fromkeys(map(mod3, items))
    ]
    assert dict(value(b.foldby(mod3, add, split_every=split_every))) == {
        k: sum(x for x in items if mod3(x) == k) for k in map(mod3, items)
    }
    # the same without streams
    assert value(b.map(add, 1).var(), optimize_graph=False) == pytest.approx(statistics.pvariance(items))


@pytest.mark.parametrize("partitions", EMPTY)
def test_no_items_at_all(partitions):
    b = make(partitions)
    assert value(b) == []
    for c in (b, b.map(add, 1)):
        assert value(c.sum()) == 0
        assert value(c.count()) == 0
        assert value(c.any()) is False
        assert value(c.all()) is True
        for lazy in (c.max(), c.min(), c.mean(), c.var(), c.std()):
            with pytest.raises(ValueError, match="empty bag"):
                value(lazy)
        with pytest.raises(ValueError, match="initial="):
            value(c.fold(add))
        assert value(c.fold(add, initial=5)) == 5
        assert value(c.fold(add, initial=[], out_type=bag.Bag)) == []
        assert value(c.reduction(len, sum)) == 0
        with pytest.raises(ValueError, match=r"max\(\)"):
            value(c.reduction(max, max))
        for short in (
            c.frequencies(),
            c.topk(2),
            c.distinct(),
            c.foldby(mod3, add),
            c.groupby(mod3),
            c.join([1], mod3),
        ):
            assert value(short) == []
        assert value(c.groupby(mod3, method="tasks")) == []
        assert value(c.product(b)) == []
        assert value(c.take(2, -1, compute=False, warn=False)) == []


def test_a_reduction_leaves_empty_partitions_out():
    called = []

    def per(part):
        called.append(part)
        return max(part)

    assert value(make([[], [1], [], [3, 2]]).reduction(per, max)) == 3
    assert called == [[1], [3, 2]]


def test_what_a_fold_begins_with_may_be_changed():
    def put(seen, x):
        seen.add(x)
        return seen

    for scheduler in ("sync", "threads"):
        initial = set()
        b = make([[1, 2], [2], [3]])
        assert b.fold(put, set.union, initial).compute(scheduler=scheduler) == {1, 2, 3}
        groups = dict(b.foldby(mod3, put, initial, set.union).compute(scheduler=scheduler))
        assert groups == {1: {1}, 2: {2}, 0: {3}}
        assert initial == set()


def test_options_are_checked():
    b = bag.range(3, npartitions=2)
    for wrong in (1, 0, -1, True, 2.5):
        with pytest.raises(ValueError, match="split_every"):
            b.sum(split_every=wrong)
    with pytest.raises(ValueError, match="whole number"):
        b.topk(-1)
    with pytest.raises(TypeError, match="out_type"):
        b.fold(add, out_type=list)
    with pytest.raises(ValueError, match="more than ddof"):
        value(b.var(ddof=3))


def test_unhashable_items_are_explained():
    b = bag.from_sequence([[1], [2]])
    for lazy in (b.frequencies(), b.distinct(), b.foldby(list, add), b.groupby(list), b.join([[1]], list)):
        with pytest.raises(TypeError, match="unhashable") as caught:
            value(lazy)
        assert any("hashed" in note for note in caught.value.__notes__)


def test_keys_by_name():
    people = bag.from_sequence([{"n": "Ada", "a": 36}, {"n": "Alan", "a": 41}, {"n": "Bob", "a": 36}], npartitions=2)
    assert [p["n"] for p in value(people.topk(1, key="a"))] == ["Alan"]
    assert [p["n"] for p in value(people.distinct("a"))] == ["Ada", "Alan"]
    assert value(people.foldby("a", lambda n, p: n + 1, 0, add)) == [(36, 2), (41, 1)]
    assert {k: len(g) for k, g in value(people.groupby("a"))} == {36: 2, 41: 1}
    assert [(a, p["n"]) for a, p in value(people.join([(41, "x")], "a", 0))] == [((41, "x"), "Alan")]


def test_equal_items_keep_their_order():
    items = [(x % 3, x) for x in range(40)]
    b = bag.from_sequence(items, npartitions=20)
    assert value(b.topk(20, key=0)) == sorted(items, key=lambda p: p[0], reverse=True)[:20]
    assert value(b.distinct(0)) == items[:3]


# --- numbers that are not easy


def test_variance_of_numbers_far_from_zero():
    items = [1e9 + x / 10 for x in range(1000)]
    exact = float(statistics.pvariance([Fraction(x) for x in items]))
    for n in (1, 7, 100):
        assert value(bag.from_sequence(items, npartitions=n).var()) == pytest.approx(exact, rel=1e-12)
    assert value(bag.from_sequence([5.1] * 100, npartitions=7).var()) == 0


@given(
    st.lists(st.lists(st.integers(-(10**6), 10**6), max_size=6), min_size=1, max_size=12), st.integers(-(10**9), 10**9)
)
@settings(max_examples=40, deadline=None)
def test_variance_is_near_the_exact_one(partitions, shift):
    items = [x + shift for part in partitions for x in part]
    b = make([[x + shift for x in part] for part in partitions])
    if items:
        exact = float(statistics.pvariance([Fraction(x) for x in items]))
        assert value(b.var()) == pytest.approx(exact, rel=1e-9, abs=1e-9)
        assert value(b.mean()) == sum(items) / len(items)


def test_other_kinds_of_numbers():
    fractions = [Fraction(1, n) for n in range(1, 10)]
    assert value(bag.from_sequence(fractions, npartitions=3).mean()) == statistics.mean(fractions)
    assert value(bag.from_sequence(fractions, npartitions=1).var()) == pytest.approx(
        float(statistics.pvariance(fractions))
    )
    decimals = [Decimal(n) / 10 for n in range(10)]
    assert value(bag.from_sequence(decimals, npartitions=3).mean()) == statistics.mean(decimals)
    assert value(bag.from_sequence(decimals, npartitions=3).var()) == pytest.approx(statistics.pvariance(decimals))
    arrays = [numpy.array([n, 2.0 * n]) for n in range(6)]
    assert numpy.allclose(value(bag.from_sequence(arrays, npartitions=4).var()), numpy.var(arrays, axis=0))
    big = [10**200, -(10**200), 3]
    assert value(bag.from_sequence(big, npartitions=2).mean()) == 1
    assert math.isnan(value(bag.from_sequence([math.inf, -math.inf], npartitions=1).var()))
    assert math.isnan(value(bag.from_sequence([1.0, math.nan], npartitions=2).mean()))
    assert value(bag.from_sequence([True, False]).mean()) == 0.5


# --- groups


@pytest.mark.parametrize("method", ["disk", "tasks", None])
@pytest.mark.parametrize(
    ("n_in", "n_out", "branch"), [(1, 1, 2), (5, None, None), (3, 10, 2), (10, 3, 2), (40, 40, None), (9, 9, 3)]
)
def test_groupby(method, n_in, n_out, branch):
    items = list(range(200))
    b = bag.from_sequence(items, npartitions=n_in)
    groups = b.groupby(lambda x: f"key {x % 17}", method=method, npartitions=n_out, max_branch=branch)
    assert groups.npartitions == (n_out or n_in)
    found = value(groups)
    assert len(found) == 17
    assert dict(found) == {f"key {k}": [x for x in items if x % 17 == k] for k in range(17)}
    assert value(b.groupby(lambda x: None, method=method)) == [(None, items)]


def test_groupby_options():
    b = bag.range(3, npartitions=2)
    with pytest.raises(ValueError, match="'disk' or 'tasks', not 'magic'"):
        b.groupby(mod3, method="magic")
    with pytest.raises(ValueError, match="npartitions"):
        b.groupby(mod3, npartitions=0)
    assert dict(value(b.groupby(mod3, shuffle="tasks"))) == {0: [0], 1: [1], 2: [2]}


def test_groupby_leaves_no_files_and_can_be_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    b = bag.range(50, npartitions=5).groupby(mod3)
    for _ in range(2):
        assert len(value(b)) == 3
        assert glob.glob(f"{tmp_path}/*/*") == []
    # only one partition is wanted: whatever stays goes with the bag
    part = b.to_delayed()[0]
    value(part)
    assert glob.glob(f"{tmp_path}/*/*") != []
    del b, part
    assert glob.glob(f"{tmp_path}/*") == []

    def broken(x):
        if x == 49:
            raise KeyError("here")
        return x

    b = bag.range(50, npartitions=5).groupby(broken)
    with pytest.raises(KeyError, match="here"):
        value(b)
    del b
    assert glob.glob(f"{tmp_path}/*") == []


Color = Enum("Color", ["RED", "BLUE"])
Point = namedtuple("Point", ["x", "y"])


@dataclass(frozen=True)
class Place:
    name: str
    at: tuple[float, float | None]


class Fold:
    """Keys that say themselves what equal is."""

    def __init__(self, text):
        self.text = text

    def __eq__(self, other):
        return self.text.lower() == other.text.lower()

    def __hash__(self):
        return hash(self.text.lower())


SAME = [
    [1, 1.0, True, Fraction(1), Decimal(1), numpy.int64(1), numpy.float64(1), numpy.bool_(True), 1 + 0j],
    [-1, -1.0],
    [2**80, Decimal(2**80)],
    [0.5, Fraction(1, 2), numpy.float32(0.5)],
    ["text", numpy.str_("text")],
    [b"text", numpy.bytes_(b"text")],
    [(1, "a"), (1.0, "a"), Point(True, "a")],
    [frozenset([1, "a"]), frozenset(["a", 1.0])],
    [None],
    [()],
    [datetime(2026, 1, 1, 12, tzinfo=UTC), datetime(2026, 1, 1, 14, tzinfo=timezone(timedelta(hours=2)))],
    [datetime(2026, 1, 1, 12), datetime(2026, 1, 1, 12, fold=1)],
    [date(2026, 1, 1)],
    [timedelta(1), timedelta(hours=24)],
    [Color.RED],
    [Color.BLUE],
    [UUID(int=5)],
    [Path("a/b"), Path("a") / "b"],
    [Place("x", (1, None)), Place("x", (1.0, None))],
    [Fold("abc"), Fold("ABC")],
    [int],
    [len],
    [mod3],
    [range(3)],
    ["\ud800"],
]


@pytest.mark.parametrize("same", SAME, ids=lambda same: repr(same[0])[:20])
def test_equal_keys_come_together(same):
    assert len({*same}) == 1
    assert len({place_of(key, 1 << 40) for key in same}) == 1
    b = bag.from_sequence(same, partition_size=1)
    for method in ("disk", "tasks"):
        ((key, items),) = value(b.groupby(lambda x: x, method=method, npartitions=20))
        assert key == same[0]
        assert len(items) == len(same)


def test_keys_with_a_common_factor_are_spread():
    places = Counter(place_of(1000 * x, 10) for x in range(1000))
    assert len(places) == 10
    assert max(places.values()) < 200


# --- join


def test_join():
    people = bag.from_sequence(["Anna", "Bob", "Eve"], npartitions=2)
    expected = [(f, p) for p in ["Anna", "Bob", "Eve"] for f in ["fig", "nut", "plum"] if len(f) == len(p)]
    fruit = ["fig", "nut", "plum"]
    for other in (
        fruit,
        tuple(fruit),
        iter(fruit),
        bag.from_sequence(fruit, npartitions=3),
        delayed(fruit),
        delayed(list)(fruit),
    ):
        assert value(people.join(other, len)) == expected
    assert value(people.join(people, len)) == [(q, p) for p in value(people) for q in value(people) if len(q) == len(p)]
    assert value(people.join([(3, "x")], len, operator.itemgetter(0))) == [((3, "x"), "Bob"), ((3, "x"), "Eve")]


# --- the same as dask


SMALL = st.lists(st.lists(st.integers(-20, 20), max_size=6), min_size=1, max_size=11)


def both(partitions, operation):
    ours = value(operation(make(partitions), bag))
    theirs = operation(make(partitions, dask.bag), dask.bag).compute(scheduler="sync")
    return ours, theirs


OPERATIONS = {
    "map": lambda b, m: b.map(add, 1),
    "map two": lambda b, m: b.map(add, b),
    "map with item": lambda b, m: b.map(add, b.sum()),
    "module's map": lambda b, m: m.map(add, b, b.map(abs)),
    "filter": lambda b, m: b.filter(is_even),
    "remove": lambda b, m: b.remove(is_even),
    "pluck": lambda b, m: b.map(lambda x: (x, -x)).pluck(1),
    "pluck several": lambda b, m: b.map(lambda x: {0: x}).pluck([0, 1], 5),
    "flatten": lambda b, m: b.map(lambda x: [x] * abs(x % 3)).flatten(),
    "starmap": lambda b, m: b.map(lambda x: (x, 2)).starmap(add),
    "map_partitions": lambda b, m: b.map_partitions(lambda part: [sum(part)]),
    "partitions to numbers": lambda b, m: b.map_partitions(sum),
    "fold": lambda b, m: b.fold(add, initial=0, split_every=2) if b.npartitions else b,
    "foldby": lambda b, m: b.foldby(mod3, add, 0, add, 0, split_every=3),
    "foldby without initial": lambda b, m: b.foldby(mod3, add),
    "frequencies": lambda b, m: b.frequencies(split_every=2),
    "topk": lambda b, m: b.topk(4),
    "topk by key": lambda b, m: b.topk(4, key=abs),
    "distinct": lambda b, m: b.distinct(),
    "distinct by key": lambda b, m: b.distinct(key=abs),
    "join": lambda b, m: b.join([1, 2, 3, 3], mod3),
    "product": lambda b, m: b.product(b.filter(is_even)),
    "zip": lambda b, m: m.zip(b, b.map(abs)),
    "concat": lambda b, m: m.concat([b, b.map(abs)]),
    "accumulate": lambda b, m: b.accumulate(add, initial=0),
    "repartition": lambda b, m: b.repartition(npartitions=4),
    "take": lambda b, m: b.take(3, npartitions=-1, compute=False, warn=False),
    "sum": lambda b, m: b.sum(),
    "count": lambda b, m: b.count(),
    "any": lambda b, m: b.any(),
    "all": lambda b, m: b.all(),
    "unzip": lambda b, m: b.map(lambda x: (x, 1)).unzip(2)[1],
    "str": lambda b, m: b.map(str).str.zfill(4),
}


@pytest.mark.parametrize("name", OPERATIONS)
@given(partitions=SMALL)
@settings(max_examples=12, deadline=None)
def test_the_same_as_dask(name, partitions):
    items = [x for part in partitions for x in part]
    if name == "fold" and not items:
        return  # dask fails here; we have the initial value
    ours, theirs = both(partitions, OPERATIONS[name])
    if isinstance(ours, list) and name in ("foldby", "foldby without initial", "frequencies", "distinct"):
        ours, theirs = sorted(ours), sorted(theirs)
    assert ours == (list(theirs) if isinstance(theirs, tuple) else theirs)


@given(partitions=SMALL)
@settings(max_examples=3, deadline=None)
def test_groups_are_the_same_as_dasks(partitions):
    ours = {k: list(v) for k, v in value(make(partitions).groupby(mod3))}
    with dask.config.set(scheduler="sync"):
        theirs = {k: list(v) for k, v in make(partitions, dask.bag).groupby(mod3).compute()}
    assert {k: sorted(v) for k, v in ours.items()} == {k: sorted(v) for k, v in theirs.items()}


# --- random chains of operations

STEPS = [
    (lambda b: b.map(add, 1), lambda items: [x + 1 for x in items]),
    (lambda b: b.filter(is_even), lambda items: [x for x in items if is_even(x)]),
    (lambda b: b.remove(mod3), lambda items: [x for x in items if not mod3(x)]),
    (lambda b: b.map(lambda x: [x] * (x % 3)).flatten(), lambda items: [x for x in items for _ in range(x % 3)]),
    (lambda b: b.map_partitions(list), list),
    (lambda b: b.map_partitions(lambda part: (x for x in part)), list),
    (lambda b: bag.zip(b, b.map(abs)).pluck(0), list),
    (lambda b: b.map(operator.mul, b.count()), lambda items: [x * len(items) for x in items]),
    (lambda b: bag.concat([b, b.map(abs)]), lambda items: items + [abs(x) for x in items]),
    (lambda b: b.repartition(3), list),
    (lambda b: b.repartition(7).map(abs), lambda items: [abs(x) for x in items]),
    (lambda b: b.accumulate(max), lambda items: [reduce(max, items[: i + 1]) for i in range(len(items))]),
    (lambda b: b.distinct(), lambda items: list(dict.fromkeys(items))),
    (lambda b: b.topk(5), lambda items: sorted(items, reverse=True)[:5]),
]


@given(SMALL, st.lists(st.sampled_from(STEPS), max_size=6), st.booleans())
@settings(max_examples=80, deadline=None)
def test_any_chain_of_operations_is_what_lists_say(partitions, steps, optimize_graph):
    b, items = make(partitions), [x for part in partitions for x in part]
    middle = []
    for step, plain in steps:
        b, items = step(b), plain(items)
        middle.append((b, items))
    assert value(b, optimize_graph=optimize_graph) == items
    # wanted together, so that no step goes into another one's task without need
    values = taskloom.compute(*[b for b, _ in middle], b.count(), scheduler="sync")
    assert [*values] == [items for _, items in middle] + [len(items)]
