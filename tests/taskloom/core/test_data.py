"""Data that clients put on workers: spread, let go of, asked for once more."""

from __future__ import annotations

import pytest

from taskloom.core.messages import (
    KEEP,
    WISH,
    Announce,
    Back,
    Done,
    Drop,
    Erred,
    Functions,
    Lost,
    Options,
    Pending,
    Resend,
    Run,
    Status,
    Submit,
)
from taskloom.core.scheduler.state import AWAY, DATA, PRIORITIES

from .play import FUNCTION, UUID, Play, only, runs


def scattered(play, *sizes, **options):
    """Data of so many bytes each."""
    first = play.next
    play.next += len(sizes)
    args = [bytes(size) for size in sizes]
    block = Submit(
        first, [0] * len(sizes), args, [()] * len(sizes), bytes([WISH]) * len(sizes), Options(data=True, **options)
    )
    if play.known:
        return play.from_client(block)
    play.known = True
    return play.from_client(Functions(range(4), [FUNCTION] * 4), block)


def again(first, *args, wanted=WISH):
    count = len(args)
    return Submit(first, [0] * count, list(args), [()] * count, bytes([wanted]) * count, Options(data=True))


def args_of(play, counter):
    return play.scheduler.tasks.args[play.slot(counter)]


def test_the_scheduler_keeps_no_copy():
    play = Play("a")
    (a,) = play.workers
    ((_, run),) = only(scattered(play, 5), Run)
    assert run.args == [bytes(5)]
    assert args_of(play, 0) == bytes(5)
    play.report(a, 0, size=5)
    assert args_of(play, 0) is AWAY


def test_it_is_spread_by_bytes():
    play = Play("a", "b")
    a, b = play.workers
    assert runs(scattered(play, 100, 40, 40, 40, 5)) == {a: [0, 4], b: [1, 2, 3]}
    play.report(a, 0, size=1000)
    for counter in range(5, 14):
        scattered(play, 100)
        assert play.place(counter) == b


def test_it_goes_where_it_is_told_to_and_waits_for_who_is_not_there():
    play = Play("a", "b")
    a, b = play.workers
    assert runs(scattered(play, 1, 1, 1, workers=("b",))) == {b: [0, 1, 2]}
    assert scattered(play, 1, workers=("c",)) == []
    c = play.came("c")
    assert runs(play.hear()) == {c: [3]}
    assert a


def test_it_does_not_wait_behind_long_tasks():
    play = Play("a")
    (a,) = play.workers
    play.submit((), wanted=b"\1")
    play.report(a, 0, seconds=10.0)
    play.submit(*[()] * 5, wanted=b"\1" * 5)
    assert play.states(1, 2, 3) == ["sent", "sent", "ready"]  # there is nothing to do for 20 s
    said = scattered(play, *[1] * 50)
    assert runs(said) == {a: list(range(6, 56))}
    ((_, run),) = only(said, Run)
    assert max(run.priorities) < -(DATA >> 1)


def test_nobody_who_is_paused_gets_it_while_others_do_not_rest():
    play = Play("a", "b")
    a, b = play.workers
    play.from_worker(a, Status(True, []))
    assert runs(scattered(play, 1, 1, 1)) == {b: [0, 1, 2]}


def test_priorities_have_an_end():
    """Else they would not fit into what travels."""
    play = Play()
    orders = [10**9, PRIORITIES - 1, 0, -(10**9)]
    for priority in orders:
        play.submit((), priority=priority)
    for priority in orders:
        scattered(play, 1, priority=priority)
    priorities = [play.scheduler.tasks.priority(play.slot(n)) for n in range(8)]
    assert priorities[:4] == sorted(priorities[:4])
    assert priorities[4:] == sorted(priorities[4:])
    assert max(priorities[4:]) < min(priorities[:4])
    assert all(-(1 << 63) < priority < 1 << 63 for priority in priorities)


def lost_data():
    """Data of which the last copy is gone, and a task made of it."""
    play = Play("a")
    (a,) = play.workers
    scattered(play, 5)
    play.submit((0,))
    play.report(a, 0, size=5)
    b = play.came("b")
    play.said = play.left(a)
    return play, b


def test_what_is_lost_is_asked_for():
    play, b = lost_data()
    assert play.said == [(play.client, Pending([0])), (play.client, Resend([0]))]
    assert play.states(0, 1) == ["waiting", "waiting"]
    said = play.from_client(again(0, b"again"))
    assert runs(said) == {b: [0, 1]}
    assert only(said, Run)[0][1].args == [b"again", "args 1"]
    play.report(b, 0)
    assert args_of(play, 0) is AWAY


