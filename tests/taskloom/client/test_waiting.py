"""wait and as_completed."""

from __future__ import annotations

import os
import threading
import time

import pytest

from taskloom.client import Client, as_completed, wait


def inc(x):
    return x + 1


def divide(x, y=0):
    return x / y


def spin(folder):
    while not os.path.exists(os.path.join(folder, "end")):
        time.sleep(0.001)
    return "ended"


@pytest.fixture
def slow(client, tmp_path):
    future = client.submit(spin, str(tmp_path))
    yield future
    future.cancel()


def test_wait_for_all(client):
    futures = client.map(inc, range(100))
    done, not_done = wait(futures, timeout=60)
    assert (done, not_done) == (set(futures), set())
    assert wait(futures[0]).done == {futures[0]}
    assert wait([]) == (set(), set())
    bad = client.submit(divide, 1)
    assert wait([bad, *futures]).done == {bad, *futures}  # it raises nothing
    futures[0].release()
    assert wait(futures[:1]).done == {futures[0]}


def test_wait_for_one(client, slow):
    quick, bad = client.submit(inc, 1), client.submit(divide, 1)
    done, not_done = wait([slow, quick], return_when="FIRST_COMPLETED")
    assert (done, not_done) == ({quick}, {slow})
    assert wait([slow, quick], return_when="FIRST_COMPLETED").not_done == {slow}  # it has ended before
    done, not_done = wait([slow, bad], return_when="FIRST_EXCEPTION")
    assert (done, not_done) == ({bad}, {slow})
    with pytest.raises(TimeoutError, match=r"1 of 2 futures had not ended after 0\.01 s"):
        wait([slow, quick], timeout=0.01)
    with pytest.raises(TimeoutError):
        wait([slow, quick], timeout=0.01, return_when="FIRST_EXCEPTION")
    assert client._engine._watchers == {}


def test_what_cannot_be_waited_for(client, cluster):
    with pytest.raises(TypeError, match="not for int"):
        wait([1])
    with pytest.raises(ValueError, match="return_when"):
        wait([], return_when="SOME")
    with Client(cluster, set_as_default=False) as other:
        with pytest.raises(ValueError, match="several clients"):
            wait([client.submit(inc, 1), other.submit(inc, 1)])
        with pytest.raises(ValueError, match="several clients"):
            as_completed([client.submit(inc, 1), other.submit(inc, 1)])


def test_as_completed_in_the_order_in_which_they_end(client, slow, tmp_path):
    quick = client.map(inc, range(10))
    found = as_completed([slow, *quick, quick[0]])
    assert found.count() == 12
    first = [next(found) for _ in range(11)]
    assert sorted(future.result() for future in first) == [1, *range(1, 11)]
    assert not found.has_ready()
    assert not found.is_empty()
    (tmp_path / "end").touch()
    assert next(found) is slow
    assert found.is_empty()
    assert list(found) == []
    assert list(as_completed()) == []


def test_as_completed_with_results(client):
    futures = client.map(inc, range(5))
    assert sorted(value for _, value in as_completed(futures, with_results=True)) == [1, 2, 3, 4, 5]
    bad = client.submit(divide, 1)
    ((future, error),) = as_completed([bad], with_results=True, raise_errors=False)
    assert future is bad
    assert isinstance(error, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        list(as_completed([bad], with_results=True))


def test_as_completed_to_which_more_is_added(client):
    found = as_completed([client.submit(inc, 0)], with_results=True)
    values = []
    for _, value in found:
        values.append(value)
        if value < 20:
            found.add(client.submit(inc, value))
        if value == 10:
            found.update(client.map(inc, [100, 200]))
    assert sorted(values) == [*range(1, 21), 101, 201]


def test_as_completed_in_batches(client, slow, tmp_path):
    futures = client.map(inc, range(50))
    wait(futures)
    found = as_completed([*futures, slow])
    assert len(found.next_batch()) == 50
    assert found.next_batch(block=False) == []
    (tmp_path / "end").touch()
    assert list(found.batches()) == [[slow]]
    assert found.next_batch() == []


def test_as_completed_gives_up_in_time(client, slow):
    with pytest.raises(TimeoutError, match=r"1 futures had not ended after 0\.05 s"):
        list(as_completed([slow], timeout=0.05))
    found = as_completed([slow])
    found.clear()
    assert list(found) == []
    assert client._engine._watchers.keys() <= {slow.counter}


def test_as_completed_while_another_thread_adds(client):
    found = as_completed(client.map(inc, range(5)))
    more = client.map(inc, range(5, 200))
    thread = threading.Thread(target=lambda: [found.add(future) for future in more])
    thread.start()
    values = {next(found).result() for _ in range(5)}
    thread.join()
    values |= {future.result() for future in found}
    assert values == set(range(1, 201))


def test_a_client_that_is_closed_ends_the_wait(cluster, tmp_path):
    with Client(cluster, set_as_default=False) as client:
        slow = client.submit(spin, str(tmp_path))
        found = []
        threads = [
            threading.Thread(target=lambda: found.append(wait(slow).done == {slow})),
            threading.Thread(target=lambda: found.append(list(as_completed([slow])) == [slow])),
        ]
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [True, True]
    assert slow.status == "lost"
