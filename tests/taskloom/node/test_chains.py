"""Tasks that wait for the values of tasks before them."""

from __future__ import annotations

import random
import threading

from taskloom.node.chains import Chains


class Threads:
    """Tasks that are done when they are submitted: their values are there, and wake others."""

    def __init__(self):
        self.there = set()
        self.began = []
        self.chains = Chains(self.there.__contains__, self.submit)

    def submit(self, items):
        self.began += [item[0] for item in items]

    def make(self, tid):
        self.there.add(tid)
        self.chains.made(tid)


def item(tid, grant=1):
    return (grant, tid), tid, None, None


def test_a_task_begins_when_its_last_input_is_there():
    threads = Threads()
    threads.chains.add(item(3), [1, 2, 1])
    threads.make(2)
    assert threads.began == []
    threads.make(1)
    assert threads.began == [(1, 3)]
    assert threads.chains.withdraw() == []


def test_what_is_there_already_is_not_waited_for():
    threads = Threads()
    threads.there.add(1)
    threads.chains.add(item(2), [1])
    assert threads.began == [(1, 2)]


def test_what_waits_for_a_failure_and_what_waits_for_that():
    threads = Threads()
    threads.chains.add(item(2), [1])
    threads.chains.add(item(3), [2, 9])
    threads.chains.add(item(4), [9])
    assert sorted(threads.chains.failed(1)) == [(1, 2), (1, 3)]
    threads.make(9)
    assert threads.began == [(1, 4)]
    assert threads.chains.failed(1) == []


def test_one_that_is_removed_does_not_begin():
    threads = Threads()
    threads.chains.add(item(2), [1])
    threads.chains.add(item(2, grant=2), [1])
    assert threads.chains.remove((1, 2))
    assert not threads.chains.remove((1, 2))
    threads.make(1)
    assert threads.began == [(2, 2)]


def test_withdrawn():
    threads = Threads()
    threads.chains.add(item(2), [1])
    threads.chains.add(item(3), [1])
    assert threads.chains.withdraw() == [(1, 2), (1, 3)]
    threads.make(1)
    assert threads.began == []


def test_each_begins_once_however_threads_meet():
    """One thread makes values while another enters tasks that need them."""
    for seed in range(200):
        draw = random.Random(seed)
        threads = Threads()
        tids = list(range(40))
        needs = {100 + n: draw.sample(tids, draw.randint(1, 4)) for n in range(60)}
        start = threading.Barrier(3)

        def make(part, start=start, threads=threads):
            start.wait()
            for tid in part:
                threads.make(tid)

        makers = [threading.Thread(target=make, args=(tids[n::2],)) for n in range(2)]
        for maker in makers:
            maker.start()
        start.wait()
        for tid, missing in needs.items():
            threads.chains.add(item(tid), missing)
        for maker in makers:
            maker.join()
        assert sorted(key[1] for key in threads.began) == sorted(needs)
        assert threads.chains.withdraw() == []
