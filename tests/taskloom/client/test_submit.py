"""submit and map: arguments with futures in them, keys, options; what does not pickle."""

from __future__ import annotations

import functools
import os
import threading
import time
from operator import add

import numpy as np
import pytest

from taskloom.client import Client, wait
from taskloom.errors import ClusterError, SerializationError, TaskCancelledError

lock = threading.Lock()


def inc(x):
    return x + 1


def spin(folder, name=None):
    """Runs until it is stopped, or until a file says so; in Python code."""
    open(os.path.join(folder, f"{name or os.getpid()}.runs"), "w").close()
    while not os.path.exists(os.path.join(folder, "end")):
        time.sleep(0.001)
    return name


class Box:
    def __init__(self, inside):
        self.inside = inside


def test_futures_stand_for_their_values_wherever_they_are(client):
    one, two = client.submit(inc, 0), client.submit(inc, 1)

    def look(first, data, box, *, named):
        return first, data["list"][0], data["set"], data["deep"][1][0], box.inside, named

    data = {"list": [one], "set": {two}, "deep": (0, [[one, two]])}
    found = client.submit(look, two, data, Box(one), named=[two, "x"]).result()
    assert found == (2, 1, {2}, [1, 2], 1, [2, "x"])
    assert client.submit(add, one, two).result() == 3
    assert client.submit(add, two, two).result() == 4
    assert client.submit(max, [one, two, one, 7]).result() == 7
    rows = client.map(lambda a, b, c: (a, b, c), [one, 5], [[two], "x"], c=(one,))
    assert client.gather(rows) == [(1, [2], (1,)), (5, "x", (1,))]


def test_what_cannot_be_asked_for_is_said_at_once(client):
    for call in (client.submit, client.map):
        with pytest.raises(TypeError, match="what the cluster is to call is a function, not 3 of type int"):
            call(3, [1])
        for wrong in ("1", True):
            with pytest.raises(TypeError, match=f"a timeout is a number of seconds, or None, not {wrong!r}"):
                call(inc, [1], timeout=wrong)
        with pytest.raises(TypeError, match=r"resources is a dict of names and amounts, .*, not \['GPU'\]"):
            call(inc, [1], resources=["GPU"])
        with pytest.raises(TypeError, match="workers are names or addresses of workers, not 3"):
            call(inc, [1], workers=3)
    with pytest.raises(TypeError, match="map calls inc for each item of an iterable, and there is none"):
        client.map(inc)
    with pytest.raises(TypeError, match="a key is hashable, such as 'x'"):
        client.submit(inc, 1, key=["a"])
    with pytest.raises(TypeError, match="a key is hashable, such as 'x'"):
        client.map(inc, [1, 2], key=["a", ["b"]])
    with pytest.raises(TypeError, match="a timeout is a number of seconds, or None, not '1'"):
        client.scatter([1], timeout="1")
    future = client.submit(inc, 1, timeout=np.int64(60))
    for wait_for in (future.result, future.exception, lambda timeout: wait([future], timeout=timeout)):
        with pytest.raises(TypeError, match="a timeout is a number of seconds, or None, not '1'"):
            wait_for(timeout="1")
        with pytest.raises(ValueError, match="not nan"):
            wait_for(timeout=float("nan"))
    with pytest.raises(TypeError, match="a timeout is a number of seconds"):
        Client(client.address, token=client.token, timeout="soon")
    assert future.result(timeout=60) == 2


def test_what_dasks_submit_takes_besides(client):
    """With the meaning that it has here, or an error; but what the function takes is the function's."""

    def mine(x, allow_other_workers=None, *, actor=None):
        return x, allow_other_workers, actor

    assert client.submit(inc, 1, fifo_timeout="1s", actor=False, allow_other_workers=False).result() == 2
    assert client.submit(inc, 1, workers="nobody", allow_other_workers=True).result(timeout=60) == 2
    assert client.gather(client.map(inc, [1, 2], workers="nobody", allow_other_workers=True), timeout=60) == [2, 3]
    assert client.get({"x": (inc, 1)}, "x", workers="nobody", allow_other_workers=True, timeout=60) == 2
    assert client.submit(mine, 1, allow_other_workers=True, actor=2).result() == (1, True, 2)
    assert client.gather(client.map(mine, [1], actor=2, fifo_timeout=3)) == [(1, None, 2)]
    assert client.submit(dict, actors=1, fifo_timeout=2).result() == {"actors": 1, "fifo_timeout": 2}
    for call in (client.submit, client.map):
        with pytest.raises(TypeError, match=r"actor=True: this client makes no actors\. Submit functions"):
            call(inc, [1], actor=True)
        with pytest.raises(TypeError, match="allow_other_workers=True goes with workers=, and there is none"):
            call(inc, [1], allow_other_workers=True)
    assert client.submit(mine, 1, actors=0).result() == (1, None, None)


