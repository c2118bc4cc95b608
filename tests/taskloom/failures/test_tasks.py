"""Tasks that go wrong, in every way: the one who wanted them hears why, and nobody else is disturbed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

import pytest

from taskloom.errors import SerializationError, TaskloomError, WorkerDiedError


def inc(x):
    return x + 1


class Locked:
    """Does not pickle, and says so in its own words."""

    def __init__(self):
        self.lock = threading.Lock()


class Sour:
    """Pickles, and cannot be opened."""

    def __reduce__(self):
        return _refuse, ("it has turned sour",)


def _refuse(words):
    raise ValueError(words)


@pytest.fixture(autouse=True)
def others_go_on(place):
    """Another client's work goes on meanwhile, all of it."""
    other = place.another()
    futures = other.map(inc, range(200))
    chain = [other.submit(inc, 0)]
    for _ in range(20):
        chain.append(other.submit(inc, chain[-1]))
    yield
    assert other.gather(futures, timeout=60) == list(range(1, 201))
    assert chain[-1].result(timeout=60) == 21
    assert place.client.submit(inc, 1).result(timeout=60) == 2
    other.close()


# --- what does not pickle


def test_a_function_that_does_not_pickle(place):
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"cannot pickle '_thread\.lock' object"):
        place.client.submit(lambda: lock)
    with pytest.raises(TypeError, match="cannot pickle"):
        place.client.get({"x": (lambda: lock,)}, "x")


def test_an_argument_that_does_not_pickle(place):
    with pytest.raises(TypeError, match="cannot pickle"):
        place.client.submit(inc, Locked())
    with pytest.raises(TypeError, match="cannot pickle"):
        place.client.map(inc, [1, threading.Lock()])


def test_a_function_or_argument_that_cannot_be_opened(place):
    def call(x):
        return x

    with pytest.raises(ValueError, match="it has turned sour"):
        place.client.submit(call, Sour()).result(timeout=30)
    with pytest.raises(ValueError, match="it has turned sour"):
        place.client.submit(lambda x=Sour(): x).result(timeout=30)


def test_a_result_that_does_not_pickle_and_is_fetched(place):
    future = place.client.submit(Locked)
    with pytest.raises(TypeError, match=r"cannot pickle '_thread\.lock' object"):
        future.result(timeout=30)
    # large ones are pickled when they are fetched
    large = place.client.submit(lambda: [bytes(3_000_000), threading.Lock()])
    with pytest.raises(TypeError, match=r"cannot pickle '_thread\.lock' object"):
        large.result(timeout=30)


def test_a_value_that_does_not_pickle_is_fine_where_it_is_made(place):
    graph = {"a": (lambda: [bytes(100_000), threading.Lock()],), "b": (len, "a")}
    assert place.client.get(graph, "b") == 2


def one_of_each(place, size, kind, folder):
    """Futures of (pid, bytes, kind()), one on each of the two workers."""
    folder = str(folder)

    def make(n):
        time.sleep(0.005)
        with open(os.path.join(folder, f"{n}-{os.getpid()}"), "w"):
            return os.getpid(), bytes(size), kind()

    for _ in range(50):
        made = place.client.map(make, range(10))
        place.until(lambda made=made: all(future.done() for future in made))
        pids = {int(name.partition("-")[2]): int(name.partition("-")[0]) for name in os.listdir(folder)}
        if len(pids) == 2:
            return [made[n] for n in pids.values()]
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
    raise AssertionError("one worker has done all")


@pytest.mark.parametrize("size", [100_000, 3_000_000])
def test_a_value_that_does_not_pickle_and_is_needed_elsewhere(place, size, tmp_path):
    """Each of two workers makes one, and a task needs both."""
    made = one_of_each(place, size, threading.Lock, tmp_path)
    both = place.client.submit(lambda a, b: 1, *made)
    words = r"a tuple on worker 'worker-\d' is needed elsewhere and does not pickle: TypeError: cannot pickle '_thread"
    with pytest.raises(SerializationError, match=words):
        both.result(timeout=30)


def test_a_value_that_cannot_be_opened_elsewhere(place, tmp_path):
    made = one_of_each(place, 100_000, Sour, tmp_path)
    both = place.client.submit(lambda a, b: 1, *made)
    with pytest.raises(SerializationError, match="cannot be unpickled here: ValueError: it has turned sour"):
        both.result(timeout=30)
    with pytest.raises(SerializationError, match="does not unpickle in this process: ValueError: it has turned sour"):
        made[0].result(timeout=30)


class Odd(Exception):
    def __init__(self, lock):
        super().__init__("odd")
        self.lock = lock


def test_an_error_that_does_not_pickle(place):
    def fail():
        raise Odd(threading.Lock())

    with pytest.raises(Exception, match="odd"):
        place.client.submit(fail).result(timeout=30)


# --- what raises


def test_a_task_that_raises(place):
    def fail(x):
        raise KeyError(x)

    future = place.client.submit(fail, "this")
    behind = place.client.submit(inc, future)
    for one in (future, behind):
        with pytest.raises(KeyError, match="this"):
            one.result(timeout=30)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_task_that_wants_to_end_everything_ends_itself(place, kind):
    before = place.cluster.worker_pids

    def fail():
        raise kind("enough")

    with pytest.raises(kind, match="enough"):
        place.client.submit(fail).result(timeout=30)
    with pytest.raises(SystemExit):
        place.client.submit(sys.exit, 3).result(timeout=30)
    assert set(place.client.gather(place.client.map(lambda _: os.getpid(), range(20)))) <= set(before.values())
    assert place.cluster.worker_pids == before


def test_a_recursion_without_end(place):
    def down(n):
        return down(n + 1)

    with pytest.raises(RecursionError):
        place.client.submit(down, 0).result(timeout=30)


def test_memory_that_python_does_not_get(place):
    with pytest.raises(MemoryError):
        place.client.submit(lambda: bytearray(1 << 62)).result(timeout=30)


# --- what ends the process


def exits():
    os._exit(3)


def exits_well():
    os._exit(0)


def faults():
    ctypes.string_at(0)


def kills_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def complains_and_dies():
    print("the licence has run out", file=sys.stderr, flush=True)
    os._exit(5)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (exits, "ended with exit code 3"),
        (exits_well, "ended with exit code 0"),
        (faults, "was killed by signal 11 (SIGSEGV); native code went wrong"),
        (kills_itself, "was killed by signal 9 (SIGKILL); that is what the system does"),
        (complains_and_dies, "ended with exit code 5; its last words: the licence has run out"),
    ],
)
def test_a_task_that_ends_its_process(place, function, words, capfd):
    with pytest.raises(WorkerDiedError) as caught:
        place.client.submit(function).result(timeout=60)
    assert "4 workers died while running it, the last one 'worker-" in str(caught.value)
    assert words in str(caught.value)
    place.cluster.wait_for_workers()
    assert len(place.cluster.worker_pids) == 2
    assert "Traceback" not in capfd.readouterr().err


def test_who_ran_beside_a_task_that_ended_its_process_is_not_blamed(make_place):
    """Those that were queued behind it, and that wait for it, run elsewhere, however often it happens."""
    place = make_place(n_workers=1)
    bad = place.client.submit(exits)
    behind = place.client.map(inc, range(100))
    with pytest.raises(WorkerDiedError):
        bad.result(timeout=60)
    assert place.client.gather(behind, timeout=60) == list(range(1, 101))
    assert issubclass(WorkerDiedError, TaskloomError)
