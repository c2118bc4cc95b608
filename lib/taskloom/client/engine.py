"""The client's inside: its machine and its connection to the scheduler, on an event loop in a thread of its own.

Rules that hold here:

- The machine and the connection are touched by the thread of the event loop only. What others want done goes through one
  queue, in order. So Ctrl-C, which strikes the main thread only, can interrupt nothing of it.
- Others read what the machine knows of a counter (one look into a dict), and count themselves in for news under ``lock``, which
  is held for moments and never while user code runs.
- A future that is dropped may be dropped anywhere, as the garbage collector runs in the midst of everything. So that appends to
  a queue of its own, and takes no lock. It is looked at a moment later, after what was asked for before, so that letting go of
  the last value holds up no one who asks for the next.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from taskloom.client.fetching import Delivery, Fetching, Refused
from taskloom.client.graphs import Graphs
from taskloom.client.output import Screen
from taskloom.client.packing import Columns, unreadable
from taskloom.client.reasons import Reasons
from taskloom.client.signals import Signal, _own_threads, deadline_of, left_of
from taskloom.core.client import FAILED, PENDING, READY, ClientMachine, Wish
from taskloom.core.messages import (
    KINDS,
    Answer,
    Bye,
    ClientHello,
    Heard,
    Lost,
    Options,
    Peers,
    Piece,
    Query,
    Welcome,
)
from taskloom.errors import ClusterError, CommError, HandshakeError, TaskCancelledError, WorkerDiedError
from taskloom.local.frames import note_task
from taskloom.net import Connection, Token, connect
from taskloom.net import Options as NetOptions
from taskloom.node import calls
from taskloom.protocol import Payload
from taskloom.serialize.errors import load_error

__all__ = ["SKIPPED", "Engine", "Watcher"]

AGAIN = (0.05, 0.1, 0.2, 0.5, 1.0)  # seconds between attempts to reach a scheduler that was there
GOODBYE = 1.0  # seconds to get the last words out
LINGER = 0.002  # seconds from a future that is dropped to the word of it; they go in batches
IDLE_TICKS = 20  # after so many with nothing dropped the loop sleeps until the next
AT_ONCE = 5_000  # futures let go in one go; so much is asked for behind them at most
PAUSE = 0.004  # seconds until the next go: the scheduler is done with the last one by then

SKIPPED: Any = type("_Skipped", (), {"__slots__": (), "__repr__": lambda self: "SKIPPED"})()
_WAITING = Wish()

_log = logging.getLogger("taskloom.client")


class Watcher:
    """Somebody who wants to know when tasks have ended."""

    __slots__ = ()

    def settled(self, counter: int) -> None:
        """One has, well or not. Called by the event loop's thread, so it has to be quick."""


class _Countdown:
    """Waits for all of these, or until one has failed. Thousands are looked after together: a set is quick at that."""

    __slots__ = ("pending", "signal")

    def __init__(self, counters: Iterable[int]) -> None:
        self.pending = set(counters)
        self.signal = Signal()

    def settled(self, counters: Sequence[int], failed: Sequence[int]) -> None:
        """These have ended; of these, these have failed."""
        over = any(counter in self.pending for counter in failed)
        self.pending.difference_update(counters)
        if over or not self.pending:
            self.signal.set()


class _Question:
    """A question to the scheduler that has no answer yet."""

    __slots__ = ("answer", "query", "signal")

    def __init__(self, query: Query) -> None:
        self.query = query
        self.signal = Signal()
        self.answer: Answer | BaseException | None = None


