"""Values on their way here: nested, lost, by way of the scheduler; data on its way there."""

from __future__ import annotations

import collections
import os
import re
import signal
import threading
import time

import numpy as np
import pytest

from taskloom.client import Client, fetching, wait
from taskloom.core.messages import Fetch, Piece
from taskloom.deploy.local import LocalCluster
from taskloom.errors import ClusterError, SerializationError, TaskCancelledError

Pair = collections.namedtuple("Pair", "one two")


def inc(x):
    return x + 1


def divide(x, y=0):
    return x / y


def test_any_nesting(client):
    one, two = client.map(inc, [0, 1])
    bad = client.submit(divide, 1)
    data = {"a": [one, (two, {"b": {one, two}})], "c": "text", "d": Pair(one, 5)}
    assert client.gather(data) == {"a": [1, (2, {"b": {1, 2}})], "c": "text", "d": Pair(1, 5)}
    assert type(client.gather(data)["d"]) is Pair
    assert client.gather(one) == 1
    assert client.gather([]) == []
    assert client.gather(future for future in [one, two]) == [1, 2]
    assert client.gather([one, one, two]) == [1, 1, 2]
    with pytest.raises(ZeroDivisionError):
        client.gather([one, {"x": bad}])
    assert client.gather([one, bad, {"x": bad, "y": two}, (bad, two)], errors="skip") == [1, {"y": 2}, (2,)]
    assert client.gather([one, bad, two], errors="skip") == [1, 2]
    with pytest.raises(ValueError, match="errors is"):
        client.gather([one], errors="ignore")


def test_the_first_error_comes_at_once(client, tmp_path):
    def spin():
        while not os.path.exists(tmp_path / "end"):
            time.sleep(0.001)

    slow = client.submit(spin)
    with pytest.raises(ZeroDivisionError):
        client.gather([slow, client.submit(divide, 1)], timeout=60)
    assert slow.status == "pending"
    slow.cancel()
    with pytest.raises(TaskCancelledError):
        client.gather([slow])


@pytest.mark.parametrize("direct", [None, True, False])
def test_large_values(client, direct):
    many = client.map(np.full, [100_000] * 30, range(30))
    for n, value in enumerate(client.gather(many, direct=direct)):
        assert value.shape == (100_000,)
        assert int(value[-1]) == n
        value[0] = 7  # it is ours
    mixed = client.submit(lambda: {"a": np.arange(3_000_000), "b": "x" * 9_000_000, "c": np.ones((500, 500)).T})
    found = client.gather(mixed, direct=direct)
    assert np.array_equal(found["a"], np.arange(3_000_000))
    assert found["b"] == "x" * 9_000_000
    assert np.array_equal(found["c"], np.ones((500, 500)))


def test_pieces_are_few_bytes_at_a_time(client, monkeypatch):
    """64 MB of values are 16 pieces; there are never more than that outstanding."""
    relay = client._engine.fetching._relay
    asked = {}
    most = 0
    ask, took = relay._ask, relay.took

    def watch_ask(parcel, size):
        nonlocal most
        ask(parcel, size)
        asked[max(relay._asked)] = size
        most = max(most, sum(asked.values()))

    def watch_took(piece):
        asked.pop(piece.serial)
        took(piece)

    monkeypatch.setattr(relay, "_ask", watch_ask)
    monkeypatch.setattr(relay, "took", watch_took)
    many = client.map(np.full, [4_000_000] * 6, range(6))  # 192 MB
    for n, value in enumerate(client.gather(many, direct=False)):
        assert value.shape == (4_000_000,)
        assert value[0] == value[-1] == n
    assert fetching.PIECE < most <= fetching.OUTSTANDING
    assert asked == {}


def test_a_worker_that_cannot_be_reached_is_fetched_from_by_way_of_the_scheduler(client, cluster):
    with Client(cluster, set_as_default=False) as other:
        values = other.map(np.ones, [100_000] * 6)
        wait(values)
        places = other._engine.fetching.addresses
        for number in list(places):
            places[number] = "tcp://127.0.0.1:9"  # nobody listens there
        monkey, fetching.REACH = fetching.REACH, 0.2
        try:
            assert [value.sum() for value in other.gather(values)] == [100_000] * 6
            assert other._engine.fetching.unreachable == {"tcp://127.0.0.1:9"}
            assert [value.sum() for value in other.gather(values)] == [100_000] * 6  # it remembers
        finally:
            fetching.REACH = monkey


