"""Tasks that make large values are held back where there is no room for these; played in simulated time, and by hand."""

from __future__ import annotations

import pytest

from taskloom.core.messages import Status
from taskloom.core.scheduler.checks import CheckedScheduler, validate
from taskloom.core.scheduler.placing import LARGE, SHARE
from taskloom.testing.timed import Job, TimedCluster

from .play import Play, runs

MB = 10**6


def producers_first(count, seconds=0.001, then=0.005):
    """Large values, then what each is consumed by, then a sum of these: the worst of orders."""
    jobs = [Job(seconds, 10 * MB, function="make") for _ in range(count)]
    jobs += [Job(then, deps=(k,), function="consume") for k in range(count)]
    return [*jobs, Job(0.001, deps=range(count, 2 * count), function="sum")]


def by_turns(count):
    """Each large value is followed by what it is consumed by, as a client would order them."""
    jobs = []
    for k in range(count):
        jobs += [Job(0.010, 10 * MB, function="make"), Job(0.001, deps=(2 * k,), function="consume")]
    return [*jobs, Job(0.001, deps=range(1, 2 * count, 2), function="sum")]


def played(jobs, limit, workers=2, threads=1, **more):
    cluster = TimedCluster(workers, threads, limit=limit, bandwidth=5e9, scheduler=CheckedScheduler(), **more)
    cluster.submit(jobs)
    time = cluster.run()
    validate(cluster.scheduler)
    placing = cluster.scheduler.placing
    assert not placing.over
    assert cluster.ran == len(jobs)
    return time, max(worker.peak for worker in cluster.workers.values())


@pytest.mark.parametrize("order", [producers_first, by_turns])
def test_a_graph_that_is_much_wider_than_memory_runs_within_it(order):
    jobs = order(1000)
    time, peak = played(jobs, 200 * MB)
    assert peak <= 200 * MB
    assert time <= sum(job.seconds for job in jobs) / 2 / 0.95


@pytest.mark.parametrize("order", [producers_first, by_turns])
def test_nobody_is_held_back_where_no_limit_is_known(order):
    jobs = order(300)
    time, peak = played(jobs, 0)
    assert time <= sum(job.seconds for job in jobs) / 2 / 0.95
    if order is producers_first:
        assert peak > 1000 * MB


def test_with_several_threads_each_at_rest_may_go_on():
    time, peak = played(producers_first(1000), 400 * MB, threads=4)
    assert peak <= 400 * MB
    assert time <= 6.0 / 8 / 0.95


def test_slow_consumers_hold_quick_producers_back():
    _, peak = played(producers_first(200, 0.001, 0.1), 200 * MB)
    assert peak <= 200 * MB


@pytest.mark.parametrize("limit", [1, 5 * MB, 200 * MB])
@pytest.mark.parametrize("threads", [1, 3])
def test_what_needs_more_than_there_is_goes_on(limit, threads):
    """Nothing is freed before all is there."""
    jobs = [*[Job(0.001, 10 * MB) for _ in range(60)], Job(0.1, deps=range(60))]
    _, peak = played(jobs, limit, threads=threads)
    assert peak >= 600 * MB


