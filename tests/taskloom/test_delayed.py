from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import inspect
import math
import operator
import pickle
import threading
import typing
from collections import OrderedDict, namedtuple
from enum import StrEnum
from functools import partial, wraps

import cloudpickle
import dask
import dask.array
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import taskloom
from taskloom import compute, config, delayed
from taskloom._delayed import Delayed
from taskloom.errors import MissingKeyError


def inc(x):
    return x + 1


def add(a, b):
    return a + b


def same(*args, **kwargs):
    """Everything that arrived, as it arrived."""
    return args, kwargs


@delayed
def decorated(x):
    """Twice as much."""
    return 2 * x


class Doubler:
    factor = 2

    @delayed
    def double(self, x):
        return self.factor * x


Point = namedtuple("Point", ["x", "y"])


class Pair(typing.NamedTuple):
    left: typing.Any
    right: typing.Any = 0


@dataclasses.dataclass
class Box:
    item: typing.Any
    others: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Frozen:
    item: typing.Any


class Colour(StrEnum):
    RED = "x"


def test_calls():
    x = delayed(inc)(1)
    assert isinstance(x, Delayed)
    assert x.compute() == 2
    assert delayed(add)(x, b=x).compute() == 4
    assert delayed(same)(1, x, k=x, j="j").compute() == ((1, 2), {"k": 2, "j": "j"})
    assert delayed(same)().compute() == ((), {})
    assert delayed(dict)(a=x, b=[x]).compute() == {"a": 2, "b": [2]}


def test_as_a_decorator_with_and_without_arguments():
    @delayed
    def one(x):
        return x

    @delayed(nout=2, pure=True)
    def two(x):
        return x, x + 1

    assert one(5).compute() == 5
    a, b = two(5)
    assert compute(a, b) == (5, 6)
    assert two(5).key == two(5).key
    assert decorated(4).compute() == 8
    assert decorated.__name__ == "decorated"
    assert decorated.__doc__ == "Twice as much."
    assert list(inspect.signature(decorated).parameters) == ["x"]


def test_a_delayed_stays_as_it_is():
    x = delayed(inc)(1)
    assert delayed(x) is x


@pytest.mark.parametrize("value", [1, "text", None, True, [1, 2], {"a": 1}, (1, 2), {1, 2}, inc, int, ..., b"x", 1.5])
def test_literals(value):
    assert delayed(value).compute() == value
    assert delayed(same)(value, k=value).compute() == ((value,), {"k": value})


def test_data_arrives_as_the_object_that_it_is():
    for value in ([1, [2]], {"a": []}, (1, [2]), {1}, Box([1]), Point(1, [2]), object(), "x" * 100, bytearray(b"x")):
        assert delayed(value).compute() is value
        assert delayed(same)(value).compute()[0][0] is value
        assert delayed(same)([delayed(1), value]).compute()[0][0][1] is value


def test_data_that_looks_like_a_key_or_a_task_stays_data():
    x = delayed(5, name="x")
    y = delayed(6, name="y")
    tuple_key = Delayed(("t", 0), {("t", 0): 7})

    class Node:
        dependencies = frozenset({"x"})

        def __call__(self, values=()):
            return "called"

    node = Node()
    for value in (
        "x",
        b"x",
        ["x", "y"],
        ("t", 0),
        [("t", 0)],
        Pair("t", 0),
        (len, "x"),
        [(len, "x")],
        {"x": "y"},
        {"x"},
        Colour.RED,
        node,
        Box("x"),
        slice("x", "y"),
        (inc, 1),
        inc,
        Node,
    ):
        result = delayed(same)(x, y, tuple_key, value, k=value, n=[x, value]).compute()
        assert result == ((5, 6, 7, value), {"k": value, "n": [5, value]})
        assert compute(x, y, tuple_key, delayed(value), delayed(same)(value)) == (5, 6, 7, value, ((value,), {}))


@pytest.mark.parametrize("scheduler", ["sync", "threads", "processes"])
def test_on_every_scheduler(scheduler):
    if scheduler == "processes":
        pytest.importorskip("taskloom.multiprocessing")
    total = delayed(sum)([delayed(inc)(i) for i in range(10)])
    assert (total + len("x")).compute(scheduler=scheduler) == 56
    assert delayed(same)("x", [total], k={"total": total}).compute(scheduler=scheduler) == (
        ("x", [55]),
        {"k": {"total": 55}},
    )


def test_the_default_is_threads():
    assert delayed(threading.current_thread)().compute() is not threading.current_thread()


