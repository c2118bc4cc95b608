"""Which worker gets which task."""

from __future__ import annotations

import pytest

from taskloom.core.messages import WISH, Announce, Copy, Fetched, Missing, Run, Status, TakeBack
from taskloom.core.scheduler.placing import HORIZON, MOST
from taskloom.core.scheduler.state import Holes

from .play import Play, only, runs


def many(count):
    return [()] * count


def slow(play, worker, counter, seconds):
    """A task that teaches the scheduler how long those of its function take."""
    return play.report(worker, counter, seconds=seconds)


def taught(seconds, *workers, size=10):
    """A cluster that knows how long tasks take, and how large their values are; nothing is left of how it learned it."""
    play = Play(*workers)
    play.submit((), wanted=b"\1")
    play.report(play.place(0), 0, seconds=seconds, size=size)
    play.release(0)
    return play


# --- how much


def test_a_worker_gets_20_ms_of_work():
    play = taught(0.001, "a")
    assert len(runs(play.submit(*many(100), wanted=b"\1" * 100))[play.workers[0]]) == 20


def test_two_for_each_thread_however_long_they_take():
    play = taught(10.0, ("a", 3))
    assert len(runs(play.submit(*many(100), wanted=b"\1" * 100))[play.workers[0]]) == 6


def test_and_so_many_however_short():
    play = taught(1e-9, "a")
    assert len(runs(play.submit(*many(5000), wanted=b"\1" * 5000))[play.workers[0]]) == MOST


def test_it_is_filled_again_when_a_quarter_is_free():
    play = taught(0.001, "a")
    (a,) = play.workers
    play.submit(*many(100), wanted=b"\1" * 100)
    assert runs(play.report(a, *range(1, 5), seconds=0.001)) == {}  # 16 ms are left
    said = play.report(a, 5, 6, seconds=0.001)
    assert len(runs(said)[a]) == 6


def test_the_order_is_the_clients_and_priorities_go_before_it():
    play = taught(10.0, "a")
    (a,) = play.workers
    assert runs(play.submit(*many(4), wanted=b"\1" * 4)) == {a: [1, 2]}
    assert runs(play.submit(*many(2), wanted=b"\1" * 2, priority=1)) == {}
    assert runs(play.submit(*many(2), wanted=b"\1" * 2, priority=-1)) == {}
    order = []
    for counter in (1, 2):
        order += runs(play.report(a, counter, seconds=10.0)).get(a, [])
    while len(order) < 6:
        order += runs(play.report(a, order[len(order) - 2], seconds=10.0)).get(a, [])
    assert order == [5, 6, 3, 4, 7, 8]


def test_work_is_shared():
    play = taught(0.001, *[f"w{n}" for n in range(4)])
    said = runs(play.submit(*many(40), wanted=b"\1" * 40))
    assert {worker: len(counters) for worker, counters in said.items()} == dict.fromkeys(play.workers, 10)


def test_the_last_ones_too():
    play = taught(0.001, "a", "b")
    said = runs(play.submit(*many(8), wanted=b"\1" * 8))
    assert sorted(map(len, said.values())) == [4, 4]


# --- where


def spread_out(size_a, size_b):
    """One value on each of two workers; the task is made of both."""
    play = Play("a", "b")
    a, b = play.workers
    play.submit((), wanted=b"\1", workers=("a",))
    play.submit((), wanted=b"\1", workers=("b",))
    play.report(a, 0, size=size_a)
    play.report(b, 1, size=size_b)
    return play, a, b


@pytest.mark.parametrize(("size_a", "size_b", "where"), [(10**6, 10, 0), (10, 10**6, 1)])
def test_a_task_goes_where_most_of_its_inputs_are(size_a, size_b, where):
    play, a, b = spread_out(size_a, size_b)
    said = play.submit((0, 1))
    target = (a, b)[where]
    ((number, run),) = only(said, Run)
    assert number == target
    assert run.sources == {play.tid(1 - where): (b, a)[where]}


def test_a_copy_counts_as_well():
    play, a, b = spread_out(10, 10**6)
    play.submit((0,), workers=("b",))
    play.report(b, 2)  # b has both by now
    ((number, run),) = only(play.submit((0, 1)), Run)
    assert (number, run.sources) == (b, {})
    assert a


