"""Why a task does not end, in words."""

from __future__ import annotations

from taskloom.core.messages import WISH, Announce, Missing, Status
from taskloom.core.scheduler import reasons
from taskloom.core.scheduler.reasons import Reason, Stuck

from .play import Play

GPU = (("GPU", 1.0),)


def why(play, *counters):
    return reasons.why(play.scheduler, play.scheduler.clients[play.client], counters)


def stuck(play):
    return reasons.stuck(play.scheduler, play.scheduler.clients[play.client])


def words(play, counter):
    found = why(play, counter)
    assert (found.counter, found.culprit, found.of_culprit) == (counter, counter, "")
    return found.words


def test_nobody_is_there():
    play = Play()
    play.submit((), (0,))
    assert why(play, 1) == Reason(1, "it waits for 1 other task", 0, "no workers are connected", True)
    assert stuck(play) == [Stuck(0, "no workers are connected", 2, (), ())]
    play.came("a")
    play.hear()
    assert stuck(play) == []
    assert not why(play, 1).is_stuck


def test_who_is_there_is_to_go():
    play = Play("a")
    play.from_worker(play.workers[0], Announce([], []))
    play.scheduler.retire(play.workers[0])
    play.hear()
    play.submit(())
    assert words(play, 0) == "no workers are connected but 1 that is to go"


def test_nobody_has_the_resource():
    play = Play(("a", 1, 0, {"CPU": 4.0}), "b")
    play.submit((), (), resources=GPU)
    expected = "no worker has the resource GPU; 2 workers are connected, they offer 4 CPU"
    assert words(play, 1) == expected
    assert why(play, 0, 1).is_stuck
    assert stuck(play) == [Stuck(0, expected, 2, (), GPU)]
    play.came("g", 1, 0, {"GPU": 2.0})
    play.hear()
    assert stuck(play) == []
    assert words(play, 0) == "it was sent to g, where another one runs or waits too"


def test_nobody_has_enough_of_it():
    play = Play(("a", 1, 0, {"GPU": 1.0, "RAM": 1.0}), ("b", 1, 0, {"GPU": 3.0}))
    play.submit((), resources=(("GPU", 4.0),))
    assert words(play, 0) == "no worker has 4 of the resource GPU: the most that one has is 3; 2 workers are connected"
    play.submit((), resources=(("GPU", 2.0), ("RAM", 1.0)))
    assert words(play, 1) == (
        "no worker has 2 GPU and 1 RAM together; 2 workers are connected, they offer 3 GPU and 1 RAM"
    )


def test_nobody_of_these_names_is_there():
    play = Play("a", "b")
    play.submit((), workers=("nobody",))
    play.submit((), workers=("x", "y"))
    play.submit((), workers=("a", "y"), resources=GPU)
    assert words(play, 0) == "no worker of this name is connected: nobody; 2 workers are connected: a, b"
    assert words(play, 1) == "no worker of these names is connected: x, y; 2 workers are connected: a, b"
    assert words(play, 2) == (
        "no worker of those that may run it (a) has the resource GPU; 2 workers are connected, they offer no resources"
    )
    assert [(found.counter, found.tasks) for found in stuck(play)] == [(0, 1), (1, 1), (2, 1)]


def test_what_waits_for_others_says_for_which_in_the_end():
    play = Play("a")
    play.submit((), (0,), (1,))
    assert why(play, 2) == Reason(
        2, "it waits for 1 other task", 0, "it was sent to a, where 2 others run or wait too", False
    )
    play.from_worker(play.workers[0], Status(False, [play.tid(0)]))
    assert why(play, 2).of_culprit == "it runs on a"
    play.submit((), resources=GPU)
    play.submit((2, 3), wanted=bytes([WISH]))
    found = why(play, 4)
    assert (found.words, found.culprit, found.is_stuck) == ("it waits for 2 other tasks", 3, True)
    assert "GPU" in found.of_culprit
    # of several the one that is stuck, wherever it stands; what was looked at is not looked at again
    assert why(play, 1, 2, 4).counter == 4
    assert why(play, 1, 2).counter == 1


def test_a_long_chain_takes_no_recursion_and_no_long_time():
    play = Play("a")
    play.submit((), *[(n,) for n in range(3000)], resources=GPU)
    assert (why(play, 3000).culprit, why(play, 3000).is_stuck) == (0, True)
    assert why(play, *range(3001)).culprit == 0


def test_what_will_go_on_by_itself():
    play = Play(("g", 1, 0, {"GPU": 1.0}))
    (g,) = play.workers
    play.submit((), (), resources=GPU)
    assert words(play, 0) == "it was sent to g, where it runs or is about to"
    assert words(play, 1) == "it waits for 1 GPU of g, which other tasks take"
    assert stuck(play) == []
    play.submit(*[()] * 100)
    assert words(play, 101).startswith("it waits for its turn: ")
    play.from_worker(g, Status(True, ()))
    assert words(play, 1) == "the memory of g, where it may run, is full"


def test_what_ended_or_is_not_known():
    play = Play("a")
    play.submit((), (), ())
    play.report(play.workers[0], 0)
    play.raised(play.workers[0], 1)
    play.release(2)
    assert words(play, 0) == "it is done, and its value is at a"
    assert words(play, 1) == "it has failed"
    assert words(play, 2) == words(play, 99) == "the scheduler does not know it, or has forgotten it"
    assert why(play) is None
    assert stuck(play) is None  # nothing is to be run


def test_inputs_out_of_reach():
    play = Play("a", "b")
    a, b = play.workers
    play.submit((), workers=("a",))
    play.report(a, 0)
    play.submit((0,), workers=("b",))
    play.from_worker(b, Missing([play.tid(0)], a))
    play.gave_back(b, 1)
    assert words(play, 1) == "no worker that may run it can reach the workers that have its inputs just now"


def test_after_a_restart_nobody_is_stuck_before_all_are_back():
    play = Play(grace=1.0)
    play.submit(())
    assert stuck(play) == []
    assert words(play, 0) == "the scheduler has just started anew, and waits for those that may come back"
    play.now = 1.5
    play.hear()
    assert words(play, 0) == "no workers are connected"


def test_data_that_is_to_come_again():
    play = Play("a")
    play.submit((), data=True)
    play.report(play.workers[0], 0)
    play.left(play.workers[0], running=())
    assert words(play, 0) == "it is data whose worker is gone, and which this client is to send once more"
    play.submit((), workers=("nobody",), data=True)
    assert stuck(play) == [Stuck(1, "no workers are connected", 2, (), ())]


def test_another_clients_tasks_are_not_told_of():
    play = Play("a")
    other = play.scheduler.client_came(b"o" * 16)
    play.submit((), (), resources=GPU)
    assert reasons.stuck(play.scheduler, play.scheduler.clients[other]) is None
    assert stuck(play)[0].tasks == 2
