"""The client's machine."""

from __future__ import annotations

import pytest

from taskloom.core.client import FAILED, PENDING, READY, ClientMachine, Wish
from taskloom.core.messages import (
    KEEP,
    PIN,
    WISH,
    Back,
    Cancel,
    Done,
    Erred,
    ForgetFunctions,
    Functions,
    Options,
    Pending,
    Release,
    Resend,
    Retry,
    Status,
    Submit,
)

F, G = ("hash of f", b"f"), ("hash of g", b"g")
NONE = Options()


def machine():
    return ClientMachine(b"c" * 16)


def submit(client, *deps, wanted=None, functions=None, unpin=(0, 0)):
    count = len(deps)
    wanted = bytes([WISH]) * count if wanted is None else wanted
    return client.submit(functions or [F] * count, ["args"] * count, list(deps), wanted, NONE, unpin)


def block(first, *deps, wanted, unpin=(0, 0), functions=None):
    count = len(deps)
    return Submit(first, functions or [0] * count, ["args"] * count, list(deps), bytes(wanted), NONE, unpin)


def test_functions_go_once():
    client = machine()
    assert submit(client, (), (), functions=[F, G]) == (
        0,
        [Functions([0, 1], [b"f", b"g"]), block(0, (), (), wanted=[WISH, WISH], functions=[0, 1])],
    )
    assert submit(client, (0,), functions=[G]) == (2, [block(2, (0,), wanted=[WISH], functions=[1])])
    assert client.next_counter == 3


def call(client, *names):
    """A task each of these functions; counters, and the numbers of functions that the scheduler hears of, and is to forget."""
    first, said = submit(client, *[()] * len(names), functions=[(name, name) for name in names])
    return range(first, first + len(names)), told(said)


def told(said):
    came = [number for message in said if type(message) is Functions for number in message.numbers]
    return came, [number for message in said if type(message) is ForgetFunctions for number in message.numbers]


def test_functions_for_which_there_is_no_task_are_let_go_of_but_for_some():
    client = ClientMachine(b"c" * 16, spare=2)
    for n in range(4):
        counters, heard = call(client, n)
        assert heard == ([n], [])
        assert client.release(counters) == [Release([n])]
    _, heard = call(client, "kept")
    assert heard == ([4], [0, 1])  # two are kept that no task needs, and that of a task
    assert call(client, 3)[1] == ([], [])
    assert call(client, 0)[1] == ([5], [])  # under another number
    assert client.connected()[:2] == [Back([4, 5, 6], [3, 4, 5]), Functions([3, 4, 5], [3, "kept", 0])]


def test_functions_are_kept_while_there_are_tasks_of_them():
    client = ClientMachine(b"c" * 16, spare=0)
    counters, heard = call(client, *range(100))
    assert heard == (list(range(100)), [])
    assert client.release(counters[1:]) == [Release(list(range(1, 100)))]  # they are in one block with the first
    assert client.release(counters[:1]) == [Release([0]), ForgetFunctions(list(range(100)))]
    assert client.connected()[0] == Back([], [])


def test_functions_that_what_is_wanted_is_made_of_are_kept():
    client = ClientMachine(b"c" * 16, spare=0)
    submit(client, (), functions=[F])
    submit(client, (0,), functions=[G])
    assert client.release([0]) == [Release([0])]
    assert call(client, "h")[1] == ([2], [])
    assert client.connected()[1] == Functions([0, 1, 2], [b"f", b"g", "h"])


def test_a_function_that_is_called_again_and_again_stays_whatever_comes_in_between():
    client = ClientMachine(b"c" * 16, spare=4)
    sent, gone = [], []
    for n in range(100):
        for name in ("again", n):
            counters, (came, left) = call(client, name)
            sent += [name] * len(came)
            gone += left
            gone += told(client.release(counters))[1]
    assert sent.count("again") == 2  # it takes a first look to know which are called again
    assert [name for name in sent if name != "again"] == list(range(100))
    assert len(gone) > 90


