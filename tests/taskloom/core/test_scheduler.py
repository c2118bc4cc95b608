"""The scheduler's machine: messages in, messages out."""

from __future__ import annotations

from array import array
from random import Random

import pytest

from taskloom.core.messages import (
    KEEP,
    PIN,
    WISH,
    Adopted,
    Announce,
    Back,
    CancelTasks,
    Copy,
    Done,
    Drop,
    Erred,
    Fetched,
    ForgetFunctions,
    Functions,
    GaveBack,
    Lost,
    Missing,
    Options,
    Pending,
    Release,
    Report,
    Retired,
    Retry,
    Run,
    Status,
    Submit,
    TakeBack,
    Want,
)
from taskloom.core.scheduler.checks import CheckedScheduler, InvariantError, TransitionError, story, validate
from taskloom.core.scheduler.machine import CLIENT, TRANSITIONS, WORKER
from taskloom.core.scheduler.state import DONE, FREE, IDLE, NAMES, READY
from taskloom.errors import ProtocolError

from .play import FUNCTION, UUID, Play, only, runs

STATE = {name: n for n, name in enumerate(NAMES)}


# --- every transition


def submitted(*deps, workers=("a", "b"), **more):
    play = Play(*workers)
    play.submit(*deps, **more)
    return play


def idle_waiting():
    play = Play()
    play.submit((), (0,))


def idle_ready():
    Play().submit(())


def waiting_ready():
    play = Play()
    play.submit((), (0,))
    play.hear()
    play.came("a")
    play.hear()


def ready_waiting():
    play = submitted((), (0,), (1,), workers=(("a", 1, 0, {"x": 1}),), resources=(("x", 1),))
    assert play.states(0, 1, 2) == ["sent", "ready", "waiting"]  # the resource is taken
    play.left(play.workers[0])


def ready_sent():
    submitted(())


def sent_waiting():
    play = submitted((), (0,))
    play.raised(play.workers[0], 0)  # no retry: that is sent -> erred
    play = submitted((), (0,), retries=1)
    play.raised(play.place(0), 0)


def sent_done():
    play = submitted(())
    play.report(play.place(0), 0)


def returned(held=(), running=(), before_submit=False, **more):
    """A worker comes back with what it has, to a scheduler in its grace."""
    play = Play("a", grace=1.0)
    announce = Announce([(UUID, counter, 5, name) for counter, name in held], [(UUID, c, name) for c, name in running])
    if before_submit:
        play.from_worker(play.workers[0], announce)
    play.said = play.submit((), (0,), (1,))
    if not before_submit:
        play.said = play.from_worker(play.workers[0], announce)
    return play


def waiting_sent():
    returned(running=[(1, -1)])


def waiting_done():
    returned(held=[(1, -1)])


def ready_done():
    returned(held=[(0, -1)])


def done_idle():
    play = submitted((), (0,))
    play.report(play.place(0), 0)
    play.report(play.place(1), 1)
    play.release(1)


def done_free():
    play = submitted(())
    play.report(play.place(0), 0)
    play.release(0)


def waiting_idle():
    play = submitted((), (0,), workers=())
    play.release(1)


ready_idle = waiting_idle


def sent_idle():
    play = submitted(())
    play.release(0)


def waiting_erred():
    play = submitted((), (0,), workers=())
    play.cancel(0)


ready_erred = waiting_erred


def sent_erred():
    play = submitted(())
    play.raised(play.place(0), 0)


def idle_erred():
    play = Play()
    play.submit((), wanted=bytes([KEEP]))
    play.cancel(0)


def erred_idle():
    play = submitted(())
    play.raised(play.place(0), 0)
    play.retry(0)


def idle_free():
    done_idle()


def erred_free():
    play = submitted(())
    play.raised(play.place(0), 0)
    play.release(0)


@pytest.mark.parametrize("pair", TRANSITIONS, ids=lambda pair: f"{NAMES[pair[0]]}_{NAMES[pair[1]]}")
def test_a_transition(pair, monkeypatch):
    """There is a way to it, with no socket; the names above say which."""
    schedulers = []
    right = CheckedScheduler.__init__

    def noted(self, *arguments):
        right(self, *arguments)
        schedulers.append(self)

    monkeypatch.setattr(CheckedScheduler, "__init__", noted)
    globals()[f"{NAMES[pair[0]]}_{NAMES[pair[1]]}"]()
    assert any(pair in scheduler.transitions for scheduler in schedulers)


def test_every_other_transition_is_refused():
    for old in range(len(NAMES)):
        for new in range(len(NAMES)):
            play = submitted(())
            bytearray.__setitem__(play.scheduler.tasks.state, 0, old)
            if (old, new) in TRANSITIONS:
                play.scheduler.tasks.state[0] = new
                continue
            with pytest.raises(TransitionError) as error:
                play.scheduler.tasks.state[0] = new
            a = play.workers[0]
            assert str(error.value).splitlines() == [
                f"slot 0 cannot go from {NAMES[old]} to {NAMES[new]}",
                f"0.000000 from client {play.client}: Submit",
                f"0.000000 to worker {a}: Run",
            ]


# --- running a graph


def test_a_task_goes_to_a_worker_and_its_value_to_the_client():
    play = Play("a")
    (a,) = play.workers
    assert play.submit((), wanted=b"\1") == [
        (a, Functions([1], [FUNCTION])),
        (a, Run(1, [1 << 32], [0], [1], ["args 0"], [[]], b"\1", {}, [(UUID, 0)], [()])),
    ]
    assert play.report(a, 0, size=8, results={0: b"value"}) == [
        (play.client, Done([0], [1 << 32], [8], [a], [b"value"]))
    ]
    assert play.release(0) == [(a, Drop([1 << 32]))]
    assert play.scheduler.tasks.live == 0
    assert not play.scheduler.tasks.state


def test_a_function_is_sent_once_to_each_worker():
    play = Play("a")
    assert [message for _, message in only(play.submit(()), Functions)] == [Functions([1], [FUNCTION])]
    assert only(play.submit(()), Functions) == []
    assert [message for _, message in only(play.submit((), functions=[2]), Functions)] == [Functions([3], [FUNCTION])]


