"""dask's own collections, and xarray's, computed by our schedulers; ours in dask, dask's in ours.

Each computation runs on dask's synchronous scheduler too, and its result has to be the same.
"""

from __future__ import annotations

import operator
import pickle
import random
import shutil

import cloudpickle
import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from dask.callbacks import Callback as DasksCallback
from dask.diagnostics import Profiler, ProgressBar
from dask.dot import to_graphviz

import taskloom
from taskloom import compute, delayed, persist
from taskloom.diagnostics import Callback

# dask itself uses what pandas is going to remove
pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")

GETS = {
    "sync": taskloom.get_sync,
    "threads": taskloom.threaded.get,
    "processes": taskloom.multiprocessing.get,
}


@pytest.fixture(params=list(GETS))
def get(request):
    return GETS[request.param]


def inc(x):
    return x + 1


def add(x, y):
    return x + y


def same(*args, **kwargs):
    return args, kwargs


# -- computations: functions without arguments that return something lazy


def numbers(shape=(40, 30), chunks=(12, 10), seed=0):
    return da.from_array(np.random.default_rng(seed).random(shape), chunks=chunks)


ARRAYS = {
    "reductions": lambda: [getattr(numbers(), name)() for name in ("sum", "mean", "std", "min", "argmax", "prod")],
    "reductions along axes": lambda: [numbers().sum(axis=0), numbers().var(axis=1), da.median(numbers(), axis=0)],
    "nan reductions": lambda: da.nanmean(da.where(numbers() > 0.5, np.nan, numbers()), axis=0),
    "matmul": lambda: numbers() @ numbers((30, 20), (7, 20)),
    "tensordot and einsum": lambda: [
        da.tensordot(numbers(), numbers((30, 8), (10, 8)), axes=1),
        da.einsum("ij,kj->ik", numbers(), numbers((5, 30), (5, 11))),
    ],
    "rechunk": lambda: numbers().rechunk((40, 1)).rechunk((7, 30)),
    "transpose and add": lambda: (numbers((30, 30), 8) + numbers((30, 30), 8).T).sum(axis=0),
    "overlap": lambda: numbers().map_overlap(lambda b: b[1:-1, 1:-1] * 2, depth=1, boundary="reflect", trim=False),
    "svd": lambda: [abs(part) for part in da.linalg.svd(numbers((40, 6), (10, 6)))],
    "compressed svd": lambda: da.linalg.svd_compressed(numbers((40, 30), 10), 3, seed=5)[1],
    "qr and inverse": lambda: [
        abs(da.linalg.qr(numbers((40, 5), (10, 5)))[1]),
        da.linalg.norm(numbers(), axis=0),
    ],
    "slicing": lambda: [
        numbers()[3:30:4, ::-1],
        numbers()[[5, 1, 1, 39]],
        numbers()[numbers()[:, 0] > 0.5],
        numbers()[:, 2][::-3],
        numbers().vindex[[1, 2], [3, 4]],
    ],
    "assignment": lambda: _assigned(),
    "map_blocks": lambda: numbers().map_blocks(_plus_place, dtype=float),
    "blockwise": lambda: da.blockwise(
        np.multiply.outer, "ij", numbers((9,), 4), "i", numbers((7,), 3), "j", dtype=float
    ),
    "ufuncs and broadcasting": lambda: np.sqrt(numbers()) + numbers((30,), 10) * 2 - np.float64(1),
    "stack, concatenate, block": lambda: [
        da.stack([numbers(), numbers(seed=1)]).mean(axis=0),
        da.concatenate([numbers(), numbers(seed=1)], axis=1),
        da.block([[numbers(), numbers()], [numbers(), numbers()]]).sum(axis=1),
    ],
    "histogram, unique, topk": lambda: [
        da.histogram(numbers(), bins=5, range=(0, 1))[0],
        da.unique((numbers() * 10).astype(int)),
        da.topk(numbers(), 3, axis=0),
        da.percentile(numbers((40,), 7), [25, 50]),
    ],
    "cumulative": lambda: [numbers().cumsum(axis=0), da.cumprod(numbers((40,), 7), axis=0, method="blelloch")],
    "random": lambda: da.random.default_rng(3).normal(size=(20, 20), chunks=7),
    "fft": lambda: abs(da.fft.fft2(numbers().rechunk(-1))),
    "gufunc": lambda: da.apply_gufunc(
        lambda x: x.mean(axis=-1), "(i)->()", numbers().rechunk((9, -1)), output_dtypes=float
    ),
    "from delayed": lambda: da.from_delayed(dask.delayed(np.ones)((3, 4)), (3, 4), float).sum(axis=1),
    "masked": lambda: da.ma.filled(da.ma.masked_greater(numbers(), 0.7), -1),
    "empty": lambda: [da.zeros((0, 5), chunks=3).sum(axis=0), da.zeros((0,), chunks=1)],
    "scalar": lambda: da.from_array(np.array(5.0), chunks=()) + 1,
}