def test_nested_arguments():
    x = delayed(inc)(1)
    assert delayed(same)(
        [x, [x]],
        (x, (1, x)),
        {"a": x, x: "b"},
        {x, 5},
        frozenset([x]),
        slice(x, None, 3),
        OrderedDict([("b", x), ("a", 1)]),
        Point(x, 3),
        Pair(x),
        Box(x, [x]),
        Frozen([x]),
        iter([x, 1]),
        (y for y in [x, 2]),
    ).compute()[0] == (
        [2, [2]],
        (2, (1, 2)),
        {"a": 2, 2: "b"},
        {2, 5},
        frozenset([2]),
        slice(2, None, 3),
        OrderedDict([("b", 2), ("a", 1)]),
        Point(2, 3),
        Pair(2, 0),
        Box(2, [2]),
        Frozen([2]),
        [2, 1],
        [2, 2],
    )
    types = delayed(same)(OrderedDict(a=x), Point(x, 1), Box(x), (x,)).compute()[0]
    assert [type(item) for item in types] == [OrderedDict, Point, Box, tuple]


def test_containers_as_the_object():
    x = delayed(inc)(1)
    assert delayed([x, 1, {"k": (x,)}]).compute() == [2, 1, {"k": (2,)}]
    assert delayed(Box(x)).item.compute() == 2
    assert delayed([x], traverse=False).compute()[0] is x
    assert delayed([x, x], nout=2)[1].compute() == 2


def test_dataclasses_that_cannot_be_made_again_are_refused():
    x = delayed(inc)(1)

    @dataclasses.dataclass
    class Derived:
        a: typing.Any
        b: typing.Any = dataclasses.field(init=False)

        def __post_init__(self):
            self.b = self.a

    @dataclasses.dataclass(init=False)
    class Own:
        a: typing.Any

        def __init__(self, b):
            self.a = b

    with pytest.raises(TypeError, match=r"dataclass .*Derived cannot be replaced.*'b' has init=False"):
        delayed(same)(Derived(x))
    with pytest.raises(TypeError, match=r"dataclass .*Own cannot be replaced.*__init__ of its own"):
        delayed(same)(Own(x))
    derived, own = Derived(1), Own(1)
    assert delayed(same)(derived, own).compute()[0] == (derived, own)


def test_attributes_and_methods():
    text = delayed("a,b")
    assert text.upper().compute() == "A,B"
    assert text.split(sep=",").compute() == ["a", "b"]
    assert text.split(delayed(",")).compute() == ["a", "b"]
    assert text.upper().lower().split(",")[1].compute() == "b"
    assert delayed(3 + 4j).real.compute() == 3.0
    assert delayed(Box(Box(5))).item.item.compute() == 5
    assert delayed(text).upper.compute()() == "A,B"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        text.nothing.compute()
    with pytest.raises(AttributeError, match="no attribute '_private'"):
        text._private
    assert not hasattr(text, "__array__")


def test_a_computed_function_can_be_called():
    function = delayed(partial)(add, 1)
    assert function(2).compute() == 3
    assert function(b=3).compute() == 4
    assert delayed([inc, abs])[0](5).compute() == 6


def test_classes_and_partials():
    assert delayed(Box)(1, others=[delayed(2)]).compute() == Box(1, [2])
    assert delayed(partial(add, 1))(2).compute() == 3
    assert delayed(partial(add, 1))(2).key.startswith("add-")
    assert delayed("".join)(["a", delayed("b")]).compute() == "ab"


def test_methods_of_classes():
    assert Doubler().double(4).compute() == 8
    assert Doubler.double(Doubler(), delayed(5)).compute() == 10


BOTH = ["add", "sub", "mul", "truediv", "floordiv", "mod", "and_", "or_", "xor", "lshift", "rshift", "pow"]


@pytest.mark.parametrize("name", [*BOTH, "eq", "ne", "lt", "le", "gt", "ge"])
def test_binary_operators(name):
    function = getattr(operator, name)
    x, y = delayed(7), delayed(2)
    for result in (function(x, y), function(x, 2), function(7, y)):
        assert isinstance(result, Delayed)
        assert result.compute() == function(7, 2)


def test_other_operators():
    x = delayed(-7.5)
    assert [f(x).compute() for f in (abs, operator.neg, operator.pos)] == [7.5, 7.5, -7.5]
    assert (~delayed(5)).compute() == ~5
    assert [f(x).compute() for f in (math.floor, math.ceil, math.trunc)] == [-8, -7, -7]
    assert divmod(delayed(7), 2).compute() == divmod(7, delayed(2)).compute() == (3, 1)
    assert pow(delayed(7), 2, 5).compute() == 4
    assert delayed("%s!")[0:2].compute() == "%s"
    assert (delayed([1]) + [2]).compute() == [1, 2]
    assert ([1] + delayed([2])).compute() == [1, 2]

    class Matrix:
        def __matmul__(self, other):
            return "product"

    assert (delayed(Matrix()) @ 3).compute() == "product"