def test_a_chain_is_one_message():
    play = Play("a")
    ((_, _), (_, run)) = play.submit((), (0,), (1,))
    assert run.deps == [[], [run.tids[0]], [run.tids[1]]]
    assert run.sources == {}
    assert run.wanted == b"\0\0\1"


def test_what_is_made_elsewhere_is_asked_for_there():
    play = Play("a", "b")
    play.submit((), (), wanted=b"\1\1", workers=("a",))
    a, b = play.workers
    ((_, _), (_, run)) = play.submit((0, 1), workers=("b",))
    assert play.states(0, 1, 2) == ["sent", "sent", "sent"]
    assert run.sources == {play.tid(0): a, play.tid(1): a}
    assert play.scheduler.tasks.copies == {0: {b: False}, 1: {b: False}}
    play.report(a, 0, 1)
    play.report(b, 2)
    # to have run it, it had them
    assert play.scheduler.tasks.copies == {0: {b: True}, 1: {b: True}}
    assert play.release(0, 1, 2) == [
        (a, Drop([1 << 32, (1 << 32) + 1])),
        (b, Drop([1 << 32, (1 << 32) + 1, (2 << 32) + 2])),
    ]


def test_inputs_are_dropped_when_the_last_task_made_of_them_is_done():
    play = Play("a")
    play.submit((), (0,), (0,))
    (a,) = play.workers
    tid = play.tid(0)
    play.report(a, 0)
    assert only(play.report(a, 1), Drop) == []
    assert only(play.report(a, 2), Drop) == [(a, Drop([tid]))]
    assert play.states(0, 1, 2) == ["idle", "done", "done"]
    assert play.release(1, 2) != []
    assert play.scheduler.tasks.live == 0


def test_columns_of_different_lengths_are_refused_before_anything_is_done():
    play = Play("a")
    play.submit(())
    for bad in (
        Submit(1, [0], [], [()], b"\1", Options()),
        Submit(1, [0], ["x"], [(), ()], b"\1", Options()),
        Submit(1, [0], ["x"], [()], b"", Options()),
    ):
        with pytest.raises(ProtocolError, match="not of one length"):
            play.from_client(bad)
        validate(play.scheduler)
    with pytest.raises(ProtocolError, match="has not sent its function 9"):
        play.from_client(Submit(1, [9], ["x"], [()], b"\1", Options()))
    validate(play.scheduler)
    assert play.scheduler.tasks.live == 1


def test_a_message_of_the_other_kind_of_peer_is_none():
    play = Play("a")
    with pytest.raises(ProtocolError, match=f"client {play.client} says Status, which no client says"):
        play.from_client(Status(True, []))
    with pytest.raises(ProtocolError, match=f"worker {play.workers[0]} says Release, which no worker says"):
        play.from_worker(play.workers[0], Release([0]))


@pytest.mark.parametrize("what", ["done", "failed", "given back", "kept"])
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("whose", ["nobody's", "another's", "forgotten"])
def test_a_worker_that_speaks_of_a_task_which_it_was_not_sent(what, special, whose):
    """With a grant that fits: that of the worker that was sent it, or the 0 of what was sent to nobody."""
    play = Play("a", "b", "c")
    a, b, c = play.workers
    resources = (("GPU", 1.0),) if special else ()
    if special:
        play.left(b)
        b = play.came("b", resources={"GPU": 1.0})
    play.submit((), workers=("a",))
    play.submit((), workers=("b",), resources=resources)
    play.submit((), workers=("nobody",), resources=resources)
    play.submit((), workers=("c",))
    play.submit((), workers=("c",))
    wrong = {"nobody's": 2, "another's": 1, "forgotten": 3}[whose]
    slot, tid = play.slot(wrong), play.tid(wrong)
    if whose == "forgotten":
        play.release(3)
    grant = play.scheduler.tasks.grant[slot]
    mine = play.tid(0), play.scheduler.tasks.grant[play.slot(0)]
    says = {
        "done": Report(grant, [tid], [1], [0.1], [None], [], []),
        "failed": Report(grant, [], [], [], [], [tid], ["error"]),
        "given back": GaveBack([tid], [grant], [], []),
        "kept": GaveBack([], [], [tid], [grant]),
    }[what]
    done = Report(mine[1], [mine[0]], [1], [0.1], [None], [], [])
    other = Report(play.scheduler.tasks.grant[play.slot(4)], [play.tid(4)], [1], [0.1], [None], [], [])
    events = [(WORKER, a, done), (WORKER, a, says), (WORKER, c, other)]
    words = f"the worker 'a' speaks of the task {tid} under the grant {grant}, and was not sent it"
    with pytest.raises(ProtocolError, match=words):
        play.hear(*events)
    validate(play.scheduler)
    # what it said before counts, and what others say; the clients hear of it with the next batch
    assert play.states(0, 1, 2, 4) == ["done", "sent", "ready", "done"]
    told = only(play.left(a), Done)
    assert [list(message.counters) for _, message in told] == [[0, 4]]


def test_of_a_report_that_is_wrong_in_its_midst_the_first_part_counts():
    play = Play(("a", 2))
    (a,) = play.workers
    play.submit((), (), ())
    play.submit((), workers=("nobody",))
    tasks = play.scheduler.tasks
    grant = tasks.grant[play.slot(0)]
    assert [tasks.grant[play.slot(n)] for n in range(4)] == [grant, grant, tasks.grant[play.slot(2)], 0]
    tasks.grant[play.slot(3)] = grant  # as if it were mixed up
    tids = [play.tid(0), play.tid(3), play.tid(1)]
    with pytest.raises(ProtocolError, match=f"the worker 'a' speaks of the task {tids[1]}"):
        play.from_worker(a, Report(grant, tids, [1] * 3, [0.1] * 3, [None] * 3, [], []))
    tasks.grant[play.slot(3)] = 0
    validate(play.scheduler)
    assert play.states(0, 1, 3) == ["done", "sent", "ready"]