def test_a_client_that_is_not_to_reach_workers_does_not(cluster):
    with Client(cluster, set_as_default=False, direct_to_workers=False) as client:
        assert client.submit(np.ones, 300_000).result().sum() == 300_000
        assert client._engine.fetching._workers == {}
        assert client.gather(client.submit(np.ones, 300_000), direct=True).sum() == 300_000
        assert len(client._engine.fetching._workers) == 1


@pytest.mark.parametrize("direct", [None, False])
def test_a_result_that_does_not_pickle(client, direct):
    class Large(list):
        def __reduce__(self):
            raise ValueError("it stays here")

        def __sizeof__(self):
            return 1_000_000

    large = client.submit(lambda: Large(range(100_000)))
    assert (
        client.submit(len, large, workers=client.who_has(large)[large.key] if wait(large) else ()).result() == 100_000
    )
    with pytest.raises(Exception, match=r"it stays here|does not pickle"):
        client.gather(large, direct=direct)
    small = client.submit(threading.Lock)
    with pytest.raises(TypeError, match="pickle"):
        client.gather(small, direct=direct)
    assert client.submit(inc, 1).result() == 2


@pytest.mark.parametrize("direct", [None, False])
def test_workers_that_die_while_their_values_are_fetched(direct, until):
    with LocalCluster(n_workers=3, threads_per_worker=1) as cluster, Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(3, timeout=60)
        values = client.map(np.full, [2_000_000] * 12, range(12))  # 16 MB each
        wait(values)
        found = []
        thread = threading.Thread(target=lambda: found.extend(client.gather(values, direct=direct, timeout=100)))
        thread.start()
        until(lambda: client._engine.fetching.wanted or found)
        os.kill(next(iter(cluster.worker_pids.values())), signal.SIGKILL)
        thread.join(110)
        assert [(len(value), int(value[0]), int(value[-1])) for value in found] == [
            (2_000_000, n, n) for n in range(12)
        ]


def test_a_worker_that_is_stopped_while_its_values_are_wanted(until):
    """Its connection stays, and says nothing: the scheduler's word is what counts."""
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        values = client.map(np.full, [200_000] * 8, range(8))
        wait(values)
        client.gather(values)  # the connections are there
        pid = next(iter(cluster.worker_pids.values()))
        os.kill(pid, signal.SIGSTOP)
        try:
            assert [int(value[0]) for value in client.gather(values, timeout=100)] == list(range(8))
        finally:
            os.kill(pid, signal.SIGCONT)


def test_a_scheduler_that_dies_while_values_are_fetched(until):
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        values = client.map(np.full, [2_000_000] * 8, range(8))
        wait(values)
        for direct in (None, False):
            found = []
            thread = threading.Thread(
                target=lambda d=direct: found.extend(client.gather(values, direct=d, timeout=100))
            )
            thread.start()
            until(lambda: client._engine.fetching.wanted or found)
            os.kill(cluster.scheduler_pid, signal.SIGKILL)
            thread.join(110)
            assert [(len(value), int(value[-1])) for value in found] == [(2_000_000, n) for n in range(8)]
            until(lambda: client._engine.is_connected)


def test_a_fetch_that_takes_too_long_is_given_up(client, monkeypatch):
    value = client.submit(np.ones, 1_000_000)
    wait(value)
    monkeypatch.setattr(client._engine.fetching, "start", lambda delivery: None)
    with pytest.raises(TimeoutError, match=r"1 values had not arrived after 0\.05 s"):
        value.result(timeout=0.05)
    monkeypatch.undo()
    assert value.result().sum() == 1_000_000


class Unreadable:
    """Unpickling one calls something."""

    def __init__(self, function, *args, size=0):
        self.made = function, (*args, b"x" * size) if size else args

    def __reduce__(self):
        return self.made


