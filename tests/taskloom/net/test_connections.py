"""Connections: what holds for all of them, over real sockets and within the process."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import threading
from typing import Any, NamedTuple

import numpy as np
import pytest

from taskloom import net
from taskloom.errors import ConnectionLostError, MessageTooLargeError, ProtocolError
from taskloom.net.connection import HIGH, LOW
from taskloom.protocol import Limits, Payload, Reference
from taskloom.serialize import dumps, loads


class Job(NamedTuple):
    number: Any
    data: Any


def plain(value):
    if isinstance(value, tuple):
        return tuple([plain(item) for item in value])
    return bytes(value) if isinstance(value, memoryview) else value


def test_messages_arrive_in_order_and_as_they_were(run, ends, scheme):
    async def test():
        async with ends(scheme) as (one, other):
            draw = random.Random(4)
            messages = [("m", n, draw.randbytes(draw.choice([0, 10, 9000, 70_000])), (1, None)) for n in range(300)]
            for message in messages:
                one.connection.send(message)
                if draw.random() < 0.1:
                    await asyncio.sleep(0)
            assert [plain(m) for m in await other.get(300)] == messages
            for message in messages:
                other.connection.send(message)
            assert [plain(m) for m in await one.get(300)] == messages

    run(test)


def test_what_is_sent_in_one_turn_arrives_as_one_batch(run, ends, scheme):
    async def test():
        async with ends(scheme) as (one, other):
            for n in range(1000):
                one.connection.send(n)
            assert one.connection.counters.batches_out == 0
            assert await other.get(1000) == list(range(1000))
            assert one.connection.counters.batches_out == 1
            assert other.batches == [1000]
            assert other.connection.counters.batches_in == 1

    run(test)


def test_both_know_the_other(run, ends, scheme):
    async def test():
        async with ends(scheme) as (one, other):
            assert one.connection.peer.role == "scheduler"
            assert other.connection.peer.role == "client"
            assert one.connection.peer.identity.python == other.connection.peer.identity.python
            assert one.connection.peer.warnings == ()
            assert one.connection.scheme == other.connection.scheme == scheme
            assert one.connection.remote == other.connection.local
            assert one.connection.local == other.connection.remote
            assert net.parse_address(one.connection.remote).scheme == scheme
            assert "open" in repr(one.connection)
            assert "scheduler" in repr(one.connection)

    run(test)


def test_large_payloads_arrive_writable_and_apart_from_each_other(run, ends, wire):
    async def test():
        async with ends(wire) as (one, other):
            values = [np.arange(n) for n in (10, 2000, 50_000, 600_000)]
            for value in values:
                stream, buffers = dumps(value)
                one.connection.send(("result", Payload([stream, *buffers])))
            for value, message in zip(values, await other.get(4), strict=True):
                stream, *buffers = message[1].parts
                found = loads(stream, buffers)
                assert np.array_equal(found, value)
                found += 1

    run(test)


def test_payloads_within_a_process_are_not_copied_and_read_only(run, ends):
    async def test():
        async with ends("inproc") as (one, other):
            value = np.arange(50_000)
            stream, buffers = dumps(value)
            thing = object()
            one.connection.send(
                (Payload([stream, *buffers]), Reference(thing), bytearray(b"m" * 10_000), b"b" * 10_000)
            )
            [(payload, reference, view, data)] = await other.get(1)
            found = loads(payload.parts[0], payload.parts[1:])
            assert np.shares_memory(found, value)
            assert not found.flags.writeable
            assert reference.value is thing
            assert type(view) is type(data) is memoryview
            assert view.readonly
            assert data.readonly

    run(test)


def test_a_list_that_is_changed_after_it_was_sent(run, ends, scheme):
    async def test():
        async with ends(scheme) as (one, other):
            column, table = [1, 2, 3], {"a": [1]}
            one.connection.send(("c", column, table))
            column.clear()
            table["a"].append(2)
            assert await other.get(1) == [("c", (1, 2, 3), {"a": (1,)})]

    run(test)


def test_kinds_arrive_as_what_they_are(run, ends, scheme):
    async def test():
        async with ends(scheme, options=net.Options(kinds=(Job,))) as (one, other):
            one.connection.send(Job(1, [Job(2, b"x" * 9000)]))
            [message] = await other.get(1)
            assert type(message) is Job
            assert type(message.data[0]) is Job

    run(test)


def test_counters(run, ends, wire):
    async def test():
        async with ends(wire) as (one, other):
            for n in range(5):
                one.connection.send(("m", n, b"x" * 10_000))
            await other.get(5)
            sent, received = one.connection.counters, other.connection.counters
            assert sent.messages_out == received.messages_in == 5
            assert sent.bytes_out == received.bytes_in > 50_000
            assert sent.messages_in == sent.bytes_in == received.bytes_out == 0
            assert sent.as_dict()["messages_out"] == 5

    run(test)


@pytest.mark.parametrize("seed", range(4))
def test_small_buffers_of_the_system_and_pauses_at_any_time(run, ends, wire, seed):
    """Sending stops in the middle of everything, both ways at a time, and goes on."""

    async def test():
        draw = random.Random(seed)
        async with ends(wire) as pair:
            for side in pair:
                side.connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            wanted = [
                [(n, draw.randbytes(draw.choice([5, 500, 9000, 40_000, 150_000]))) for n in range(120)]
                for _ in range(2)
            ]

            async def work(side, messages):
                for message in messages:
                    (side.connection.post if draw.random() < 0.2 else side.connection.send)(message)
                    what = draw.random()
                    if what < 0.2:
                        await asyncio.sleep(0)
                    elif what < 0.3:
                        side.connection.pause_reading()
                        side.connection.pause_reading()
                    elif what < 0.5:
                        side.connection.resume_reading()
                        side.connection.resume_reading()
                side.connection.resume_reading()
                await side.connection.drain()

            await asyncio.gather(*[work(side, messages) for side, messages in zip(pair, wanted, strict=True)])
            for side, messages in zip(pair, reversed(wanted), strict=True):
                assert [plain(message) for message in await side.get(120)] == messages
            pair[0].connection.send(("last", bytes(200_000)))
            pair[0].connection.close()
            assert plain((await pair[1].get(1))[0]) == ("last", bytes(200_000))

    run(test)


# --- what cannot be sent


def test_a_message_that_cannot_travel_is_the_senders_error_only(run, ends, scheme):
    async def test():
        async with ends(scheme) as (one, other):
            one.connection.send(1)
            with pytest.raises(TypeError, match="can't stand in a message"):
                one.connection.send(("a", object()))
            one.connection.send(2)
            assert await other.get(2) == [1, 2]

    run(test)


def test_a_message_beyond_what_the_peer_takes_is_not_sent(run, ends, wire):
    async def test():
        small = net.Options(limits=Limits(header=1000, batch=20_000))
        async with ends(wire, theirs=small) as (one, other):
            with pytest.raises(MessageTooLargeError, match="the other side takes 1,000"):
                one.connection.send("x" * 2000)
            with pytest.raises(MessageTooLargeError, match="the other side takes 20,000 in one"):
                one.connection.send(b"x" * 20_001)
            one.connection.send("fine")
            assert await other.get(1) == ["fine"]
            other.connection.send("y" * 2000)  # the other way it is allowed
            assert await one.get(1) == ["y" * 2000]

    run(test)


def test_references_stay_within_the_process(run, ends, wire):
    async def test():
        async with ends(wire) as (one, _):
            with pytest.raises(TypeError, match="can't leave this process"):
                one.connection.send(Reference(1))

    run(test)


# --- back pressure


def test_a_slow_reader_holds_the_sender_back(run, ends, scheme):
    async def test():
        async with ends(scheme) as (one, other):
            other.connection.pause_reading()
            block = bytes(1 << 20)
            sent = 0
            # until the system's buffers and ours are full
            while one.connection.pending <= HIGH:
                one.connection.send(("block", sent, block))
                sent += 1
                await asyncio.wait_for(one.connection.drain(), 10) if one.connection.pending <= HIGH // 2 else None
                await asyncio.sleep(0)
                assert sent < 200
            waiting = asyncio.ensure_future(one.connection.drain())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not waiting.done()
            assert other.messages == []
            other.connection.resume_reading()
            await waiting
            assert one.connection.pending <= LOW
            assert [message[1] for message in await other.get(sent)] == list(range(sent))

    run(test)


def test_what_waits_to_be_sent_is_known_at_once(run, ends, scheme):
    async def test():
        async with ends(scheme) as (one, other):
            assert one.connection.pending == 0
            one.connection.send(bytes(1_000_000))
            assert 1_000_000 <= one.connection.pending < 1_001_000
            await other.get(1)
            assert one.connection.pending == 0

    run(test)


def test_reading_can_be_paused_from_within_a_message(run, ends, scheme):
    async def test():
        async with ends(scheme, start=False) as (one, other):
            one.start()
            seen = []

            def on_messages(messages):
                seen.extend(messages)
                connection.pause_reading()
                other._news.set()

            connection = other.connection
            connection.start(on_messages, other.on_close)
            for n in range(3):
                one.connection.send(n)
                await other.until(lambda n=n: len(seen) == n + 1)
                one.connection.send("later")
                one.connection.send("later")
                await one.connection.drain()
                connection.resume_reading()
                await other.until(lambda: "later" in seen)
                while seen.count("later") < 2:
                    connection.resume_reading()
                    await asyncio.sleep(0)
                assert seen[: n + 1] == list(range(n + 1))
                seen[:] = range(n + 1)
                connection.resume_reading()

    run(test)


def test_nothing_is_read_before_the_start(run, ends, scheme):
    async def test():
        async with ends(scheme, start=False) as (one, other):
            one.connection.send("early")
            await one.connection.drain()
            one.start()
            other.start()
            assert await other.get(1) == ["early"]
            with pytest.raises(RuntimeError, match="called once"):
                other.start()

    run(test)


# --- the end


def test_close_sends_what_waits(run, ends, scheme):
    async def test():
        async with ends(scheme) as (one, other):
            data = os.urandom(5_000_000)
            one.connection.send(("last", data))
            one.connection.close()
            one.connection.send("too late")
            one.connection.close()
            assert plain((await other.get(1))[0]) == ("last", data)
            reason = await other.closed()
            assert isinstance(reason, ConnectionLostError)
            assert str(reason) == f"the client at {other.connection.remote} closed the connection"
            assert await one.closed() is None
            assert one.connection.closed
            assert one.closes == [None]
            assert other.messages == []
            assert "closed" in repr(one.connection)

    run(test)


def test_close_is_in_order_when_the_peer_has_sent_something_nobody_read(run, ends, scheme):
    """A socket that is closed with bytes unread resets the connection, and what was sent last is lost with it."""

    async def test():
        async with ends(scheme) as (one, other):
            one.connection.pause_reading()
            other.connection.send(b"x" * 100_000)
            await other.connection.drain()
            one.connection.send("last words")
            one.connection.close()
            assert await other.get(1) == ["last words"]
            await other.closed()
            assert await one.closed() is None
            assert one.messages == []

    run(test)


def test_both_close_at_a_time(run, ends, scheme):
    async def test():
        async with ends(scheme) as (one, other):
            one.connection.send(1)
            other.connection.send(2)
            one.connection.close()
            other.connection.close()
            assert await one.closed() is None
            assert await other.closed() is None

    run(test)


def test_abort_ends_both(run, ends, scheme):
    async def test():
        async with ends(scheme) as (one, other):
            one.connection.abort()
            assert one.closes == []  # not in the middle of the call
            one.connection.send("nothing happens")
            assert await one.closed() is None
            assert isinstance(await other.closed(), ConnectionLostError)
            one.connection.abort()
            one.connection.close()
            one.connection.pause_reading()
            one.connection.resume_reading()
            one.connection.post(1)

    run(test)


def test_who_waits_to_send_learns_of_the_end(run, ends, scheme):
    async def test():
        async with ends(scheme) as (one, other):
            other.connection.pause_reading()
            while one.connection.pending <= HIGH:
                one.connection.send(bytes(1 << 20))
                await asyncio.sleep(0)
            waiting = asyncio.ensure_future(one.connection.drain())
            await asyncio.sleep(0)
            other.connection.abort()
            if scheme == "inproc":  # what it can't have any more does not wait either
                await waiting
            else:
                with pytest.raises(ConnectionLostError):
                    await waiting
                with pytest.raises(ConnectionLostError):
                    await one.connection.drain()
            assert isinstance(await one.closed(), ConnectionLostError)

    run(test)


def test_an_end_in_the_middle_of_a_message_is_told(run, ends):
    async def test():
        async with ends("tcp") as (one, other):
            one.connection.send(("m", bytes(100_000)))
            with one.connection._lock:
                one.connection._take()
            parts = b"".join(one.connection._queue)
            one.connection._queue.clear()
            one.connection._queued = 0
            one.connection._sock.send(parts[:50_000])
            one.connection._sock.shutdown(socket.SHUT_WR)
            reason = await other.closed()
            assert str(reason).endswith("closed the connection in the middle of a message")

    run(test)


def test_the_last_messages_of_a_peer_come_before_its_end(run, ends):
    """Even where sending to it has failed already: they may say why it ends."""

    async def test():
        async with ends("tcp") as (one, other):
            sock = one.connection._sock
            for n in range(50):
                one.connection.send(("why", n))
            await one.connection.drain()
            one.connection.pause_reading()
            other.connection.pause_reading()
            # a reset that comes while messages are unread
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            other.connection.send("x")
            await asyncio.sleep(0)
            one.connection._finish(None)
            for _ in range(3):
                other.connection.send("y")
                await asyncio.sleep(0)
            other.connection.resume_reading()
            await other.closed()
            assert other.messages == [("why", n) for n in range(50)]

    run(test)


def test_an_error_in_what_is_done_with_messages_ends_that_connection(ends):
    problems = []

    async def test():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        async with ends("tcp", start=False) as (one, other):
            one.start()
            other.connection.start(lambda messages: 1 / 0, other.on_close)
            one.connection.send(1)
            reason = await other.closed()
            assert "could not be dealt with: ZeroDivisionError" in str(reason)
            assert isinstance(await one.closed(), ConnectionLostError)

    asyncio.run(test())
    assert isinstance(problems[0]["exception"], ZeroDivisionError)


def test_bytes_that_are_no_frames_end_the_connection(run, ends, wire):
    async def test():
        async with ends(wire) as (one, other):
            one.connection.send("good")
            await other.get(1)
            one.connection._sock.send(os.urandom(1000))
            reason = await other.closed()
            assert isinstance(reason, ProtocolError)
            assert f"the client at {other.connection.remote} sent what is no message" in str(reason)
            assert isinstance(await one.closed(), ConnectionLostError)

    run(test)


def test_nothing_is_left_of_a_closed_connection(run, ends, scheme):
    async def test():
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            async with ends(scheme) as (one, other):
                one.connection.send(bytes(100_000))
                await other.get(1)
                one.connection.close()
                await other.closed()
        gc.collect()
        # something of an earlier test may come and go in this process; ten connections would leave ten
        assert len(os.listdir("/proc/self/fd")) < before + 8

    asyncio.run(ends_warm(ends, scheme))
    run(test)


async def ends_warm(ends, scheme):
    async with ends(scheme):
        pass


# --- other threads


def test_any_thread_may_post(run, ends, scheme):
    async def test():
        async with ends(scheme) as (one, other):
            start = threading.Barrier(4)

            def work(name):
                start.wait()
                for n in range(300):
                    one.connection.post((name, n, b"x" * (n * 50)))

            threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
            for thread in threads:
                thread.start()
            await asyncio.get_running_loop().run_in_executor(None, start.wait)
            for n in range(300):
                one.connection.send((3, n, b"y" * 20_000))
                if n % 10 == 0:
                    await asyncio.sleep(0)
            found = await other.get(1200)
            for thread in threads:
                thread.join()
            for name in range(4):
                assert [m[1] for m in found if m[0] == name] == list(range(300))
            assert one.connection.counters.messages_out == 1200

    run(test)


def test_a_post_does_not_wait_for_the_loop(run, ends):
    """The calling thread itself gives it to the system, while the loop's thread is busy."""

    async def test():
        async with ends("tcp") as (one, other):
            sock = other.connection._sock.dup()
            sock.setblocking(True)
            sock.settimeout(10)
            other.connection.pause_reading()

            def work():
                one.connection.post("hello")
                return sock.recv(100, socket.MSG_PEEK)

            with sock:
                thread_result = []
                thread = threading.Thread(target=lambda: thread_result.append(work()))
                thread.start()
                thread.join()  # the loop stands still meanwhile
            assert b"hello" in thread_result[0]
            other.connection.resume_reading()
            assert await other.get(1) == ["hello"]

    run(test)