def test_what_is_forgotten_while_no_scheduler_is_there_is_not_sent():
    client = ClientMachine(b"c" * 16, spare=5)
    for n in range(3):
        client.release(call(client, n)[0])
    call(client, "kept")
    assert client.connected()[:2] == [Back([3], [3]), Functions([3], ["kept"])]
    assert call(client, 0)[1] == ([4], [])


def test_counters_of_a_graph_are_its_own_whatever_comes_in_between():
    client = machine()
    base = client.reserve(3)
    assert submit(client, ())[0] == 3
    columns = [F, F], ["args"] * 2, [(), ()]
    assert client.submit(*columns, bytes([WISH, PIN]), NONE, first=base)[0] == 0
    assert client.submit([F], ["args"], [(1,)], bytes([WISH]), NONE, (0, 3), first=2)[0] == 2
    assert [message.first for message in client.connected() if type(message) is Submit] == [0, 2, 3, 4]
    assert client.connected()[0] == Back([0, 2, 3], [0])


def test_what_becomes_of_a_wish():
    client = machine()
    submit(client, (), ())
    assert client.wishes == {0: Wish(), 1: Wish()}
    assert client.handle([Done([0], [77], [8], [10], [None]), Erred([1], [0], ["error"])]) == [0, 1]
    assert client.wishes == {0: Wish(READY, 10, 77, 8), 1: Wish(FAILED, culprit=0, error="error")}
    assert client.handle([Pending([0])]) == [0]
    assert client.wishes[0].state == PENDING
    assert client.handle([Done([0], [77], [8], [11], ["value"])]) == [0]
    assert client.wishes[0] == Wish(READY, 11, 77, 8, "value")


def test_what_is_not_wanted_changes_nothing():
    client = machine()
    submit(client, ())
    assert client.release([0]) == [Release([0])]
    assert client.release([0]) == []
    assert client.handle([Done([0], [77], [8], [10], [None]), Erred([0], [0], ["error"]), Pending([0])]) == []
    assert client.wishes == {}


def test_messages_that_are_not_for_it():
    with pytest.raises(TypeError, match="no message for a client: Status"):
        machine().handle([Status(True, [])])


def test_cancel_and_retry():
    client = machine()
    submit(client, (), ())
    assert client.cancel([0, 1]) == [Cancel([0, 1])]
    assert client.retry([0, 1]) == []  # nothing has failed
    client.handle([Erred([0], [0], ["error"])])
    assert client.retry([0, 1, 5]) == [Retry([0])]
    assert client.wishes[0].state == PENDING


def test_a_scheduler_that_is_new_gets_what_is_wanted():
    client = machine()
    submit(client, (), (0,), (), (), wanted=b"\0\1\1\1")
    client.handle([Done([1, 2], [71, 72], [8, 8], [10, 10], [None, "small"]), Erred([3], [3], ["error"])])
    assert client.connected() == [
        Back([0], [0]),
        Functions([0], [b"f"]),
        block(0, (), (0,), (), (), wanted=[0, WISH, WISH, KEEP]),
        Submit(4, [], [], [], b"", NONE, (0, 4)),
    ]
    # where it was is of no use; what it is, is
    assert client.wishes == {
        1: Wish(),
        2: Wish(READY, -1, -1, 8, "small"),
        3: Wish(FAILED, culprit=3, error="error"),
    }


def test_what_a_later_block_needs_is_pinned_until_all_are_there():
    client = machine()
    submit(client, (), wanted=b"\1")
    submit(client, (0,), wanted=b"\1")
    client.release([0])
    assert client.connected() == [
        Back([0, 1], [0]),
        Functions([0], [b"f"]),
        block(0, (), wanted=[PIN]),
        block(1, (0,), wanted=[WISH]),
        Submit(2, [], [], [], b"", NONE, (0, 2)),
    ]


