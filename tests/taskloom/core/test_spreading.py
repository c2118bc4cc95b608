"""Values that are to be on all workers that may have them."""

from __future__ import annotations

import pytest

from taskloom.core.messages import Announce, Copy, Drop, Fetched, Missing, Pending, Run, TakeBack
from taskloom.core.scheduler.spreading import AT_ONCE

from .play import UUID, Play, only, runs


class Broadcast(Play):
    """Workers that have said what they have, and one value that the first one makes."""

    def __init__(self, count, **options):
        super().__init__(*[f"w{n}" for n in range(count)])
        for number in self.workers:
            self.from_worker(number, Announce([], []))
        self.submit((), everywhere=True, **options)
        self.orders = {}
        self.maker = self.place(0)
        self.copied = self.note(self.report(self.maker, 0, size=100))

    def note(self, said):
        """Who is told to fetch it: worker -> from whom."""
        found = {}
        for number, copy in only(said, Copy):
            for tid, source in copy.sources.items():
                assert tid == self.tid(0)
                self.orders[number] = copy.orders[tid]
                found[number] = source
        return found

    def fetched(self, number):
        return self.note(self.from_worker(number, Fetched([self.tid(0)], [self.orders.pop(number)])))

    @property
    def holders(self):
        return set(self.scheduler.tasks.holders(self.slot(0)))


def test_all_get_it_in_a_tree():
    play = Broadcast(20)
    assert set(play.copied.values()) == {play.maker}
    rounds, served = 1, {play.maker: AT_ONCE}
    while play.orders:
        rounds += 1
        for number in list(play.orders):
            for source in play.fetched(number).values():
                served[source] = served.get(source, 0) + 1
    assert play.holders == set(play.workers)
    assert rounds <= 5  # 1, 3, 9, 20
    assert max(served.values()) <= 2 * AT_ONCE + 2  # nobody gave it to nearly all
    assert play.hear() == []


def test_nobody_gives_it_to_more_than_a_few_at_a_time():
    play = Broadcast(30)
    while play.orders:
        for spread in play.scheduler.spreading.values.values():
            assert max(list(spread.asked.values()).count(giver) for giver in spread.givers) <= AT_ONCE
        play.fetched(next(iter(play.orders)))
    assert play.holders == set(play.workers)


def test_only_those_who_may_have_it():
    play = Broadcast(4, workers=("w1", "w3"))
    _, b, _, d = play.workers
    assert {play.maker} | set(play.copied) == {b, d}
    play.fetched(next(iter(play.copied)))
    assert play.holders == {b, d}
    assert not play.orders


def test_who_comes_later_gets_it_too():
    play = Broadcast(1)
    assert play.copied == {}
    b = play.came("b")
    assert play.hear() == []  # it may have it
    assert play.note(play.from_worker(b, Announce([], []))) == {b: play.maker}


def test_who_comes_back_with_it_gets_it_from_nobody():
    play = Broadcast(1)
    b = play.came("b")
    assert play.note(play.from_worker(b, Announce([(UUID, 0, 100, -1)], []))) == {}
    assert play.holders == {play.maker, b}


def test_it_is_kept_everywhere_while_it_is_needed_and_then_nowhere():
    play = Broadcast(2)
    (other,) = play.copied
    play.submit((0,), workers=("w0",))
    play.submit((0,), workers=("w1",))
    play.fetched(other)
    play.report(play.place(1), 1)
    assert play.holders == set(play.workers)
    tid = play.tid(0)
    assert only(play.release(0), Drop) == []
    assert sorted(only(play.report(play.place(2), 2), Drop)) == [(number, Drop([tid])) for number in play.workers]
    assert play.scheduler.spreading.values == {}


def test_what_is_let_go_of_under_way_is_forgotten_by_those_who_fetch_it():
    play = Broadcast(3)
    tid = play.tid(0)
    assert {number for number, _ in only(play.release(0), Drop)} == set(play.workers)
    for number, order in play.orders.items():
        assert play.from_worker(number, Fetched([tid], [order])) == []
    assert play.scheduler.tasks.live == 0