def test_who_is_not_there_is_not_heard():
    play = Play("a")
    play.submit(())
    run_of_old = play.scheduler.tasks.grant[0]
    old = play.workers[0]
    play.left(old)
    assert play.hear((WORKER, old, Report(run_of_old, [1 << 32], [1], [1.0], [None], [], []))) == []
    assert play.hear((CLIENT, 999, Release([0]))) == []
    assert play.state(0) == "ready"


# --- the stale rule


def test_a_report_under_another_grant_is_dropped():
    play = Play("a", "b")
    play.submit(())
    first = play.place(0)
    old = play.scheduler.tasks.grant[play.slot(0)]
    play.release(0)
    play.next = 0
    play.submit(())
    assert play.from_worker(first, Report(old, [1 << 32], [1], [1.0], [None], [], [])) == []
    assert play.state(0) == "sent"
    assert play.from_worker(first, Report(old, [], [], [], [], [1 << 32], ["error"])) == []
    assert play.state(0) == "sent"


def test_a_slot_that_is_used_again_is_another_task():
    play = Play("a")
    play.submit(())
    one = play.tid(0)
    play.release(0)
    play.submit(())
    other = play.tid(1)
    assert one & 0xFFFFFFFF == other & 0xFFFFFFFF
    assert one != other
    assert play.scheduler.tasks.slot_of(one) == -1
    assert play.from_worker(play.workers[0], Missing([one], play.workers[0])) == []


def test_a_copy_under_an_order_that_was_recalled_is_dropped():
    play, (a, b), orders = retiring_with_a_value()
    tid = play.tid(0)
    play.left(a)  # with the value; b is told to drop it
    play.report(b, 0)
    assert play.from_worker(b, Fetched([tid], list(orders.values()))) == []
    assert play.scheduler.tasks.copies == {}


# --- errors


def test_an_error_spreads_to_all_that_need_it():
    play = Play("a")
    play.submit((), (0,), (1,), wanted=b"\0\1\1")
    (a,) = play.workers
    tids = [play.tid(n) for n in range(3)]
    said = play.raised(a, 0, "went wrong")
    assert said == [
        (a, CancelTasks([tids[1], tids[2]])),
        (play.client, Erred([1, 2], [0, 0], ["went wrong", "went wrong"])),
    ]
    assert play.states(0, 1, 2) == ["erred", "erred", "erred"]


def test_who_waits_for_what_fails_is_stopped_before_it_is_told_to_drop_it():
    """The other way round, the value could come between the two, and would be kept by nobody's order."""
    play = Play("a", "b")
    a, b = play.workers
    play.submit((), wanted=b"\1", workers=("a",))
    play.submit((0,), workers=("b",))
    tids = [play.tid(0), play.tid(1)]
    said = [(number, message) for number, message in play.cancel(0) if number == b]
    assert said == [(b, CancelTasks([tids[1]])), (b, Drop([tids[0]]))]
    assert a


def test_retries_are_counted():
    play = Play("a")
    play.submit((), retries=2)
    (a,) = play.workers
    assert runs(play.raised(a, 0)) == {a: [0]}
    assert runs(play.raised(a, 0)) == {a: [0]}
    assert play.raised(a, 0, "the third") == [(play.client, Erred([0], [0], ["the third"]))]
    assert runs(play.retry(0)) == {a: [0]}  # and from the beginning
    assert runs(play.raised(a, 0)) == {a: [0]}


def test_a_retry_takes_what_it_failed_by_along():
    play = Play("a")
    play.submit((), (0,), (1,))
    (a,) = play.workers
    play.raised(a, 0)
    assert play.states(0, 1, 2) == ["erred", "erred", "erred"]
    assert runs(play.retry(2)) == {a: [0, 1, 2]}


def test_a_retry_of_what_is_there_or_unknown():
    play = Play("a")
    play.submit(())
    (a,) = play.workers
    play.report(a, 0, size=3)
    assert play.retry(0) == [(play.client, Done([0], [play.tid(0)], [3], [a], [None]))]
    assert play.retry(5) == [(play.client, Erred([5], [5], [Lost("unknown", "the scheduler has forgotten it")]))]


def test_what_needs_the_unknown_fails_and_cannot_be_tried_again():
    play = Play("a")
    error = Lost("unknown", "it needs a task that the scheduler does not know, or has forgotten")
    assert play.submit((50, 51), (0,), wanted=b"\1\1") == [(play.client, Erred([0, 1], [0, 0], [error, error]))]
    # it would run without the input
    assert play.retry(0) == [(play.client, Erred([0], [0], [error]))]
    assert play.retry(1) == [(play.client, Erred([1], [0], [error]))]
    assert play.states(0, 1) == ["erred", "erred"]


def test_an_input_that_comes_later_or_is_itself_is_unknown():
    play = Play("a")
    error = Lost("unknown", "it needs a task that the scheduler does not know, or has forgotten")
    for first, deps in enumerate(((0,), (2,))):
        said = play.submit(deps, wanted=b"\1")
        assert only(said, Erred) == [(play.client, Erred([first], [first], [error]))]
    play.release(0, 1)
    assert play.scheduler.tasks.live == 0


def test_a_new_task_of_a_failed_one_fails():
    play = Play("a")
    play.submit(())
    play.raised(play.workers[0], 0, "error")
    assert play.submit((0,)) == [(play.client, Erred([1], [0], ["error"]))]


def test_cancel():
    play = Play("a")
    play.submit((), (0,), wanted=b"\1\1")
    (a,) = play.workers
    error = Lost("cancelled", "it was cancelled")
    tids = [play.tid(0), play.tid(1)]
    assert play.cancel(1) == [(a, CancelTasks([tids[1]])), (play.client, Erred([1], [1], [error]))]
    assert play.cancel(0) == [(a, CancelTasks([tids[0]])), (play.client, Erred([0], [0], [error]))]
    assert play.cancel(0, 1, 77) == []
    assert runs(play.retry(1)) == {a: [0, 1]}