def test_half_a_graph_stays_pinned():
    """There is more to come, which needs it."""
    client = machine()
    submit(client, ())
    submit(client, (), (), wanted=bytes([PIN, WISH | PIN]))
    client.release([0])
    assert client.connected()[2:] == [
        block(0, (), wanted=[0]),
        block(1, (), (), wanted=[PIN, WISH | PIN]),
        Submit(3, [], [], [], b"", NONE, (0, 1)),
    ]
    submit(client, (1, 2), unpin=(1, 4))
    assert client.connected()[-2:] == [
        block(3, (1, 2), wanted=[WISH], unpin=(0, 0)),
        Submit(4, [], [], [], b"", NONE, (0, 4)),
    ]


def test_nor_is_it_forgotten_before():
    client = machine()
    submit(client, ())
    submit(client, (), wanted=bytes([PIN]))
    client.release([0])
    assert client.connected()[0] == Back([0, 1], [0])
    for _ in range(40):
        first, _ = submit(client, ())
        client.release([first])
    assert 1 in client.connected()[0].firsts


def test_submissions_are_forgotten_with_the_last_wish():
    client = machine()
    for _ in range(100):
        submit(client, ())
    client.release(range(99))
    assert client.connected()[0] == Back([99], [0])
    client.release([99])
    assert client.connected() == [Back([], []), Submit(100, [], [], [], b"", NONE, (0, 100))]


def test_but_not_what_others_are_made_of():
    client = machine()
    for n in range(100):
        submit(client, (n - 1,) if n else ())
    client.release(range(99))
    assert client.connected()[0] == Back(list(range(100)), [0])


# --- data that is lost


def scattered(client, *values):
    options = Options(data=True)
    return client.submit([F] * len(values), list(values), [()] * len(values), bytes([WISH]) * len(values), options)


def sent_again(first, *values, wanted):
    count = len(values)
    return Submit(first, [0] * count, list(values), [()] * count, bytes(wanted), Options(data=True))


def test_data_is_sent_again_when_the_scheduler_asks_for_it():
    client = machine()
    scattered(client, "a", "b", "c", "d")
    assert client.to_send() == []
    assert client.handle([Pending([1]), Resend([1, 3]), Resend([2])]) == [1]
    assert client.to_send() == [sent_again(1, "b", "c", "d", wanted=[WISH] * 3)]
    assert client.to_send() == []


def test_it_says_what_is_wanted_by_now():
    client = machine()
    scattered(client, "a", "b", "c")
    submit(client, (0,))
    client.handle([Resend([0, 1, 2])])
    client.handle([Erred([1], [1], ["error"])])
    client.release([0])
    assert client.to_send() == [sent_again(0, "a", "b", "c", wanted=[0, KEEP, WISH])]


def test_of_what_it_does_not_have_it_says_nothing():
    client = machine()
    assert client.handle([Resend([0, 5])]) == []
    assert client.to_send() == []
    scattered(client, "a", "b")
    client.handle([Resend([1, 2, 3, 9])])
    assert client.to_send() == [sent_again(1, "b", wanted=[WISH])]
    client.release([0, 1])
    client.handle([Resend([1])])
    assert client.to_send() == []


def test_of_several_submissions_each_is_answered_for():
    client = machine()
    scattered(client, "a", "b")
    scattered(client, "c", "d")
    client.handle([Resend([0, 1, 2])])
    assert client.to_send() == [sent_again(0, "a", "b", wanted=[WISH] * 2), sent_again(2, "c", wanted=[WISH])]


def test_who_connects_anew_sends_all_and_answers_nothing_else():
    client = machine()
    scattered(client, "a")
    client.handle([Resend([0])])
    assert [type(message) for message in client.connected()] == [Back, Functions, Submit, Submit]
    assert client.to_send() == []


def test_what_has_failed_and_is_needed_by_what_is_still_to_come_is_kept_and_pinned():
    """Else it would be forgotten with the wish, and the graph's next block would need what nobody knows."""
    client = machine()
    submit(client, (), (), wanted=bytes([WISH | PIN, WISH]))
    client.handle([Erred([0, 1], [0, 1], ["error"] * 2)])
    assert client.connected()[2] == block(0, (), (), wanted=[KEEP | PIN, KEEP])