def test_who_could_not_get_it_gets_it_elsewhere_or_later():
    play = Broadcast(2)
    (other,) = play.copied
    assert play.note(play.from_worker(other, Missing([play.tid(0)], play.maker))) == {}
    play.now = play.scheduler.deadline()
    assert play.now > 0
    assert play.note(play.hear()) == {other: play.maker}
    third = play.came("third")
    assert play.note(play.from_worker(third, Announce([], []))) == {third: play.maker}
    play.fetched(third)
    assert play.note(play.from_worker(other, Missing([play.tid(0)], play.maker))) == {other: third}


def test_who_fetched_it_from_the_dead_is_told_again():
    play = Broadcast(3)
    one, two = play.copied
    play.fetched(one)
    said = play.left(play.maker)
    assert (two, Drop([play.tid(0)])) in said
    assert play.place(0) == one
    assert play.note(said)[two] == one
    play.fetched(two)
    assert play.holders == {one, two}


def test_who_has_it_from_a_task_by_now_keeps_it():
    """The order to fetch it is still open; a Drop would take what is the only one left."""
    play = Broadcast(2)
    (other,) = play.copied
    tid = play.tid(0)
    play.submit((0,), workers=("w0",) if other == play.workers[0] else ("w1",))
    play.report(other, 1)
    said = play.left(play.maker)
    assert [type(message) for number, message in said if number == other] == [Copy]
    assert only(said, Drop) == []
    assert play.place(0) == other
    assert play.note(said) == {other: other}
    play.fetched(other)
    assert play.tid(0) == tid


def test_where_the_only_one_is_dead_it_is_made_again():
    play = Broadcast(3)
    tid = play.tid(0)
    said = play.left(play.maker)
    assert only(said, Pending) == [(play.client, Pending([0]))]
    assert sorted(number for number, drop in only(said, Drop) if list(drop.tids) == [tid]) == sorted(play.copied)
    maker = play.place(0)
    assert set(play.note(play.report(maker, 0))) == set(play.copied) - {maker}


def test_whoever_dies_is_told_nothing():
    play = Broadcast(6)
    one, two = play.copied
    said = play.note(play.left(one))
    assert one not in said
    assert len(said) == 1  # its place is free for another one
    assert two not in said


def test_a_worker_that_is_to_go_gets_no_copy():
    play = Broadcast(1)
    b = play.came("b")
    play.scheduler.retire(b)
    assert play.note(play.from_worker(b, Announce([], []))) == {}


def test_tasks_made_of_it_go_anywhere():
    """Where it was made matters no more than where else it is."""
    play = Broadcast(4)
    for number in list(play.copied):
        play.fetched(number)
    play.fetched(next(iter(play.orders)))
    said = runs(play.submit(*[(0,)] * 8, wanted=b"\1" * 8))
    assert {number: len(counters) for number, counters in said.items()} == dict.fromkeys(play.workers, 2)


def test_who_needs_it_before_he_has_it_asks_those_who_have_it():
    play = Broadcast(8)
    for number in list(play.copied):
        play.fetched(number)
    assert len(play.holders) == 3
    spread = play.scheduler.spreading.values[play.slot(0)]
    asked, holders, tid = dict(spread.asked), play.holders, play.tid(0)
    said = only(play.submit(*[(0,)] * 16, wanted=b"\1" * 16), Run)
    sources = {number: run.sources[tid] for number, run in said if tid in run.sources}
    assert set(sources) == set(play.workers) - holders
    assert all(sources[number] == asked.get(number, source) for number, source in sources.items())
    assert set(sources.values()) <= holders


def test_who_was_to_get_it_from_a_copy_that_is_lost_gives_back():
    play = Broadcast(2)
    (other,) = play.copied
    play.fetched(other)
    c = play.came("c")
    said = play.note(play.from_worker(c, Announce([], [])))
    giver = said[c]
    play.submit((0,), workers=("c",))
    said = play.left(giver)
    assert (c, TakeBack([play.tid(1)], [play.scheduler.tasks.grant[play.slot(1)]])) in said


@pytest.mark.parametrize("count", [1, 2, 7])
def test_after_a_restart_what_is_announced_is_not_copied_again(count):
    play = Play(*[f"w{n}" for n in range(count + 1)], grace=1.0)
    for number in play.workers[:count]:
        play.from_worker(number, Announce([(UUID, 0, 100, -1)], []))
    play.from_worker(play.workers[count], Announce([], []))
    assert only(play.submit((), everywhere=True), Copy) == []
    play.now = 2.0
    assert [number for number, _ in only(play.hear(), Copy)] == [play.workers[count]]
