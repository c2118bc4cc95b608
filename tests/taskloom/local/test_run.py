"""The run state and its loop, stepped through by hand."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from taskloom.graph.compile import compile_graph
from taskloom.local.run import ABANDONED, DONE, WANTED_ELSEWHERE, Run, evaluate, function_name, make, name_of, work


def inc(x):
    return x + 1


def run_of(graph, keys, workers=1, callbacks=None):
    run = Run(compile_graph(graph, keys), "threads", workers, callbacks, threading.RLock())
    run.tickets = 1
    return run


def is_free(lock):
    """Whether no thread holds it; asked by another one, as an RLock lets its holder in again."""
    answers = []

    def ask():
        free = lock.acquire(blocking=False)
        if free:
            lock.release()
        answers.append(free)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return answers[0]


CHAIN = {"a": 1.5, "b": (inc, "a"), "c": (inc, "b")}


def test_a_ticket_is_handed_in_and_all_is_done():
    run = run_of(CHAIN, "c")
    assert work(run) == DONE
    assert (run.active, run.tickets, run.left, run.ready, run.error) == (0, 0, 0, 0, None)
    assert run.values == [3.5, None, None]  # released but for what is wanted
    assert run.outcome() == 3.5
    assert is_free(run.lock)


@pytest.mark.parametrize("reason", ["stopped", "nothing ready", "enough threads"])
def test_a_ticket_too_late(reason):
    run = run_of(CHAIN, "c", workers=2)
    if reason == "stopped":
        run.stopped = True
    elif reason == "nothing ready":
        run.ready = 0
    else:
        run.active = 2
    active = run.active
    assert work(run) == DONE
    assert (run.tickets, run.active, run.left) == (0, active, 3)
    assert is_free(run.lock)


def test_tasks_that_become_ready_behind_the_cursor_come_first():
    order = []
    graph = {"s": (lambda: None,), "t": (lambda s: order.append("t"), "s")}
    graph |= {f"u{i}": (partial(order.append, f"u{i}"),) for i in range(3)}
    graph["all"] = (lambda *args: None, "t", "u0", "u1", "u2")
    run = run_of(graph, "all")
    plan = run.plan
    # somebody else takes "s"; what comes after it in the order is passed over
    s = plan.keys.index("s")
    assert plan.order[0] == s
    run.ready -= 1
    run.cursor = 1
    run.workers = 2
    run.active = 1
    seen = []

    def help_wanted():
        # the first time that the loop has taken one: "s" has ended meanwhile
        if not seen:
            seen.append(1)
            with run.lock:
                t = plan.keys.index("t")
                run.waiting[t] = 0
                run.ready += 1
                run.left -= 1
                if run.positions[t] < run.cursor:
                    from heapq import heappush

                    heappush(run.late, run.positions[t])
        with run.lock:
            run.tickets -= 1

    run.help = help_wanted
    run.active = 0
    work(run)
    assert seen
    assert sorted(order) == ["t", "u0", "u1", "u2"]
    assert run.left == 0
    assert order.index("t") <= 1


def test_help_is_asked_for_only_while_there_is_more_and_as_many_as_may_be():
    graph: dict = {("x", i): (inc, i * 1.0) for i in range(10)}
    run = run_of(graph, list(graph), workers=3)
    asked = []

    def help_wanted():
        assert is_free(run.lock)
        asked.append((run.ready, run.active, run.tickets))

    run.help = help_wanted
    work(run)
    # two tickets that nobody came for; never more
    assert asked == [(9, 1, 1), (8, 1, 2)]
    assert run.left == 0
    run = run_of(CHAIN, "c", workers=3)
    run.help = help_wanted
    asked.clear()
    work(run)
    assert asked == []


def test_an_error_stops_it_and_the_first_one_counts():
    def fails():
        raise ValueError("mine")

    run = run_of({"x": (fails,), "y": (fails,)}, ["x", "y"])
    assert work(run) == DONE
    assert run.stopped
    assert run.failed_key == "x"
    assert (run.active, run.left) == (0, 2)
    first = run.error
    run.fail("y", ValueError("another"))
    assert run.error is first
    with pytest.raises(ValueError, match="mine") as caught:
        run.outcome()
    assert caught.value.__notes__ == ["raised in the task 'x'"]


def test_nothing_is_booked_once_it_is_stopped():
    def task():
        with run.lock:
            run.stopped = run.abandoned = True
        return 1

    run = run_of({"x": (task,), "y": (inc, "x")}, "y")
    assert work(run) == ABANDONED
    assert (run.left, run.active, run.error) == (2, 0, None)
    assert run.values == [None, None]


def test_an_error_of_what_was_given_up_is_nobodys():
    def task():
        run.stopped = run.abandoned = True
        raise ValueError

    run = run_of({"x": (task,)}, "x")
    assert work(run) == ABANDONED
    assert run.error is None


def test_a_thread_that_is_wanted_elsewhere_goes_between_two_tasks():
    graph: dict = {("x", i): (inc, i * 1.0) for i in range(5)}
    run = run_of(graph, list(graph), workers=1)
    asked = []

    def elsewhere(which, since):
        assert which is run
        asked.append(since)
        return len(asked) == 3

    assert work(run, elsewhere) == DONE  # alone: nobody asks
    assert asked == []
    run = run_of(graph, list(graph), workers=1)
    run.shared = True
    assert work(run, elsewhere) == WANTED_ELSEWHERE
    assert (run.left, run.ready, run.active, run.tickets) == (3, 3, 0, 1)
    assert work(run, elsewhere) == DONE
    assert run.left == 0


def test_an_interruption_of_our_own_lines_lets_the_lock_go():
    # heappush, the callbacks, the help: whatever a line of ours may raise, here where the lock is held
    def elsewhere(which, since):
        raise KeyboardInterrupt

    run = run_of(CHAIN, "c")
    run.shared = True
    assert work(run, elsewhere) == DONE
    assert type(run.error) is KeyboardInterrupt
    assert run.failed_key is None
    assert (run.active, run.stopped) == (0, True)
    assert is_free(run.lock)


def test_forgetting():
    run = run_of(CHAIN, "c")
    work(run)
    values = run.values
    run.forget()
    run.forget()
    assert values == []
    run.tickets = 1
    assert work(run) == DONE  # a thread that comes late
    assert run.tickets == 0


def test_programs():
    graph = {"x": 2, "y": [(inc, (inc, "x")), ["x", ["x", 5.5]], (dict,), (inc, (len, [[], "x"]))]}
    plan = compile_graph(graph, "y")
    (i,) = plan.outputs
    (x,) = set(plan.deps[i])
    assert evaluate(plan.specs[i], {x: 2}) == [4, [2, [2, 5.5]], {}, 3]
    assert make(plan.tasks[i], plan.specs[i], plan.deps[i], {x: 7})[1] == [7, [7, 5.5]]


class Callable:
    def __call__(self):
        return 1

    def method(self):
        return 2


def test_names():
    assert name_of(inc) == "inc"
    assert name_of(partial(partial(inc), 1)) == "inc"
    assert name_of(Callable()) == "Callable"
    assert name_of(Callable().method) == "Callable.method"
    assert name_of(len) == "len"
    graph = {"v": 1, "l": ["v"], "t": (inc, "v"), "p": (partial(inc, 1),), "a": "t"}
    plan = compile_graph(graph, list(graph))
    assert [function_name(plan, i) for i in plan.outputs[:4]] == ["literal", "list", "inc", "inc"]