def test_what_is_done_is_not_cancelled():
    play = Play("a")
    play.submit(())
    play.report(play.workers[0], 0)
    assert play.cancel(0) == []
    assert play.state(0) == "done"


# --- deaths


def test_a_dead_workers_tasks_and_values_are_made_again():
    play = Play("a")
    play.submit((), (0,), wanted=b"\1\1")
    (a,) = play.workers
    play.report(a, 0)
    b = play.came("b")
    said = play.left(a)
    assert only(said, Pending) == [(play.client, Pending([0]))]
    assert runs(said) == {b: [0, 1]}


def test_what_a_lost_value_is_made_of_is_made_again_too():
    play = Play("a")
    play.submit((), (0,), workers=("a",))
    (a,) = play.workers
    play.report(a, 0)
    play.report(a, 1)
    assert play.state(0) == "idle"
    said = play.left(a)  # 1 is wanted and lost, and needs 0
    assert said == [(play.client, Pending([1]))]
    assert play.states(0, 1) == ["ready", "waiting"]
    play.release(1)
    assert play.scheduler.tasks.live == 0


@pytest.mark.parametrize("deaths", [0, 1, 3])
def test_only_what_ran_is_blamed_and_so_often(deaths):
    play = Play()
    play.submit((), (), deaths=deaths)
    for n in range(deaths + 1):
        worker = play.came(f"w{n}")
        play.hear()
        assert play.states(0, 1) == ["sent", "sent"]
        said = play.left(worker, running=[play.tid(0)], words="signal 9")
    count = f"{deaths + 1} worker{'s' if deaths else ''}"
    error = Lost("died", f"{count} died while running it, the last one 'w{deaths}': signal 9")
    assert said == [(play.client, Erred([0], [0], [error]))]
    assert play.states(0, 1) == ["erred", "ready"]


def test_who_tells_nothing_is_blamed_by_its_last_status():
    play = Play("a")
    play.submit((), (), deaths=0)
    play.from_worker(play.workers[0], Status(False, [play.tid(1)]))
    play.left(play.workers[0])
    assert play.states(0, 1) == ["ready", "erred"]


def test_what_is_known_late_is_blamed_late():
    """A container died with all that was in it; the one in its place tells what ran."""
    play = Play()
    play.submit((), (), deaths=1)
    for n in range(3):
        worker = play.came(f"w{n}")
        play.hear()
        assert play.states(0, 1) == ["sent", "sent"]
        ran = play.tid(0)
        said = play.left(worker)  # nobody knows
        if n < 2:
            assert play.states(0, 1) == ["ready", "ready"]
            play.scheduler.blame([ran, 12345])
    error = Lost("died", "2 workers died while running it, the last one 'w2': its connection broke")
    assert said == [(play.client, Erred([0], [0], [error]))]
    assert play.states(0, 1) == ["erred", "ready"]
    play.scheduler.blame([ran])
    assert play.states(0, 1) == ["erred", "ready"]


def test_a_value_that_another_worker_has_is_not_lost():
    play = Play("a", "b")
    play.submit((), workers=("a",))
    play.submit((0,), workers=("b",))
    a, b = play.workers
    play.report(a, 0, size=4)
    play.report(b, 1)
    tid = play.tid(0)
    assert play.left(a) == [
        # from now on it is b's to announce
        (b, Copy({tid: b}, {tid: play.scheduler.placing.grant}, {tid: (UUID, 0)})),
        (play.client, Done([0], [tid], [4], [b], [None])),
    ]
    assert play.place(0) == b


def test_those_who_were_to_get_a_value_from_the_dead_give_back():
    play = Play("a", "b")
    play.submit((), wanted=b"\1", workers=("a",))
    play.submit((0,), workers=("b",))
    a, b = play.workers
    grant, tid = play.scheduler.tasks.grant[play.slot(1)], play.tid(1)
    assert play.left(a) == [(b, TakeBack([tid], [grant]))]
    assert play.states(0, 1) == ["ready", "sent"]
    assert play.gave_back(b, 1) == []
    assert play.states(0, 1) == ["ready", "waiting"]
    a = play.came("a")
    assert runs(play.hear()) == {a: [0], b: [1]}


def test_what_was_begun_is_not_given_back_and_counts():
    play = Play("a", "b")
    play.submit((), wanted=b"\1", workers=("a",))
    play.submit((0,), workers=("b",))
    a, b = play.workers
    play.report(a, 0)
    play.left(a)
    play.kept(b, 1)
    assert play.states(0, 1) == ["ready", "sent"]
    assert only(play.report(b, 1, size=9), Done) == [(play.client, Done([1], [play.tid(1)], [9], [b], [None]))]


# --- need comes and goes


def test_a_release_stops_what_was_for_it_alone():
    play = Play("a")
    play.submit((), (0,), (0,), wanted=b"\0\1\1")
    (a,) = play.workers
    tids = [play.tid(n) for n in range(3)]
    assert play.release(1) == [(a, CancelTasks([tids[1]]))]
    assert play.release(2) == [(a, CancelTasks([tids[2], tids[0]]))]
    assert play.scheduler.tasks.live == 0


def test_a_wish_for_an_idle_task_wakes_it():
    play = Play("a")
    play.submit((), (0,))
    (a,) = play.workers
    play.report(a, 0)
    play.report(a, 1)
    assert play.state(0) == "idle"
    assert runs(play.from_client(Want([0]))) == {a: [0]}
    assert play.from_client(Want([1])) == [(play.client, Done([1], [play.tid(1)], [10], [a], [None]))]
    assert play.from_client(Want([9])) == [
        (play.client, Erred([9], [9], [Lost("unknown", "the scheduler has forgotten it")]))
    ]


def test_pins_hold_what_later_blocks_need():
    play = Play("a")
    play.submit((), (0,), wanted=bytes([PIN, WISH]))
    (a,) = play.workers
    play.report(a, 0)
    play.report(a, 1)
    assert play.state(0) == "done"
    play.submit((0,), unpin=(0, 3))
    assert play.scheduler.tasks.wanted[0] == 0
    tid = play.tid(0)
    assert only(play.report(a, 2), Drop) == [(a, Drop([tid]))]


