"""Collections on a client: ours and dask's; who is the default."""

from __future__ import annotations

import os

import pytest

import taskloom
from taskloom._collections.running import get_scheduler
from taskloom.client import Client, Future, wait
from taskloom.errors import ClusterError

dask = pytest.importorskip("dask")


def inc(x):
    return x + 1


def where(*_):
    return os.getpid()


@pytest.fixture
def pids(cluster):
    return set(cluster.worker_pids.values())


def test_compute_gives_futures(client, pids):
    one = taskloom.delayed(inc)(1)
    bag = taskloom.bag.range(100, npartitions=5).map(inc)
    future = client.compute(one)
    assert isinstance(future, Future)
    assert future.result() == 2
    a, b, c, d = client.compute([one, bag, bag.sum(), "text"])
    assert (a.result(), b.result(), c.result(), d) == (2, list(range(1, 101)), 5050, "text")
    assert client.compute(one, sync=True) == 2
    assert client.compute([one, bag.sum(), 7], sync=True) == [2, 5050, 7]
    assert client.compute([]) == []
    assert client.compute(5) == 5
    same = client.compute([one, one])
    assert client.gather(same) == [2, 2]
    del same[0]
    assert same[0].result() == 2
    assert client.compute(taskloom.delayed(where)(1), workers="worker-0").result() in pids
    assert client.compute(taskloom.delayed([one, {"x": one}])).result() == [2, {"x": 2}]


def test_persist_keeps_values_on_the_cluster(client, tmp_path, until):
    def note(x):
        open(os.path.join(tmp_path, str(x)), "x").close()  # raises where it runs twice
        return x

    bag = taskloom.bag.range(8, npartitions=4).map(note)
    kept, total = client.persist([bag, bag.sum()])
    assert type(kept) is type(bag)
    assert kept.sum().compute() == 28
    assert kept.map(inc).compute() == list(range(1, 9))
    assert total.compute() == 28
    assert client.compute(kept.max()).result() == 7
    one = client.persist(taskloom.delayed(note)("one"))
    assert taskloom.delayed(str.upper)(one).compute() == "ONE"
    assert taskloom.persist(one)[0].compute() == "one"
    counters = [future.counter for future in client_futures(kept)]
    del kept, total, one, bag
    until(lambda: not client._engine.machine.wishes.keys() & set(counters))
    assert client.persist(5) == 5


def client_futures(collection):
    from taskloom.client.nested import futures_in

    return futures_in(dict(collection.__dask_graph__()))


def test_futures_inside_of_delayed(client):
    one = client.submit(inc, 1)
    assert taskloom.delayed(inc)(one).compute() == 3
    assert taskloom.delayed(sum)([one, 5, one]).compute() == 9
    assert dask.delayed(sum)([one, 5, one]).compute(scheduler=client.get) == 9


def test_dasks_collections(client, pids):
    da = pytest.importorskip("dask.array")
    import dask.bag as db

    x = da.arange(10_000, chunks=1000)
    assert int((x + x[::-1]).sum().compute()) == 99_990_000
    assert client.compute(x.sum()).result() == 49_995_000
    assert set(db.from_sequence(range(10), npartitions=5).map(where).compute()) <= pids
    kept = client.persist(x + 1)
    assert all(isinstance(future, Future) for future in dict(kept.dask).values())
    wait(client_futures(kept))
    assert int(kept.sum().compute()) == 50_005_000
    assert int(kept[5:15].sum().compute()) == sum(range(6, 16))
    total, ours = client.compute([kept.mean(), taskloom.delayed(inc)(1)])
    assert (total.result(), ours.result()) == (5000.5, 2)
    assert dask.delayed(where)(1).compute() in pids
    assert dask.compute(dask.delayed(inc)(1), x.max()) == (2, 9999)
    assert dask.delayed(where)(1).compute(scheduler="sync") == os.getpid()