def test_indexing():
    x = delayed({"a": [1, 2, 3], ("b", 0): 4})
    assert x["a"][delayed(1)].compute() == 2
    assert x["a"][1 : delayed(3)].compute() == [2, 3]
    assert x[("b", 0)].compute() == 4
    assert x["b", 0].compute() == 4


def test_operators_attributes_and_indexing_are_pure():
    x, y = delayed(1), delayed(2)
    assert (x + y).key == (x + y).key
    assert (x + y).key != (y + x).key
    assert (x + 1).key != (x + 1.0).key
    assert (1 - x).key != (x - 1).key
    assert x[0].key == x[0].key != x[1].key
    assert x.real.key == x.real.key != x.imag.key
    assert x.bit_length().key != x.bit_length().key
    assert x.bit_length(pure=True).key == x.bit_length(pure=True).key


def test_pure():
    f, g = delayed(inc), delayed(inc, pure=True)
    assert f(1).key != f(1).key
    assert g(1).key == g(1).key != g(2).key
    assert f(1, pure=True).key == g(1).key
    assert g(1, pure=False).key != g(1).key
    assert g(g(1)).key == g(g(1)).key
    assert delayed(add, pure=True)(1, b=2).key == delayed(add, pure=True)(1, b=2).key
    assert delayed([1, 2], pure=True).key == delayed([1, 2], pure=True).key != delayed([1], pure=True).key
    with config.set(delayed__pure=True):
        assert f(1).key == f(1).key
        assert delayed(5).key == delayed(5).key
        assert f(1, pure=False).key != f(1).key
    seen = []

    def watched(x):
        seen.append(x)
        return x

    pure = delayed(watched, pure=True)
    assert compute(pure(1), pure(1), [pure(1)]) == (1, 1, [1])
    assert seen == [1]


def test_names_of_keys():
    assert delayed(inc)(1).key.startswith("inc-")
    assert delayed(lambda: 1)().key.startswith("lambda-")
    assert delayed("x").upper().key.startswith("upper-")
    assert (delayed(1) + 1).key.startswith("add-")
    assert delayed(5, name="five").key == "five"
    assert delayed(inc)(1, task_key="mine").key == "mine"
    assert delayed(inc)(1, dask_key_name=("mine", 0)).key == ("mine", 0)
    assert delayed("x").upper(task_key="mine").key == "mine"
    assert delayed(inc)(1)(task_key="mine").key == "mine"
    for wrong in (5, "", (), (1, "x"), ["x"]):
        with pytest.raises(TypeError, match="a key is a string"):
            delayed(inc)(1, task_key=wrong)
        with pytest.raises(TypeError, match="a key is a string"):
            delayed(1, name=wrong)


def test_nout():
    a, b = delayed(divmod, nout=2)(7, 2)
    assert compute(a, b) == (3, 1)
    assert len(delayed(divmod, nout=2)(7, 2)) == 2
    assert list(delayed(same, nout=0)()) == []
    (only,) = delayed(same, nout=1)()
    assert only.compute() == ()
    for wrong in (-1, 1.5, True, "2"):
        with pytest.raises(ValueError, match="nout is how many values there are"):
            delayed(divmod, nout=wrong)


def test_what_cannot_be_delayed_says_so():
    x = delayed(inc)(1)
    with pytest.raises(TypeError, match=r"Delayed\('inc-.*neither true nor false before it is computed"):
        bool(x)
    with pytest.raises(TypeError, match="neither true nor false"):
        if x > 1:
            pass
    with pytest.raises(TypeError, match=r"cannot be iterated or unpacked.*nout=2"):
        _a, _b = x
    with pytest.raises(TypeError, match="has no length before it is computed"):
        len(x)
    with pytest.raises(TypeError, match="'in' cannot be delayed"):
        1 in x
    with pytest.raises(TypeError, match="a Delayed cannot be changed"):
        x.attribute = 1
    with pytest.raises(TypeError, match="a Delayed cannot be changed"):
        x[0] = 1
    with pytest.raises(TypeError, match="a Delayed cannot be changed"):
        del x.attribute
    with pytest.raises(TypeError, match="a Delayed cannot be changed"):
        del x[0]
    assert x.compute() == 2