@pytest.mark.parametrize("limit", [1, 20 * MB, 100 * MB])
def test_a_tree_of_large_values_goes_on(limit):
    jobs = []

    def make(count):
        if count == 1:
            jobs.append(Job(0.002, 10 * MB, function="make"))
        else:
            parts = [make(count // 4) for _ in range(4)]
            jobs.append(Job(0.004, 10 * MB, tuple(parts), "reduce"))
        return len(jobs) - 1

    make(64)
    played(jobs, limit, threads=2)


def test_values_that_the_client_keeps_hold_nobody_up_for_long():
    """They are not freed by waiting: each thread goes on, only not far ahead."""
    jobs = [Job(0.010, 10 * MB) for _ in range(400)]
    time, peak = played(jobs, 200 * MB, threads=2)
    assert peak > 1000 * MB
    assert time <= 4.0 / 4 / 0.95 + 0.05


def test_a_death_and_a_new_worker_in_the_midst():
    jobs = producers_first(200)
    cluster = TimedCluster(3, 1, limit=200 * MB, scheduler=CheckedScheduler())
    cluster.submit(jobs)
    cluster.run(0.1)
    cluster.kill(next(iter(cluster.workers.values())))
    cluster.came("late", limit=200 * MB)
    cluster.run(0.2)
    cluster.retire(next(iter(cluster.workers.values())))
    cluster.run()
    validate(cluster.scheduler)
    assert max(worker.peak for worker in cluster.workers.values()) <= 200 * MB


# --- by hand


def full(*workers, size=30 * MB, **more):
    """Workers with 100 MB each; the first one holds a value that leaves room for less than another one like it."""
    play = Play(*[(worker, 1, 100 * MB) for worker in workers])
    play.submit((), wanted=b"\1", functions=[1], **more)
    play.report(play.workers[0], 0, size=size)
    return play


def test_constants_are_what_the_tests_count_with():
    assert (SHARE, LARGE) == (0.5, 65536)


def test_it_is_held_back_and_small_ones_pass():
    play = full("a")
    (a,) = play.workers
    assert runs(play.submit((), (), (), (), wanted=b"\1" * 4, functions=[1, 1, 2, 2])) == {a: [3, 4]}
    assert play.states(1, 2) == ["ready", "ready"]
    play.report(a, 3)
    # a thread at rest: nothing but to go on makes room
    assert runs(play.report(a, 4)) == {a: [1]}
    assert play.scheduler.placing.over == {play.slot(1): None}


def test_it_goes_when_there_is_room():
    play = full("a")
    (a,) = play.workers
    play.submit((), (), wanted=b"\1\1", functions=[2, 1])
    assert play.states(1, 2) == ["sent", "ready"]
    assert runs(play.release(0)) == {a: [2]}
    assert play.scheduler.placing.over == {}


def test_it_goes_to_who_has_room():
    play = full("a")
    a, b = play.workers[0], play.came("b", 1, 100 * MB)
    play.submit((), (), wanted=b"\1\1", functions=[2, 1])
    assert play.place(2) == b
    assert play.scheduler.workers[a].heavy == []


def test_what_frees_as_much_as_it_makes_passes():
    play = full("a")
    (a,) = play.workers
    play.submit((0,), functions=[1])
    assert play.state(1) == "sent"
    play.release(0)
    play.report(a, 1, size=30 * MB)
    play.submit((), wanted=b"\1", functions=[2])
    assert runs(play.submit((1,), functions=[1])) == {}  # 1 is wanted too: it stays
    assert play.state(3) == "ready"
    assert runs(play.release(1)) == {}
    play.submit((3,), functions=[2])
    assert runs(play.report(a, 2)) == {a: [3, 4]}


def test_one_goes_over_at_a_time_while_another_worker_is_about_to_make_room():
    play = Play(("a", 1, 100 * MB), ("b", 1, 100 * MB), ("c", 1, 100 * MB))
    a, b, _ = play.workers
    for name in ("a", "b"):
        play.submit((), wanted=b"\1", functions=[1], workers=(name,))
    play.report(a, 0, size=60 * MB)
    play.report(b, 1, size=60 * MB)
    play.submit((0, 1), functions=[2], workers=("c",))  # frees both
    play.release(0, 1)
    assert play.state(2) == "sent"
    said = runs(play.submit((), wanted=b"\1", functions=[1], workers=("a",)))
    assert said == {a: [3]}  # one does in any case
    assert runs(play.submit((), wanted=b"\1", functions=[1], workers=("b",))) == {}
    assert runs(play.report(a, 3, size=60 * MB)) == {b: [4]}


def test_a_worker_that_is_paused_goes_on_with_what_is_bound_to_it():
    play = full("a", "b", workers=("a",))
    a, _ = play.workers
    play.from_worker(a, Status(True, []))
    assert runs(play.submit((), (), wanted=b"\1\1", functions=[1, 1], workers=("a",))) == {a: [1]}
    assert runs(play.report(a, 1, size=30 * MB)) == {a: [2]}


def test_what_is_held_back_is_given_to_others_when_its_worker_goes():
    play = full("a")
    (a,) = play.workers
    play.submit((), (), wanted=b"\1\1", functions=[2, 1])
    assert play.state(2) == "ready"
    play.left(a)
    b = play.came("b", 1, 100 * MB)
    assert set(runs(play.hear())[b]) >= {1}
    play.release(0, 1, 2)
    assert play.scheduler.tasks.live == 0
