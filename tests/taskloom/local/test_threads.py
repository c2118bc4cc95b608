"""The pool of threads: its counts, whatever happens, and that no wake-up is lost."""

from __future__ import annotations

import random
import sys
import threading
import time

import pytest

from taskloom.graph.compile import compile_graph
from taskloom.local.run import Run
from taskloom.local.threads import ThreadPool, inside_task, run_on_pool, shared_pool


def inc(x):
    return x + 1


def until(condition, seconds=20.0):
    """Wait for something that will be so in a moment."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


def get(pool, graph, keys, workers):
    run = Run(compile_graph(graph, keys), "threads", workers, None, threading.RLock())
    try:
        run_on_pool(run, pool)
        return run.outcome()
    finally:
        run.forget()


@pytest.fixture
def pool(request):
    """A pool whose counts are right in the end, and whose threads are gone then."""
    pool = ThreadPool(f"pool-of-{request.node.name}")
    yield pool
    until(lambda: pool.free == pool.size)  # all wait, no ticket does
    assert pool.runs == ()
    assert pool.extra == 0
    until(lambda: len(threads_of(pool)) == pool.size)
    pool.most = 0  # one more task each, and they go
    gone = pool.size
    for _ in range(gone):
        with pool.lock:
            pool.free -= 1
        pool.tickets.put(Over())
    until(lambda: not threads_of(pool))
    assert pool.size == 0


class Over:
    """A ticket for a run that is over."""

    class run:
        context = None


def threads_of(pool):
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"{pool.name}-")]


def test_threads_come_only_for_work(pool):
    get(pool, {"x": 1, **{i: (inc, "x" if i == 2 else i - 1) for i in range(2, 50)}}, 49, 8)
    assert pool.size == 1  # a chain
    assert pool.most == 8
    barrier = threading.Barrier(5)
    get(pool, {("b", i): (barrier.wait, 20) for i in range(5)}, [("b", i) for i in range(5)], 8)
    assert pool.size == 5
    assert pool.made == 5


def test_inside_task(pool):
    assert not inside_task()
    assert get(pool, {"x": (inside_task,)}, "x", 1)
    assert not inside_task()


def test_the_shared_one_is_one():
    pools = []
    threads = [threading.Thread(target=lambda: pools.append(shared_pool())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, pools))) == 1


@pytest.mark.parametrize("workers", [2, 5])
def test_abandoned_threads_are_replaced_at_once_and_go_when_they_come_back(pool, workers):
    for _ in range(3):
        release = threading.Event()
        begun = threading.Barrier(workers)

        def stuck(release=release, begun=begun):
            begun.wait(20)
            release.wait(60)

        def fails(begun=begun):
            begun.wait(20)
            raise ValueError

        graph: dict = {("s", i): (stuck,) for i in range(workers - 1)} | {"f": (fails,)}
        with pytest.raises(ValueError):
            get(pool, graph, list(graph), workers)
        assert pool.size == 1
        barrier = threading.Barrier(workers)
        get(pool, {("b", i): (barrier.wait, 20) for i in range(workers)}, [("b", i) for i in range(workers)], workers)
        assert pool.size == workers
        assert len(threads_of(pool)) == 2 * workers - 1
        release.set()
        until(lambda: len(threads_of(pool)) == workers)


def test_a_ticket_that_waits_behind_stuck_threads_is_served_when_they_are_given_up(pool):
    release = threading.Event()
    begun = threading.Event()
    queued = threading.Event()

    def stuck():
        begun.set()
        release.wait(60)

    def first():
        run = Run(compile_graph({"s": (stuck,)}, "s"), "threads", 1, None, threading.RLock())
        try:
            from taskloom.local.threads import _Caller

            caller = _Caller(run, pool)
            cancel.append(caller.cancel)
            caller.conduct()
            run.outcome()
        except RuntimeError as error:
            ended.append(str(error))
        finally:
            run.forget()

    def second():
        queued.set()
        ended.append(get(pool, {"x": (inc, 1)}, "x", 1))

    cancel: list = []
    ended: list = []
    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert begun.wait(20)
    threads[1].start()
    assert queued.wait(20)
    cancel[0]()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert sorted(map(str, ended))[0] == "2"
    assert "was stopped" in sorted(map(str, ended))[1]
    release.set()


def test_threads_go_where_fewer_are(pool):
    """Four threads are with one run when another one comes: it gets two of them between tasks."""
    stop = threading.Event()
    full = threading.Barrier(5)
    shares = threading.Barrier(3)
    met = []

    def long(i):
        if i < 4:
            full.wait(20)
        return stop.wait(0.002)

    def meets():
        met.append(shares.wait(20))  # two threads at least, and the caller

    graph: dict = {("l", i): (long, i * 1.0) for i in range(40_000)}
    other = threading.Thread(target=get, args=(pool, graph, list(graph), 4))
    other.start()
    full.wait(20)

    def second():
        get(pool, {("m", i): (meets,) for i in range(2)}, [("m", 0), ("m", 1)], 4)

    caller = threading.Thread(target=second)
    caller.start()
    shares.wait(20)
    caller.join()
    assert other.is_alive()
    stop.set()
    other.join()
    assert len(met) == 2
    assert pool.size == 4


def random_graph(rng):
    graph: dict = {}
    for i in range(rng.randint(1, 12)):
        needs = [("k", rng.randrange(i)) for _ in range(rng.randint(0, min(i, 3)))]
        graph["k", i] = (total, *needs)
    return graph


def total(*parts):
    return sum(parts) + 1


def expected(graph):
    values: dict = {}
    for key, (_, *needs) in graph.items():
        values[key] = sum(values[need] for need in needs) + 1
    return values


@pytest.fixture
def frequent_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("own", [False, True])
def test_no_wake_up_is_lost(pool, frequent_switches, own):
    """Eight callers at once, thousands of small graphs; a task in ten starts a run of its own; some fail."""
    failures = []
    done = []

    def nests(rng_seed, workers):
        rng = random.Random(rng_seed)
        graph = random_graph(rng)
        return get(pool, graph, list(graph)[-1], workers)

    def fails():
        raise LookupError

    def caller(seed):
        rng = random.Random(seed)
        try:
            for _ in range(800):
                graph = random_graph(rng)
                keys = list(graph)
                workers = rng.randint(1, 4)
                kind = rng.random()
                if kind < 0.1:
                    graph["n"] = (nests, rng.random(), workers)
                    keys.append("n")
                if kind > 0.95:
                    graph["f"] = (fails,)
                    with pytest.raises(LookupError):
                        get(pool, graph, [*keys, "f"], workers)
                    continue
                results = get(pool, graph, keys, workers)
                values = expected(graph if "n" not in graph else {k: v for k, v in graph.items() if k != "n"})
                assert results[: len(values)] == tuple(values.values())
            done.append(seed)
        except BaseException as error:
            failures.append(error)

    if own:  # the callers are themselves tasks
        graph: dict = {("c", i): (caller, i) for i in range(8)}
        get(pool, graph, list(graph), 8)
    else:
        threads = [threading.Thread(target=caller, args=(seed,), daemon=True) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    assert not failures, failures[0]
    assert len(done) == 8
