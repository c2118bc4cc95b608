"""The memory policy, with plain numbers. The limit is 1000: target 600, spill 700, pause 800 (on again at 750), terminate 950."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskloom.node.memory import MemoryPolicy, Pause, Resume, Spill, Terminate


@pytest.fixture
def policy():
    return MemoryPolicy(1000)


def test_nothing_is_to_be_done_where_there_is_room(policy):
    assert policy.decide(600, 700, [(1, 100)]) == []
    assert policy.decide(600, None, [(1, 100)]) == []


def test_values_go_until_the_target_is_reached(policy):
    assert policy.decide(650, None, [(1, 20), (2, 20), (3, 20), (4, 20)]) == [Spill([1, 2, 3])]


def test_what_is_on_its_way_counts_as_gone(policy):
    assert policy.decide(650, None, [(1, 50)], leaving=50) == []
    assert policy.decide(650, None, [(1, 50)], leaving=40) == [Spill([1])]
    assert policy.decide(100, 790, [(1, 50)], leaving=200) == []


def test_there_may_be_too_little_to_write(policy):
    assert policy.decide(900, None, [(1, 10)]) == [Spill([1])]
    assert policy.decide(900, None, []) == []


def test_only_as_much_is_looked_at_as_is_needed(policy):
    def values():
        yield 1, 50
        yield 2, 50
        raise AssertionError("looked too far")

    assert policy.decide(700, None, values()) == [Spill([1, 2])]


def test_the_process_is_brought_down_to_the_target_once_it_was_above_spill(policy):
    assert policy.decide(300, 700, [(1, 50)]) == []
    assert policy.decide(300, 701, [(1, 50), (2, 60)]) == [Spill([1, 2])]
    assert policy.decide(190, 650, [(3, 50), (4, 50)]) == [Spill([3])]  # below spill, and not down yet
    assert policy.decide(140, 600, [(4, 50)]) == []
    assert policy.decide(140, 650, [(4, 50)]) == []  # and not again before it is above


def test_a_pause_ends_clearly_below_where_it_begins(policy):
    assert policy.decide(0, 800, []) == []
    assert policy.decide(0, 801, []) == [Pause()]
    assert policy.paused
    assert policy.decide(0, 900, []) == []
    assert policy.decide(0, 760, []) == []
    assert policy.decide(0, 750, []) == [Resume()]
    assert not policy.paused
    assert policy.decide(0, 799, []) == []


def test_the_end_is_ordered_once(policy):
    assert policy.decide(0, 951, []) == [Pause(), Terminate()]
    assert policy.decide(0, 990, []) == []
    assert policy.decide(0, 940, []) == []
    assert policy.decide(0, 960, []) == [Terminate()]


def test_all_at_once(policy):
    assert policy.decide(700, 960, [(1, 500)]) == [Spill([1]), Pause(), Terminate()]


def test_shares_can_be_switched_off():
    assert MemoryPolicy(None).decide(10**12, 10**12, [(1, 1)]) == []
    assert MemoryPolicy(None).mark is None
    assert MemoryPolicy(1000, target=None, spill=None, pause=None).decide(990, 990, [(1, 1)]) == [Terminate()]
    only_spill = MemoryPolicy(1000, target=None, pause=None, terminate=None)
    assert only_spill.decide(990, None, [(1, 1)]) == []
    assert only_spill.decide(990, 710, [(1, 30), (2, 30), (3, 30)]) == [Spill([1, 2])]  # down to 650
    assert only_spill.decide(990, 650, [(3, 30)]) == []


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({"target": 0}, "target is a share of the memory limit, above 0 and at most 1, not 0"),
        ({"terminate": 1.5}, "terminate is a share"),
        ({"spill": 0.5}, "spill is at least target, 0.6, not 0.5"),
        ({"pause": None, "terminate": 0.65}, "terminate is at least spill, 0.7, not 0.65"),
    ],
)
def test_shares_that_make_no_sense_are_refused(shares, words):
    with pytest.raises(ValueError, match=words):
        MemoryPolicy(1000, **shares)


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(ValueError, match="limit is a number of bytes above 0, or None, not 0"):
        MemoryPolicy(0)


@given(st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 1200), st.integers(0, 300)), max_size=30))
def test_whatever_comes_orders_alternate_and_do_not_ask_for_more_than_is_needed(steps):
    policy = MemoryPolicy(1000)
    paused = False
    for managed, rss, leaving in steps:
        values = [(tid, 7) for tid in range(managed // 7)]
        for order in policy.decide(managed, rss, values, leaving):
            if order == Pause():
                assert not paused
                assert rss > 800
                paused = True
            elif order == Resume():
                assert paused
                assert rss <= 750
                paused = False
            elif type(order) is Spill:
                need = max(managed - leaving - 600, rss - leaving - 600)
                assert need > 0
                assert (len(order.tids) - 1) * 7 < need
                assert order.tids == list(range(len(order.tids)))
        assert policy.paused == paused


def test_what_is_needed_for_another_reason_counts():
    policy = MemoryPolicy(1000)
    assert policy.decide(500, None, [(1, 80), (2, 80), (3, 80)], needed=100) == [Spill([1, 2])]
    assert policy.decide(700, None, [(1, 80), (2, 80), (3, 80)], needed=10) == [Spill([1, 2])]
    assert policy.marks == (700, 750, 800)
    assert MemoryPolicy(None).marks == (float("inf"),) * 3
    assert MemoryPolicy(1000, pause=None, terminate=None).marks == (700, 750, float("inf"))
    assert MemoryPolicy(1000, spill=None).marks == (float("inf"), float("inf"), 800)