def _plus_place(block, block_info=None):
    return block + block_info[0]["chunk-location"][0]


def _assigned():
    array = numbers().copy()
    array[array > 0.9] = 0
    array[3:9, 2] = -1
    return array


def frame():
    rng = random.Random(1)
    return pd.DataFrame(
        {
            "key": [rng.randrange(5) for _ in range(90)],
            "name": [rng.choice(["ann", "bob", "cid"]) for _ in range(90)],
            "value": [rng.random() for _ in range(90)],
            "when": pd.date_range("2020-01-01", periods=90, freq="6h"),
        }
    )


def table(npartitions=4):
    return dd.from_pandas(frame(), npartitions=npartitions)


def other_table():
    return dd.from_pandas(pd.DataFrame({"key": [0, 1, 2, 7], "weight": [1.0, 2.0, 3.0, 4.0]}), npartitions=2)


def series():
    return table().set_index("when").value


FRAMES = {
    "whole": lambda: table(),
    "columns and filters": lambda: table()[table().value > 0.5].assign(twice=lambda f: f.value * 2)[["key", "twice"]],
    "reductions": lambda: [table().value.mean(), table().key.nunique(), table()[["key", "value"]].max(), table().size],
    "describe": lambda: table()[["key", "value"]].describe(),
    "groupby": lambda: [
        table().groupby("key").value.mean(),
        table().groupby(["key", "name"]).agg({"value": ["sum", "max"], "when": "count"}),
        table().groupby("name").value.std(),
    ],
    "groupby apply": lambda: table().groupby("name").value.apply(_spread, meta=("value", "f8")),
    "groupby, split out": lambda: table().groupby("key").value.sum(split_out=2),
    "merge": lambda: [
        # sorted, as a shuffle through files keeps no order
        table().merge(other_table(), on="key", how="left").map_partitions(_sorted),
        table().merge(other_table(), on="key", how="inner").groupby("name").weight.sum(),
        table().merge(frame().head(3)[["key"]].drop_duplicates(), on="key"),
    ],
    "set_index": lambda: table().set_index("value"),
    "shuffle": lambda: table().shuffle("name").map_partitions(lambda part: part.groupby("name").size()),
    "sort": lambda: table().sort_values("value").head(5, compute=False),
    "rolling by number": lambda: series().rolling(5).mean(),
    "rolling by time": lambda: series().rolling("36h").sum(),
    "resample": lambda: series().resample("1D").agg(["min", "max"]),
    "drop duplicates": lambda: table()[["key", "name"]].drop_duplicates(),
    "value counts": lambda: table().name.value_counts(),
    "categories": lambda: table().assign(name=table().name.astype("category").cat.as_known()).groupby("name").size(),
    "cumulative": lambda: table().value.cumsum(),
    "repartition": lambda: table().repartition(npartitions=2).map_partitions(len),
    "concat": lambda: dd.concat([table(), table(2)]).value.sum(),
    "fill": lambda: table().value.where(table().value > 0.3).ffill(),
    "quantile": lambda: table().value.quantile(0.5),
    "str and dt": lambda: [table().name.str.upper(), table().when.dt.day_name()],
    "map_overlap": lambda: table().value.map_overlap(lambda s: s.diff(), 1, 0),
    "to delayed": lambda: [part.value.sum() for part in table().to_delayed()],
    "from delayed": lambda: dd.from_delayed([dask.delayed(frame().iloc[i : i + 3].copy)() for i in range(0, 9, 3)]),
}


