"""Messages to msgpack and back; what they may hold, and what damaged or hostile bytes give."""

from __future__ import annotations

import array
import math
import random
import tracemalloc
from typing import Any, NamedTuple

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskloom.errors import ProtocolError
from taskloom.protocol import OUT_OF_BAND, Limits, Payload, Reader, Reference, Writer
from taskloom.serialize import dumps, loads


class Point(NamedTuple):
    x: Any
    y: Any


class Line(NamedTuple):
    points: Any


def through(message: Any, kinds: Any = (), references: bool = False) -> tuple[Any, list[Any]]:
    """The message as it arrives, and the buffers that stood out of band, as the sender has them."""
    apart: list[Any] = []
    data = Writer(kinds, references).write(message, apart)
    received = [item if references else memoryview(bytearray(item)) for item in apart]
    [found] = Reader(Limits(), kinds, references).read(b"\x91" + data, received)
    return found, apart


def frozen(value: Any) -> Any:
    """How a plain value arrives: lists as tuples, memoryviews to compare as bytes."""
    if isinstance(value, (list, tuple)):
        return tuple([frozen(item) for item in value])
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    return value


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=40)
    | st.sampled_from([b"L" * OUT_OF_BAND, bytearray(b"M" * (OUT_OF_BAND + 1)), memoryview(b"N" * 3)])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=40)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 99) | st.tuples(st.integers(0, 9)), inner, max_size=5)
    ),
    max_leaves=60,
)


@given(values)
def test_plain_values_arrive_as_they_were(value):
    found, apart = through(value)
    assert frozen(found) == frozen(value)
    assert all(memoryview(item).nbytes >= OUT_OF_BAND for item in apart)


def test_lists_arrive_as_tuples_and_small_bytes_as_bytes():
    found, apart = through([1, [2, (3,)], bytearray(b"a"), memoryview(b"b")])
    assert found == (1, (2, (3,)), b"a", b"b")
    assert [type(item) for item in found[2:]] == [bytes, bytes]
    assert apart == []


@pytest.mark.parametrize(
    "column",
    [
        list(range(1000)),
        [255] * 40,
        [0, *[256] * 40, 0],
        [*range(200), 70000, 5],
        [-1] * 40,
        [1, *[-1] * 40, 1],
        [2**32 - 1] * 40,
        [2**32] * 40,
        [-(2**63), *[2**63 - 1] * 40],
        [2**64 - 1] * 40,  # no array: msgpack alone
        [1, *[2**64 - 1] * 40],
        [5, *[None] * 40],
        [5, *[None] * 40, 5],
        [5, *[1.5] * 40, 5],
        [5, *["a"] * 40, 5],
        [*range(300), None, 1],
        [0.5] * 40,
        [None] * 40,
        [b""] * 40,
        [b"a", *[None] * 40],
        ["a"] * 40,
        [[1, 2]] * 40,
        [(1, b"x"), *[()] * 40],
        [(1, b"x"), *[(b"y", 2)] * 40],
        [(b"uuid", 1)] * 40,
        [(b"uuid", n, None, "a", 1.5, True) for n in range(40)],
        [tuple(range(20))] * 40,
        [[n, [n]] for n in range(40)],
        [[[n, n], (n,)] for n in range(40)],
        [True] * 40,
        [True, *[1] * 40],
        [(True,), *[(1,)] * 40],
        [None, *[False] * 40],
        ["a", *["b"] * 40, "a"],
        [(1,), *[None] * 40],
        [[[1]]] * 40,
        [[1, "a", None]] * 40,
        tuple(range(1000)),
    ],
    ids=lambda column: f"{column[0]!r}-{column[1]!r}-{column[-1]!r}",
)
def test_columns_arrive_as_they_were(column):
    found, apart = through(("block", column))
    assert found == ("block", frozen(column))
    assert [type(item) for item in found[1]] == [type(item) for item in frozen(column)]
    assert apart == []