class Engine:
    """See the module's text.

    Args:
        address: of the scheduler.
        token: what both have to know.
        patience: seconds to look for a scheduler that was there and is gone.
        screen: where what tasks print and log goes; None: nowhere.
        direct: whether values may be fetched from workers themselves.

    Attributes:
        named: id of a function that goes by its name -> the function and its pickle.
        labels: counter -> key, of what has a future; ``graphs``: of what has none.
        forked: this process was forked from that of the client.
        reason: why nothing comes any more; "" while the client is open.
    """

    def __init__(self, address: str, token: Token, patience: float, screen: Screen | None, direct: bool | None) -> None:
        self.address = address
        self.token = token
        self.patience = patience
        self.machine = ClientMachine(os.urandom(16))
        self._wish_of_machine = self.machine.wishes.get
        self.lock = threading.Lock()
        self.named: dict[int, Any] = {}
        self.labels: dict[int, Any] = {}
        self.graphs = Graphs(self.labels)
        self.reason = ""
        self.forked = False
        self._screen = screen
        if screen is not None:
            screen.name = self.key_of
        self._watchers: dict[int, list[Watcher]] = {}
        self._countdowns: list[_Countdown] = []
        self._refs: dict[int, int] = {}  # counter -> how many futures more than one it has
        self._keys: dict[Any, int] = {}  # keys that are shared -> their counters
        self._key_of: dict[int, Any] = {}  # and the other way round
        self._given_up: dict[int, Wish] = {}  # what this client does not wait for any more, whatever comes
        self._once_more: set[int] = set()  # of that, what is to be retried when it is known to have failed
        self._questions: dict[int, _Question] = {}
        self._serials = itertools.count(1)
        self._inbox: deque[Any] = deque()
        self._awake = False
        self._working = False  # what is said meanwhile goes out at its end
        self._dropped: deque[int] = deque()
        self._watching = False  # the loop is going to look for what was dropped within a moment
        self._idle = 0
        self._late: list[Any] = []  # messages that a scheduler which comes back has to hear, beside what is wanted
        self._connection: Connection | None = None
        self._coming: asyncio.Task[None] | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        self._over = Signal()
        self.loop = asyncio.new_event_loop()
        self.fetching = Fetching(self, direct)
        self.reasons = Reasons(self)
        self._thread = threading.Thread(target=self._serve, name="taskloom-client", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        _own_threads.add(threading.get_ident())
        try:
            self.loop.run_forever()
        finally:
            _own_threads.discard(threading.get_ident())
            self.loop.close()

    # --- what others have done here

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Have the event loop's thread call something, in the order of calls."""
        self._inbox.append((function, args))
        self._wake()

    def drop(self, counter: int) -> None:
        """One future less of a task. This may be called anywhere, see the module's text."""
        self._dropped.append(counter)
        if not self._watching:
            self._watch()

    def _wake(self) -> None:
        if not self._awake and not self.forked:
            try:
                self._awake = True
                self.loop.call_soon_threadsafe(self._work)  # it appends to a deque and writes to a socket
            except RuntimeError:  # the loop is closed
                pass
            except BaseException:  # Ctrl-C: maybe nobody was woken
                self._awake = False
                raise

    def _work(self) -> None:
        self._awake = False
        inbox = self._inbox
        self._working = True
        try:
            while inbox:
                function, args = inbox.popleft()
                try:
                    function(*args)
                except Exception:  # a defect of ours; what others want done goes on
                    _log.exception("the client failed at %r", function)
        finally:
            self._working = False
        if self._connection is not None:
            self._connection.flush()

    def _watch(self) -> None:
        if not self._watching and not self.forked:
            try:
                self._watching = True
                self.loop.call_soon_threadsafe(self._watch_soon)
            except RuntimeError:  # the loop is closed
                pass
            except BaseException:  # as above
                self._watching = False
                raise

    def _watch_soon(self) -> None:
        self._idle = 0
        self.loop.call_later(LINGER, self._sweep)

    def _sweep(self) -> None:
        """Let go of what was dropped."""
        dropped = self._dropped
        counters = [dropped.popleft() for _ in range(min(len(dropped), AT_ONCE))]
        self._idle = 0 if counters else self._idle + 1
        if counters:
            if self._inbox:  # they may be among what is asked for there
                self._work()
            self._let_go(counters)
            if dropped:
                self.loop.call_later(PAUSE, self._sweep)
                return
        if self._idle > IDLE_TICKS:
            self._watching = False
            if not dropped:  # nothing came before the others could see that nobody watches
                return
            self._watching = True
        self.loop.call_later(LINGER, self._sweep)

    def check(self) -> None:
        """Raise what stands in the way of asking for anything.

        Raises:
            ClusterError: the client is closed, or belongs to the process that this one was forked from.
        """
        if self.forked:
            raise ClusterError(
                f"this client of {self.address} belongs to the process that this one was forked from, and cannot be used here. "
                "Make a new Client in this process"
            )
        if self.reason:
            raise ClusterError(self.reason)

    def _say(self, messages: Iterable[Any]) -> None:
        connection = self._connection
        if connection is not None:
            for message in messages:
                connection.put(message)
            if not self._working:
                connection.flush()

    @property
    def is_connected(self) -> bool:
        """Whether the scheduler is there just now."""
        return self._connection is not None

    def fork(self) -> None:
        """In a process that was forked: nothing of this is of use here, and a lock may be held by a thread that is not here."""
        self.forked = True
        self.lock = threading.Lock()

    # --- connecting

    def start(self, timeout: float) -> _Question:
        """Begin to connect; the question is answered when that is done, or has failed."""
        done = _Question(Query(0, "connect", {}))
        self.call(self._start, timeout, done)
        return done

    def _start(self, timeout: float, done: _Question) -> None:
        self._coming = self.loop.create_task(self._first(timeout, done))

    async def _first(self, timeout: float, done: _Question) -> None:
        try:
            await self._connect(timeout)
            done.answer = Answer(0, None)
        except Exception as error:
            done.answer = error
            self._end(f"this client could not connect: {error}")
        except asyncio.CancelledError:
            done.answer = ClusterError(self.reason or "the client was closed")
        done.signal.set()

    async def _connect(self, timeout: float) -> None:
        deadline = deadline_of(timeout)
        assert deadline is not None
        connection = await connect(
            self.address,
            token=self.token,
            role="client",
            wants="scheduler",
            timeout=timeout,
            options=NetOptions(kinds=KINDS),
        )
        welcome: asyncio.Future[None] = self.loop.create_future()

        def on_messages(messages: list[Any]) -> None:
            if not welcome.done():
                messages = messages[1:] if type(messages[0]) is Welcome else messages
                welcome.set_result(None)
            if messages:
                self._heard(messages)

        def on_close(reason: CommError | None) -> None:
            if not welcome.done():
                welcome.set_exception(reason or ClusterError(f"the scheduler at {self.address} closed the connection"))
            elif self._connection is connection:
                self._lost(reason)

        connection.start(on_messages, on_close)
        connection.send(ClientHello(self.machine.uuid))
        self._connection = connection
        self.fetching.forget()
        late, self._late = self._late, []
        self._say(self.machine.connected())
        self._say(late)
        self._say([question.query for question in self._questions.values()])
        try:
            async with asyncio.timeout(left_of(deadline)):
                await welcome
        except TimeoutError:
            connection.abort()
            raise CommError(
                f"the scheduler at {self.address} let this client in, and did not answer within {timeout:g} s: it may be too busy"
            ) from None
        except BaseException:
            connection.abort()
            raise
        finally:
            if not welcome.done() or welcome.cancelled() or welcome.exception() is not None:
                self._connection = None
        self.fetching.connected()

    def _lost(self, reason: CommError | None) -> None:
        self._connection = None
        if self.reason:
            return
        _log.warning(
            "the connection to the scheduler at %s is lost (%s); it is looked for for %g s",
            self.address,
            reason,
            self.patience,
        )
        self._coming = self.loop.create_task(self._come_back())

    async def _come_back(self) -> None:
        deadline = deadline_of(self.patience)
        assert deadline is not None
        problem: Exception | None = None
        for delay in itertools.chain(AGAIN, itertools.repeat(AGAIN[-1])):
            await asyncio.sleep(delay)
            try:
                await self._connect(max(2.0, delay))
                _log.warning("the scheduler at %s is back", self.address)
                return
            except HandshakeError as error:
                problem = error
                if error.code != "lost":
                    break
            except (CommError, OSError) as error:
                problem = error
            if not left_of(deadline):
                break
        self._end(f"the scheduler at {self.address} is gone, and this client with it: {problem}")

    def _end(self, reason: str) -> None:
        """Nothing comes any more."""
        if not self.reason:
            self.reason = reason
        with self.lock:
            watchers, self._watchers = self._watchers, {}
            countdowns = self._countdowns[:]
        for counter, several in watchers.items():
            for watcher in several:
                watcher.settled(counter)
        for countdown in countdowns:
            countdown.signal.set()
        questions, self._questions = self._questions, {}
        for question in questions.values():
            question.answer = ClusterError(self.reason)
            question.signal.set()
        self.fetching.end()

    # --- leaving

    def leave(self, reason: str) -> Signal:
        """Begin to leave; the signal comes when that is done."""
        if not self.reason:
            self.reason = reason
        if not self.loop.is_closed():
            self.call(self._leave)
        else:
            self._over.set()
        return self._over

    def _leave(self) -> None:
        if self._coming is not None and not self._coming.done():
            self._coming.cancel()
        self._end(self.reason)
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._last = self.loop.create_task(self._disconnect())

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and not connection.closed:
            connection.send(Bye())
            connection.close()
            try:
                async with asyncio.timeout(GOODBYE):
                    await connection.wait_closed()
            except TimeoutError:
                connection.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others)
        await asyncio.sleep(0)  # for callbacks of what has just ended
        if self._screen is not None:
            self._screen.flush()
        self._over.set()
        self.loop.call_soon(self.loop.stop)

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    # --- what the scheduler says

    def _heard(self, messages: list[Any]) -> None:
        said: list[Any] = []
        for message in messages:
            kind = type(message)
            if kind is Heard:
                if said:
                    self._take_in(said)
                    said = []
                if self._screen is not None:
                    self._screen.show(message)
            elif kind is Peers:
                self.fetching.addresses.update(message.addresses)
            elif kind is Answer:
                question = self._questions.pop(message.serial, None)
                if question is not None:
                    question.answer = message
                    question.signal.set()
            elif kind is Piece:
                self.fetching.piece(message)
            else:
                said.append(message)
        if said:
            self._take_in(said)

    def _take_in(self, said: list[Any]) -> None:
        machine = self.machine
        changed = machine.handle(said)
        self._say(machine.to_send())
        if self._screen is not None and self._screen.has_open:
            self._screen.ended(changed)
        if self._given_up:
            changed = [counter for counter in changed if not self._is_late(counter)]
        if self.fetching.wanted:
            self.fetching.changed(changed)
        self._notify(changed)

    def _is_late(self, counter: int) -> bool:
        """News of a task that this client has given up."""
        if counter in self._once_more and self.machine.wishes[counter].state != PENDING:
            self._once_more.discard(counter)
            self._given_up.pop(counter, None)
            if self.machine.wishes[counter].state == FAILED:
                self._say(self.machine.retry([counter]))
                return True
            return False
        return counter in self._given_up

    def _notify(self, counters: Iterable[int]) -> None:
        """Tell those who wait for tasks that have ended.

        Who begins to wait looks at the machine with the lock held. So it sees that a task has ended, or is found here.
        """
        watchers = self._watchers
        found = []
        with self.lock:
            if self._countdowns:
                wish = self.wish if self._given_up else self._wish_of_machine
                ended, failed = [], []
                for counter in counters:
                    state = wish(counter, _WAITING).state
                    if state != PENDING:
                        ended.append(counter)
                        if state == FAILED:
                            failed.append(counter)
                for countdown in self._countdowns:
                    countdown.settled(ended, failed)
            if watchers:
                for counter in counters:
                    if counter in watchers and self.wish(counter).state != PENDING:
                        found.append((counter, watchers.pop(counter)))
        for counter, several in found:
            for watcher in several:
                watcher.settled(counter)

    # --- tasks

    def reserve(self, count: int) -> int:
        """The counter of the first of so many tasks to come."""
        with self.lock:
            return self.machine.reserve(count)

    def submit(self, columns: Columns, options: Options | None) -> None:
        """New tasks."""
        self.call(self._submit, columns, options)

    def _submit(self, columns: Columns, options: Options | None) -> None:
        first, functions, args, deps, wanted, unpin = columns
        if not self.reasons.looking:
            self.reasons.look()
        try:
            self._say(self.machine.submit(functions, args, deps, wanted, options, unpin, first)[1])
        except Exception as error:
            counters = range(first, first + len(wanted))
            failed = Wish(FAILED, error=error)
            with self.lock:
                self._given_up.update({counter: failed for counter in counters if counter in self.machine.wishes})
            self._notify(counters)

    def finished(self, first: int, count: int) -> None:
        """All that tasks of a graph have to say was said."""
        if count:
            self.graphs.forget(first)
        if self._screen is not None and self._screen.has_open:
            self.call(self._screen.ended, range(first, first + count))

    def unsubmit(self, first: int, end: int) -> None:
        """Tasks of which some were sent and the others are not to come: pins among them end."""
        self.call(self._submit, Columns(first, [], [], [], b"", (first, end)), None)

    def wish(self, counter: int, default: Wish = _WAITING) -> Wish:
        """What is known of a task; what is not there is on its way to the machine."""
        if self._given_up:
            found = self._given_up.get(counter)
            if found is not None:
                return found
        return self.machine.wishes.get(counter, default)

    def share(self, counter: int, key: Any = None) -> None:
        """One future more of a task."""
        with self.lock:
            self._refs[counter] = self._refs.get(counter, 0) + 1

    def find(self, key: Any) -> int | None:
        """The counter of a task by its key, with one future more of it; None where there is none, or it was cancelled."""
        with self.lock:
            counter = self._keys.get(key)
            if counter is None:
                return None
            if self._is_given_up(counter):
                del self._keys[key], self._key_of[counter]
                return None
            self._refs[counter] = self._refs.get(counter, 0) + 1
            return counter

    def claim(self, keys: Sequence[Any]) -> tuple[list[int], list[int]]:
        """Counters of tasks by their keys, with one future more of each; those that are not there are to be submitted.

        Returns:
            The counters, and the places of those that are new.
        """
        counters, new = [], []
        with self.lock:
            for n, key in enumerate(keys):
                counter = self._keys.get(key)
                if counter is not None and not self._is_given_up(counter):
                    self._refs[counter] = self._refs.get(counter, 0) + 1
                else:
                    new.append(n)
                    counter = -1
                counters.append(counter)
        return counters, new

    def _is_given_up(self, counter: int) -> bool:
        return counter in self._given_up and self._given_up[counter].state == FAILED

    def register(self, key: Any, counter: int) -> None:
        """From now on this key means that task."""
        with self.lock:
            old = self._keys.get(key)
            if old is not None:
                self._key_of.pop(old, None)
            self._keys[key] = counter
            self._key_of[counter] = key

    def release(self, counters: Iterable[int]) -> None:
        """One future less of each."""
        self._dropped.extend(counters)
        self._watch()

    def _let_go(self, counters: list[int]) -> None:
        if self._refs or self._keys or self._given_up:
            gone = []
            with self.lock:
                refs = self._refs
                for counter in counters:
                    count = refs.get(counter, 0)
                    if count > 1:
                        refs[counter] = count - 1
                    elif count:
                        del refs[counter]
                    else:
                        gone.append(counter)
                        self._given_up.pop(counter, None)
                        self._once_more.discard(counter)
                        key = self._key_of.pop(counter, None)
                        if key is not None and self._keys.get(key) == counter:
                            del self._keys[key]
            counters = gone
        for counter in counters:
            self.labels.pop(counter, None)
        self._wake_those_who_wait_for(counters)
        if self._screen is not None:
            self._screen.ended(counters)
        self._say(self.machine.release(counters))

    def _wake_those_who_wait_for(self, counters: list[int]) -> None:
        """What is waited for was released by somebody else."""
        with self.lock:
            if not self._watchers and not self._countdowns:
                return
            watched = [self._watchers, *[countdown.pending for countdown in self._countdowns]]
            waited = [counter for counter in counters if any(counter in some for some in watched)]
        if waited:
            released = Wish(FAILED, error=ClusterError("the future was released while its value was waited for"))
            with self.lock:
                self._given_up.update(dict.fromkeys(waited, released))
            self._notify(waited)

    def give_up(self, counters: Iterable[int], error: Any) -> None:
        """Stop tasks that have not ended; they have failed by an error of our own from now on.

        Args:
            error: a :class:`taskloom.core.messages.Lost`, or an exception.
        """
        counters = list(counters)
        with self.lock:
            pending = [c for c in dict.fromkeys(counters) if self.wish(c).state == PENDING]
            self._given_up.update({counter: Wish(FAILED, culprit=counter, error=error) for counter in pending})
        if pending:
            self.call(self._gave_up, pending)

    def _gave_up(self, counters: list[int]) -> None:
        # what was released meanwhile is forgotten already
        here = [counter for counter in counters if counter in self.machine.wishes]
        self._once_more.difference_update(here)
        with self.lock:
            for counter in set(counters) - set(here):
                self._given_up.pop(counter, None)
        messages = self.machine.cancel(here) if here else []
        if self._connection is None:
            self._late += messages
        self._say(messages)
        self._notify(here)

    def give_up_after(self, counters: Sequence[int], timeout: float) -> None:
        """Stop those that have not ended in so many seconds: they have failed by a TimeoutError."""
        self.call(self._give_up_after, counters, timeout)

    def _give_up_after(self, counters: Sequence[int], timeout: float) -> None:
        def over() -> None:
            late = [c for c in counters if c in self.machine.wishes and self.wish(c).state == PENDING]
            self.give_up(late, Lost("timeout", f"the task was not done {timeout:g} s after it was submitted"))

        self.later(timeout, over)

    def later(self, seconds: float, function: Callable[[], object]) -> None:
        """Have the event loop call something in so many seconds, if the client is open then."""

        def call() -> None:
            self._timers.discard(handle)
            function()

        handle = self.loop.call_later(seconds, call)
        self._timers.add(handle)

    def retry(self, counters: Sequence[int]) -> None:
        """Try those again that have failed."""
        self.call(self._retry, counters)

    def _retry(self, counters: Sequence[int]) -> None:
        known = []
        with self.lock:
            for counter in counters:
                if counter in self._given_up:
                    if (
                        self.machine.wishes.get(counter, _WAITING).state == PENDING
                    ):  # the word of its end is still under way
                        self._once_more.add(counter)
                        self._given_up[counter] = _WAITING
                        continue
                    del self._given_up[counter]
                known.append(counter)
        messages = self.machine.retry(known)
        if self._connection is None:
            self._late += messages
        self._say(messages)
        self._notify(known)

    # --- waiting

    def watch(self, counters: Iterable[int], watcher: Watcher) -> list[int]:
        """Have somebody told of tasks when they end.

        Returns:
            Those that have ended: of these it is not told.
        """
        ended = []
        with self.lock:
            for counter in counters:
                if counter < 0 or self.reason or self.wish(counter).state != PENDING:
                    ended.append(counter)
                else:
                    self._watchers.setdefault(counter, []).append(watcher)
        return ended

    def unwatch(self, counters: Iterable[int], watcher: Watcher) -> None:
        """It wants to know no more."""
        with self.lock:
            for counter in counters:
                several = self._watchers.get(counter)
                if several is not None and watcher in several:
                    several.remove(watcher)
                    if not several:
                        del self._watchers[counter]

    async def ended(
        self,
        counters: Sequence[int],
        deadline: float | None,
        timeout: float | None,
        name: Callable[[int], Any] | None = None,
    ) -> None:
        """Wait until these have ended, or one has failed.

        Raises:
            TimeoutError: they have not in time; says why.
        """
        if self.forked:
            self.check()
        pending = []
        with self.lock:
            if self.reason:
                return
            wish = self.wish if self._given_up else self._wish_of_machine
            for counter in counters:
                state = wish(counter, _WAITING).state
                if state == PENDING:
                    pending.append(counter)
                elif state == FAILED:
                    return
            if not pending:
                return
            countdown = _Countdown(pending)
            self._countdowns.append(countdown)
        try:
            happened = await countdown.signal.wait(deadline)
        finally:
            with self.lock:
                self._countdowns.remove(countdown)
        if not happened:
            left = list(countdown.pending)
            raise TimeoutError(
                f"{len(left)} of {len(set(counters))} values were not there after {timeout:g} s"
                + await self.reasons.because(left, timeout, name)
            )

    async def values(
        self,
        counters: Sequence[int],
        timeout: float | None = None,
        errors: str = "raise",
        direct: bool | None = None,
        name: Callable[[int], Any] | None = None,
    ) -> list[Any]:
        """Values of tasks, in their order; waits for them.

        Args:
            errors: "raise" the first one; "skip": SKIPPED stands for the values that are not to be had.
            direct: see :class:`Engine`.
            name: the key of a task by its counter, for errors.

        Raises:
            TimeoutError: they were not all there in time.
            ClusterError: the client is closed.
            SerializationError: one cannot be unpickled here.
            Exception: what a task raised.
        """
        deadline = deadline_of(timeout)
        wishes = self.machine.wishes
        found: dict[int, Any] = {}
        todo: Sequence[int] = counters
        while True:
            if errors == "skip":
                for counter in todo:
                    try:
                        await self.ended([counter], deadline, timeout, name)
                    except TimeoutError as error:
                        left = sum(self.wish(c).state == PENDING for c in set(todo))
                        because = str(error).partition(": ")[2]
                        raise TimeoutError(
                            f"{left} of {len(set(counters))} values were not there after {timeout:g} s"
                            + (because and f": {because}")
                        ) from None
            else:
                await self.ended(todo, deadline, timeout, name)
            wanted: dict[int, Wish] = {}
            again: list[int] = []
            given_up = self._given_up
            for counter in todo:
                wish = wishes.get(counter, _WAITING)
                if given_up and counter in given_up:
                    wish = given_up[counter]
                state = wish.state
                if state == READY:
                    result = wish.result
                    if result is None:
                        wanted[counter] = wish
                    elif type(result) is Payload or type(result) is tuple:
                        found[counter] = self._opened(counter, result, errors, name)
                    else:
                        found[counter] = result
                elif state == FAILED:
                    if errors == "skip":
                        found[counter] = SKIPPED
                    else:
                        raise self.error_of(counter, name)
                else:
                    again.append(counter)
            if again:  # lost meanwhile, or the client is closed, or another one has failed
                self.check()
            if wanted:
                self.check()
                await self._fetch(wanted, found, again, deadline, timeout, errors, direct, name)
            if not again:
                return [found[counter] for counter in counters]
            todo = again

    async def _fetch(
        self,
        wanted: dict[int, Wish],
        found: dict[int, Any],
        again: list[int],
        deadline: float | None,
        timeout: float | None,
        errors: str,
        direct: bool | None,
        name: Callable[[int], Any] | None,
    ) -> None:
        delivery = Delivery(wanted, direct)
        self.call(self.fetching.start, delivery)
        try:
            happened = await delivery.signal.wait(deadline)
        except BaseException:
            self.call(self.fetching.stop, delivery)
            raise
        if not happened:
            self.call(self.fetching.stop, delivery)
            raise TimeoutError(f"{len(wanted) - len(delivery.found)} values had not arrived after {timeout:g} s")
        self.check()
        for counter in wanted:
            value = delivery.found.pop(counter, None)
            if value is None:
                again.append(counter)
            elif type(value) is not Refused:
                found[counter] = self._opened(counter, value, errors, name)
            elif errors == "skip":
                found[counter] = SKIPPED
            else:
                raise load_error(value.error)

    def _opened(self, counter: int, value: Any, errors: str, name: Callable[[int], Any] | None) -> Any:
        """A value that has come."""
        try:
            return calls.open_value(value)
        except Exception as error:
            if errors == "skip":
                return SKIPPED
            raise unreadable((name or self.key_of)(counter), error) from error

    def error_of(self, counter: int, name: Callable[[int], Any] | None = None) -> BaseException:
        """What a task has failed by, a new one each time, so that its traceback does not grow."""
        wish = self.wish(counter)
        error = wish.error
        if isinstance(error, Lost):
            kind = {"died": WorkerDiedError, "cancelled": TaskCancelledError, "timeout": TimeoutError}.get(
                error.kind, ClusterError
            )
            words = error.words
            if kind is not ClusterError and name is not None:
                words = f"{words} (task {name(wish.culprit)!r})"
            lost: BaseException = kind(words)
            return lost
        if isinstance(error, BaseException):
            return type(error)(*error.args)
        found: BaseException = load_error(bytes(error.parts[0]))
        if name is not None:
            note_task(found, name(wish.culprit))
        return found

    # --- questions

    def key_of(self, counter: int) -> Any:
        """The key of a task by its counter, as far as it is known here; else its counter."""
        found = self.labels.get(counter, self)
        return self.graphs.key_of(counter) if found is self else found

    async def ask(self, what: str, timeout: float | None = None, **args: Any) -> Any:
        """Ask the scheduler something.

        Raises:
            TimeoutError: there was no answer in time.
            ClusterError: the scheduler says that it cannot answer, or the client is closed.
        """
        self.check()
        question = _Question(Query(next(self._serials), what, args))
        self.call(self._ask, question)
        try:
            happened = await question.signal.wait(deadline_of(timeout))
        finally:
            self.call(self._questions.pop, question.query.serial, None)
        if not happened:
            raise TimeoutError(f"the scheduler at {self.address} did not answer {what!r} within {timeout:g} s")
        return self.answer_of(question)

    def _ask(self, question: _Question) -> None:
        if self.reason:
            question.answer = ClusterError(self.reason)
            question.signal.set()
            return
        self._questions[question.query.serial] = question
        self._say([question.query])

    @staticmethod
    def answer_of(question: _Question) -> Any:
        """What was answered.

        Raises:
            Exception: that it could not be.
        """
        answer = question.answer
        if isinstance(answer, BaseException):
            raise answer
        assert answer is not None
        if answer.error:
            raise ClusterError(answer.error)
        return answer.value
