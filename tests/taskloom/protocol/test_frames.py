"""Frames: batches to buffers and back, whatever pieces they arrive in; limits; damaged and hostile bytes; compression."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tracemalloc
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskloom.errors import MessageTooLargeError, ProtocolError
from taskloom.protocol import OUT_OF_BAND, Decoder, Encoder, Limits, Payload, compression
from taskloom.protocol.frames import ENTRY, MARK, PREFIX


class Job(NamedTuple):
    number: Any
    data: Any


def encoded(*messages: Any, **options: Any) -> list[Any]:
    encoder = Encoder(**options)
    for message in messages:
        encoder.add(message)
    return encoder.take()


def joined(parts: list[Any]) -> bytes:
    return b"".join([bytes(part) for part in parts])


def receive(decoder: Decoder, data: bytes, sizes: Any) -> list[Any]:
    """As from a socket: at most so many bytes at a time, into the buffer that the decoder wants them in."""
    found = []
    at = 0
    while at < len(data):
        buffer = decoder.get_buffer()
        step = min(next(sizes), buffer.nbytes, len(data) - at)
        buffer[:step] = data[at : at + step]
        found += decoder.received(step)
        at += step
    return found


def plain(message: Any) -> Any:
    if isinstance(message, (tuple, list)):
        return tuple([plain(item) for item in message])
    return bytes(message) if isinstance(message, (memoryview, bytearray)) else message


def always(size: int) -> Any:
    while True:
        yield size


BATCHES: dict[str, list[Any]] = {
    "one": [("hello", 1)],
    "many small": [("done", n, None) for n in range(1000)],
    "empty message": [()],
    "15": [1] * 15,
    "16": [1] * 16,
    "large": [("put", os.urandom(100_000))],
    "just out of band": [("put", b"x" * OUT_OF_BAND), ("put", b"y" * (OUT_OF_BAND - 1)), 5],
    "mixed": [("put", n, os.urandom(3000 * n)) for n in range(30)],
    "several frames": [("text", "t" * 700_000), ("text", "u" * 700_000), ("put", b"v" * 700_000), 1],
    "larger than the scratch": [("text", "t" * 3_000_000), 2],
    "from the system": [("put", os.urandom(3 << 20)), 3],
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("size", [1, 7, 19, 20, 21, 4096, 1 << 30])
def test_batches_arrive_in_whatever_pieces(name, size):
    data = joined(encoded(*BATCHES[name]))
    if size < 20 and len(data) > 20_000:
        size *= 1009  # pieces as odd, but fewer
    decoder = Decoder()
    found = receive(decoder, data, always(size))
    assert [plain(message) for message in found] == [plain(message) for message in BATCHES[name]]
    assert not decoder.inside
    decoder = Decoder()
    found = []
    for at in range(0, len(data), max(size, 1000)):
        found += decoder.feed(data[at : at + max(size, 1000)])
    assert [plain(message) for message in found] == [plain(message) for message in BATCHES[name]]


@given(
    st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 9)), min_size=1, max_size=12),
    st.integers(0, 2**32),
    st.lists(st.integers(0, 11), max_size=3),
)
def test_any_batches_in_any_pieces(sizes, seed, cuts):
    draw = random.Random(seed)
    messages = [("m", number, draw.randbytes(size), list(range(number))) for size, number in sizes]
    encoder = Encoder()
    data = b""
    for place, message in enumerate(messages):
        encoder.add(message)
        if place in cuts:
            data += joined(encoder.take())
    data += joined(encoder.take())

    def pieces():
        while True:
            yield draw.choice([1, 3, 20, 500, 20_000, 300_000])

    found = receive(Decoder(), data, pieces())
    assert [plain(message) for message in found] == [plain(message) for message in messages]


def test_two_connections_share_a_scratch_buffer():
    scratch = bytearray(1000)
    one, two = Decoder(scratch=scratch), Decoder(scratch=scratch)
    data = joined(encoded(("a", b"1" * 20_000), ("b", "text" * 1000)))
    other = joined(encoded(("c", b"2" * 20_000), ("d", "word" * 1000)))
    found_one, found_two = [], []
    for at in range(0, len(data), 150):
        found_one += receive(one, data[at : at + 150], always(150))
        found_two += receive(two, other[at : at + 150], always(150))
    assert [plain(m)[0] for m in found_one] == ["a", "b"]
    assert plain(found_two) == (("c", b"2" * 20_000), ("d", "word" * 1000))


def test_nothing_large_is_copied_on_its_way_out():
    data = bytearray(os.urandom(1 << 20))
    array = np.frombuffer(data, "B")
    parts = encoded(("put", data), ("put", Payload([b"p", memoryview(data)[1000:]])))
    assert len(parts) == 3
    assert np.shares_memory(np.frombuffer(parts[1], "B"), array)
    assert np.shares_memory(np.frombuffer(parts[2], "B"), array)
    assert len(parts[0]) < 200


def test_large_buffers_are_received_where_they_stay():
    parts = encoded(("put", bytes(1 << 20)))
    decoder = Decoder()
    decoder.feed(parts[0])
    place = decoder.get_buffer()
    assert place.nbytes == 1 << 20
    place[:] = b"z" * (1 << 20)
    [message] = decoder.received(1 << 20)
    assert np.shares_memory(np.frombuffer(message[1], "B"), np.frombuffer(place, "B"))
    assert not message[1].readonly
    assert bytes(message[1]) == b"z" * (1 << 20)


FORK = """
import os
from taskloom.protocol import Decoder, Encoder
for size in (100_000, 2 << 20, 9 << 20):
    encoder = Encoder()
    encoder.add(("put", bytes(size)))
    [message] = Decoder().feed(b"".join(encoder.take()))
    pid = os.fork()
    if not pid:
        message[1][:] = b"x" * size
        os._exit(0)
    os.waitpid(pid, 0)
    print(bytes(message[1]) == bytes(size))