def test_numbers_are_not_made_of_a_delayed():
    x = delayed(inc)(1)
    with pytest.raises(TypeError, match=r"int\(\) cannot be delayed; use delayed\(int\)"):
        int(x)
    with pytest.raises(TypeError, match="not 'Delayed'"):
        float(x)
    with pytest.raises(TypeError, match="not Delayed"):
        [1, 2, 3][x]


def test_a_value_that_is_no_function_cannot_be_called():
    for value in (None, "x", 5, [len]):
        with pytest.raises(TypeError, match=f"'{type(value).__name__}' object is not callable: Delayed"):
            delayed(value)(1)
    with pytest.raises(TypeError, match="'int' object is not callable"):
        delayed(inc)(1)(2).compute()


def test_arguments_that_are_nested_too_deep_to_be_searched():
    nested = functools.reduce(lambda inner, _: [inner], range(5_000), 1)
    circle = [1]
    circle.append(circle)
    for value in (nested, circle):
        for make in (delayed(type), delayed, lambda value: delayed(dict)(k=[value])):
            with pytest.raises(RecursionError, match=r"or has itself inside; .*delayed\(argument, traverse=False\)"):
                make(value)
        assert delayed(id)(delayed(value, traverse=False)).compute() == id(value)


def test_numpy_arrays_as_arguments_and_operands():
    x = delayed(inc)(1)
    array = np.arange(3)
    assert delayed(id)(array).compute() == id(array)
    np.testing.assert_array_equal((x + array).compute(), [2, 3, 4])
    assert (np.float64(2) + x).compute() == 4.0
    assert np.add(x, 1).compute() == 3
    # an array on the left asks each of its items, which gives an array of Delayed
    np.testing.assert_array_equal(compute((array + x).tolist())[0], [2, 3, 4])


def test_names_of_parameters_that_are_like_ours():
    names = dict.fromkeys(("self", "function", "obj", "name", "nout", "traverse", "key", "head", "args", "kwargs"), 1)
    assert delayed(dict)(**names).compute() == names


def test_hash_equality_and_repr():
    x = delayed(inc)(1, task_key="x")
    assert hash(x) == hash("x")
    assert repr(x) == "Delayed('x')"
    assert isinstance(x == x, Delayed)
    assert {x: 1}[x] == 1
    assert x in [x][:1]
    assert "compute" in dir(x)


def test_errors_are_the_users():
    @delayed
    def fail(x):
        raise ValueError(f"no {x}")

    with pytest.raises(ValueError, match="no 1") as caught:
        delayed(inc)(fail(1)).compute()
    names = [entry.name for entry in caught.traceback]
    assert names[-1] == "fail"
    assert len(names) <= 3
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        delayed(add)(1).compute()


def test_a_graph_of_ones_own():
    x = Delayed("x", {"a": 1, "b": (inc, "a"), "x": (add, "a", "b")})
    assert x.compute() == 3
    y = Delayed("y", {"a": 1, "y": (inc, "a")}, 2)
    assert len(y) == 2
    assert delayed(add)(x, y).compute() == 5
    with pytest.raises(MissingKeyError, match="no key 'z'"):
        Delayed("z", {"a": 1})
    with pytest.raises(TypeError, match="a key is a string"):
        Delayed(5, {5: 1})


def test_the_graph_is_put_together_once():
    x = delayed(inc)(1)
    y = delayed(add)(x, x)
    graph = (y + x).__dask_graph__()
    assert len(graph) == 3
    assert graph[x.key] == (inc, 1)
    assert graph[y.key] == (add, x.key, x.key)
    assert y.dask.keys() == {x.key, y.key}


def test_calls_with_names_share_their_function():
    f = delayed(add)
    tasks = [f(i, b=delayed(i)) for i in range(5)]
    functions = {id(task.__dask_graph__()[task.key][0]) for task in tasks}
    assert len(functions) == 1
    assert compute(*tasks) == (0, 2, 4, 6, 8)


def test_a_long_loop():
    n = 100_000
    x = 0
    step = delayed(inc)
    for _ in range(n):
        x = step(x)
    assert x.compute() == n
    assert x.compute(scheduler="sync") == n
    copied = pickle.loads(pickle.dumps(x))
    assert copied.compute(scheduler="sync") == n
    assert len(x.persist().__dask_graph__()) == 1
    del x, copied
    gc.collect()


def test_a_wide_reduction():
    parts = [delayed(inc)(i) for i in range(10_000)]
    assert delayed(sum)(parts).compute() == 50_005_000
    assert delayed(lambda *args: sum(args))(*parts).compute() == 50_005_000
    assert sum(compute(*parts)) == sum(compute(parts)[0]) == 50_005_000