def test_a_column_of_integers_takes_few_bytes():
    apart: list[Any] = []
    assert len(Writer().write(list(range(100_000, 101_000)), apart)) < 4020
    assert len(Writer().write([7] * 1000, apart)) < 1020


@pytest.mark.parametrize(
    "place",
    [
        lambda x: x,
        lambda x: [x],
        lambda x: {"a": {"b": x}},
        lambda x: [b"small"] * 50 + [x],
        lambda x: [x] + [b"small"] * 50,
        lambda x: [None] * 50 + [x],
        lambda x: [1] * 50 + [x],
        lambda x: ["s"] * 50 + [x],
        lambda x: [(1, 2)] * 50 + [(x, 1)],
        lambda x: [[1]] * 50 + [x],
        lambda x: [(b"a", 2)] * 50 + [(x, 1)] + [(b"a", 2)],
        lambda x: [(b"a", 2)] * 50 + [(x,)] + [(5, 2)],
        lambda x: (1, ([x],)),
        lambda x: Point(1, x),
    ],
)
@pytest.mark.parametrize("make", [bytes, bytearray, memoryview, lambda data: array.array("B", data), lambda d: None])
def test_large_bytes_stand_out_of_band_wherever_they_are(place, make):
    data = random.Random(1).randbytes(OUT_OF_BAND + 5)
    value = make(data)
    if isinstance(value, array.array):
        value = memoryview(value)
    if value is None:
        value = Payload([b"pickle", data])
    found, apart = through(place(value))
    assert len(apart) == 1
    assert memoryview(apart[0]).nbytes == len(data)
    # the very memory, not a copy of it
    probe = memoryview(value.parts[1] if isinstance(value, Payload) else value)
    assert np.shares_memory(np.frombuffer(apart[0], "B"), np.frombuffer(probe, "B"))
    wanted = place(value if isinstance(value, Payload) else data)
    assert (
        repr(frozen(found)) == repr(frozen(wanted)) if isinstance(value, Payload) else frozen(found) == frozen(wanted)
    )


def test_a_buffer_of_another_shape_arrives_flat():
    block = np.arange(3000, dtype="i8").reshape(60, 50)
    found, apart = through((memoryview(block), 1))
    assert found[0].format == "B"
    assert found[0].ndim == 1
    assert bytes(found[0]) == block.tobytes()
    assert apart[0].nbytes == 24000


@pytest.mark.parametrize("view", [np.zeros((200, 200))[:, ::2], np.zeros((200, 200), order="F")])
def test_a_buffer_that_is_not_in_one_piece_is_refused(view):
    with pytest.raises(TypeError, match=r"not contiguous|Fortran"):
        through(memoryview(view))


def test_payloads_are_not_opened_and_keep_their_parts():
    big = np.arange(10_000)
    stream, buffers = dumps({"a": big, "b": "text"})
    found, apart = through(("result", 5, Payload([stream, *buffers])))
    payload = found[2]
    assert len(apart) == 1
    assert payload.nbytes == len(stream) + big.nbytes
    value = loads(payload.parts[0], payload.parts[1:])
    assert np.array_equal(value["a"], big)
    value["a"][0] = 7  # memory of its own, writable
    assert big[0] == 0


def test_payloads_of_small_parts_stand_in_the_header():
    found, apart = through([Payload([b"p", b"", b"q" * 100]), Payload([])])
    assert apart == []
    assert found == (Payload([b"p", b"", b"q" * 100]), Payload([]))


def test_payloads_compare_by_their_bytes():
    assert Payload([b"a", bytearray(b"b")]) == Payload([memoryview(b"a"), b"b"])
    assert Payload([b"ab"]) != Payload([b"a", b"b"])
    assert Payload([b"ab"]) != b"ab"
    assert repr(Payload([b"ab", b"c"])) == "<Payload of 3 bytes in 2 parts>"


def test_ranges_arrive_as_ranges():
    for value in (range(5), range(10, 2, -3), range(0), range(-5, 1_000_000)):
        assert through(("ids", value))[0] == ("ids", value)