def test_what_nobody_needs_is_not():
    play = Play("a")
    (a,) = play.workers
    scattered(play, 5)
    play.submit((0,))
    play.release(0)
    play.report(a, 0)
    assert only(play.report(a, 1), Drop) == [(a, Drop([1 << 32]))]
    assert play.states(0, 1) == ["idle", "done"]
    said = play.left(a)  # 1 is wanted, and needs it
    assert said == [(play.client, Pending([1])), (play.client, Resend([0]))]
    play.release(1)
    assert play.scheduler.tasks.live == 0


def test_a_part_of_a_submission_can_be_sent_again():
    play = Play("a")
    (a,) = play.workers
    scattered(play, 1, 2, 3)
    play.report(a, 0, 1, 2)
    b = play.came("b")
    assert only(play.left(a), Resend) == [(play.client, Resend([0, 1, 2]))]
    assert runs(play.from_client(again(1, b"xx", b"yyy"))) == {b: [1, 2]}
    assert play.states(0, 1, 2) == ["waiting", "sent", "sent"]
    assert runs(play.from_client(again(0, b"z", b"?", b"?"))) == {b: [0]}
    assert [args_of(play, n) for n in range(3)] == [b"z", b"xx", b"yyy"]


def test_what_comes_though_it_is_there_by_now_is_not_kept():
    play, b = lost_data()
    play.from_worker(b, Announce([(UUID, 0, 5, -1)], []))
    assert play.states(0, 1) == ["done", "sent"]
    tid = play.tid(0)
    assert play.from_client(again(0, b"again")) == [(play.client, Done([0], [tid], [5], [b], [None]))]
    assert args_of(play, 0) is AWAY


def test_a_client_that_was_away_when_it_was_asked_sends_all():
    play, b = lost_data()
    play.client = play.scheduler.client_came(UUID)
    said = play.from_client(
        Back([0, 1]), again(0, b"again"), Submit(1, [0], ["args 1"], [(0,)], bytes([WISH]), Options())
    )
    assert runs(said) == {b: [0, 1]}


def test_what_was_cancelled_while_it_was_asked_for_can_be_tried_again():
    play, b = lost_data()
    play.cancel(0)
    assert play.states(0, 1) == ["erred", "erred"]
    assert only(play.from_client(again(0, b"late")), Run) == []  # nobody needs it
    assert args_of(play, 0) is AWAY
    assert only(play.retry(1), Resend) == [(play.client, Resend([0]))]
    assert runs(play.from_client(again(0, b"again"))) == {b: [0, 1]}


def test_what_is_kept_has_failed_and_is_not_asked_for():
    play = Play("a")
    (a,) = play.workers
    assert runs(play.submit((), wanted=bytes([KEEP]), data=True)) == {}
    assert play.state(0) == "idle"
    assert runs(play.retry(0)) == {a: [0]}
    play.report(a, 0)
    play.cancel(0)  # too late
    assert play.state(0) == "done"
    play, _ = lost_data()
    play.cancel(0)
    said = play.from_client(again(0, b"again", wanted=KEEP))
    assert only(said, Resend) == only(said, Run) == []
    assert play.states(0, 1) == ["erred", "erred"]


def test_the_data_of_a_client_that_is_gone_is_lost():
    play = Play("a")
    (a,) = play.workers
    scattered(play, 5)
    play.report(a, 0)
    client = play.scheduler.clients.pop(play.client)  # as one would be whose data somebody else still wants
    play.scheduler.worker_left(a)
    play.scheduler.clients[play.client] = client
    error = Lost("data", "the workers that had it are gone, and so is the client that it came from")
    assert only(play.hear(), Erred) == [(play.client, Erred([0], [0], [error]))]


@pytest.mark.parametrize("claimed", [False, True])
def test_after_a_restart_it_comes_again_and_is_let_go_of_where_a_worker_has_it(claimed):
    play = Play("a", grace=1.0)
    (a,) = play.workers
    scattered(play, 5, 6)
    assert only(play.from_worker(a, Announce([(UUID, 0, 5, -1)] * claimed, [(UUID, 1, -2)])), Resend) == []
    play.now = 2.0
    assert runs(play.hear()) == ({} if claimed else {a: [0]})
    assert (args_of(play, 0) is AWAY) == claimed
    assert play.state(1) == "sent"
    assert play.scheduler.workers[a].due == (6 if claimed else 11)


def test_what_is_given_back_is_counted_no_more():
    play = Play("a", "b")
    a, b = play.workers
    scattered(play, 50, 60, workers=("a",))
    assert (play.scheduler.workers[a].due, play.scheduler.workers[b].due) == (110, 0)
    play.gave_back(a, 0)
    play.left(a)
    scattered(play, 7)
    assert play.scheduler.workers[b].due == 7
    assert sorted(play.scheduler.placing.stuck) == [play.slot(0), play.slot(1)]