def _sorted(part):
    return part.sort_values("value", ignore_index=True)


def _spread(values):
    return values.max() - values.min()


WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "the", "cat"]


def _merged(pairs, more):
    return sorted([*pairs, *(more if isinstance(more, list) else [more])])


def _sorted_together(parts):
    return sorted(word for part in parts for word in part)


def words():
    return db.from_sequence(WORDS, npartitions=4)


BAGS = {
    "map and filter": lambda: words().map(str.upper).filter(lambda word: "O" in word),
    "fold": lambda: words().map(len).fold(add, initial=0),
    "foldby": lambda: words().foldby(len, lambda total, word: total + word, "", add, ""),
    "groupby": lambda: words().groupby(len).map(lambda pair: (pair[0], sorted(pair[1]))).fold(_merged, initial=[]),
    "join": lambda: words().join([(3, "three"), (5, "five")], on_self=len, on_other=operator.itemgetter(0)),
    "frequencies": lambda: words().frequencies(),
    "topk": lambda: words().topk(3, key=len),
    "distinct": lambda: words().distinct(),
    "statistics": lambda: [getattr(words().map(len), name)() for name in ("sum", "mean", "std", "var", "max", "count")],
    "pluck and flatten": lambda: db.from_sequence([[1, [2]], [3, [4]]], npartitions=2).pluck(1).flatten(),
    "zip and product": lambda: [db.zip(words(), words().map(len)), words().product(db.from_sequence([1, 2]))],
    "accumulate": lambda: words().map(len).accumulate(add),
    "starmap": lambda: db.from_sequence([(1, 2), (3, 4)]).starmap(add),
    "reduction": lambda: words().reduction(list, _sorted_together, split_every=2),
    "random sample": lambda: words().random_sample(0.5, random_state=5),
    "take": lambda: words().take(2, npartitions=2, compute=False),
    "to dataframe": lambda: words().map(lambda w: {"word": w, "n": len(w)}).to_dataframe(),
    "repartition": lambda: words().repartition(npartitions=2),
}


def cube():
    rng = np.random.default_rng(2)
    return xr.Dataset(
        {
            "air": (("time", "lat", "lon"), rng.random((60, 4, 6))),
            "rain": (("time", "lat", "lon"), rng.random((60, 4, 6))),
        },
        coords={
            "time": pd.date_range("2020-01-01", periods=60, freq="2D"),
            "lat": np.arange(4.0),
            "lon": np.arange(6.0),
        },
    ).chunk(time=14, lat=2)


XARRAYS = {
    "arithmetic": lambda: (cube().air - cube().rain) ** 2,
    "reductions": lambda: [cube().mean(), cube().air.std("time"), cube().air.max(("lat", "lon"))],
    "groupby": lambda: cube().groupby("time.month").mean(),
    "anomalies": lambda: cube().air.groupby("time.month") - cube().air.groupby("time.month").mean(),
    "groupby bins": lambda: cube().air.groupby_bins("lat", [0, 1, 4]).sum(),
    "rolling": lambda: cube().rolling(time=5, center=True).mean(),
    "resample": lambda: cube().resample(time="1ME").max(),
    "coarsen": lambda: cube().coarsen(lat=2, lon=3).mean(),
    "weighted": lambda: cube().weighted(np.cos(np.deg2rad(cube().lat))).mean("lat"),
    "apply_ufunc": lambda: xr.apply_ufunc(
        lambda a, b: (a * b).mean(axis=-1),
        cube().air.chunk(lon=-1),
        cube().rain,
        input_core_dims=[["lon"], ["lon"]],
        dask="parallelized",
        output_dtypes=[float],
    ),
    "apply_ufunc, vectorized": lambda: xr.apply_ufunc(
        _slope,
        cube().air.chunk(time=-1),
        input_core_dims=[["time"]],
        vectorize=True,
        dask="parallelized",
        output_dtypes=[float],
    ),
    "map_blocks": lambda: cube().map_blocks(lambda part: part + part.time.dt.month, template=cube() + 0.0),
    "shift, diff, pad": lambda: [cube().air.shift(time=2).diff("time"), cube().air.pad(lat=1, constant_values=0)],
    "stack, where and select": lambda: [
        cube().air.stack(p=("lat", "lon")).isel(p=slice(3, 9)),
        cube().air.where(cube().rain > 0.5).sel(time="2020-02"),
    ],
    "cumulative and fill": lambda: cube().air.where(cube().air > 0.2).fillna(0.5).cumsum("time"),
    "dot and corr": lambda: [xr.dot(cube().air, cube().rain, dim="time"), xr.corr(cube().air, cube().rain, dim="time")],
    "concat and merge": lambda: xr.concat([cube(), cube() + 1], dim="run").mean("run"),
}


