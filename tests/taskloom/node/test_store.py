"""The values of a worker: what is where, what is pinned, what goes wrong; with real files, real processes and real limits."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pandas as pd
import pytest

from taskloom.node.memory import MemoryPolicy, Pause, Resume, Terminate
from taskloom.node.spill import SpillError, SpillFolder, remove_orphans
from taskloom.node.store import _ABSENT, Store
from taskloom.serialize.objects import dumps, loads

KB = 1024
MB = 1024 * KB


def only_target(limit):
    """Values go to disk above 60% of the limit; what the process takes does not matter."""
    return MemoryPolicy(limit, spill=None, pause=None, terminate=None)


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path)


@pytest.fixture
def make(folder):
    made = []

    def make(limit, **kwargs):
        store = Store(policy=only_target(limit), folder=folder, **kwargs)
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()
        assert store._thread is None or not store._thread.is_alive()
    assert os.listdir(folder) == []


def in_memory(store):
    """tids of the values in memory."""
    assert store.settle()
    return {tid for tid, entry in store._entries.items() if entry.value is not _ABSENT}


def files(folder):
    return sorted(name for _, _, names in os.walk(folder) for name in names if name != "owner")


def block(n, size=100 * KB):
    return np.full(size // 8, float(n))


# --- values


def test_values_come_and_go():
    store = Store()
    assert store.put(1, b"x" * 1000) >= 1000
    assert store.put(2, "two", size=17) == 17
    assert store.get(1) == b"x" * 1000
    assert (len(store), list(store), 1 in store, 3 in store) == (2, [1, 2], True, False)
    assert store.size_of(2) == 17
    store.forget([1, 99])
    with pytest.raises(KeyError):
        store.get(1)
    assert store.counts().memory_bytes == 17
    store.put(2, "three", size=5)
    assert (store.get(2), store.counts().memory_bytes) == ("three", 5)
    assert store.check() == []
    store.close()
    assert len(store) == 0


def test_names_change():
    store = Store()
    for n in (1, 2, 3):
        store.put(n, f"value {n}", size=n)
    store.rename({1: 2, 2: 1, 3: -3, 7: 8})
    assert {tid: store.get(tid) for tid in store} == {2: "value 1", 1: "value 2", -3: "value 3"}
    store.put(5, "copy", size=10)
    store.rename({-3: 5})  # the same value, that came another way
    assert store.get(5) == "copy"
    assert store.counts().memory_bytes == 13
    assert store.counts().values == 3
    store.close()


def test_a_forgotten_value_is_not_kept_alive():
    class Thing:
        pass

    store = Store(10 * MB)
    things = [Thing(), Thing(), Thing()]
    refs = [weakref.ref(thing) for thing in things]
    for n, thing in enumerate(things):
        store.put(n, thing)
    del things, thing
    store.forget([0])
    store.put(1, None)
    store.rename({2: 1})
    gc.collect()
    assert [ref() for ref in refs] == [None] * 3
    store.close()


def test_a_destructor_may_use_the_store():
    store = Store(10 * MB)

    class Thing:
        def __del__(self):
            store.put(100, "from a destructor")

    store.put(1, Thing())
    store.forget([1])
    assert store.get(100) == "from a destructor"
    store.close()


# --- to disk and back


def test_what_was_not_used_for_longest_goes_to_disk(make, folder):
    store = make(MB)  # target: 600 KB
    for n in range(5):
        store.put(n, block(n))
    assert in_memory(store) == {0, 1, 2, 3, 4}
    store.get(0)
    store.get(2)
    for n in range(5, 8):
        store.put(n, block(n))
    assert in_memory(store) == {0, 2, 4, 5, 6, 7}
    counts = store.counts()
    assert (counts.values, counts.on_disk) == (8, 2)
    assert 200 * KB <= counts.disk_bytes <= 201 * KB
    assert counts.memory_bytes <= 0.6 * MB
    assert len(files(folder)) == 2


VALUES = [
    np.arange(50_000.0).reshape(100, 500),
    np.asfortranarray(np.arange(50_000.0).reshape(100, 500)),
    np.arange(50_000.0)[::3],
    np.array([b"x" * n for n in range(2000)], dtype=object),
    pd.DataFrame({"a": np.arange(20_000.0), "b": [f"row {i}" for i in range(20_000)]}),
    b"z" * 400_000,
    bytearray(b"y" * 400_000),
    "é" * 200_000,
    [{"i": i, "text": "t" * (i % 50)} for i in range(5000)],
    {"mixed": [np.zeros(10_000), b"q" * 100_000, None]},
    lambda x: x + 1,
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_come_back_as_they_were(make, value):
    store = make(10)
    store.put(1, loads(*dumps(value)), size=100)  # one of its own: what others have a reference to stays
    assert in_memory(store) == set()
    found = store.get(1)
    assert type(found) is type(value)
    if isinstance(value, np.ndarray):
        assert np.array_equal(found, value)
        assert found.flags.writeable
    elif isinstance(value, pd.DataFrame):
        pd.testing.assert_frame_equal(found, value)
    elif isinstance(value, dict):
        assert np.array_equal(found["mixed"][0], value["mixed"][0])
        assert found["mixed"][1:] == value["mixed"][1:]
    elif callable(value):
        assert found(1) == 2
    else:
        assert found == value


def test_a_value_that_is_used_again_goes_again_without_being_written(make, folder):
    store = make(MB)
    store.put(1, block(1, 700 * KB))
    assert in_memory(store) == set()
    written = store.counts().written_bytes
    for _ in range(3):
        value = store.get(1)
        assert value[0] == 1.0
        value[0] = 5.0  # it should not, and nobody else may see it
        del value
        assert in_memory(store) == set()
    assert store.counts().written_bytes == written
    assert store.counts().read_bytes == 3 * written
    assert len(files(folder)) == 1


def test_a_mapped_value_outlives_its_file(make, folder):
    store = make(10)
    store.put(1, block(7, MB))
    assert in_memory(store) == set()
    value = store.get(1)
    assert store._disk.mapped() > MB
    store.forget([1])
    assert store.settle()
    assert files(folder) == []
    assert float(value.sum()) == 7.0 * MB / 8
    del value
    gc.collect()
    assert store._disk.mapped() == 0


def test_a_value_beyond_the_limit_goes_alone(make):
    store = make(MB)
    for n in range(4):
        store.put(n, block(n))
    store.put(9, block(9, 2 * MB))
    assert in_memory(store) == {0, 1, 2, 3}
    assert store.get(9)[-1] == 9.0
    assert in_memory(store) == {0, 1, 2, 3}


def test_small_values_go_last(make):
    store = make(MB)
    for n in range(100):
        store.put(n, b"s" * 1000)
    for n in range(100, 108):
        store.put(n, block(n))
    assert in_memory(store) >= set(range(100))
    store.forget(range(100, 108))
    for n in range(1000, 2000):
        store.put(n, b"t" * 1000 + b"%d" % n)
    assert store.settle()
    counts = store.counts()
    assert counts.memory_bytes <= 0.6 * MB
    assert counts.on_disk > 300
    assert all(store.get(n) == b"t" * 1000 + b"%d" % n for n in range(1000, 2000))


def test_what_is_forgotten_goes_from_the_disk_too(make, folder):
    store = make(10)
    for n in range(5):
        store.put(n, block(n))
    assert in_memory(store) == set()
    store.put(1, "replaced", size=1)
    store.rename({2: 22})
    store.forget([0, 3, 4])
    assert store.settle()
    assert len(files(folder)) == 1
    assert store.get(22)[0] == 2.0
    assert store.get(1) == "replaced"


# --- pins


def test_what_is_pinned_stays(make):
    store = make(MB)
    store.put(1, block(1))
    with store.pin([1]) as pins:
        for n in range(2, 12):
            store.put(n, block(n))
        assert 1 in in_memory(store)
        assert pins.get(1)[0] == 1.0
    for n in range(12, 24):  # it has just been used, and is passed over once
        store.put(n, block(n))
        assert store.settle()
    assert 1 not in in_memory(store)


def test_what_is_pinned_can_be_had_though_it_was_forgotten_or_has_another_name(make, folder):
    store = make(10)
    for n in (1, 2, 3):
        store.put(n, block(n))
    assert in_memory(store) == set()
    pins = store.pin([1, 2, 3])
    store.forget([1])
    store.rename({2: 20})
    store.put(3, block(33))
    assert 1 not in store
    with pytest.raises(KeyError):
        store.get(1)
    assert [pins.get(n)[0] for n in (1, 2, 3)] == [1.0, 2.0, 3.0]
    assert store.get(20)[0] == 2.0
    assert store.get(3)[0] == 33.0
    pins.release()
    pins.release()
    assert in_memory(store) == set()
    assert len(files(folder)) == 2
    assert store.counts().memory_bytes == 0
    with pytest.raises(KeyError):
        pins.get(2)


def test_a_pin_of_something_that_is_not_there_pins_nothing(make):
    store = make(10)
    store.put(1, block(1))
    with pytest.raises(KeyError):
        store.pin([1, 2])
    assert in_memory(store) == set()


def test_pinned_twice(make):
    store = make(10)
    first, second = None, None
    store.put(1, block(1))
    first, second = store.pin([1]), store.pin([1, 1])
    store.get(1)
    first.release()
    assert in_memory(store) == {1}
    second.release()
    assert in_memory(store) == set()


# --- to be sent


def test_parts_are_the_pickle_wherever_the_value_is(make):
    store = make(MB)
    store.put(1, block(1))
    stream, buffers = store.parts(1)
    assert loads(stream, buffers)[0] == 1.0
    assert np.shares_memory(np.frombuffer(buffers[0]), store.get(1))
    store.put(2, block(2, 2 * MB))
    assert 2 not in in_memory(store)
    stream, buffers = store.parts(2)
    assert loads(stream, buffers)[0] == 2.0
    assert 2 not in in_memory(store)  # it was sent from its file
    with pytest.raises(KeyError):
        store.parts(3)


# --- what goes wrong


class Stubborn:
    def __reduce__(self):
        raise TypeError("never")


def test_what_does_not_pickle_stays_and_is_counted(make, caplog):
    store = make(1000)
    store.put(1, Stubborn(), size=5000)
    thing = weakref.ref(store.get(1))
    store.put(2, Stubborn(), size=5000)
    store.put(3, block(3))
    assert in_memory(store) == {1, 2}
    assert store.get(1) is thing() is not None
    counts = store.counts()
    assert (counts.unpicklable, counts.unpicklable_bytes, counts.failed_writes) == (2, 10_000, 0)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["a Stubborn does not pickle, so it stays in memory, whatever the limit: TypeError: never"]
    store.forget([1])
    assert store.counts().unpicklable == 1


def test_a_file_that_is_damaged_or_gone_is_an_error_that_names_it(make, folder):
    store = make(10)
    for n in (1, 2, 3):
        store.put(n, block(n))
        assert store.settle()
    places = {name: os.path.join(path, name) for path, _, names in os.walk(folder) for name in names}
    os.unlink(places["1"])
    with open(places["2"], "r+b") as file:
        file.truncate(5000)
    with open(places["3"], "r+b") as file:
        file.write(b"XXXX")
    for n, words in ((1, "No such file"), (2, "it ends too early"), (3, "it does not begin as it should")):
        with pytest.raises(SpillError, match=f"was written to .*/{n} and cannot be read back: .*{words}"):
            store.get(n)
        with pytest.raises(SpillError):
            store.parts(n)


FULL = """
import logging, os, resource, sys
import numpy as np
from taskloom.node.memory import MemoryPolicy
from taskloom.node.store import _ABSENT, Store
logging.basicConfig(stream=sys.stdout, format="%(message)s")
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
store = Store(policy=MemoryPolicy(10, spill=None, pause=None, terminate=None), folder=sys.argv[1])
for n in range(3):
    store.put(n, np.full(100_000, float(n)))
    store.settle()
