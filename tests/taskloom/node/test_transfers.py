"""Values on their way, over real connections."""

from __future__ import annotations

import asyncio
import threading

import pytest

from taskloom import net
from taskloom.core.messages import KINDS, Fetch
from taskloom.errors import MessageTooLargeError, SerializationError
from taskloom.net import Options
from taskloom.node import calls, transfers
from taskloom.node.transfers import Pieces, Sender
from taskloom.node.values import Values
from taskloom.protocol import Limits
from taskloom.serialize.errors import load_error

TOKEN = "a-token-for-the-tests"


def exchange(work, wanted, limits=None):
    """What the receiver has got after ``work(values, connection)`` at the sender: messages, until so many values have come."""

    async def main():
        came, done = [], asyncio.Event()
        ends = []

        def on_messages(messages):
            came.extend(messages)
            if sum(len(getattr(message, "tids", [0])) for message in came) >= wanted:
                done.set()

        def welcome(connection):
            ends.append(connection)
            connection.start(on_messages, lambda reason: done.set())

        listener = await net.listen(
            "tcp://127.0.0.1:0",
            welcome,
            token=TOKEN,
            role="worker",
            options=Options(kinds=KINDS, **({} if limits is None else {"limits": limits})),
        )
        connection = await net.connect(str(listener.address), token=TOKEN, role="worker", options=Options(kinds=KINDS))
        connection.start(lambda messages: None, lambda reason: None)
        values = Values()
        try:
            await work(values, connection)
            async with asyncio.timeout(30):
                await done.wait()
        finally:
            values.close()
            for one in (connection, *ends):
                one.abort()
            listener.close()
            await listener.wait_closed()
            await asyncio.get_running_loop().shutdown_default_executor()
        return came

    return asyncio.run(main())


def given(messages):
    """tid -> value or error."""
    found = {}
    for message in messages:
        for tid, value in zip(message.tids, message.values, strict=True):
            found[abs(tid)] = load_error(bytes(value.parts[0])) if tid < 0 else calls.open_value(value)
    return found


def test_what_is_beyond_the_limits_is_said_and_the_rest_comes():
    async def work(values, connection):
        values.put(1, b"a" * 5000, 5000)
        values.put(2, b"b" * 60_000, 60_000)
        values.put(3, b"c" * 3_000_000, 3_000_000)
        values.put(4, "small", 50)
        Sender(values, "w").send(connection, 9, [1, 2, 3, 4])

    found = given(exchange(work, 4, Limits(batch=20_000)))
    assert (found[1], found[4]) == (b"a" * 5000, "small")
    assert type(found[2]) is type(found[3]) is MessageTooLargeError


def test_many_that_are_not_large_do_not_go_all_at_once():
    async def work(values, connection):
        for n in range(1, 41):
            values.put(n, bytes([n]) * 500_000, 500_000)
        Sender(values, "w").send(connection, 9, list(range(1, 41)))

    messages = exchange(work, 40)
    assert given(messages) == {n: bytes([n]) * 500_000 for n in range(1, 41)}
    assert max(sum(message.sizes) for message in messages) <= transfers.MOST + 600_000
    assert all(message.serial == 9 for message in messages)


def test_what_was_forgotten_is_left_out():
    async def work(values, connection):
        values.put(1, b"a" * 2_000_000, 2_000_000)
        values.put(2, "here", 50)
        sender = Sender(values, "w")
        sender.send(connection, 9, [1, 2, 3])
        values.forget([1])  # while it waits to be pickled

    assert given(exchange(work, 1)) == {2: "here"}


def test_what_does_not_pickle_is_named():
    async def work(values, connection):
        values.put(1, [threading.Lock()], 100)
        values.put(2, [bytes(2_000_000), threading.Lock()], 2_000_000)
        Sender(values, "w").send(connection, 9, [1, 2])

    found = given(exchange(work, 2))
    for tid in (1, 2):
        assert type(found[tid]) is SerializationError
        assert "a list on worker 'w' is needed elsewhere and does not pickle: TypeError" in str(found[tid])


@pytest.mark.parametrize("size", [10_000, 3_000_000])
def test_pieces(size):
    value = bytes(range(250)) * (size // 250)

    async def work(values, connection):
        values.put(7, value, size)
        pieces = Pieces(values, "w")
        for n in range(5):
            pieces.send(connection, Fetch(1, n, 2, 7, n * (size // 4), size // 4))
        pieces.send(connection, Fetch(1, 99, 2, 8, 0, 10))

    messages = exchange(work, 6)
    messages.sort(key=lambda message: message.serial)
    assert [message.serial for message in messages] == [0, 1, 2, 3, 4, 99]
    assert messages[5].sizes in ((), [])  # it has no such value
    whole = b"".join(bytes(part) for message in messages[:5] for part in message.data.parts)
    sizes = messages[0].sizes
    parts = [whole[sum(sizes[:n]) : sum(sizes[: n + 1])] for n in range(len(sizes))]
    assert calls.open_value(calls.Payload(parts)) == value
    assert transfers.LARGE < 3_000_000