def test_an_end_of_pins_alone():
    play = Play("a")
    play.submit((), wanted=bytes([PIN]))
    play.from_client(Submit(1, [], [], [], b"", Options(), (0, 1)))
    assert play.scheduler.tasks.live == 0


def test_a_client_that_goes_leaves_nothing():
    play = Play("a")
    play.submit((), (0,))
    play.scheduler.client_left(play.client)
    tids = [1 << 32, (1 << 32) + 1]
    assert play.hear() == [(play.workers[0], CancelTasks(tids[::-1])), (play.workers[0], ForgetFunctions([1]))]
    assert play.scheduler.tasks.live == 0
    assert not play.scheduler.workers[play.workers[0]].functions
    play.scheduler.client_left(play.client)  # once more is nothing


# --- functions


def test_functions_are_forgotten_and_those_who_have_them_are_told():
    play = Play("a", "b")
    a, b = play.workers
    play.submit((), (), functions=[0, 1], workers=("a",))
    play.submit((), functions=[1], workers=("b",))
    play.report(a, 0, 1)
    play.report(b, 2)
    said = play.from_client(Release([0, 1, 2]), ForgetFunctions([0, 1, 2]))
    assert only(said, ForgetFunctions) == [
        (a, ForgetFunctions([1, 2])),
        (b, ForgetFunctions([2])),
    ]
    client = play.scheduler.clients[play.client]
    assert list(client.functions) == [3]
    assert not play.scheduler.workers[a].functions
    assert play.from_client(ForgetFunctions([0, 1, 2])) == []  # once more is nothing
    # the next one has another number everywhere
    said = play.from_client(Functions([4], [FUNCTION]))
    said += play.submit((), functions=[4], workers=("a",))
    assert only(said, Functions) == [(a, Functions([5], [FUNCTION]))]


def test_functions_are_not_forgotten_while_there_are_tasks_of_them():
    play = Play("a")
    (a,) = play.workers
    play.submit((), (), ())
    assert play.from_client(ForgetFunctions([0])) == []
    play.report(a, 0)
    assert not only(play.release(0), ForgetFunctions)
    assert 0 in play.scheduler.clients[play.client].functions
    play.left(a)
    b = play.came("b")
    assert only(play.hear(), Functions) == [(b, Functions([1], [FUNCTION]))]  # it is sent once more
    play.report(b, 1)
    assert only(play.release(1, 2), ForgetFunctions) == [(b, ForgetFunctions([1]))]
    assert 0 not in play.scheduler.clients[play.client].functions


def test_a_client_that_comes_back_says_which_functions_it_has():
    play = Play("a")
    (a,) = play.workers
    play.submit((), (), functions=[0, 1])
    play.report(a, 0, 1)
    play.release(1)
    client = play.scheduler.clients[play.client]
    known = client.functions[0]
    play.client = play.scheduler.client_came(UUID)
    block = Submit(0, [0, 1], ["args 0", "args 1"], [(), ()], bytes([WISH, 0]), Options())
    said = play.from_client(Back([0], [0, 3]), Functions([0, 3], [FUNCTION] * 2), block)
    assert only(said, ForgetFunctions) == [(a, ForgetFunctions([2]))]
    assert list(client.functions) == [0, 3]
    assert client.functions[0] is known  # with what its tasks took, and the number by which workers know it


def test_all_that_clients_want_can_be_cancelled():
    play = Play("a")
    (a,) = play.workers
    play.submit((), (0,), (), ())
    play.report(a, 0, 2)
    play.scheduler.cancel_all("because")
    said = play.hear()
    assert only(said, Erred) == [(play.client, Erred([1, 2, 3], [1, 2, 3], [Lost("cancelled", "because")] * 3))]
    tids = {n: (1 << 32) + n for n in range(4)}
    gone = [tid for kind in (CancelTasks, Drop) for _, message in only(said, kind) for tid in message.tids]
    assert sorted(gone) == sorted(tids.values())
    assert play.scheduler.tasks.live == 0
    assert not play.scheduler.tasks.state
    play.scheduler.cancel_all("once more")
    assert play.hear() == []
    assert runs(play.submit(())) == {a: [4]}  # it goes on


def test_slots_are_given_back_and_used_again():
    play = Play()
    for _ in range(5):
        play.submit((), (), ())
    assert len(play.scheduler.tasks.state) == 15
    play.release(3, 4, 5, 9, 10, 11)
    assert dict(play.scheduler.tasks.holes) == {3: 3, 9: 3}
    play.release(6, 7, 8)
    assert dict(play.scheduler.tasks.holes) == {3: 9}
    play.submit((), (), (), ())
    assert dict(play.scheduler.tasks.holes) == {7: 5}
    assert play.slot(15) == 3
    play.release(12, 13, 14)
    assert len(play.scheduler.tasks.state) == 7
    play.release(0, 1, 2, 15, 16, 17, 18)
    assert not play.scheduler.tasks.state
    assert not play.scheduler.tasks.holes


# --- clients that come back


def again(play, *blocks):
    """The client has connected anew, and sends again."""
    old, play.client = play.client, play.scheduler.client_came(UUID)
    assert old not in play.scheduler.clients
    return play.from_client(Back([block.first for block in blocks]), *blocks)


def test_a_client_that_comes_back_says_what_it_wants_by_now():
    play = Play("a")
    play.submit((), (), (), wanted=b"\1\1\1")
    (a,) = play.workers
    play.report(a, 0)
    play.raised(a, 1, "error")
    tid = play.tid(2)
    block = Submit(0, [0] * 3, ["x"] * 3, [()] * 3, b"\1\1\0", Options())
    assert again(play, block) == [
        (a, CancelTasks([tid])),
        (play.client, Done([0], [play.tid(0)], [10], [a], [None])),
        (play.client, Erred([1], [1], ["error"])),
    ]


