"""The worker's machine: messages and events in, actions out."""

from __future__ import annotations

import pytest

from taskloom.core.messages import (
    Adopted,
    Announce,
    Ask,
    CancelTasks,
    Copy,
    Drop,
    Fetched,
    ForgetFunctions,
    Functions,
    GaveBack,
    Missing,
    Report,
    Retired,
    Run,
    TakeBack,
    Unask,
)
from taskloom.core.worker import (
    AskerLost,
    ClosePeers,
    Discard,
    Ended,
    Forget,
    Got,
    Keep,
    Leave,
    Paused,
    PeerAsks,
    PeerLost,
    Raised,
    Rename,
    Say,
    Send,
    Start,
    Stop,
    Unready,
    Withdraw,
    WorkerMachine,
)

UUID = b"c" * 16
OTHER, THIRD = 20, 30


class Worker:
    """A worker that is connected, as number 10."""

    def __init__(self, threads=1, resources=None, ahead=0.0):
        self.machine = WorkerMachine(threads, resources, ahead)
        assert self.machine.connected(10) == [Say(None, Announce([], []))]

    def hear(self, *events):
        return self.machine.handle(events, 0.0)

    def run(self, grant, *tasks, sources=None, resources=()):
        """Tasks: (tid, deps) each; a tid is the priority too, and the number of its owner's."""
        tids = [tid for tid, _ in tasks]
        count = len(tids)
        return self.hear(
            Run(
                grant,
                tids,
                tids,
                [1] * count,
                ["args"] * count,
                [deps for _, deps in tasks],
                b"\1" * count,
                sources or {},
                [(UUID, tid) for tid in tids],
                [resources] * count,
            )
        )

    def end(self, grant, tid, size=8):
        return self.hear(Ended(grant, tid, size, 0.1, None))

    def is_empty(self):
        inner = self.machine
        return not any(
            [inner.tasks, inner.data, inner.owners, inner.running, inner.stopping, inner.asked, inner.waiters]
            + [inner.askers, inner.copying, inner._failures, inner._kept]
        )


def start(grant, tid, deps=()):
    return Start(grant, tid, 1, "args", list(deps) or deps, True)


def report(grant, *tids, size=8):
    return Say(None, Report(grant, list(tids), [size] * len(tids), [0.1] * len(tids), [None] * len(tids), [], []))


# --- running


def test_a_task_from_the_run_to_the_report():
    worker = Worker()
    assert worker.run(7, (1, ())) == [start(7, 1)]
    assert worker.end(7, 1) == [Keep(7, 1, 1), report(7, 1)]
    assert worker.hear(Drop([1])) == [Forget([1])]
    assert worker.is_empty()


def test_an_error():
    worker = Worker()
    worker.run(7, (1, ()))
    assert worker.hear(Raised(7, 1, "error")) == [Say(None, Report(7, [], [], [], [], [1], ["error"]))]
    assert worker.is_empty()


def test_a_chain_here_needs_nobody():
    worker = Worker()
    assert worker.run(7, (1, ()), (2, (1,)), (3, (2,))) == [start(7, 1)]
    assert worker.end(7, 1) == [Keep(7, 1, 1), Start(7, 2, 1, "args", (1,), True), report(7, 1)]
    assert worker.end(7, 2) == [Keep(7, 2, 2), Start(7, 3, 1, "args", (2,), True), report(7, 2)]


def test_the_highest_priority_first_and_so_many_as_there_are_threads():
    worker = Worker(threads=2)
    assert worker.run(7, (5, ()), (3, ()), (4, ())) == [start(7, 3), start(7, 4)]
    assert worker.run(8, (1, ())) == []
    assert worker.end(7, 4) == [Keep(7, 4, 4), start(8, 1), report(7, 4)]


def test_reports_of_one_batch_are_one_for_each_grant():
    worker = Worker(threads=3)
    worker.run(7, (1, ()), (2, ()))
    worker.run(8, (3, ()))
    ended = [Ended(7, 1, 8, 0.1, None), Ended(8, 3, 8, 0.1, None), Ended(7, 2, 8, 0.1, None)]
    assert worker.hear(*ended)[-2:] == [report(7, 1, 2), report(8, 3)]