def test_dasks_data_frames(client):
    pd = pytest.importorskip("pandas")
    dd = pytest.importorskip("dask.dataframe")
    table = pd.DataFrame({"k": [1, 2, 1, 2] * 25, "v": range(100)})
    frame = dd.from_pandas(table, npartitions=4)
    expected = table.groupby("k").v.sum()
    assert frame.groupby("k").v.sum().compute().sort_index().equals(expected)
    assert client.compute(frame.groupby("k").v.sum()).result().sort_index().equals(expected)
    kept = client.persist(frame.assign(w=frame.v * 2))
    assert int(kept.w.sum().compute()) == 9900
    assert client.compute(kept).result().w.sum() == 9900


def test_xarray(client):
    xr = pytest.importorskip("xarray")
    np = pytest.importorskip("numpy")
    pytest.importorskip("dask.array")
    array = xr.DataArray(np.arange(12.0).reshape(3, 4), dims=("a", "b")).chunk({"a": 1})
    assert float((array * 2).sum().compute()) == 132.0
    assert float(client.compute(array.mean()).result()) == 5.5


def test_a_bag_is_grouped_through_tasks(client, monkeypatch):
    def refuse(*args):
        raise AssertionError("through files")

    monkeypatch.setattr("taskloom.bag.shuffle._through_files", refuse)
    groups = taskloom.bag.range(20, npartitions=4).groupby(lambda x: x % 3)
    assert sorted((key, sorted(items)) for key, items in groups.compute()) == [
        (n, list(range(n, 20, 3))) for n in range(3)
    ]
    with taskloom.config.set(scheduler="threads"), pytest.raises(AssertionError):
        taskloom.bag.range(20, npartitions=4).groupby(lambda x: x % 3)
    with pytest.raises(AssertionError):
        taskloom.bag.range(20, npartitions=4).groupby(lambda x: x % 3, method="disk")


def test_the_newest_client_is_the_default(client, cluster):
    assert Client.current() is client
    assert get_scheduler() == client.get
    with Client(cluster) as second:
        assert Client.current() is second
        with Client(cluster, set_as_default=False):
            assert Client.current() is second
        with Client(cluster) as third:
            assert get_scheduler() == third.get
            second.close()
            assert Client.current() is third
    assert get_scheduler() == client.get


def test_dasks_setting_is_as_before_afterwards(client, cluster):
    """The module's client is open: dask computes on it. What the user sets meanwhile counts."""
    assert dask.config.get("scheduler") == client.get
    with Client(cluster) as second:
        assert dask.config.get("scheduler") == second.get
    assert dask.config.get("scheduler") == client.get
    with dask.config.set(scheduler="threads"):
        assert dask.delayed(where)(1).compute() == os.getpid()
    assert dask.delayed(where)(1).compute() != os.getpid()


def test_no_client_no_default(run):
    code = """
import dask, taskloom
from taskloom.client import Client
from taskloom.errors import ClusterError
dask.config.set(scheduler="sync")
for before in ("sync", None):
    if before is None:
        del dask.config.config["scheduler"]
    with Client(n_workers=1) as client:
        assert dask.config.get("scheduler") == client.get
    assert dask.config.get("scheduler", None) == before
with Client(n_workers=1) as client:
    dask.config.set(scheduler="processes")
assert dask.config.get("scheduler") == "processes"
try:
    Client.current()
except ClusterError as error:
    print("make one" in str(error))
"""
    assert run(code) == "True\n"


def test_dask_that_is_imported_later(run):
    code = """
import sys
from taskloom.client import Client
with Client(n_workers=1) as client:
    assert "dask" not in sys.modules
    import dask
    assert dask.config.get("scheduler", None) is None
    print(client.compute(dask.delayed(abs)(-1)).result(), dask.config.get("scheduler") == client.get)
print(dask.config.get("scheduler", None))
"""
    assert run(code) == "1 True\nNone\n"


def test_errors_and_options_of_computed_collections(client):
    def fail():
        raise ValueError("mine")

    bad = client.compute(taskloom.delayed(fail)())
    with pytest.raises(ValueError, match="mine"):
        bad.result()
    with pytest.raises(ValueError, match="mine"):
        client.persist(taskloom.delayed(fail)()).compute()
    closed = Client(client.address, token=client.token, set_as_default=False)
    closed.close()
    for call in (closed.compute, closed.persist):
        with pytest.raises(ClusterError, match="closed"):
            call(taskloom.delayed(inc)(1))