def test_what_it_does_not_name_it_wants_no_more():
    play = Play("a")
    play.submit(())
    play.submit(())
    tid = play.tid(0)
    block = Submit(1, [0], ["x"], [()], b"\1", Options())
    assert again(play, block) == [(play.workers[0], CancelTasks([tid]))]


def test_an_old_connection_of_a_client_is_nobodys():
    play = Play("a")
    play.submit(())
    old = play.client
    again(play, Submit(0, [0], ["x"], [()], b"\1", Options()))
    assert play.hear((CLIENT, old, Release([0]))) == []
    play.scheduler.client_left(old)
    assert play.state(0) == "sent"


def test_what_has_failed_is_kept_and_not_computed():
    play = Play("a")
    said = play.submit((), wanted=bytes([KEEP]))
    assert said == []
    assert play.state(0) == "idle"
    assert runs(play.retry(0)) == {play.workers[0]: [0]}
    play.release(0)
    assert play.scheduler.tasks.live == 0


def test_a_wish_that_failed_and_is_tried_again_stays_one_whatever_a_client_that_comes_back_has_heard_of_it():
    """It says that it has failed, and has not heard yet what was said since it came back."""
    play = Play("a")
    (a,) = play.workers
    play.submit((), (0,), wanted=bytes([WISH, WISH]))
    play.cancel(0)
    play.retry(1)
    assert play.states(0, 1) == ["sent", "sent"]
    back = Submit(0, [0] * 2, ["x"] * 2, [(), (0,)], bytes([KEEP, WISH]), Options())
    assert again(play, back) == []
    assert only(play.report(a, 0), Done) == [(play.client, Done([0], [play.tid(0)], [10], [a], [None]))]
    done = Done([0, 1], [play.tid(0), play.tid(1)], [10, 10], [a, a], [None, None])
    play.report(a, 1)
    assert again(play, back) == [(play.client, done)]  # and the same where it is done by then
    assert play.states(0, 1) == ["done", "done"]


def test_what_is_kept_is_forgotten_when_it_is_released():
    play = Play("a")
    play.submit((), wanted=bytes([KEEP]))
    play.release(0)
    assert play.scheduler.tasks.live == 0


def test_what_is_kept_and_pinned_is_not_computed_before_the_wish_ends():
    play = Play("a")
    play.submit((), wanted=bytes([KEEP | PIN]))
    assert play.state(0) == "idle"
    assert runs(play.release(0)) == {play.workers[0]: [0]}  # what comes next needs it
    play.submit((0,), unpin=(0, 2))
    assert play.state(1) == "sent"
    play.release(1)
    assert play.scheduler.tasks.live == 0


def test_what_is_kept_and_pinned_can_be_wanted_again_and_the_pin_ends():
    for again in (Want([0]), Retry([0])):
        play = Play("a")
        play.submit((), wanted=bytes([KEEP | PIN]))
        assert runs(play.from_client(again)) == {play.workers[0]: [0]}
        assert play.scheduler.tasks.wanted[play.slot(0)] == WISH | PIN
    play = Play("a")
    play.submit((), wanted=bytes([KEEP | PIN]))
    play.from_client(Submit(1, [], [], [], b"", Options(), (0, 1)))
    assert play.state(0) == "idle"
    play.release(0)
    assert play.scheduler.tasks.live == 0


def test_a_pin_alone_does_not_have_a_value_made_again():
    play = Play("a")
    play.submit((), (0,))
    (a,) = play.workers
    play.report(a, 0)
    play.report(a, 1)
    block = Submit(0, [0] * 2, ["x"] * 2, [(), (0,)], bytes([PIN, WISH]), Options())
    assert runs(again(play, block)) == {}
    assert play.states(0, 1) == ["idle", "done"]


def test_a_wish_for_what_was_forgotten_is_answered():
    play = Play("a")
    play.submit((), ())
    play.release(0)
    block = Submit(0, [0] * 2, ["x"] * 2, [(), ()], b"\1\1", Options())
    error = Lost("unknown", "the scheduler has forgotten it")
    assert only(again(play, block), Erred) == [(play.client, Erred([0], [0], [error]))]


# --- workers that come back


def test_a_worker_that_comes_back_is_adopted():
    play = returned(held=[(0, -1)], running=[(1, -2)])
    (a,) = play.workers
    tids = [play.tid(0), play.tid(1)]
    grant = play.scheduler.tasks.grant[play.slot(1)]
    assert play.said == [(a, Adopted({-1: tids[0]}, {-2: (tids[1], grant)}))]
    assert play.states(0, 1, 2) == ["done", "sent", "ready"]
    play.now = 1.1
    assert runs(play.hear()) == {a: [2]}


def test_it_may_come_before_the_client():
    play = returned(held=[(0, -1), (7, -9)], running=[(1, -2), (8, -10)], before_submit=True)
    (a,) = play.workers
    assert [type(message) for _, message in play.said] == [Adopted]
    assert play.states(0, 1, 2) == ["done", "sent", "ready"]
    play.now = 1.1
    said = play.hear()
    assert only(said, Drop) == [(a, Drop([-9]))]
    assert only(said, CancelTasks) == [(a, CancelTasks([-10]))]


def test_nothing_is_sent_within_the_grace():
    play = Play("a", grace=1.0)
    assert play.submit(()) == []
    assert play.scheduler.deadline() == 1.0
    play.now = 0.999
    assert play.hear() == []
    play.now = 1.0
    assert runs(play.hear()) == {play.workers[0]: [0]}
    assert play.scheduler.deadline() is None


def test_the_last_value_makes_the_others_unnecessary():
    play = returned(held=[(0, -1), (1, -2), (2, -3)])
    (a,) = play.workers
    tid = play.tid(2)
    said = play.said
    assert only(said, Done) == [(play.client, Done([2], [tid], [5], [a], [None]))]
    assert play.states(0, 1, 2) == ["idle", "idle", "done"]


