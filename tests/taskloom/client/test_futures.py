"""Futures: their states, callbacks, errors, and what happens when they are dropped."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
import traceback

import pytest

from taskloom.client import Client, Future, engine, wait
from taskloom.core.messages import Release
from taskloom.errors import ClusterError, TaskCancelledError


def inc(x):
    return x + 1


def divide(x, y=0):
    return x / y


def spin(folder):
    open(os.path.join(folder, "runs"), "w").close()
    while not os.path.exists(os.path.join(folder, "end")):
        time.sleep(0.001)
    open(os.path.join(folder, "ended"), "w").close()
    return "ended"


@pytest.fixture
def running(client, tmp_path, until):
    """A task that runs, and its folder."""
    future = client.submit(spin, str(tmp_path))
    until((tmp_path / "runs").exists)
    yield future, tmp_path
    (tmp_path / "end").touch()


def test_from_pending_to_finished(client, running):
    future, folder = running
    assert (future.status, future.done(), future.cancelled(), future.type) == ("pending", False, False, None)
    assert repr(future) == f"<Future {future.key!r}: pending>"
    with pytest.raises(TimeoutError, match=r"1 of 1 values were not there after 0\.01 s"):
        future.result(timeout=0.01)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0.01)
    (folder / "end").touch()
    assert future.result(timeout=30) == "ended"
    assert (future.status, future.done(), future.cancelled(), future.type) == ("finished", True, False, str)
    assert future.exception() is None
    assert future.traceback() is None
    assert future.client is client


def test_an_error_is_itself_each_time_anew(client):
    future = client.submit(divide, 1)
    seen = []
    for _ in range(3):
        with pytest.raises(ZeroDivisionError) as caught:
            future.result()
        seen.append(caught.value)
    assert seen[0] is not seen[1] is not seen[2]
    texts = ["".join(traceback.format_exception(error)) for error in seen]
    assert texts[0] == texts[1] == texts[2]
    assert "in divide" in texts[0]
    assert "lib/taskloom" not in texts[0]
    assert texts[0].count("raised in the task 'divide-") == 1
    assert future.status == "error"
    assert isinstance(future.exception(), ZeroDivisionError)
    assert traceback.extract_tb(future.traceback())[-1].name == "divide"


def test_the_error_of_an_input_says_whose_it_is(client):
    first = client.submit(divide, 1, key="the culprit")
    second = client.submit(inc, client.submit(inc, first))
    with pytest.raises(ZeroDivisionError) as caught:
        second.result()
    assert caught.value.__notes__ == ["raised in the task 'the culprit'"]
    with pytest.raises(ZeroDivisionError) as caught:
        client.get({"a": (divide, 1), "b": (inc, "a"), "c": (inc, "b")}, "c")
    assert caught.value.__notes__ == ["raised in the task 'a'"]


def test_cancel_stops_what_runs(client, running, until):
    future, folder = running
    after = client.submit(inc, future)
    assert future.cancel() is True
    assert (future.status, future.done(), future.cancelled()) == ("cancelled", True, True)
    for one in (future, after):
        with pytest.raises(TaskCancelledError, match="cancelled"):
            one.result()
        with pytest.raises(TaskCancelledError):
            one.exception()
    assert after.cancelled()
    # all threads are free
    assert client.gather(client.map(inc, range(20))) == list(range(1, 21))
    until(lambda: _running(client) == 0)
    assert not (folder / "ended").exists()


def _running(client):
    return sum(worker["vitals"].get("running", 1) for worker in client.scheduler_info()["workers"].values())


def test_cancel_of_what_has_ended_changes_nothing(client):
    fine, bad = client.submit(inc, 1), client.submit(divide, 1)
    fine.result(), bad.exception()
    assert fine.cancel() is False
    assert bad.cancel() is False
    client.cancel([fine, {"x": bad}])
    assert (fine.result(), bad.status) == (2, "error")


def test_retry(client, tmp_path):
    def once(path):
        if os.path.exists(path):
            return "fine"
        open(path, "w").close()
        raise OSError("not yet")

    bad = client.submit(once, str(tmp_path / "a"))
    after = client.submit(str.upper, bad)
    with pytest.raises(OSError, match="not yet"):
        after.result()
    after.retry()
    assert after.result() == "FINE"
    assert client.submit(inc, 1).retry() is None
    client.retry(bad)
    assert bad.result() == "fine"


def test_retry_of_what_was_cancelled(client, running):
    future, folder = running
    future.cancel()
    (folder / "end").touch()
    client.retry([future])
    assert future.result() == "ended"
    for _ in range(20):  # the word of the cancel may be under way, or the value may have been faster
        one = client.submit(inc, 1)
        if one.cancel():
            with pytest.raises(TaskCancelledError):
                one.result()
            one.retry()
        assert one.result(timeout=20) == 2


def test_callbacks(client, running, caplog):
    future, folder = running
    called, done = [], threading.Event()
    future.add_done_callback(lambda f: called.append((1, f.result(), threading.current_thread().name)))
    future.add_done_callback(lambda f: divide(1))
    future.add_done_callback(lambda f: called.append((2, f.status, client.submit(inc, 1).result())))
    future.add_done_callback(lambda f: done.set())
    assert called == []
    with caplog.at_level(logging.ERROR):
        (folder / "end").touch()
        assert done.wait(20)
    assert called == [(1, "ended", "taskloom-callbacks"), (2, "finished", 2)]
    assert "ZeroDivisionError" in caplog.text
    late = threading.Event()
    future.add_done_callback(lambda f: late.set())  # it has ended: at once
    assert late.wait(20)


def test_a_callback_keeps_its_future_alive(client, until):
    called = []
    client.submit(inc, 1).add_done_callback(lambda f: called.append(f.result()))
    assert until(lambda: called) == [2]


def test_a_dropped_future_stops_its_task(client, running, until):
    future, folder = running
    del future
    # the fixture still has it: it goes on
    assert client.submit(inc, 1).result() == 2
    assert not (folder / "ended").exists()


def test_a_future_dropped_is_let_go_of(client, tmp_path, until):
    counter = client.submit(spin, str(tmp_path)).counter
    until(lambda: _running(client) == 0)
    assert not (tmp_path / "ended").exists()
    until(lambda: counter not in client._engine.machine.wishes)
    assert counter not in client._engine.labels


def test_many_dropped_futures_are_few_messages(client, until):
    futures = client.map(inc, range(10_000))
    client.gather(futures)
    last = futures[0].counter  # a list lets go of its last item first
    said = []
    connection = client._engine._connection
    put = connection.put
    connection.put = lambda message: (said.append(message), put(message))
    try:
        del futures
        until(lambda: last not in client._engine.machine.wishes)
    finally:
        del connection.put
    releases = [message for message in said if type(message) is Release]
    assert sum(len(message.counters) for message in releases) >= 10_000
    assert len(releases) < 100


def test_futures_may_be_dropped_by_the_garbage_collector_anywhere(client):
    """It runs in the midst of the client's own code, with its lock held."""

    def drop(n):
        cycle = [client.submit(inc, n)]
        cycle.append(cycle)

    before = gc.get_threshold()
    gc.set_threshold(5, 2, 2)
    try:
        for n in range(300):
            drop(n)
            if n % 50 == 0:
                assert client.gather(client.map(inc, range(100), pure=True)) == list(range(1, 101))
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert client.submit(inc, 1).result() == 2