def test_a_chain_of_attributes_and_indexing():
    class Loop:
        @property
        def again(self):
            return self

        def __getitem__(self, place):
            return self

    x = delayed(Loop())
    for _ in range(3000):
        x = x.again[0]
    assert type(x.compute()).__name__ == "Loop"
    assert type(cloudpickle.loads(cloudpickle.dumps(x)).compute()).__name__ == "Loop"


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_pickling(pickler):
    def again(x):
        return pickler.loads(pickler.dumps(x))

    x = delayed(add)(delayed(inc)(1), "x".__len__())
    y = again(x)
    assert y.key == x.key
    assert y.compute() == 3
    leaf = delayed(inc, nout=1, pure=True)
    assert again(leaf)(1).key == leaf(1).key
    assert len(again(leaf)(1)) == 1
    attribute = again(delayed("text").upper)
    assert attribute().compute() == "TEXT"
    assert attribute.compute()() == "TEXT"
    assert len(again(delayed(divmod, nout=2)(7, 2))) == 2
    assert again(delayed(add)(1, b=2)).compute() == 3
    assert copy.copy(x).compute() == copy.deepcopy(x).compute() == 3


def test_pickling_of_decorated_functions():
    # this module is not importable by its name under importlib mode, so by value
    assert cloudpickle.loads(cloudpickle.dumps(decorated))(2).compute() == 4


def test_persist():
    calls = []

    def count(x):
        calls.append(x)
        return [x, "a"]

    x = delayed(count, nout=2)("a")
    y = x.persist()
    assert y.key == x.key
    assert len(y) == 2
    assert compute(y, y[0], y[1]) == (["a", "a"], "a", "a")
    assert calls == ["a"]


def test_annotations():
    f = delayed(inc)
    with taskloom.annotate(priority=1, retries=2):
        x = f(1)
        with taskloom.annotate(priority=2, workers="one"):
            y = f(x)
    z = f(y)
    of = taskloom._collections.annotations_of(z)
    assert of == {
        x.key: {"priority": 1, "retries": 2},
        y.key: {"priority": 2, "retries": 2, "workers": ["one"]},
    }
    assert taskloom._collections.annotations_of(pickle.loads(pickle.dumps(y)))[y.key] == of[y.key]
    assert z.compute() == 4


def test_in_dask():
    x = delayed(same)("x", [1, "x"], k={"x": 1}, task_key="x")
    y = delayed(same)({"n": x, "l": "x"}, (x,), Box(x), slice(x), inc(1))
    value = (("x", [1, "x"]), {"k": {"x": 1}})
    for scheduler in ("sync", "threads"):
        assert dask.compute(x, [y], scheduler=scheduler) == (
            value,
            [(({"n": value, "l": "x"}, (value,), Box(value), slice(value), 2), {})],
        )
    assert dask.is_dask_collection(x)
    assert dask.delayed(inc)(delayed(inc)(1)).compute() == 3
    assert dask.delayed(sum)([delayed(inc)(1), dask.delayed(1)]).compute() == 3
    (z,) = dask.persist(delayed(inc)(1))
    assert isinstance(z, Delayed)
    assert z.compute() == 2
    assert dask.base.tokenize(x) == dask.base.tokenize(x)


def test_collections_of_dask_as_arguments():
    array = dask.array.arange(10, chunks=3)
    lazy = dask.delayed(inc)(1)
    assert delayed(sum)(array).compute() == 45
    assert delayed(same)(lazy, [lazy, {"a": array.sum()}]).compute() == ((2, [2, {"a": 45}]), {})
    assert delayed(array).mean().compute() == 4.5
    assert (delayed(lazy) + 1).compute() == 3


def test_wrappers_that_copy_names():
    f = delayed(inc)

    @wraps(inc)
    def wrapper(x):
        return f(x)

    assert delayed(wrapper)(1).compute().compute() == 2


arguments = st.recursive(
    st.one_of(
        st.integers(), st.text(max_size=3), st.none(), st.booleans(), st.sampled_from(["k0", "k1", ("k0",), inc])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=2), inner, max_size=2),
        st.builds(Box, inner),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=6,
)


@given(st.lists(arguments, min_size=1, max_size=5), st.data())
def test_any_arguments_arrive_as_they_were_given(values, data):
    lazy, plain = [], []
    for number, value in enumerate(values):
        before = data.draw(st.lists(st.integers(0, number - 1), max_size=2)) if number else []
        lazy.append(delayed(same)(value, [lazy[i] for i in before], key=value, task_key=f"k{number}"))
        plain.append(same(value, [plain[i] for i in before], key=value))
    assert compute(*lazy, scheduler="sync") == tuple(plain)
    assert compute({"all": lazy}, scheduler="sync") == ({"all": plain},)
