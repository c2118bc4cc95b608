"""What others see of a scheduler; after each event, `Play` also checks what is counted against all tasks."""

from __future__ import annotations

import json

import pytest

from taskloom.core.messages import Announce, Copy, Fetched, Retired, Status
from taskloom.core.scheduler import views
from taskloom.core.scheduler.views import Retirement, Spare, Unmet, WorkerView

from .play import UUID, Play, only

MB = 1 << 20


def learned(*workers, seconds=1.0, **more):
    """A play whose function has taken so long."""
    play = Play(*workers, **more)
    play.submit(())
    play.report(play.place(0), 0, seconds=seconds)
    play.release(0)
    return play


def wish(play, **how):
    return views.wish(play.scheduler, play.now, **how)


# --- how many


def test_an_empty_cluster_wishes_nothing():
    assert wish(Play()) == views.Wish(0, "nothing", 0, 0, 0, 0, 0.0, 0, 0, 0, 0, (), (), True)


def test_the_first_task_wishes_a_worker():
    play = Play()
    play.submit(())
    found = wish(play)
    assert (found.workers, found.why, found.runnable, found.tasks, found.unmeasured) == (1, "work", 1, 1, 1)
    assert found.seconds == views.ASSUMED
    assert wish(play, assumed=100.0).seconds == 100.0


@pytest.mark.parametrize(
    ("count", "target", "threads", "workers"),
    [(100, 5.0, 1, 20), (100, 10.0, 1, 10), (100, 5.0, 4, 5), (3, 0.1, 1, 3), (3, 0.1, 2, 2), (100, 1e6, 1, 1)],
)
def test_as_many_workers_as_do_all_work_in_time(count, target, threads, workers):
    play = learned(("a", threads))
    play.submit(*[()] * count)
    found = wish(play, target_seconds=target)
    assert (found.workers, found.why, found.seconds, found.runnable) == (workers, "work", float(count), count)


def test_threads_of_workers_that_may_come():
    play = learned("a")
    play.submit(*[()] * 100)
    assert wish(play).workers == 20
    assert wish(play, threads=8).workers == 3


def test_a_chain_wishes_one_worker_however_long_it_is():
    play = learned("a")
    play.submit((), *[(n,) for n in range(1, 1000)])
    found = wish(play)
    assert (found.workers, found.runnable, found.tasks, found.seconds) == (1, 1, 1000, 1000.0)


def test_no_more_threads_than_tasks_that_could_run_at_a_time():
    play = learned("a", "b", seconds=100.0)
    play.submit((), (1,), (1,), (1,), (2, 3, 4))
    assert wish(play).workers == 1
    play.report(play.place(1), 1, seconds=100.0)
    assert (wish(play).workers, wish(play).runnable) == (3, 3)
    play.report(play.place(2), 2, seconds=100.0)
    assert wish(play).runnable == 2


def test_what_runs_counts_until_it_is_done_failed_or_cancelled():
    play = learned("a", ("b", 2), seconds=10.0)
    play.submit((), (), (), ())
    assert (wish(play).tasks, wish(play).seconds) == (4, 40.0)
    play.report(play.place(1), 1, seconds=10.0)
    assert wish(play).tasks == 3
    play.raised(play.place(2), 2)
    assert wish(play).tasks == 2
    play.cancel(3)
    assert wish(play).tasks == 1
    play.release(4)
    found = wish(play)
    assert (found.tasks, found.seconds, found.runnable, found.workers) == (0, 0.0, 0, 1)
    assert found.why == "memory"  # the value of the first one


def test_work_comes_back_when_a_worker_dies():
    play = learned("a", "b")
    play.submit((), (1,))
    play.report(play.place(1), 1)
    before = wish(play).tasks
    play.left(play.place(1), running=())
    found = wish(play)
    assert (before, found.tasks, found.runnable) == (1, 2, 1)


# --- memory


def test_values_wish_memory():
    play = learned(("a", 1, 100 * MB), ("b", 1, 100 * MB))
    play.submit(*[()] * 3)
    for counter in (1, 2, 3):
        play.report(play.place(counter), counter, size=60 * MB)
    found = wish(play)
    assert (found.workers, found.why, found.nbytes, found.memory_limit) == (3, "memory", 180 * MB, 200 * MB)