def test_resources_hold_a_task_back_and_not_those_behind_it():
    worker = Worker(threads=3, resources={"GPU": 1.0})
    assert worker.run(7, (1, ()), (2, ()), resources=(("GPU", 1.0),)) == [start(7, 1)]
    assert worker.run(8, (3, ())) == [start(8, 3)]
    assert worker.end(7, 1) == [Keep(7, 1, 1), start(7, 2), report(7, 1)]
    worker.hear(Raised(7, 2, "error"))
    assert worker.machine.free == {"GPU": 1.0}


def test_functions_are_the_shells():
    assert Worker().hear(Functions([1], [b"f"]), ForgetFunctions([1])) == []


# --- pause


def test_a_paused_worker_runs_one_at_a_time_the_first_first():
    worker = Worker(threads=4)
    worker.hear(Paused(True))
    assert worker.run(7, (3, ()), (1, ()), (2, ())) == [start(7, 1)]
    assert worker.end(7, 1) == [Keep(7, 1, 1), start(7, 2), report(7, 1)]
    assert worker.hear(Paused(False)) == [start(7, 3)]


# --- values of others


def test_inputs_are_asked_for_where_they_are():
    worker = Worker()
    assert worker.run(7, (5, (1, 2)), (6, (2, 3)), sources={1: OTHER, 2: OTHER, 3: THIRD}) == [
        Say(OTHER, Ask(1, [1, 2])),
        Say(THIRD, Ask(1, [3])),
    ]
    assert worker.hear(Got(OTHER, 1, [2], [4])) == []
    assert worker.hear(Got(OTHER, 1, [1], [4])) == [Start(7, 5, 1, "args", (1, 2), True)]
    worker.end(7, 5)
    assert worker.hear(Got(THIRD, 1, [3], [4])) == [Start(7, 6, 1, "args", (2, 3), True)]
    assert worker.machine.waiters == {}
    assert worker.machine.owners == {5: (UUID, 5)}  # not of what others made


def test_what_is_asked_for_is_not_asked_for_again():
    worker = Worker()
    worker.run(7, (5, (1,)), sources={1: OTHER})
    assert worker.run(8, (6, (1,)), sources={1: OTHER}) == []
    assert worker.machine.waiters == {1: [5, 6]}


def test_but_elsewhere_if_it_is_elsewhere():
    worker = Worker()
    worker.run(7, (5, (1,)), sources={1: OTHER})
    assert worker.run(8, (6, (1,)), sources={1: THIRD}) == [Say(OTHER, Unask([1])), Say(THIRD, Ask(2, [1]))]
    assert worker.hear(Got(OTHER, 1, [1], [4])) == [Say(THIRD, Unask([1])), Start(7, 5, 1, "args", (1,), True)]
    assert worker.machine.asked == {}
    assert worker.hear(Got(THIRD, 2, [1], [4])) == []


def test_what_nobody_waits_for_any_more_is_thrown_away():
    worker = Worker()
    worker.run(7, (5, (1,)), sources={1: OTHER})
    assert worker.hear(CancelTasks([5])) == [Say(OTHER, Unask([1]))]
    assert worker.hear(Got(OTHER, 1, [1], [4])) == [Forget([1])]
    assert worker.is_empty()


def test_what_should_be_here_and_is_not_is_said_at_once():
    worker = Worker()
    assert worker.run(7, (5, (1,))) == [Say(None, Missing([1], 10))]


def test_a_connection_that_is_lost_is_said_with_what_was_asked_there():
    worker = Worker()
    worker.run(7, (5, (1, 2, 3)), sources={1: OTHER, 2: OTHER, 3: THIRD})
    assert worker.hear(PeerLost(OTHER)) == [Say(None, Missing([1, 2], OTHER))]
    assert worker.hear(PeerLost(OTHER)) == []
    assert worker.hear(TakeBack([5], [7])) == [Say(THIRD, Unask([3])), Say(None, GaveBack([5], [7], [], []))]
    assert worker.is_empty()


# --- others ask