def test_named_tuples_of_known_kinds_arrive_as_what_they_were():
    kinds = (Point, Line)
    message = Line([Point(1, b"x" * OUT_OF_BAND), Point(None, [Point("a", {"p": Point(0, 0)})])])
    found, apart = through(message, kinds)
    assert type(found) is Line
    assert [type(point) for point in found.points] == [Point, Point]
    assert found.points[1].y[0].y == {"p": Point(0, 0)}
    assert len(apart) == 1
    assert through((1, Point(1, 2)), kinds)[0] == (1, Point(1, 2))
    assert through("text", kinds)[0] == "text"
    assert through((-1, 5), kinds)[0] == (-1, 5)


def test_named_tuples_in_columns_of_other_things_are_found():
    kinds = (Point,)
    for column in ([b"x"] * 40, ["x"] * 40, [(1,)] * 40, [1] * 40, [None] * 40):
        found, _ = through([*column, Point(1, 2)], kinds)
        assert type(found[-1]) is Point


def test_a_kind_with_many_fields_that_begin_with_integers():
    Wide = NamedTuple("Wide", [(f"f{n}", Any) for n in range(40)])
    assert through(Wide(*range(40)), (Wide,))[0] == Wide(*range(40))
    assert through([Wide(*range(40))], (Wide,))[0] == (Wide(*range(40)),)


def test_named_tuples_of_other_kinds_arrive_as_tuples():
    found, _ = through([Point(1, 2)])
    assert found == ((1, 2),)
    assert type(found[0]) is tuple


def test_subclasses_arrive_as_what_they_extend():
    class Text(str):
        pass

    class Items(list):
        pass

    class Table(dict):
        pass

    big = b"x" * OUT_OF_BAND
    found, apart = through([Text("a"), Items([big]), Table(a=big)])
    assert frozen(found) == ("a", (big,), {"a": big})
    assert len(apart) == 2


def test_references_hand_an_object_over():
    thing = object()
    found, _ = through((1, Reference(thing)), references=True)
    assert found[1].value is thing
    with pytest.raises(TypeError, match="can't leave this process; pickle it"):
        through(Reference(thing))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), "an object of type builtins.object can't stand in a message; pickle it"),
        ([{1}], "type builtins.set"),
        (1 + 2j, "type builtins.complex"),
        (np.int64(3), "type numpy.int64"),
        (2**64, "an integer of 65 bits can't stand in a message"),
        ([1] * 40 + [-(2**64)], "65 bits"),
    ],
)
def test_what_cannot_travel_is_named(value, words):
    apart = [b"of the message before"]
    with pytest.raises((TypeError, OverflowError), match=words):
        Writer().write([b"x" * OUT_OF_BAND, value], apart)
    assert apart == [b"of the message before"]


def test_a_value_that_holds_itself_is_an_error():
    value: list[Any] = []
    value.append(value)
    with pytest.raises((ValueError, RecursionError)):
        through(value)


def test_text_that_is_no_unicode_arrives():
    assert through("file-\udcff")[0] == "file-\udcff"


def test_floats_arrive_exactly():
    found, _ = through([math.nan, math.inf, -0.0, 1e-320])
    assert math.isnan(found[0])
    assert found[1:] == (math.inf, 0.0, 1e-320)
    assert math.copysign(1, found[2]) == -1


# --- bytes from a peer


def packed(value: Any) -> bytes:
    return msgpack.packb(value)


def ext(code: int, data: bytes) -> msgpack.ExtType:
    return msgpack.ExtType(code, data)