def test_a_value_keeps_a_worker_where_there_are_no_limits():
    play = learned("a", "b")
    play.submit(())
    play.report(play.place(1), 1)
    found = wish(play)
    assert (found.workers, found.why, [worker.nbytes for worker in found.spare]) == (1, "memory", [0])


def test_where_all_are_full_one_more():
    play = learned("a", "b")
    play.submit(*[()] * 2)
    for number in play.workers:
        play.from_worker(number, Status(True, ()))
    assert (wish(play).workers, wish(play).why) == (3, "memory")
    play.from_worker(play.workers[0], Status(False, ()))
    assert wish(play).why == "work"


# --- what nobody here has


def test_what_no_worker_here_may_run_is_said_by_name():
    play = learned(("a", 1, 0, {"CPU": 1.0}), seconds=10.0)
    play.submit((), (), (), resources=(("GPU", 1.0),))
    play.submit((), (), workers=("x", "y", "z"))
    found = wish(play)
    assert found.unmet == (Unmet((), {"GPU": 1.0}, 3, 3), Unmet(("x", "y", "z"), {}, 2, 2))
    assert found.workers == 0  # more workers like these would not help
    assert wish(play, target_seconds=30.0).unmet[0].wanted == 1
    play.came("g", 1, 0, {"GPU": 2.0})
    play.hear()
    assert [need.workers for need in wish(play).unmet] == [("x", "y", "z")]
    play.came("y")
    play.hear()
    assert wish(play).unmet == ()


def test_no_more_workers_by_name_than_names():
    play = learned("a", seconds=1000.0)
    play.submit(*[()] * 50, workers=("x", "y"))
    assert wish(play).unmet == (Unmet(("x", "y"), {}, 50, 2),)


def test_what_was_unmet_and_is_not_wanted_any_more_is_forgotten():
    play = learned("a")
    play.submit((), (), resources=(("GPU", 1.0),))
    play.cancel(1)
    assert wish(play).unmet[0].tasks == 1
    play.release(2)
    assert wish(play).unmet == ()


def test_what_runs_wishes_its_worker_beside_what_is_stuck():
    play = learned("a")
    play.submit(())
    play.submit((1,), resources=(("GPU", 1.0),))  # its input runs
    found = wish(play)
    assert (found.workers, [need.tasks for need in found.unmet]) == (1, [1])


def test_the_worker_with_the_resource_dies():
    play = learned("a", ("g", 1, 0, {"GPU": 1.0}))
    play.submit((), (), resources=(("GPU", 1.0),))
    assert wish(play).unmet == ()
    play.left(play.workers[1], running=())
    assert wish(play).unmet == (Unmet((), {"GPU": 1.0}, 2, 1),)


# --- who can go


def test_who_holds_least_and_is_idle_longest_can_go():
    play = Play("a", "b", "c", "d")
    for name in "abcd":
        play.submit((), workers=(name,))
    a, b, c, _ = play.workers
    play.now = 10.0
    play.report(a, 0, size=5, seconds=1.0)
    play.now = 20.0
    play.report(b, 1, size=1, seconds=1.0)
    play.now = 25.0
    play.report(c, 2, size=1, seconds=1.0)
    play.now = 30.0
    found = wish(play)
    assert found.workers == 1
    assert found.spare == (Spare("b", b, 10.0, 1), Spare("c", c, 5.0, 1), Spare("a", a, 20.0, 5))
    assert [worker.name for worker in views.expendable(play.scheduler)] == ["b", "c", "a", "d"]


def test_no_more_can_go_than_there_are_too_many():
    play = learned("a", "b", "c", seconds=10.0)
    play.submit(())
    assert (wish(play).workers, len(wish(play).spare)) == (1, 2)
    play.submit((), ())
    assert (wish(play).workers, wish(play).spare) == (3, ())