def refuse(*_):
    raise RuntimeError("not\nhere")


def make(what, size=0):
    if what == "module":
        return Unreadable(__import__, "only_there")
    if what == "attribute":
        return Unreadable(getattr, os, "only_there")
    return Unreadable(refuse, size=size)


@pytest.mark.parametrize(
    ("args", "cause", "words"),
    [
        (
            ("module",),
            ModuleNotFoundError,
            "No module named 'only_there'. Either what its class is in has to be installed",
        ),
        (
            ("attribute",),
            AttributeError,
            r".*only_there.*Client.get_versions\(check=True\) compares packages, or the task",
        ),
        (("other",), RuntimeError, "not\nhere. Either see to how its class pickles"),
        (("other", 100_000), RuntimeError, "not\nhere. Either see to how its class pickles"),  # it is fetched
    ],
)
def test_a_value_that_does_not_unpickle_is_named(client, args, cause, words):
    key = ("bad", *args)  # tracebacks of the case before may hold its future
    one, bad = client.submit(inc, 0), client.submit(make, *args, key=key)
    task = re.escape(f"the task {key!r}")
    words = rf"(?s){task} has ended well, and its value does not unpickle in this process: {cause.__name__}: {words}"
    for ask in (
        bad.result,
        lambda: client.gather({"a": [one, bad]}),
        lambda: client.get({key: (make, *args)}, key),
        lambda: client.gather([one, bad], direct=False),
    ):
        with pytest.raises(SerializationError, match=words) as caught:
            ask()
        assert type(caught.value.__cause__) is cause
    assert client.gather([one, bad, one], errors="skip") == [1, 1]
    assert (bad.status, bad.type, bad.exception()) == ("finished", None, None)
    assert client.submit(inc, one).result() == 2


# --- pieces, without a cluster


class Sender:
    """Plays the worker at the other end of a relay: pickles in parts, asked for in pieces."""

    def __init__(self, values):
        self.values = values
        self.asked = []
        self.wanted = {}

    def _say(self, messages):
        self.asked += messages

    def wish(self, counter):
        return self.wishes[counter]

    def answer(self, fetch):
        from taskloom.protocol import Payload

        assert type(fetch) is Fetch
        parts = self.values.get(fetch.tid)
        if parts is None:
            return Piece(1, fetch.serial, [], None)
        data = b"".join(parts)[fetch.offset : fetch.offset + fetch.size]
        cut = len(data) // 3
        return Piece(1, fetch.serial, [len(part) for part in parts], Payload([data[:cut], data[cut:]]))


def relay_of(values, monkeypatch, piece=1000, outstanding=4000):
    from taskloom.core.client import Wish

    monkeypatch.setattr(fetching, "PIECE", piece)
    monkeypatch.setattr(fetching, "OUTSTANDING", outstanding)
    sender = Sender(values)
    sender.wishes = {tid: Wish("ready", 5, tid, sum(map(len, parts or [b"x"]))) for tid, parts in values.items()}
    found = fetching.Fetching(sender, False)
    delivery = fetching.Delivery(dict(sender.wishes), None)
    found.start(delivery)
    return sender, found, delivery


def test_pieces_make_the_value_in_whatever_order_they_come(monkeypatch):
    values = {tid: [os.urandom(tid * 37 % 7000 + 1), b"", os.urandom(tid * 911 % 3000)] for tid in range(30)}
    for backwards in (False, True):
        sender, found, delivery = relay_of(values, monkeypatch)
        while not delivery.signal.is_set:
            asked, sender.asked = sender.asked, []
            assert asked
            for fetch in reversed(asked) if backwards else asked:
                found.piece(sender.answer(fetch))
            assert found._relay._bytes <= 4000
        assert {tid: b"".join(payload.parts) for tid, payload in delivery.found.items()} == {
            tid: b"".join(parts) for tid, parts in values.items()
        }
        assert found.wanted == {}
        assert (found._relay._bytes, found._relay._asked, list(found._relay._queue)) == (0, {}, [])