def test_a_value_that_is_here_is_sent_one_that_is_not_when_it_is():
    worker = Worker()
    worker.run(7, (1, ()), (2, ()))
    worker.end(7, 1)
    assert worker.hear(PeerAsks("peer", Ask(4, [1, 2, 3]))) == [Send("peer", 4, [1])]
    assert worker.end(7, 2) == [Keep(7, 2, 2), Send("peer", 4, [2]), report(7, 2)]
    assert worker.machine.askers == {3: [("peer", 4)]}
    assert worker.hear(PeerAsks("peer", Unask([3]))) == []
    assert worker.machine.askers == {}


def test_it_may_be_asked_before_it_was_told_of_the_task():
    worker = Worker()
    worker.hear(PeerAsks("peer", Ask(4, [1])))
    worker.run(7, (1, ()))
    assert Send("peer", 4, [1]) in worker.end(7, 1)


def test_an_asker_that_is_gone_gets_nothing():
    worker = Worker()
    worker.hear(PeerAsks("one", Ask(4, [1])), PeerAsks("two", Ask(9, [1])))
    assert worker.hear(AskerLost("one")) == []
    assert worker.machine.askers == {1: [("two", 9)]}


# --- copies


def test_a_copy_is_fetched_said_and_kept_as_its_own():
    worker = Worker()
    assert worker.hear(Copy({1: OTHER}, {1: 99}, {1: (UUID, 1)})) == [Say(OTHER, Ask(1, [1]))]
    assert worker.hear(Got(OTHER, 1, [1], [4])) == [Say(None, Fetched([1], [99]))]
    assert worker.machine.owners == {1: (UUID, 1)}
    assert worker.hear(Copy({1: 10}, {1: 100}, {1: (UUID, 1)})) == [Say(None, Fetched([1], [100]))]


def test_a_copy_of_what_is_asked_for_already_is_not_asked_for_again():
    worker = Worker()
    worker.run(7, (5, (1,)), sources={1: OTHER})
    assert worker.hear(Copy({1: THIRD}, {1: 99}, {1: (UUID, 1)})) == []
    assert worker.hear(CancelTasks([5])) == []  # the copy is still wanted
    assert worker.hear(Got(OTHER, 1, [1], [4])) == [Say(None, Fetched([1], [99]))]


def test_a_drop_recalls_it():
    worker = Worker()
    worker.hear(Copy({1: OTHER}, {1: 99}, {1: (UUID, 1)}))
    assert worker.hear(Drop([1])) == [Say(OTHER, Unask([1]))]
    assert worker.hear(Got(OTHER, 1, [1], [4])) == [Forget([1])]
    assert worker.is_empty()


def test_one_that_cannot_be_had_is_missing():
    worker = Worker()
    worker.hear(Copy({1: OTHER}, {1: 99}, {1: (UUID, 1)}))
    assert worker.hear(PeerLost(OTHER)) == [Say(None, Missing([1], OTHER))]
    assert worker.is_empty()


def test_one_that_is_made_here_meanwhile_is_said():
    worker = Worker()
    worker.run(7, (1, ()))
    assert worker.hear(Copy({1: OTHER}, {1: 99}, {1: (UUID, 1)})) == []
    assert worker.end(7, 1) == [Keep(7, 1, 1), Say(None, Fetched([1], [99])), report(7, 1)]


# --- giving back, cancelling


def test_what_was_not_begun_is_given_back_under_its_grant():
    worker = Worker()
    worker.run(7, (1, ()), (2, ()), (3, (1,)))
    assert worker.hear(TakeBack([1, 2, 3, 4, 2], [7, 7, 7, 7, 6])) == [
        Say(None, GaveBack([2, 3], [7, 7], [1, 4, 2], [7, 7, 6]))
    ]
    assert list(worker.machine.tasks) == [1]
    assert worker.machine.waiters == {}


def test_a_task_that_was_sent_again_is_not_given_back_under_the_old_grant():
    worker = Worker()
    worker.run(7, (1, ()), (2, ()))
    worker.hear(TakeBack([2], [7]))
    worker.run(8, (2, ()))
    assert worker.hear(TakeBack([2], [7])) == [Say(None, GaveBack([], [], [2], [7]))]
    assert 2 in worker.machine.tasks


def test_cancelled_before_it_began():
    worker = Worker()
    worker.run(7, (1, ()), (2, ()))
    assert worker.hear(CancelTasks([2])) == []
    assert worker.end(7, 1) == [Keep(7, 1, 1), report(7, 1)]