store.put(3, np.full(10_000, 3.0))
store._retry = 0.0  # as if the time had passed
store.put(4, "x")
store.settle()
print(store.counts().failed_writes, [float(store.get(n)[0]) for n in range(4)])
print(sorted(n for _, _, names in os.walk(sys.argv[1]) for n in names if n != "owner"))
store.close()
"""


def test_a_disk_without_room_is_said_once_and_the_values_stay(folder):
    """The size of a file is limited: the write fails in the middle, as on a full disk."""
    done = subprocess.run([sys.executable, "-c", FULL, folder], capture_output=True, text=True, check=True)
    words, numbers, names = done.stdout.splitlines()
    assert words.startswith(f"values cannot be written to {folder}, and stay in memory: [Errno 27] File too large")
    failed, _, values = numbers.partition(" ")
    assert 1 <= int(failed) <= 4
    assert values == "[0.0, 1.0, 2.0, 3.0]"
    assert len(eval(names)) <= 2  # the small ones; nothing is left of those that failed
    assert os.listdir(folder) == []


def test_a_folder_that_cannot_be_made_is_a_disk_without_room(tmp_path, caplog):
    store = Store(policy=only_target(10), folder=str(tmp_path / "nowhere"))
    store.put(1, block(1))
    assert store.settle()
    assert store.get(1)[0] == 1.0
    assert store.counts().failed_writes == 1
    assert "nowhere" in caplog.text
    store.close()


# --- the process


def test_the_process_is_looked_at_when_asked_to(folder):
    rss = [0]
    store = Store(1000 * KB, folder, rss=lambda: rss[0])
    for n in range(4):
        store.put(n, block(n))
    assert store.check() == []
    assert in_memory(store) == {0, 1, 2, 3}
    rss[0] = 750 * KB
    assert store.check() == []
    assert in_memory(store) == {2, 3}  # 150 KB were to go
    rss[0] = 850 * KB
    circle = [Stubborn()]
    circle[0].circle = circle
    ref = weakref.ref(circle[0])
    gc.disable()
    try:
        del circle
        assert store.check() == [Pause()]
        assert in_memory(store) == set()
        assert ref() is None  # what only the garbage collector finds has gone too
    finally:
        gc.enable()
    rss[0] = 960 * KB
    assert store.check() == [Terminate()]
    rss[0] = 500 * KB
    assert store.check() == [Resume()]
    store.close()


def test_what_a_task_still_uses_is_not_written(make):
    store = make(1000 * KB)
    used = block(0)
    store.put(0, used)
    for n in range(1, 8):
        store.put(n, block(n))
    assert 0 in in_memory(store)
    del used
    for n in range(8, 16):
        store.put(n, block(n))
    assert 0 not in in_memory(store)
    assert store.get(0)[0] == 0


taken = []


class Taken:
    """Somebody begins to use it while it is written."""

    def __reduce__(self):
        taken.append(self)
        return Taken, ()


def test_what_is_taken_while_it_is_written_stays_and_goes_later_without_being_written_again(make, folder):
    store = make(1000)
    store.put(1, Taken(), 5000)
    assert in_memory(store) == {1}
    counts = store.counts()
    assert (counts.memory_bytes, counts.on_disk, len(files(folder))) == (5000, 0, 1)
    taken.clear()
    store.put(2, b"x" * 10, 10)
    assert in_memory(store) <= {2}
    assert (store.counts().on_disk, taken) == (2 - len(in_memory(store)), [])


def test_what_it_takes_to_read_values(make):
    store = make(10)
    store.put(1, block(1), 100 * KB)
    store.put(2, [float(n) for n in range(10_000)], 300 * KB)
    assert in_memory(store) == set()
    assert store.absent([1, 2, 3]) == (100 + 300) * KB * 3 // 2  # files below 256 KB are read, not mapped
    store.put(3, block(3, 400 * KB), 400 * KB)
    assert in_memory(store) == set()
    assert store.absent([3]) == 0
    with store.pin([2]) as pins:
        pins.get(2)
        assert store.absent([2]) == 0


# --- room


def reckoned(folder, limit=1000 * KB, base=100 * KB, **kwargs):
    """A store whose process takes what its values do, and something more."""

    def rss():
        return base + store._managed - store._mapped + store._made

    store = Store(limit, folder, rss=rss, **kwargs)
    return store, rss


def finished(*calls, seconds=20):
    """Call each in a thread; whether all came back."""
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        threading.Event().wait(0.001)


@pytest.mark.parametrize("size", [20 * KB, 100 * KB, 300 * KB])
def test_who_makes_values_faster_than_the_disk_takes_them_waits(folder, size, monkeypatch):
    monkeypatch.setattr("taskloom.node.store._PATIENCE", 60.0)
    store, rss = reckoned(folder)
    most = []

    def make(first):
        for n in range(first, first + 60):
            store.expect(("task", n), size)
            value = block(n, size)
            store.made(("task", n), size)
            most.append(rss())
            store.put(n, value, size)
            del value
            store.arrived(("task", n))
            most.append(rss())

    assert finished(lambda: make(0), lambda: make(1000))
    assert max(most) <= (950 * KB if size < 300 * KB else 1000 * KB)  # what is made counts twice until it has arrived
    assert not store.coming
    assert store._expected == store._made == store._waiting == 0
    store.expect("reader", 100 * KB + store.absent(range(60)))
    store.read("reader", 50 * KB)
    assert (store._expected, store.coming) == (50 * KB, {"reader": (50 * KB, False)})
    store.arrived("reader")
    assert [store.get(n)[0] for n in (0, 59, 1000, 1059)] == [0, 59, 1000, 1059]
    store.close()


def test_nobody_waits_where_nothing_can_be_written(folder, monkeypatch):
    monkeypatch.setattr("taskloom.node.store._PATIENCE", 60.0)
    store, _ = reckoned(folder, alarm=lambda: None)
    for n in range(9):
        store.put(n, Stubborn(), 100 * KB)
    assert store.full
    assert finished(lambda: store.expect("task", 100 * KB))
    assert store.coming == {"task": (100 * KB, False)}
    store.close()


def test_where_nothing_can_be_written_one_goes_on_at_a_time(folder, monkeypatch):
    monkeypatch.setattr("taskloom.node.store._PATIENCE", 60.0)
    store, _ = reckoned(folder)
    for n in range(8):
        store.put(n, Stubborn(), 100 * KB)
    assert store.settle()
    store.expect("first", 200 * KB)
    went = []

    def second():
        store.expect("second", 200 * KB)
        went.append(list(store.coming))

    thread = threading.Thread(target=second, daemon=True)
    thread.start()
    until(lambda: store._waiting)
    rounds = store._rounds
    until(lambda: store._rounds > rounds + 5)  # it looks again and again, and finds no room
    assert went == []
    store.arrived("first")
    thread.join(20)
    assert went == [["second"]]
    store.close()


@pytest.mark.parametrize("how", ["a cancel", "the end", "closing"])
def test_who_waits_can_be_let_go(folder, monkeypatch, how):
    monkeypatch.setattr("taskloom.node.store._PATIENCE", 60.0)
    store, _ = reckoned(folder)
    for n in range(8):
        store.put(n, Stubborn(), 100 * KB)
    store.expect("first", 200 * KB)
    thread = threading.Thread(target=store.expect, args=("second", 200 * KB), daemon=True)
    thread.start()
    until(lambda: store._waiting)
    if how == "closing":
        store.close()
    else:
        store.let_go(for_good=how == "the end")
    thread.join(20)
    assert not thread.is_alive()
    if how == "the end":
        assert finished(lambda: store.expect("third", 200 * KB))
    store.close()


def test_patience_has_an_end(folder, monkeypatch):
    monkeypatch.setattr("taskloom.node.store._PATIENCE", 0.05)
    store, _ = reckoned(folder)
    store.put(0, Stubborn(), 800 * KB)
    store.expect("first", 200 * KB)
    assert finished(lambda: store.expect("second", 200 * KB))
    assert list(store.coming) == ["first", "second"]
    store.close()


def test_small_ones_wait_only_when_memory_is_full(folder):
    store, _ = reckoned(folder, base=740 * KB)
    store.expect("task", 1000)
    assert not store.full
    assert not store.coming
    store.put(0, Stubborn(), 50 * KB)
    assert store.full
    store.expect("task", 1000)
    assert store.coming == {"task": (1000, False)}
    store.arrived("task")
    store.arrived("task")
    store.arrived("never heard of")
    assert (store._expected, store._made) == (0, 0)
    store.close()


def test_an_alarm_is_raised_when_a_value_comes_and_not_when_somebody_looks(folder):
    alarms = []
    store, _ = reckoned(folder, alarm=lambda: alarms.append(1))
    for n in range(7):
        store.put(n, Stubborn(), 100 * KB)
    assert store.check() == []
    assert alarms == []
    store.put(7, Stubborn(), 100 * KB)
    store.put(8, Stubborn(), 20 * KB)
    assert alarms == [1]
    assert store.check() == [Pause()]
    store.put(9, Stubborn(), 1000)
    assert alarms == [1]  # it is paused already
    assert store.settle()
    store.forget(range(10))
    assert store.check() == [Resume()]
    store.put(10, Stubborn(), 750 * KB)
    assert alarms == [1, 1]
    assert store.check() == [Pause()]
    store.close()


def test_without_a_limit_nobody_waits_and_nothing_is_counted():
    store = Store()
    store.expect("task", 1 << 40)
    store.made("task", 1 << 40)
    store.put(1, b"x", 1 << 40)
    assert (store.full, store.pressing, store.is_behind(), store.coming) == (False, False, False, {})
    store.close()


LARGE = """
import sys, threading, time
import numpy as np, psutil
from taskloom.node.memory import MemoryPolicy, Pause, Resume, Terminate
from taskloom.node.store import _ABSENT, Store
process = psutil.Process()
limit = process.memory_info().rss + (200 << 20)
store = Store(limit, sys.argv[1])
paused = False
highest = 0
count = (4 * limit) // (16 << 20)
for n in range(count):
    store.put(n, np.full(2 << 20, float(n)))
    while True:
        for order in store.check():
            assert not isinstance(order, Terminate), "too much"
            paused = isinstance(order, Pause)
        highest = max(highest, store._process_rss())
        if not paused:
            break
        time.sleep(0.01)