def test_a_future_in_many_places_of_one_argument_is_one_input(client):
    arrays = client.map(np.arange, range(300))
    again = [*arrays, *arrays]
    assert client.submit(lambda many: [len(a) for a in many], again).result() == [*range(300), *range(300)]


def test_values_that_stand_for_others_are_those_of_their_own_task(client):
    """Many threads open arguments at the same time; each has inputs of its own."""
    firsts = client.map(inc, range(200))
    seconds = client.map(lambda box: box[0] * 10, [[f] for f in firsts])
    assert client.gather(seconds) == [10 * (i + 1) for i in range(200)]


def test_futures_in_graphs_stand_for_their_values(client):
    one = client.submit(inc, 0)
    big = client.submit(np.ones, 100_000)
    graph = {"a": one, "b": (add, one, 10), "c": (sum, ["a", "b", one]), "d": (lambda d: d["x"], {"x": one}), "e": big}
    assert client.get(graph, ["a", "b", "c", "d"]) == (1, 11, 13, 1)
    assert client.get(graph, "e").sum() == 100_000
    assert client.get({"x": one, "y": one, "z": (add, "x", "y")}, ["x", "y", "z"]) == (1, 1, 2)
    assert one.result() == 1  # it is not released with the graph


def test_where_a_future_cannot_be(client, cluster):
    import copy
    import pickle

    future = client.submit(inc, 1)
    with pytest.raises(TypeError, match=r"travels only among the arguments of submit.*future\.result\(\)"):
        pickle.dumps(future)
    with pytest.raises(SerializationError, match=r"has a future inside.*pass it as one"):
        client.submit(lambda: future)
    with pytest.raises(TypeError, match="a future in what is to be scattered"):
        client.scatter([[future]])
    with Client(cluster, set_as_default=False) as other:
        for use in (
            lambda: other.submit(inc, future),
            lambda: other.submit(inc, [future]),
            lambda: other.map(inc, [1, future]),
            lambda: other.get({"x": (inc, future)}, "x"),
            lambda: other.get({"x": future}, "x"),
            lambda: other.gather([future]),
            lambda: other.cancel(future),
        ):
            with pytest.raises(TypeError, match="another client"):
                use()
        assert other.submit(inc, 1).result() == 2
    assert copy.copy(future) is future
    assert copy.deepcopy([future]) == [future]
    future.release()
    with pytest.raises(ClusterError, match="was released"):
        client.submit(inc, future)
    with pytest.raises(ClusterError, match="was released"):
        future.result()
    assert future.status == "lost"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda c: c.submit(inc, lock),
            "inc cannot be called.*its argument 1, of type lock, does not pickle: TypeError",
        ),
        (lambda c: c.submit(add, 1, [0, {"x": lock}]), "add cannot be called.*argument 2, of type list"),
        (lambda c: c.submit(dict, a=1, b=lock), "dict cannot be called.*argument 'b', of type lock"),
        (lambda c: c.map(inc, [1, 2, lock, 3]), "inc cannot be called.*argument 1, of type lock"),
        (lambda c: c.map(dict, [[]], b=lock), "dict cannot be called.*argument 'b', of type lock"),
        (lambda c: c.submit(functools.partial(inc, lock)), "the function inc cannot go to the cluster"),
        (lambda c: c.submit(lock.acquire), "the function lock.acquire cannot go to the cluster"),
        (lambda c: c.scatter([1, lock]), "data of type lock does not pickle"),
        (lambda c: c.get({"x": (inc, lock)}, "x"), "inc cannot be called.*argument 1, of type lock"),
        (lambda c: c.get({"x": (inc, (sum, [1, lock]))}, "x"), "the task 'x' cannot go to the cluster"),
        (lambda c: c.get({"x": lock}, "x"), "the task 'x' cannot go|identity cannot be called"),
        (lambda c: c.compute(__import__("taskloom").delayed(inc)(lock)), "does not pickle"),
    ],
)
def test_what_does_not_pickle_is_named_and_disturbs_nothing(client, call, words):
    held = set(client._engine.labels)
    with pytest.raises(SerializationError, match=words):
        call(client)
    assert set(client._engine.labels) <= held
    assert client.submit(inc, 1).result() == 2


def test_nothing_of_a_large_graph_is_left_when_its_end_does_not_pickle(client, tmp_path, until):
    base = client._engine.machine.next_counter
    graph = {("x", i): (inc, i) for i in range(1500)}
    graph["last"] = (inc, lock)
    graph["all"] = (sum, [*graph, (spin, str(tmp_path))])
    with pytest.raises(SerializationError):
        client.get(graph, ["all", *[("x", i) for i in range(1500)]])
    until(lambda: not any(counter >= base for counter in list(client._engine.machine.wishes)))
    assert client._engine.machine._pinned == {}
    assert not list(tmp_path.iterdir())
    assert client.get({"x": (inc, 1)}, "x") == 2