@pytest.mark.parametrize("how", [Ended(7, 1, 8, 0.1, None), Raised(7, 1, "stopped")])
def test_cancelled_while_it_runs(how):
    worker = Worker()
    worker.run(7, (1, ()), (2, ()))
    assert worker.hear(CancelTasks([1])) == [Stop(7, 1)]
    assert worker.run(8, (1, ())) == []  # the thread is still at it
    said = worker.hear(how)
    assert said == ([Discard(7, 1)] if type(how) is Ended else []) + [start(8, 1)]
    assert worker.machine.stopping == set()


def test_cancelled_when_its_value_is_here_already():
    worker = Worker()
    worker.run(7, (1, ()))
    worker.end(7, 1)
    assert worker.hear(CancelTasks([1])) == [Forget([1])]
    assert worker.is_empty()


def test_an_input_that_is_dropped_holds_the_task_until_it_is_taken_back():
    worker = Worker()
    worker.run(7, (1, ()), (2, ()), (3, (1,)))
    worker.end(7, 1)
    assert worker.hear(Drop([1])) == [Forget([1])]
    assert worker.end(7, 2) == [Keep(7, 2, 2), report(7, 2)]
    assert worker.hear(TakeBack([3], [7])) == [Say(None, GaveBack([3], [7], [], []))]


# --- handed over ahead


def test_a_chain_is_handed_over_in_one_go():
    worker = Worker(ahead=1.0)
    assert worker.run(7, (1, ()), (2, (1,)), (3, (2,)))[:2] == [start(7, 1), Start(7, 2, 1, "args", (1,), True)]


def test_one_that_was_handed_over_behind_another_may_be_known_to_have_ended_first():
    """Each runs in a thread of its own, and the word of the second one's may come before that of the first one's."""
    worker = Worker(threads=2, ahead=1.0)
    worker.run(7, (1, ()), (2, (1,)))
    assert worker.end(7, 2, size=9)[0] == Keep(7, 2, 2)
    assert worker.end(7, 1, size=9)[0] == Keep(7, 1, 1)
    worker.hear(Drop([1, 2]))
    assert worker.is_empty()


def test_one_that_could_not_run_waits_again():
    worker = Worker(ahead=1.0)
    worker.run(7, (1, ()), (2, (1,)))
    assert worker.hear(Raised(7, 1, "error")) == [Say(None, Report(7, [], [], [], [], [1], ["error"]))]
    assert worker.hear(Unready(7, 2)) == []
    assert worker.hear(TakeBack([2], [7])) == [Say(None, GaveBack([2], [7], [], []))]
    assert worker.is_empty()


def test_one_that_was_asked_back_and_could_not_run_is_given_back_after_all():
    worker = Worker(ahead=1.0)
    worker.run(7, (1, ()), (2, (1,)))
    assert worker.hear(TakeBack([2], [7])) == [Say(None, GaveBack([], [], [2], [7])), Withdraw([(7, 2)])]
    worker.hear(Raised(7, 1, "error"))
    assert worker.hear(Unready(7, 2)) == [Say(None, GaveBack([2], [7], [], []))]
    assert worker.is_empty()


def test_what_no_thread_has_begun_is_withdrawn_with_the_scheduler():
    worker = Worker(ahead=1.0, resources={"x": 2.0})
    worker.run(7, (1, ()), (2, ()), resources=(("x", 1.0),))
    assert worker.machine.free == {"x": 0.0}
    assert worker.machine.disconnected([(7, 2)]) == [ClosePeers()]
    assert worker.machine.free == {"x": 1.0}
    assert worker.machine.connected(11) == [Say(None, Announce([], [(UUID, 1, -1)]))]


# --- the scheduler goes, and comes


def disconnected():
    """With two values, a copy, a task that runs and one that waits."""
    worker = Worker()
    worker.run(7, (1, ()), (2, ()), (3, ()), (4, ()))
    worker.end(7, 1, size=5)
    worker.end(7, 2, size=6)
    worker.run(8, (5, (9,)), sources={9: OTHER})
    worker.hear(Got(OTHER, 2, [9], [4]))
    worker.hear(PeerAsks("peer", Ask(1, [77])))
    worker.said = worker.machine.disconnected()
    return worker


