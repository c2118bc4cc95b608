"""The client's parts by themselves: output, signals, nested data, the thread for callbacks."""

from __future__ import annotations

import asyncio
import collections
import logging
import sys
import threading
import warnings

import pytest

from taskloom.client.clerk import Clerk
from taskloom.client.nested import futures_in, listed, with_values
from taskloom.client.output import Screen
from taskloom.client.packing import Handle
from taskloom.client.signals import Signal, deadline_of, drive, run
from taskloom.core.messages import Heard


def heard(*rows):
    return Heard(*[list(column) for column in zip(*rows, strict=True)])


def test_lines_are_shown_whole(capsys):
    screen = Screen()
    screen.show(
        heard((1, "w", "stdout", "one\ntw", ()), (2, "w", "stdout", "other\n", ()), (1, "w", "stderr", "e", ()))
    )
    assert capsys.readouterr() == ("one\nother\n", "")
    screen.show(heard((1, "w", "stdout", "o\nthree", ())))
    assert capsys.readouterr() == ("two\n", "")
    assert screen.has_open
    screen.ended([2, 1, 3])
    assert capsys.readouterr() == ("three\n", "e\n")
    assert not screen.has_open


def test_what_is_never_ended_is_shown_all_the_same(capsys):
    screen = Screen()
    screen.show(heard((1, "w", "stdout", "x" * 200_000, ())))
    assert capsys.readouterr().out == "x" * 200_000
    for counter in range(1500):
        screen.show(heard((counter, "w", "stdout", f"{counter}", ())))
    assert capsys.readouterr().out == "".join(f"{n}\n" for n in range(500))
    screen.flush()
    assert capsys.readouterr().out == "".join(f"{n}\n" for n in range(500, 1500))