def _slope(values):
    return np.polyfit(np.arange(len(values)), values, 1)[0]


DELAYED = {
    "a tree": lambda: dask.delayed(sum)([dask.delayed(inc)(i) for i in range(10)]),
    "nested arguments": lambda: dask.delayed(same)(
        [dask.delayed(inc)(1), {"k": (dask.delayed(inc)(2),)}], k={"a": dask.delayed(inc)(3)}, s=slice(1, 2)
    ),
    "operators": lambda: (dask.delayed([3, 1, 2])[0] + 5) * dask.delayed(2) - 1,
    "methods": lambda: dask.delayed("a,b").split(",").index("b"),
    "literals": lambda: dask.delayed([1, "x", None, {"a": (inc, 1)}]),
    "of collections": lambda: dask.delayed(same)(numbers().sum(), words().count(), table().value.sum()),
    "pure": lambda: [dask.delayed(add, pure=True)(1, dask.delayed(inc, pure=True)(1)) for _ in range(3)],
}

ALL = {
    f"{group}: {name}": make
    for group, cases in (
        ("array", ARRAYS),
        ("dataframe", FRAMES),
        ("bag", BAGS),
        ("delayed", DELAYED),
        ("xarray", XARRAYS),
    )
    for name, make in cases.items()
}


def check(value, expected):
    """Raise unless two results are the same in type and value; floating point numbers nearly so."""
    assert type(value) is type(expected)
    if isinstance(expected, (list, tuple)):
        assert len(value) == len(expected)
        for item, other in zip(value, expected, strict=True):
            check(item, other)
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(value, expected)
    elif isinstance(expected, pd.Series):
        pd.testing.assert_series_equal(value, expected)
    elif isinstance(expected, (xr.Dataset, xr.DataArray)):
        xr.testing.assert_allclose(value, expected)
        assert value.attrs == expected.attrs
    elif isinstance(expected, (np.ndarray, np.floating)):
        assert value.dtype == expected.dtype
        np.testing.assert_allclose(value, expected)
    else:
        assert value == expected


def run(lazy, **kwargs):
    """Compute by dask: one collection, or a list of them together."""
    return dask.compute(*lazy, **kwargs) if isinstance(lazy, list) else lazy.compute(**kwargs)


@pytest.fixture(scope="module")
def expected():
    """The results of dask's own scheduler, each computed once."""
    known: dict = {}

    def result(name):
        if name not in known:
            known[name] = run(ALL[name](), scheduler="sync")
        return known[name]

    return result


@pytest.mark.parametrize("name", list(ALL))
def test_computations_are_the_same(name, get, expected):
    with dask.config.set(scheduler=get):
        check(run(ALL[name]()), expected(name))


@pytest.mark.parametrize("name", list(ALL))
def test_computations_by_our_compute_are_the_same(name, expected):
    lazy = ALL[name]()
    many = lazy if isinstance(lazy, list) else [lazy]
    values = compute(*many, scheduler="threads")
    check(values if isinstance(lazy, list) else values[0], expected(name))


# -- files


