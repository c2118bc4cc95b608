"""Estimates of sizes: near the truth where it is known, quick whatever comes."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pandas as pd
import pytest

from taskloom.node.sizes import sizeof

MB = 1 << 20


class Plain:
    def __init__(self, *values):
        self.values = list(values)
        self.first = values[0] if values else None


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a):
        self.a = a


class Hostile:
    def __getattribute__(self, name):
        raise RuntimeError(name)

    def __sizeof__(self):
        raise RuntimeError


class Liar:
    nbytes = -5


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        (b"x" * MB, MB, MB + 100),
        (bytearray(MB), MB, MB + 100),
        (memoryview(bytearray(MB)), MB, MB + 300),
        ("é" * MB, MB, MB + 100),
        (np.zeros(MB), 8 * MB, 8 * MB + 300),
        (np.zeros(MB)[::2], 4 * MB, 4 * MB + 300),
        (np.broadcast_to(np.zeros(10), (MB, 10)), 80, 1000),
        (np.array([b"x" * 1000 + b"%d" % i for i in range(1000)], dtype=object), 900_000, 1_200_000),
        (np.float64(1), 20, 150),
        ([b"x" * 1000 + b"%d" % i for i in range(1000)], 900_000, 1_200_000),
        ({i: b"x" * 1000 + b"%d" % i for i in range(1000)}, 900_000, 1_300_000),
        ([b"x" * MB] * 1000, MB, MB + 20_000),
        ({"a": [np.zeros(MB), (np.zeros(MB),)]}, 16 * MB, 16 * MB + 2000),
        (Plain(np.zeros(MB), "x"), 8 * MB, 8 * MB + 2000),
        (Slotted(np.zeros(MB)), 8 * MB, 8 * MB + 2000),
        (pd.DataFrame({"a": np.zeros(MB), "b": np.zeros(MB, dtype="int8")}), 9 * MB, 9 * MB + 5000),
        (pd.Series(np.zeros(MB)), 8 * MB, 8 * MB + 5000),
        (pd.Index(np.arange(MB)), 8 * MB, 8 * MB + 5000),
        (pd.Series([f"{i:0500}" for i in range(2000)], dtype=object), 900_000, 1_300_000),
        (pd.Series([f"{i:0500}" for i in range(2000)]), 900_000, 1_300_000),
        (Hostile(), 1, 200),
        (Liar(), 1, 500),
        (len, 1, 200),
        (Plain, 1, 200),
        (sys, 1, 200),
        (None, 1, 100),
    ],
    ids=lambda value: type(value).__name__,
)
def test_sizes(value, least, most):
    size = sizeof(value)
    assert type(size) is int
    assert least <= size <= most


def test_a_value_that_holds_itself():
    value = []
    value.append(value)
    value.append(b"x" * 1000)
    assert 1000 < sizeof(value) < 2000


def test_few_objects_are_looked_at_however_many_there_are():
    looked = []

    class Counted:
        def __sizeof__(self):
            looked.append(1)
            return 50

    sizeof([[[Counted() for _ in range(40)] for _ in range(40)] for _ in range(40)])
    assert 10 < len(looked) <= 400


def test_the_size_of_usual_data_is_near_that_of_its_pickle():
    value = [{"name": f"person {i}", "weights": [i * 0.5, i * 0.7], "tags": ("a", "b")} for i in range(5000)]
    pickled = len(pickle.dumps(value, protocol=5))
    assert pickled < sizeof(value) < 20 * pickled
