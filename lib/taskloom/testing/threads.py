"""A worker process around its real machine: the store of its values, and threads that take their time.

It is what :mod:`taskloom.testing.processes`, where everything goes wrong, and :mod:`taskloom.testing.timed`, where nothing does,
have in common: how the actions of a machine are carried out. What a task is and takes, and how messages and values travel, is
said by who derives from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any

from taskloom.core.worker import (
    ClosePeers,
    Discard,
    Forget,
    Keep,
    Leave,
    Raised,
    Rename,
    Send,
    Start,
    Stop,
    Unready,
    Withdraw,
    WorkerMachine,
)

__all__ = ["Threads"]


class Threads(ABC):
    """A worker's machine, its values and its threads.

    Attributes:
        machine: the real one.
        threads: how many tasks run at a time.
        alive: until the process dies.
        values: by the machine's names; ``results``: what ended and was not yet kept or discarded, by (grant, tid).
        queue: tasks that were handed over and not begun; ``executing``: (grant, tid) of those that threads are at.
        stopped: (grant, tid) of those in either that are to stop.
    """

    def __init__(self, machine: WorkerMachine, threads: int) -> None:
        self.machine = machine
        self.threads = threads
        self.alive = True
        self.values: dict[int, Any] = {}
        self.results: dict[tuple[int, int], Any] = {}
        self.queue: deque[Start] = deque()
        self.executing: dict[tuple[int, int], None] = {}
        self.stopped: set[tuple[int, int]] = set()

    # --- what it takes, and how it travels

    @property
    @abstractmethod
    def now(self) -> float:
        """Simulated seconds."""

    @abstractmethod
    def begin(self, key: tuple[int, int], action: Start) -> None:
        """A thread is at a task, all of whose inputs are here."""

    @abstractmethod
    def say(self, message: Any) -> None:
        """Something is said to the scheduler."""

    @abstractmethod
    def ask(self, peer: int, message: Any) -> None:
        """Something is said to another worker."""

    @abstractmethod
    def give(self, peer: Any, serial: int, tids: Sequence[int], values: list[Any]) -> None:
        """Values go to who has asked for them."""

    @abstractmethod
    def leave(self) -> None:
        """The scheduler needs nothing of this process any more."""

    def close_peers(self) -> None:
        """The connections to and from others end; where a scheduler never goes this does not happen."""
        raise NotImplementedError

    # --- what it does

    def store(self, tid: int, value: Any) -> None:
        """A value is here."""
        self.values[tid] = value

    def discard(self, tid: int) -> None:
        """A value is not needed any more, if it is here."""
        self.values.pop(tid, None)

    def handle(self, events: Sequence[Any]) -> None:
        """Let the machine take events in, and do what it says."""
        if self.alive:
            self.do(self.machine.handle(events, self.now))
            self.go_on()

    def do(self, actions: Sequence[Any]) -> None:
        """Do what the machine says."""
        withdrawn: list[Any] = []
        for action in actions:
            kind = type(action)
            if kind is Start:
                self.queue.append(action)
            elif kind is Stop:
                self.stopped.add((action.grant, action.tid))
            elif kind is Withdraw:
                wanted = set(action.keys) - self.stopped
                keys = [task.key for task in self.queue if task.key in wanted]
                self.queue = deque([task for task in self.queue if task.key not in wanted])
                withdrawn += [Unready(*key) for key in keys]
            elif kind is Keep:
                self.store(action.name, self.results.pop((action.grant, action.tid)))
            elif kind is Discard:
                del self.results[action.grant, action.tid]
            elif kind is Forget:
                for tid in action.tids:
                    self.discard(tid)
            elif kind is Send:
                self.give(action.peer, action.serial, action.tids, [self.values[tid] for tid in action.tids])
            elif kind is Rename:
                for old, new in action.names.items():
                    self.values[new] = self.values.pop(old)
            elif kind is ClosePeers:
                self.close_peers()
            elif kind is Leave:
                self.leave()
            elif action.peer is None:
                self.say(action.message)
            else:
                self.ask(action.peer, action.message)
        if withdrawn:
            self.handle(withdrawn)

    def go_on(self) -> None:
        """Let threads that have nothing to do begin what was handed over, in its order."""
        at = 0
        while self.alive and at < len(self.queue) and len(self.executing) < self.threads:
            action = self.queue[at]
            key = action.key
            lacks = any(d not in self.values for d in action.deps)
            if lacks and key not in self.stopped:
                coming = {tid for _, tid in self.executing} | {other.tid for other in islice(self.queue, at)}
                if any(d not in self.values and d in coming for d in action.deps):
                    at += 1  # it was handed over together with what makes its input
                    continue
            del self.queue[at]
            if key in self.stopped:
                self.stopped.discard(key)
                self.handle([Raised(*key, "stopped")])
            elif lacks:
                self.handle([Unready(*key)])
            else:
                self.executing[key] = None
                self.begin(key, action)