def test_released_by_hand(client, until):
    future = client.submit(inc, 1)
    assert future.result() == 2
    future.release()
    future.release()
    assert (future.status, future.done()) == ("lost", True)
    with pytest.raises(ClusterError, match="was released"):
        future.result()
    with pytest.raises(ClusterError, match="was released"):
        client.gather([future])
    assert client.cancel(future) is None


def test_a_future_is_small(client):
    future = client.submit(inc, 1)
    assert not hasattr(future, "__dict__")
    assert future.__sizeof__() < 100


def test_it_can_be_awaited_in_any_event_loop(client):
    async def main():
        futures = client.map(inc, range(10))
        beat = 0

        async def tick():
            nonlocal beat
            while True:
                beat += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        found = await asyncio.gather(*futures)
        slow = client.submit(time.sleep, 0.05)
        await slow
        ticking.cancel()
        with pytest.raises(ZeroDivisionError):
            await client.submit(divide, 1)
        return found, beat

    for _ in range(2):  # another loop
        found, beat = asyncio.run(main())
        assert found == list(range(1, 11))
        assert beat > 1  # the loop went on


def test_what_is_left_of_a_closed_client(cluster, tmp_path):
    with Client(cluster, set_as_default=False) as client:
        done, running = client.submit(inc, 1), client.submit(spin, str(tmp_path))
        assert done.result() == 2
        found = []
        waiting = threading.Thread(target=lambda: found.append(_error(running.result)))
        waiting.start()
        called = threading.Event()
        running.add_done_callback(lambda future: called.set())
    waiting.join(20)
    assert "this client is closed" in str(found[0])
    assert called.wait(20)
    assert isinstance(found[0], ClusterError)
    assert done.result() == 2  # it has come already
    assert (done.status, running.status) == ("finished", "lost")
    with pytest.raises(ClusterError, match="closed"):
        running.result()
    with pytest.raises(ClusterError, match="closed"):
        client.submit(inc, 1)
    with pytest.raises(ClusterError, match="closed"):
        running.cancel()
    assert isinstance(done, Future)


def _error(call):
    try:
        call()
    except Exception as error:
        return error


def test_many_futures_that_are_dropped_hold_up_nobody(client, until, monkeypatch):
    """They go in batches, and what is asked for meanwhile goes between them."""
    machine = client._engine.machine
    base = machine.next_counter
    futures = client.map(inc, range(12_000))
    wait(futures)
    held = [futures[0], futures[-1], *futures[6_000:6_100]]

    def left():
        return sum(counter >= base for counter in list(machine.wishes))

    with monkeypatch.context() as patched:
        patched.setattr(engine, "PAUSE", 3600.0)  # after the first batch nothing comes by itself
        del futures
        until(lambda: left() < 12_000)
        assert client.submit(inc, 1).result() == 2
        assert left() >= 12_000 - engine.AT_ONCE
    client._engine.call(client._engine._sweep)
    until(lambda: left() <= len(held) + 1)
    assert client.gather(held) == [1, 12_000, *range(6_001, 6_101)]
    assert client.who_has(held[5])[held[5].key]