def test_who_is_to_go_is_not_counted_and_not_chosen():
    play = Play("a", "b", "c")
    play.scheduler.retire(play.workers[0])
    play.hear()
    found = wish(play)
    assert (found.present, found.retiring, found.threads) == (2, 1, 2)
    assert [worker.name for worker in found.spare] == ["b", "c"]
    assert [worker.name for worker in views.expendable(play.scheduler)] == ["b", "c"]


def test_nobody_goes_while_others_may_come_back():
    play = Play("a", "b", grace=1.0)
    play.hear()
    found = wish(play)
    assert (found.workers, found.why, found.spare, found.settled) == (2, "settling", (), False)
    play.now = 1.5
    play.hear()
    found = wish(play)
    assert (found.workers, found.why, len(found.spare), found.settled) == (0, "nothing", 2, True)


def test_time_alone_does_not_change_what_is_to_be_done():
    play = learned("a", "b")
    before = wish(play)
    play.now += 100
    after = wish(play)
    assert before != after
    assert before.essence == after.essence
    play.submit(())
    assert wish(play).essence != before.essence


# --- who is to go


def test_how_far_a_worker_is_that_is_to_go():
    play = Play("a", "b")
    a, b = play.workers
    for number in play.workers:
        play.from_worker(number, Announce([], []))
    play.submit(*[()] * 4, workers=("a",))
    play.report(a, 0, 1, size=100)
    play.submit((), workers=("b",))
    scheduler = play.scheduler
    scheduler.retire(a)
    play.hear()
    assert views.retirement(scheduler, scheduler.workers[a]) == Retirement(a, "a", "moving", 2, 2, 200, ("b",))
    play.gave_back(a, 2, 3)  # nobody else may run them
    orders = scheduler.tasks.orders
    play.from_worker(b, Fetched([play.tid(0)], [orders[play.slot(0)][b]]))
    assert views.retirement(scheduler, scheduler.workers[a]) == Retirement(a, "a", "moving", 0, 1, 100, ("b",))
    assert views.wish(scheduler, play.now).nbytes == 100 + 100
    assert views.worker_view(scheduler, scheduler.workers[a], play.now).state == "retiring"
    said = play.from_worker(b, Fetched([play.tid(1)], [orders[play.slot(1)][b]]))
    assert only(said, Retired) == [(a, Retired())]
    assert views.retirement(scheduler, scheduler.workers[a]) == Retirement(a, "a", "ready", 0, 0, 0, ())
    assert views.worker_view(scheduler, scheduler.workers[a], play.now).state == "retired"
    assert not scheduler.unretire(a)  # it was told


def test_a_worker_that_is_to_stay_after_all_works_again():
    play = Play("a", "b")
    a, b = play.workers
    for number in play.workers:
        play.from_worker(number, Announce([], []))
    play.submit((), workers=("a",))
    play.report(a, 0, size=100)
    scheduler = play.scheduler
    scheduler.retire(a)
    play.hear()
    play.submit(*[()] * 2, workers=("a",))
    assert play.states(1, 2) == ["ready", "ready"]
    order = scheduler.tasks.orders[play.slot(0)][b]
    assert scheduler.unretire(a)
    play.hear()
    assert play.states(1, 2) == ["sent", "sent"]
    assert {play.place(1), play.place(2)} == {a}
    assert views.wish(scheduler, play.now).retiring == 0
    play.from_worker(b, Fetched([play.tid(0)], [order]))  # on its way already
    assert scheduler.tasks.holders(play.slot(0)) == [a, b]
    scheduler.retire(a)
    play.hear()
    play.gave_back(a, 1, 2)
    assert views.retirement(scheduler, scheduler.workers[a]).state == "moving"  # the copy is confirmed first


def test_a_worker_that_is_to_stay_after_all_gets_what_is_to_be_everywhere():
    play = Play("a", "b")
    a, b = play.workers
    for number in play.workers:
        play.from_worker(number, Announce([], []))
    play.submit((), workers=("a",))  # it runs, so that it is not told at once that it may go
    play.scheduler.retire(a)
    play.hear()
    play.submit((), everywhere=True)
    assert only(play.report(b, 1), Copy) == []
    assert play.scheduler.unretire(a)
    assert [number for number, _ in only(play.hear(), Copy)] == [a]