@pytest.mark.parametrize(
    ("header", "apart", "words"),
    [
        (b"", 0, "no valid msgpack"),
        (b"\xc1", 0, "no valid msgpack"),
        (b"\x91", 0, "no valid msgpack"),
        (b"\x90\x90", 0, "extra data"),
        (b"\x91\xd9\xff", 0, "no valid msgpack"),
        (b"\xdd\xff\xff\xff\xff", 0, "no valid msgpack"),
        (b"\xdf\xff\xff\xff\xff", 0, "no valid msgpack"),
        (b"\xc6\xff\xff\xff\xff", 0, "no valid msgpack"),
        (b"\x91\xa2\xff\xfe", 0, "utf-8"),
        (b"\x91" * 5000, 0, "no valid msgpack"),
        (packed(5), 0, "not an array of messages but of type int"),
        (packed({}), 0, "type dict"),
        (packed([{(1, 2): 3}])[:1] + b"\x81\x80\x01", 0, "unhashable"),
        (packed([]), 1, "has 1 buffers, and its messages use 0"),
        (packed([ext(1, b"\0\0\0\0")]), 0, "expected number 0"),
        (packed([ext(1, b"\1\0\0\0")]), 2, "expected number 0"),
        (packed([ext(1, b"\0\0\0\0"), ext(1, b"\0\0\0\0")]), 2, "expected number 1"),
        (packed([ext(1, b"\0\0\0")]), 1, "expected number 0"),
        (packed([ext(2, b"\xc1")]), 0, "no valid msgpack"),
        (packed([ext(2, packed([b"a", 5]))]), 0, "parts that are no bytes"),
        (packed([ext(2, packed("text"))]), 0, "parts that are no bytes"),
        (packed([ext(3, b"")]), 0, "column of integers"),
        (packed([ext(3, b"x123")]), 0, "column of integers"),
        (packed([ext(3, b"I123")]), 0, "column of integers"),
        (packed([ext(3, b"s1")]), 0, "column of integers"),
        (packed([ext(4, packed([0, 1]))]), 0, "wrong bounds"),
        (packed([ext(4, packed([0, 1, 0]))]), 0, "wrong bounds"),
        (packed([ext(4, packed([0, 1, 1.5]))]), 0, "wrong bounds"),
        (packed([ext(4, packed([0, 2**63, 1]))]), 0, "longer than the limit"),
        (packed([ext(4, packed([2**63, 0, -1]))]), 0, "longer than the limit"),
        (packed([ext(5, packed([0, 1]))]), 0, "unknown kind 0; there are 0"),
        (packed([ext(77, b"")]), 0, "unknown type 77"),
        (packed([ext(6, packed([]))]), 0, "columns that are none"),
        (packed([ext(6, packed(["ab", "cd"]))]), 0, "columns that are none"),
        (packed([ext(6, packed([[1, 2], [3]]))]), 0, "shorter than argument 1"),
        (packed([ext(7, packed([-1, 2]))]), 0, "does not say how often"),
        (packed([ext(7, packed([1]))]), 0, "does not say how often"),
        (packed([ext(7, packed([True, 1]))]), 0, "does not say how often"),
        (packed([ext(7, packed([2**62, None]))]), 0, "repeated more often than the limit"),
        (packed([ext(7, packed([2**23, None]))] * 3), 0, "repeated more often than the limit"),
    ],
)
def test_wrong_headers_say_what_is_wrong(header, apart, words):
    with pytest.raises(ProtocolError, match=words):
        Reader(Limits()).read(header, [memoryview(bytearray(10))] * apart)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (5, "does not begin with the number of its kind"),
        ([], "does not begin"),
        (["a"], "does not begin"),
        ([True, 1, 2], "does not begin"),
        ([2, 1], "unknown kind 2; there are 2"),
        ([-1], "unknown kind -1"),
        ([-1, 2, 3], "unknown kind -1"),
        ([0, 1], "a Point has 2 fields, and 1 came"),
        ([1, 1, 2], "a Line has 1 fields, and 2 came"),
        ([1, ext(5, packed([0, 1]))], "a Point has 2 fields, and 1 came"),
    ],
)
def test_wrong_kinds_say_what_is_wrong(message, words):
    with pytest.raises(ProtocolError, match=words):
        Reader(Limits(), (Point, Line)).read(packed([message]), ())


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_an_error(data):
    for kinds in ((), (Point, Line)):
        try:
            found = Reader(Limits(), kinds).read(data, ())
        except ProtocolError:
            continue
        assert type(found) is tuple