def test_reading_and_writing_tables(get, tmp_path):
    with dask.config.set(scheduler=get):
        table().to_parquet(tmp_path / "parquet")
        read = dd.read_parquet(tmp_path / "parquet", columns=["key", "value"])
        pd.testing.assert_frame_equal(read.compute(), frame()[["key", "value"]])
        check(read.groupby("key").value.sum().compute(), frame().groupby("key").value.sum())
        table().to_csv(str(tmp_path / "part-*.csv"), index=False)
        read = dd.read_csv(str(tmp_path / "part-*.csv"), blocksize=500, parse_dates=["when"])
        assert read.npartitions > 4
        pd.testing.assert_frame_equal(read.compute().reset_index(drop=True), frame(), check_dtype=False)


def test_reading_and_writing_text(get, tmp_path):
    with dask.config.set(scheduler=get):
        words().to_textfiles(str(tmp_path / "*.txt.gz"))
        assert db.read_text(str(tmp_path / "*.txt.gz")).map(str.strip).compute() == WORDS


def test_storing_arrays(get):
    if get is taskloom.multiprocessing.get:
        pytest.skip("dask stores into an array of this process's memory")
    target = np.zeros((40, 30))
    with dask.config.set(scheduler=get):
        da.store(numbers(), target)
    np.testing.assert_array_equal(target, numbers().compute(scheduler="sync"))


# -- how a scheduler is named, what it is given


def test_scheduler_as_an_argument(get):
    assert numbers((9,), 2).sum().compute(scheduler=get) == numbers((9,), 2).sum().compute(scheduler="sync")
    assert dask.compute(dask.delayed(inc)(1), words().count(), scheduler=get) == (2, 12)
    (kept,) = dask.persist(numbers(), scheduler=get)
    np.testing.assert_array_equal(kept.compute(scheduler="sync"), numbers().compute(scheduler="sync"))
    assert len(kept.__dask_graph__()) == 12


def test_number_of_workers_as_an_argument(get):
    assert dask.delayed(inc)(1).compute(scheduler=get, num_workers=2) == 2


def test_errors_are_the_users(get):
    def fails(x):
        raise LookupError(f"no {x}")

    with pytest.raises(LookupError, match="no 1") as caught:
        dask.delayed(fails)(1).compute(scheduler=get)
    assert caught.traceback[-1].name == "fails"


def test_callbacks_of_dask_are_not_called(get):
    # they are given dask's own run state, which there is not; ours serve instead, also for graphs of dask
    called = []
    ours = []

    class Dasks(DasksCallback):
        def _start(self, graph):
            called.append("start")

        def _pretask(self, key, graph, state):
            called.append("pretask")

    class Ours(Callback):
        def pretask(self, key):
            ours.append(key)

    lazy = dask.delayed(add)(dask.delayed(inc)(1), 1)
    with Dasks(), Profiler() as profiler, ProgressBar(), Ours():
        assert lazy.compute(scheduler=get) == 3
    assert called == []
    assert profiler.results == []
    assert len(ours) >= 1


# -- dask's in ours, ours in dask


def test_collections_of_dask_as_arguments():
    lazy = delayed(same)(
        numbers().sum(), [words().count(), {"k": table().value.max()}], dask.delayed(inc)(1), cube().air
    )
    (total, nested, two, air), _ = lazy.compute()
    assert total == numbers().sum().compute(scheduler="sync")
    assert nested == [12, {"k": frame().value.max()}]
    assert two == 2
    xr.testing.assert_identical(air, cube().air.compute(scheduler="sync"))
    assert (delayed(numbers()).sum() - delayed(dask.delayed(inc)(1))).compute() == pytest.approx(total - 2)


def test_ours_and_dasks_together(get):
    ours = delayed(inc)(1)
    values = compute({"o": ours, "a": numbers((4,), 2).sum()}, [table().key.sum(), words().count()], scheduler=get)
    assert values[0]["o"] == 2
    check(values[0]["a"], numbers((4,), 2).sum().compute(scheduler="sync"))
    assert values[1] == [frame().key.sum(), 12]
    kept = persist(ours, numbers((4,), 2), words(), scheduler=get)
    assert [type(k) for k in kept] == [type(ours), da.Array, db.Bag]
    assert compute(*kept)[::2] == (2, WORDS)