def test_a_map_of_which_one_does_not_pickle_runs_nothing(client, tmp_path):
    def touch(name):
        open(os.path.join(tmp_path, str(name)), "w").close()

    with pytest.raises(SerializationError):
        client.map(touch, [*range(1500), lock])
    assert client.submit(inc, 1).result() == 2
    assert not list(tmp_path.iterdir())


def test_arguments_are_those_of_the_moment_of_the_call(client, tmp_path):
    array, data = np.zeros(1_000_000), [1]
    gate = [client.submit(spin, str(tmp_path), n) for n in range(4)]  # all threads are busy
    future = client.submit(lambda a, d, _: (a.sum(), d), array, data, gate)
    scattered = client.scatter(array)
    array[:] = 1
    data.append(2)
    (tmp_path / "end").touch()
    assert future.result() == (0.0, [1])
    assert scattered.result().sum() == 0.0


def test_functions_are_those_of_the_moment_too(client):
    namespace = {"__name__": "__main__"}
    exec("factor = 2\ndef scale(x):\n    return factor * x\n", namespace)
    assert client.submit(namespace["scale"], 5).result() == 10
    namespace["factor"] = 3
    assert client.submit(namespace["scale"], 5).result() == 15
    assert client.gather(client.map(namespace["scale"], [1])) == [3]
    namespace["factor"] = 4
    assert client.get({"x": (namespace["scale"], 5)}, "x") == 20


def test_the_same_call_twice_is_two_tasks_unless_it_is_pure(client, tmp_path):
    def note(x):
        name = os.path.join(tmp_path, f"{time.monotonic_ns()}-{os.getpid()}")
        open(name, "w").close()
        return name

    assert len(set(client.gather([client.submit(note, 1), client.submit(note, 1)]))) == 2
    one, two, three = (client.submit(note, n, pure=True) for n in (1, 1, 2))
    assert one.key == two.key != three.key
    assert one.result() == two.result() != three.result()
    first = one.result()
    del one
    assert client.submit(note, 1, pure=True).result() == first
    del two
    names = client.gather(client.map(note, [5, 5, 6, 5], pure=True))
    assert names[0] == names[1] == names[3] != names[2]


def test_a_pure_task_is_forgotten_with_its_last_future(client, until):
    future = client.submit(inc, 41, pure=True)
    other = client.submit(inc, 41, pure=True)
    key, counter = future.key, future.counter
    assert other.counter == counter
    del future
    assert other.result() == 42
    client.submit(inc, 1).result()
    assert client._engine._keys[key] == counter
    del other
    until(lambda: key not in client._engine._keys)
    assert client._engine._refs == {}
    again = client.submit(inc, 41, pure=True)
    assert again.counter != counter
    assert again.result() == 42


def test_futures_are_part_of_what_makes_a_call_the_same(client):
    one, two = client.map(inc, [1, 1])
    same = client.submit(inc, one, pure=True), client.submit(inc, one, pure=True)
    assert same[0].counter == same[1].counter != client.submit(inc, two, pure=True).counter


def test_keys(client):
    one = client.submit(inc, 1, key="mine")
    assert one.key == "mine"
    assert client.submit(inc, 100, key="mine").result() == 2  # it lives: it is that task
    assert client.submit(inc, 100, key=("mine", 2)).result() == 101
    named = client.map(inc, [1, 2, 3], key=["a", "mine", "a"])
    assert [future.key for future in named] == ["a", "mine", "a"]
    assert client.gather(named) == [2, 2, 2]
    assert client.map(inc, [1], key="start")[0].key.startswith("start-")
    with pytest.raises(ValueError, match="2 calls of inc, and 1 keys"):
        client.map(inc, [1, 2], key=["a"])
    one.cancel()
    assert client.submit(inc, 1, key="mine").result() == 2


def test_a_key_whose_task_was_cancelled_is_free(client, tmp_path):
    first = client.submit(spin, str(tmp_path), key="again")
    first.cancel()
    second = client.submit(inc, 1, key="again")
    assert second.result() == 2
    assert first.cancelled()
    del first
    assert client.submit(inc, 100, key="again").result() == 2


def test_priority(tmp_path, cluster):
    """One thread; what waits goes by priority."""
    with Client(n_workers=1, threads_per_worker=1, set_as_default=False) as client:
        gate = client.submit(spin, str(tmp_path))
        after = [
            client.submit(lambda _, n=n: (n, time.monotonic_ns()), gate, priority=n, key=f"p{n}") for n in (0, -5, 7, 3)
        ]
        (tmp_path / "end").touch()
        order = [n for n, _ in sorted(client.gather(after), key=lambda pair: pair[1])]
        assert order == [7, 3, 0, -5]