"""


def test_a_forked_process_does_not_write_into_large_buffers():
    done = subprocess.run([sys.executable, "-c", FORK], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True"] * 3


def test_what_waits_is_counted():
    encoder = Encoder()
    assert encoder.size == 0
    encoder.add(("put", b"x" * 10_000))
    assert 10_000 < encoder.size < 10_100
    encoder.add("t" * 1_500_000)
    encoder.add(("put", b"x" * 10_000))
    size = sum([len(part) for part in encoder.take()])
    assert 1_520_000 < size < 1_520_400
    assert encoder.size == 0


def test_a_small_rest_is_not_received_by_itself():
    """It comes with what follows it, in one system call."""
    data = joined(encoded(("put", b"x" * OUT_OF_BAND), ("next", 1)))
    decoder = Decoder()
    decoder.feed(data[:-100])
    assert decoder.inside
    assert decoder.get_buffer().nbytes >= 1 << 16


def test_messages_are_encoded_when_they_are_added():
    encoder = Encoder()
    column = [1, 2]
    encoder.add(("c", column))
    column.append(3)
    assert Decoder().feed(joined(encoder.take())) == [("c", (1, 2))]
    assert not encoder
    assert encoder.take() == []


def test_a_message_that_cannot_travel_does_not_disturb_the_batch():
    encoder = Encoder()
    encoder.add(("a", b"1" * OUT_OF_BAND))
    with pytest.raises(TypeError):
        encoder.add(("b", b"2" * OUT_OF_BAND, object()))
    encoder.add(("c", b"3" * OUT_OF_BAND))
    found = Decoder().feed(joined(encoder.take()))
    assert plain(found) == (("a", b"1" * OUT_OF_BAND), ("c", b"3" * OUT_OF_BAND))
    assert encoder.messages == 2


def test_kinds_arrive():
    found = Decoder(kinds=(Job,)).feed(joined(encoded(Job(1, b"x" * 9000), (1, 2), kinds=(Job,))))
    assert type(found[0]) is Job
    assert found[0].number == 1
    assert found[1] == (1, 2)


# --- limits


@pytest.mark.parametrize(
    ("limits", "message", "words"),
    [
        (Limits(header=100), ("text", "t" * 100), r"a message of 1\d\d bytes, without its large buffers, is not sent"),
        (Limits(buffer=10_000), ("put", b"x" * 10_001), "a buffer of 10,001 bytes; the other side takes 10,000 in one"),
        (Limits(batch=15_000), ("put", [b"x" * 9000, b"y" * 9000]), "buffers of 18,000 bytes together"),
        (Limits(buffers=2), ("put", [b"x" * 9000] * 3), "3 buffers; the other side takes 2"),
    ],
)
def test_what_the_receiver_would_refuse_is_not_sent(limits, message, words):
    encoder = Encoder(limits)
    encoder.add(1)
    with pytest.raises(MessageTooLargeError, match=words) as caught:
        encoder.add(message)
    assert f"tuple beginning with {message[0]!r}" in str(caught.value)
    encoder.add(2)
    assert Decoder(limits).feed(joined(encoder.take())) == [1, 2]


def test_what_is_too_much_for_one_frame_goes_into_several():
    limits = Limits(header=200, batch=20_000, buffers=2)
    messages = [("put", n, b"x" * 9000) for n in range(7)] + [("text", "t" * 50)] * 20 + [("put", 7, b"y" * 9000)]
    parts = encoded(*messages, limits=limits)
    assert plain(Decoder(limits).feed(joined(parts))) == plain(messages)


def prefix(header: int = 1, count: int = 0, payload: int = 0, mark: bytes = MARK) -> bytes:
    return PREFIX.pack(mark, header, count, payload)


LIMITS = Limits(header=1000, batch=100_000, buffer=60_000, buffers=10)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n", "where a frame should begin stand the bytes b'GET / HTTP/1.1"),
        (bytes(20), "where a frame should begin"),
        (prefix(header=1001), "header has 1,001 bytes; the limit is 1,000"),
        (prefix(header=0xFFFFFFFF), "header has 4,294,967,295 bytes"),
        (prefix(header=0), "no header"),
        (prefix(count=11), "has 11 buffers; the limit is 10"),
        (prefix(count=0xFFFFFFFF, payload=0xFFFFFFFFFFFFFFFF), "buffers; the limit is 10"),
        (prefix(count=1, payload=100_001), "100,001 bytes; the limit is 100,000"),
        (prefix(2, 1, 5) + ENTRY.pack(6, 5) + b"\x91\x01", "a buffer of 6 bytes travels as 5 by codec 0"),
        (prefix(2, 1, 0) + ENTRY.pack(0, 0) + b"\x91\x01", "a frame has 1 buffers of 0 bytes together"),
        (prefix(2, 2, 5) + ENTRY.pack(5, 5) + ENTRY.pack(0, 0) + b"\x91\x01", "a buffer of 0 bytes"),
        (prefix(2, 1, 70_000) + ENTRY.pack(70_000, 70_000) + b"\x91\x01", "70,000 bytes; the limit is 60,000"),
        (prefix(2, 1, 9) + ENTRY.pack(60_000, 9 | 1 << 56) + b"\x91\x01", "codec 1, which was not agreed on"),
        (prefix(2, 1, 9) + ENTRY.pack(60_000, 9 | 200 << 56) + b"\x91\x01", "codec 200, which was not agreed on"),
        (prefix(2, 1, 9) + ENTRY.pack(8, 9 | 1 << 56) + b"\x91\x01", "a buffer of 8 bytes travels as 9"),
        (prefix(2, 1, 5) + ENTRY.pack(4, 4) + b"\x91\x01", "another number of bytes together"),
        (prefix(2, 0, 5) + b"\x91\x01", "a frame has 0 buffers of 5 bytes together"),
        (
            prefix(2, 2, 100_000) + ENTRY.pack(50_000, 50_000) * 2 + b"\x91\x01" + bytes(100_000),
            "has 2 buffers, and its messages use 0",
        ),
        (prefix(2) + b"\x91\xc1", "no valid msgpack"),
    ],
)
@pytest.mark.parametrize("size", [1, 1 << 30])
def test_wrong_frames_say_what_is_wrong(data, words, size):
    decoder = Decoder(LIMITS)
    if size == 1 and len(data) > 1000:
        size = 997
    with pytest.raises(ProtocolError, match=words):
        receive(decoder, data, always(size))
        decoder.feed(bytes(PREFIX.size))
    with pytest.raises(ProtocolError):
        decoder.feed(prefix(2) + b"\x91\x01")


def test_compressed_buffers_may_not_be_more_than_the_limits_together():
    table = ENTRY.pack(60_000, 9 | 1 << 56) * 2
    with pytest.raises(ProtocolError, match="have 120,000 bytes; the limit is 100,000"):
        Decoder(LIMITS, codecs=[1]).feed(prefix(2, 2, 18) + table + b"\x91\x01")


def test_a_promise_of_much_takes_no_memory():
    """What is allowed by the limits, but does not come."""
    size = 8 << 30
    before = _resident()
    decoder = Decoder()
    decoder.feed(prefix(7, 1, size) + ENTRY.pack(size, size) + b"\x91\xd6\x01\0\0\0\0")
    place = decoder.get_buffer()
    assert place.nbytes == size
    place[:5000] = bytes(5000)
    decoder.received(5000)
    decoder.feed(bytes(100_000))
    assert _resident() - before < 64 << 20


def test_a_promise_of_many_buffers_takes_no_memory():
    tracemalloc.start()
    try:
        decoder = Decoder()
        decoder.feed(prefix(32 << 20, 1 << 20, 16 << 30))
        decoder.feed(bytes(1000))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_damaged_frames_are_messages_or_an_error():
    draw = random.Random(11)
    batch = [("put", n, draw.randbytes(size)) for n, size in enumerate([30, 9000, 500, 20_000, 100])]
    good = joined(encoded(*batch, ("ints", list(range(100)), {"a": None}), limits=LIMITS))
    codecs = [1]
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(draw.randrange(1, 6)):
            # most often where the lengths are
            data[draw.randrange(100 if draw.random() < 0.7 else len(data))] = draw.randrange(256)
        decoder = Decoder(LIMITS, (Job,), codecs)
        try:
            receive(decoder, bytes(data), always(draw.choice([500, 5000, 1 << 30])))
        except ProtocolError:
            with pytest.raises(ProtocolError):
                decoder.feed(b"x")


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_messages_or_an_error(data, marked):
    decoder = Decoder(LIMITS)
    tracemalloc.start()
    try:
        decoder.feed((MARK if marked else b"") + data)
    except ProtocolError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20


def test_the_end_within_a_frame_is_known():
    data = joined(encoded(("put", b"x" * 10_000)))
    for cut in (1, 19, 20, 30, 50, len(data) - 1):
        decoder = Decoder()
        decoder.feed(data[:cut])
        assert decoder.inside
    decoder.feed(data[len(data) - 1 :])
    assert not decoder.inside


# --- compression

CODECS = [compression.choose([name], [name]) for name in compression.CODECS]


@pytest.mark.parametrize("codec", CODECS, ids=list(compression.CODECS))
def test_large_buffers_that_shrink_are_compressed(codec):
    assert codec is not None, "the test dependencies bring all of them"
    zeros = bytes(300_000)
    noise = os.urandom(300_000)
    numbers = np.arange(100_000).tobytes()
    parts = encoded(("a", zeros, noise, numbers, b"s" * 20_000), codec=codec)
    assert len(parts[1]) < 10_000
    assert bytes(parts[2]) == noise
    assert parts[2] is noise
    assert len(parts[4]) == 20_000
    decoder = Decoder(codecs=[codec.number])
    [message] = decoder.feed(joined(parts))
    assert plain(message) == ("a", zeros, noise, numbers, b"s" * 20_000)
    assert not message[1].readonly


@pytest.mark.parametrize("codec", CODECS, ids=list(compression.CODECS))
def test_a_compressed_buffer_of_another_size_is_an_error(codec):
    data = codec.compress(bytes(300_000))
    for size in (299_999, 300_001, 1_000_000, len(data) + 1):
        with pytest.raises(ProtocolError, match="compressed by"):
            compression.decompress(codec.number, data, size, [codec.number])
    for wrong in (data[:-1], data[:5], data + b"x", bytes(100), os.urandom(100)):
        with pytest.raises(ProtocolError, match="compressed by"):
            compression.decompress(codec.number, wrong, 300_000, [codec.number])
    assert bytes(compression.decompress(codec.number, data, 300_000, [codec.number])) == bytes(300_000)


@pytest.mark.parametrize("codec", CODECS, ids=list(compression.CODECS))
def test_a_buffer_that_would_explode_makes_no_room(codec):
    bomb = codec.compress(bytes(50 << 20))
    tracemalloc.start()
    before = _resident()
    try:
        with pytest.raises(ProtocolError):
            compression.decompress(codec.number, bomb, 100_000, [codec.number])
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        assert _resident() - before < 16 << 20
    finally:
        tracemalloc.stop()


def test_the_best_codec_of_both_sides_is_chosen():
    def number(ours, theirs):
        codec = compression.choose(ours, theirs)
        return None if codec is None else codec.number

    assert number(["zlib", "lz4", "zstd"], ["lz4", "zlib", "zstd"]) == 3
    assert number(["zlib", "lz4"], ["zstd", "lz4", "zlib"]) == 2
    assert number(["zlib"], ["zlib", "other"]) == 1
    assert number([], ["zlib"]) is None
    assert number(["zstd"], []) is None


def test_codecs_whose_packages_are_missing_are_not_offered(monkeypatch):
    compression._codec.cache_clear()
    monkeypatch.setitem(sys.modules, "lz4.block", None)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    try:
        assert compression.available() == ("zlib",)
        assert compression.choose(["zstd", "lz4"], ["zstd", "lz4"]) is None
    finally:
        compression._codec.cache_clear()