def test_ours_in_dask(get):
    x = delayed(inc)(1)
    y = delayed(add)(x, 10)
    assert dask.is_dask_collection(x)
    assert dask.compute(x, [y, {"k": x}], scheduler=get) == (2, [12, {"k": 2}])
    assert dask.compute(x, dask.delayed(inc)(1), numbers((4,), 2).size, scheduler=get) == (2, 2, 4)
    assert dask.delayed(sum)([x, y, dask.delayed(inc)(0)]).compute(scheduler=get) == 15
    assert dask.delayed(same)(k={"a": x}).compute(scheduler=get) == ((), {"k": {"a": 2}})
    (kept,) = dask.persist(y, scheduler=get)
    assert type(kept) is type(y)
    assert kept.compute(scheduler="sync") == 12
    (optimized,) = dask.optimize(y)
    assert optimized.compute(scheduler="sync") == 12


def test_dasks_collections_made_from_ours():
    parts = [delayed(np.full)(3, i) for i in range(2)]
    array = da.concatenate([da.from_delayed(part, (3,), int) for part in parts])
    np.testing.assert_array_equal(array.compute(), [0, 0, 0, 1, 1, 1])
    frames = [delayed(pd.DataFrame)({"a": [i]}) for i in range(3)]
    assert list(dd.from_delayed(frames, meta={"a": "i8"}).a.compute()) == [0, 1, 2]
    assert db.from_delayed([delayed(str.split)("a b"), delayed(str.split)("c")]).compute(scheduler="sync") == [
        "a",
        "b",
        "c",
    ]


def test_ours_made_from_dasks():
    assert delayed(sum)([part.sum() for part in numbers().to_delayed().flatten()]).compute() == pytest.approx(
        numbers().sum().compute(scheduler="sync")
    )
    assert compute(*table().to_delayed())[1].equals(table().partitions[1].compute(scheduler="sync"))


def test_drawn_by_dask(tmp_path):
    lazy = delayed(inc)(delayed(inc)(1, task_key="one"), task_key="two")
    assert to_graphviz(lazy.__dask_graph__()).source.count("label=") >= 2
    if shutil.which("dot"):
        dask.visualize(lazy, filename=str(tmp_path / "graph"), format="svg")
        assert "two" in (tmp_path / "graph.svg").read_text()


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_pickled_collections_of_dask_and_ours(pickler, get):
    lazy = delayed(add)(numbers((4,), 2).sum(), 1)
    again = pickler.loads(pickler.dumps(lazy))
    assert again.key == lazy.key
    assert again.compute(scheduler=get) == lazy.compute(scheduler="sync")
    assert pickler.loads(pickler.dumps(numbers((4,), 2))).sum().compute(scheduler=get) == pytest.approx(
        lazy.compute() - 1
    )


def test_inside_a_task():
    # a graph of dask computed within a task of ours, on each scheduler
    def inner(n):
        return int(da.ones(n, chunks=2).sum().compute(scheduler=taskloom.threaded.get))

    for scheduler in GETS:
        assert compute([delayed(inner)(n) for n in (3, 5)], scheduler=scheduler) == ([3, 5],)


def test_ours_in_dask_where_nothing_says_which_scheduler():
    # dask computes together only what wants the same scheduler by default
    x = delayed(inc)(1)
    for together in ((x, numbers()), (numbers(), x), (dask.delayed(inc)(1), x)):
        assert 2 in [value for value in dask.compute(*together) if isinstance(value, int)]
    kept = dask.persist(x, numbers((4,), 2))
    assert [type(k) for k in kept] == [type(x), da.Array]
    get = type(x).__dask_scheduler__
    assert get == dask.threaded.get
    assert dask.threaded.get == get
    assert get != dask.multiprocessing.get
    assert get != dask.get
    assert pickle.loads(pickle.dumps(get)) is get
