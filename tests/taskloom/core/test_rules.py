"""Rules of placement where several come together: clients, priorities, resources, workers, retries, cancels."""

from __future__ import annotations

import random

import pytest

from taskloom.core.messages import (
    WISH,
    Cancel,
    CancelTasks,
    Done,
    Erred,
    Functions,
    Lost,
    Options,
    Release,
    Submit,
    TakeBack,
)
from taskloom.core.scheduler.checks import CheckedScheduler, validate
from taskloom.core.scheduler.machine import CLIENT
from taskloom.testing.timed import Job, TimedCluster

from .play import FUNCTION, Play, only, runs
from .test_placing import many, taught


class Other:
    """A second client beside that of a Play."""

    def __init__(self, play):
        self.play = play
        self.number = play.scheduler.client_came(b"o" * 16)
        self.next = 0
        self.say(Functions([0], [FUNCTION]))

    def say(self, *messages):
        return self.play.hear(*[(CLIENT, self.number, message) for message in messages])

    def submit(self, *deps, **options):
        first, count = self.next, len(deps)
        self.next += count
        args, wanted = [f"other {first + k}" for k in range(count)], bytes([WISH]) * count
        return self.say(Submit(first, [0] * count, args, deps, wanted, Options(**options)))


def order_of(play, worker, said, seconds=10.0):
    """The arguments of all that a worker runs, one after the other, until there is nothing more."""
    tasks, order = play.scheduler.tasks, []
    while play.scheduler.workers[worker].sent:
        slot = next(iter(play.scheduler.workers[worker].sent))
        order.append(tasks.args[slot])
        client, counter = tasks.owner[slot].client, tasks.counter(slot)
        mine, play.client = play.client, client.number
        play.report(worker, counter, seconds=seconds)
        play.client = mine
    return order


def test_two_clients_take_turns_by_when_they_came():
    play = taught(10.0, "a")
    (a,) = play.workers
    other = Other(play)
    play.submit(*many(3), wanted=b"\1" * 3)
    other.submit(*many(2))
    play.submit(*many(1))
    assert order_of(play, a, []) == ["args 1", "args 2", "args 3", "other 0", "other 1", "args 4"]


def test_a_priority_counts_among_clients_too():
    play = taught(10.0, "a")
    (a,) = play.workers
    other = Other(play)
    play.submit(*many(4), wanted=b"\1" * 4)
    other.submit(*many(2), priority=1)
    play.submit(*many(1), priority=2)
    play.submit(*many(1), priority=-1)
    # two were sent before the others came
    assert order_of(play, a, []) == ["args 1", "args 2", "args 5", "other 0", "other 1", "args 3", "args 4", "args 6"]


def test_a_client_touches_only_its_own():
    play = Play("a")
    play.submit(())
    other = Other(play)
    assert other.say(Cancel([0]), Release([0])) == []
    assert play.state(0) == "sent"
    other.submit(())
    play.cancel(0)
    assert play.states(0) == ["erred"]
    tasks = play.scheduler.tasks
    assert [tasks.owner[slot].client.number for slot in play.scheduler.workers[play.workers[0]].sent] == [other.number]


def test_an_error_of_one_client_is_told_to_that_one():
    play = Play("a")
    other = Other(play)
    play.submit(())
    other.submit(())
    said = play.raised(play.workers[0], 0, "mine")
    assert said == [(play.client, Erred([0], [0], ["mine"]))]


def test_a_client_that_goes_takes_its_work_with_it_and_no_other():
    play = taught(10.0, "a")
    (a,) = play.workers
    other = Other(play)
    other.submit(*many(5))
    play.submit(*many(1))
    play.scheduler.client_left(other.number)
    said = play.hear()
    assert [number for number, _ in only(said, CancelTasks)] == [a]
    assert runs(said) == {a: [1]}


def test_priorities_hold_among_what_became_ready_late():
    play = taught(10.0, "a")
    (a,) = play.workers
    play.submit((), (1,), wanted=b"\1\1")
    assert play.states(1, 2) == ["sent", "sent"]
    play.submit((2,), (2,), wanted=b"\1\1")
    play.submit((2,), priority=5)
    assert play.states(3, 4, 5) == ["ready", "ready", "ready"]
    assert order_of(play, a, []) == ["args 1", "args 2", "args 5", "args 3", "args 4"]


def test_a_resource_holds_back_only_those_that_take_it():
    play = Play(("a", 4, 0, {"GPU": 1.0}))
    (a,) = play.workers
    assert runs(play.submit(*many(3), wanted=b"\1" * 3, resources=(("GPU", 1.0),))) == {a: [0]}
    assert runs(play.submit(*many(2), wanted=b"\1" * 2, priority=-5)) == {a: [3, 4]}
    assert runs(play.report(a, 0)) == {a: [1]}


def test_of_two_resources_both_have_to_be_free():
    play = Play(("a", 4, 0, {"GPU": 1.0, "disk": 2.0}))
    (a,) = play.workers
    assert runs(play.submit((), resources=(("disk", 2.0),))) == {a: [0]}
    assert runs(play.submit((), resources=(("GPU", 1.0), ("disk", 1.0)))) == {}
    assert runs(play.submit((), resources=(("GPU", 1.0),))) == {a: [2]}
    assert runs(play.report(a, 0)) == {}
    assert runs(play.report(a, 2)) == {a: [1]}


