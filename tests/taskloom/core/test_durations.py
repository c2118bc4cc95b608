"""How near the cluster comes to what greedy list scheduling reaches; simulated time, real machines."""

from __future__ import annotations

import random

import pytest

from taskloom.core.scheduler.checks import CheckedScheduler
from taskloom.testing.timed import Job, TimedCluster, list_schedule

SHAPES = [(2, 1), (4, 1), (16, 1), (2, 4), (4, 2), (8, 4)]


def mixed(count, seed, functions=1):
    """Tasks of 1, 10 and 100 ms; of one function, or of one for each."""
    durations = random.Random(seed).choices((0.001, 0.010, 0.100), k=count)
    return [Job(seconds, function=seconds if functions == 3 else 0) for seconds in durations]


def jump(short, long):
    """A function that takes 1 ms, and then 1 s."""
    return [Job(0.001)] * short + [Job(1.0)] * long


def reached(jobs, workers, threads):
    """The share of the time of list scheduling in that of the cluster.

    What a worker's threads have in hand is not given back, so here it is nothing where there are several: of tasks whose
    durations jump, a thread could have two in hand while another one rests.
    """
    cluster = TimedCluster(workers, threads, ahead=0.002)
    cluster.submit(jobs)
    time = cluster.run()
    assert cluster.ran == len(jobs)
    return list_schedule([job.seconds for job in jobs], workers * threads) / time


def test_the_bound_itself():
    assert list_schedule([3, 1, 1, 1], 2) == 3
    assert list_schedule([1, 1, 3], 2) == 4
    assert list_schedule([], 3) == 0


@pytest.mark.parametrize(("workers", "threads"), SHAPES)
@pytest.mark.parametrize("functions", [1, 3])
def test_durations_mixed(workers, threads, functions):
    for seed in range(4):
        assert reached(mixed(40 * workers * threads, seed, functions), workers, threads) >= 0.95


@pytest.mark.parametrize(("workers", "threads"), SHAPES)
def test_durations_that_jump(workers, threads):
    every = workers * threads
    for short, long in (
        (500, every),
        (500, every + 1),
        (100, 3 * every - 1),
        (1347, 5 * every - 2),
        (30 * every, 10 * every),
    ):
        assert reached(jump(short, long), workers, threads) >= 0.95, (short, long)


@pytest.mark.parametrize(("workers", "threads"), SHAPES)
def test_durations_that_jump_back(workers, threads):
    """What they take is not known when the first are sent: one more of them than need be may end last."""
    every = workers * threads
    assert reached([*jump(0, 30 * every), *jump(300 * every, 0)], workers, threads) >= 30.3 / 31.3 - 0.001


def test_a_thread_that_rests_is_enough_to_take_from_others():
    """A worker need not be without any task."""
    cluster = TimedCluster(2, 4)
    cluster.submit([Job(10.0), *[Job(0.001)] * 100, *[Job(1.0)] * 14])
    assert cluster.run() < 10.1


def test_those_who_rest_are_found_among_many_who_do_not():
    """Of a cluster in which all could take more, but only a few have nothing, these are not overlooked."""
    assert reached(jump(1347, 78), 16, 1) > 0.99


def test_a_death_in_the_midst():
    for seed in range(3):
        jobs = mixed(1000, seed)
        cluster = TimedCluster(8, 1, scheduler=CheckedScheduler())
        cluster.submit(jobs)
        cluster.run(2.0)
        dead = list(cluster.workers.values())[seed]
        lost = len(dead.values)
        cluster.kill(dead)
        time = cluster.run()
        assert lost > 0
        seconds = sum(job.seconds for job in jobs)
        again = 2.0 + 0.1  # what it had done, and what it was at
        assert time <= (seconds - 2.0 * 8 + again) / 7 / 0.95 + 2.0 + 0.1


def test_a_retirement_in_the_midst():
    jobs = mixed(1000, 5)
    cluster = TimedCluster(8, 1, scheduler=CheckedScheduler())
    cluster.submit(jobs)
    cluster.run(2.0)
    worker = next(iter(cluster.workers.values()))
    cluster.retire(worker)
    time = cluster.run()
    assert not worker.alive
    assert cluster.ran == len(jobs)  # nothing twice
    assert time <= (sum(job.seconds for job in jobs) - 2.0 * 8) / 7 / 0.95 + 2.0 + 0.1


def test_a_worker_that_comes_in_the_midst_gets_its_share():
    cluster = TimedCluster(1, 1)
    cluster.submit(jump(100, 20))
    cluster.run(5.0)
    cluster.came("late")
    assert cluster.run() <= 5.0 + 16 / 2 + 1.0


def test_a_client_that_waits_for_ever_is_told():
    cluster = TimedCluster(0)
    cluster.submit([Job(1.0)])
    with pytest.raises(RuntimeError, match="the client waits for 1 values"):
        cluster.run()