def test_log_records_and_warnings(caplog):
    screen = Screen()
    with caplog.at_level(logging.INFO):
        screen.show(heard((7, "w1", "log", "done %s", ("mine.own", logging.INFO, "/x/y.py", 12))))
    (record,) = caplog.records
    assert (record.name, record.levelno, record.pathname, record.lineno) == ("mine.own", logging.INFO, "/x/y.py", 12)
    assert (record.getMessage(), record.taskloom_worker, record.taskloom_key) == ("done %s", "w1", 7)
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        screen.show(heard((7, "w1", "log", "quiet", ("mine.own", logging.INFO, "/x/y.py", 12))))
    assert caplog.records == []
    with pytest.warns() as caught:
        screen.show(
            heard(
                (7, "w1", "warning", "old", ("DeprecationWarning", "/x/y.py", 3)),
                (7, "w1", "warning", "own", ("MyWarning", "/x/y.py", 4)),
                (7, "w1", "warning", "no", ("int", "/x/y.py", 5)),
            )
        )
    assert [(w.category, str(w.message), w.lineno) for w in caught] == [
        (DeprecationWarning, "old", 3),
        (UserWarning, "own", 4),
        (UserWarning, "no", 5),
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            screen.show(heard((7, "w1", "warning", "again", ("UserWarning", "/x/z.py", 3))))
    assert len(caught) == 1


def test_whatever_happens_it_raises_nothing(monkeypatch):
    class Closed:
        def write(self, text):
            raise ValueError("closed")

    screen = Screen()
    for stream in (Closed(), None):
        monkeypatch.setattr(sys, "stdout", stream)
        screen.show(heard((1, "w", "stdout", "one\ntwo", ()), (1, "w", "log", "x", ("no", "details"))))
        screen.show(heard((1, "w", "warning", "an error here", ("UserWarning", "/x", 1))))  # pytest makes it one
        screen.flush()


def test_output_of_tasks(cluster, run):
    code = """
import logging, sys, warnings
from taskloom.client import Client

def talk(n):
    print("out", n)
    print("no end", end="")
    print("err", n, file=sys.stderr)
    logging.getLogger("mine").warning("log %s", n)
    warnings.warn("careful")

class Handler(logging.Handler):
    def emit(self, record):
        seen.append((record.name, record.getMessage(), record.taskloom_worker))

seen = []
logging.getLogger("mine").addHandler(Handler())
with Client(sys.argv[1], token=sys.argv[2]) as client, warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    sys.stderr = sys.stdout
    client.get({"x": (talk, 1)}, "x", workers="worker-1")  # Python warns once a place, in each process
    client.submit(talk, 2, workers="worker-0").result()
    assert [str(w.message) for w in caught] == ["careful"] * 2
with Client(sys.argv[1], token=sys.argv[2], output=False) as client:
    client.submit(talk, 3).result()
print(seen[1], len(seen))
"""
    lines = run(code, cluster.address, cluster.token).splitlines()
    assert sorted(lines) == sorted(
        ["out 1", "err 1", "no end", "out 2", "err 2", "no end", "('mine', 'log 2', 'worker-0') 2"]
    )


def test_output_of_a_cluster_of_this_program_is_shown_once(run):
    code = """
import sys
from taskloom.client import Client
def talk():
    print("out")
    print("err", file=sys.stderr)
with Client(n_workers=1) as client:
    client.submit(talk).result()
    sys.stdout.flush()
"""
    assert run(code, error="err\n") == "out\n"


# --- waiting


def test_a_signal_that_is_set_before_while_and_after():
    async def both(signal, deadline):
        return await signal.wait(deadline), await signal.wait(deadline)

    signal = Signal()
    signal.set()
    signal.set()
    assert run(both(signal, None)) == (True, True)
    assert asyncio.run(drive(both(signal, None))) == (True, True)
    for how in (run, lambda coroutine: asyncio.run(drive(coroutine))):
        signal = Signal()
        assert how(both(signal, deadline_of(0.001))) == (False, False)
        timer = threading.Timer(0.01, signal.set)
        timer.start()
        assert how(both(signal, deadline_of(60))) == (True, True)
        timer.join()


def test_errors_go_through_to_who_waits():
    cleaned = []

    async def fail():
        try:
            await Signal().wait(deadline_of(0.001))
            raise ValueError("mine")
        finally:
            cleaned.append(1)

    with pytest.raises(ValueError, match="mine"):
        run(fail())
    with pytest.raises(ValueError, match="mine"):
        asyncio.run(drive(fail()))

    async def cancelled():
        task = asyncio.create_task(drive(fail_later()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def fail_later():
        try:
            await Signal().wait()
        finally:
            cleaned.append(2)

    asyncio.run(cancelled())
    assert cleaned == [1, 1, 2]


def test_a_loop_that_is_closed_is_no_matter():
    signal = Signal()

    async def main():
        task = asyncio.create_task(drive(_wait(signal)))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(main())
    signal.set()


async def _wait(signal):
    return await signal.wait()


# --- the others


def test_a_clerk_calls_in_order_and_logs_what_fails(caplog):
    called = []
    clerk = Clerk("test")
    clerk.close(1)
    for n in range(100):
        clerk.put(called.append, n)
        clerk.put(lambda: 1 / 0)
    clerk.close(20)
    assert called == list(range(100))
    assert caplog.text.count("ZeroDivisionError") == 100
    clerk.put(called.append, "again")  # it begins anew
    clerk.close(20)
    assert called[-1] == "again"


Pair = collections.namedtuple("Pair", "one two")


def test_nested_data():
    def handle(n):
        found = Handle()
        found.client, found.counter, found.key = None, n, n
        return found

    a, b, c = handle(1), handle(2), handle(3)
    data = [a, (b, {"x": c, "y": [a]}), Pair(c, "text"), collections.OrderedDict(k=b), {"plain": 1}]
    assert [found.counter for found in futures_in(data)] == [1, 2, 3, 1, 3, 2]

    def value(future):
        return None if future.counter == 2 else future.counter * 10

    assert with_values(data, value, object()) == [
        10,
        (None, {"x": 30, "y": [10]}),
        Pair(30, "text"),
        collections.OrderedDict(k=None),
        {"plain": 1},
    ]
    assert with_values([a, b, {"x": b, "y": c}, Pair(b, a), {b}], value, None) == [10, {"y": 30}, Pair(None, 10), set()]
    assert listed(n for n in (1, 2)) == [1, 2]
    assert listed({1: a}.values()) == [a]
    assert listed((1, 2)) == (1, 2)
    assert listed("text") == "text"
