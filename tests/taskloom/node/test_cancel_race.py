"""Cancels that come at the worst moment.

Each task ends exactly once; a task that nobody cancelled is never cancelled and has its own value or error; no thread of the
executor dies. Four ways to look for the moment that breaks this:

- as users do: tasks of random tiny durations, and ``stop`` from another thread, with one and with several threads (half of
  the cancels);
- a clerk that strikes without pause, as soon as any thread is at a task that may be struck;
- tasks that strike themselves with their last instruction, so that each exception is pending when the call returns (the
  other half);
- one after the other, each single instruction of the code that runs tasks: the exception is raised there.

``TASKLOOM_CANCELS=1000000`` sets how many cancels are tried; that many take one to two minutes.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections import Counter, deque

import pytest

from taskloom.node import executor as module
from taskloom.node.executor import CANCELLED, DONE, RAISED, Executor

CANCELS = int(os.environ.get("TASKLOOM_CANCELS", "20000"))


def spin(n):
    x = 0
    for i in range(n):
        x += i
    return x


def raises(n):
    spin(n)
    raise ValueError(n)


def swallows(n):
    try:
        spin(n)
    except BaseException:
        pass
    return spin(n)


def cleans_up(n):
    try:
        return spin(n)
    finally:
        spin(n // 2)


def native(n):
    return sum(range(n))


def recurs(n):
    return 0 if n <= 0 else 1 + recurs(min(n, 3000) - 10)


KINDS = [spin, raises, swallows, cleans_up, native, recurs]


def may_be_cancelled(ticket):
    return ticket % 4 != 0


class Book:
    """Hands in tasks, and checks what becomes of them."""

    def __init__(self, executor, seed, mean):
        self.executor = executor
        self.random = random.Random(seed)
        self.mean = mean
        self.sent = 0
        self.open = {}  # ticket -> (function, n)
        self.count = Counter()

    def hand_in(self, count):
        batch = []
        for ticket in range(self.sent, self.sent + count):
            function, n = self.random.choice(KINDS), int(self.random.expovariate(1 / self.mean))
            self.open[ticket] = function, n
            batch.append((ticket, ticket, function, (n,)))
        self.sent += count
        self.executor.submit(batch)

    def collect(self):
        for ticket, kind, value, _ in self.executor.collect():
            function, n = self.open.pop(ticket)  # KeyError: it has ended twice
            self.count[kind] += 1
            if kind == CANCELLED:
                assert may_be_cancelled(ticket)
            elif kind == RAISED:
                assert function is raises
                assert repr(value) == f"ValueError({n})"
            else:
                assert kind == DONE
                assert function is not raises
                if function in (spin, native, cleans_up):
                    assert value == n * (n - 1) // 2


@pytest.fixture
def switching(request):
    """Threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    yield sys.setswitchinterval
    sys.setswitchinterval(before)


def check_end(executor):
    assert executor.faults == 0
    assert executor.close(timeout=20) == []
    assert executor.size() == 0
    assert executor._serving == 0
    assert len(executor._numbers) == executor.most


@pytest.mark.timeout(600)
@pytest.mark.parametrize("threads", [1, 3])
def test_cancels_from_another_thread(threads, switching):
    switching(1e-5)
    executor = Executor(threads, lambda: None, patience=60)
    book = Book(executor, seed=threads, mean=1000)
    cancels = 0
    while True:
        more = cancels < CANCELS // 4 or executor.strikes < CANCELS // 400
        if more and len(book.open) < 300:
            book.hand_in(200)
        elif not book.open:
            break
        running = [ticket for ticket in executor.running() if may_be_cancelled(ticket)]
        nearly = [ticket for ticket in list(book.open)[:12] if may_be_cancelled(ticket)]
        tickets = {*running, *nearly[book.random.randrange(10) :]}
        executor.stop(tickets)
        cancels += len(tickets)
        book.collect()
        time.sleep(book.random.choice([0, 0, 0, 1e-5]))
    assert book.count[CANCELLED]
    check_end(executor)


