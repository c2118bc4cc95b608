"""Threads that run tasks: order, outcomes, batches, stopping, places given back; and that nothing is lost on the way."""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
import time
import traceback
import weakref
from collections import Counter

import pytest

from taskloom.node import executor as module
from taskloom.node.cell import NOBODY, RunningCells, read_running
from taskloom.node.executor import (
    CANCELLED,
    DONE,
    RAISED,
    STUCK,
    Executor,
    current_ticket,
    limit_numeric_threads,
    secede,
)


def until(condition, seconds=20.0):
    """Wait for something that will be so in a moment."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


class Loop:
    """Stands where the event loop does: is notified, and collects."""

    def __init__(self, *args, threads=1, **kwargs):
        self.news = threading.Event()
        self.notified = 0
        self.outcomes = []
        self.executor = Executor(threads, self.notify, *args, **kwargs)

    def notify(self):
        self.notified += 1
        self.news.set()

    def submit(self, *tasks):
        self.executor.submit([(ticket, ticket, function, arguments) for ticket, function, *arguments in tasks])

    def wait(self, count, seconds=20.0):
        """The outcomes from now on, as soon as there are so many, as {ticket: (kind, value)}."""
        deadline = time.monotonic() + seconds
        while len(self.outcomes) < count:
            assert self.news.wait(deadline - time.monotonic()), self.outcomes
            self.news.clear()
            self.outcomes += self.executor.collect()
        found, self.outcomes = self.outcomes, []
        return {ticket: (kind, value) for ticket, kind, value, _ in found}


@pytest.fixture
def make():
    """Executors whose threads are gone in the end, and whose counts are right."""
    made = []

    def make(*args, **kwargs):
        loop = Loop(*args, **kwargs)
        made.append(loop)
        return loop

    yield make
    for loop in made:
        executor = loop.executor
        until(lambda: not executor.running())
        assert executor.faults == 0
        assert executor.close() == []
        assert executor.size() == 0
        assert executor._serving == 0
        assert sorted(executor._numbers) == list(range(executor.most))
        assert not executor._clerk.is_alive()
        assert set(executor._words) == {NOBODY}


class Gate:
    """A task that waits in small steps of Python until it is let go."""

    def __init__(self):
        self.began = threading.Event()
        self.open = False

    def __call__(self, value=None):
        self.began.set()
        while not self.open:
            time.sleep(0.0005)
        return value

    def loop(self):
        while not self.open:
            pass


# --- running


def test_tasks_run_in_the_order_in_which_they_came(make):
    loop = make()
    ran = []
    loop.submit(*[(n, ran.append, n) for n in range(100)])
    loop.submit(*[(n, ran.append, n) for n in range(100, 200)])
    assert set(loop.wait(200).values()) == {(DONE, None)}
    assert ran == list(range(200))


def test_outcomes_come_in_the_order_of_their_ends_with_values_and_times(make):
    loop = make()
    loop.submit((1, sum, [1, 2]), (2, time.sleep, 0.01), (3, str, 5))
    until(lambda: loop.outcomes.extend(loop.executor.collect()) or len(loop.outcomes) == 3)
    assert [(ticket, kind, value) for ticket, kind, value, _ in loop.outcomes] == [
        (1, DONE, 3),
        (2, DONE, None),
        (3, DONE, "5"),
    ]
    assert loop.outcomes[1][3] >= 0.01
    assert all(seconds >= 0 for *_, seconds in loop.outcomes)


def test_an_error_is_the_outcome_of_its_task_and_of_no_other(make):
    loop = make()

    def fails(error):
        raise error

    errors = [ValueError("v"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()]
    loop.submit(*[(n, fails, error) for n, error in enumerate(errors)], (9, sum, [1]))
    found = loop.wait(5)
    assert found[9] == (DONE, 1)
    for n, error in enumerate(errors):
        assert found[n] == (RAISED, error)
        names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        assert names == ["fails"]  # none of ours


def test_a_task_that_cannot_be_called_has_raised(make):
    loop = make()
    loop.submit((1, None), (2, len))
    found = loop.wait(2)
    assert [type(found[n][1]) for n in (1, 2)] == [TypeError, TypeError]


def test_as_many_run_at_a_time_as_there_are_threads(make):
    loop = make(threads=3)
    barrier = threading.Barrier(3, timeout=20)
    loop.submit(*[(n, barrier.wait) for n in range(9)])
    found = loop.wait(9)
    assert {kind for kind, _ in found.values()} == {DONE}
    assert loop.executor.size() == 3


def test_threads_are_made_when_they_are_needed_and_have_names(make):
    loop = make(threads=3, name="wool")
    assert loop.executor.size() == 0
    loop.submit((1, lambda: (threading.current_thread().name, threading.current_thread().daemon)))
    assert loop.wait(1)[1] == (DONE, ("wool-1", True))
    assert loop.executor.size() == 1


def test_each_task_has_a_context_of_its_own(make):
    variable = contextvars.ContextVar("variable", default="nothing")
    variable.set("of the maker")
    loop = make()
    variable.set("later")

    def change(to):
        before = variable.get()
        variable.set(to)
        return before

    loop.submit((1, change, "a"), (2, change, "b"))
    assert loop.wait(2) == {1: (DONE, "of the maker"), 2: (DONE, "of the maker")}


def test_a_task_knows_its_ticket_and_so_do_threads_with_its_context(make):
    loop = make()

    def ask():
        context = contextvars.copy_context()
        found = []
        thread = threading.Thread(target=context.run, args=(lambda: found.append((current_ticket(), secede())),))
        thread.start()
        thread.join()
        return current_ticket(), found

    loop.submit((7, ask))
    assert loop.wait(1)[7] == (DONE, (7, [(7, False)]))
    assert current_ticket() is None


def test_nothing_of_a_task_is_kept_alive_by_its_thread(make):
    class Thing:
        pass

    loop = make()
    thing, other = Thing(), Thing()
    refs = [weakref.ref(thing), weakref.ref(other)]

    def fails(it):
        raise ValueError

    loop.submit((1, lambda it: Thing(), thing), (2, fails, other))
    del thing, other
    found = loop.wait(2)
    refs.append(weakref.ref(found[1][1]))
    found.clear()
    gc.collect()
    until(lambda: [ref() for ref in refs] == [None] * 3)


def test_prepare_and_finish_are_in_the_thread_and_their_errors_are_the_tasks(make):
    def prepare(ticket, function, arguments):
        assert current_ticket() == ticket
        if function == "unknown":
            raise LookupError(function)
        return sum, ([*arguments, 10],)

    def finish(ticket, value, seconds):
        assert current_ticket() == ticket
        assert seconds >= 0
        if value > 100:
            raise OverflowError(value)
        return threading.current_thread().name, value

    loop = make(prepare=prepare, finish=finish, name="wool")
    loop.submit((1, "add", 1, 2), (2, "unknown"), (3, "add", 100))
    found = loop.wait(3)
    assert found[1] == (DONE, ("wool-1", 13))
    assert [(kind, type(value)) for kind, value in (found[2], found[3])] == [
        (RAISED, LookupError),
        (RAISED, OverflowError),
    ]


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="threads is a whole number of 1 or more, not 0"):
        Executor(0, print)
    with pytest.raises(ValueError, match="most is at least threads, 4, not 3"):
        Executor(4, print, most=3)


# --- batches


def test_a_batch_is_one_wake_up_and_few_reports(make):
    loop = make()
    loop.submit(*[(n, int) for n in range(10_000)])
    loop.wait(10_000)
    # once a millisecond at most, and the notice of a batch that was collected already when its report came
    assert loop.notified <= 2000


def test_a_result_is_reported_while_the_next_task_lasts(make):
    loop = make()
    gate = Gate()
    loop.submit((1, int), (2, int), (3, gate))
    assert loop.wait(2) == {1: (DONE, 0), 2: (DONE, 0)}
    gate.open = True
    assert loop.wait(1) == {3: (DONE, None)}


def test_a_result_is_reported_though_a_lasting_task_was_handed_in_just_when_it_ended(make):
    loop = make()
    for n in range(0, 600, 2):
        gate = Gate()
        loop.submit((n, int))
        loop.submit((n + 1, gate))
        assert loop.wait(1) == {n: (DONE, 0)}
        gate.open = True
        loop.wait(1)


def test_a_loop_that_is_closed_does_not_matter():
    def notify():
        raise RuntimeError("Event loop is closed")

    executor = Executor(1, notify)
    executor.submit([(1, 1, int, ())])
    until(executor.collect)
    assert executor.close() == []
    assert executor.faults == 0


# --- cancel


def test_a_task_in_python_code_is_stopped(make):
    loop = make()
    gate = Gate()
    loop.submit((1, gate), (2, int))
    assert gate.began.wait(20)
    loop.executor.stop([1])
    assert loop.wait(2) == {1: (CANCELLED, None), 2: (DONE, 0)}


def test_finally_blocks_of_a_stopped_task_run(make):
    loop = make()
    gate = Gate()
    done = []

    def task():
        try:
            gate()
        finally:
            done.append(1)

    loop.submit((1, task))
    assert gate.began.wait(20)
    loop.executor.stop([1])
    assert loop.wait(1) == {1: (CANCELLED, None)}
    assert done == [1]


def test_a_queued_task_is_cancelled_at_once(make):
    loop = make()
    gate = Gate()
    ran = []
    loop.submit((1, gate), *[(n, ran.append, n) for n in range(2, 10)])
    assert gate.began.wait(20)
    loop.executor.stop([3, 5, 99])
    assert loop.wait(2) == {3: (CANCELLED, None), 5: (CANCELLED, None)}
    gate.open = True
    assert len(loop.wait(7)) == 7
    assert ran == [2, 4, 6, 7, 8, 9]


def test_unknown_and_ended_tickets_do_not_matter(make):
    loop = make(threads=2)
    loop.submit((1, int))
    loop.wait(1)
    loop.executor.stop([])
    loop.executor.stop([1, 2, "three", None, (4, 5)])
    loop.submit((6, int))
    assert loop.wait(1) == {6: (DONE, 0)}


def test_no_cancel_is_lost_between_the_queue_and_the_thread(make):
    """Each task would run for ever."""
    loop = make(patience=60)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for n in range(1000):
            loop.submit((n, Gate().loop))
            for _ in range(n % 40):
                pass
            loop.executor.stop([n])
            assert loop.wait(1) == {n: (CANCELLED, None)}
    finally:
        sys.setswitchinterval(before)


def test_a_task_that_swallows_the_first_strikes_is_struck_again(make):
    loop = make()
    caught = []

    def stubborn():
        while True:
            try:
                while True:
                    time.sleep(0.0005)
            except BaseException as error:
                caught.append(type(error).__name__)
                if len(caught) == module.STRIKES:
                    raise

    loop.submit((1, stubborn))
    until(loop.executor.running)
    loop.executor.stop([1])
    loop.executor.stop([1])
    assert loop.wait(1) == {1: (CANCELLED, None)}
    assert caught == ["_Stopped"] * module.STRIKES


def test_a_stop_while_another_one_is_being_handled(make):
    """The task is in its finally block, and is told again."""
    loop = make()
    gate, inner = Gate(), Gate()

    def task():
        try:
            gate()
        finally:
            inner()

    loop.submit((1, task), (2, int))
    assert gate.began.wait(20)
    loop.executor.stop([1])
    assert inner.began.wait(20)
    loop.executor.stop([1])
    assert loop.wait(2) == {1: (CANCELLED, None), 2: (DONE, 0)}


def test_a_task_that_swallows_all_strikes_is_reported_as_stuck_once_and_ends_some_day(make):
    loop = make(patience=0.02)
    over = threading.Event()

    def deaf():
        while not over.is_set():
            try:
                while not over.is_set():
                    time.sleep(0.0005)
            except BaseException:
                pass
        return "at last"

    loop.submit((1, deaf))
    until(loop.executor.running)
    loop.executor.stop([1])
    assert loop.wait(1) == {1: (STUCK, None)}
    until(lambda: loop.executor.strikes == module.STRIKES)
    loop.executor.stop([1])
    over.set()
    assert loop.wait(1) == {1: (DONE, "at last")}


def test_native_code_that_does_not_return_is_reported_as_stuck(make):
    loop = make(patience=0.02)
    lock = threading.Lock()
    lock.acquire()
    loop.submit((1, lock.acquire), (2, int))
    until(loop.executor.running)
    loop.executor.stop([1])
    assert loop.wait(1) == {1: (STUCK, None)}
    lock.release()
    # it had returned before the exception was raised, which nobody gets to see
    assert loop.wait(2)[2] == (DONE, 0)
    assert loop.executor.size() == 1


@pytest.mark.parametrize("wrap", ["cause", "context", "group"])
def test_what_is_raised_on_account_of_a_stop_is_a_stop(make, wrap):
    loop = make()
    gate = Gate()

    def task():
        try:
            gate()
        except BaseException as error:
            if wrap == "cause":
                raise RuntimeError("wrapped") from error
            if wrap == "context":
                raise RuntimeError("wrapped")
            raise BaseExceptionGroup("wrapped", [ValueError(), error]) from None

    loop.submit((1, task))
    assert gate.began.wait(20)
    loop.executor.stop([1])
    assert loop.wait(1) == {1: (CANCELLED, None)}


def test_a_task_that_ends_otherwise_after_a_stop_has_ended_so(make):
    loop = make()
    gate = Gate()

    def task():
        try:
            gate()
        except BaseException:
            pass
        raise ValueError("its own")

    loop.submit((1, task))
    assert gate.began.wait(20)
    loop.executor.stop([1])
    kind, value = loop.wait(1)[1]
    assert (kind, str(value)) == (RAISED, "its own")


class Noisy:
    """Runs Python code whenever one of its kind goes, where an exception can only be printed and forgotten."""

    def __del__(self):
        for _ in range(50):
            pass


def test_a_strike_that_python_forgets_is_made_again(make, monkeypatch):
    seen = []
    hook = module._hook_before
    monkeypatch.setattr(module, "_hook_before", lambda about: seen.append(about) or hook(about))
    loop = make(patience=60)

    def task():
        while True:
            Noisy()

    for n in range(20):
        loop.submit((n, task))
        until(loop.executor.running)
        loop.executor.stop([n])
        assert loop.wait(1) == {n: (CANCELLED, None)}
    assert loop.executor.strikes > 20  # most were raised in there
    assert not seen  # nothing was printed


def test_a_task_can_stop_another_and_itself(make):
    loop = make(threads=2)
    gate = Gate()

    def stop_all():
        gate.began.wait(20)
        loop.executor.stop([1, 2])
        Gate()()

    loop.submit((1, gate), (2, stop_all))
    assert loop.wait(2) == {1: (CANCELLED, None), 2: (CANCELLED, None)}


def spin_until(event):
    """In Python code all the time: any exception that is pending would be raised."""
    deadline = time.monotonic() + 20
    while not event.is_set():
        assert time.monotonic() < deadline


def test_preparing_is_not_interrupted(make):
    begun, go = threading.Event(), threading.Event()
    prepared = []

    def prepare(ticket, function, arguments):
        begun.set()
        spin_until(go)
        prepared.append(ticket)
        return function, arguments

    loop = make(prepare=prepare)
    loop.submit((1, Gate()))
    assert begun.wait(20)
    loop.executor.stop([1])
    until(lambda: 1 in loop.executor._stopping)
    assert loop.executor.strikes == 0
    go.set()
    assert loop.wait(1) == {1: (CANCELLED, None)}  # as soon as it had begun
    assert prepared == [1]


def test_finishing_is_not_interrupted(make):
    begun, go = threading.Event(), threading.Event()

    def finish(ticket, value, seconds):
        begun.set()
        spin_until(go)
        return "finished"

    loop = make(finish=finish)
    loop.submit((1, int))
    assert begun.wait(20)
    loop.executor.stop([1])
    until(lambda: 1 in loop.executor._stopping)
    go.set()
    assert loop.wait(1) == {1: (DONE, "finished")}
    assert loop.executor.strikes == 0


# --- places given back


def test_a_task_that_secedes_makes_room_for_another(make):
    loop = make()
    gates = [Gate(), Gate(), Gate()]

    def task(gate):
        assert secede()
        gate()

    loop.submit(*[(n, task, gate) for n, gate in enumerate(gates)], (3, int))
    assert loop.wait(1) == {3: (DONE, 0)}  # all three run beside it
    assert sorted(loop.executor.running()) == [0, 1, 2]
    assert loop.executor.size() == 4
    for gate in gates:
        gate.open = True
    assert len(loop.wait(3)) == 3
    until(lambda: loop.executor.size() == 1)  # the others have gone
    loop.submit((4, int))
    assert loop.wait(1) == {4: (DONE, 0)}


def test_a_task_that_has_seceded_can_be_stopped(make):
    loop = make()
    gate = Gate()

    def task():
        secede()
        secede()
        gate()

    loop.submit((1, task), (2, int))
    assert loop.wait(1) == {2: (DONE, 0)}
    loop.executor.stop([1])
    assert loop.wait(1) == {1: (CANCELLED, None)}


def test_there_are_never_more_threads_than_allowed(make):
    loop = make(most=3)
    gates = [Gate() for _ in range(3)]

    def task(gate):
        secede()
        gate()

    loop.submit(*[(n, task, gate) for n, gate in enumerate(gates)], (3, int))
    until(lambda: all(gate.began.is_set() for gate in gates))
    assert loop.executor.size() == 3
    gates[1].open = True
    assert set(loop.wait(2)) == {1, 3}
    for gate in gates:
        gate.open = True
    loop.wait(2)


def test_seceding_just_when_the_task_ends(make):
    loop = make(threads=2)
    loop.submit(*[(n, secede) for n in range(5000)])
    assert Counter(loop.wait(5000).values()) == {(DONE, True): 5000}
    gates = [Gate(), Gate()]  # two places are left, not more and not less
    loop.submit((-1, gates[0]), (-2, gates[1]), (-3, int))
    assert all(gate.began.wait(20) for gate in gates)
    until(lambda: loop.executor._serving == 2 and not loop.executor._requests)
    for gate in gates:
        gate.open = True
    loop.wait(3)


# --- the end


def test_close_cancels_what_is_queued_stops_what_runs_and_tells_what_it_could_not():
    loop = Loop(threads=2, patience=60)
    gate = Gate()
    lock = threading.Lock()
    lock.acquire()
    loop.submit((1, gate), (2, lock.acquire), (3, int), (4, int))
    assert gate.began.wait(20)
    until(lambda: len(loop.executor.running()) == 2)
    assert loop.executor.close(timeout=0.3) == [2]
    found = {ticket: kind for ticket, kind, _, _ in loop.executor.collect()}
    assert found == {1: CANCELLED, 3: CANCELLED, 4: CANCELLED}
    with pytest.raises(RuntimeError, match="closed"):
        loop.submit((5, int))
    lock.release()
    until(lambda: loop.executor.size() == 0)


def test_a_thread_that_comes_back_after_all_was_closed_ends_quietly(tmp_path):
    cells = RunningCells(str(tmp_path / "cells"), 2)
    loop = Loop(cells=cells, most=2)
    lock = threading.Lock()
    lock.acquire()
    loop.submit((1, lock.acquire))
    until(loop.executor.running)
    thread = loop.executor._slots[0].thread
    assert loop.executor.close(timeout=0.05) == [1]
    cells.close()
    lock.release()
    thread.join(20)
    assert not thread.is_alive()
    assert loop.executor.faults == 0


# --- cells


def test_the_cells_hold_what_runs(make, tmp_path):
    path = str(tmp_path / "cells")
    cells = RunningCells(path, 4)
    loop = make(threads=2, most=4, cells=cells)
    gates = [Gate(), Gate()]
    loop.submit((11, gates[0]), (12, gates[1]))
    assert all(gate.began.wait(20) for gate in gates)
    assert sorted(read_running(path).tids) == [11, 12]
    gates[0].open = True
    loop.wait(1)
    until(lambda: read_running(path).tids == [12])
    gates[1].open = True
    loop.wait(1)
    until(lambda: read_running(path).tids == [])


def test_too_few_cells_are_refused(tmp_path):
    cells = RunningCells(str(tmp_path / "cells"), 2)
    with pytest.raises(ValueError, match="has 2 cells, and there may be 66 threads"):
        Executor(2, print, cells=cells)
    cells.close()


# --- numeric libraries


def test_numeric_threads_are_set_where_nobody_has(monkeypatch):
    monkeypatch.setattr("taskloom.system.cpu_count", lambda: 8)
    monkeypatch.setattr("os.environ", {"OMP_NUM_THREADS": "3"})
    set_now = limit_numeric_threads(4)
    assert set_now["OPENBLAS_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in set_now


def test_what_no_thread_has_taken_can_be_withdrawn():
    began, go = threading.Event(), threading.Event()

    def hold():
        began.set()
        go.wait(20)

    news = threading.Event()
    executor = Executor(1, news.set)
    executor.submit([(n, n, hold if n == 0 else int, ()) for n in range(5)])
    assert began.wait(20)
    assert executor.withdraw([0, 3, 9]) == [3]
    assert executor.withdraw([3]) == []
    go.set()
    ended = []
    while len(ended) < 4:
        assert news.wait(20)
        news.clear()
        ended += [ticket for ticket, *_ in executor.collect()]
    assert ended == [0, 1, 2, 4]
    assert executor.close() == []