for n in range(count):
    value = store.get(n)
    assert value[0] == value[-1] == n
    del value
    store.check()
    highest = max(highest, store._process_rss())
assert highest < limit, (highest, limit)
store.close()
print("fits")
"""


def test_data_of_four_times_the_limit(folder):
    done = subprocess.run([sys.executable, "-c", LARGE, folder], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "fits", done.stderr
    assert os.listdir(folder) == []


# --- threads


def test_many_threads_at_once(make):
    """Values are put, got, pinned, renamed and forgotten by several threads while all of them go to disk and back."""
    store = make(200 * KB)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    wrong = []

    def work(seed):
        rng = random.Random(seed)
        mine = {}
        try:
            for step in range(300):
                tid = seed * 1000 + step
                size = rng.choice([100, 20 * KB, 300 * KB])
                mine[tid] = step
                store.put(tid, block(step, size))
                other = rng.choice(list(mine))
                what = rng.randrange(5)
                if what == 0:
                    assert store.get(other)[-1] == mine[other]
                elif what == 1:
                    with store.pin([other]) as pins:
                        if rng.random() < 0.3:
                            store.forget([other])
                        assert pins.get(other)[-1] == mine[other]
                    if other not in store:
                        del mine[other]
                elif what == 2:
                    store.forget([other])
                    del mine[other]
                elif what == 3:
                    new = -tid - 1
                    store.rename({other: new})
                    mine[new] = mine.pop(other)
                else:
                    assert loads(*store.parts(other))[-1] == mine[other]
                if len(mine) > 20:
                    store.forget([mine.popitem()[0]])
            for tid, step in mine.items():
                assert store.get(tid)[-1] == step
            store.forget(mine)
        except BaseException as error:
            wrong.append(error)
            raise

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(before)
    assert not wrong
    assert store.settle()
    counts = store.counts()
    assert counts[:4] == (0, 0, 0, 0)
    assert counts.written_bytes > 0
    assert store._leaving == 0
    assert not store._file_sizes
    assert not store._reading
    assert not any(store._queues)


def test_threads_that_want_the_same_value_read_it_once(make):
    store = make(10)
    store.put(1, block(1, 4 * MB))
    pins = store.pin([1])
    pins.release()
    assert in_memory(store) == set()
    barrier = threading.Barrier(4, timeout=20)
    found = []
    pins = store.pin([1])

    def get():
        barrier.wait()
        found.append(pins.get(1))

    threads = [threading.Thread(target=get) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 4
    assert all(value is found[0] for value in found)
    pins.release()


# --- the folder


def test_the_folder_is_the_users_alone(make, folder):
    old = os.umask(0)
    try:
        store = make(10)
        store.put(1, block(1))
        assert in_memory(store) == set()
        (name,) = os.listdir(folder)
        assert name.startswith("taskloom-values-")
        assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o700
        with open(os.path.join(folder, name, "owner")) as file:
            assert file.read().endswith(f"it belongs to process {os.getpid()}\n")
    finally:
        os.umask(old)


def test_no_folder_is_made_before_it_is_needed(folder):
    store = Store(1 << 40, folder)
    store.put(1, block(1))
    assert store.settle()
    assert os.listdir(folder) == []
    store.close()


KEEPER = """
import os, sys
from taskloom.node.spill import SpillFolder
folder = SpillFolder(sys.argv[1])
folder.write(b"x" * 1000, [])
print(folder.path, flush=True)
if len(sys.argv) > 2:
    if not os.fork():
        os._exit(0) if sys.argv[2] == "_exit" else sys.exit()
    os.wait()
    assert os.path.exists(folder.path)