# --- workers and tasks


def test_a_worker():
    play = learned(("a", 2, 1000, {"GPU": 2.0}), seconds=0.5)
    play.now = 3.0
    worker = play.scheduler.workers[play.workers[0]]
    assert views.worker_view(play.scheduler, worker, play.now) == WorkerView(
        worker.number, "a", "running", 2, 1000, {"GPU": 2.0}, {"GPU": 2.0}, 0, 0, 0.0, 0, 0, 3.0
    )
    play.submit((), (), (), resources=(("GPU", 1.0),))
    found = views.worker_view(play.scheduler, worker, play.now)
    assert (found.sent, found.queued, found.resources_free, found.idle_seconds) == (2, 1, {"GPU": 0.0}, None)
    assert found.seconds == pytest.approx(1.5)
    play.from_worker(worker.number, Status(True, ()))
    assert views.worker_view(play.scheduler, worker, play.now).state == "paused"


def test_how_many_tasks_are_in_each_state():
    play = Play(("a", 8))
    play.submit((), (), (0, 1), (2,), (), (), wanted=bytes([1, 0, 0, 1, 1, 1]))
    play.report(play.workers[0], 0)
    play.raised(play.workers[0], 4)
    found = views.counts(play.scheduler)
    assert found.keys() == {"idle", "waiting", "ready", "sent", "done", "erred"}
    assert (sum(found.values()), found["done"], found["erred"]) == (play.scheduler.tasks.live, 1, 1)


def test_what_has_happened_is_counted():
    play = Play("a", "b")
    play.submit(*[()] * 6, retries=1, deaths=0)
    counts = play.scheduler.counts
    play.report(play.place(0), 0)
    play.raised(play.place(1), 1)
    play.raised(play.place(1), 1)
    play.cancel(2)
    number = play.place(3)
    tid = play.tid(3)
    play.left(number, running=[tid])
    found = {name: getattr(counts, name) for name in counts.__slots__}
    assert found == {"done": 1, "failed": 2, "retried": 1, "cancelled": 1, "stolen": 0, "lost": 1}


def test_a_task():
    play = Play("a", "b")
    play.submit((), (0,), (0, 1))
    play.report(play.place(0), 0, size=7)
    scheduler = play.scheduler
    slot = views.find_task(scheduler, UUID.hex(), 1)
    assert slot == play.slot(1)
    assert views.find_task(scheduler, str(play.client), 1) == slot
    assert views.find_task(scheduler, UUID.hex(), 99) == -1
    assert views.find_task(scheduler, "nobody", 1) == -1
    found = views.task(scheduler, slot)
    assert found["state"] == "sent"
    assert (found["inputs"], found["input_counters"], found["dependents"], found["inputs_not_done"]) == (1, [0], 1, 0)
    assert views.task(scheduler, play.slot(0))["nbytes"] == 7
    json.dumps(found)


def test_no_view_of_a_task_has_its_arguments_result_or_error():
    play = Play("a")
    play.submit((), (), ())
    play.raised(play.workers[0], 0, error="secret error")
    play.report(play.workers[0], 1, results={1: "secret result"})
    play.cancel(2)
    found = list(views.some_tasks(play.scheduler, 10))
    assert [task["error"] for task in found] == [None, "raised", "cancelled: it was cancelled"]
    text = json.dumps(found)
    assert "secret" not in text
    assert "args" not in text


def test_some_tasks_are_the_first_of_each_state():
    play = Play("a")
    play.submit(*[()] * 10, resources=(("GPU", 1.0),))
    play.submit(*[()] * 3)
    found = [(task["counter"], task["state"]) for task in views.some_tasks(play.scheduler, 2)]
    assert found == [(0, "ready"), (1, "ready"), (10, "sent"), (11, "sent")]
    assert [task["counter"] for task in views.tasks_between(play.scheduler, 8, 12)] == [8, 9, 10, 11]
    assert len(views.tasks_between(play.scheduler, 0, 1 << 30)) == 13