hostile = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=9) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.integers(0, 3), inner, max_size=3)
        | st.builds(ext, st.integers(0, 8), inner.map(packed))
        | st.builds(ext, st.just(7), st.tuples(st.integers(0, 2**24), inner).map(packed))
        | st.builds(ext, st.just(6), st.lists(st.lists(inner, min_size=2, max_size=2), max_size=3).map(packed))
    ),
    max_leaves=25,
)


@settings(max_examples=400)
@given(st.lists(hostile, max_size=4))
def test_what_is_well_formed_and_wrong_is_a_message_or_an_error(messages):
    for kinds in ((), (Point, Line)):
        try:
            found = Reader(Limits(span=10_000), kinds).read(packed(messages), ())
        except ProtocolError:
            continue
        assert type(found) is tuple


def test_damaged_messages_are_messages_or_an_error():
    seed = random.Random(5)
    message = (
        [1] * 40,
        [[1, 2], [3]] * 20,
        {"a": [None, 1.5, "text"], 5: Payload([b"p", b"q"])},
        range(10),
        Point(1, 2),
        b"x" * 50,
    )
    apart: list[Any] = []
    good = b"\x91" + Writer((Point,)).write(message, apart)
    reader = Reader(Limits(), (Point,))
    for _ in range(20_000):
        data = bytearray(good)
        for _ in range(seed.randrange(1, 4)):
            data[seed.randrange(len(data))] = seed.randrange(256)
        if seed.random() < 0.3:
            del data[seed.randrange(len(data)) :]
        try:
            reader.read(data, ())
        except ProtocolError:
            pass
    assert reader.read(good, ())[0][0] == (1,) * 40


@pytest.mark.parametrize("code", [2, 4, 5, 6, 7])
def test_extensions_in_extensions_do_not_overflow_the_stack(code):
    data = packed([0])
    for _ in range(3000):
        data = packed([ext(code, data)])
    with pytest.raises(ProtocolError, match="deeper than 16 levels"):
        Reader(Limits(), (Point, Line)).read(data, ())


def test_kinds_within_kinds_have_an_end_on_both_sides():
    def nested(depth):
        value: Any = 1
        for _ in range(depth):
            value = Line(value)
        return value

    assert through(nested(17), (Point, Line))[0] == nested(17)
    writer = Writer((Point, Line))
    with pytest.raises(ValueError, match="nested deeper than 16 levels"):
        writer.write(nested(18), [])
    assert writer.write(nested(17), [])


def test_lists_in_lists_are_no_deeper_on_the_wire():
    value: Any = [[]] * 40
    for level in range(60):
        value = [value] * 2 if level % 20 == 0 else [value]
    rows = [value] * 40
    assert through(rows)[0] == frozen(rows)
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    assert through([deep] * 40)[0] == frozen([deep] * 40)


def test_rows_and_what_is_repeated_take_few_bytes():
    apart: list[Any] = []
    write = Writer().write
    assert len(write([(b"u" * 16, n) for n in range(1000)], apart)) < 4100
    assert len(write([()] * 1000, apart)) < 20
    assert len(write([None] * 1000, apart)) < 20
    assert len(write([b"x" * 100] * 1000, apart)) < 120
    big = b"x" * OUT_OF_BAND
    found, apart = through([big] * 50)
    assert len(apart) == 1
    assert frozen(found) == (big,) * 50


def test_lengths_that_are_not_true_make_no_room():
    # each level says that it has a million items; room for all of them would be 8 GB
    data = b"\xdd\x00\x0f\xff\xff" * 1000 + b"\x01" * (1 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            Reader(Limits()).read(data, ())
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


def test_nothing_is_unpickled(monkeypatch):
    import pickle

    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("a pickle was opened",)

    data = pickle.dumps(Bomb())
    found, _ = through([data, Payload([data]), {"a": data}, Payload([b"", data * 1000])])
    assert found[0] == data