def test_small_data_moves_to_who_has_nothing_to_do():
    play = taught(1.0, "a", "b")
    a, b = play.workers
    play.submit((), wanted=b"\1", workers=("a",))
    play.report(a, 1, seconds=1.0, size=10)
    play.submit(*many(4), wanted=b"\1" * 4, workers=("a",))
    assert runs(play.submit((1,))) == {b: [6]}


def test_large_data_does_not():
    play = taught(0.030, "a", "b")
    a, b = play.workers
    play.submit((), wanted=b"\1", workers=("a",))
    play.report(a, 1, seconds=0.030, size=10**9)  # two seconds to move
    play.submit(*many(2), wanted=b"\1" * 2, workers=("a",))
    assert runs(play.submit((1,))) == {}
    assert play.place(4) == a
    assert b


def test_a_chain_stays_where_it_began():
    play = Play("a", "b")
    said = runs(play.submit((), (0,), (1,), (2,)))
    assert list(said.values()) == [[0, 1, 2, 3]]


def test_restrictions_and_what_nobody_may_run():
    play = Play("a", "b")
    a, b = play.workers
    assert runs(play.submit((), workers=("b",))) == {b: [0]}
    assert runs(play.submit((), workers=("c",))) == {}
    assert list(play.scheduler.placing.stuck) == [play.slot(1)]
    c = play.came("c")
    assert runs(play.hear()) == {c: [1]}
    assert a


def test_a_restricted_task_goes_to_the_one_with_the_least():
    play = taught(1.0, "a", "b", "c")
    a, b, _ = play.workers
    play.submit(*many(2), wanted=b"\1" * 2, workers=("a",))
    assert runs(play.submit((), workers=("a", "b"))) == {b: [3]}
    assert a


def test_resources_are_taken_and_given_back():
    play = Play("a", ("b", 4, 0, {"GPU": 2.0}))
    _, b = play.workers
    assert runs(play.submit(*many(4), wanted=b"\1" * 4, resources=(("GPU", 1.0),))) == {b: [0, 1]}
    assert play.scheduler.workers[b].free == {"GPU": 0.0}
    assert runs(play.report(b, 0)) == {b: [2]}
    assert runs(play.release(1)) == {b: [3]}
    play.release(3)
    assert play.scheduler.workers[b].free == {"GPU": 1.0}
    assert runs(play.submit((), resources=(("GPU", 3.0),))) == {}
    play.report(b, 2)
    assert list(play.scheduler.placing.stuck) == [play.slot(4)]


# --- taking back, stealing


def test_who_has_nothing_takes_half_of_what_others_have_not_begun():
    play = taught(0.004, "a")
    (a,) = play.workers
    play.submit(*many(9), wanted=b"\1" * 9)
    first = [n for n in range(1, 10) if play.state(n) == "sent"]
    assert first == [1, 2, 3, 4]
    b = play.came("b")
    assert runs(play.hear()) == {b: [5, 6, 7, 8]}  # what was sent to nobody yet
    for n in (5, 6, 7):
        play.report(b, n, seconds=0.004)
    play.report(b, 8, seconds=0.004)
    assert play.place(9) == b
    said = play.report(b, 9, seconds=0.004)
    assert said[:1] == [(a, TakeBack([play.tid(3), play.tid(4)], [2, 2]))]
    assert runs(play.gave_back(a, 3, 4)) == {b: [3, 4]}


def test_what_is_stolen_goes_to_the_thief_though_its_inputs_are_elsewhere():
    """Else it goes back to where they are, and is stolen again, at the speed of the network."""
    play = taught(0.004, "a")
    (a,) = play.workers
    play.submit((), wanted=b"\1")
    play.report(a, 1, seconds=0.004)
    play.submit(*[(1,)] * 4, wanted=b"\1" * 4)
    b = play.came("b")
    ((_, take_back),) = only(play.hear(), TakeBack)
    stolen = [n for n in range(2, 6) if play.tid(n) in take_back.tids]
    assert stolen == [4, 5]
    said = play.gave_back(a, *stolen)
    assert runs(said) == {b: stolen}