def test_retries(client, tmp_path):
    def fail_twice(folder):
        os.makedirs(folder, exist_ok=True)
        count = len(os.listdir(folder))
        open(os.path.join(folder, str(count)), "w").close()
        if count < 2:
            raise ValueError(f"failed {count}")
        return count

    assert client.submit(fail_twice, str(tmp_path / "a"), retries=2).result() == 2
    with pytest.raises(ValueError, match="failed 1"):
        client.submit(fail_twice, str(tmp_path / "b"), retries=1).result()
    assert client.get({"x": (fail_twice, str(tmp_path / "c"))}, "x", retries=5) == 2
    for bad in (-1, True, 1.5):
        with pytest.raises(ValueError, match="retries"):
            client.submit(inc, 1, retries=bad)


def test_workers_by_name_and_by_address(client):
    info = client.scheduler_info()["workers"]
    assert set(info) == {"worker-0", "worker-1"}

    def where(n):
        return os.getpid()

    for name, worker in info.items():
        for workers in (name, [name], worker["address"], {worker["address"]}):
            assert set(client.gather(client.map(where, range(4), workers=workers))) == {worker["pid"]}
    assert client.get({"x": (where, 1)}, "x", workers="worker-1") == info["worker-1"]["pid"]
    with pytest.raises(ValueError, match=r"there is no worker at tcp://127\.0\.0\.1:9; there are: tcp://"):
        client.submit(inc, 1, workers="tcp://127.0.0.1:9")
    with pytest.raises(TypeError, match="workers are names"):
        client.submit(inc, 1, workers=[1])


def test_resources(tmp_path):
    with Client(n_workers=1, threads_per_worker=4, resources={"GPU": 1}, set_as_default=False) as client:

        def alone(folder):
            busy = os.path.join(folder, "busy")
            os.mkdir(busy)  # raises where another one is at it
            time.sleep(0.002)
            os.rmdir(busy)

        client.gather(client.map(alone, [str(tmp_path)] * 10, resources={"GPU": 1}))
        for bad in (-1, True, "1"):
            with pytest.raises(ValueError, match="of the resource 'GPU'"):
                client.submit(inc, 1, resources={"GPU": bad})


def test_a_timeout_stops_the_task(client, tmp_path, until):
    future = client.submit(spin, str(tmp_path), "x", timeout=0.3)
    after = client.submit(inc, future)
    with pytest.raises(TimeoutError, match=r"not done 0\.3 s after it was submitted \(task 'spin-"):
        future.result()
    assert future.status == "error"
    with pytest.raises((TaskCancelledError, TimeoutError)):
        after.result()
    done = client.submit(inc, 1, timeout=60)
    assert done.result() == 2
    many = client.map(spin, [str(tmp_path)] * 3, timeout=0.1)
    wait(many)
    assert [type(future.exception()) for future in many] == [TimeoutError] * 3


def test_many_arguments_and_long_ones(client):
    text = "x" * 5000
    assert client.submit(lambda *args: len(args), *range(2000)).result() == 2000
    assert client.submit(len, text).result() == 5000
    assert client.gather(client.map(len, [text] * 300)) == [5000] * 300
    assert client.submit(lambda *args: sum(args), *client.map(inc, range(1200))).result() == sum(range(1, 1201))
    assert client.submit(inc, 2**70).result() == 2**70 + 1


def test_blocks_of_large_arguments(client):
    arrays = [np.full(200_000, n, np.uint8) for n in range(100)]  # 20 MB: several blocks
    assert client.gather(client.map(lambda a: int(a[0]), arrays)) == list(range(100))
    graph = {("a", n): (lambda a: int(a[-1]), array) for n, array in enumerate(arrays)}
    graph["sum"] = (sum, [("a", n) for n in range(100)])
    assert client.get(graph, ["sum", ("a", 7)]) == (4950, 7)


def test_a_function_by_value_is_what_it_is_at_each_call(client):
    space = {}
    exec("def plain(x): return len([x])\ndef other(x): return x + step", space)
    space["__name__"] = "__main__"
    plain, other = space["plain"], space["other"]
    plain.__module__ = other.__module__ = "__main__"
    assert [client.submit(plain, 1).result() for _ in range(2)] == [1, 1]
    space["len"] = lambda items: 7  # from now on it uses a global of its program's
    assert client.submit(plain, 1).result() == 7
    for step in (1, 2):
        space["step"] = step
        assert client.submit(other, 1).result() == 1 + step


def test_short_chains_on_workers_with_several_threads(client):
    """The word that the second task has ended may come before that of the first, which another thread ran."""
    for n in range(300):
        assert client.get({"x": n, "y": (sum, ["x", 10])}, "y", timeout=30) == n + 10
