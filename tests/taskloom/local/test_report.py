"""What a process of the pool sends along with its report without being asked."""

from __future__ import annotations

import threading

import pytest

from taskloom.local.child import SMALL, dumps_small
from taskloom.serialize.objects import dumps, loads


class Counted:
    pickled = 0

    def __reduce__(self):
        Counted.pickled += 1
        return Counted, ()


def test_a_small_value_goes_as_it_would_alone():
    value = {"a": [1, 2], "b": lambda x: x + 1}
    data, *buffers = dumps_small(value)
    again = loads(data, buffers)
    assert again["a"] == [1, 2]
    assert again["b"](1) == 2
    assert data == dumps(value)[0]


def test_a_large_value_is_not_pickled_to_its_end():
    Counted.pickled = 0
    assert dumps_small([Counted() for _ in range(200_000)]) is None
    assert 0 < Counted.pickled < 50_000


def test_large_buffers_count():
    np = pytest.importorskip("numpy")
    small, large = np.zeros(SMALL // 16), np.zeros(SMALL // 8 + 1)
    data, buffer = dumps_small(small)
    assert (loads(data, [buffer]) == small).all()
    assert dumps_small(large) is None
    assert dumps_small([small, small + 1]) is None  # together they are not small


def test_what_does_not_pickle_stays():
    assert dumps_small(threading.Lock()) is None