def test_what_waits_for_a_resource_is_stolen_by_who_has_it():
    play = Play(("a", 1, 0, {"GPU": 1.0}))
    (a,) = play.workers
    play.submit(*many(3), wanted=b"\1" * 3, resources=(("GPU", 1.0),))
    assert play.states(0, 1, 2) == ["sent", "ready", "ready"]
    b = play.came("b", resources={"GPU": 1.0})
    assert runs(play.hear()) == {b: [1]}
    assert a


def test_nobody_is_asked_twice():
    play = Play("a", "b")
    play.submit((), (), wanted=b"\1\1", workers=("a",))
    play.submit((0, 1), workers=("b",))
    a, b = play.workers
    said = play.left(a)
    assert [list(message.tids) for _, message in only(said, TakeBack)] == [[play.tid(2)]]
    assert play.from_worker(b, Missing([play.tid(0)], a)) == []


def test_what_takes_much_longer_than_was_thought_is_given_back_beyond_two_for_each_thread():
    play = taught(0.001, "a", "b")
    a, b = play.workers
    play.submit(*many(100), wanted=b"\1" * 100)
    mine = [n for n in range(1, 101) if play.place(n) == a]
    others = [n for n in range(1, 101) if play.place(n) == b]
    assert len(mine) == 20
    ((number, take_back),) = only(play.report(a, mine[0], seconds=1.0), TakeBack)
    assert number == a
    assert list(take_back.tids) == [play.tid(n) for n in mine[3:]]
    assert play.scheduler.workers[a].load == pytest.approx(19 * 0.25, rel=0.01)
    assert runs(play.gave_back(a, *mine[3:])) == {}  # a has enough, and so has b
    assert runs(play.report(b, *others, seconds=0.001))[b][0] == mine[3]  # before what was never sent


def test_what_takes_a_little_longer_or_little_is_not():
    play = taught(0.001, "a")
    (a,) = play.workers
    play.submit(*many(40), wanted=b"\1" * 40)
    assert only(play.report(a, 1, seconds=0.019), TakeBack) == []
    play = taught(0.010, "a")
    play.submit(*many(40), wanted=b"\1" * 40)
    assert only(play.report(play.workers[0], 1, seconds=0.039), TakeBack) == []


def test_a_worker_with_a_thread_that_rests_takes_from_others():
    play = taught(1.0, ("a", 2))
    (a,) = play.workers
    play.submit(*many(5), wanted=b"\1" * 5)
    b = play.came("b", 2)
    assert runs(play.hear()) == {b: [5]}
    c = play.came("c", 2)
    play.submit((), wanted=b"\1", workers=("c",))
    assert runs(play.gave_back(a, 4)) == {b: [4]}
    assert play.scheduler.workers[c].taking == set()
    assert len(play.scheduler.workers[c].sent) == 1


def test_who_said_that_it_had_begun_is_not_asked_again():
    play = taught(1.0, "a")
    (a,) = play.workers
    play.submit(*many(2), wanted=b"\1" * 2)
    play.came("b")
    assert len(only(play.hear(), TakeBack)) == 1
    assert [list(message.tids) for _, message in play.kept(a, 2)] == [[play.tid(1)]]  # then it is this one that waits
    assert play.kept(a, 1) == []
    assert play.hear() == []


# --- pause


def test_a_worker_that_is_paused_gets_nothing_while_others_do_not_rest():
    play = Play("a", "b")
    a, b = play.workers
    play.from_worker(a, Status(True, []))
    assert set(runs(play.submit(*many(10), wanted=b"\1" * 10))) == {b}


def test_what_waits_for_it_goes_to_others():
    play = taught(1.0, "a", "b")
    a, b = play.workers
    play.submit((), wanted=b"\1", workers=("a",))
    play.report(a, 1, seconds=1.0, size=10**10)
    play.submit(*[(1,)] * 4, wanted=b"\1" * 4)
    assert [play.place(n) for n in range(2, 6)] == [a, a, a, a]
    said = runs(play.from_worker(a, Status(True, [])))
    assert said == {b: [4, 5]}


def test_where_all_are_paused_each_gets_one_at_a_time():
    play = Play(("a", 4), ("b", 4))
    a, b = play.workers
    play.hear(("worker", a, Status(True, [])), ("worker", b, Status(True, [])))
    assert runs(play.submit(*many(5), wanted=b"\1" * 5)) == {a: [0], b: [1]}
    assert runs(play.report(a, 0)) == {a: [2]}