sys.stdin.read()
"""


def start(folder, *more):
    process = subprocess.Popen(
        [sys.executable, "-c", KEEPER, folder, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def test_the_folder_goes_when_the_process_ends(folder):
    process, path = start(folder)
    with process:
        assert os.path.exists(path)
        assert remove_orphans(folder) == []  # it lives
        assert os.path.exists(path)
        process.stdin.close()
        assert process.wait(20) == 0
    assert os.listdir(folder) == []


@pytest.mark.parametrize("way", ["sys.exit", "_exit"])
def test_a_forked_child_leaves_it_alone(folder, way):
    process, path = start(folder, way)
    with process:
        assert os.path.exists(path)
        process.stdin.close()
        assert process.wait(20) == 0, "the child has removed the folder"
    assert os.listdir(folder) == []


def test_the_folder_of_a_killed_process_goes_when_the_next_one_is_made(folder):
    process, path = start(folder)
    with process:
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    assert os.path.exists(os.path.join(path, "values", "1"))
    mine = SpillFolder(folder)
    assert os.listdir(folder) == [os.path.basename(mine.path)]
    mine.close()
    mine.close()
    assert os.listdir(folder) == []


def test_nothing_else_is_removed(folder):
    kept = []

    def directory(name, owner=None):
        path = os.path.join(folder, name)
        os.mkdir(path)
        if owner is not None:
            with open(os.path.join(path, "owner"), "wb") as file:
                file.write(owner)
        kept.append(name)

    mark = b"a folder of taskloom's for values that do not fit into memory; it belongs to process 1\n"
    directory("other", mark)
    directory("taskloom-values-empty")
    directory("taskloom-values-mine", b"my thesis\n")
    directory("taskloom-making-fresh", mark)
    outside = os.path.join(folder, "outside")
    directory("outside", mark)
    os.symlink(outside, os.path.join(folder, "taskloom-values-link"))
    kept.append("taskloom-values-link")
    with open(os.path.join(folder, "taskloom-values-file"), "wb") as file:
        file.write(mark)
    kept.append("taskloom-values-file")
    assert remove_orphans(folder) == []
    assert sorted(os.listdir(folder)) == sorted(kept)
    assert os.listdir(outside) == ["owner"]

    directory("taskloom-values-orphan", mark)
    directory("taskloom-making-old", mark)
    os.utime(os.path.join(folder, "taskloom-making-old"), (0, time.time() - 10_000))
    removed = {os.path.basename(path) for path in remove_orphans(folder)}
    assert removed == {"taskloom-values-orphan", "taskloom-making-old"}


def test_a_parent_that_is_not_there_has_no_orphans(folder):
    assert remove_orphans(os.path.join(folder, "nowhere")) == []
    with pytest.raises(FileNotFoundError):
        SpillFolder(os.path.join(folder, "nowhere"))


def test_closing_while_values_are_being_written(folder, caplog):
    caplog.set_level(logging.WARNING)
    for _ in range(20):
        store = Store(policy=only_target(10), folder=folder)
        for n in range(20):
            store.put(n, block(n))
        store.close()
        assert os.listdir(folder) == []
        store.put(1, "late")
        assert store.settle(0.01)
    assert not caplog.records