def test_posts_to_a_peer_that_has_gone(run, ends, scheme):
    async def test():
        async with ends(scheme) as (one, other):
            other.connection.abort()
            await other.closed()

            def work():
                for _ in range(50):
                    one.connection.post(bytes(100_000))

            await asyncio.get_running_loop().run_in_executor(None, work)
            assert isinstance(await one.closed(), ConnectionLostError)

    run(test)


def test_a_post_after_the_loop_has_ended_does_nothing(ends, scheme):
    kept = []

    async def test():
        async with ends(scheme) as (one, other):
            kept.append((one.connection, other.connection))

    asyncio.run(test())
    for one, other in kept:
        one.post(1)
        other.post(1)


def test_two_loops_in_two_threads(run, end):
    """As a scheduler and a client in one process are."""
    from taskloom.net.inproc import InprocListener

    ready = threading.Event()
    found: dict[str, Any] = {}

    async def scheduler():
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def welcome(connection):
            def on_messages(messages):
                for message in messages:
                    connection.send(message)

            def on_close(reason):
                done.set_result(reason)

            connection.start(on_messages, on_close)

        listener = await net.listen("inproc://two-loops", welcome, token="", role="scheduler")
        assert isinstance(listener, InprocListener)
        ready.set()
        found["reason"] = await asyncio.wait_for(done, 30)
        listener.close()

    thread = threading.Thread(target=lambda: asyncio.run(scheduler()))
    thread.start()
    ready.wait()

    async def test():
        connection = await net.connect("inproc://two-loops", token="", role="client", wants="scheduler")
        here = end(connection)
        for n in range(500):
            connection.send(("m", n))
            if n % 50 == 0:
                await here.get(1 if n == 0 else 50)
        await here.get(49)
        for _ in range(100):
            connection.send(bytes(1 << 20))
            await connection.drain()
        await here.get(100)
        connection.close()
        await connection.wait_closed()

    try:
        run(test)
    finally:
        thread.join()
    assert "closed the connection" in str(found["reason"])


# --- the system's settings


def test_sockets_notice_a_peer_that_has_vanished(run, ends, wire):
    async def test():
        async with ends(wire) as pair:
            for side in pair:
                sock = side.connection._sock
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 120_000

    run(test)
