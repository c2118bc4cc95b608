"""What is run on clusters. It travels by value: the images do not have this module."""

from __future__ import annotations

import sys
import time

import cloudpickle

__all__ = ["eat", "inc", "place", "slow"]

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def inc(x):
    return x + 1


def slow(x):
    time.sleep(0.2)
    return x


def place(_):
    import os

    return os.environ["HOSTNAME"]


def eat(gibibytes):
    time.sleep(0.3)
    return len(bytearray(int(gibibytes * 2**30)).replace(b"\0", b"\1"))