class Hunter(Executor):
    """Its clerk does nothing but strike, and at once again if the task still runs."""

    def _tend(self):
        while not self._ended:
            for slot in self._slots:
                ticket = slot.ticket
                if type(ticket) is int and may_be_cancelled(ticket) and ticket not in self._stopping:
                    entry = self._stopping[ticket] = module._Stopping(slot, 0.0)
                    entry.told = True
            self._strike(time.perf_counter())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mean", [30, 300])
def test_strikes_without_pause(mean, switching, monkeypatch):
    monkeypatch.setattr(module, "_WAITS", (0.0, 0.0))
    switching(1e-6)
    executor = Hunter(1, lambda: None)
    book = Book(executor, seed=mean, mean=mean)
    strikes = CANCELS // 200
    while executor.strikes < strikes or book.open:
        if executor.strikes < strikes and len(book.open) < 1000:
            book.hand_in(1000)
        book.collect()
        time.sleep(0)
    assert book.count[CANCELLED] >= strikes / module.STRIKES / 2
    check_end(executor)


def test_tasks_that_strike_themselves(switching):
    """Each exception is set in the call, as the clerk does it, and in many of them not yet raised at its end."""
    executor = Executor(1, lambda: None)
    executor.submit([(-1, -1, int, ())])
    while not executor.collect():
        time.sleep(0)
    (slot,) = executor._slots
    stopped, set_pending = module._Stopped, module._set_pending
    ident = slot.ident

    def last():
        slot.strikes += 1
        set_pending(ident, stopped)

    def native_last():  # the interpreter runs no Python code between this and the return
        slot.strikes += 1
        return set_pending

    def raising():
        slot.strikes += 1
        try:
            raise ValueError
        finally:
            set_pending(ident, stopped)

    def thrice():
        for _ in range(module.STRIKES):
            slot.strikes += 1
            try:
                set_pending(ident, stopped)
                for _ in range(5):
                    pass
            except BaseException:
                pass

    def replaced():
        slot.strikes += 2
        set_pending(ident, stopped)
        set_pending(ident, stopped)

    kinds = [last, raising, thrice, replaced, native_last]
    batch = []
    for ticket in range(CANCELS):
        if ticket % 2:
            batch.append((ticket, ticket, int, ()))
        elif ticket % 4:
            batch.append((ticket, ticket, kinds[ticket // 4 % len(kinds)], ()))
        else:  # the call of native code itself leaves it pending
            batch.append((ticket, ticket, _Strikes(slot, ident), ()))
    executor.submit(batch)
    count = Counter()
    seen = bytearray(CANCELS)
    while count.total() < CANCELS:
        for ticket, kind, _, _ in executor.collect():
            assert not seen[ticket]
            seen[ticket] = 1
            count[kind] += 1
            if ticket % 2:
                assert kind == DONE
        time.sleep(0)
    assert count[CANCELLED] >= CANCELS // 8
    check_end(executor)


class _Strikes:
    def __init__(self, slot, ident):
        self.slot = slot
        self.ident = ident

    def __call__(self):
        self.slot.strikes += 1
        return module._set_pending(self.ident, module._Stopped)


class Striker:
    """Strikes a thread at its n-th instruction in the code that runs tasks, counted from when a task begins to be prepared.

    The instruction is found by a trace function, which runs in the thread and is between two instructions then. It asks
    another thread, which does as the clerk does. The exception is raised as soon as the trace function goes on, so
    exactly there, also where the interpreter itself would not look.
    """

    def __init__(self, at):
        self.at = at
        self.seen = 0
        self.struck = False
        self.where = None
        self.slot = None
        self.ask, self.answer = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self.strike)
        self.thread.start()

    def strike(self):
        self.ask.acquire()
        slot = self.slot
        if slot is not None and slot.gate.acquire(blocking=False):
            assert slot.ticket == 1
            module._set_pending(slot.ident, module._Stopped)
            slot.strikes += 1
            self.struck = True
            slot.gate.release()
        self.answer.release()

    def trace(self, frame, event, argument):
        frame.f_trace_opcodes = True
        if self.slot.ticket != 1:  # that was all
            sys.settrace(None)
            frame.f_trace = None
            return None
        if event == "opcode" or event == "call":
            self.seen += 1
            if self.seen == self.at:
                self.where = frame.f_code.co_name, frame.f_lasti
                sys.settrace(None)
                frame.f_trace = None
                self.ask.release()
                self.answer.acquire()
                self.spin()
        return self.trace

    @staticmethod
    def spin():
        for _ in range(3):
            pass


@pytest.mark.parametrize("function", [native, raises, spin, cleans_up])
def test_each_instruction(function):
    """An exception at any instruction from where a task is prepared to where its outcome is reported."""
    codes = {Executor._serve.__code__, module._shut.__code__}
    outcomes = Counter()
    places = set()
    at = 1
    while True:
        striker = Striker(at)

        def prepare(ticket, function, arguments, striker=striker):
            if ticket == 1:
                frame = sys._getframe()
                while frame.f_code is not Executor._serve.__code__:
                    frame = frame.f_back
                striker.slot = frame.f_locals["slot"]
                frame.f_trace = striker.trace
                frame.f_trace_opcodes = True
                sys.settrace(
                    lambda inner, event, argument: (
                        striker.trace(inner, event, argument) if inner.f_code in codes else None
                    )
                )
            return function, arguments

        executor = Executor(1, lambda: None, prepare=prepare)
        executor.submit([(n, n, function, (2,)) for n in range(3)])
        found = []
        deadline = time.monotonic() + 20
        while len(found) < 3:
            found += executor.collect()
            assert time.monotonic() < deadline, (striker.where, found, executor.faults)
            time.sleep(0)
        over = striker.seen < at
        striker.slot = None if over else striker.slot
        striker.ask.release()
        striker.thread.join()
        ends = {ticket: kind for ticket, kind, _, _ in found}
        usual = RAISED if function is raises else DONE
        assert [ticket for ticket, *_ in found] == [0, 1, 2], striker.where
        assert ends[0] == ends[2] == usual, striker.where
        assert ends[1] in (usual, CANCELLED), striker.where
        if ends[1] == CANCELLED:
            assert striker.struck
        check_end(executor)
        outcomes[ends[1], striker.struck] += 1
        if striker.struck:
            places.add(striker.where)
        if over:
            break
        at += 1
    assert outcomes[CANCELLED, True] >= 3
    assert outcomes[usual, False] >= 20  # refused at the gate
    assert places


# --- moments that chance does not find


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.0005)


def all_of(executor, count):
    """{ticket: kind} of the next so many tasks that end."""
    found = {}

    def enough():
        found.update({ticket: kind for ticket, kind, _, _ in executor.collect()})
        return len(found) == count

    wait_for(enough)
    return found


@pytest.mark.parametrize("raising", [False, True])
def test_a_strike_waits_for_native_code_while_another_thread_is_struck(raising, switching):
    """CPython 3.11 and 3.12 have one mark for all threads, which the first that raises takes away."""
    lock = threading.Lock()
    lock.acquire()
    stopped = threading.Event()

    def blocked():
        lock.acquire()
        raise ValueError

    def busy():
        while not stopped.is_set():
            pass

    executor = Executor(2, lambda: None, patience=60)
    executor.submit([(1, 1, blocked if raising else lock.acquire, ()), (2, 2, busy, ())])
    wait_for(lambda: len(executor.running()) == 2)
    executor.stop([1])
    wait_for(lambda: executor.strikes == 1)
    executor.stop([2])
    assert all_of(executor, 1) == {2: CANCELLED}
    lock.release()
    assert all_of(executor, 1).keys() == {1}
    switching(1e-5)
    executor.submit([(n, n, spin, (1000,)) for n in range(10, 400)])
    assert set(all_of(executor, 390).values()) == {DONE}
    check_end(executor)


def test_what_is_absorbed_is_gone():
    def work():
        for _ in range(1000):
            module._absorb(threading.get_ident())
            spin(10)

    executor = Executor(1, lambda: None)
    executor.submit([(1, 1, work, ())])
    assert all_of(executor, 1) == {1: DONE}
    check_end(executor)


@pytest.mark.parametrize("function", [spin, raises])
@pytest.mark.parametrize("strikes", range(1, module.STRIKES + 1))
def test_each_strike_comes_while_the_one_before_is_handled(function, strikes, monkeypatch):
    shut = module._shut
    executor = Executor(1, lambda: None)
    left = []

    def interrupted(slot):
        if slot.ticket == 1 and left:
            slot.strikes = strikes  # as many as the clerk may have set
            raise left.pop()
        shut(slot)

    monkeypatch.setattr(module, "_shut", interrupted)
    left += [module._Stopped() for _ in range(strikes)]

    class Last:
        """Where the function does not raise, the first comes as soon as it has returned."""

        def __call__(self):
            if function is spin:
                (slot,) = executor._slots
                slot.strikes = 1
                module._set_pending(slot.ident, left.pop() and module._Stopped)
            else:
                raise ValueError

    executor.submit([(0, 0, spin, (1,)), (1, 1, Last(), ()), (2, 2, spin, (1,))])
    assert all_of(executor, 3) == {0: DONE, 1: CANCELLED, 2: DONE}
    assert not left
    check_end(executor)


class LateGate:
    """The clerk's view of a thread's gate: it gets it only when the thread is in its next task."""

    def __init__(self, slot, let_go):
        self.slot, self.gate, self.let_go = slot, slot.gate, let_go
        self.release = self.gate.release
        self._is_owned = self.gate._is_owned

    def acquire(self, blocking=True):
        if threading.get_ident() == self.slot.ident:
            return self.gate.acquire(blocking)
        self.let_go.set()
        wait_for(lambda: self.slot.ticket == 2 and self.gate.acquire(blocking=False))
        return True


def test_the_clerk_is_late():
    """Between his look at a thread's task and his taking of its gate, the thread has gone to its next task."""
    executor = Executor(1, lambda: None)
    go, second = threading.Event(), threading.Event()

    def until_set(event):
        while not event.is_set():
            pass

    executor.submit([(1, 1, until_set, (go,)), (2, 2, until_set, (second,))])
    wait_for(executor.running)
    (slot,) = executor._slots
    slot.gate = LateGate(slot, go)
    executor.stop([1])
    assert all_of(executor, 1) == {1: DONE}
    wait_for(lambda: not executor._stopping)
    assert executor.strikes == 0
    slot.gate = slot.gate.gate
    second.set()
    assert all_of(executor, 1) == {2: DONE}
    check_end(executor)


def test_a_task_is_cancelled_while_a_thread_takes_it():
    """It is in the queue no more, and its thread has not said yet that it has it."""
    looked = threading.Event()

    class Watched(Executor):
        looks = 0

        def _find_running(self, stops):
            super()._find_running(stops)
            self.looks += 1
            if self.looks == 2:
                looked.set()

    class SlowQueue(deque):
        def popleft(self):
            task = super().popleft()
            if threading.current_thread() is not executor._clerk and task[0] == 1:
                executor.stop([1])
                # The clerk must not come to his end before we go on; if he does, then the task has been missed.
                looked.wait(0.2)
            return task

    executor = Watched(1, lambda: None, patience=60)
    executor._todo = SlowQueue()
    over = threading.Event()

    def for_ever():
        while not over.is_set():
            pass

    executor.submit([(1, 1, for_ever, ())])
    try:
        assert all_of(executor, 1) == {1: CANCELLED}
    finally:
        over.set()
    check_end(executor)