def test_a_pickle_that_is_another_one_the_second_time_is_fetched_anew(monkeypatch):
    values = {1: [bytes(2500)]}
    sender, found, delivery = relay_of(values, monkeypatch)
    found.piece(sender.answer(sender.asked.pop(0)))
    values[1] = [b"y" * 2600]
    while not delivery.signal.is_set:
        found.piece(sender.answer(sender.asked.pop(0)))
    assert bytes(delivery.found[1].parts[0]) == b"y" * 2600


def test_what_is_not_there_waits_for_word(monkeypatch):
    sender, found, delivery = relay_of({1: None, 2: [b"two"]}, monkeypatch)
    for fetch in list(sender.asked):
        found.piece(sender.answer(fetch))
    assert list(delivery.found) == [2]
    assert not delivery.signal.is_set
    found.changed([1])  # something was said that changes nothing
    assert not delivery.signal.is_set
    sender.wishes[1] = sender.wishes[1]._replace(place=6)
    found.changed([1])
    assert delivery.signal.is_set
    assert list(delivery.found) == [2]


def test_questions_that_are_never_answered_hold_up_nobody(monkeypatch):
    """A worker has died with what it was asked for; others have the rest."""
    values = {tid: [bytes([tid]) * 1500] for tid in range(12)}
    sender, found, delivery = relay_of(values, monkeypatch)
    dead = {fetch.tid for fetch in sender.asked}
    assert len(dead) == 4  # no more pieces at a time
    sender.asked.clear()
    for tid in dead:
        sender.wishes[tid] = sender.wishes[tid]._replace(state="pending")
    found.changed(dead)
    while not delivery.signal.is_set:
        found.piece(sender.answer(sender.asked.pop(0)))
    assert delivery.found.keys() == values.keys() - dead


def test_what_nobody_waits_for_any_more_is_not_asked_for(monkeypatch):
    values = {tid: [bytes(9000)] for tid in range(12)}
    sender, found, delivery = relay_of(values, monkeypatch)
    count = len(sender.asked)
    found.stop(delivery)
    for fetch in list(sender.asked):
        found.piece(sender.answer(fetch))
    assert len(sender.asked) == count
    assert found._relay._bytes == 0


# --- scatter


def test_scatter_keeps_the_shape(client):
    assert [f.result() for f in client.scatter([1, "two", [3]])] == [1, "two", [3]]
    assert {key: f.result() for key, f in client.scatter({"x": 1, "y": None}).items()} == {"x": 1, "y": None}
    assert client.scatter({"x": 1})["x"].key == "x"
    assert client.scatter(5).result() == 5
    assert type(client.scatter((1, 2))) is tuple
    assert client.gather(client.scatter(range(3))) == [0, 1, 2]
    assert client.gather(client.scatter(iter("ab"))) == ["a", "b"]
    assert client.scatter([]) == []
    array = client.scatter(np.arange(1_000_000))
    assert client.submit(lambda a, b: int(a.sum() + b), array, 1).result() == 499_999_500_000 + 1


def test_scatter_to_certain_workers_and_to_all(client, until):
    there = client.scatter([np.ones(1000)] * 4, workers="worker-1")
    wait(there)
    assert set(client.who_has(there).values()) == {("worker-1",)}
    everywhere = client.scatter(np.ones(1000), broadcast=True)
    until(lambda: sorted(client.who_has(everywhere)[everywhere.key]) == ["worker-0", "worker-1"])
    assert everywhere.result().sum() == 1000


def test_scattered_data_is_sent_again_when_its_worker_dies(until):
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        data = client.scatter([np.full(100_000, n) for n in range(6)])
        wait(data)
        for pid in list(cluster.worker_pids.values()):
            os.kill(pid, signal.SIGKILL)
        assert [int(value[0]) for value in client.gather(data, timeout=100)] == list(range(6))
        assert client.gather(client.map(len, data)) == [100_000] * 6


def test_gather_on_a_closed_client(cluster):
    with Client(cluster, set_as_default=False) as client:
        value = client.submit(np.ones, 1_000_000)
        wait(value)
    with pytest.raises(ClusterError, match="closed"):
        client.gather([value])