def test_a_value_is_taken_from_who_comes_back_while_another_one_makes_it():
    play = Play("a")
    play.submit(())
    (a,) = play.workers
    tid = play.tid(0)
    b = play.came("b")
    assert play.from_worker(b, Announce([(UUID, 0, 7, -1)], [])) == [
        (a, CancelTasks([tid])),
        (b, Adopted({-1: tid}, {})),
        (play.client, Done([0], [tid], [7], [b], [None])),
    ]
    assert play.place(0) == b


def test_who_runs_what_another_one_has_or_makes_stops():
    play = Play("a")
    play.submit(())
    b = play.came("b")
    assert play.from_worker(b, Announce([], [(UUID, 0, -1)])) == [(b, CancelTasks([-1]))]


def test_an_older_number_of_a_worker_ends_with_its_return():
    play = Play("a")
    play.submit(())
    (a,) = play.workers
    again_a = play.came("a", before=a)
    assert list(play.scheduler.workers) == [again_a]
    said = play.from_worker(again_a, Announce([], [(UUID, 0, -1)]))
    assert said == [(again_a, Adopted({}, {-1: (play.tid(0), play.scheduler.tasks.grant[0])}))]
    assert play.hear((WORKER, a, Status(True, []))) == []


# --- retirement


def retiring_with_a_value():
    play = Play("a", "b")
    a, b = play.workers
    for worker in (a, b):
        play.from_worker(worker, Announce([], []))
    play.submit((), workers=("a",))
    play.report(a, 0, size=100)
    b_may = play.scheduler.tasks.owner[play.slot(0)]
    b_may.allowed = None
    play.scheduler.retire(a)
    said = play.hear()
    tid = play.tid(0)
    ((number, copy),) = said
    assert (number, copy) == (b, Copy({tid: a}, {tid: copy.orders[tid]}, {tid: (UUID, 0)}))
    return play, (a, b), copy.orders


def test_a_retiring_worker_goes_when_its_values_are_elsewhere():
    play, (a, b), orders = retiring_with_a_value()
    assert play.hear() == []
    assert play.from_worker(b, Fetched(list(orders), list(orders.values()))) == [(a, Retired())]
    assert play.hear() == []  # it is told once
    tid = play.tid(0)
    assert only(play.left(a), Done) == [(play.client, Done([0], [tid], [100], [b], [None]))]


def test_it_gets_nothing_more_and_gives_back_what_it_has_not_begun():
    play = Play("a", "b")
    a, b = play.workers
    for worker in (a, b):
        play.from_worker(worker, Announce([], []))
    play.submit((), (), (), (), wanted=b"\1" * 4)
    mine = [n for n in range(4) if play.place(n) == a]
    play.scheduler.retire(a)
    said = play.hear()
    assert [tid for _, message in only(said, TakeBack) for tid in message.tids] == [play.tid(n) for n in mine]
    play.kept(a, mine[0])
    play.gave_back(a, *mine[1:])
    assert [play.place(n) for n in range(4)] == [a if n == mine[0] else b for n in range(4)]
    said = play.report(a, mine[0])
    assert [type(message) for number, message in said if number == b] == [Copy]


def test_a_copy_that_could_not_be_fetched_is_ordered_again():
    play, (a, b), orders = retiring_with_a_value()
    (tid,) = orders
    c = play.came("c")
    ((number, copy),) = only(play.from_worker(b, Missing([tid], a)), Copy)
    assert (number, copy.sources) == (c, {tid: a})  # b cannot reach a


def test_it_does_not_go_before_it_has_said_what_it_came_with():
    play = Play("a")
    play.scheduler.retire(play.workers[0])
    assert play.hear() == []
    assert play.from_worker(play.workers[0], Announce([], [])) == [(play.workers[0], Retired())]


def test_nor_within_the_grace():
    play = Play("a", grace=1.0)
    play.from_worker(play.workers[0], Announce([(UUID, 0, 5, -1)], []))
    play.scheduler.retire(play.workers[0])
    assert play.hear() == []
    play.now = 1.0
    assert play.hear() == [(play.workers[0], Drop([-1])), (play.workers[0], Retired())]


def test_one_that_is_to_stay_after_all_gets_tasks_again_and_is_not_told_to_go():
    play, (a, b), orders = retiring_with_a_value()
    play.submit((), workers=("a",))
    assert play.state(1) == "ready"
    assert play.scheduler.unretire(a)
    assert runs(play.hear()) == {a: [1]}
    assert play.from_worker(b, Fetched(list(orders), list(orders.values()))) == []
    play.report(a, 1)
    assert play.place(0) == a
    play.scheduler.retire(
        a
    )  # then what the other one has fetched is not kept there for that: it is to say so once more
    ((number, copy),) = [(n, message) for n, message in play.hear() if play.tid(0) in getattr(message, "sources", ())]
    assert (number, copy.sources[play.tid(0)]) == (b, b)


def test_one_that_was_told_to_go_cannot_stay():
    play, (a, b), orders = retiring_with_a_value()
    play.from_worker(b, Fetched(list(orders), list(orders.values())))
    play.submit((), workers=("a",))
    assert not play.scheduler.unretire(a)
    assert play.hear() == []


def test_one_that_stays_gets_what_is_everywhere():
    play = Play("a", "b")
    a, b = play.workers
    for worker in (a, b):
        play.from_worker(worker, Announce([], []))
    play.submit(())
    play.report(a, 0)  # it stays there, so that it does not go at once
    play.submit((), workers=("b",))
    play.scheduler.retire(a)
    play.hear()
    play.submit((), everywhere=True)
    assert play.place(2) == b
    assert only(play.report(b, 2), Copy) == []
    assert play.scheduler.unretire(a)
    ((number, copy),) = only(play.hear(), Copy)
    assert (number, copy.sources) == (a, {play.tid(2): b})


def test_without_anybody_else_it_stays():
    play = Play("a")
    (a,) = play.workers
    play.from_worker(a, Announce([], []))
    play.submit(())
    play.report(a, 0)
    play.scheduler.retire(a)
    assert play.hear() == []
    b = play.came("b")
    assert [type(message) for _, message in play.hear()] == [Copy]
    assert b


# --- stories, and invariants


