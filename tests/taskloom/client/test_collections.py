"""Collections on a client: ours and dask's; who is the default."""

from __future__ import annotations

import collections
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


# --- annotations


@pytest.fixture
def sent(client, monkeypatch):
    """How many tasks were sent with which priority, retries, workers and resources; None stands for none of these."""
    found = collections.Counter()
    submit = client._engine.submit

    def note(columns, options):
        found[None if options is None else tuple(options[:4])] += len(columns.functions)
        submit(columns, options)

    monkeypatch.setattr(client._engine, "submit", note)

    def take():
        taken = dict(found)
        found.clear()
        return taken

    return take


def ways(client, collection):
    """All ways to have a collection computed on a client; the value of each."""
    yield collection.compute()
    yield client.compute(collection, sync=True)
    yield client.persist(collection).compute()
    yield taskloom.compute(collection)[0]
    yield taskloom.persist(collection)[0].compute()


@pytest.mark.parametrize("module", [dask, taskloom])
def test_annotations_of_delayed(client, sent, module):
    with module.annotate(priority=5, retries=2):
        one = module.delayed(inc)(1)
        with module.annotate(workers="worker-1"):
            two = module.delayed(inc)(one)
    three = module.delayed(inc)(two)
    for value in ways(client, three):
        assert value == 4
        found = sent()
        assert found.pop((5, 2, (), ())) == 1
        assert found.pop((5, 2, ("worker-1",), ())) == 1
        assert found.keys() == {None}
    # what is said of the whole is for those of which nothing is said
    assert client.compute(three, priority=-1, retries=7, sync=True) == 4
    assert sent() == {(5, 2, (), ()): 1, (5, 2, ("worker-1",), ()): 1, (-1, 7, (), ()): 1 + (module is taskloom)}


def test_annotated_tasks_run_where_they_may_and_as_often(client, cluster, tmp_path):
    def fail_once(name):
        if not os.path.exists(os.path.join(tmp_path, name)):
            open(os.path.join(tmp_path, name), "w").close()
            raise ValueError("once")
        return os.getpid()

    pid = cluster.worker_pids["worker-1"]
    for module, name in ((dask, "d"), (taskloom, "t")):
        with module.annotate(workers=["worker-1"], retries=1):
            many = [module.delayed(fail_once)(f"{name}{n}") for n in range(10)]
        assert set(module.delayed(list)(many).compute()) == {pid}
        with module.annotate(resources={"GPU": 1}):
            never = module.delayed(inc)(1)
        with pytest.raises(TimeoutError, match="no worker has the resource GPU"):
            client.compute(never).result(timeout=0.05)
        with module.annotate(workers="nobody", allow_other_workers=True):
            anywhere = module.delayed(inc)(1)
        assert anywhere.compute() == 2
        with module.annotate(priority=0.5):
            assert client.compute(module.delayed(inc)(1)).result() == 2


def test_annotations_of_dasks_arrays_and_bags(client, sent):
    da = pytest.importorskip("dask.array")
    import dask.bag as db

    x = da.arange(10, chunks=5)
    with dask.annotate(workers="worker-0", retries=3):
        y = x + 1
    z = (y * 2).sum()
    for value in ways(client, z):
        assert int(value) == 110
        assert sent()[0, 3, ("worker-0",), ()] == 2
    with dask.annotate(priority=lambda key: 7 + key[1]):
        bag = db.from_sequence(range(4), npartitions=2).map(inc)
    for collection, expected in ((bag, [1, 2, 3, 4]), (bag.map(inc), [2, 3, 4, 5])):
        for value in ways(client, collection):
            assert value == expected
            found = sent()
            assert (found[7, 0, (), ()], found[8, 0, (), ()]) == (2, 2)
    assert dask.compute(z, bag)[1] == [1, 2, 3, 4]
    assert {(0, 3, ("worker-0",), ()), (7, 0, (), ()), (8, 0, (), ())} <= sent().keys()
    assert int(z.compute(optimize_graph=False)) == 110
    assert sent()[0, 3, ("worker-0",), ()] == 2


def test_annotations_of_bags(client, sent):
    with taskloom.annotate(priority=4):
        bag = taskloom.bag.range(4, npartitions=2).map(inc)
    for value in ways(client, bag):
        assert value == [1, 2, 3, 4]
        assert sent()[4, 0, (), ()] == 2  # two steps are one task, as both have the same
    for value in ways(client, bag.map(inc)):
        assert value == [2, 3, 4, 5]
        assert sent()[4, 0, (), ()] == 4
    assert bag.compute(scheduler="sync") == [1, 2, 3, 4]


def test_dasks_setting_for_fusing_is_as_before(client):
    before = dask.config.get("optimization.fuse", None)
    with dask.annotate(priority=1):
        one = dask.delayed(inc)(1)
    assert one.compute() == 2
    assert dask.config.get("optimization.fuse", None) == before


def test_a_large_annotated_graph(client):
    """Annotations change from task to task, and what a later block needs stays."""
    graph = {}
    for n in range(600):
        with taskloom.annotate(priority=n % 3):
            graph[n] = taskloom.delayed(sum)([graph[m] for m in range(max(0, n - 3), n)] or [1])
    a, b, c = 1, 1, 2
    for _ in range(597):
        a, b, c = b, c, a + b + c
    assert graph[599].compute() == c