def test_what_was_not_begun_and_what_others_made_is_forgotten():
    worker = disconnected()
    assert worker.said == [ClosePeers(), Forget([9]), Rename({1: -1, 2: -2})]
    assert list(worker.machine.tasks) == [-3]
    assert worker.machine.askers == {}
    assert worker.machine.waiters == {}


def test_what_is_here_and_runs_is_announced():
    worker = disconnected()
    assert worker.machine.connected(11) == [Say(None, Announce([(UUID, 1, 5, -1), (UUID, 2, 6, -2)], [(UUID, 3, -3)]))]
    assert worker.hear(Adopted({-1: 101, -2: 102}, {-3: (103, 70)})) == [Rename({-1: 101, -2: 102})]
    # the thread calls it as before
    assert worker.end(7, 3) == [Keep(7, 3, 103), report(70, 103)]
    assert worker.hear(Drop([101, 102, 103])) == [Forget([101, 102, 103])]
    assert worker.is_empty()


def test_what_is_not_adopted_is_dropped_and_stopped():
    worker = disconnected()
    worker.machine.connected(11)
    assert worker.hear(Drop([-1, -2]), CancelTasks([-3])) == [Forget([-1, -2]), Stop(7, 3)]
    assert worker.end(7, 3) == [Discard(7, 3)]
    assert worker.is_empty()


def test_a_task_that_ends_before_it_is_announced_is_announced_as_a_value():
    worker = disconnected()
    assert worker.end(7, 3, size=9) == [Keep(7, 3, -3)]
    (said,) = worker.machine.connected(11)
    assert said.message == Announce([(UUID, 1, 5, -1), (UUID, 2, 6, -2), (UUID, 3, 9, -3)], [])


def test_one_that_ends_between_announcement_and_adoption_is_reported_then():
    worker = disconnected()
    worker.machine.connected(11)
    assert worker.end(7, 3, size=9) == [Keep(7, 3, -3)]
    assert worker.hear(Adopted({}, {-3: (103, 70)})) == [
        Rename({-3: 103}),
        Say(None, Report(70, [103], [9], [0.0], [None], [], [])),
    ]


def test_one_that_raises_between_them_too():
    worker = disconnected()
    worker.machine.connected(11)
    assert worker.hear(Raised(7, 3, "error")) == []
    assert worker.hear(Adopted({}, {-3: (103, 70)})) == [Say(None, Report(70, [], [], [], [], [103], ["error"]))]


def test_one_that_raises_before_is_not_announced_and_its_error_not_kept():
    worker = disconnected()
    worker.hear(Raised(7, 3, "error"))
    (said,) = worker.machine.connected(11)
    assert said.message.running == []
    assert worker.machine._failures == {}


def test_two_schedulers_die_in_a_row():
    worker = disconnected()
    worker.machine.connected(11)
    assert worker.machine.disconnected() == [ClosePeers(), Rename({-1: -4, -2: -5})]
    (said,) = worker.machine.connected(12)
    assert said.message == Announce([(UUID, 1, 5, -4), (UUID, 2, 6, -5)], [(UUID, 3, -6)])


def test_what_is_adopted_goes_to_who_waits_for_it():
    worker = disconnected()
    worker.machine.connected(11)
    worker.hear(PeerAsks("peer", Ask(4, [101])))
    assert worker.hear(Adopted({-1: 101}, {})) == [Rename({-1: 101}), Send("peer", 4, [101])]


def test_it_leaves_when_it_is_told():
    assert Worker().hear(Retired()) == [Leave()]


def test_what_needs_one_that_runs_since_before_the_schedulers_death_is_not_handed_over_with_it():
    """Its thread calls it by another name: it would be taken for missing, again and again."""
    worker = Worker(threads=2, ahead=1.0)
    worker.run(7, (3, ()))
    worker.machine.disconnected()
    worker.machine.connected(11)
    worker.hear(Adopted({}, {-1: (103, 70)}))
    assert worker.run(71, (104, [103])) == []
    said = worker.end(7, 3, size=9)
    assert [type(action) for action in said] == [Keep, Start, Say]
    assert said[0] == Keep(7, 3, 103)
    assert worker.end(71, 104)[0] == Keep(71, 104, 104)