def test_stories_keep_numbers_only_and_few():
    play = Play("a")
    play.submit(*[() for _ in range(1000)], wanted=b"\1" * 1000)
    for _ in range(300):
        play.from_worker(play.workers[0], Missing(list(range(1000)), play.workers[0]))
    stories = play.scheduler.stories
    assert stories._weight <= 100_000
    assert all(not any("args" in str(about) for about in event[5]) for event in stories._events)


def test_stories_are_the_same_when_they_are_packed():
    play = Play("a")
    play.submit(*[() for _ in range(50)], wanted=b"\1" * 50)
    play.report(play.workers[0], 0, 1, 2)
    play.from_worker(play.workers[0], Missing([2**70, 5], play.workers[0]))  # beyond what any tid can be
    stories = play.scheduler.stories
    told = {n: stories.tell(n, play.client, n) for n in [*range(50), 2**70]}
    assert sum(map(len, told.values())) > 50
    for more in (0, 1, 0):
        kept = list(stories._events)
        stories.pack()
        assert {n: stories.tell(n, play.client, n) for n in told} == told
        assert [event[:5] + event[6:] for event in stories._events] == [event[:5] + event[6:] for event in kept]
        columns = [column for event in stories._events for column in event[5]]
        assert {type(column) for column in columns} <= {range, array, tuple}
        assert sum(type(column) is tuple for column in columns) == 1
        for _ in range(more):
            play.from_worker(play.workers[0], Missing([1000], play.workers[0]))


def test_a_story():
    play = Play("a")
    play.submit(())
    play.now = 2.5
    play.report(play.workers[0], 0)
    a, c = play.workers[0], play.client
    assert story(play.scheduler, 0) == [
        f"0.000000 from client {c}: Submit",
        f"0.000000 to worker {a}: Run",
        f"2.500000 from worker {a}: Report",
        f"2.500000 to client {c}: Done",
    ]


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda s: s.tasks.uses.__setitem__(0, 7), "is counted 7 times as needed, and is 1 times"),
        (lambda s: s.tasks.undone.__setitem__(1, 7), "counts 7 inputs undone, there are 1"),
        (lambda s: s.tasks.grant.__setitem__(0, 0), "was sent without a grant"),
        (lambda s: s.tasks.place.__setitem__(0, 9), "was sent to nobody there"),
        (lambda s: setattr(s.placing, "todo", 9), "0 tasks are to be sent, 9 are counted"),
        (lambda s: setattr(s.tasks, "live", 9), "2 tasks are there, 9 are counted"),
        (lambda s: s.workers[2].sent.pop(0), "was sent to a worker that does not know"),
        (lambda s: setattr(s.workers[2], "load", 9.0), "it counts 9.0"),
        (lambda s: s.workers[2].held.append(0) or setattr(s.workers[2], "holds", 1), "holds 0 values, it counts 1"),
        (lambda s: s.tasks.copies.__setitem__(0, {77: True}), "has a copy on worker 77, which is gone"),
        (lambda s: s.tasks.orders.__setitem__(0, {2: 5}), "is not there, and is to be copied"),
        (lambda s: bytearray.__setitem__(s.tasks.state, 0, IDLE), ""),
        (lambda s: bytearray.__setitem__(s.tasks.state, 0, READY), ""),
        (lambda s: bytearray.__setitem__(s.tasks.state, 0, DONE), ""),
        (lambda s: bytearray.__setitem__(s.tasks.state, 0, FREE), ""),
    ],
)
def test_what_is_wrong_is_found(spoil, what):
    play = Play("a")
    play.submit((), (0,))
    spoil(play.scheduler)
    with pytest.raises(InvariantError) as error:
        validate(play.scheduler)
    assert what in str(error.value)


@pytest.mark.parametrize("seed", range(30))
def test_many_that_are_released_together_end_as_one_by_one(seed):
    """Those side by side are let go of column by column: the same comes of it."""
    random = Random(seed)
    deps = [() if random.random() < 0.9 or n < 3 else (random.randrange(n),) for n in range(120)]
    if seed % 3 == 0:
        deps = [()] * 120
    keep = {n for n in range(120) if random.random() < (0, 0.02, 0.2)[seed % 3]}
    orders = [n for n in range(120) if n not in keep]
    if seed % 2:
        cut = random.randrange(len(orders))
        orders = orders[cut:] + orders[:cut]
    ends = []
    for together in (False, True):
        play = Play("a", "b", ("c", 4))
        for start in range(0, 120, 40):
            play.submit(*deps[start : start + 40], wanted=bytes([WISH]) * 40, functions=[0, *[1] * 39])
        unfinished = {n for n in range(120) if n % 50 == 49 and seed % 4 == 3}
        for _ in range(200):
            sent = [n for n in range(120) if play.state(n) == "sent" and n not in unfinished]
            for n in sent:
                play.report(play.place(n), n, size=n)
            if not sent:
                break
        said = play.release(*orders) if together else [message for n in orders for message in play.release(n)]
        dropped = {}
        for number, message in only(said, Drop):
            dropped.setdefault(number, []).extend(message.tids)
        workers = [(worker.holds, worker.nbytes, len(worker.sent)) for worker in play.scheduler.workers.values()]
        uses = [function.uses for function in play.scheduler.clients[play.client].functions.values()]
        states = [play.state(n) for n in range(120)]
        ends.append(
            (states, workers, uses, play.scheduler.tasks.live, {n: sorted(tids) for n, tids in dropped.items()})
        )
    assert ends[0] == ends[1]


def test_what_a_worker_held_once_is_forgotten_now_and_then():
    play = Play("a")
    (a,) = play.workers
    for start in range(0, 1500, 500):
        play.submit(*[()] * 500)
        for n in range(start, start + 500):
            play.report(a, n)
    worker = play.scheduler.workers[a]
    assert (worker.holds, len(worker.held)) == (1500, 1500)
    play.release(*range(1200))
    assert (worker.holds, len(worker.held)) == (300, 1500)
    play.release(*range(1200, 1499))
    assert (worker.holds, worker.held) == (1, [1499])