def test_a_resource_and_a_worker_both_count():
    gpu = {"GPU": 1.0}
    play = Play(("a", 1, 0, gpu), ("b", 1, 0, gpu), "c")
    _, b, _ = play.workers
    assert runs(play.submit((), workers=("b", "c"), resources=(("GPU", 1.0),))) == {b: [0]}
    assert runs(play.submit((), workers=("c",), resources=(("GPU", 1.0),))) == {}
    assert list(play.scheduler.placing.stuck) == [play.slot(1)]


@pytest.mark.parametrize("how", ["raised", "cancelled", "left"])
def test_a_resource_is_free_again_however_a_task_ends(how):
    play = Play(("a", 1, 0, {"GPU": 1.0}))
    (a,) = play.workers
    play.submit((), (), wanted=b"\1\1", resources=(("GPU", 1.0),), retries=0)
    if how == "left":
        b = play.came("b", 1, 0, {"GPU": 1.0})
        assert runs(play.left(a)) == {b: [0]}
        return
    said = play.raised(a, 0) if how == "raised" else play.cancel(0)
    assert runs(said) == {a: [1]}


def test_a_retry_keeps_its_restrictions_and_its_place_in_the_order():
    play = taught(10.0, "a", "b")
    _, b = play.workers
    play.submit(*many(3), wanted=b"\1" * 3, workers=("b",), retries=1)
    assert play.states(1, 2, 3) == ["sent", "sent", "ready"]
    assert runs(play.raised(b, 1)) == {b: [1]}
    assert play.state(3) == "ready"


def test_a_stolen_task_goes_only_where_it_may_run():
    play = taught(1.0, "a")
    (a,) = play.workers
    play.submit(*many(2), wanted=b"\1" * 2, workers=("a", "c"))
    play.came("b")
    assert only(play.hear(), TakeBack) == []
    c = play.came("c")
    assert [(number, list(message.tids)) for number, message in only(play.hear(), TakeBack)] == [(a, [play.tid(2)])]
    assert runs(play.gave_back(a, 2)) == {c: [2]}


def test_who_has_only_what_waits_for_its_inputs_has_nothing_to_do():
    play = taught(1.0, "a")
    (a,) = play.workers
    play.submit((), (), (1, 2), wanted=b"\0\0\1")
    assert play.states(1, 2, 3) == ["sent", "sent", "ready"]
    b = play.came("b")
    said = play.hear()
    assert runs(said) == {b: [3]}  # it is ahead of its inputs
    ((number, take_back),) = only(said, TakeBack)
    assert (number, list(take_back.tids)) == (a, [play.tid(2)])
    assert [number for number, _ in only(play.gave_back(a, 2), TakeBack)] == [b]  # its input is not on its way just now
    assert runs(play.gave_back(b, 3)) == {b: [2, 3]}


def test_a_cancel_of_an_input_stops_what_needs_it_and_nothing_else():
    play = taught(0.001, "a")
    play.submit((), (), (1,), (2,), (3, 4), wanted=b"\0\0\1\1\1")
    error = Lost("cancelled", "it was cancelled")
    assert only(play.cancel(1), Erred) == [(play.client, Erred([3, 5], [1, 1], [error, error]))]
    assert play.states(1, 2, 3, 4, 5) == ["erred", "sent", "erred", "sent", "erred"]


def test_a_cancel_of_what_two_need_is_told_for_both_and_tried_again_for_both():
    play = Play("a")
    (a,) = play.workers
    play.submit((), (0,), (0,), wanted=b"\0\1\1")
    play.cancel(0)
    assert play.states(0, 1, 2) == ["erred"] * 3
    assert runs(play.retry(1)) == {a: [0, 1]}
    assert play.states(0, 1, 2) == ["sent", "sent", "erred"]
    assert runs(play.retry(2)) == {a: [2]}
    play.report(a, 0)
    assert [message.counters for _, message in only(play.report(a, 1, 2), Done)] == [[1, 2]]


@pytest.mark.parametrize("seed", range(6))
def test_random_graphs_with_everything_end_and_run_once(seed):
    """All rules at once, with nothing that breaks: each task runs once, whatever it is bound to."""
    draw = random.Random(seed)
    cluster = TimedCluster(3, 2, limit=draw.choice((0, 10**7)), scheduler=CheckedScheduler())
    count = 0
    for _ in range(6):
        jobs, first = [], count
        for k in range(draw.randint(1, 60)):
            low = max(0, first + k - 20)
            deps = sorted({draw.randrange(low, first + k) for _ in range(draw.randrange(4))}) if k else []
            deps = [d for d in deps if d >= first]
            jobs.append(Job(draw.choice((0.0, 0.001, 0.02)), draw.choice((8, 10**6)), deps, draw.randrange(4)))
        cluster.submit(
            jobs,
            priority=draw.randint(-2, 2),
            workers=draw.choice(((), (), ("w0",), ("w1", "w2"))),
            everywhere=draw.random() < 0.2,
        )
        count += len(jobs)
        cluster.run(cluster.clock.now + 0.01)
    cluster.run()
    assert cluster.ran == count
    validate(cluster.scheduler)
    cluster.release(list(cluster.client.wishes))
    while cluster.clock.step():
        pass
    assert cluster.scheduler.tasks.live == 0
    assert not any(worker.values for worker in cluster.workers.values())