def test_what_is_bound_to_a_worker_that_is_paused_runs_there_one_at_a_time():
    play = Play(("a", 4), "b")
    a, _ = play.workers
    play.from_worker(a, Status(True, []))
    assert runs(play.submit(*many(3), wanted=b"\1" * 3, workers=("a",))) == {a: [0]}
    assert runs(play.report(a, 0)) == {a: [1]}
    assert runs(play.from_worker(a, Status(False, []))) == {a: [2]}


def test_bound_to_several_it_prefers_who_is_not_paused():
    play = Play("a", "b")
    a, b = play.workers
    play.from_worker(a, Status(True, []))
    assert runs(play.submit(*many(2), wanted=b"\1" * 2, workers=("a", "b"))) == {b: [0, 1]}


# --- who cannot reach whom


def bound_apart():
    """A task that only b may run, of a value on a that b cannot reach."""
    play = Play("a", "b")
    a, b = play.workers
    play.submit((), wanted=b"\1", workers=("a",))
    play.report(a, 0, size=7)
    play.submit((0,), workers=("b",))
    tid = play.tid(1)
    said = play.from_worker(b, Missing([play.tid(0)], a))
    assert said == [(b, TakeBack([tid], [play.scheduler.tasks.grant[play.slot(1)]]))]
    assert play.gave_back(b, 1) == []
    return play, a, b


def test_a_task_that_may_run_where_its_inputs_are_goes_there():
    play = taught(0.004, "a", "b")
    a, b = play.workers
    play.submit((), wanted=b"\1", workers=("a",))
    play.report(a, 1, seconds=0.004)
    play.scheduler.placing.lost_each_other(b, a)
    said = runs(play.submit(*[(1,)] * 8, wanted=b"\1" * 8))
    assert set(said) == {a}
    assert {play.place(n) for n in range(2, 10)} == {a}


def test_else_it_waits_and_is_tried_again_less_and_less_often():
    play, a, b = bound_apart()
    assert play.scheduler.deadline() == pytest.approx(0.1)
    waited = []
    for _ in range(9):
        before, play.now = play.now, play.scheduler.deadline()
        waited.append(round(play.now - before, 6))
        assert runs(play.hear()) == {b: [1]}
        play.from_worker(b, Missing([play.tid(0)], a))
        play.gave_back(b, 1)
    assert waited == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


def test_a_third_worker_passes_the_value_on():
    play = Play("a", "b", "c")
    a, b, c = play.workers
    play.submit((), wanted=b"\1", workers=("a",))
    play.report(a, 0, size=7)
    play.submit((0,), workers=("b",))
    play.from_worker(b, Missing([play.tid(0)], a))
    ((number, copy),) = only(play.gave_back(b, 1), Copy)
    tid = play.tid(0)
    assert (number, copy.sources) == (c, {tid: a})
    ((number, run),) = only(play.from_worker(c, Fetched([tid], [copy.orders[tid]])), Run)
    assert (number, run.sources) == (b, {tid: c})


def test_it_is_forgotten_with_the_worker():
    play, a, b = bound_apart()
    again = play.came("a", before=a)
    assert play.scheduler.placing.apart == {}
    assert runs(play.from_worker(again, Announce([], []))) == {again: [0], b: [1]}


def test_a_wish_released_leaves_nothing_parked():
    play, _, _ = bound_apart()
    assert list(play.scheduler.placing.parked) == [play.slot(1)]
    play.release(1, 0)
    assert play.scheduler.placing.parked == {}
    assert play.scheduler.tasks.live == 0


# --- slots


def test_holes_are_joined_and_cut():
    holes = Holes()
    assert holes.take(1) == -1
    assert holes.add(10, 5) == (10, 5)
    assert holes.add(20, 5) == (20, 5)
    assert holes.add(15, 5) == (10, 15)
    assert list(holes) == [(10, 15)]
    assert holes.take(4) == 10
    assert holes.take(11) == 14
    assert len(holes) == 0
    assert holes.take(1) == -1


def test_constants_are_what_the_tests_count_with():
    assert (HORIZON, MOST, WISH) == (0.020, 2000, 1)
